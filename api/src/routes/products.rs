//! Products: the catalogue and its stock.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, RawQuery, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use millrace_shared::ids::ProductId;
use millrace_shared::message::Subject;

use crate::App;
use crate::error::Problem;
use crate::reading::{Freshness, found, page};
use crate::request::{Posted, parameters, path_id};
use crate::search::asked::Asked;
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
    let fresh = parameters(query)?.or_preferred(&headers);
    Ok(found(&headers, app.read(Subject::Product, id.as_str(), &fresh).await?))
}

/// `GET /v1/products`: all, in the order of their ids; or those that fit, with the counts of each
/// kind. The list is read from the views, the search from the catalogue in memory.
pub async fn list(
    State(app): State<Arc<App>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    match Asked::parse(query.as_deref().unwrap_or(""))? {
        Asked::List { after, limit } => {
            app.check_views()?;
            page(app.views.products(after.as_ref().map(ProductId::as_str), limit).await?)
        }
        Asked::Search { words, criteria } => {
            Ok(Json(app.search.search(words, criteria).await?).into_response())
        }
    }
}
