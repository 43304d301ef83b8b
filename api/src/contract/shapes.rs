//! The forms of requests and answers that no type of the program has, because they are put
//! together or passed on as they are stored.

#![expect(dead_code, reason = "only their schemas are used")]

use chrono::{DateTime, Utc};
use millrace_shared::command::{
    DefineProduct, OrderStep, RestockProduct, SetCreditLimit, ShipOrder,
};
use millrace_shared::ids::{CommandId, CustomerId, OrderId, ProductId};
use millrace_shared::money::codes;
use millrace_shared::order::Order;
use millrace_shared::parking::told::{Listed, Outcome};
use millrace_shared::past::Told;
use millrace_shared::product::Product;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{IntoParams, IntoResponses, PartialSchema, ToSchema};

use crate::error::Body as Problem;
use crate::search::cursor::Sort;
use crate::search::find::Facets;

/// What a command may be sent with.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct CommandHeaders {
    /// The same key with the same body has one effect, however often it is sent, for ever.
    #[param(rename = "Idempotency-Key", nullable = false, pattern = "^[!-~]{1,255}$")]
    idempotency_key: Option<String>,
    /// `wait=SECONDS` (RFC 7240): answer with the outcome if it is there within that time, at most
    /// 30 s. What cannot be read is ignored.
    #[param(rename = "Prefer", nullable = false, example = "wait=5")]
    prefer: Option<String>,
}

/// What a conditional read may be sent with.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct ReadHeaders {
    /// Versions that the client has, as it got them in `ETag`.
    #[param(rename = "If-None-Match", nullable = false, example = "\"3\"")]
    if_none_match: Option<String>,
    /// `wait=SECONDS` (RFC 7240): like `waitMs`, which goes before it.
    #[param(rename = "Prefer", nullable = false, example = "wait=5")]
    prefer: Option<String>,
}

/// What may be said of the wait for something that has no versions.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct WaitHeaders {
    /// `wait=SECONDS` (RFC 7240), at most 30 s. What cannot be read is ignored.
    #[param(rename = "Prefer", nullable = false, example = "wait=5")]
    prefer: Option<String>,
}

/// What a stream may be asked for with.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct StreamHeaders {
    /// The `id` of the last event that the client has; goes before the query.
    #[param(rename = "Last-Event-ID", nullable = false)]
    last_event_id: Option<String>,
}

/// The answers that every command may get.
#[derive(IntoResponses)]
pub enum CommandAnswers {
    /// The command is stored, and will be decided.
    #[response(status = ACCEPTED)]
    Accepted(Accepted),
    /// It does not fit the state of what it is about.
    #[response(status = CONFLICT, content_type = "application/problem+json")]
    Conflict(Problem),
    /// It was refused for a reason of the domain.
    #[response(status = UNPROCESSABLE_ENTITY, content_type = "application/problem+json")]
    Refused(Problem),
}

/// The answer of a read that knows no versions, where there is no such thing.
#[derive(IntoResponses)]
pub enum Missing {
    /// There is no such thing.
    #[response(status = NOT_FOUND, content_type = "application/problem+json")]
    NotFound(Problem),
}

/// The answers that every read of one thing may get beside the thing.
#[derive(IntoResponses)]
pub enum ReadAnswers {
    /// The client has this version.
    #[response(status = NOT_MODIFIED)]
    NotModified,
    /// There is no such thing.
    #[response(status = NOT_FOUND, content_type = "application/problem+json")]
    NotFound(Problem),
}

/// A command that is stored. Of the ids that one is there which it is about.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct Accepted {
    command_id: CommandId,
    order_id: Option<OrderId>,
    customer_id: Option<CustomerId>,
    product_id: Option<ProductId>,
    /// `pending`, or how far it is already.
    status: String,
    /// Where the outcome, and what the command is about, can be read.
    #[schema(value_type = Object)]
    links: Map<String, Value>,
}

/// An order that is accepted and not decided yet.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PendingOrder {
    order_id: OrderId,
    customer_id: CustomerId,
    #[schema(pattern = "^pending$")]
    status: String,
    #[schema(maximum = 0)]
    version: u64,
    placed_at: DateTime<Utc>,
    command_id: CommandId,
}

/// An order as it is read.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum OrderView {
    /// Decided.
    Decided(Box<Order>),
    /// Not yet.
    Pending(PendingOrder),
}

/// A page of orders.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct OrderPage {
    items: Vec<OrderView>,
    /// Give this as `cursor` to get the next page; null at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

fn sorts() -> ObjectBuilder {
    let names = Sort::ALL.map(|(name, _)| name);
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(names))
}

/// One event of a stream.
#[derive(ToSchema)]
pub struct ServerSentEvent {
    /// Give the last one as `Last-Event-ID` to go on from there.
    id: String,
    /// A JSON object on one line: docs/live.md tells which.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// One event of the pipeline's stream. There is nothing to go on from: the newest is all that counts.
#[derive(ToSchema)]
pub struct SampleEvent {
    /// The pipeline as `now` has it in `GET /v1/ops/pipeline`, on one line.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// A page of an order's events.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct EventPage {
    order_id: OrderId,
    items: Vec<Told>,
    /// Give this as `cursor` to get the next page; null at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// Which products are asked for: all, or, with any parameter but `cursor` and `limit`, a search.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub struct SearchQuery {
    /// Words that must all occur, typing errors forgiven; the last one may be unfinished.
    #[param(max_length = 200)]
    q: Option<String>,
    /// Of this category; several may be named.
    #[param(max_items = 50)]
    category: Option<Vec<String>>,
    /// Of this brand; several may be named.
    #[param(max_items = 50)]
    brand: Option<Vec<String>>,
    /// The currency of prices, as an ISO 4217 code. A price cannot be asked for without it.
    #[param(schema_with = codes)]
    currency: Option<String>,
    /// Minor units.
    #[param(minimum = 0, maximum = 1_000_000_000_000_u64)]
    min_price: Option<u64>,
    /// Minor units; not less than `minPrice`.
    #[param(minimum = 0, maximum = 1_000_000_000_000_u64)]
    max_price: Option<u64>,
    /// Only what can be had now.
    in_stock: Option<bool>,
    /// Whether it is still sold.
    active: Option<bool>,
    /// The order of the items.
    #[param(schema_with = sorts)]
    sort: Option<String>,
    /// The `nextCursor` of the page before, all else being the same.
    #[param(pattern = "^([rpdn]\\.[0-9]{1,9}\\.-?[0-9]{1,18}\\.)?[A-Za-z0-9_-]{1,64}$")]
    cursor: Option<String>,
    /// Items of a page.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// A page of products; `total` and `facets` only of a search.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct ProductList {
    items: Vec<Product>,
    /// Give this as `cursor` to get the next page; null at the end.
    #[schema(required)]
    next_cursor: Option<String>,
    /// How many products fit.
    #[schema(nullable = false)]
    total: Option<u64>,
    /// How many of each kind fit.
    #[schema(nullable = false)]
    facets: Option<Facets>,
    /// Since when the log cannot be followed: what is younger is not in the answer.
    #[schema(nullable = false)]
    stale_since: Option<DateTime<Utc>>,
}

/// A page of parked messages.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
pub struct ParkedPage {
    items: Vec<Listed>,
    /// Give this as `cursor` to get the next page; null at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// What became of messages that were to be discarded.
#[derive(ToSchema)]
pub struct Discarded {
    results: Vec<Outcome>,
}

/// The bodies of commands whose path names what they are about: without that id.
macro_rules! body {
    ($name:ident of $command:ident without $id:literal) => {
        #[doc = concat!("The body of `", stringify!($command), "`, without the id.")]
        pub struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                without($command::schema(), $id)
            }
        }

        impl ToSchema for $name {
            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                $command::schemas(schemas);
            }
        }
    };
}

body!(StepBody of OrderStep without "orderId");
body!(ShipBody of ShipOrder without "orderId");
body!(CreditLimitBody of SetCreditLimit without "customerId");
body!(ProductBody of DefineProduct without "productId");
body!(RestockBody of RestockProduct without "productId");

/// Nothing is to be told: an empty object, or no body at all.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EmptyBody {}

fn without(schema: RefOr<Schema>, field: &str) -> RefOr<Schema> {
    let RefOr::T(Schema::Object(mut object)) = schema else { return schema };
    object.properties.remove(field);
    object.required.retain(|name| name != field);
    RefOr::T(Schema::Object(object))
}
