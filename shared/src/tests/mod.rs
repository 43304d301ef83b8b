//! Tests of the pure parts: decisions, life cycle, commands, messages. Here is what they share.

mod command;
mod command_fields;
mod command_ids;
mod contract;
mod customer_product;
mod fuzz;
mod golden;
mod message;
mod order;
mod properties;

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::command::{PaymentMethod, PlaceOrder, RequestedLine};
use crate::customer::Customer;
use crate::ids::{OrderId, ProductId};
use crate::money::{Currency, Money};
use crate::order::{Order, OrderEvent, OrderLine, OrderStatus, Placement, Shipment, Stamp};
use crate::product::{Product, Stock};
use crate::reason::{Reason, Refusal};

fn usd(amount: i64) -> Money {
    Money::new(amount, Currency::USD)
}

/// A moment, some seconds after a fixed one.
fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000 + seconds, 123_456_000).unwrap()
}

fn product(id: &str, price: Money, available: i64) -> Product {
    Product {
        product_id: id.parse().unwrap(),
        name: format!("{id}, the product"),
        brand: "Millrace".to_owned(),
        category: "Samples".to_owned(),
        price,
        active: true,
        stock: Stock { available, ..Stock::default() },
        version: 1,
    }
}

fn customer(credit_limit: Option<Money>, credit_used: i64) -> Customer {
    let (customer_id, name) = ("ALFKI".parse().unwrap(), "Alfreds Futterkiste".to_owned());
    Customer { customer_id, name, credit_limit, credit_used, version: 1 }
}

fn catalogue(products: impl IntoIterator<Item = Product>) -> HashMap<ProductId, Product> {
    products.into_iter().map(|product| (product.product_id.clone(), product)).collect()
}

fn card() -> PaymentMethod {
    PaymentMethod::Card { token: "tok_ok".to_owned() }
}

fn order_for(lines: &[(&str, u32)], payment: PaymentMethod) -> PlaceOrder {
    let line = |&(id, quantity): &(&str, u32)| RequestedLine {
        product_id: id.parse().unwrap(),
        quantity,
        unit_price: None,
    };
    PlaceOrder {
        order_id: None,
        customer_id: "ALFKI".parse().unwrap(),
        lines: lines.iter().map(line).collect(),
        payment,
    }
}

fn order_id() -> OrderId {
    OrderId(Uuid::from_u128(0x0193_b7a2_0000_7000_8000_0000_0000_0001))
}

fn stamp(version: u64) -> Stamp {
    let seconds = i64::try_from(version).unwrap();
    Stamp { version, at: at(seconds), causation: Uuid::from_u128(u128::from(version)) }
}

fn placement() -> Placement {
    Placement {
        customer_id: "ALFKI".parse().unwrap(),
        lines: vec![OrderLine {
            product_id: "TEA".parse().unwrap(),
            name: Some("Assam".to_owned()),
            brand: Some("Millrace".to_owned()),
            quantity: 2,
            unit_price: Some(usd(499)),
            line_total: Some(usd(998)),
        }],
        total: Some(usd(998)),
        payment: card(),
        placed_at: at(0),
    }
}

fn shipment() -> Shipment {
    Shipment { carrier: "Speedy Express".to_owned(), tracking_number: "SE-1".to_owned() }
}

/// One event of each kind; `rejected` in both its forms.
fn every_event() -> [OrderEvent; 11] {
    let text = |text: &str| Some(text.to_owned());
    [
        OrderEvent::Validated(placement()),
        OrderEvent::Rejected {
            refusal: Refusal::new(Reason::OutOfStock, "1 of TEA are left"),
            placement: Some(placement()),
        },
        OrderEvent::Rejected {
            refusal: Refusal::new(Reason::PaymentDeclined, "the card was declined"),
            placement: None,
        },
        OrderEvent::Paid { charge_id: text("ch_1") },
        OrderEvent::Shipped(shipment()),
        OrderEvent::Delivered {},
        OrderEvent::Cancelled { reason: text("changed my mind") },
        OrderEvent::Expired {},
        OrderEvent::RefundRequested { reason: text("arrived broken") },
        OrderEvent::Refunded { charge_id: text("ch_1"), refund_id: text("re_1") },
        OrderEvent::PaymentUnknown { detail: "the gateway gave no answer".to_owned() },
    ]
}

/// The history of one order: its state after each of `events`.
fn history(events: &[OrderEvent]) -> Vec<Order> {
    let mut states: Vec<Order> = Vec::new();
    for (event, version) in events.iter().zip(1..) {
        let after = Order::apply(states.last(), order_id(), stamp(version), event).unwrap();
        states.push(after);
    }
    states
}

/// An order that has come to `status` on the shortest way.
fn order_in(status: OrderStatus) -> Order {
    let [
        validated,
        rejected,
        _,
        paid,
        shipped,
        delivered,
        cancelled,
        expired,
        asked,
        refunded,
        unknown,
    ] = every_event();
    let events = match status {
        OrderStatus::Validated => vec![validated],
        OrderStatus::Rejected => vec![rejected],
        OrderStatus::PaymentUnknown => vec![validated, unknown],
        OrderStatus::Paid => vec![validated, paid],
        OrderStatus::Shipped => vec![validated, paid, shipped],
        OrderStatus::Delivered => vec![validated, paid, shipped, delivered],
        OrderStatus::Cancelled => vec![validated, cancelled],
        OrderStatus::Expired => vec![validated, expired],
        OrderStatus::Refunding => vec![validated, paid, asked],
        OrderStatus::Refunded => vec![validated, paid, asked, refunded],
    };
    let order = history(&events).pop().unwrap();
    assert_eq!(order.status, status);
    order
}

const EVERY_STATUS: [OrderStatus; 10] = [
    OrderStatus::Validated,
    OrderStatus::PaymentUnknown,
    OrderStatus::Paid,
    OrderStatus::Shipped,
    OrderStatus::Delivered,
    OrderStatus::Rejected,
    OrderStatus::Cancelled,
    OrderStatus::Expired,
    OrderStatus::Refunding,
    OrderStatus::Refunded,
];

/// Every way from one status to another that an order may take, by an event of which kind. Written
/// down here on its own, to be compared with what [`Order::apply`] does.
const LEGAL: [(&str, &str, &str); 20] = [
    ("nothing", "validated", "validated"),
    ("nothing", "rejected at once", "rejected"),
    ("validated", "paid", "paid"),
    ("validated", "rejected", "rejected"),
    ("validated", "cancelled", "cancelled"),
    ("validated", "expired", "expired"),
    ("validated", "payment-unknown", "payment_unknown"),
    ("payment_unknown", "paid", "paid"),
    ("payment_unknown", "rejected", "rejected"),
    ("payment_unknown", "cancelled", "cancelled"),
    ("payment_unknown", "expired", "expired"),
    ("paid", "shipped", "shipped"),
    ("paid", "cancelled", "cancelled"),
    ("paid", "refund-requested", "refunding"),
    ("shipped", "delivered", "delivered"),
    ("shipped", "refund-requested", "refunding"),
    ("delivered", "refund-requested", "refunding"),
    ("refunding", "refunded", "refunded"),
    ("cancelled", "refunded", "refunded"),
    ("expired", "refunded", "refunded"),
];

/// Where the table leads from an order by an event, if it does.
fn legal(before: Option<&Order>, event: &OrderEvent) -> Option<&'static str> {
    let from = before.map_or("nothing", |order| order.status.as_str());
    let kind = match event {
        OrderEvent::Rejected { placement: Some(_), .. } => "rejected at once",
        event => event.kind(),
    };
    let found = LEGAL.iter().find(|(status, event, _)| (*status, *event) == (from, kind));
    found.map(|(_, _, to)| *to)
}

/// A good command of each kind, with every field that it can have.
fn example(kind: &str) -> Value {
    let order = "0193b7a2-0000-7000-8000-000000000001";
    let money = json!({ "amount": 1234, "currency": "USD" });
    match kind {
        "order.place" => json!({
            "orderId": order, "customerId": "ALFKI",
            "lines": [{ "productId": "TEA", "quantity": 2, "unitPrice": money },
                      { "productId": "CUP", "quantity": 1, "unitPrice": money }],
            "payment": { "method": "card", "token": "tok_ok" }
        }),
        "order.cancel" => json!({ "orderId": order, "reason": "changed my mind" }),
        "order.ship" => {
            json!({ "orderId": order, "carrier": "Speedy Express", "trackingNumber": "SE-1" })
        }
        "order.deliver" => json!({ "orderId": order }),
        "order.refund" => json!({ "orderId": order, "reason": "arrived broken" }),
        "customer.register" => {
            json!({ "customerId": "ALFKI", "name": "Alfreds Futterkiste", "creditLimit": money })
        }
        "customer.set-credit-limit" => json!({ "customerId": "ALFKI", "creditLimit": money }),
        "product.define" => json!({
            "productId": "TEA", "name": "Assam", "brand": "Millrace", "category": "Tea",
            "price": money, "initialStock": 10
        }),
        "product.restock" => json!({ "productId": "TEA", "quantity": 5 }),
        "product.retire" => json!({ "productId": "TEA" }),
        _ => panic!("no example of {kind}"),
    }
}
