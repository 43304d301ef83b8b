//! The order aggregate, pure: the functions of `decide` tell which event follows, [`Order::apply`]
//! tells the state after an event. Nothing here reads a clock, a database or the network.

mod decide;

pub use decide::{
    AfterCharge, cancel, charged, declined, deliver, expire, place, refund, refunded, ship,
    unanswered,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::command::PaymentMethod;
use crate::ids::{CommandId, CustomerId, OrderId, ProductId};
use crate::money::Money;
use crate::reason::{Reason, Refusal};

/// Where an order stands. Before its first event it is *pending*, which is known only by its
/// command.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    /// Accepted: stock, and credit if any, are reserved.
    Validated,
    /// The gateway gave no answer: there may be a charge. It is asked until it knows.
    PaymentUnknown,
    /// Charged, or booked on the customer's account.
    Paid,
    /// Handed to a carrier.
    Shipped,
    /// Received by the customer.
    Delivered,
    /// Refused, at once or because the payment was declined.
    Rejected,
    /// Called off before shipping.
    Cancelled,
    /// Not paid in time.
    Expired,
    /// A refund was asked for and is under way.
    Refunding,
    /// The money has been given back.
    Refunded,
}

impl OrderStatus {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Validated,
        Self::PaymentUnknown,
        Self::Paid,
        Self::Shipped,
        Self::Delivered,
        Self::Rejected,
        Self::Cancelled,
        Self::Expired,
        Self::Refunding,
        Self::Refunded,
    ];

    /// The status as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Validated => "validated",
            Self::PaymentUnknown => "payment_unknown",
            Self::Paid => "paid",
            Self::Shipped => "shipped",
            Self::Delivered => "delivered",
            Self::Rejected => "rejected",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Refunding => "refunding",
            Self::Refunded => "refunded",
        }
    }

    /// Whether the order waits for its payment: its time may run out.
    pub fn awaits_payment(self) -> bool {
        matches!(self, Self::Validated | Self::PaymentUnknown)
    }
}

/// A line with the product as it was bought. Name, brand and prices are absent only in a
/// rejected order whose product was unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderLine {
    /// The product.
    pub product_id: ProductId,
    /// Its name then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its brand then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub brand: Option<String>,
    /// Pieces.
    pub quantity: u32,
    /// The price of one piece.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit_price: Option<Money>,
    /// The price of the line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line_total: Option<Money>,
}

/// What was ordered: carried by the first event of every order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Who ordered.
    pub customer_id: CustomerId,
    /// What, as bought.
    pub lines: Vec<OrderLine>,
    /// The sum of the lines; absent only where it could not be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Money>,
    /// How it is to be paid.
    pub payment: PaymentMethod,
    /// When the command was stored in the COMMANDS stream.
    pub placed_at: DateTime<Utc>,
}

/// What happened to an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum OrderEvent {
    /// The order was accepted, and its stock and credit reserved.
    Validated(Placement),
    /// The order was refused.
    Rejected {
        /// Why.
        #[serde(flatten)]
        refusal: Refusal,
        /// What was ordered, if this is the order's first event.
        #[serde(skip_serializing_if = "Option::is_none")]
        placement: Option<Placement>,
    },
    /// The gateway gave no answer in time.
    PaymentUnknown {
        /// What is known.
        detail: String,
    },
    /// The order is paid.
    #[serde(rename_all = "camelCase")]
    Paid {
        /// The gateway's name of the charge; absent for payment by account.
        #[serde(skip_serializing_if = "Option::is_none")]
        charge_id: Option<String>,
    },
    /// The goods left.
    Shipped(Shipment),
    /// The goods arrived.
    Delivered {},
    /// The order was called off.
    Cancelled {
        /// The client's words.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The order was not paid in time.
    Expired {},
    /// The money is to be given back.
    RefundRequested {
        /// The client's words.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The money was given back.
    #[serde(rename_all = "camelCase")]
    Refunded {
        /// The charge that was given back; absent for payment by account.
        #[serde(skip_serializing_if = "Option::is_none")]
        charge_id: Option<String>,
        /// The gateway's name of the refund; absent for payment by account.
        #[serde(skip_serializing_if = "Option::is_none")]
        refund_id: Option<String>,
    },
}

impl OrderEvent {
    /// The type, as in JSON and in the last token of the subject.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Validated(_) => "validated",
            Self::Rejected { .. } => "rejected",
            Self::PaymentUnknown { .. } => "payment-unknown",
            Self::Paid { .. } => "paid",
            Self::Shipped(_) => "shipped",
            Self::Delivered {} => "delivered",
            Self::Cancelled { .. } => "cancelled",
            Self::Expired {} => "expired",
            Self::RefundRequested { .. } => "refund-requested",
            Self::Refunded { .. } => "refunded",
        }
    }
}

/// The carrier and its number for the parcel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Shipment {
    /// Who carries it.
    pub carrier: String,
    /// The carrier's number.
    pub tracking_number: String,
}

/// `card` or `account`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaymentKind {
    /// By a card token, through the gateway.
    Card,
    /// On the customer's account, within the credit limit.
    Account,
}

/// What became of the payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaymentStatus {
    /// Nothing was charged.
    None,
    /// The gateway gave no answer: there may be a charge.
    Unknown,
    /// Charged, or booked.
    Captured,
    /// The gateway declined.
    Declined,
    /// Given back in full.
    Refunded,
}

impl PaymentKind {
    /// The method as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Card => "card",
            Self::Account => "account",
        }
    }
}

impl PaymentStatus {
    /// The status as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Unknown => "unknown",
            Self::Captured => "captured",
            Self::Declined => "declined",
            Self::Refunded => "refunded",
        }
    }
}

/// The payment of an order. The card token is not part of it: it stays in the first event's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Payment {
    /// How.
    pub method: PaymentKind,
    /// How far.
    pub status: PaymentStatus,
    /// The gateway's name of the charge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub charge_id: Option<String>,
    /// The gateway's name of the refund.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refund_id: Option<String>,
}

/// A step of the order's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// The status that was reached.
    pub status: OrderStatus,
    /// By the event of this version.
    pub version: u64,
    /// When that event was decided.
    pub at: DateTime<Utc>,
}

/// An order as it stands. This is the state that events carry and the document that is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// The order.
    pub order_id: OrderId,
    /// Whose it is.
    pub customer_id: CustomerId,
    /// Where it stands.
    pub status: OrderStatus,
    /// The version of its last event; the first is 1.
    pub version: u64,
    /// What was bought.
    pub lines: Vec<OrderLine>,
    /// The sum of the lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Money>,
    /// The payment.
    pub payment: Payment,
    /// Carrier and tracking number, once shipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shipment: Option<Shipment>,
    /// Why it was rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The sentence to the reason, or the client's words at a cancellation or refund.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When it was placed.
    pub placed_at: DateTime<Utc>,
    /// When it changed last.
    pub updated_at: DateTime<Utc>,
    /// The command that placed it.
    pub command_id: CommandId,
    /// Every status it has had.
    pub timeline: Vec<Step>,
}

/// When, in which place of the history and why an event happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The event's place in the subject's history, from 1.
    pub version: u64,
    /// When it was decided.
    pub at: DateTime<Utc>,
    /// The command or event that caused it.
    pub causation: Uuid,
}

/// An event that cannot follow the state it meets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the event {event} (version {version}) cannot follow {status} (version {after})")]
pub struct IllegalEvent {
    event: &'static str,
    version: u64,
    status: &'static str,
    after: u64,
}

impl Order {
    /// The state after `event`. `before` is absent for an order's first event.
    pub fn apply(
        before: Option<&Self>,
        order_id: OrderId,
        stamp: Stamp,
        event: &OrderEvent,
    ) -> Result<Self, IllegalEvent> {
        let illegal = || IllegalEvent {
            event: event.kind(),
            version: stamp.version,
            status: before.map_or("nothing", |order| order.status.as_str()),
            after: before.map_or(0, |order| order.version),
        };
        if stamp.version != before.map_or(0, |order| order.version) + 1 {
            return Err(illegal());
        }
        let Some(before) = before else {
            return Self::first(order_id, stamp, event).ok_or_else(illegal);
        };
        let mut after = before.clone();
        match (before.status, event) {
            (OrderStatus::Validated, OrderEvent::PaymentUnknown { .. }) => {
                after.status = OrderStatus::PaymentUnknown;
                after.payment.status = PaymentStatus::Unknown;
            }
            (
                OrderStatus::Validated | OrderStatus::PaymentUnknown,
                OrderEvent::Paid { charge_id },
            ) => {
                after.status = OrderStatus::Paid;
                after.payment.status = PaymentStatus::Captured;
                after.payment.charge_id.clone_from(charge_id);
            }
            (
                OrderStatus::Validated | OrderStatus::PaymentUnknown,
                OrderEvent::Rejected { refusal, placement: None },
            ) => {
                after.status = OrderStatus::Rejected;
                after.payment.status = PaymentStatus::Declined;
                after.reason = Some(refusal.reason);
                after.detail = Some(refusal.detail.clone());
            }
            (
                OrderStatus::Validated | OrderStatus::PaymentUnknown | OrderStatus::Paid,
                OrderEvent::Cancelled { reason },
            ) => {
                after.status = OrderStatus::Cancelled;
                after.detail.clone_from(reason);
            }
            (OrderStatus::Validated | OrderStatus::PaymentUnknown, OrderEvent::Expired {}) => {
                after.status = OrderStatus::Expired;
            }
            (OrderStatus::Paid, OrderEvent::Shipped(shipment)) => {
                after.status = OrderStatus::Shipped;
                after.shipment = Some(shipment.clone());
            }
            (OrderStatus::Shipped, OrderEvent::Delivered {}) => {
                after.status = OrderStatus::Delivered;
            }
            (
                OrderStatus::Paid | OrderStatus::Shipped | OrderStatus::Delivered,
                OrderEvent::RefundRequested { reason },
            ) => {
                after.status = OrderStatus::Refunding;
                after.detail.clone_from(reason);
            }
            // A cancelled or expired order may turn out to have been charged: see `charged`.
            (
                OrderStatus::Refunding | OrderStatus::Cancelled | OrderStatus::Expired,
                OrderEvent::Refunded { charge_id, refund_id },
            ) => {
                after.status = OrderStatus::Refunded;
                after.payment.status = PaymentStatus::Refunded;
                after.payment.charge_id.clone_from(charge_id);
                after.payment.refund_id.clone_from(refund_id);
            }
            _ => return Err(illegal()),
        }
        after.version = stamp.version;
        after.updated_at = stamp.at;
        after.timeline.push(Step { status: after.status, version: stamp.version, at: stamp.at });
        Ok(after)
    }

    fn first(order_id: OrderId, stamp: Stamp, event: &OrderEvent) -> Option<Self> {
        let (placement, status, refusal) = match event {
            OrderEvent::Validated(placement) => (placement, OrderStatus::Validated, None),
            OrderEvent::Rejected { refusal, placement: Some(placement) } => {
                (placement, OrderStatus::Rejected, Some(refusal))
            }
            _ => return None,
        };
        Some(Self {
            order_id,
            customer_id: placement.customer_id.clone(),
            status,
            version: stamp.version,
            lines: placement.lines.clone(),
            total: placement.total,
            payment: Payment {
                method: placement.payment.kind(),
                status: PaymentStatus::None,
                charge_id: None,
                refund_id: None,
            },
            shipment: None,
            reason: refusal.map(|refusal| refusal.reason),
            detail: refusal.map(|refusal| refusal.detail.clone()),
            placed_at: placement.placed_at,
            updated_at: stamp.at,
            command_id: CommandId(stamp.causation),
            timeline: vec![Step { status, version: stamp.version, at: stamp.at }],
        })
    }
}
