//! The feed of the catalogue: the last events of every product in the log, then every further one as
//! it comes. Whatever goes wrong, it begins anew: a version guard makes that harmless.
//!
//! Products whose events were trimmed from the log are read from the views. The trim removes only
//! what the projection has settled, so they have at least that much.
//!
//! A change of stock or price is to be found with the next search. A change of text is indexed with
//! all others of the moment: at most every `REFRESH`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::pull::{self, Stream as Messages};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use async_nats::jetstream::{self, Message};
use futures_util::StreamExt as _;
use millrace_shared::message::{Event, Subject};
use millrace_shared::metrics::{metrics, number};
use millrace_shared::product::Product;
use millrace_shared::topology::Topology;
use millrace_shared::views::Views;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Search;
use super::catalogue::{Catalogue, Slot};
use super::text::Writer;

/// How often changed texts are made to be found, at the most.
const REFRESH: Duration = Duration::from_millis(200);
/// Events that are taken over at a time.
const CHUNK: usize = 512;
/// Products that are read from the views at a time.
const PAGE: usize = 500;
/// Before the log is read anew.
const PAUSE: Duration = Duration::from_millis(500);
/// After this time an event that was not settled comes again: it was lost on its way.
const REDELIVERY: Duration = Duration::from_secs(10);
/// So often: a message that no client can receive must not come for ever.
const DELIVERIES: i64 = 3;

/// What feeds the catalogue of one edge.
#[derive(Debug)]
pub struct Feed {
    /// A connection of its own: a message that no client can receive ends it.
    pub nats: async_nats::Client,
    /// The names.
    pub topology: Topology,
    /// Where products are whose events are gone.
    pub views: Views,
    /// What is fed.
    pub search: Arc<Search>,
}

impl Feed {
    /// Follows the log until the shutdown.
    pub async fn run(self, writer: Writer, shutdown: CancellationToken) {
        let writer = Arc::new(Mutex::new(writer));
        loop {
            tokio::select! {
                followed = self.follow(&writer) => if let Err(error) = followed {
                    self.search.lost();
                    tracing::warn!("the catalogue does not follow the log: {error:#}");
                },
                () = shutdown.cancelled() => return,
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Reads the whole catalogue, then what changes, until something goes wrong.
    async fn follow(&self, writer: &Arc<Mutex<Writer>>) -> anyhow::Result<()> {
        let jetstream = jetstream::new(self.nats.clone());
        let stream = jetstream.get_stream(self.topology.events_stream()).await?;
        let target = stream.cached_info().state.last_sequence;
        let mut consumer = stream.create_consumer(self.consumer()).await?;
        let mut messages = messages(&consumer).await?.ready_chunks(CHUNK);
        let mut refresh = interval(REFRESH);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut caught_up = false;
        loop {
            tokio::select! {
                chunk = messages.next() => {
                    let chunk = chunk.context("the pull ended")?;
                    let chunk = chunk.into_iter().collect::<Result<Vec<_>, _>>()?;
                    self.take(writer, &chunk)?;
                    for message in &chunk {
                        message.ack().await.map_err(|error| anyhow::anyhow!(error))?;
                    }
                }
                _ = refresh.tick() => {
                    if !caught_up && self.has_passed(&mut consumer, target).await? {
                        if self.is_trimmed(&stream).await? {
                            self.read_views(writer).await?;
                        }
                        caught_up = true;
                    }
                    commit(writer).await?;
                    let products = self.search.look(Catalogue::len);
                    metrics().catalogue.record(number(products), &[]);
                    if caught_up && !self.search.is_live() {
                        self.search.follows();
                    }
                }
            }
        }
    }

    fn consumer(&self) -> pull::Config {
        pull::Config {
            description: Some("the catalogue of an edge".to_owned()),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::Explicit,
            ack_wait: REDELIVERY,
            max_deliver: DELIVERIES,
            max_ack_pending: 8 * 1024,
            filter_subject: self.topology.history(Subject::Product, "*"),
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: Duration::from_mins(1),
            ..pull::Config::default()
        }
    }

    /// Whether everything up to `target` has been taken over.
    async fn has_passed(
        &self,
        consumer: &mut Consumer<pull::Config>,
        target: u64,
    ) -> anyhow::Result<bool> {
        let info = consumer.info().await?;
        let idle = info.num_pending == 0 && info.num_ack_pending == 0;
        Ok(idle || info.ack_floor.stream_sequence >= target)
    }

    async fn is_trimmed(&self, stream: &jetstream::stream::Stream) -> anyhow::Result<bool> {
        Ok(stream.get_info().await?.state.first_sequence > 1)
    }

    /// Takes events over.
    fn take(&self, writer: &Mutex<Writer>, messages: &[Message]) -> anyhow::Result<()> {
        let products = messages.iter().filter_map(|message| {
            product(&message.payload)
                .inspect_err(|error| {
                    let subject = message.subject.as_str();
                    tracing::warn!(subject, "not in the catalogue: {error:#}");
                })
                .ok()
        });
        self.put(writer, products.collect())
    }

    fn put(
        &self,
        writer: &Mutex<Writer>,
        products: Vec<(Product, Option<i64>)>,
    ) -> anyhow::Result<()> {
        let retold: Vec<(Slot, Product)> = self.search.change(|catalogue| {
            let put = |(product, defined_at)| {
                let slot = catalogue.put(product, defined_at)?;
                Some((slot, catalogue.product(slot)?.clone()))
            };
            products.into_iter().filter_map(put).collect()
        });
        let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
        for (slot, product) in retold {
            writer.put(slot, &product)?;
        }
        Ok(())
    }

    /// Takes the products over that only the views still have.
    async fn read_views(&self, writer: &Mutex<Writer>) -> anyhow::Result<()> {
        let mut cursor: Option<String> = None;
        loop {
            let page = self.views.products(cursor.as_deref(), PAGE).await?;
            let read = |json: &String| serde_json::from_str(json).map(|product| (product, None));
            let products = page.items.iter().map(read).collect::<Result<_, _>>()?;
            self.put(writer, products)?;
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(());
            }
        }
    }
}

async fn messages(consumer: &Consumer<pull::Config>) -> anyhow::Result<Messages> {
    Ok(consumer
        .stream()
        .max_messages_per_batch(2 * CHUNK)
        .expires(Duration::from_secs(5))
        .heartbeat(Duration::from_millis(1500))
        .messages()
        .await?)
}

async fn commit(writer: &Arc<Mutex<Writer>>) -> anyhow::Result<()> {
    if !writer.lock().unwrap_or_else(PoisonError::into_inner).is_changed() {
        return Ok(());
    }
    let writer = Arc::clone(writer);
    spawn_blocking(move || writer.lock().unwrap_or_else(PoisonError::into_inner).commit())
        .await??;
    Ok(())
}

/// The product after an event; with the time, if the event has defined it.
fn product(payload: &[u8]) -> anyhow::Result<(Product, Option<i64>)> {
    let event = Event::decode(payload)?;
    anyhow::ensure!(
        event.subject == Subject::Product,
        "the event is about another {}",
        event.subject
    );
    let defined_at = (event.kind == "defined").then(|| event.occurred_at.timestamp_micros());
    Ok((event.state()?, defined_at))
}
