//! One order's whole story, as a timeline that a person can read: what was asked for and by which
//! command, what was decided and why, what the gateway has booked, what was parked, how long each
//! step took, and what the order holds now. Only read, never written.

mod find;
mod tell;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::ids::OrderId;
use crate::message::Event;
use crate::money::Money;
use crate::order::{Order, OrderStatus};

pub use find::{Audience, Finder};

/// An order's story.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Story {
    /// The order.
    pub order_id: OrderId,
    /// Where it stands.
    pub status: OrderStatus,
    /// The version of its last event.
    pub version: u64,
    /// Whose it is.
    pub customer_id: String,
    /// What it costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Money>,
    /// `card` or `account`.
    pub payment_method: &'static str,
    /// What happened, in the order of time.
    pub timeline: Vec<Moment>,
    /// How long the order was in each status.
    pub steps: Vec<Stay>,
    /// What it holds now; absent where the ledger could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holds: Option<Holds>,
    /// What could not be told, and why.
    pub missing: Vec<String>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// When.
    pub at: DateTime<Utc>,
    /// What kind of thing.
    pub kind: Kind,
    /// Its name: `place`, `paid`, `charge`.
    pub what: String,
    /// The rest, in a sentence.
    pub detail: String,
    /// Of an event: its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The command or event itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    /// What caused it: `command ID` or `event VERSION`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// The kinds of things that happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = MomentKind)]
pub enum Kind {
    /// A client asked for something.
    Command,
    /// It became part of the order's history.
    Event,
    /// The payment gateway's book has it.
    Gateway,
    /// A worker could not process a message, or an operator dealt with one.
    Parked,
}

/// How long an order was in a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stay {
    /// The status; `pending` until the first decision.
    pub status: &'static str,
    /// Since when.
    pub since: DateTime<Utc>,
    /// For how long, in milliseconds; absent for the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub milliseconds: Option<i64>,
}

/// What an order holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Holds {
    /// `none`, `held`, `released` or `sold`.
    pub stock: String,
    /// The pieces that this is about.
    pub pieces: Vec<Pieces>,
    /// Credit of the customer in use for it, in minor units.
    pub credit: i64,
    /// When it expires, while it waits for its payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
}

/// Pieces of a product.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pieces {
    /// The product.
    pub product_id: String,
    /// How many.
    pub quantity: i64,
}

/// The time in each status.
fn stays(order: &Order) -> Vec<Stay> {
    let starts = std::iter::once(("pending", order.placed_at))
        .chain(order.timeline.iter().map(|step| (step.status.as_str(), step.at)));
    let ends = order.timeline.iter().map(|step| Some(step.at)).chain([None]);
    starts
        .zip(ends)
        .map(|((status, since), end)| Stay {
            status,
            since,
            milliseconds: end.map(|end| (end - since).num_milliseconds()),
        })
        .collect()
}

/// What caused an event, in words: a command, or an earlier event of the order.
fn cause_of(event: &Event, history: &[Event]) -> String {
    match history.iter().find(|earlier| earlier.id.0 == event.causation) {
        Some(earlier) => format!("event {}", earlier.version),
        None if event.answers().is_some() => format!("command {}", event.causation),
        None if event.kind == "expired" => "the time to pay is over".to_owned(),
        None => format!("{}", event.causation),
    }
}
