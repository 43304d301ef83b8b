//! Products: the catalogue and its stock.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, RawQuery, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use millrace_shared::ids::ProductId;
use millrace_shared::message::Subject;
use millrace_shared::product::Product;

use crate::App;
use crate::auth::Caller;
use crate::contract::{
    CommandAnswers, CommandHeaders, EmptyBody, ProductBody, ProductList, ReadAnswers, ReadHeaders,
    RestockBody, SearchQuery,
};
use crate::error::{Body, Problem};
use crate::reading::{Freshness, found, page};
use crate::request::{Posted, parameters, path_id};
use crate::search::asked::Asked;
use crate::submit::submit;

/// Puts a product into the catalogue, or replaces its catalogue data.
#[utoipa::path(
    put, path = "/v1/products/{id}", tag = "products",
    params(("id" = ProductId, Path), CommandHeaders),
    request_body(content = ProductBody, example = json!({
        "name": "Pen", "brand": "Acme", "category": "Office",
        "price": { "amount": 199, "currency": "USD" }, "initialStock": 10
    })),
    responses(
        CommandAnswers,
        (status = OK, description = "With `Prefer: wait`: as it is now", body = Product),
        (status = NOT_FOUND, description = "There is no such thing", body = Body, content_type = "application/problem+json")
    )
)]
pub async fn define(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    posted: Posted,
) -> Result<Response, Problem> {
    submit(&app, &caller, "product.define", posted.with("productId", &id)?).await
}

/// Adds stock.
#[utoipa::path(
    post, path = "/v1/products/{id}/restock", tag = "products",
    params(("id" = ProductId, Path), CommandHeaders),
    request_body(content = RestockBody, example = json!({ "quantity": 10 })),
    responses(
        CommandAnswers,
        (status = OK, description = "With `Prefer: wait`: as it is now", body = Product),
        (status = NOT_FOUND, description = "There is no such thing", body = Body, content_type = "application/problem+json")
    )
)]
pub async fn restock(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    posted: Posted,
) -> Result<Response, Problem> {
    submit(&app, &caller, "product.restock", posted.with("productId", &id)?).await
}

/// Takes a product out of sale.
#[utoipa::path(
    post, path = "/v1/products/{id}/retire", tag = "products",
    params(("id" = ProductId, Path), CommandHeaders),
    request_body = EmptyBody,
    responses(
        CommandAnswers,
        (status = OK, description = "With `Prefer: wait`: as it is now", body = Product),
        (status = NOT_FOUND, description = "There is no such thing", body = Body, content_type = "application/problem+json")
    )
)]
pub async fn retire(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    posted: Posted,
) -> Result<Response, Problem> {
    submit(&app, &caller, "product.retire", posted.with("productId", &id)?).await
}

/// A product, with its stock.
#[utoipa::path(
    get, path = "/v1/products/{id}", tag = "products",
    params(("id" = ProductId, Path), Freshness, ReadHeaders),
    responses(
        (status = OK, description = "The product", body = Product),
        (status = ACCEPTED, description = "Still older than `minVersion`", body = Product),
        ReadAnswers
    )
)]
pub async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    query: Result<Query<Freshness>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: ProductId = path_id("productId", &id)?;
    let fresh = parameters(query)?.or_preferred(&headers);
    Ok(found(&headers, app.read(&Caller::ANYBODY, Subject::Product, id.as_str(), &fresh).await?))
}

/// All products, in the order of their ids; or those that fit, with the counts of each kind.
///
/// The list is read from the views, the search from the catalogue in memory.
#[utoipa::path(
    get, path = "/v1/products", tag = "products", params(SearchQuery),
    responses((status = OK, description = "A page", body = ProductList))
)]
pub async fn list(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    match Asked::parse(query.as_deref().unwrap_or(""))? {
        Asked::List { after, limit } => {
            app.check_views()?;
            Ok(page(app.views.products(after.as_ref().map(ProductId::as_str), limit).await?))
        }
        Asked::Search { words, criteria } => {
            Ok(Json(app.search.search(words, criteria).await?).into_response())
        }
    }
}
