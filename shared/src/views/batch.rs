//! What a batch of events changes in the views. Each event is read once; of each subject only the
//! newest state is written, since it tells all that the older ones would.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::{CommandView, ViewError, command_view};
use crate::ids::{CustomerId, OrderId, ProductId};
use crate::message::{Event, Subject};
use crate::money::Money;
use crate::order::{OrderStatus, PaymentKind, Step};
use crate::reason::Reason;

/// What lists, reports and streams need of an order.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Shown {
    pub order_id: OrderId,
    pub customer_id: CustomerId,
    pub status: OrderStatus,
    pub version: u64,
    pub lines: Vec<Line>,
    pub total: Option<Money>,
    pub payment: Method,
    pub reason: Option<Reason>,
    pub placed_at: DateTime<Utc>,
    pub timeline: Vec<Step>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    pub product_id: ProductId,
    pub brand: Option<String>,
    pub quantity: u32,
    pub unit_price: Option<Money>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Method {
    pub method: PaymentKind,
}

/// An order in a batch.
#[derive(Debug)]
pub(super) struct Seen {
    /// As it is after the newest of its events.
    pub order: Shown,
    /// The version of the oldest of its events.
    pub first: u64,
}

/// The events of one subject in a batch.
struct Ends<'a> {
    /// The place of the newest in the batch.
    at: usize,
    first: u64,
    last: &'a Event,
}

/// A batch, read; everything in the order in which it came.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    /// The newest event of each order, customer and product.
    pub newest: Vec<&'a Event>,
    /// The orders among them.
    pub orders: Vec<Seen>,
    /// What became of commands.
    pub outcomes: Vec<CommandView>,
}

impl<'a> Batch<'a> {
    /// Reads events; of those for which `shown` is false only the outcome of their command counts.
    pub fn read(events: impl Iterator<Item = (&'a Event, bool)>) -> Result<Self, ViewError> {
        let mut outcomes = Vec::new();
        let mut seen: HashMap<(Subject, &str), Ends<'a>> = HashMap::new();
        for (at, (event, shown)) in events.enumerate() {
            outcomes.extend(command_view(event)?);
            if !shown || event.subject == Subject::Command {
                continue;
            }
            let fresh = Ends { at, first: event.version, last: event };
            let ends = seen.entry((event.subject, &event.subject_id)).or_insert(fresh);
            ends.first = event.version.min(ends.first);
            if event.version > ends.last.version {
                (ends.at, ends.last) = (at, event);
            }
        }
        let mut seen: Vec<Ends<'a>> = seen.into_values().collect();
        seen.sort_by_key(|ends| ends.at);
        let orders = seen.iter().filter(|ends| ends.last.subject == Subject::Order);
        let orders = orders.map(|ends| Ok(Seen { order: ends.last.state()?, first: ends.first }));
        Ok(Self {
            orders: orders.collect::<Result<_, ViewError>>()?,
            newest: seen.into_iter().map(|ends| ends.last).collect(),
            outcomes,
        })
    }

    /// What is told on the channel of changes: a line for each.
    pub fn changes(&self) -> String {
        let newest = self.newest.iter();
        let subjects = newest.map(|it| format!("{}/{} {}", it.subject, it.subject_id, it.version));
        let commands = self.outcomes.iter().map(|view| format!("command/{} 1", view.command_id));
        let of_customers = self.orders.iter().map(|Seen { order, .. }| {
            format!("customer-orders/{} {}", order.customer_id, order.version)
        });
        subjects.chain(commands).chain(of_customers).collect::<Vec<_>>().join("\n")
    }
}
