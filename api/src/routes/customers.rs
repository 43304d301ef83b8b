//! Customers: registration, credit limits, reading one and its orders.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use millrace_shared::command::RegisterCustomer;
use millrace_shared::ids::CustomerId;
use millrace_shared::message::Subject;

use crate::App;
use crate::auth::Caller;
use crate::contract::{
    CommandAnswers, CommandHeaders, CreditLimitBody, Missing, OrderPage, ReadAnswers, ReadHeaders,
    ServerSentEvent, StreamHeaders,
};
use crate::error::{Body, Problem};
use crate::lists::{OrdersQuery, orders_page};
use crate::live::customers::{CustomerFeed, Place};
use crate::live::{FIRST_WAIT, Feed as _, Resume, too_many};
use crate::reading::{CustomerView, Found, Freshness, found, limit, with_credit};
use crate::request::{Posted, parameters, path_id};
use crate::submit::submit;

/// Registers a customer.
#[utoipa::path(
    post, path = "/v1/customers", tag = "customers",
    params(CommandHeaders),
    request_body(content = RegisterCustomer, example = json!({
        "customerId": "ann", "name": "Ann", "creditLimit": { "amount": 50_000, "currency": "USD" }
    })),
    responses(
        CommandAnswers,
        (status = OK, description = "With `Prefer: wait`: as it is now", body = CustomerView)
    )
)]
pub async fn register(
    State(app): State<Arc<App>>,
    caller: Caller,
    posted: Posted,
) -> Result<Response, Problem> {
    submit(&app, &caller, "customer.register", posted).await
}

/// Sets the credit limit.
#[utoipa::path(
    put, path = "/v1/customers/{id}/credit-limit", tag = "customers",
    params(("id" = CustomerId, Path), CommandHeaders),
    request_body(content = CreditLimitBody, example = json!({
        "creditLimit": { "amount": 50_000, "currency": "USD" }
    })),
    responses(
        CommandAnswers,
        (status = OK, description = "With `Prefer: wait`: as it is now", body = CustomerView),
        (status = NOT_FOUND, description = "There is no such thing", body = Body, content_type = "application/problem+json")
    )
)]
pub async fn set_credit_limit(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    posted: Posted,
) -> Result<Response, Problem> {
    submit(&app, &caller, "customer.set-credit-limit", posted.with("customerId", &id)?).await
}

/// A customer, with the credit that is left.
#[utoipa::path(
    get, path = "/v1/customers/{id}", tag = "customers",
    params(("id" = CustomerId, Path), Freshness, ReadHeaders),
    responses(
        (status = OK, description = "The customer", body = CustomerView),
        (status = ACCEPTED, description = "Still older than `minVersion`", body = CustomerView),
        ReadAnswers
    )
)]
pub async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    query: Result<Query<Freshness>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: CustomerId = path_id("customerId", &id)?;
    let fresh = parameters(query)?.or_preferred(&headers);
    let customer = app.read(&caller, Subject::Customer, id.as_str(), &fresh).await?;
    Ok(found(&headers, Found { document: with_credit(&customer.document)?, ..customer }))
}

/// The customer and its orders as they change, as Server-Sent Events.
#[utoipa::path(
    get, path = "/v1/customers/{id}/stream", tag = "customers",
    params(("id" = CustomerId, Path), Resume, StreamHeaders),
    responses(
        (status = OK, description = "Events, until the client goes", body = ServerSentEvent, content_type = "text/event-stream"),
        Missing
    )
)]
pub async fn stream(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    query: Result<Query<Resume>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: CustomerId = path_id("customerId", &id)?;
    let resume = parameters(query)?;
    let place = resume.last(&headers).and_then(Place::parse);
    let slot = app.live.slot(&app.gate, &caller)?;
    let news = app.live.customers.watch(id.as_str()).ok_or_else(too_many)?;
    // Watched first and read then: nothing is missed in between.
    app.read(&caller, Subject::Customer, id.as_str(), &Freshness::exists(FIRST_WAIT)).await?;
    let mut feed = CustomerFeed::after(app.views.clone(), id, place);
    let first = feed.step(None).await?;
    Ok(app.live.answer(slot, news, feed, first))
}

/// A customer's orders, newest first.
#[utoipa::path(
    get, path = "/v1/customers/{id}/orders", tag = "customers",
    params(("id" = CustomerId, Path), OrdersQuery),
    responses((status = OK, description = "A page", body = OrderPage), Missing)
)]
pub async fn orders(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    query: Result<Query<OrdersQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let id: CustomerId = path_id("customerId", &id)?;
    let query = parameters(query)?;
    let (filter, after, limit) = (query.filter()?, query.after()?, limit(query.limit)?);
    if !caller.sees(id.as_str()) {
        return Err(Problem::not_found(format!("there is no customer {id}")));
    }
    app.check_views()?;
    Ok(orders_page(app.views.customer_orders(&id, &filter, after.as_ref(), limit).await?))
}
