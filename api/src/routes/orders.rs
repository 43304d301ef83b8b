//! Orders: placing, their further steps, reading one.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use millrace_shared::command::PlaceOrder;
use millrace_shared::ids::OrderId;
use millrace_shared::message::Subject;
use millrace_shared::order::Order;

use crate::App;
use crate::auth::Caller;
use crate::contract::{
    CommandAnswers, CommandHeaders, EmptyBody, Missing, OrderPage, OrderView, ReadAnswers,
    ReadHeaders, ServerSentEvent, ShipBody, StepBody, StreamHeaders,
};
use crate::error::{Body, Problem};
use crate::lists::{OrdersQuery, orders_page};
use crate::live::orders::{OrderFeed, OrderNews};
use crate::live::{FIRST_WAIT, Resume, too_many};
use crate::reading::{Freshness, document, found, limit};
use crate::request::{Posted, parameters, path_id};
use crate::routes::history::PastQuery;
use crate::submit::submit;

/// Places an order.
#[utoipa::path(
    post, path = "/v1/orders", tag = "orders",
    params(CommandHeaders),
    request_body(content = PlaceOrder, example = json!({
        "customerId": "kaia-ironmere",
        "lines": [{ "productId": "timberline-carbon-trekking-poles", "quantity": 2 }],
        "payment": { "method": "card", "token": "tok_ok" }
    })),
    responses(
        CommandAnswers,
        (status = CREATED, description = "With `Prefer: wait`: the order, paid", body = Order)
    )
)]
pub async fn place(
    State(app): State<Arc<App>>,
    caller: Caller,
    posted: Posted,
) -> Result<Response, Problem> {
    submit(&app, &caller, "order.place", posted).await
}

/// The orders of all customers, newest first.
#[utoipa::path(
    get, path = "/v1/orders", tag = "operators", params(OrdersQuery),
    responses((status = OK, description = "A page", body = OrderPage))
)]
pub async fn list(
    State(app): State<Arc<App>>,
    query: Result<Query<OrdersQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let query = parameters(query)?;
    let (filter, after, limit) = (query.filter()?, query.after()?, limit(query.limit)?);
    app.check_views()?;
    Ok(orders_page(app.views.all_orders(&filter, after.as_ref(), limit).await?))
}

/// Calls an order off; what was paid is refunded.
#[utoipa::path(
    post, path = "/v1/orders/{id}/cancel", tag = "orders",
    params(("id" = OrderId, Path), CommandHeaders),
    request_body(content = StepBody, example = json!({ "reason": "ordered by mistake" })),
    responses(
        CommandAnswers,
        (status = OK, description = "With `Prefer: wait`: as it is now", body = Order),
        (status = NOT_FOUND, description = "There is no such thing", body = Body, content_type = "application/problem+json")
    )
)]
pub async fn cancel(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    posted: Posted,
) -> Result<Response, Problem> {
    step(&app, &caller, "order.cancel", &id, posted).await
}

/// Tells that a paid order has left.
#[utoipa::path(
    post, path = "/v1/orders/{id}/ship", tag = "orders",
    params(("id" = OrderId, Path), CommandHeaders),
    request_body(content = ShipBody, example = json!({ "carrier": "Ravens", "trackingNumber": "R-1" })),
    responses(
        CommandAnswers,
        (status = OK, description = "With `Prefer: wait`: as it is now", body = Order),
        (status = NOT_FOUND, description = "There is no such thing", body = Body, content_type = "application/problem+json")
    )
)]
pub async fn ship(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    posted: Posted,
) -> Result<Response, Problem> {
    step(&app, &caller, "order.ship", &id, posted).await
}

/// Tells that a shipped order has arrived.
#[utoipa::path(
    post, path = "/v1/orders/{id}/deliver", tag = "orders",
    params(("id" = OrderId, Path), CommandHeaders),
    request_body = EmptyBody,
    responses(
        CommandAnswers,
        (status = OK, description = "With `Prefer: wait`: as it is now", body = Order),
        (status = NOT_FOUND, description = "There is no such thing", body = Body, content_type = "application/problem+json")
    )
)]
pub async fn deliver(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    posted: Posted,
) -> Result<Response, Problem> {
    step(&app, &caller, "order.deliver", &id, posted).await
}

/// Gives the money back.
#[utoipa::path(
    post, path = "/v1/orders/{id}/refund", tag = "orders",
    params(("id" = OrderId, Path), CommandHeaders),
    request_body(content = StepBody, example = json!({ "reason": "broken" })),
    responses(
        CommandAnswers,
        (status = OK, description = "With `Prefer: wait`: as it is now", body = Order),
        (status = NOT_FOUND, description = "There is no such thing", body = Body, content_type = "application/problem+json")
    )
)]
pub async fn refund(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    posted: Posted,
) -> Result<Response, Problem> {
    step(&app, &caller, "order.refund", &id, posted).await
}

async fn step(
    app: &App,
    caller: &Caller,
    kind: &str,
    id: &str,
    posted: Posted,
) -> Result<Response, Problem> {
    submit(app, caller, kind, posted.with("orderId", id)?).await
}

/// An order as it stands, or with `asOf` or `version` as it was.
#[utoipa::path(
    get, path = "/v1/orders/{id}", tag = "orders",
    params(("id" = OrderId, Path), Freshness, PastQuery, ReadHeaders),
    responses(
        (status = OK, description = "The order", body = OrderView),
        (status = ACCEPTED, description = "Still older than `minVersion`", body = OrderView),
        ReadAnswers
    )
)]
pub async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    query: Result<Query<Freshness>, QueryRejection>,
    past: Result<Query<PastQuery>, QueryRejection>,
    RawQuery(asked): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: OrderId = path_id("orderId", &id)?;
    if asks_for_past(asked.as_deref().unwrap_or("")) {
        return Ok(document(&headers, app.past_state(&caller, id, &parameters(past)?).await?));
    }
    let fresh = parameters(query)?.or_preferred(&headers);
    Ok(found(&headers, app.read(&caller, Subject::Order, &id.to_string(), &fresh).await?))
}

/// An order as it changes, as Server-Sent Events; 204 when nothing more will come.
#[utoipa::path(
    get, path = "/v1/orders/{id}/stream", tag = "orders",
    params(("id" = OrderId, Path), Resume, StreamHeaders),
    responses(
        (status = OK, description = "Events, until the order's end", body = ServerSentEvent, content_type = "text/event-stream"),
        (status = NO_CONTENT, description = "The client has all there will be"),
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
    let id = path_id::<OrderId>("orderId", &id)?.to_string();
    let resume = parameters(query)?;
    // What is no version is no place to go on from: it begins anew.
    let after = resume.last(&headers).and_then(|id| id.parse().ok());
    let slot = app.live.slot(&app.gate, &caller)?;
    let news = app.live.orders.watch(&id).ok_or_else(too_many)?;
    // Watched first and read then: nothing is missed in between.
    let found = app.read(&caller, Subject::Order, &id, &Freshness::exists(FIRST_WAIT)).await?;
    let now = OrderNews::of(&found.document)?;
    if now.is_over_for(after) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let mut feed = OrderFeed::after(after);
    let first = feed.take(&now);
    Ok(app.live.answer(slot, news, feed, first))
}

fn asks_for_past(query: &str) -> bool {
    query.split('&').any(|it| ["asOf", "version"].contains(&it.split('=').next().unwrap_or("")))
}
