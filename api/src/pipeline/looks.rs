//! One look at the servers: what lies in the streams, how far each consumer is, who answers. A look
//! never fails: what cannot be seen is absent in it.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer;
use async_nats::jetstream::stream::Stream;
use chrono::{DateTime, Utc};
use futures_util::TryStreamExt as _;
use futures_util::future::join_all;
use millrace_shared::backlog::Oldest;
use millrace_shared::message::now;
use millrace_shared::topology::worker_of;
use tokio::time::timeout;

use crate::App;

/// How long a server may take to answer; then it counts as down.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was seen.
#[derive(Debug)]
pub struct Look {
    /// When.
    pub at: DateTime<Utc>,
    /// The streams: commands, events, parked; those that could be read.
    pub streams: Vec<StreamLook>,
    /// How far the workers are.
    pub workers: Vec<WorkerLook>,
    /// How long each server took to answer; absent if it did not. NATS, PostgreSQL, Redis.
    pub answered: [Option<Duration>; 3],
}

/// A stream as it is.
#[derive(Debug)]
pub struct StreamLook {
    /// `commands`, `events` or `parked`.
    pub name: &'static str,
    /// Messages in it.
    pub messages: u64,
    /// Bytes of them on disk.
    pub bytes: u64,
    /// The sequence of the last one.
    pub last: u64,
}

/// A worker's consumers as they are, all of them together.
#[derive(Debug, Clone, Default)]
pub struct WorkerLook {
    /// The worker.
    pub name: String,
    /// `commands` or `events`.
    pub stream: &'static str,
    /// Messages that no replica has had yet.
    pub pending: u64,
    /// Messages that replicas work on.
    pub in_flight: u64,
    /// Messages among them that have come before.
    pub redelivered: u64,
    /// Deliveries that are done with, without a gap.
    pub done: u64,
    /// When its stream took the oldest message that is not done with.
    pub oldest: Option<DateTime<Utc>>,
}

/// Looks, and what they need from one to the next.
#[derive(Debug, Default)]
pub struct Looks {
    /// Of each consumer.
    oldest: HashMap<String, Oldest>,
}

impl Looks {
    /// Looks once.
    pub async fn look(&mut self, app: &App) -> Look {
        let at = now();
        let nats = async {
            let start = Instant::now();
            let names = [
                ("commands", app.topology.commands_stream()),
                ("events", app.topology.events_stream()),
                ("parked", app.topology.parked_stream()),
            ];
            let found = join_all(names.map(|(name, full)| async move {
                let stream = app.commands.other(&full).await.ok()?;
                let info = stream.get_info().await.ok()?;
                let seen = StreamLook {
                    name,
                    messages: info.state.messages,
                    bytes: info.state.bytes,
                    last: info.state.last_sequence,
                };
                Some((stream, seen))
            }));
            let found: Vec<_> = found.await.into_iter().flatten().collect();
            (found, start.elapsed())
        };
        let postgres = answers(async { app.desk.as_ref()?.ping().await.ok() });
        let redis = answers(async { app.views.ping().await.ok() });
        let nats = async { timeout(PATIENCE, nats).await.unwrap_or_default() };
        let ((found, time), postgres, redis) = tokio::join!(nats, postgres, redis);
        let mut look = Look {
            at,
            streams: Vec::new(),
            workers: Vec::new(),
            answered: [(!found.is_empty()).then_some(time), postgres, redis],
        };
        for (stream, seen) in found {
            if seen.name != "parked" {
                let workers = timeout(PATIENCE, self.workers(seen.name, &stream)).await;
                look.workers.extend(workers.unwrap_or_default());
            }
            look.streams.push(seen);
        }
        look
    }

    async fn workers(&mut self, name: &'static str, stream: &Stream<()>) -> Vec<WorkerLook> {
        let all: Vec<consumer::Info> = stream.consumers().try_collect().await.unwrap_or_default();
        let mut looks: BTreeMap<String, WorkerLook> = BTreeMap::new();
        // Readers of the log come and go; only workers count.
        for info in all.into_iter().filter(|info| info.config.durable_name.is_some()) {
            let oldest = self.oldest.entry(info.name.clone()).or_default();
            let oldest = oldest.look(stream, &info).await;
            let worker = worker_of(&info.name).to_owned();
            let look = looks.entry(worker.clone()).or_default();
            (look.name, look.stream) = (worker, name);
            look.pending += info.num_pending;
            look.in_flight += u64::try_from(info.num_ack_pending).unwrap_or(u64::MAX);
            look.redelivered += u64::try_from(info.num_redelivered).unwrap_or(u64::MAX);
            look.done += info.ack_floor.consumer_sequence;
            look.oldest = look.oldest.into_iter().chain(oldest).min();
        }
        looks.into_values().collect()
    }
}

/// How long something took, if it went well in time.
async fn answers<T>(work: impl Future<Output = Option<T>>) -> Option<Duration> {
    let start = Instant::now();
    timeout(PATIENCE, work).await.ok().flatten().map(|_| start.elapsed())
}
