//! The ledger: what validation needs to decide, and what it has decided. Each method is one
//! transaction; what is to be decided within it is handed in.

mod load;
mod outbox;
mod store;

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::time::Duration;

use anyhow::Result;
use chrono::{DateTime, Utc};
use millrace_shared::command::Command;
use millrace_shared::crash;
use millrace_shared::ids::{CommandId, CustomerId, OrderId, ProductId};
use millrace_shared::message::{Event, Subject};
use millrace_shared::order::{Order, OrderStatus};
use millrace_shared::trace::step;
use sqlx::{PgPool, Postgres, Transaction};
use uuid::Uuid;

pub use self::outbox::PostgresOutbox;
use crate::book::{Book, Decision, Incoming};
use crate::journal;
use crate::reservations::{Holding, Settlement};

/// The ledger, and the journal as far as validation reads it.
pub trait Ledger: Send + Sync + 'static {
    /// The outbox, for who alone may publish it.
    type Outbox: Outbox;

    /// Loads what `batch` needs, except for the orders that it continues, which are in the log; has
    /// `rule` decide; stores the decisions and what they changed.
    fn decide(
        &self,
        batch: &[&Incoming],
        rule: impl FnOnce(&mut Book) -> Result<Vec<Decision>> + Send,
    ) -> impl Future<Output = Result<()>> + Send;

    /// As [`Ledger::decide`], for commands whose event the log has refused: takes their decisions
    /// back first. Another replica may have done so, or may have finished, meanwhile: then nothing is
    /// taken back. Returns what stands in the outbox for each of those commands.
    fn decide_again(
        &self,
        refused: &[(&Incoming, &Event)],
        rule: impl FnOnce(&mut Book) -> Result<Vec<Decision>> + Send,
    ) -> impl Future<Output = Result<Vec<Vec<Event>>>> + Send;

    /// The order and command events of commands that were decided before, as far as they are not
    /// known to be in the log.
    fn unpublished(
        &self,
        commands: &[CommandId],
    ) -> impl Future<Output = Result<HashMap<CommandId, Vec<Event>>>> + Send;

    /// Forgets the order and command events of commands, now that they are in the log. Not durable
    /// at once: what is forgotten by a crash is published again, and refused by the log.
    fn published(&self, commands: &[CommandId]) -> impl Future<Output = Result<()>> + Send;

    /// Has `settle` look at what the orders hold, and stores what it changes.
    fn settle(
        &self,
        orders: &[OrderId],
        settle: impl FnOnce(&[Holding]) -> Settlement + Send,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Orders as the journal has them; those that it does not have are left out.
    fn journal_orders(
        &self,
        ids: &[OrderId],
    ) -> impl Future<Output = Result<HashMap<OrderId, Order>>> + Send;

    /// Up to `most` orders that the journal shows to wait for their payment although their time is
    /// over, with the times at which they were placed, in that order. The journal is behind the log.
    fn overdue(
        &self,
        asked: &Waiting,
        most: usize,
    ) -> impl Future<Output = Result<Vec<(DateTime<Utc>, OrderId)>>> + Send;

    /// The version of the last event of a subject in the journal; 0 if there is none.
    fn journal_version(
        &self,
        subject: Subject,
        id: &str,
    ) -> impl Future<Output = Result<u64>> + Send;

    /// The outbox, if nobody else has it. It is free again when it is dropped.
    fn outbox(&self) -> impl Future<Output = Result<Option<Self::Outbox>>> + Send;
}

/// Which overdue orders are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// How they wait.
    pub status: OrderStatus,
    /// The time until which they were to be paid, at the latest.
    pub until: DateTime<Utc>,
    /// How long an order has to be paid: those that were placed later are not even looked at.
    pub time_to_pay: Duration,
    /// The last one of the page before.
    pub after: Option<(DateTime<Utc>, OrderId)>,
}

/// How far a turn through the products and customers has come that have changed: the next are those
/// after these ids. Nothing, where all of the kind have had their turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// After which product.
    pub products: Option<String>,
    /// After which customer.
    pub customers: Option<String>,
}

impl Turn {
    /// A turn that begins.
    #[expect(clippy::new_without_default, reason = "nothing is not what it begins with")]
    pub fn new() -> Self {
        Self { products: Some(String::new()), customers: Some(String::new()) }
    }

    /// Whether all have had their turn.
    pub fn is_over(&self) -> bool {
        self.products.is_none() && self.customers.is_none()
    }

    /// What comes after these, of which there are as many as were asked for, if there are more.
    pub fn after(ids: &[String], most: i64) -> Option<String> {
        ids.last().filter(|_| i64::try_from(ids.len()).is_ok_and(|count| count >= most)).cloned()
    }
}

/// The outbox in the hands of the relay.
pub trait Outbox: Send {
    /// Has `tell` make events of what has changed since it was told last, of the next `most` products
    /// and customers at the most, and puts these events into the outbox; returns whether there was
    /// anything.
    fn tell(
        &mut self,
        turn: &mut Turn,
        most: i64,
        tell: impl FnOnce(&mut Book) -> Result<Vec<Event>> + Send,
    ) -> impl Future<Output = Result<bool>> + Send;

    /// The first events of the outbox, at most `most`, by their place in it: those of products and
    /// customers, and others only when they have lain for some seconds.
    fn waiting(&mut self, most: i64) -> impl Future<Output = Result<Vec<(i64, Event)>>> + Send;

    /// Forgets events, by their places, now that they are in the log.
    fn remove(&mut self, places: &[i64]) -> impl Future<Output = Result<()>> + Send;
}

/// Why a decision was not stored: the next delivery finds the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another replica decides the same command, or one with the same key, at the same time")]
pub struct Raced;

/// What has to be loaded for a batch of commands.
#[derive(Debug, Default)]
pub struct Needs {
    /// Products, to be locked.
    pub products: BTreeSet<ProductId>,
    /// Customers, to be locked.
    pub customers: BTreeSet<CustomerId>,
    /// Orders that are placed or continued: were they placed before?
    pub orders: BTreeSet<OrderId>,
    /// Idempotency keys: were they used before?
    pub keys: Vec<Uuid>,
    /// Commands: were they decided before?
    pub commands: Vec<CommandId>,
    /// Whether products or customers may be created: what is not there yet has no row to lock.
    pub creates: bool,
}

impl Needs {
    /// What `batch` needs.
    pub fn of(batch: &[&Incoming]) -> Self {
        let mut needs = Self::default();
        for incoming in batch {
            needs.commands.push(incoming.received.command_id);
            needs.commands.push(incoming.received.fallback_id);
            needs.orders.extend(incoming.continues());
            let Ok(command) = &incoming.received.command else { continue };
            needs.keys.extend(command.key_id);
            match &command.command {
                Command::PlaceOrder(place) => {
                    let products = place.lines.iter().map(|line| line.product_id.clone());
                    needs.products.extend(products);
                    needs.customers.insert(place.customer_id.clone());
                    needs.orders.extend(place.order_id);
                }
                Command::RegisterCustomer(register) => {
                    needs.creates = true;
                    needs.customers.extend(register.customer_id.clone());
                }
                Command::SetCreditLimit(set) => {
                    needs.customers.insert(set.customer_id.clone());
                }
                Command::DefineProduct(define) => {
                    needs.creates = true;
                    needs.products.insert(define.product_id.clone());
                }
                Command::RestockProduct(restock) => {
                    needs.products.insert(restock.product_id.clone());
                }
                Command::RetireProduct(retire) => {
                    needs.products.insert(retire.product_id.clone());
                }
                Command::CancelOrder(_)
                | Command::ShipOrder(_)
                | Command::DeliverOrder(_)
                | Command::RefundOrder(_) => {}
            }
        }
        needs
    }
}

/// The ledger in PostgreSQL. A transaction locks its rows in one order (products, then customers,
/// each by id), so that replicas wait for each other and never deadlock.
#[derive(Debug, Clone)]
pub struct PostgresLedger {
    pool: PgPool,
}

impl PostgresLedger {
    /// The ledger in `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    async fn rule(
        mut tx: Transaction<'static, Postgres>,
        batch: &[&Incoming],
        rule: impl FnOnce(&mut Book) -> Result<Vec<Decision>> + Send,
    ) -> Result<()> {
        let mut book = load::book(&mut tx, &Needs::of(batch)).await?;
        let decisions = rule(&mut book)?;
        store::book(&mut tx, &book).await?;
        store::decisions(&mut tx, &decisions).await?;
        crash::point("validation.before-commit");
        Ok(step("commit", tx.commit()).await?)
    }
}

impl Ledger for PostgresLedger {
    type Outbox = PostgresOutbox;

    async fn decide(
        &self,
        batch: &[&Incoming],
        rule: impl FnOnce(&mut Book) -> Result<Vec<Decision>> + Send,
    ) -> Result<()> {
        Self::rule(self.pool.begin().await?, batch, rule).await
    }

    async fn decide_again(
        &self,
        refused: &[(&Incoming, &Event)],
        rule: impl FnOnce(&mut Book) -> Result<Vec<Decision>> + Send,
    ) -> Result<Vec<Vec<Event>>> {
        let mut tx = self.pool.begin().await?;
        let mut standing = Vec::with_capacity(refused.len());
        for (incoming, event) in refused {
            standing.push(store::withdraw(&mut tx, incoming.received.command_id, event).await?);
        }
        let batch: Vec<&Incoming> = refused.iter().map(|(incoming, _)| *incoming).collect();
        Self::rule(tx, &batch, rule).await?;
        Ok(standing)
    }

    async fn unpublished(&self, commands: &[CommandId]) -> Result<HashMap<CommandId, Vec<Event>>> {
        outbox::of_commands(&self.pool, commands).await
    }

    async fn published(&self, commands: &[CommandId]) -> Result<()> {
        outbox::clear(&self.pool, commands).await
    }

    async fn settle(
        &self,
        orders: &[OrderId],
        settle: impl FnOnce(&[Holding]) -> Settlement + Send,
    ) -> Result<()> {
        let mut tx = self.pool.begin().await?;
        let settlement = settle(&load::holdings(&mut tx, orders).await?);
        let [products, customers] =
            [load::texts(settlement.pieces.keys()), load::texts(settlement.credit.keys())];
        let mut book = load::lock(&mut tx, products, customers).await?;
        settlement.apply(&mut book);
        store::book(&mut tx, &book).await?;
        store::settlement(&mut tx, &settlement).await?;
        crash::point("reservations.before-commit");
        Ok(tx.commit().await?)
    }

    async fn journal_orders(&self, ids: &[OrderId]) -> Result<HashMap<OrderId, Order>> {
        journal::orders(&self.pool, ids).await
    }

    async fn overdue(&self, asked: &Waiting, most: usize) -> Result<Vec<(DateTime<Utc>, OrderId)>> {
        load::overdue(&self.pool, asked, most).await
    }

    async fn journal_version(&self, subject: Subject, id: &str) -> Result<u64> {
        Ok(journal::head(&self.pool, subject, id).await?.map_or(0, |head| head.version))
    }

    async fn outbox(&self) -> Result<Option<PostgresOutbox>> {
        PostgresOutbox::lock(&self.pool).await
    }
}
