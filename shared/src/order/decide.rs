//! Decisions about an order: from its state and a wish to an event, or a refusal.

use std::collections::HashMap;

use chrono::{DateTime, Utc};

use super::{Order, OrderEvent, OrderLine, OrderStatus, Placement, Shipment};
use crate::command::{PaymentMethod, PlaceOrder};
use crate::customer::Customer;
use crate::ids::ProductId;
use crate::money::{Money, MoneyError};
use crate::product::Product;
use crate::reason::{Reason, Refusal};

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

/// Decides what a charge without an answer means: the order says so, once.
pub fn unanswered(order: &Order, detail: &str) -> Option<OrderEvent> {
    (order.status == OrderStatus::Validated)
        .then(|| OrderEvent::PaymentUnknown { detail: detail.to_owned() })
}

/// Decides what it means that the time for the payment is over.
pub fn expire(order: &Order) -> Option<OrderEvent> {
    order.status.awaits_payment().then_some(OrderEvent::Expired {})
}

/// Decides a cancellation: possible until the goods leave.
pub fn cancel(order: &Order, reason: Option<&str>) -> Result<OrderEvent, Refusal> {
    match order.status {
        OrderStatus::Validated | OrderStatus::PaymentUnknown | OrderStatus::Paid => {
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
        status if status.awaits_payment() => {
            AfterCharge::Append(OrderEvent::Paid { charge_id: charge_id.map(str::to_owned) })
        }
        OrderStatus::Cancelled | OrderStatus::Expired => AfterCharge::GiveBack,
        _ => AfterCharge::Known,
    }
}

/// Decides what a declined charge means: a rejection, unless the order ended otherwise.
pub fn declined(order: &Order, why: &str) -> Option<OrderEvent> {
    order.status.awaits_payment().then(|| OrderEvent::Rejected {
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
