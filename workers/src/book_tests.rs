//! The book against a model of what stands around it: the ledger between two batches, payment,
//! reservations and the relay. First single rules, then what holds for any sequence of commands.

use std::collections::{BTreeMap, HashMap, HashSet};

use millrace_shared::order::{AfterCharge, OrderLine, PaymentKind};
use millrace_shared::product::Stock;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
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

#[test]
fn the_last_piece_goes_to_the_first_order_of_the_batch() {
    let mut world = World::default();
    world.send(&[register("ANA", 0), define("TEA", &usd(5), 1)]);
    let answers = world.send(&[place(0, &[("TEA", 1)], "card"), place(1, &[("TEA", 1)], "card")]);
    assert_eq!(answers, [None, Some(Reason::OutOfStock)]);
    world.check_counts();
}

#[test]
fn an_order_that_is_refused_gives_its_reason() {
    let mut world = World::default();
    let euro = json!({ "amount": 5, "currency": "EUR" });
    world.send(&[register("ANA", 12), define("TEA", &usd(5), 9), define("POT", &euro, 9)]);
    let mut stale = place(1, &[("TEA", 1)], "card");
    stale.1["lines"][0]["unitPrice"] = usd(4);
    let mut stranger = place(6, &[("TEA", 1)], "card");
    stranger.1["customerId"] = json!("EVE");
    let answers = world.send(&[
        place(0, &[("TEA", 1), ("POT", 1)], "card"),
        stale,
        place(2, &[("TEA", 2)], "account"),
        // 2 of 12 are left.
        place(3, &[("TEA", 1)], "account"),
        ("product.retire", json!({ "productId": "TEA" })),
        place(4, &[("TEA", 1)], "card"),
        place(5, &[("CUP", 1)], "card"),
        stranger,
        step("order.cancel", 7),
        step("order.ship", 2),
    ]);
    let reasons = [
        Some(Reason::MixedCurrencies),
        Some(Reason::PriceChanged),
        None,
        Some(Reason::InsufficientCredit),
        None,
        Some(Reason::ProductInactive),
        Some(Reason::UnknownProduct),
        Some(Reason::UnknownCustomer),
        Some(Reason::UnknownOrder),
        Some(Reason::NotAllowed),
    ];
    assert_eq!(answers, reasons);
    world.check_counts();
}

#[test]
fn an_order_is_placed_once_whatever_comes_under_its_key_or_id() {
    let mut world = World::default();
    world.send(&[register("ANA", 0), define("TEA", &usd(5), 9)]);
    let by_key = place(FREE_ORDERS, &[("TEA", 1)], "card");
    let mut other_command = by_key.clone();
    other_command.1["commandId"] = json!(order_id(9));
    let answers = world.send(&[
        by_key.clone(),
        by_key,
        other_command,
        place(FREE_ORDERS, &[("TEA", 2)], "card"),
        place(0, &[("TEA", 1)], "card"),
        place(0, &[("TEA", 2)], "card"),
    ]);
    let (reused, exists) = (Some(Reason::IdempotencyKeyReused), Some(Reason::AlreadyExists));
    assert_eq!(answers, [None, None, None, reused, None, exists]);
    let stock = world.products.values().next().unwrap().stock;
    assert_eq!(stock, Stock { available: 7, reserved: 2, sold: 0 });
    let repeated = &world.decided[&CommandId(order_id(9).0)];
    assert_eq!(repeated.about.id, order_id(FREE_ORDERS).to_string());
}

#[test]
fn another_body_under_a_used_command_id_is_answered_under_the_streams_id() {
    let mut world = World::default();
    world.send(&[register("ANA", 0), define("TEA", &usd(5), 9)]);
    let named = |number| {
        let mut sent = place(number, &[("TEA", 1)], "card");
        sent.1["commandId"] = json!(order_id(9));
        incoming((number as u64 + 10, &sent))
    };
    let (first, second) = (named(0), named(1));
    let mut book = world.load(&[]);
    assert!(matches!(book.rule(&first, at()).unwrap(), Ruling::Decided(_)));
    let Ruling::Decided(decision) = book.rule(&second, at()).unwrap() else { panic!() };
    assert_eq!(decision.past.command_id, second.received.fallback_id);
    assert_eq!(decision.past.refusal.unwrap().reason, Reason::CommandIdReused);
    let [event] = &decision.events[..] else { panic!("{:?}", decision.events) };
    assert_eq!(event.subject_id, second.received.fallback_id.to_string());
    let fallback = second.received.fallback_id;
    assert!(matches!(book.rule(&second, at()).unwrap(), Ruling::Repeated(id) if id == fallback));
    assert_eq!(book.products.values().next().unwrap().stock.reserved, 1);
}

#[test]
fn what_may_still_come_is_waited_for_and_leaves_no_trace() {
    let limit = json!({ "customerId": "ANA", "creditLimit": usd(5) });
    let commands = [
        (place(0, &[("TEA", 1)], "card"), Reason::UnknownCustomer),
        (("customer.set-credit-limit", limit), Reason::UnknownCustomer),
        (("product.restock", json!({ "productId": "TEA", "quantity": 1 })), Reason::UnknownProduct),
        (("product.retire", json!({ "productId": "TEA" })), Reason::UnknownProduct),
        (step("order.cancel", 0), Reason::UnknownOrder),
    ];
    for (sent, reason) in commands {
        let message = incoming((7, &sent));
        let mut book = Book { early: HashSet::from([7]), ..Book::default() };
        book.orders.extend(message.continues().map(|id| (id, Known::NotYet)));
        assert!(matches!(book.rule(&message, at()).unwrap(), Ruling::NotYet), "{sent:?}");
        assert!(book.decided.is_empty() && book.placed.is_empty(), "{sent:?}");
        book.early.clear();
        book.orders.extend(message.continues().map(|id| (id, Known::Nowhere)));
        let Ruling::Decided(decision) = book.rule(&message, at()).unwrap() else { panic!() };
        assert_eq!(decision.past.refusal.unwrap().reason, reason, "{sent:?}");
    }
}

#[test]
fn what_orders_changed_is_told_before_the_next_event() {
    let mut world = World::default();
    world.send(&[register("ANA", 20), define("TEA", &usd(5), 5)]);
    let limit = json!({ "customerId": "ANA", "creditLimit": usd(30) });
    world.send(&[
        place(0, &[("TEA", 2)], "account"),
        ("product.restock", json!({ "productId": "TEA", "quantity": 3 })),
        ("customer.set-credit-limit", limit),
    ]);
    let told = |subject| -> Vec<&str> {
        let of = world.log.iter().filter(|event| event.subject == subject);
        of.map(|event| event.kind.as_str()).collect()
    };
    assert_eq!(told(Subject::Product), ["defined", "stock-changed", "restocked"]);
    assert_eq!(told(Subject::Customer), ["registered", "credit-changed", "credit-limit-set"]);
    assert!(world.touched_products.is_empty() && world.touched_customers.is_empty());
    world.check_log();
}

/// What may happen, in a batch of commands or around it.
#[derive(Debug, Clone)]
enum Happening {
    Sent(Sent),
    /// A redelivery of one of the messages so far.
    Again(usize),
    Charged(usize),
    Declined(usize),
    Refunded(usize),
    Expired(usize),
    Settled,
    Told,
}

fn commands() -> impl Strategy<Value = Sent> {
    const PRODUCTS: [&str; 3] = ["TEA", "CUP", "POT"];
    const STEPS: [&str; 5] =
        ["order.cancel", "order.ship", "order.ship", "order.deliver", "order.refund"];
    let (product, customer) = (|| select(&PRODUCTS[..]), || select(&CUSTOMERS[..]));
    let money = |amounts: std::ops::Range<i64>| {
        let currency = prop_oneof![19 => Just("USD"), 1 => Just("EUR")];
        (amounts, currency)
            .prop_map(|(amount, currency)| json!({ "amount": amount, "currency": currency }))
    };
    let lines = (subsequence(PRODUCTS.to_vec(), 1..=2), vec(1..3_u32, 2));
    let price = option::weighted(0.05, money(4..7));
    let placement = (0..ORDERS, lines, any::<bool>(), price).prop_map(
        |(number, (products, quantities), account, price)| {
            let lines: Vec<_> = products.into_iter().zip(quantities).collect();
            let mut sent = place(number, &lines, if account { "account" } else { "card" });
            sent.1["lines"][0]["unitPrice"] = json!(price);
            sent
        },
    );
    prop_oneof![
        8 => placement,
        12 => (select(&STEPS[..]), 0..ORDERS).prop_map(|(kind, number)| step(kind, number)),
        2 => (product(), 1..5).prop_map(|(id, pieces)| {
            ("product.restock", json!({ "productId": id, "quantity": pieces }))
        }),
        2 => (product(), money(4..7), 0..3_u32).prop_map(|(id, price, stock)| {
            define(id, &price, stock)
        }),
        1 => product().prop_map(|id| ("product.retire", json!({ "productId": id }))),
        1 => (customer(), money(0..40)).prop_map(|(id, limit)| {
            ("customer.set-credit-limit", json!({ "customerId": id, "creditLimit": limit }))
        }),
        1 => (customer(), 0..40_i64).prop_map(|(id, limit)| register(id, limit)),
    ]
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        16 => commands().prop_map(Happening::Sent),
        1 => any::<usize>().prop_map(Happening::Again),
        12 => (0..ORDERS).prop_map(Happening::Charged),
        1 => (0..ORDERS).prop_map(Happening::Declined),
        3 => (0..ORDERS).prop_map(Happening::Refunded),
        1 => (0..ORDERS).prop_map(Happening::Expired),
        2 => Just(Happening::Settled),
        2 => Just(Happening::Told),
    ];
    vec(one, 0..200)
}

/// Lets it all happen, with at most `most` commands in a batch; whatever must hold is checked on the
/// way. Returns the messages too.
fn run(happenings: &[Happening], most: usize) -> (World, Vec<Incoming>) {
    let mut world = World::default();
    let start = [define("TEA", &usd(5), 6), define("CUP", &usd(6), 3), define("POT", &usd(4), 2)];
    world.send(&start);
    world.send(&[register("ANA", 25)]);
    let (mut messages, mut batch): (Vec<Incoming>, Vec<Incoming>) = (Vec::new(), Vec::new());
    for happening in happenings {
        match happening {
            Happening::Sent(sent) => {
                let message = incoming((messages.len() as u64 + 10, sent));
                messages.push(message.clone());
                batch.push(message);
            }
            Happening::Again(index) if !messages.is_empty() => {
                batch.push(messages[index % messages.len()].clone());
            }
            _ => {
                world.decide(&std::mem::take(&mut batch));
                happen(&mut world, happening);
            }
        }
        if batch.len() >= most {
            world.decide(&std::mem::take(&mut batch));
        }
        world.check_counts();
    }
    world.decide(&batch);
    world.settle();
    world.check_counts();
    world.tell();
    world.check_log();
    (world, messages)
}

fn happen(world: &mut World, happening: &Happening) {
    match happening {
        Happening::Charged(number) => {
            world.pay(order_id(*number), |order| match order::charged(order, Some("ch_1")) {
                AfterCharge::Append(event) => Some(event),
                AfterCharge::GiveBack => order::refunded(order, Some("ch_1"), Some("re_1")),
                AfterCharge::Known => None,
            });
        }
        Happening::Declined(number) => {
            world.pay(order_id(*number), |order| order::declined(order, "no"));
        }
        Happening::Refunded(number) => {
            world.pay(order_id(*number), |order| order::refunded(order, None, None));
        }
        Happening::Expired(number) => world.pay(order_id(*number), |order| {
            (order.status == order::OrderStatus::Validated).then_some(OrderEvent::Expired {})
        }),
        Happening::Settled => world.settle(),
        Happening::Told => world.tell(),
        Happening::Sent(_) | Happening::Again(_) => {}
    }
}

/// The log as text, with the world after it as far as the log does not tell it.
fn outcome(world: &World) -> (Vec<String>, &HashMap<CommandId, Past>, &HashMap<Uuid, Past>) {
    let log = world.log.iter().map(|event| serde_json::to_string(event).unwrap());
    (log.collect(), &world.decided, &world.keys)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_piece_and_no_credit_is_lost_or_given_twice(happenings in happenings()) {
        // Checked on the way.
        run(&happenings, usize::MAX);
    }

    #[test]
    fn batches_decide_as_single_commands_do(happenings in happenings(), most in 1..6_usize) {
        let (at_once, _) = run(&happenings, usize::MAX);
        let (split, _) = run(&happenings, most);
        prop_assert_eq!(outcome(&at_once), outcome(&split));
    }

    #[test]
    fn the_same_commands_have_the_same_outcome(happenings in happenings()) {
        let (first, _) = run(&happenings, 7);
        let (second, _) = run(&happenings, 7);
        prop_assert_eq!(outcome(&first), outcome(&second));
    }

    #[test]
    fn commands_that_come_again_change_nothing(happenings in happenings()) {
        let (mut world, mut messages) = run(&happenings, 7);
        let answers: Vec<_> = messages
            .iter()
            .map(|message| {
                let past = &world.decided[&message.received.command_id];
                past.refusal.as_ref().map(|refusal| refusal.reason)
            })
            .rev()
            .collect();
        let before = format!("{:?}", outcome(&world));
        messages.reverse();
        prop_assert_eq!(world.decide(&messages), answers);
        prop_assert_eq!(format!("{:?}", outcome(&world)), before);
        world.check_counts();
        world.check_log();
        prop_assert!(world.touched_products.is_empty() && world.touched_customers.is_empty());
    }
}
