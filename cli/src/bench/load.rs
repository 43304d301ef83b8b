//! Placing orders: as many as the system processes, or at a given rate that does not ask how the
//! system is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream;
use millrace_shared::command::Command;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
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
    ways: Arc<Ways>,
    next: u64,
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

/// What became of one order.
struct Answered {
    accepted: bool,
    at: Instant,
    scheduled: Instant,
    counted: bool,
}

struct Sender {
    http: Option<Connection>,
    nats: Option<jetstream::Context>,
    subject: String,
}

/// The ways in that are free. What was used last is used next: where few are needed, few are open.
struct Ways {
    free: Mutex<Vec<Sender>>,
    count: Arc<Semaphore>,
}

/// One of them, until it is given back.
struct Way {
    sender: Sender,
    _counted: OwnedSemaphorePermit,
}

/// Where the scheduled times come from.
struct Source {
    until: Instant,
    told: Option<mpsc::Receiver<Instant>>,
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
        let free = senders.collect::<Result<Vec<_>>>()?;
        let count = Arc::new(Semaphore::new(free.len()));
        Ok(Self {
            ways: Arc::new(Ways { free: Mutex::new(free), count }),
            reader: Connection::new(&system.http, system.authorization.as_deref())?,
            next: 0,
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
            Arrivals::Rate(rate) => Some(self.pace(rate, begin, until)?),
        };
        let room = Arc::new(Semaphore::new(most));
        let mut source = Source { until, told };
        self.underway.take_times();
        let mut sum = Placed { begin: Some(begin), ..Placed::default() };
        let mut tasks = JoinSet::new();
        let mut all = async || {
            loop {
                let place = Arc::clone(&room).acquire_owned().await?;
                let Some(scheduled) = source.next().await else { break };
                let way = self.ways.take().await?;
                let counted = scheduled >= begin + warm_up;
                tasks.spawn(self.placing(way, scheduled, counted, place));
                self.next += 1;
                while let Some(placed) = tasks.try_join_next() {
                    sum.add(&placed??);
                }
            }
            while let Some(placed) = tasks.join_next().await {
                sum.add(&placed??);
            }
            anyhow::Ok(())
        };
        all().await.context("an order could not be placed")?;
        let since = |end: Option<Instant>| {
            end.map_or(Duration::ZERO, |end| end.saturating_duration_since(begin))
        };
        sum.accepting = since(sum.last_accepted);
        sum.visible = since(self.underway.ended(&mut self.reader).await?);
        sum.paid_times = self.underway.take_times();
        Ok(sum)
    }

    /// Places the next order.
    fn placing(
        &self,
        mut way: Way,
        scheduled: Instant,
        counted: bool,
        place: OwnedSemaphorePermit,
    ) -> impl Future<Output = Result<Answered>> + use<> {
        let (shop, underway) = (Arc::clone(&self.shop), Arc::clone(&self.underway));
        let (ways, number) = (Arc::clone(&self.ways), self.next);
        async move {
            let order = shop.order(number)?;
            let id = order.id;
            underway.begin(id, scheduled, counted, place);
            let accepted = way.sender.place(number, order).await?;
            let at = Instant::now();
            ways.give_back(way);
            if !accepted {
                underway.forget(id);
            }
            Ok(Answered { accepted, at, scheduled, counted })
        }
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
    async fn next(&mut self) -> Option<Instant> {
        match &mut self.told {
            Some(told) => told.recv().await,
            None => Some(Instant::now()).filter(|now| *now < self.until),
        }
    }
}

impl Placed {
    fn add(&mut self, answered: &Answered) {
        if !answered.accepted {
            self.refused += 1;
            return;
        }
        self.accepted += 1;
        self.last_accepted = self.last_accepted.max(Some(answered.at));
        if answered.counted {
            self.accept_times.add(answered.at.saturating_duration_since(answered.scheduled));
        }
    }
}

impl Ways {
    /// Waits for a free one.
    async fn take(&self) -> Result<Way> {
        let counted = Arc::clone(&self.count).acquire_owned().await?;
        // As many as the semaphore counts.
        let sender = self.lock().pop().context("no way in is free")?;
        Ok(Way { sender, _counted: counted })
    }

    fn give_back(&self, way: Way) {
        self.lock().push(way.sender);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Sender>> {
        // Nothing panics while it is held.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sender {
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
