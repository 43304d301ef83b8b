//! The book against a model of what stands around it: the ledger between two batches, payment,
//! reservations and the relay.

mod properties;
mod rules;

use std::collections::{BTreeMap, HashMap, HashSet};

use millrace_shared::command::Received;
use millrace_shared::order::{AfterCharge, OrderLine, PaymentKind};
use millrace_shared::product::Stock;
use serde_json::{Value, json};

use super::*;

fn at() -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000, 0).unwrap()
}

/// A command as a client sends it: the end of its subject, and its body.
type Sent = (&'static str, Value);

fn incoming((sequence, (kind, body)): (u64, &Sent)) -> Incoming {
    let bytes = body.to_string();
    let received = Received::read(kind, bytes.as_bytes(), |_| None, ("COMMANDS", sequence));
    Incoming { received, at: at(), sequence, traceparent: None }
}

const FREE_ORDERS: usize = 8;
const ORDERS: usize = FREE_ORDERS + 4;
const CUSTOMERS: [&str; 2] = ["ANA", "BOB"];
const KEYS: [&str; 2] = ["cart-1", "cart-2"];

/// The customer and the key that the order with this number belongs to, if it comes of a key.
fn keyed(number: usize) -> Option<(&'static str, &'static str)> {
    let number = number.checked_sub(FREE_ORDERS)?;
    Some((CUSTOMERS[number / 2], KEYS[number % 2]))
}

fn order_id(number: usize) -> OrderId {
    match keyed(number) {
        Some((customer, key)) => OrderId::from_key(&customer.parse().unwrap(), key),
        None => OrderId(Uuid::from_u128(number as u128)),
    }
}

fn usd(amount: i64) -> Value {
    json!({ "amount": amount, "currency": "USD" })
}

fn register(customer: &str, limit: i64) -> Sent {
    ("customer.register", json!({ "customerId": customer, "name": "N", "creditLimit": usd(limit) }))
}

fn define(product: &str, price: &Value, stock: u32) -> Sent {
    let body = json!({ "productId": product, "name": "N", "brand": "B", "category": "C",
                       "price": price, "initialStock": stock });
    ("product.define", body)
}

/// The order with this number, of ANA unless its key is another's.
fn place(number: usize, lines: &[(&str, u32)], method: &str) -> Sent {
    let lines: Vec<Value> = lines
        .iter()
        .map(|(id, quantity)| json!({ "productId": id, "quantity": quantity }))
        .collect();
    let mut body = json!({ "customerId": "ANA", "lines": lines, "payment": { "method": method } });
    if method == "card" {
        body["payment"]["token"] = json!("tok_ok");
    }
    match keyed(number) {
        Some((customer, key)) => {
            body["customerId"] = json!(customer);
            body["idempotencyKey"] = json!(key);
        }
        None => body["orderId"] = json!(order_id(number)),
    }
    ("order.place", body)
}

fn step(kind: &'static str, number: usize) -> Sent {
    let mut body = json!({ "orderId": order_id(number) });
    if kind == "order.ship" {
        body["carrier"] = json!("Speedy Express");
        body["trackingNumber"] = json!("SE-1");
    }
    (kind, body)
}

/// What an order still holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    stock: bool,
    credit: bool,
    sold: bool,
}

/// The ledger and the log, and the workers beside validation.
#[derive(Debug, Default)]
struct World {
    products: HashMap<ProductId, Product>,
    customers: HashMap<CustomerId, Customer>,
    orders: HashMap<OrderId, Order>,
    placed: HashSet<OrderId>,
    decided: HashMap<CommandId, Past>,
    keys: HashMap<Uuid, Past>,
    touched_products: BTreeSet<ProductId>,
    touched_customers: BTreeSet<CustomerId>,
    /// All events, in the order in which they were decided.
    log: Vec<Event>,
    /// The orders that were validated.
    held: BTreeMap<OrderId, Held>,
    /// Events that reservations has not seen: the order, and whether it has left and has ended.
    unsettled: Vec<(OrderId, bool, bool)>,
    /// How many commands were sent.
    sent: u64,
}

impl World {
    fn load(&self, batch: &[Incoming]) -> Book {
        let known = |id| match self.orders.get(&id) {
            Some(order) => (id, Known::Here(Box::new(order.clone()))),
            None => (id, Known::Nowhere),
        };
        Book {
            products: self.products.clone(),
            customers: self.customers.clone(),
            orders: batch.iter().filter_map(Incoming::continues).map(known).collect(),
            placed: self.placed.clone(),
            decided: self.decided.clone(),
            keys: self.keys.clone(),
            touched_products: self.touched_products.clone(),
            touched_customers: self.touched_customers.clone(),
            ..Book::default()
        }
    }

    /// Decides one batch; tells why each command was refused, if it was.
    fn decide(&mut self, batch: &[Incoming]) -> Vec<Option<Reason>> {
        let mut book = self.load(batch);
        let mut answers = Vec::new();
        for message in batch {
            let before = book.decided.get(&message.received.command_id).cloned();
            let past = match (before, book.rule(message, at()).unwrap()) {
                (Some(past), Ruling::Repeated(id)) if id == past.command_id => past,
                (None, Ruling::Decided(decision)) => self.take(&book, *decision),
                (before, ruling) => panic!("{ruling:?} after {before:?}"),
            };
            answers.push(past.refusal.map(|refusal| refusal.reason));
        }
        for (id, product) in &book.products {
            let changed = self.products.get(id) != Some(product);
            assert!(!changed || book.changed_products.contains(id), "{id} would not be stored");
        }
        for (id, customer) in &book.customers {
            let changed = self.customers.get(id) != Some(customer);
            assert!(!changed || book.changed_customers.contains(id), "{id} would not be stored");
        }
        (self.products, self.customers) = (book.products, book.customers);
        (self.placed, self.decided, self.keys) = (book.placed, book.decided, book.keys);
        self.touched_products = book.touched_products;
        self.touched_customers = book.touched_customers;
        answers
    }

    fn take(&mut self, book: &Book, decision: Decision) -> Past {
        let order: Option<Order> = decision
            .events
            .iter()
            .find(|event| event.subject == Subject::Order)
            .map(|event| event.state().unwrap());
        if let Some(placed) = &decision.placed {
            let order = order.as_ref().unwrap();
            let good = order.reason.is_none();
            let account = good && order.payment.method == PaymentKind::Account;
            let pieces = |line: &OrderLine| (line.product_id.clone(), line.quantity);
            let lines: BTreeMap<_, _> = order.lines.iter().filter(|_| good).map(pieces).collect();
            assert_eq!((placed.order_id, &placed.pieces), (order.order_id, &lines));
            let total = order.total.filter(|_| account);
            assert_eq!(placed.credit, total.map_or(0, |total| total.amount));
            if let Some(total) = total {
                let customer = &book.customers[&order.customer_id];
                let limit = customer.credit_limit.unwrap();
                assert_eq!(limit.currency, total.currency);
                assert!(customer.credit_used <= limit.amount, "{customer:?} after {order:?}");
            }
            if good {
                let held = Held { stock: true, credit: account, sold: false };
                assert_eq!(self.held.insert(order.order_id, held), None, "placed twice");
            }
        }
        for event in decision.events {
            self.record(event);
        }
        decision.past
    }

    fn record(&mut self, event: Event) {
        if event.subject == Subject::Order {
            let order: Order = event.state().unwrap();
            if ["rejected", "shipped", "cancelled", "expired", "refunded"].contains(&&*event.kind) {
                let (left, ended) = (order.shipment.is_some(), event.kind != "shipped");
                self.unsettled.push((order.order_id, left, ended));
            }
            self.orders.insert(order.order_id, order);
        }
        self.log.push(event);
    }

    /// Sends the commands, one batch of them.
    fn send(&mut self, commands: &[Sent]) -> Vec<Option<Reason>> {
        let batch: Vec<Incoming> = (self.sent + 1..).zip(commands).map(incoming).collect();
        self.sent += batch.len() as u64;
        self.decide(&batch)
    }

    /// Payment: appends what follows for this order, if anything does.
    fn pay(&mut self, id: OrderId, follows: impl FnOnce(&Order) -> Option<OrderEvent>) {
        let Some(order) = self.orders.get(&id) else { return };
        let Some(event) = follows(order) else { return };
        let stamp = Stamp { version: order.version + 1, at: at(), causation: Uuid::nil() };
        let after = Order::apply(Some(order), id, stamp, &event).unwrap();
        self.record(Event::order(&event, &after, &NO_CAUSE).unwrap());
    }

    /// Reservations: gives back or sells what orders held, as their events tell.
    fn settle(&mut self) {
        for (id, left, ended) in std::mem::take(&mut self.unsettled) {
            let (Some(held), order) = (self.held.get_mut(&id), &self.orders[&id]) else { continue };
            if std::mem::take(&mut held.stock) {
                held.sold = left;
                for line in &order.lines {
                    let stock = &mut self.products.get_mut(&line.product_id).unwrap().stock;
                    let to = if left { &mut stock.sold } else { &mut stock.available };
                    *to += i64::from(line.quantity);
                    stock.reserved -= i64::from(line.quantity);
                    self.touched_products.insert(line.product_id.clone());
                }
            }
            if ended && std::mem::take(&mut held.credit) {
                let customer = self.customers.get_mut(&order.customer_id).unwrap();
                customer.credit_used -= order.total.unwrap().amount;
                self.touched_customers.insert(order.customer_id.clone());
            }
        }
    }

    /// The relay: tells the changes that no event has told yet.
    fn tell(&mut self) {
        for id in std::mem::take(&mut self.touched_products) {
            self.log.push(tell_stock(self.products.get_mut(&id).unwrap(), at()).unwrap());
        }
        for id in std::mem::take(&mut self.touched_customers) {
            self.log.push(tell_credit(self.customers.get_mut(&id).unwrap(), at()).unwrap());
        }
    }

    fn check_counts(&self) {
        let mut counts: HashMap<&ProductId, Stock> = HashMap::new();
        let mut credits: HashMap<&CustomerId, i64> = HashMap::new();
        for (id, held) in &self.held {
            let order = &self.orders[id];
            for line in &order.lines {
                let stock = counts.entry(&line.product_id).or_default();
                stock.reserved += i64::from(held.stock) * i64::from(line.quantity);
                stock.sold += i64::from(held.sold) * i64::from(line.quantity);
            }
            let total = order.total.unwrap().amount;
            *credits.entry(&order.customer_id).or_default() += i64::from(held.credit) * total;
        }
        let mut received: HashMap<&str, i64> = HashMap::new();
        for event in self.log.iter().filter(|event| event.subject == Subject::Product) {
            *received.entry(&event.subject_id).or_default() += match event.product_event().unwrap()
            {
                ProductEvent::Defined { initial_stock: pieces, .. }
                | ProductEvent::Restocked { quantity: pieces } => i64::from(pieces),
                _ => 0,
            };
        }
        for (id, product) in &self.products {
            let Stock { available, reserved, sold } = product.stock;
            let expected = counts.get(id).copied().unwrap_or_default();
            assert!(available >= 0, "{product:?}");
            assert_eq!((reserved, sold), (expected.reserved, expected.sold), "{id}");
            assert_eq!(available + reserved + sold, received[id.as_str()], "{id}");
        }
        for (id, customer) in &self.customers {
            assert_eq!(customer.credit_used, credits.get(id).copied().unwrap_or(0), "{id}");
        }
    }

    /// The log must be whole, and tell the ledger: each state is the fold of what happened.
    fn check_log(&self) {
        let mut ids = HashSet::new();
        let mut versions: HashMap<(Subject, &str), u64> = HashMap::new();
        let (mut orders, mut customers, mut products) =
            (HashMap::new(), HashMap::new(), HashMap::new());
        for event in &self.log {
            assert!(ids.insert(event.id), "{event:?} is there twice");
            let last = versions.entry((event.subject, &event.subject_id)).or_default();
            *last += 1;
            assert_eq!(event.version, *last, "{event:?}");
            let id = event.subject_id.as_str();
            match event.subject {
                Subject::Order => {
                    let id: OrderId = id.parse().unwrap();
                    let after = event.fold_order(orders.get(&id), id).unwrap();
                    assert_eq!(after, event.state().unwrap());
                    orders.insert(id, after);
                }
                Subject::Customer => {
                    let id: CustomerId = id.parse().unwrap();
                    let after = event.fold_customer(customers.get(&id)).unwrap();
                    assert_eq!(after, event.state().unwrap());
                    customers.insert(id, after);
                }
                Subject::Product => {
                    let id: ProductId = id.parse().unwrap();
                    let after = event.fold_product(products.get(&id)).unwrap();
                    assert_eq!(after, event.state().unwrap());
                    products.insert(id, after);
                }
                Subject::Command => assert_eq!(event.version, 1),
            }
        }
        assert_eq!(
            (&orders, &customers, &products),
            (&self.orders, &self.customers, &self.products)
        );
    }
}
