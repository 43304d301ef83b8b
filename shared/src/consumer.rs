//! The one loop of all workers: pull, decode, hand over in batches, settle. It knows nothing of
//! what the messages mean; workers know nothing of acks, retries and parking.
//!
//! A message is acked last, after everything that follows from it is stored. Acks are not durable
//! and redelivery is normal, so a worker must give the same result the second time.

mod batch;
mod replays;
mod settle;
mod verdict;
mod watched;

pub use verdict::Verdict;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::{Client, HeaderMap, jetstream};
use chrono::{DateTime, Utc};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::Semaphore;
use tokio::task::coop::unconstrained;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::batch::process;
use self::replays::Replays;
use self::settle::Settler;
use self::watched::Backlog;
use crate::backlog::Oldest;
use crate::health;
use crate::log::Log;
use crate::message::Event;
use crate::parking::Parking;
use crate::parking::held::Held;
use crate::quarantine::Quarantine;
use crate::service::{Announced, Counters};
use crate::topology::Topology;
use crate::trace::Trace;

/// How long the server waits for an ack before it delivers again.
const ACK_WAIT: Duration = Duration::from_secs(15);
/// How often it is looked whether a message stands in the way that cannot be received.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long running batches may go on after the shutdown was asked for.
const GRACE: Duration = Duration::from_secs(15);
/// A batch of so many messages says that more are coming: then they may gather a little, and are
/// handled together at a fraction of the cost. Whoever is alone never waits.
const BUSY: usize = 32;
/// How long they gather.
const GATHER: Duration = Duration::from_millis(5);

/// What a worker is: its place in the topology, and what it does with a batch.
pub trait Worker: Send + Sync + 'static {
    /// What it works on.
    type Message: Send + Sync + 'static;
    /// The name of its durable consumers, shared by all replicas ([`Topology::consumers`]).
    const NAME: &'static str;
    /// The most messages in a batch.
    const BATCH: usize;
    /// The most batches at a time in one replica.
    const BATCHES: usize;
    /// How long the first message of a batch waits for others, however few come: for work that nobody
    /// waits for, and of which a batch costs much.
    const REST: Duration = Duration::ZERO;

    /// The stream that it consumes.
    fn stream(&self, topology: &Topology) -> String;
    /// Whether it wants a message; one that it was given all the same is settled unread.
    fn wants(&self, topology: &Topology, subject: &str) -> bool {
        topology.is_wanted(Self::NAME, subject)
    }
    /// Reads a message; one that cannot be read is parked with the sentence returned.
    fn decode(&self, raw: &Raw<'_>) -> Result<Self::Message, String>;
    /// Does the work; one verdict for each delivery, in their order.
    fn handle(
        &self,
        batch: &[Delivery<Self::Message>],
    ) -> impl Future<Output = Vec<Verdict>> + Send;
}

/// A message as it came.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a> {
    /// Its subject.
    pub subject: &'a str,
    /// Its payload.
    pub payload: &'a [u8],
    /// Its headers.
    pub headers: Option<&'a HeaderMap>,
    /// Its place in the stream.
    pub sequence: u64,
    /// When the stream took it.
    pub at: DateTime<Utc>,
    /// Its place in its trace: what follows from it continues that.
    pub trace: &'a Trace,
}

impl Raw<'_> {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers?.get(name).map(async_nats::HeaderValue::as_str)
    }
}

/// A decoded message.
#[derive(Debug)]
pub struct Delivery<M> {
    /// The message.
    pub message: M,
    /// Its place in the stream.
    pub sequence: u64,
    /// Which delivery this is, from 1.
    pub attempt: u64,
    /// Its place in its trace.
    pub trace: Trace,
}

/// The decoder of all workers on EVENTS.
pub fn decode_event(raw: &Raw<'_>) -> Result<Event, String> {
    let mut event =
        Event::decode(raw.payload).map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
    // What follows from it follows from this worker's part in it.
    if let Some(traceparent) = raw.trace.traceparent() {
        event.traceparent = Some(traceparent.to_owned());
    }
    Ok(event)
}

/// Runs a worker until the shutdown, then drains it.
pub async fn run<W: Worker>(
    worker: Arc<W>,
    client: Client,
    topology: Topology,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    health::consuming(W::NAME, false);
    let stream = worker.stream(&topology);
    let events = stream == topology.events_stream();
    let parked = Log::new(client.clone(), topology.parked_stream());
    let counters = Arc::new(Counters::new(W::NAME));
    let announced = Announced::worker(&client, &topology, W::NAME, Arc::clone(&counters)).await;
    let announced = announced.inspect_err(|error| {
        tracing::warn!(worker = W::NAME, "it is not among the NATS micro services: {error:#}");
    });
    let settler = Arc::new(Settler {
        worker: W::NAME,
        topology: topology.clone(),
        counters,
        held: events.then(|| Held::new(W::NAME, topology.clone(), parked.clone())),
        parking: Parking::new(topology.clone(), W::NAME, stream.clone(), parked),
    });
    let tasks = TaskTracker::new();
    let jetstream = jetstream::new(client.clone());
    let consumers = topology.consumers(W::NAME).into_iter().map(|(name, _)| {
        (Quarantine::new(jetstream.clone(), stream.clone(), name), Oldest::default())
    });
    let rescue =
        rescue(Arc::clone(&worker), Arc::clone(&settler), consumers.collect(), shutdown.clone());
    tasks.spawn(rescue);
    tasks.spawn({
        let (settler, shutdown) = (Arc::clone(&settler), shutdown.clone());
        async move {
            if let Some(held) = &settler.held {
                held.watch(&shutdown).await;
            }
        }
    });
    let replays = Replays::new(Arc::clone(&worker), Arc::clone(&settler), &client, &topology);
    tasks.spawn(replays.run(jetstream.clone(), shutdown.clone()));
    while !shutdown.is_cancelled() {
        let pulled =
            pull_until_error(&worker, &jetstream, &topology, &settler, &tasks, &shutdown).await;
        if let Err(error) = pulled {
            health::consuming(W::NAME, false);
            tracing::warn!(worker = W::NAME, "pull is rebuilt: {error:#}");
            pause(Duration::from_millis(500), &shutdown).await;
        }
    }
    health::consuming(W::NAME, false);
    if let Ok(announced) = announced {
        announced.stop().await;
    }
    tasks.close();
    if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
        tracing::warn!(worker = W::NAME, "unfinished work is left for redelivery");
    }
    // Acks are still in the client's buffer.
    tokio::time::timeout(Duration::from_secs(2), client.flush()).await.ok();
    Ok(())
}

async fn pull_until_error<W: Worker>(
    worker: &Arc<W>,
    jetstream: &jetstream::Context,
    topology: &Topology,
    settler: &Arc<Settler>,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let name = worker.stream(topology);
    let stream = jetstream.get_stream(&name).await.map_err(|error| {
        let what = match error.kind() {
            GetStreamErrorKind::JetStream(_) => "is not there; `millrace topology` makes it",
            _ => "cannot be read: NATS does not answer",
        };
        anyhow::Error::new(error).context(format!("the stream {name} {what}"))
    })?;
    if let Some(held) = &settler.held {
        tokio::select! {
            () = held.loaded() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
    let mut pulls = Vec::new();
    for (name, filter) in topology.consumers(W::NAME) {
        let pull = consumer(name, filter, &stream)
            .await?
            .stream()
            .max_messages_per_batch(W::BATCH.max(64) * 2)
            .expires(Duration::from_secs(5))
            .heartbeat(Duration::from_millis(1500))
            .messages()
            .await?;
        // Without it the others would hide that one has ended.
        let end = stream::once(async { Err(anyhow::anyhow!("the pull ended")) });
        pulls.push(pull.map_err(anyhow::Error::from).chain(end).boxed());
    }
    let mut messages = stream::select_all(pulls);
    health::consuming(W::NAME, true);
    tracing::info!(worker = W::NAME, stream = name, "consuming");
    let slots = Arc::new(Semaphore::new(W::BATCHES));
    let mut last = 0;
    loop {
        let slot = tokio::select! {
            slot = Arc::clone(&slots).acquire_owned() => slot?,
            () = shutdown.cancelled() => return Ok(()),
        };
        let wait = if last < BUSY { W::REST } else { W::REST.max(GATHER) };
        // Otherwise the runtime would end each batch at 128 messages.
        let gathered = unconstrained(gather(&mut messages, W::BATCH, wait));
        let gathered = tokio::select! {
            gathered = gathered => gathered.context("the pull ended")?,
            () = shutdown.cancelled() => return Ok(()),
        };
        last = gathered.len();
        let mut messages = Vec::with_capacity(gathered.len());
        let mut broken = None;
        for message in gathered {
            match message {
                Ok(message) => messages.push(message),
                Err(error) => broken = Some(error),
            }
        }
        let (worker, settler) = (Arc::clone(worker), Arc::clone(settler));
        let stop = shutdown.clone();
        tasks.spawn(async move {
            if process(worker.as_ref(), &settler, messages).await {
                // A server is away: this slot rests a little before it takes more.
                pause(Duration::from_secs(1), &stop).await;
            }
            drop(slot);
        });
        if let Some(error) = broken {
            return Err(error);
        }
    }
}

/// The next batch: what has come and, if it is not full, what comes within `wait` after the first.
async fn gather<S: Stream + Unpin>(
    messages: &mut S,
    most: usize,
    wait: Duration,
) -> Option<Vec<S::Item>> {
    let mut batch = vec![messages.next().await?];
    let over = async {
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    };
    tokio::pin!(over);
    while batch.len() < most {
        tokio::select! {
            biased;
            message = messages.next() => match message {
                Some(message) => batch.push(message),
                None => break,
            },
            () = &mut over => break,
        }
    }
    Some(batch)
}

/// Looks at the consumers again and again, until the shutdown: how much waits, and whether something
/// is there that cannot be received in the usual way, which is handled.
async fn rescue<W: Worker>(
    worker: Arc<W>,
    settler: Arc<Settler>,
    mut consumers: Vec<(Quarantine, Oldest)>,
    shutdown: CancellationToken,
) {
    while !shutdown.is_cancelled() {
        pause(LOOK_EVERY, &shutdown).await;
        let looked = async {
            let mut backlog = Backlog::default();
            for (quarantine, oldest) in &mut consumers {
                let (stream, info) = quarantine.consumer().await?;
                backlog.add(&info, oldest.look(&stream, &info).await);
                let messages = quarantine.look(&info).await?;
                if !messages.is_empty() {
                    let count = messages.len();
                    tracing::error!(worker = W::NAME, count, "unreceivable messages");
                    process(worker.as_ref(), &settler, messages).await;
                }
            }
            backlog.tell(W::NAME);
            anyhow::Ok(())
        };
        if let Err(error) = looked.await {
            tracing::debug!(worker = W::NAME, "a consumer cannot be looked at: {error:#}");
        }
    }
}

async fn consumer(
    name: String,
    filter: Option<String>,
    stream: &jetstream::stream::Stream,
) -> anyhow::Result<jetstream::consumer::Consumer<pull::Config>> {
    let config = pull::Config {
        durable_name: Some(name),
        filter_subject: filter.unwrap_or_default(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_deliver: -1,
        max_ack_pending: 10_000,
        ..pull::Config::default()
    };
    stream.create_consumer(config).await.context("the consumer cannot be made")
}

/// Sleeps for `duration`, more or less, or until the shutdown.
async fn pause(duration: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(jitter(duration)) => {}
        () = shutdown.cancelled() => {}
    }
}

fn jitter(duration: Duration) -> Duration {
    duration.mul_f64(rand::random_range(0.75..1.25))
}
