//! Customers: registration, credit limits, reading one and its orders.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use millrace_shared::command::FieldError;
use millrace_shared::ids::CustomerId;
use millrace_shared::message::Subject;
use millrace_shared::order::OrderStatus;
use millrace_shared::views::Views;
use serde::Deserialize;

use crate::App;
use crate::error::Problem;
use crate::reading::{Freshness, document, limit, page, with_credit};
use crate::request::{Posted, parameters, path_id};
use crate::submit::submit;

/// `POST /v1/customers`
pub async fn register(State(app): State<Arc<App>>, posted: Posted) -> Result<Response, Problem> {
    submit(&app, "customer.register", posted).await
}

/// `PUT /v1/customers/{id}/credit-limit`
pub async fn set_credit_limit(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    posted: Posted,
) -> Result<Response, Problem> {
    submit(&app, "customer.set-credit-limit", posted.with("customerId", &id)?).await
}

/// `GET /v1/customers/{id}`
pub async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    query: Result<Query<Freshness>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: CustomerId = path_id("customerId", &id)?;
    let fresh = parameters(query)?;
    let customer = app.read(Subject::Customer, id.as_str(), &fresh).await?;
    Ok(document(&headers, with_credit(&customer)?))
}

/// Which of a customer's orders are asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrdersQuery {
    status: Option<OrderStatus>,
    cursor: Option<String>,
    limit: Option<usize>,
}

/// `GET /v1/customers/{id}/orders`: newest first.
pub async fn orders(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    query: Result<Query<OrdersQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let id: CustomerId = path_id("customerId", &id)?;
    let query = parameters(query)?;
    let limit = limit(query.limit)?;
    if query.cursor.as_deref().is_some_and(|cursor| !Views::is_orders_cursor(cursor)) {
        let detail = "is not a nextCursor of this list";
        return Err(Problem::field(FieldError::new("cursor", "invalid", detail)));
    }
    app.check_views()?;
    let cursor = query.cursor.as_deref();
    page(app.views.customer_orders(&id, query.status, cursor, limit).await?)
}
