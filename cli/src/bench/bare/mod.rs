//! The limit: a loop that makes only the writes that an order cannot do without, on the same
//! servers, as durably, as atomically, and in batches. No HTTP, no decisions, no reading of what was
//! written, and no JSON but payloads that are prepared: those of an order that Millrace has made,
//! with another id.
//!
//! For each order:
//!
//! | where | what | Millrace's |
//! |---|---|---|
//! | `JetStream` | the command; the events `validated` and `paid`, each with its expected sequence | COMMANDS, EVENTS |
//! | `PostgreSQL`, one statement a batch | stock and credit, locked and changed; the decision with its event, the order, two reservations | ledger |
//! | `PostgreSQL`, one statement a batch | the charge of every second order | the sandbox gateway's book |
//! | `PostgreSQL`, one statement a batch of events | the event; the order as it now is; two lines, once | journal |
//! | Redis, one pipeline a batch of events | the document, guarded by its version; the outcome of the command, once; the places in the lists of the customer and the day; the place among the customer's changes; the version that is counted in the reports | views |
//!
//! Left out, though Millrace writes them, because something else could do their part: the outbox apart
//! from the decision, the mark of a pending order, and acks.

mod keys;
mod log;
mod tables;

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures_util::StreamExt as _;
use millrace_shared::ids::OrderId;
use millrace_shared::log::Log;
use millrace_shared::message::Event;
use millrace_shared::order::Order;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use super::figures::Times;
use super::shop::Shop;
use super::system::System;
use keys::Keys;
use log::Streams;
use tables::Tables;

/// Orders in a batch: Millrace's are between some 45 (events that are appended) and 600 (events in the
/// journal) on two cores with a window of 2,000, and this is their geometric mean. Reports tell both.
pub const BATCH: u32 = 128;
/// Batches under way at once: together as many orders as Millrace has under way.
pub const UNDERWAY: usize = 16;

/// How long orders gather that come at a rate: as long as those that Millrace's edge appends together, at
/// the most.
const GATHER: Duration = Duration::from_millis(20);
/// Of them in one batch at the most, however late they are: the server takes up to 1,000.
const MOST: u32 = 500;
/// How often the journal is written then.
const REST: Duration = Duration::from_millis(250);

/// The bare loop on a system's servers.
pub struct Bare {
    servers: Arc<Servers>,
}

/// What each of its batches needs.
struct Servers {
    streams: Streams,
    tables: Tables,
    keys: Keys,
    model: Model,
    shop: Arc<Shop>,
}

/// What Millrace has made of one order.
struct Model {
    id: String,
    order: Order,
    command: Bytes,
    validated: Event,
    paid: Event,
}

/// An order of the bare loop.
struct Bones {
    id: Uuid,
    text: String,
    number: u64,
}

impl Bare {
    /// Makes its streams and tables. `order` was paid, and is what the payloads are made of.
    pub async fn new(system: &System, shop: Arc<Shop>, order: OrderId) -> Result<Self> {
        let model = Model::read(system, order).await.context("an order to take as a model")?;
        let servers = Servers {
            streams: Box::pin(Streams::new(system)).await?,
            tables: Tables::new(system, &shop.customers_prefix()).await?,
            keys: Keys::new(system).await?,
            model,
            shop,
        };
        Ok(Self { servers: Arc::new(servers) })
    }

    /// Makes the writes of so many orders; returns how many these were, and how long it took.
    pub async fn run(&self, orders: u64) -> Result<(u64, Duration)> {
        let batches = u32::try_from(orders.div_ceil(u64::from(BATCH)))?;
        let begin = Instant::now();
        let mut running = futures_util::stream::iter(0..batches)
            .map(|batch| {
                let servers = Arc::clone(&self.servers);
                tokio::spawn(async move {
                    let numbers = batch * BATCH..(batch + 1) * BATCH;
                    servers.write(&numbers.map(Bones::new).collect::<Vec<_>>(), true).await
                })
            })
            .buffer_unordered(UNDERWAY);
        while let Some(ended) = running.next().await {
            ended??;
        }
        Ok((u64::from(batches * BATCH), begin.elapsed()))
    }

    /// Makes the writes of orders that come evenly at a rate; those that come within [`GATHER`] are a
    /// batch, and more where many batches are under way. Returns how long each took, from when it came
    /// until it could be read as paid. Nobody waits for the journal: it is written each [`REST`], as by
    /// Millrace.
    pub async fn paced(&self, rate: f64, time: Duration) -> Result<Times> {
        let (begin, gap) = (Instant::now(), Duration::from_secs_f64(1.0 / rate));
        let came = |number: u32| begin + gap * number;
        let mut times = Times::default();
        let (mut ticks, mut rest) = (interval(GATHER), interval(REST));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut batches, mut journal) = (JoinSet::new(), JoinSet::new());
        let (mut number, mut visible) = (0, Vec::new());
        while begin.elapsed() < time || !batches.is_empty() {
            tokio::select! {
                _ = ticks.tick(), if begin.elapsed() < time && batches.len() < UNDERWAY => {
                    let now = Instant::now();
                    let first = number;
                    while number - first < MOST && came(number) <= now {
                        number += 1;
                    }
                    if number > first {
                        let servers = Arc::clone(&self.servers);
                        batches.spawn(async move {
                            let orders: Vec<Bones> = (first..number).map(Bones::new).collect();
                            let at = servers.write(&orders, false).await?;
                            anyhow::Ok((orders, first..number, at))
                        });
                    }
                }
                Some(ended) = batches.join_next() => {
                    let (orders, numbers, at) = ended??;
                    numbers.for_each(|it| times.add(at.saturating_duration_since(came(it))));
                    visible.extend(orders);
                }
                _ = rest.tick(), if !visible.is_empty() => {
                    let (servers, orders) = (Arc::clone(&self.servers), mem::take(&mut visible));
                    journal.spawn(async move { servers.journal(&orders).await });
                }
            }
        }
        journal.join_all().await.into_iter().collect::<Result<()>>()?;
        Ok(times)
    }

    /// Removes all that it has made.
    pub async fn remove(&self) -> Result<()> {
        let Servers { streams, tables, keys, .. } = &*self.servers;
        tokio::try_join!(streams.remove(), tables.remove(), keys.remove())?;
        Ok(())
    }
}

impl Bones {
    fn new(number: u32) -> Self {
        let id = Uuid::from_u128(rand::random());
        Self { id, text: id.to_string(), number: number.into() }
    }
}

impl Servers {
    /// The writes of one batch, each as early as what comes before it allows; the journal only if it is
    /// asked for. Returns when the orders could be read as paid.
    async fn write(&self, orders: &[Bones], journal: bool) -> Result<Instant> {
        let Self { streams, tables, keys, model, shop } = self;
        let payloads = |event: &Event| -> Result<Vec<Bytes>> {
            let payload = event.encode()?;
            Ok(orders.iter().map(|order| model.with_id(&payload, order)).collect())
        };
        let journal = async |event| {
            if journal { tables.journal(model, event, orders).await } else { Ok(()) }
        };
        let commands = orders.iter().map(|order| model.with_id(&model.command, order)).collect();
        streams.commands(commands).await?;
        tables.ledger(shop, model, orders).await?;
        let first = streams.events("validated", orders, payloads(&model.validated)?, None).await?;
        let paid = async {
            tables.charges(orders).await?;
            let paid = payloads(&model.paid)?;
            streams.events("paid", orders, paid, Some(first)).await?;
            let visible = async {
                keys.views(model, &model.paid, orders).await?;
                Ok(Instant::now())
            };
            tokio::try_join!(visible, journal(&model.paid))
        };
        let event = &model.validated;
        let ((visible, ()), (), ()) =
            tokio::try_join!(paid, keys.views(model, event, orders), journal(event))?;
        Ok(visible)
    }

    /// The journal of orders that are paid.
    async fn journal(&self, orders: &[Bones]) -> Result<()> {
        let Self { tables, model, .. } = self;
        tables.journal(model, &model.validated, orders).await?;
        tables.journal(model, &model.paid, orders).await
    }
}

impl Model {
    async fn read(system: &System, order: OrderId) -> Result<Self> {
        let log = Log::new(system.nats.clone(), system.topology.events_stream());
        let mut events = log.history(&system.topology.order_history(order)).await?.into_iter();
        let mut next = || events.next().map(|stored| stored.event).context("it has two events");
        let (validated, paid) = (next()?, next()?);
        let commands = log.other(&system.topology.commands_stream()).await?;
        let subject = system.topology.command("order.place");
        let command = commands.get_last_raw_message_by_subject(&subject).await?.payload;
        Ok(Self { id: order.to_string(), order: paid.state()?, command, validated, paid })
    }

    /// A payload of the model, as it would be for another order.
    fn with_id(&self, payload: &[u8], order: &Bones) -> Bytes {
        let mut payload = payload.to_vec();
        let id = self.id.as_bytes();
        let mut from = 0;
        while let Some(at) = find(&payload[from..], id) {
            payload[from + at..from + at + id.len()].copy_from_slice(order.text.as_bytes());
            from += at + id.len();
        }
        payload.into()
    }
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(text).ok()?;
    text.find(std::str::from_utf8(word).ok()?)
}
