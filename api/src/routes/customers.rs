//! Customers: registration, credit limits, reading one and its orders.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use millrace_shared::ids::CustomerId;
use millrace_shared::message::Subject;

use crate::App;
use crate::error::Problem;
use crate::lists::{OrdersQuery, orders_page};
use crate::live::customers::{CustomerFeed, Place};
use crate::live::{FIRST_WAIT, Feed as _, Resume, too_many};
use crate::reading::{Found, Freshness, found, limit, with_credit};
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
    let fresh = parameters(query)?.or_preferred(&headers);
    let customer = app.read(Subject::Customer, id.as_str(), &fresh).await?;
    Ok(found(&headers, Found { document: with_credit(&customer.document)?, ..customer }))
}

/// `GET /v1/customers/{id}/stream`: the customer and its orders as they change, as Server-Sent
/// Events.
pub async fn stream(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    query: Result<Query<Resume>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: CustomerId = path_id("customerId", &id)?;
    let resume = parameters(query)?;
    let place = resume.last(&headers).and_then(Place::parse);
    let slot = app.live.slot()?;
    let news = app.live.customers.watch(id.as_str()).ok_or_else(too_many)?;
    // Watched first and read then: nothing is missed in between.
    app.read(Subject::Customer, id.as_str(), &Freshness::exists(FIRST_WAIT)).await?;
    let mut feed = CustomerFeed::after(app.views.clone(), id, place);
    let first = feed.step(None).await?;
    Ok(app.live.answer(slot, news, feed, first))
}

/// `GET /v1/customers/{id}/orders`: newest first.
pub async fn orders(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    query: Result<Query<OrdersQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let id: CustomerId = path_id("customerId", &id)?;
    let query = parameters(query)?;
    let (filter, after, limit) = (query.filter()?, query.after()?, limit(query.limit)?);
    app.check_views()?;
    orders_page(app.views.customer_orders(&id, &filter, after.as_ref(), limit).await?)
}
