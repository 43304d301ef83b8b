//! Decisions about a batch of commands, pure: what the ledger held goes in, rulings come out.
//! Commands of one batch are decided one after another; each sees what those before it did.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::{DateTime, Utc};
use millrace_shared::command::{Command, Identified, PaymentMethod, PlaceOrder};
use millrace_shared::customer::{Customer, CustomerEvent};
use millrace_shared::ids::{CommandId, CustomerId, OrderId, ProductId};
use millrace_shared::message::{About, Cause, CommandOutcome, Event, Subject};
use millrace_shared::order::{self, Order, OrderEvent, Stamp};
use millrace_shared::product::{Product, ProductEvent};
use millrace_shared::reason::{Reason, Refusal};
use uuid::Uuid;

mod ruling;

pub use ruling::{Decision, Incoming, Known, Past, Placed, Ruling};

/// What the ledger and the log held about a batch.
#[derive(Debug, Default)]
pub struct Book {
    /// Customers that the batch names, as far as they exist.
    pub customers: HashMap<CustomerId, Customer>,
    /// Products that the batch names, as far as they exist.
    pub products: HashMap<ProductId, Product>,
    /// Orders that the batch continues.
    pub orders: HashMap<OrderId, Known>,
    /// Orders that the batch places or continues and that were placed before.
    pub placed: HashSet<OrderId>,
    /// How long an order has to be paid.
    pub time_to_pay: Duration,
    /// The stream sequences of commands before which others may be undecided: what such a command
    /// names and is not there may be on its way.
    pub early: HashSet<u64>,
    /// Decisions by command.
    pub decided: HashMap<CommandId, Past>,
    /// Decisions by idempotency key.
    pub keys: HashMap<Uuid, Past>,
    /// Products whose stock has changed since their last event.
    pub touched_products: BTreeSet<ProductId>,
    /// Customers whose credit has changed since their last event.
    pub touched_customers: BTreeSet<CustomerId>,
    /// Products that the batch has changed in any way.
    pub changed_products: BTreeSet<ProductId>,
    /// Customers that the batch has changed in any way.
    pub changed_customers: BTreeSet<CustomerId>,
}

impl Book {
    /// Tells what has changed since it was told last.
    pub fn tell(&mut self, now: DateTime<Utc>) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        for id in std::mem::take(&mut self.touched_products) {
            let product = self.products.get_mut(&id).context("a lost product")?;
            events.push(tell_stock(product, now)?);
            self.changed_products.insert(id);
        }
        for id in std::mem::take(&mut self.touched_customers) {
            let customer = self.customers.get_mut(&id).context("a lost customer")?;
            events.push(tell_credit(customer, now)?);
            self.changed_customers.insert(id);
        }
        Ok(events)
    }

    /// Decides one command at the time `now`.
    pub fn rule(&mut self, incoming: &Incoming, now: DateTime<Utc>) -> Result<Ruling> {
        let received = &incoming.received;
        if let Some(past) = self.decided.get(&received.command_id) {
            if past.fingerprint == received.fingerprint {
                return Ok(Ruling::Repeated(received.command_id));
            }
            return self.refuse_reused_id(incoming, now);
        }
        let command = match &received.command {
            Ok(command) => command,
            Err(malformed) => {
                let refusal = Refusal::new(Reason::MalformedCommand, malformed.to_string());
                return self.touching_nothing(incoming, None, None, Some(refusal), now);
            }
        };
        if let Some(key_id) = command.key_id
            && let Some(past) = self.keys.get(&key_id)
        {
            let (about, refusal) = if past.fingerprint == command.fingerprint {
                // The same request under another command id: the same answer.
                (past.about.clone(), past.refusal.clone())
            } else {
                let detail = "the idempotency key was used before, with another body";
                (about(command), Some(Refusal::new(Reason::IdempotencyKeyReused, detail)))
            };
            return self.touching_nothing(incoming, None, Some(about), refusal, now);
        }
        match self.carry_out(command, incoming, now)? {
            Outcome::Events(events, placed) => {
                let refusal = events.last().map(refusal_of).transpose()?.flatten();
                Ok(self.decided(incoming, command.key_id, about(command), refusal, events, placed))
            }
            Outcome::Refused(refusal) => self.touching_nothing(
                incoming,
                command.key_id,
                Some(about(command)),
                Some(refusal),
                now,
            ),
            Outcome::NotYet => Ok(Ruling::NotYet),
        }
    }

    fn carry_out(
        &mut self,
        command: &Identified,
        incoming: &Incoming,
        now: DateTime<Utc>,
    ) -> Result<Outcome> {
        let cause = incoming.cause();
        match &command.command {
            Command::PlaceOrder(place) => self.place(place, incoming, now),
            Command::CancelOrder(step) => self.step(step.order_id, incoming, now, |order| {
                order::cancel(order, step.reason.as_deref())
            }),
            Command::ShipOrder(ship) => self
                .step(ship.order_id, incoming, now, |order| order::ship(order, &ship.shipment())),
            Command::DeliverOrder(deliver) => {
                self.step(deliver.order_id, incoming, now, order::deliver)
            }
            Command::RefundOrder(step) => self.step(step.order_id, incoming, now, |order| {
                order::refund(order, step.reason.as_deref())
            }),
            Command::RegisterCustomer(register) => {
                let id = register.customer_id.clone().context("a customer without an id")?;
                if self.customers.contains_key(&id) {
                    let detail = format!("the customer {id} is registered already");
                    return Ok(refused(Reason::AlreadyExists, detail));
                }
                let event = CustomerEvent::Registered {
                    name: register.name.clone(),
                    credit_limit: register.credit_limit,
                };
                self.change_customer(&id, &event, &cause, now)
            }
            Command::SetCreditLimit(set) => {
                let Some(customer) = self.customers.get(&set.customer_id) else {
                    let detail = format!("there is no customer {}", set.customer_id);
                    return Ok(self.missing(incoming, Reason::UnknownCustomer, detail));
                };
                match customer.set_credit_limit(set.credit_limit) {
                    Ok(event) => self.change_customer(&set.customer_id, &event, &cause, now),
                    Err(refusal) => Ok(Outcome::Refused(refusal)),
                }
            }
            Command::DefineProduct(define) => {
                let new = !self.products.contains_key(&define.product_id);
                let event = ProductEvent::Defined {
                    name: define.name.clone(),
                    brand: define.brand.clone(),
                    category: define.category.clone(),
                    price: define.price,
                    initial_stock: define.initial_stock.filter(|_| new).unwrap_or(0),
                };
                self.change_product(&define.product_id, &event, &cause, now)
            }
            Command::RestockProduct(restock) => {
                self.step_product(&restock.product_id, incoming, now, |product| {
                    product.restock(restock.quantity)
                })
            }
            Command::RetireProduct(retire) => {
                self.step_product(&retire.product_id, incoming, now, |_| {
                    Ok(ProductEvent::Retired {})
                })
            }
        }
    }

    fn place(
        &mut self,
        command: &PlaceOrder,
        incoming: &Incoming,
        now: DateTime<Utc>,
    ) -> Result<Outcome> {
        let order_id = command.order_id.context("a placement without an order id")?;
        let complete = self.customers.contains_key(&command.customer_id)
            && command.lines.iter().all(|line| self.products.contains_key(&line.product_id));
        if !complete && self.early.contains(&incoming.sequence) {
            return Ok(Outcome::NotYet);
        }
        if !self.placed.insert(order_id) {
            let detail = format!("the order {order_id} was placed by another command");
            return Ok(refused(Reason::AlreadyExists, detail));
        }
        let customer = self.customers.get(&command.customer_id);
        let event = order::place(command, incoming.at, customer, &self.products);
        let stamp = Stamp { version: 1, at: now, causation: incoming.received.command_id.0 };
        let mut order = Order::apply(None, order_id, stamp, &event)?;
        let mut placed = Placed {
            order_id,
            customer_id: command.customer_id.clone(),
            pieces: BTreeMap::new(),
            credit: 0,
            pay_by: None,
        };
        if let OrderEvent::Validated(placement) = &event {
            placed.pay_by = Some(now + self.time_to_pay);
            for line in &command.lines {
                let product = self.products.get_mut(&line.product_id).context("a lost product")?;
                product.reserve(line.quantity);
                self.touched_products.insert(line.product_id.clone());
                self.changed_products.insert(line.product_id.clone());
                placed.pieces.insert(line.product_id.clone(), line.quantity);
            }
            if let PaymentMethod::Account {} = command.payment {
                placed.credit = placement.total.context("a validated order has a total")?.amount;
                let customer =
                    self.customers.get_mut(&command.customer_id).context("a lost customer")?;
                customer.credit_used += placed.credit;
                self.touched_customers.insert(command.customer_id.clone());
                self.changed_customers.insert(command.customer_id.clone());
            }
        }
        let mut events = vec![Event::order(&event, &order, &incoming.cause())?];
        if let (OrderEvent::Validated(_), PaymentMethod::Account {}) = (&event, &command.payment) {
            // The credit that it has just reserved is its payment.
            let cause = events[0].as_cause();
            let paid = OrderEvent::Paid { charge_id: None };
            let stamp = Stamp { version: 2, at: now, causation: cause.causation };
            order = Order::apply(Some(&order), order_id, stamp, &paid)?;
            events.push(Event::order(&paid, &order, &cause)?);
        }
        self.orders.insert(order_id, Known::Here(Box::new(order)));
        Ok(Outcome::Events(events, Some(placed)))
    }

    fn step(
        &mut self,
        order_id: OrderId,
        incoming: &Incoming,
        now: DateTime<Utc>,
        decide: impl FnOnce(&Order) -> Result<OrderEvent, Refusal>,
    ) -> Result<Outcome> {
        let cause = &incoming.cause();
        let customer = incoming.received.on_behalf_of.as_ref();
        let order = match self.orders.get_mut(&order_id) {
            Some(Known::Here(order)) if customer.is_none_or(|it| *it == order.customer_id) => order,
            // Somebody else's order is refused in the words, and after the wait, of none at all.
            Some(Known::Here(_) | Known::Nowhere) => {
                let detail = format!("there is no order {order_id}");
                return Ok(self.missing(incoming, Reason::UnknownOrder, detail));
            }
            Some(Known::NotYet) | None => return Ok(Outcome::NotYet),
        };
        let event = match decide(order) {
            Ok(event) => event,
            Err(refusal) => return Ok(Outcome::Refused(refusal)),
        };
        let stamp = Stamp { version: order.version + 1, at: now, causation: cause.causation };
        **order = Order::apply(Some(order), order_id, stamp, &event)?;
        Ok(Outcome::Events(vec![Event::order(&event, order, cause)?], None))
    }

    /// What a command names is not there: not yet, or not at all.
    fn missing(&self, incoming: &Incoming, reason: Reason, detail: String) -> Outcome {
        if self.early.contains(&incoming.sequence) {
            Outcome::NotYet
        } else {
            refused(reason, detail)
        }
    }

    fn change_customer(
        &mut self,
        id: &CustomerId,
        event: &CustomerEvent,
        cause: &Cause,
        now: DateTime<Utc>,
    ) -> Result<Outcome> {
        let mut events = Vec::new();
        if self.touched_customers.remove(id)
            && let Some(customer) = self.customers.get_mut(id)
        {
            events.push(tell_credit(customer, now)?);
        }
        let after =
            Customer::apply(self.customers.get(id), id, event).context("a lost customer")?;
        events.push(Event::customer(event, &after, now, cause)?);
        self.customers.insert(id.clone(), after);
        self.changed_customers.insert(id.clone());
        Ok(Outcome::Events(events, None))
    }

    fn step_product(
        &mut self,
        id: &ProductId,
        incoming: &Incoming,
        now: DateTime<Utc>,
        decide: impl FnOnce(&Product) -> Result<ProductEvent, Refusal>,
    ) -> Result<Outcome> {
        let Some(product) = self.products.get(id) else {
            let detail = format!("there is no product {id}");
            return Ok(self.missing(incoming, Reason::UnknownProduct, detail));
        };
        match decide(product) {
            Ok(event) => self.change_product(id, &event, &incoming.cause(), now),
            Err(refusal) => Ok(Outcome::Refused(refusal)),
        }
    }

    fn change_product(
        &mut self,
        id: &ProductId,
        event: &ProductEvent,
        cause: &Cause,
        now: DateTime<Utc>,
    ) -> Result<Outcome> {
        let mut events = Vec::new();
        if self.touched_products.remove(id)
            && let Some(product) = self.products.get_mut(id)
        {
            events.push(tell_stock(product, now)?);
        }
        let after = Product::apply(self.products.get(id), id, event).context("a lost product")?;
        events.push(Event::product(event, &after, now, cause)?);
        self.products.insert(id.clone(), after);
        self.changed_products.insert(id.clone());
        Ok(Outcome::Events(events, None))
    }

    /// Another body under a command id that has been decided: its outcome is kept under the id that
    /// follows from its place in the stream, which its sender got in the publish ack.
    fn refuse_reused_id(&mut self, incoming: &Incoming, now: DateTime<Utc>) -> Result<Ruling> {
        let mut own = incoming.clone();
        own.received.command_id = incoming.received.fallback_id;
        if own.received.command_id == incoming.received.command_id {
            anyhow::bail!(
                "the command id {} is of another message: was the stream made anew?",
                own.received.command_id
            );
        }
        if self.decided.contains_key(&own.received.command_id) {
            return Ok(Ruling::Repeated(own.received.command_id));
        }
        let detail = format!(
            "the command id {} was used before, with another body",
            incoming.received.command_id
        );
        let refusal = Refusal::new(Reason::CommandIdReused, detail);
        self.touching_nothing(&own, None, None, Some(refusal), now)
    }

    fn touching_nothing(
        &mut self,
        incoming: &Incoming,
        key_id: Option<Uuid>,
        about: Option<About>,
        refusal: Option<Refusal>,
        now: DateTime<Utc>,
    ) -> Result<Ruling> {
        let command_id = incoming.received.command_id;
        let outcome = CommandOutcome {
            refusal: refusal.clone(),
            about: about.clone(),
            on_behalf_of: incoming.received.on_behalf_of.clone(),
        };
        let event = Event::command(command_id, &outcome, now, &incoming.cause())?;
        let own = About { subject: Subject::Command, id: command_id.to_string() };
        Ok(self.decided(incoming, key_id, about.unwrap_or(own), refusal, vec![event], None))
    }

    fn decided(
        &mut self,
        incoming: &Incoming,
        key_id: Option<Uuid>,
        about: About,
        refusal: Option<Refusal>,
        events: Vec<Event>,
        placed: Option<Placed>,
    ) -> Ruling {
        let past = Past {
            command_id: incoming.received.command_id,
            fingerprint: incoming.received.fingerprint,
            about,
            refusal,
        };
        self.decided.insert(past.command_id, past.clone());
        if let Some(key_id) = key_id {
            self.keys.insert(key_id, past.clone());
        }
        let actor = incoming.received.actor.clone();
        Ruling::Decided(Box::new(Decision { past, key_id, events, placed, actor }))
    }
}

/// The event that tells a product's stock, after orders have changed it. It sums up all changes
/// since the last event, so it has no single cause.
pub fn tell_stock(product: &mut Product, now: DateTime<Utc>) -> Result<Event> {
    product.version += 1;
    let event = ProductEvent::StockChanged { stock: product.stock };
    Ok(Event::product(&event, product, now, &NO_CAUSE)?)
}

/// The event that tells a customer's credit in use; as [`tell_stock`].
pub fn tell_credit(customer: &mut Customer, now: DateTime<Utc>) -> Result<Event> {
    customer.version += 1;
    let event = CustomerEvent::CreditChanged { credit_used: customer.credit_used };
    Ok(Event::customer(&event, customer, now, &NO_CAUSE)?)
}

const NO_CAUSE: Cause =
    Cause { causation: Uuid::nil(), correlation: Uuid::nil(), traceparent: None };

enum Outcome {
    Events(Vec<Event>, Option<Placed>),
    Refused(Refusal),
    NotYet,
}

fn refused(reason: Reason, detail: String) -> Outcome {
    Outcome::Refused(Refusal { reason, detail })
}

/// A placement that was rejected is a refusal of its command, too.
fn refusal_of(event: &Event) -> Result<Option<Refusal>> {
    if event.subject != Subject::Order || event.kind != "rejected" {
        return Ok(None);
    }
    let order: Order = event.state()?;
    Ok(order.reason.map(|reason| Refusal { reason, detail: order.detail.unwrap_or_default() }))
}

fn about(command: &Identified) -> About {
    let (subject, id) = command.command.target();
    About { subject, id }
}

#[cfg(test)]
mod tests;
