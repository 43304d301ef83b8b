//! The routes, by what they are about.

#![expect(unused_qualifications, reason = "in what utoipa's macros write")]

mod commands;
mod customers;
mod health;
mod history;
mod import;
mod ops;
mod orders;
mod products;
mod reports;
mod trial;
mod webhooks;

use std::sync::Arc;

use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::path::Paths;
use utoipa::openapi::security::SecurityRequirement;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use crate::App;
use crate::auth::Who::{Anyone, Customers, Operators, Services};
use crate::auth::{Role, Who, admit};

/// The name of the one way to sign in, in the `OpenAPI` document.
pub const SIGN_IN: &str = "bearer";
/// Where the document says for which roles an operation is.
pub const ROLES: &str = "x-roles";

/// Routes, each with for whom it is: there is no other way to add one.
#[derive(Default)]
pub struct Table(OpenApiRouter<Arc<App>>);

impl Table {
    /// Adds routes that are for these.
    fn route(self, who: Who, (schemas, mut paths, methods): UtoipaMethodRouter<Arc<App>>) -> Self {
        tell(who, &mut paths);
        let methods = methods
            .route_layer(from_fn(move |request: Request, next: Next| admit(who, request, next)));
        Self(self.0.routes((schemas, paths, methods)))
    }

    /// Adds the routes of another table.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self(self.0.merge(other.0))
    }

    /// The routes with their part of the `OpenAPI` document.
    pub fn into_router(self) -> OpenApiRouter<Arc<App>> {
        self.0
    }
}

/// Says in the document for whom the operations of these paths are.
fn tell(who: Who, paths: &mut Paths) {
    if who == Anyone {
        return;
    }
    let roles: Vec<&str> = who.roles().map(Role::as_str).collect();
    for item in paths.paths.values_mut() {
        for operation in [&mut item.get, &mut item.post, &mut item.put].into_iter().flatten() {
            operation.security =
                Some(vec![SecurityRequirement::new(SIGN_IN, Vec::<String>::new())]);
            operation.extensions = Some(Extensions::builder().add(ROLES, roles.clone()).build());
        }
    }
}

/// All that takes commands or reads views.
pub fn commands_and_views() -> Table {
    Table::default()
        .route(Customers, routes!(orders::place))
        .route(Customers, routes!(orders::show))
        .route(Customers, routes!(orders::stream))
        .route(Customers, routes!(history::history))
        .route(Customers, routes!(history::explain))
        .route(Customers, routes!(orders::cancel))
        .route(Operators, routes!(orders::ship))
        .route(Operators, routes!(orders::deliver))
        .route(Operators, routes!(orders::refund))
        .route(Services, routes!(customers::register))
        .route(Customers, routes!(customers::show))
        .route(Customers, routes!(customers::stream))
        .route(Operators, routes!(customers::set_credit_limit))
        .route(Customers, routes!(customers::orders))
        .route(Anyone, routes!(products::list))
        .route(Operators, routes!(import::import))
        .route(Anyone, routes!(products::show))
        .route(Operators, routes!(products::define))
        .route(Operators, routes!(products::restock))
        .route(Operators, routes!(products::retire))
        .route(Customers, routes!(commands::show))
}

/// What operators do.
pub fn operators() -> Table {
    Table::default()
        .route(Operators, routes!(orders::list))
        .route(Operators, routes!(ops::pipeline))
        .route(Operators, routes!(ops::pipeline_stream))
        .route(Operators, routes!(ops::list))
        .route(Operators, routes!(ops::show))
        .route(Operators, routes!(ops::replay))
        .route(Operators, routes!(ops::discard))
        .route(Operators, routes!(reports::sales::sales))
        .route(Operators, routes!(reports::sales::payments))
        .route(Operators, routes!(reports::status))
        .route(Operators, routes!(reports::top::top_products))
        .route(Operators, routes!(reports::top::top_brands))
        .route(Operators, routes!(reports::time_to_paid))
}

/// What gateways tell, who sign it in a way of their own.
pub fn webhooks() -> Table {
    Table::default().route(Anyone, routes!(webhooks::stripe))
}

/// What is only there to try things out, where nobody has to sign in: no part of the document.
pub fn trial() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().route("/v1/trial/customers", axum::routing::get(trial::customers))
}

/// What is asked by whoever runs the edge.
pub fn health() -> Table {
    Table::default().route(Anyone, routes!(health::live)).route(Anyone, routes!(health::ready))
}

/// What is measured. It names no customer, but tells how much is sold.
pub fn metrics() -> Table {
    Table::default().route(Services, routes!(health::metrics))
}
