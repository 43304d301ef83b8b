//! The promises that `millrace verify` checks, on a world at rest.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result, anyhow, ensure};
use millrace_shared::command::{Identified, Received};
use millrace_shared::customer::Customer;
use millrace_shared::ids::{CommandId, CustomerId, OrderId, ProductId};
use millrace_shared::log::Stored;
use millrace_shared::message::{Event, Subject};
use millrace_shared::money::Money;
use millrace_shared::order::{Order, OrderStatus, PaymentKind, PaymentStatus};
use millrace_shared::product::{Product, ProductEvent};
use millrace_shared::reason::Reason;
use millrace_shared::views::command_view;
use uuid::Uuid;

use super::gateway::Accounts;
use super::processes::World;
use super::tables::Tables;
use crate::book::Past;

/// What the log tells, history by history.
#[derive(Default)]
struct Told {
    orders: BTreeMap<OrderId, Order>,
    products: BTreeMap<ProductId, Product>,
    customers: BTreeMap<CustomerId, Customer>,
    /// Pieces that came in.
    received: BTreeMap<ProductId, i64>,
    /// How each command was answered; several, if something is wrong.
    answers: HashMap<CommandId, Vec<Option<Reason>>>,
}

/// What is wrong; a world in which nothing is keeps all promises.
pub fn problems(world: &World) -> Vec<String> {
    let told = match Told::read(world) {
        Ok(told) => told,
        Err(error) => return vec![format!("{error:#}")],
    };
    let tables = world.ledger.tables();
    let checks = [
        ("commands", commands(world, &tables, &told)),
        ("money", money(&world.gateway.book(), &told)),
        ("stock", stock(&tables, &told)),
        ("credit", credit(&tables, &told)),
        ("ends", ends(&told)),
    ];
    let mut problems = world.parked.clone();
    problems.extend(
        checks.into_iter().filter_map(|(name, check)| Some(format!("{name}: {:#}", check.err()?))),
    );
    problems
}

impl Told {
    fn read(world: &World) -> Result<Self> {
        let streams = world.log.streams();
        let mut told = Self::default();
        for (history, places) in streams.histories() {
            let events: Vec<Stored> =
                places.iter().map(|at| streams.stored(*at)).collect::<Result<_, _>>()?;
            told.read_history(&events).with_context(|| format!("the history {history}"))?;
        }
        Ok(told)
    }

    /// Every history is one line of versions 1..n of legal steps, whose states are the fold of what
    /// happened.
    fn read_history(&mut self, events: &[Stored]) -> Result<()> {
        for (Stored { event, .. }, version) in events.iter().zip(1..) {
            let Event { kind, .. } = event;
            ensure!(event.version == version, "at place {version} is v{} {kind}", event.version);
            let same = "the state is not the fold of what happened";
            match event.subject {
                Subject::Order => {
                    let id: OrderId = event.subject_id.parse()?;
                    let after = event.fold_order(self.orders.get(&id), id)?;
                    ensure!(after == event.state()?, "v{version} {kind}: {same}");
                    self.orders.insert(id, after);
                }
                Subject::Customer => {
                    let id: CustomerId = event.subject_id.parse()?;
                    let after = event.fold_customer(self.customers.get(&id))?;
                    ensure!(after == event.state()?, "v{version} {kind}: {same}");
                    self.customers.insert(id, after);
                }
                Subject::Product => {
                    let id: ProductId = event.subject_id.parse()?;
                    let after = event.fold_product(self.products.get(&id))?;
                    ensure!(after == event.state()?, "v{version} {kind}: {same}");
                    let came = match event.product_event()? {
                        ProductEvent::Defined { initial_stock, .. } if version == 1 => {
                            initial_stock
                        }
                        ProductEvent::Restocked { quantity } => quantity,
                        _ => 0,
                    };
                    *self.received.entry(id.clone()).or_default() += i64::from(came);
                    self.products.insert(id, after);
                }
                Subject::Command => ensure!(version == 1, "a command has two outcomes"),
            }
            if let Some(view) = command_view(event)? {
                self.answers.entry(view.command_id).or_default().push(view.reason);
            }
        }
        Ok(())
    }
}

/// Every command that was stored has one outcome, in the ledger and as an event; an idempotency key
/// has one effect.
fn commands(world: &World, tables: &Tables, told: &Told) -> Result<()> {
    let mut keys: HashMap<Uuid, Vec<(Identified, Past)>> = HashMap::new();
    let streams = world.log.streams();
    for (message, sequence) in streams.commands.messages.iter().zip(1..) {
        let header = |name: &str| message.headers.get(name).map(async_nats::HeaderValue::as_str);
        let kind = world.topology.command_kind(&message.subject);
        let stream = world.topology.commands_stream();
        let received = Received::read(kind, &message.payload, header, (&stream, sequence));
        let past = [received.command_id, received.fallback_id]
            .iter()
            .filter_map(|id| tables.decisions.get(id))
            .map(|(past, _)| past)
            .find(|past| past.fingerprint == received.fingerprint)
            .with_context(|| format!("message {sequence} ({kind}) has no decision"))?;
        if let Ok(Identified { key_id: Some(key), .. }) = &received.command
            && let Ok(command) = &received.command
        {
            keys.entry(*key).or_default().push((command.clone(), past.clone()));
        }
    }
    for (id, (past, _)) in &tables.decisions {
        let reason = past.refusal.as_ref().map(|refusal| refusal.reason);
        let answers = told.answers.get(id).map_or(&[][..], Vec::as_slice);
        ensure!(answers == [reason], "the ledger says {reason:?} to {id}, events {answers:?}");
    }
    let undecided = told.answers.keys().find(|id| !tables.decisions.contains_key(id));
    ensure!(undecided.is_none(), "an event answers {undecided:?}, which has no decision");
    for (key, uses) in keys {
        let mut firsts = tables.decisions.values().filter(|(_, id)| *id == Some(key));
        let (Some((first, _)), None) = (firsts.next(), firsts.next()) else {
            return Err(anyhow!("not one decision stands for the idempotency key {key}"));
        };
        let reason = |past: &Past| past.refusal.as_ref().map(|refusal| refusal.reason);
        for (command, past) in uses {
            let expected = if command.fingerprint == first.fingerprint {
                reason(first)
            } else {
                Some(Reason::IdempotencyKeyReused)
            };
            ensure!(
                reason(&past) == expected,
                "the key {key} answers {:?} to {}, not {expected:?}",
                reason(&past),
                past.command_id
            );
        }
    }
    Ok(())
}

/// One charge for each order that was paid by card, one refund for each that was refunded, no other.
fn money(book: &Accounts, told: &Told) -> Result<()> {
    let mut charges: BTreeMap<&str, Vec<Money>> = BTreeMap::new();
    for (key, amount) in &book.taken {
        charges.entry(key.as_str()).or_default().push(*amount);
    }
    let mut refunds: BTreeMap<&str, Vec<Money>> = BTreeMap::new();
    for (charge_id, amount) in book.refunds.values() {
        refunds.entry(charge_id.trim_start_matches("ch-")).or_default().push(*amount);
    }
    for (id, order) in &told.orders {
        let (key, status) = (format!("charge-{id}"), order.status.as_str());
        let taken = charges.remove(key.as_str()).unwrap_or_default();
        let given_back = refunds.remove(key.as_str()).unwrap_or_default();
        let once: Vec<Money> = order.total.into_iter().collect();
        let card = order.payment.method == PaymentKind::Card;
        let (paid, back) = match order.payment.status {
            PaymentStatus::Captured if card => (once, Vec::new()),
            PaymentStatus::Refunded if card => (once.clone(), once),
            _ => (Vec::new(), Vec::new()),
        };
        ensure!(taken == paid, "order {id} is {status} and was charged {taken:?}");
        ensure!(given_back == back, "order {id} is {status} and was refunded {given_back:?}");
    }
    ensure!(charges.is_empty(), "charges without an order: {charges:?}");
    ensure!(refunds.is_empty(), "refunds without an order: {refunds:?}");
    Ok(())
}

/// Stock adds up, and is held and sold for exactly the orders that say so.
fn stock(tables: &Tables, told: &Told) -> Result<()> {
    let mut pieces: BTreeMap<&ProductId, (i64, i64)> = BTreeMap::new();
    for order in told.orders.values() {
        for line in &order.lines {
            let (reserved, sold) = pieces.entry(&line.product_id).or_default();
            match order.status {
                _ if order.shipment.is_some() => *sold += i64::from(line.quantity),
                OrderStatus::Validated
                | OrderStatus::PaymentUnknown
                | OrderStatus::Paid
                | OrderStatus::Refunding => *reserved += i64::from(line.quantity),
                _ => {}
            }
        }
    }
    for (id, (product, _)) in &tables.products {
        let stock = product.stock;
        let received = told.received.get(id).copied().unwrap_or_default();
        let (reserved, sold) = pieces.get(id).copied().unwrap_or_default();
        let sum = stock.available + stock.reserved + stock.sold;
        ensure!(stock.available >= 0, "{id} is oversold: {stock:?}");
        ensure!(sum == received, "{id}: {stock:?} are not the {received} that came in");
        ensure!(stock.reserved == reserved, "{id}: {stock:?}, but orders hold {reserved}");
        ensure!(stock.sold == sold, "{id}: {stock:?}, but orders have taken {sold}");
        ensure!(told.products.get(id) == Some(product), "{id}: its last event tells otherwise");
    }
    ensure!(told.products.len() == tables.products.len(), "a product is not in the ledger");
    Ok(())
}

/// The credit in use is that of the open account orders.
fn credit(tables: &Tables, told: &Told) -> Result<()> {
    let ended = [
        OrderStatus::Rejected,
        OrderStatus::Cancelled,
        OrderStatus::Expired,
        OrderStatus::Refunded,
    ];
    for (id, (customer, _)) in &tables.customers {
        let used = customer.credit_used;
        let open: i64 = told
            .orders
            .values()
            .filter(|order| order.customer_id == *id && !ended.contains(&order.status))
            .filter(|order| order.payment.method == PaymentKind::Account)
            .filter_map(|order| Some(order.total?.amount))
            .sum();
        ensure!(used == open, "{id}: {used} are in use, open orders sum up to {open}");
        ensure!(told.customers.get(id) == Some(customer), "{id}: its last event tells otherwise");
    }
    ensure!(told.customers.len() == tables.customers.len(), "a customer is not in the ledger");
    Ok(())
}

/// No order waits for anything: not for its payment, whose time is over, nor for its refund.
fn ends(told: &Told) -> Result<()> {
    for (id, order) in &told.orders {
        let waits = order.status.awaits_payment() || order.status == OrderStatus::Refunding;
        ensure!(!waits, "order {id} is {} for ever", order.status.as_str());
    }
    Ok(())
}
