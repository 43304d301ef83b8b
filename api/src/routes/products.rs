//! Products: the catalogue and its stock.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use millrace_shared::ids::ProductId;
use millrace_shared::message::Subject;
use serde::Deserialize;

use crate::App;
use crate::error::Problem;
use crate::reading::{Freshness, document, limit, page};
use crate::request::{Posted, parameters, path_id};
use crate::submit::submit;

/// `PUT /v1/products/{id}`
pub async fn define(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    posted: Posted,
) -> Result<Response, Problem> {
    submit(&app, "product.define", posted.with("productId", &id)?).await
}

/// `POST /v1/products/{id}/restock`
pub async fn restock(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    posted: Posted,
) -> Result<Response, Problem> {
    submit(&app, "product.restock", posted.with("productId", &id)?).await
}

/// `POST /v1/products/{id}/retire`
pub async fn retire(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    posted: Posted,
) -> Result<Response, Problem> {
    submit(&app, "product.retire", posted.with("productId", &id)?).await
}

/// `GET /v1/products/{id}`
pub async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    query: Result<Query<Freshness>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: ProductId = path_id("productId", &id)?;
    let fresh = parameters(query)?;
    Ok(document(&headers, app.read(Subject::Product, id.as_str(), &fresh).await?))
}

/// Which products are asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProductsQuery {
    cursor: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/products`: in the order of their ids.
pub async fn list(
    State(app): State<Arc<App>>,
    query: Result<Query<ProductsQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let query = parameters(query)?;
    let limit = limit(query.limit)?;
    // The cursor is the last product's id.
    let cursor: Option<ProductId> =
        query.cursor.as_deref().map(|cursor| path_id("cursor", cursor)).transpose()?;
    app.check_views()?;
    page(app.views.products(cursor.as_ref().map(ProductId::as_str), limit).await?)
}
