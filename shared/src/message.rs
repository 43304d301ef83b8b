//! Events as they stand in the log: an envelope around what happened (`data`) and the state after
//! it (`state`). Only [`SCHEMA`] is written; every older version is read.

use std::fmt;

use bytes::Bytes;
use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::customer::{Customer, CustomerEvent};
use crate::ids::{CommandId, CustomerId, EventId, OrderId, ProductId};
use crate::order::{Order, OrderEvent, Stamp};
use crate::product::{Product, ProductEvent};
use crate::reason::{Reason, Refusal};

/// The schema version of every event that is written.
pub const SCHEMA: u32 = 1;

/// The W3C trace context header (<https://www.w3.org/TR/trace-context/>), of HTTP and NATS alike.
pub const TRACEPARENT: &str = "traceparent";

/// What an event is about.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// An order.
    Order,
    /// A customer.
    Customer,
    /// A product.
    Product,
    /// A command that touched none of these: it was refused, or repeated another.
    Command,
}

impl Subject {
    /// The token in NATS subjects.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Customer => "customer",
            Self::Product => "product",
            Self::Command => "command",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An event. `data` and `state` stay as the JSON text that was stored until they are asked for.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Derived from subject, version and cause.
    pub id: EventId,
    /// What it is about.
    pub subject: Subject,
    /// The order, customer, product or command.
    pub subject_id: String,
    /// Its place in the subject's history, from 1, without a gap.
    #[schema(minimum = 1)]
    pub version: u64,
    /// What happened: `paid`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The schema version of this JSON.
    pub schema: u32,
    /// When it was decided.
    pub occurred_at: DateTime<Utc>,
    /// The command or event that caused it.
    pub causation: Uuid,
    /// The command at the beginning of the chain of causes.
    pub correlation: Uuid,
    /// The W3C trace context of what caused it, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What happened, in detail.
    #[schema(value_type = Object)]
    pub data: Box<RawValue>,
    /// The subject as it now is.
    #[schema(value_type = Object)]
    pub state: Box<RawValue>,
}

/// Why bytes are no event that this version can read.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// Not JSON, or not of the envelope's form.
    #[error("the event cannot be read")]
    Malformed(#[from] Unreadable),
    /// Written by a newer version.
    #[error("the event has schema version {0}; this program reads up to {SCHEMA}: update it")]
    Newer(u32),
}

impl From<serde_json::Error> for EventError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(error.into())
    }
}

/// What is wrong with JSON, and where, without the texts in it: they may be names or tokens, and this
/// is logged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

impl From<serde_json::Error> for Unreadable {
    fn from(error: serde_json::Error) -> Self {
        let said = error.to_string();
        let Some((before, rest)) = said.split_once("string \"") else { return Self(said) };
        // Where the text ends, an expectation and the place follow.
        let after = rest.rfind("\", expected ").map_or("", |end| &rest[end + 1..]);
        Self(format!("{before}a string{after}"))
    }
}

/// Why an event came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The command or event itself.
    pub causation: Uuid,
    /// The command at the beginning.
    pub correlation: Uuid,
    /// Its trace context.
    pub traceparent: Option<String>,
}

/// What became of a command that touched no order, customer or product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", from = "OutcomeFields")]
pub struct CommandOutcome {
    /// Why it was refused; absent if it was accepted as a repetition of another command.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// The subject it was about, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<About>,
    /// The customer in whose name it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<CustomerId>,
}

/// An outcome as it is read. With a flattened option instead, a reason that this program does not
/// know would pass for no reason: for an acceptance.
#[derive(Deserialize, ToSchema)]
#[schema(as = CommandOutcome)]
pub(crate) struct OutcomeFields {
    /// Why it was refused; absent if it was accepted as a repetition of another command.
    reason: Option<Reason>,
    #[serde(default)]
    detail: String,
    /// The subject it was about, as far as it is known.
    about: Option<About>,
    /// The customer in whose name it was given.
    #[serde(rename = "onBehalfOf")]
    on_behalf_of: Option<CustomerId>,
}

impl From<OutcomeFields> for CommandOutcome {
    fn from(fields: OutcomeFields) -> Self {
        let refusal = fields.reason.map(|reason| Refusal::new(reason, fields.detail));
        Self { refusal, about: fields.about, on_behalf_of: fields.on_behalf_of }
    }
}

/// What a command was about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// An order, a customer or a product.
    pub subject: Subject,
    /// Which.
    pub id: String,
}

/// Now, in microseconds: what PostgreSQL keeps too.
pub fn now() -> DateTime<Utc> {
    Utc::now().trunc_subsecs(6)
}

impl Event {
    /// Reads an event of any schema version up to [`SCHEMA`].
    pub fn decode(bytes: &[u8]) -> Result<Self, EventError> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let read: Result<Self, _> = serde_json::from_slice(bytes);
        // A newer envelope may look different: its version is still to be told.
        let schema = match &read {
            Ok(event) => event.schema,
            Err(_) => serde_json::from_slice(bytes).map_or(0, |Version { schema }| schema),
        };
        if schema > SCHEMA { Err(EventError::Newer(schema)) } else { Ok(read?) }
    }

    /// The event as bytes for the log.
    pub fn encode(&self) -> Result<Bytes, EventError> {
        Ok(serde_json::to_vec(self)?.into())
    }

    fn new<D: Serialize, S: Serialize>(
        (subject, subject_id): (Subject, String),
        kind: &str,
        stamp: (u64, DateTime<Utc>),
        cause: &Cause,
        data: &D,
        state: &S,
    ) -> Result<Self, EventError> {
        Ok(Self {
            id: EventId::derive(&format!("{subject}/{subject_id}"), stamp.0, cause.causation),
            subject,
            subject_id,
            version: stamp.0,
            kind: kind.to_owned(),
            schema: SCHEMA,
            occurred_at: stamp.1,
            causation: cause.causation,
            correlation: cause.correlation,
            traceparent: cause.traceparent.clone(),
            data: data_of(data)?,
            state: serde_json::value::to_raw_value(state)?,
        })
    }

    /// The event of an order; `after` is the order after it.
    pub fn order(event: &OrderEvent, after: &Order, cause: &Cause) -> Result<Self, EventError> {
        let subject = (Subject::Order, after.order_id.to_string());
        let stamp = (after.version, after.updated_at);
        Self::new(subject, event.kind(), stamp, cause, event, after)
    }

    /// The event of a customer; `after` is the customer after it.
    pub fn customer(
        event: &CustomerEvent,
        after: &Customer,
        at: DateTime<Utc>,
        cause: &Cause,
    ) -> Result<Self, EventError> {
        let subject = (Subject::Customer, after.customer_id.to_string());
        Self::new(subject, event.kind(), (after.version, at), cause, event, after)
    }

    /// The event of a product; `after` is the product after it.
    pub fn product(
        event: &ProductEvent,
        after: &Product,
        at: DateTime<Utc>,
        cause: &Cause,
    ) -> Result<Self, EventError> {
        let subject = (Subject::Product, after.product_id.to_string());
        Self::new(subject, event.kind(), (after.version, at), cause, event, after)
    }

    /// The one event of a command that touched nothing.
    pub fn command(
        command: CommandId,
        outcome: &CommandOutcome,
        at: DateTime<Utc>,
        cause: &Cause,
    ) -> Result<Self, EventError> {
        // The same type and content wrapper as the other events', so that `data_of` serves all.
        #[derive(Serialize)]
        struct Wrapped<'a> {
            data: &'a CommandOutcome,
        }
        let subject = (Subject::Command, command.to_string());
        let kind = if outcome.refusal.is_some() { "rejected" } else { "accepted" };
        Self::new(subject, kind, (1, at), cause, &Wrapped { data: outcome }, outcome)
    }

    /// What happened to an order.
    pub fn order_event(&self) -> Result<OrderEvent, EventError> {
        self.typed()
    }

    /// What happened to a customer.
    pub fn customer_event(&self) -> Result<CustomerEvent, EventError> {
        self.typed()
    }

    /// What happened to a product.
    pub fn product_event(&self) -> Result<ProductEvent, EventError> {
        self.typed()
    }

    fn typed<T: for<'de> Deserialize<'de>>(&self) -> Result<T, EventError> {
        let kind = serde_json::to_string(&self.kind)?;
        let text = format!("{{\"type\":{kind},\"data\":{}}}", self.data.get());
        Ok(serde_json::from_str(&text)?)
    }

    /// The state that the event carries, read as an [`Order`], [`Customer`], [`Product`] or
    /// [`CommandOutcome`].
    pub fn state<T: for<'de> Deserialize<'de>>(&self) -> Result<T, EventError> {
        Ok(serde_json::from_str(self.state.get())?)
    }

    /// The order after `before` and this event, told by `data` alone: what `state` must equal.
    pub fn fold_order(&self, before: Option<&Order>, id: OrderId) -> anyhow::Result<Order> {
        let stamp =
            Stamp { version: self.version, at: self.occurred_at, causation: self.causation };
        Ok(Order::apply(before, id, stamp, &self.order_event()?)?)
    }

    /// Whether this event was decided on the very state `before` of its order (or on no order): what
    /// was decided on another state of the same version must not come after this one.
    pub fn follows(&self, before: Option<&Order>) -> bool {
        let Some(before) = before else { return self.version == 1 };
        self.fold_order(Some(before), before.order_id)
            .is_ok_and(|after| self.state().is_ok_and(|state: Order| state == after))
    }

    /// As [`Event::fold_order`], for a customer.
    pub fn fold_customer(&self, before: Option<&Customer>) -> anyhow::Result<Customer> {
        let id: CustomerId = self.subject_id.parse()?;
        Customer::apply(before, &id, &self.customer_event()?)
            .ok_or_else(|| anyhow::anyhow!("the event {} does not fit its history", self.id))
    }

    /// As [`Event::fold_order`], for a product.
    pub fn fold_product(&self, before: Option<&Product>) -> anyhow::Result<Product> {
        let id: ProductId = self.subject_id.parse()?;
        Product::apply(before, &id, &self.product_event()?)
            .ok_or_else(|| anyhow::anyhow!("the event {} does not fit its history", self.id))
    }

    /// The cause that an event which follows from this one has.
    pub fn as_cause(&self) -> Cause {
        Cause {
            causation: self.id.0,
            correlation: self.correlation,
            traceparent: self.traceparent.clone(),
        }
    }
}

/// The `data` of an event that serialises as `{"type": …, "data": …}`.
fn data_of<D: Serialize>(event: &D) -> Result<Box<RawValue>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Tagged {
        data: Box<RawValue>,
    }
    let text = serde_json::to_string(event)?;
    Ok(serde_json::from_str::<Tagged>(&text)?.data)
}

/// Whether a text is a W3C trace context that may be passed on.
pub fn is_traceparent(text: &str) -> bool {
    let bytes = text.as_bytes();
    let hex = |it: &[u8]| it.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let given = |it: &[u8]| it.iter().any(|b| *b != b'0');
    // version "-" trace "-" span "-" flags
    bytes.len() == 55
        && [2, 35, 52].iter().all(|dash| bytes[*dash] == b'-')
        && [0..2, 3..35, 36..52, 53..55].into_iter().all(|part| hex(&bytes[part]))
        && !text.starts_with("ff")
        && given(&bytes[3..35])
        && given(&bytes[36..52])
}
