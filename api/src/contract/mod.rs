//! The contract of the edge: its `OpenAPI` 3.1 document, made from the routes and the types
//! themselves. What is common to many routes is said once, here.

mod shapes;

pub use shapes::*;

use std::sync::Arc;

use axum::response::IntoResponse as _;
use axum::routing::get;
use axum::{Json, Router};
use utoipa::OpenApi as _;
use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{ArrayItems, KnownFormat, Schema, SchemaFormat};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{Content, ContentBuilder, OpenApi, Ref, RefOr, Required, ResponseBuilder};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::error::PROBLEM_JSON;
use crate::routes;

/// Where the document is served.
const PATH: &str = "/openapi.json";

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Millrace",
        license(name = "Apache-2.0 OR MIT"),
        description = "Order processing: commands are accepted here and carried out by workers; \
                       reads are answered from views.\n\n\
                       Money is in minor units (1234 USD is 12.34 dollars), times are RFC 3339 in \
                       UTC, errors are problem documents (RFC 9457)."
    ),
    tags(
        (name = "orders", description = "Placing orders, their further steps, reading them"),
        (name = "customers", description = "Customers, their credit and their orders"),
        (name = "products", description = "The catalogue and its stock"),
        (name = "commands", description = "What became of a command"),
        (name = "operators", description = "Only there with `--operator-routes`"),
        (name = "webhooks", description = "Only there with a secret of webhooks: for gateways"),
        (name = "health", description = "For whoever runs the edge"),
    ),
    components(schemas(crate::error::Body, Accepted))
)]
struct Contract;

/// Answers that many routes have in common: status, name, meaning.
const COMMON: [(&str, &str, &str); 8] = [
    ("400", "Malformed", "The request is malformed; `errors` names the fields."),
    ("401", "Unauthorized", "A token is needed, or it is not taken: `WWW-Authenticate` says why."),
    ("403", "Forbidden", "The role of the token may not do this: `x-roles` names those that may."),
    (
        "429",
        "TooManyRequests",
        "The caller asks for too much: come back after `Retry-After` seconds. Nothing was done.",
    ),
    ("408", "TooSlow", "The body did not arrive in time."),
    ("413", "TooLarge", "The body is larger than a command may be."),
    ("415", "NotJson", "The body is not JSON."),
    (
        "503",
        "Unavailable",
        "Too much to do, or a server behind the edge is away: come back after `Retry-After` \
         seconds. Unless `type` is `/problems/outcome-unknown`, the request has had no effect.",
    ),
];

/// The document; the routes for operators and for webhooks are only there where they are served.
pub fn document(operators: bool, webhooks: bool) -> OpenApi {
    let mut table = routes::commands_and_views().merge(routes::metrics()).merge(routes::health());
    if operators {
        table = table.merge(routes::operators());
    }
    if webhooks {
        table = table.merge(routes::webhooks());
    }
    let mut document = Contract::openapi();
    document.merge(table.into_router().into_openapi());
    for item in document.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.put];
        operations.into_iter().flatten().for_each(complete);
    }
    let components = document.components.get_or_insert_default();
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(
        "A JWT or an API key. Not asked for where the edge runs without: on one's own machine.",
    ));
    components.add_security_scheme(routes::SIGN_IN, SecurityScheme::Http(token.build()));
    components.schemas.values_mut().for_each(bound);
    let responses = &mut components.responses;
    for (_, name, description) in COMMON {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new().description(description);
        responses.insert(name.to_owned(), response.content(PROBLEM_JSON, content).build().into());
    }
    document
}

/// Adds what all operations of a kind have in common.
fn complete(operation: &mut Operation) {
    let tag = operation.tags.iter().flatten().next().map_or("", String::as_str);
    let name = operation.operation_id.as_deref().unwrap_or("");
    operation.operation_id = Some(format!("{tag}-{}", name.replace('_', "-")));
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter {
            parameter.schema.iter_mut().for_each(bound);
        }
    }
    let has_body = operation.request_body.is_some();
    if let Some(RefOr::T(body)) = &mut operation.request_body {
        // Where nothing has to be said, the body may be left out.
        let silent = |content: &RefOr<Content>| {
            let RefOr::T(Content { schema: Some(RefOr::Ref(of)), .. }) = content else {
                return false;
            };
            ["EmptyBody", "StepBody"].iter().any(|name| of.ref_location.ends_with(name))
        };
        if body.content.values().any(silent) {
            body.required = Some(Required::False);
        }
    }
    for (status, name, _) in COMMON {
        let fits = match status {
            "403" => operation.security.is_some(),
            "400" => has_body || operation.parameters.is_some(),
            "401" | "429" | "503" => true,
            _ => has_body,
        };
        let responses = &mut operation.responses.responses;
        if fits && tag != "health" && !responses.contains_key(status) {
            let response = RefOr::Ref(Ref::from_response_name(name));
            responses.insert(status.to_owned(), response);
        }
    }
}

/// Says how large a number may be that is read into 64 bits: no reader knows the format's name.
fn bound(schema: &mut RefOr<Schema>) {
    let RefOr::T(schema) = schema else { return };
    match schema {
        Schema::Object(object) => {
            let unsigned = SchemaFormat::KnownFormat(KnownFormat::UInt64);
            if object.format == Some(unsigned) && object.maximum.is_none() {
                object.maximum = Some(u64::MAX.into());
            }
            object.properties.values_mut().for_each(bound);
        }
        Schema::Array(array) => {
            if let ArrayItems::RefOrSchema(items) = &mut array.items {
                bound(items);
            }
        }
        Schema::OneOf(of) => of.items.iter_mut().for_each(bound),
        Schema::AllOf(of) => of.items.iter_mut().for_each(bound),
        Schema::AnyOf(of) => of.items.iter_mut().for_each(bound),
        _ => {}
    }
}

/// `GET /openapi.json`, and a page to read it at `/docs`.
pub fn served<S: Clone + Send + Sync + 'static>(operators: bool, webhooks: bool) -> Router<S> {
    // Shared: routes are cloned for requests, and the document is a megabyte of small parts.
    let document = Arc::new(document(operators, webhooks));
    let json = get(async move || Json(document.as_ref()).into_response());
    let page = SwaggerUi::new("/docs").config(Config::from(PATH).validator_url("none"));
    Router::new().route(PATH, json).merge(page)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// `MILLRACE_BLESS=1 cargo test -p millrace-api contract` writes the file anew.
    #[test]
    fn the_document_that_is_checked_in_is_the_one_that_is_served() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
        let made = document(true, true).to_pretty_json().unwrap() + "\n";
        if std::env::var_os("MILLRACE_BLESS").is_some_and(|bless| bless == "1") {
            fs::write(&file, &made).unwrap();
        }
        let checked_in = fs::read_to_string(&file).unwrap_or_default();
        assert!(checked_in == made, "docs/openapi.json is not what the code says: bless it");
    }

    #[test]
    fn every_route_is_in_the_document() {
        let routers = [
            routes::commands_and_views(),
            routes::operators(),
            routes::webhooks(),
            routes::metrics(),
            routes::health(),
        ];
        let document = document(true, true);
        for router in routers {
            // axum does not list its routes in any other way.
            let printed = format!("{:?}", Router::from(router.into_router()));
            let paths = printed.split('"').filter(|text| text.starts_with('/'));
            // Its fallback is at the root and at all that is below.
            let paths: Vec<&str> = paths.filter(|it| *it != "/" && !it.contains("{*")).collect();
            assert!(!paths.is_empty(), "{printed}");
            for path in paths {
                assert!(document.paths.paths.contains_key(path), "{path} is not in the document");
            }
        }
    }

    #[test]
    fn every_reference_has_its_target() {
        let json = serde_json::to_value(document(true, true)).unwrap();
        let mut open = vec![&json];
        while let Some(value) = open.pop() {
            if let Some(target) = value["$ref"].as_str() {
                let pointer = target.strip_prefix('#').unwrap();
                assert!(json.pointer(pointer).is_some(), "{target} is missing");
            }
            open.extend(value.as_object().into_iter().flat_map(|object| object.values()));
            open.extend(value.as_array().into_iter().flatten());
        }
    }
}
