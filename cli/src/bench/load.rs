//! Placing orders: as many as the system processes, or at a given rate that does not ask how the
//! system is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream;
use millrace_shared::command::Command;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::Entry;
use super::client::Connection;
use super::figures::Times;
use super::shop::{Placing, Shop};
use super::system::System;
use super::underway::Underway;

/// Orders that may be under way at once at a given rate: what bounds the memory of the load.
const MOST_UNDERWAY: usize = 100_000;
/// Arrivals that wait for a free connection. When there are more, they come late, and this counts.
const ARRIVALS: usize = 10_000;

/// How orders come.
#[derive(Debug, Clone, Copy)]
pub enum Arrivals {
    /// A new one whenever fewer than so many are under way.
    Window(usize),
    /// So many a second, at random times that follow from the seed, whatever becomes of them.
    Rate(f64),
}

/// What places orders.
pub struct Load {
    shop: Arc<Shop>,
    underway: Arc<Underway>,
    senders: Vec<Sender>,
    next: Arc<AtomicU64>,
    reader: Connection,
    seed: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Placed {
    /// Acknowledged.
    pub accepted: u64,
    /// Refused, with no effect.
    pub refused: u64,
    /// From the first sending to the last acknowledgement.
    pub accepting: Duration,
    /// From the first sending until the last accepted order was seen to be paid.
    pub visible: Duration,
    /// When the first was sent.
    pub begin: Option<Instant>,
    last_accepted: Option<Instant>,
    /// From the scheduled time to the acknowledgement.
    pub accept_times: Times,
    /// From the scheduled time until the order was seen to be paid.
    pub paid_times: Times,
}

struct Sender {
    http: Option<Connection>,
    nats: Option<jetstream::Context>,
    subject: String,
}

/// Where the scheduled times come from.
struct Source {
    room: Arc<Semaphore>,
    until: Instant,
    told: Option<Mutex<mpsc::Receiver<Instant>>>,
    counted_from: Instant,
}

impl Load {
    /// A load on `system` over so many connections.
    pub fn new(
        system: &System,
        shop: Arc<Shop>,
        underway: Arc<Underway>,
        entry: Entry,
        connections: usize,
        seed: u64,
    ) -> Result<Self> {
        let context = jetstream::new(system.nats.clone());
        let senders = (0..connections).map(|_| {
            Ok(Sender {
                http: (entry != Entry::Nats)
                    .then(|| Connection::new(&system.http, system.authorization.as_deref()))
                    .transpose()?,
                nats: (entry != Entry::Http).then(|| context.clone()),
                subject: system.topology.command("order.place"),
            })
        });
        Ok(Self {
            senders: senders.collect::<Result<_>>()?,
            reader: Connection::new(&system.http, system.authorization.as_deref())?,
            next: Arc::new(AtomicU64::new(0)),
            shop,
            underway,
            seed,
        })
    }

    /// Places orders for a while, then waits until all of them are paid. Times count from `warm_up`
    /// on.
    pub async fn run(
        &mut self,
        arrivals: Arrivals,
        warm_up: Duration,
        time: Duration,
    ) -> Result<Placed> {
        let begin = Instant::now();
        let until = begin + warm_up + time;
        let most = match arrivals {
            Arrivals::Window(most) => most,
            Arrivals::Rate(_) => MOST_UNDERWAY,
        };
        let told = match arrivals {
            Arrivals::Window(_) => None,
            Arrivals::Rate(rate) => Some(Mutex::new(self.pace(rate, begin, until)?)),
        };
        let room = Arc::new(Semaphore::new(most));
        let source = Arc::new(Source { room, until, told, counted_from: begin + warm_up });
        self.underway.take_times();
        let mut tasks = JoinSet::new();
        for sender in self.senders.drain(..) {
            let (shop, underway) = (Arc::clone(&self.shop), Arc::clone(&self.underway));
            let (next, source) = (Arc::clone(&self.next), Arc::clone(&source));
            tasks.spawn(sender.work(shop, underway, next, source));
        }
        let mut sum = Placed { begin: Some(begin), ..Placed::default() };
        let mut failed = None;
        while let Some(ended) = tasks.join_next().await {
            let (sender, placed) = ended?;
            self.senders.push(sender);
            match placed {
                Ok(placed) => {
                    sum.accepted += placed.accepted;
                    sum.refused += placed.refused;
                    sum.last_accepted = sum.last_accepted.max(placed.last_accepted);
                    sum.accept_times.merge(&placed.accept_times)?;
                }
                Err(error) => failed = Some(error),
            }
        }
        let since = |end: Option<Instant>| {
            end.map_or(Duration::ZERO, |end| end.saturating_duration_since(begin))
        };
        sum.accepting = since(sum.last_accepted);
        if let Some(error) = failed {
            return Err(error.context("an order could not be placed"));
        }
        sum.visible = since(self.underway.ended(&mut self.reader).await?);
        sum.paid_times = self.underway.take_times();
        Ok(sum)
    }

    /// A thread that tells the scheduled times when they come: its sleep is finer than the runtime's.
    fn pace(&self, rate: f64, begin: Instant, until: Instant) -> Result<mpsc::Receiver<Instant>> {
        let (tell, told) = mpsc::channel(ARRIVALS);
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let pace = move || {
            let mut at = begin;
            loop {
                // The times between independent arrivals.
                let gap = -(1.0 - rng.random::<f64>()).ln() / rate;
                at += Duration::from_secs_f64(gap);
                if at >= until {
                    return;
                }
                thread::sleep(at.saturating_duration_since(Instant::now()));
                if tell.blocking_send(at).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("pace".to_owned()).spawn(pace)?;
        Ok(told)
    }
}

impl Source {
    /// The next scheduled time; nothing at the end.
    async fn next(&self) -> Option<Instant> {
        match &self.told {
            Some(told) => told.lock().await.recv().await,
            None => Some(Instant::now()).filter(|now| *now < self.until),
        }
    }
}

impl Sender {
    async fn work(
        mut self,
        shop: Arc<Shop>,
        underway: Arc<Underway>,
        next: Arc<AtomicU64>,
        source: Arc<Source>,
    ) -> (Self, Result<Placed>) {
        let mut placed = Placed::default();
        let work = async {
            loop {
                let place = Arc::clone(&source.room).acquire_owned().await?;
                let Some(scheduled) = source.next().await else { return Ok(()) };
                let number = next.fetch_add(1, Ordering::Relaxed);
                let order = shop.order(number)?;
                let (id, counted) = (order.id, scheduled >= source.counted_from);
                underway.begin(id, scheduled, counted, place);
                if self.place(number, order).await? {
                    placed.accepted += 1;
                    placed.last_accepted = Some(Instant::now());
                    if counted {
                        placed.accept_times.add(scheduled.elapsed());
                    }
                } else {
                    placed.refused += 1;
                    underway.forget(id);
                }
            }
        };
        let result = work.await;
        (self, result.map(|()| placed))
    }

    /// Tells whether the order was accepted; fails where that is not known.
    async fn place(&mut self, number: u64, placing: Placing) -> Result<bool> {
        let Placing { key, order, .. } = placing;
        let by_nats = self.http.is_none() || number % 2 == 1;
        if let Some(jetstream) = self.nats.as_ref().filter(|_| by_nats) {
            let Value::Object(mut body) = serde_json::to_value(Command::PlaceOrder(order))? else {
                bail!("a command must be a JSON object");
            };
            body.insert("idempotencyKey".to_owned(), key.into());
            let body = serde_json::to_vec(&body)?;
            jetstream.publish(self.subject.clone(), body.into()).await?.await?;
            return Ok(true);
        }
        let http = self.http.as_mut().context("no way in")?;
        let answer = http.post("/v1/orders", &key, serde_json::to_vec(&order)?).await?;
        match answer.status {
            202 => Ok(true),
            // Refused before anything was stored; an unknown outcome is another thing.
            429 | 503 if !contains(&answer.body, "outcome-unknown") => Ok(false),
            status => {
                bail!("unexpected answer {status}: {}", String::from_utf8_lossy(&answer.body))
            }
        }
    }
}

fn contains(body: &[u8], text: &str) -> bool {
    std::str::from_utf8(body).is_ok_and(|body| body.contains(text))
}
