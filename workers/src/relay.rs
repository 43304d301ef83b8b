//! The relay publishes what the ledger holds for the log: the events of products and customers, in
//! the order in which they were decided, and (as the sweeper) any other event that was committed and
//! has not been published for some seconds. One replica at a time does it, under a PostgreSQL
//! advisory lock; when it dies the lock is free and another takes over.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::join_all;
use millrace_shared::crash;
use millrace_shared::log::{self, AppendError, Entry, Log, Stored};
use millrace_shared::message::{Event, Subject, now};
use millrace_shared::topology::Topology;
use sqlx::{PgConnection, PgPool};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::book::{Book, tell_credit, tell_stock};
use crate::{journal, ledger};

/// The advisory lock of the one relay of a database ("millrace" in ASCII).
const LOCK: i64 = 0x6d69_6c6c_7261_6365;
/// How often it looks for what other replicas have committed. Its own process wakes it at once.
const TICK: Duration = Duration::from_millis(50);
/// How often a replica asks whether the lock is free.
const STANDBY: Duration = Duration::from_secs(1);
/// Events published in a round.
const ROUND: i64 = 500;
/// Subjects whose last sequence is remembered; then memory starts anew.
const REMEMBERED: usize = 100_000;
/// How long an append is tried in a round.
const PATIENCE: Duration = Duration::from_secs(10);

/// The relay of one database.
#[derive(Debug)]
pub struct Relay {
    pool: PgPool,
    log: Log,
    topology: Topology,
    wake: Arc<Notify>,
    time_to_pay: Duration,
}

type Heads = HashMap<(Subject, String), u64>;

impl Relay {
    /// A relay from the outbox in `pool` to `log` (EVENTS); `wake` tells it that there is work.
    /// Orders that it publishes have `time_to_pay` to be paid.
    pub fn new(
        pool: PgPool,
        log: Log,
        topology: Topology,
        wake: Arc<Notify>,
        time_to_pay: Duration,
    ) -> Self {
        Self { pool, log, topology, wake, time_to_pay }
    }

    /// Runs until the shutdown.
    pub async fn run(&self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            if let Err(error) = self.lead(&shutdown).await {
                tracing::warn!("the relay starts anew: {error:#}");
            }
            tokio::select! {
                () = tokio::time::sleep(STANDBY) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Publishes for as long as this replica holds the lock.
    async fn lead(&self, shutdown: &CancellationToken) -> Result<()> {
        // The lock belongs to this connection and ends with it.
        let mut connection = self.pool.acquire().await?.detach();
        let ours: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut connection)
            .await?;
        let mut heads = Heads::new();
        while ours && !shutdown.is_cancelled() {
            if heads.len() > REMEMBERED {
                heads.clear();
            }
            self.tell_changes(&mut connection).await?;
            if !self.publish(&mut connection, &mut heads).await? {
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(TICK) => {}
                    () = shutdown.cancelled() => {}
                }
            }
        }
        Ok(())
    }

    /// Turns changed stock and credit into events: one for a product or customer, however many
    /// orders have changed it since the last.
    async fn tell_changes(&self, connection: &mut PgConnection) -> Result<()> {
        let products: Vec<String> = sqlx::query_scalar(
            "select product_id from ledger.products where touched order by product_id limit $1",
        )
        .bind(ROUND)
        .fetch_all(&mut *connection)
        .await?;
        let customers: Vec<String> = sqlx::query_scalar(
            "select customer_id from ledger.customers where touched order by customer_id limit $1",
        )
        .bind(ROUND)
        .fetch_all(&mut *connection)
        .await?;
        if products.is_empty() && customers.is_empty() {
            return Ok(());
        }
        let now = now();
        let mut tx = sqlx::Connection::begin(connection).await?;
        let mut book = Book::default();
        let mut events = Vec::new();
        for (mut product, touched) in ledger::lock_products(&mut tx, &products).await? {
            if touched {
                events.push(tell_stock(&mut product, now)?);
                book.changed_products.insert(product.product_id.clone());
                book.products.insert(product.product_id.clone(), product);
            }
        }
        for (mut customer, touched) in ledger::lock_customers(&mut tx, &customers).await? {
            if touched {
                events.push(tell_credit(&mut customer, now)?);
                book.changed_customers.insert(customer.customer_id.clone());
                book.customers.insert(customer.customer_id.clone(), customer);
            }
        }
        ledger::store(&mut tx, &book, &[], now).await?;
        let events: Vec<_> = events.iter().map(|event| (None, event)).collect();
        ledger::put_outbox(&mut tx, &events).await?;
        tx.commit().await?;
        crash::point("relay.told");
        Ok(())
    }

    /// Publishes a round; tells whether there may be more.
    async fn publish(&self, connection: &mut PgConnection, heads: &mut Heads) -> Result<bool> {
        let rows: Vec<(i64, String)> = sqlx::query_as(
            "select id, event from ledger.outbox
             where subject in ('product', 'customer')
                or created_at < now() - interval '5 seconds'
             order by id limit $1",
        )
        .bind(ROUND)
        .fetch_all(&mut *connection)
        .await?;
        let full = rows.len() == usize::try_from(ROUND).unwrap_or(0);
        // Events of one subject go one after another; subjects go together.
        let mut subjects: HashMap<(Subject, String), Vec<(i64, Event)>> = HashMap::new();
        for (id, text) in rows {
            let event = Event::decode(text.as_bytes())?;
            let subject = (event.subject, event.subject_id.clone());
            subjects.entry(subject).or_default().push((id, event));
        }
        let appends = subjects.into_iter().map(async |(subject, events)| {
            let head = heads.get(&subject).copied();
            let result = self.publish_subject(&subject, head, &events).await;
            (subject, events.len(), result)
        });
        let mut published = Vec::new();
        for (subject, count, result) in join_all(appends).await {
            match result {
                Ok((ids, head)) => {
                    // Remembered is only what the relay alone appends to, and where nothing is left:
                    // the next round appends to it without another look.
                    if is_counted(subject.0) && ids.len() == count {
                        heads.insert(subject, head);
                    } else {
                        heads.remove(&subject);
                    }
                    published.extend(ids);
                }
                Err(error) => {
                    heads.remove(&subject);
                    tracing::warn!(subject = %subject.0, id = subject.1, "not published: {error:#}");
                }
            }
        }
        let progress = !published.is_empty();
        if progress {
            crash::point("relay.appended");
        }
        sqlx::query("delete from ledger.outbox where id = any($1)")
            .bind(published)
            .execute(connection)
            .await?;
        Ok(full && progress)
    }

    /// Publishes the events of one subject; returns the outbox ids that are in the log now, and the
    /// sequence of the subject's last message.
    async fn publish_subject(
        &self,
        (subject, id): &(Subject, String),
        head: Option<u64>,
        events: &[(i64, Event)],
    ) -> Result<(Vec<i64>, u64)> {
        let history = self.topology.history(*subject, id);
        if let Some(head) = head {
            let entries = self.entries(events.iter().map(|(_, event)| event), head)?;
            match self.log.append(entries, PATIENCE).await {
                Ok(last) => return Ok((events.iter().map(|(id, _)| *id).collect(), last)),
                Err(AppendError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // What is in the log already, from a relay that died before it could say so, is left out.
        // Where versions are given out by the ledger alone the last is enough; an order's may be
        // another's.
        let is_counted = is_counted(*subject);
        let stored: Vec<Stored> = if is_counted {
            self.log.last(&history).await?.into_iter().collect()
        } else {
            self.log.history(&history).await?
        };
        let head = stored.last().map_or(0, |stored| stored.sequence);
        let version = match stored.last() {
            Some(stored) => stored.event.version,
            // It is new, or its events were trimmed.
            None => journal::head(&self.pool, *subject, id).await?.map_or(0, |head| head.version),
        };
        let is_there = |event: &Event| {
            (is_counted && event.version <= version)
                || stored.iter().any(|stored| stored.event.id == event.id)
        };
        let mut done: Vec<i64> =
            events.iter().filter(|(_, event)| is_there(event)).map(|(id, _)| *id).collect();
        let rest: Vec<&(i64, Event)> = events
            .iter()
            .filter(|(_, event)| !is_there(event))
            .enumerate()
            .take_while(|(place, (_, event))| event.version == version + 1 + *place as u64)
            .map(|(_, row)| row)
            .collect();
        if rest.is_empty() {
            // An order's event that lost its place is decided again by its command's redelivery.
            return Ok((done, head));
        }
        let entries = self.entries(rest.iter().map(|(_, event)| event), head)?;
        let last = self.log.append(entries, PATIENCE).await?;
        done.extend(rest.iter().map(|(id, _)| *id));
        Ok((done, last))
    }

    fn entries<'a>(
        &self,
        events: impl Iterator<Item = &'a Event>,
        after: u64,
    ) -> Result<Vec<Entry>> {
        Ok(log::entries(&self.topology, events, after, self.time_to_pay)?)
    }
}

/// Whether all versions of such subjects are given out by the ledger, one after another, and
/// appended by the relay alone. An order has other writers: nothing is known about it without a look.
fn is_counted(subject: Subject) -> bool {
    matches!(subject, Subject::Product | Subject::Customer)
}
