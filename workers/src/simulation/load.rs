//! What clients ask for: orders that compete for little stock and credit, the same again, the same
//! key with another body, steps that may or may not be allowed.

use async_nats::HeaderMap;
use millrace_shared::command::{COMMAND_ID_HEADER, KEY_HEADER};
use millrace_shared::ids::{CustomerId, OrderId};
use millrace_shared::topology::Topology;
use serde_json::{Value, json};
use uuid::Uuid;

use super::fate::Fate;
use super::log::Message;

const CUSTOMERS: [&str; 2] = ["ANA", "BOB"];
const PRODUCTS: [&str; 2] = ["TEA", "CUP"];
const KEYS: [&str; 3] = ["cart-1", "cart-2", "cart-3"];
const TOKENS: [&str; 8] = [
    "tok_ok",
    "tok_ok",
    "tok_ok",
    "tok_ok",
    "tok_timeout",
    "tok_lost",
    "tok_flaky",
    "tok_declined",
];
const STEPS: [&str; 8] =
    ["cancel", "cancel", "ship", "ship", "ship", "deliver", "deliver", "refund"];

/// All clients together.
pub struct Clients {
    fate: Fate,
    topology: Topology,
    sent: Vec<Message>,
    orders: Vec<OrderId>,
    left: usize,
}

impl Clients {
    pub fn new(fate: Fate, topology: Topology) -> Self {
        let left = fate.pick(8..40);
        Self { fate, topology, sent: Vec::new(), orders: Vec::new(), left }
    }

    /// The next command, if there is one.
    pub fn next(&mut self) -> Option<Message> {
        self.left = self.left.checked_sub(1)?;
        let message = match self.sent.len() {
            0 => self.register(CUSTOMERS[0]),
            1 => self.define(PRODUCTS[0]),
            2 => self.register(CUSTOMERS[1]),
            3 => self.define(PRODUCTS[1]),
            _ => self.any(),
        };
        self.sent.push(message.clone());
        Some(message)
    }

    fn any(&mut self) -> Message {
        match self.fate.pick(0..100) {
            0..40 => self.place(),
            40..78 => self.step(),
            78..86 => self.fate.choose(&self.sent),
            86..88 => self.register(self.fate.choose(&CUSTOMERS)),
            88..90 => self.set_limit(),
            90..92 => self.define(self.fate.choose(&PRODUCTS)),
            92..97 => self.restock(),
            97..98 => self.retire(),
            _ => self.message("order.cancel", &json!({ "orderId": 7 }), None),
        }
    }

    fn message(&self, kind: &str, body: &Value, key: Option<&str>) -> Message {
        let mut headers = HeaderMap::new();
        if let Some(key) = key {
            headers.insert(KEY_HEADER, key);
        } else if !self.fate.one_in(4) {
            let id = Uuid::from_u128(self.fate.bits());
            headers.insert(COMMAND_ID_HEADER, id.to_string().as_str());
        }
        Message { subject: self.topology.command(kind), payload: body.to_string().into(), headers }
    }

    fn place(&mut self) -> Message {
        let customer = self.fate.choose(&CUSTOMERS);
        let lines: Vec<Value> = PRODUCTS
            .iter()
            .skip(self.fate.pick(0..2))
            .take(self.fate.pick(1..3))
            .map(|product| json!({ "productId": product, "quantity": self.fate.pick(1..4) }))
            .collect();
        let payment = if self.fate.one_in(3) {
            json!({ "method": "account" })
        } else {
            json!({ "method": "card", "token": self.fate.choose(&TOKENS) })
        };
        let mut body = json!({ "customerId": customer, "lines": lines, "payment": payment });
        if self.fate.one_in(3) {
            let key = self.fate.choose(&KEYS);
            if let Ok(customer) = customer.parse::<CustomerId>() {
                self.orders.push(OrderId::from_key(&customer, key));
            }
            return self.message("order.place", &body, Some(key));
        }
        let id = OrderId(Uuid::from_u128(self.fate.bits()));
        self.orders.push(id);
        body["orderId"] = json!(id);
        self.message("order.place", &body, None)
    }

    fn step(&self) -> Message {
        if self.orders.is_empty() || self.fate.one_in(30) {
            let body = json!({ "orderId": Uuid::from_u128(self.fate.bits()) });
            return self.message("order.cancel", &body, None);
        }
        // Those that were placed last are most alive.
        let from = self.orders.len().saturating_sub(3);
        let recent = if self.fate.one_in(3) { &self.orders } else { &self.orders[from..] };
        let mut body = json!({ "orderId": self.fate.choose(recent) });
        let step = self.fate.choose(&STEPS);
        if step == "ship" {
            body["carrier"] = json!("Post");
            body["trackingNumber"] = json!("1");
        }
        let key = self.fate.one_in(5).then_some("step");
        self.message(&format!("order.{step}"), &body, key)
    }

    fn register(&self, customer: &str) -> Message {
        let limit = json!({ "amount": self.fate.pick(200..900), "currency": "USD" });
        let body = json!({ "customerId": customer, "name": "N", "creditLimit": limit });
        self.message("customer.register", &body, None)
    }

    fn set_limit(&self) -> Message {
        let limit = json!({ "amount": self.fate.pick(0..900), "currency": "USD" });
        let body = json!({ "customerId": self.fate.choose(&CUSTOMERS), "creditLimit": limit });
        self.message("customer.set-credit-limit", &body, None)
    }

    fn define(&self, product: &str) -> Message {
        let price = json!({ "amount": 100, "currency": "USD" });
        let body = json!({ "productId": product, "name": "N", "brand": "B", "category": "C",
                           "price": price, "initialStock": self.fate.pick(3..20) });
        self.message("product.define", &body, None)
    }

    fn restock(&self) -> Message {
        let body = json!({ "productId": self.fate.choose(&PRODUCTS), "quantity": 5 });
        self.message("product.restock", &body, None)
    }

    fn retire(&self) -> Message {
        self.message("product.retire", &json!({ "productId": self.fate.choose(&PRODUCTS) }), None)
    }
}
