//! The order aggregate, pure: `decide` functions tell which event follows, [`Order::apply`] tells
//! the state after an event. Nothing here reads a clock, a database or the network.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::{PaymentMethod, PlaceOrder};
use crate::customer::Customer;
use crate::ids::{CommandId, CustomerId, OrderId, ProductId};
use crate::money::{Money, MoneyError};
use crate::product::Product;
use crate::reason::{Reason, Refusal};

/// Where an order stands. Before its first event it is *pending*, which is known only by its
/// command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    /// Accepted: stock, and credit if any, are reserved.
    Validated,
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
    /// The status as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Validated => "validated",
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
}

/// A line with the product as it was bought. Name, brand and prices are absent only in a
/// rejected order whose product was unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case", rename_all_fields = "camelCase")]
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
    /// The order is paid.
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shipment {
    /// Who carries it.
    pub carrier: String,
    /// The carrier's number.
    pub tracking_number: String,
}

/// `card` or `account`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentKind {
    /// By a card token, through the gateway.
    Card,
    /// On the customer's account, within the credit limit.
    Account,
}

/// What became of the payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaymentStatus {
    /// Nothing was charged.
    None,
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
            Self::Captured => "captured",
            Self::Declined => "declined",
            Self::Refunded => "refunded",
        }
    }
}

/// The payment of an order. The card token is not part of it: it stays in the first event's data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The status that was reached.
    pub status: OrderStatus,
    /// By the event of this version.
    pub version: u64,
    /// When that event was decided.
    pub at: DateTime<Utc>,
}

/// An order as it stands. This is the state that events carry and the document that is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
            (OrderStatus::Validated, OrderEvent::Paid { charge_id }) => {
                after.status = OrderStatus::Paid;
                after.payment.status = PaymentStatus::Captured;
                after.payment.charge_id.clone_from(charge_id);
            }
            (OrderStatus::Validated, OrderEvent::Rejected { refusal, placement: None }) => {
                after.status = OrderStatus::Rejected;
                after.payment.status = PaymentStatus::Declined;
                after.reason = Some(refusal.reason);
                after.detail = Some(refusal.detail.clone());
            }
            (OrderStatus::Validated | OrderStatus::Paid, OrderEvent::Cancelled { reason }) => {
                after.status = OrderStatus::Cancelled;
                after.detail.clone_from(reason);
            }
            (OrderStatus::Validated, OrderEvent::Expired {}) => {
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

/// Decides a placement. The answer is always an event: an order that is refused is recorded too,
/// so its idempotency key stays used.
pub fn place(
    command: &PlaceOrder,
    placed_at: DateTime<Utc>,
    customer: Option<&Customer>,
    products: &HashMap<ProductId, Product>,
) -> OrderEvent {
    let lines: Vec<OrderLine> = command
        .lines
        .iter()
        .map(|line| {
            let product = products.get(&line.product_id);
            let unit_price = product.map(|product| product.price);
            OrderLine {
                product_id: line.product_id.clone(),
                name: product.map(|product| product.name.clone()),
                brand: product.map(|product| product.brand.clone()),
                quantity: line.quantity,
                unit_price,
                line_total: unit_price.and_then(|price| price.checked_mul(line.quantity).ok()),
            }
        })
        .collect();
    let total = total(&lines);
    let refusal = refuse_placement(command, customer, products, total).err();
    let placement = Placement {
        customer_id: command.customer_id.clone(),
        lines,
        total: total.ok(),
        payment: command.payment.clone(),
        placed_at,
    };
    match refusal {
        None => OrderEvent::Validated(placement),
        Some(refusal) => OrderEvent::Rejected { refusal, placement: Some(placement) },
    }
}

fn total(lines: &[OrderLine]) -> Result<Money, MoneyError> {
    let mut sum: Option<Money> = None;
    for line in lines {
        // A missing line total is an unknown product, which is refused before, or too large.
        let line_total = line.line_total.ok_or(MoneyError::TooLarge)?;
        sum = Some(match sum {
            None => line_total,
            Some(sum) => sum.checked_add(line_total)?,
        });
    }
    sum.ok_or(MoneyError::TooLarge)
}

fn refuse_placement(
    command: &PlaceOrder,
    customer: Option<&Customer>,
    products: &HashMap<ProductId, Product>,
    total: Result<Money, MoneyError>,
) -> Result<(), Refusal> {
    let customer = customer.ok_or_else(|| {
        let id = &command.customer_id;
        Refusal::new(Reason::UnknownCustomer, format!("there is no customer {id}"))
    })?;
    for line in &command.lines {
        let id = &line.product_id;
        let product = products.get(id).ok_or_else(|| {
            Refusal::new(Reason::UnknownProduct, format!("there is no product {id}"))
        })?;
        if !product.active {
            return Err(Refusal::new(
                Reason::ProductInactive,
                format!("the product {id} is no longer sold"),
            ));
        }
        if line.unit_price.is_some_and(|price| price != product.price) {
            return Err(Refusal::new(
                Reason::PriceChanged,
                format!("the price of {id} is {}", product.price),
            ));
        }
    }
    let total = total.map_err(|error| match error {
        MoneyError::MixedCurrencies => Refusal::new(
            Reason::MixedCurrencies,
            "the products of one order must be priced in one currency",
        ),
        MoneyError::TooLarge => Refusal::new(Reason::AmountTooLarge, error.to_string()),
    })?;
    for line in &command.lines {
        if let Some(product) = products.get(&line.product_id)
            && product.stock.available < i64::from(line.quantity)
        {
            return Err(Refusal::new(
                Reason::OutOfStock,
                format!("{} of {} are left", product.stock.available, line.product_id),
            ));
        }
    }
    match command.payment {
        PaymentMethod::Account {} => customer.can_spend(total),
        PaymentMethod::Card { .. } => Ok(()),
    }
}

fn not_allowed(order: &Order, step: &str) -> Refusal {
    let status = order.status.as_str();
    Refusal::new(Reason::NotAllowed, format!("an order that is {status} cannot be {step}"))
}

/// Decides a cancellation: possible until the goods leave.
pub fn cancel(order: &Order, reason: Option<&str>) -> Result<OrderEvent, Refusal> {
    match order.status {
        OrderStatus::Validated | OrderStatus::Paid => {
            Ok(OrderEvent::Cancelled { reason: reason.map(str::to_owned) })
        }
        _ => Err(not_allowed(order, "cancelled")),
    }
}

/// Decides a shipment: only what is paid is shipped.
pub fn ship(order: &Order, shipment: &Shipment) -> Result<OrderEvent, Refusal> {
    match order.status {
        OrderStatus::Paid => Ok(OrderEvent::Shipped(shipment.clone())),
        _ => Err(not_allowed(order, "shipped")),
    }
}

/// Decides a delivery.
pub fn deliver(order: &Order) -> Result<OrderEvent, Refusal> {
    match order.status {
        OrderStatus::Shipped => Ok(OrderEvent::Delivered {}),
        _ => Err(not_allowed(order, "delivered")),
    }
}

/// Decides a refund: possible once paid, also after delivery. Stock that has been shipped does not
/// come back by it; returned goods are restocked by a command of their own.
pub fn refund(order: &Order, reason: Option<&str>) -> Result<OrderEvent, Refusal> {
    match order.status {
        OrderStatus::Paid | OrderStatus::Shipped | OrderStatus::Delivered => {
            Ok(OrderEvent::RefundRequested { reason: reason.map(str::to_owned) })
        }
        _ => Err(not_allowed(order, "refunded")),
    }
}

/// What follows from a charge that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterCharge {
    /// Append this event.
    Append(OrderEvent),
    /// The order was called off meanwhile: the money goes back.
    GiveBack,
    /// The order knows already.
    Known,
}

/// Decides what a charge that succeeded means for the order as it now stands.
pub fn charged(order: &Order, charge_id: Option<&str>) -> AfterCharge {
    match order.status {
        OrderStatus::Validated => {
            AfterCharge::Append(OrderEvent::Paid { charge_id: charge_id.map(str::to_owned) })
        }
        OrderStatus::Cancelled | OrderStatus::Expired => AfterCharge::GiveBack,
        _ => AfterCharge::Known,
    }
}

/// Decides what a declined charge means: a rejection, unless the order ended otherwise.
pub fn declined(order: &Order, why: &str) -> Option<OrderEvent> {
    (order.status == OrderStatus::Validated).then(|| OrderEvent::Rejected {
        refusal: Refusal::new(Reason::PaymentDeclined, why),
        placement: None,
    })
}

/// Decides what a refund that was made means: it is recorded once.
pub fn refunded(
    order: &Order,
    charge_id: Option<&str>,
    refund_id: Option<&str>,
) -> Option<OrderEvent> {
    matches!(order.status, OrderStatus::Refunding | OrderStatus::Cancelled | OrderStatus::Expired)
        .then(|| OrderEvent::Refunded {
            charge_id: charge_id.map(str::to_owned),
            refund_id: refund_id.map(str::to_owned),
        })
}
