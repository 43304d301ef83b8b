//! What goes into a decision about a command, and what comes out of it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use millrace_shared::command::{Command, Received};
use millrace_shared::ids::{CommandId, CustomerId, OrderId, ProductId};
use millrace_shared::message::{About, Cause, Event};
use millrace_shared::order::Order;
use millrace_shared::reason::Refusal;
use uuid::Uuid;

/// A command as it came from the stream.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// What was read.
    pub received: Received,
    /// When the stream took it.
    pub at: DateTime<Utc>,
    /// Its place in the stream.
    pub sequence: u64,
    /// The trace it belongs to.
    pub traceparent: Option<String>,
}

impl Incoming {
    /// The cause of what follows from the command.
    pub fn cause(&self) -> Cause {
        let id = self.received.command_id.0;
        Cause { causation: id, correlation: id, traceparent: self.traceparent.clone() }
    }

    /// The kind of command: `order.place`; `malformed` if it cannot be read.
    pub fn kind(&self) -> &'static str {
        self.received.command.as_ref().map_or("malformed", |it| it.command.kind())
    }

    /// The order that the command continues, if it is such a command.
    pub fn continues(&self) -> Option<OrderId> {
        match &self.received.command.as_ref().ok()?.command {
            Command::CancelOrder(step) | Command::RefundOrder(step) => Some(step.order_id),
            Command::ShipOrder(ship) => Some(ship.order_id),
            Command::DeliverOrder(deliver) => Some(deliver.order_id),
            _ => None,
        }
    }
}

/// A decision that was made before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Past {
    /// About which command.
    pub command_id: CommandId,
    /// With which body.
    pub fingerprint: Uuid,
    /// What the command was about.
    pub about: About,
    /// Why it was refused, if it was.
    pub refusal: Option<Refusal>,
}

/// An order that a command continues.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// As the log has it.
    Here(Box<Order>),
    /// It is decided, or may be on its way; the log does not have it yet.
    NotYet,
    /// There is none, and none is on its way.
    Nowhere,
}

/// What was decided about one command.
#[derive(Debug)]
pub enum Ruling {
    /// It was decided before, under this id; its events only need to be in the log.
    Repeated(CommandId),
    /// It cannot be decided yet.
    NotYet,
    /// It is decided now.
    Decided(Box<Decision>),
}

/// A new decision.
#[derive(Debug)]
pub struct Decision {
    /// To be remembered by command and, if `key_id` is there, by idempotency key.
    pub past: Past,
    /// Set on the first command that used the key.
    pub key_id: Option<Uuid>,
    /// The events that follow.
    pub events: Vec<Event>,
    /// What the order holds, if the command placed one.
    pub placed: Option<Placed>,
    /// Who has signed in to give the command.
    pub actor: Option<String>,
}

/// What a new order holds of stock and credit.
#[derive(Debug, PartialEq, Eq)]
pub struct Placed {
    /// The order.
    pub order_id: OrderId,
    /// Whose it is.
    pub customer_id: CustomerId,
    /// Reserved pieces; empty for an order that was rejected.
    pub pieces: BTreeMap<ProductId, u32>,
    /// Minor units of the customer's credit.
    pub credit: i64,
    /// Until when it is to be paid; none for an order that was rejected.
    pub pay_by: Option<DateTime<Utc>>,
}
