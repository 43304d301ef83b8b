//! What a worker holds back: the later events of an order (a customer, a product) of which an
//! earlier one is parked. They are parked too, behind it, so that nothing is tried for ever and a
//! replay can release all of them in their order. Other orders go on.
//!
//! Each process knows the parked events of its worker: it reads PARKED before it consumes, watches
//! it afterwards, and knows its own at once. Its knowledge is only a filter: before an event is held
//! back, PARKED is asked whether the earlier one is still there.
//!
//! What this does not do: between the moment in which one replica stumbles over an event and the one
//! in which another replica sees it parked (milliseconds; seconds where its watch has to be rebuilt),
//! the other may process a later event of the same order.
//! The same goes for events that are in work at the same time. That is harmless where it happens,
//! since workers take events in any order and versions guard what they write; it only means that a
//! later event is done already when the earlier one is replayed. The other way round, an event that
//! is parked behind another one while that is being replayed stays parked until the next replay.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Reader;
use crate::log::Log;
use crate::topology::Topology;

/// Events that are known at the most. Beyond it PARKED is asked about every event: slow, but right.
const MOST: usize = 250_000;
/// How often all is read anew, so that what others have removed is forgotten.
const RELOAD: Duration = Duration::from_mins(10);

/// Whether an event may be processed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Nothing is before it.
    Free,
    /// An earlier one has failed and will be tried again.
    Wait(u64),
    /// An earlier one is parked.
    Behind {
        /// Its sequence in PARKED.
        parked: u64,
        /// Its sequence in EVENTS.
        original: u64,
    },
}

/// The events that a worker has parked.
#[derive(Debug)]
pub struct Held {
    worker: &'static str,
    topology: Topology,
    parked: Log,
    reader: Reader,
    known: Mutex<Known>,
    loaded: watch::Sender<bool>,
}

/// Stream sequences in EVENTS, by `order.ID`.
#[derive(Debug, Default)]
struct Known {
    events: HashMap<String, BTreeMap<u64, Mark>>,
    count: usize,
    reading: u64,
    too_many: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    /// In which reading of PARKED it was there.
    reading: u64,
    /// Until when it holds back others although it is not parked.
    unsettled: Option<Instant>,
}

impl Known {
    fn is_empty(&self) -> bool {
        self.count == 0 && !self.too_many
    }

    fn insert(&mut self, key: String, sequence: u64, unsettled: Option<Instant>) {
        if self.count >= MOST {
            self.too_many = true;
            return;
        }
        let mark = Mark { reading: self.reading, unsettled };
        if self.events.entry(key).or_default().insert(sequence, mark).is_none() {
            self.count += 1;
        }
    }

    fn remove(&mut self, key: &str, sequence: u64) {
        if let Some(events) = self.events.get_mut(key) {
            self.count -= usize::from(events.remove(&sequence).is_some());
            if events.is_empty() {
                self.events.remove(key);
            }
        }
    }

    /// The earliest event of the same history, if it is before this one.
    fn before(&self, key: &str, sequence: u64) -> Option<(u64, Mark)> {
        let (earliest, mark) = self.events.get(key)?.first_key_value()?;
        (*earliest < sequence).then_some((*earliest, *mark))
    }

    /// A reading has come to its end: what was not there is forgotten.
    fn forget_gone(&mut self, now: Instant) {
        let reading = self.reading;
        self.events.retain(|_, events| {
            events.retain(|_, mark| {
                mark.reading >= reading || mark.unsettled.is_some_and(|until| until > now)
            });
            !events.is_empty()
        });
        self.count = self.events.values().map(BTreeMap::len).sum();
    }
}

impl Held {
    /// What `worker` holds back; `parked` is the log of PARKED.
    pub fn new(worker: &'static str, topology: Topology, parked: Log) -> Self {
        let reader = Reader::new(parked.clone());
        let (loaded, _) = watch::channel(false);
        Self { worker, topology, parked, reader, known: Mutex::default(), loaded }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // No panic can leave it half changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, subject: &str) -> Option<String> {
        self.topology.about(subject).map(|(kind, id)| format!("{kind}.{id}"))
    }

    /// An event has failed, and will be tried again or parked within the time. After it another
    /// replica may have done it, so that it holds back nothing more unless it is parked.
    pub fn stumbled(&self, subject: &str, sequence: u64, within: Duration) {
        if let Some(key) = self.key(subject) {
            self.known().insert(key, sequence, Some(Instant::now() + within));
        }
    }

    /// An event is parked.
    pub fn parked(&self, subject: &str, sequence: u64) {
        if let Some(key) = self.key(subject) {
            self.known().insert(key, sequence, None);
        }
    }

    /// An event is done.
    pub fn done(&self, subject: &str, sequence: u64) {
        let mut known = self.known();
        if known.count > 0
            && let Some(key) = self.key(subject)
        {
            known.remove(&key, sequence);
        }
    }

    /// Whether it is this event's turn.
    pub async fn turn(&self, subject: &str, sequence: u64) -> anyhow::Result<Turn> {
        if self.known().is_empty() {
            return Ok(Turn::Free);
        }
        let Some((kind, id)) = self.topology.about(subject) else { return Ok(Turn::Free) };
        let key = format!("{kind}.{id}");
        loop {
            let (before, too_many) = {
                let known = self.known();
                (known.before(&key, sequence), known.too_many)
            };
            let Some((earlier, mark)) = before else {
                return if too_many {
                    Box::pin(self.ask(&key, sequence)).await
                } else {
                    Ok(Turn::Free)
                };
            };
            if mark.unsettled.is_some_and(|until| until > Instant::now()) {
                return Ok(Turn::Wait(earlier));
            }
            let stream = self.topology.events_stream();
            let place = self.topology.parked_place(self.worker, &stream, subject, earlier);
            if let Some(parked) = Box::pin(self.reader.at(&place)).await? {
                return Ok(Turn::Behind { parked: parked.sequence, original: earlier });
            }
            let mut known = self.known();
            if known.before(&key, sequence) == Some((earlier, mark)) {
                known.remove(&key, earlier);
            }
        }
    }

    /// Too many are parked to know them all.
    async fn ask(&self, key: &str, sequence: u64) -> anyhow::Result<Turn> {
        let places = format!("{}.{key}.*", self.topology.parked(self.worker, "event"));
        let first = self.reader.next(&places, 1).await?;
        Ok(first.filter(|parked| parked.original < sequence).map_or(Turn::Free, |parked| {
            Turn::Behind { parked: parked.sequence, original: parked.original }
        }))
    }

    /// Waits until all that is parked is known.
    pub async fn loaded(&self) {
        // The sender lives as long as this.
        self.loaded.subscribe().wait_for(|loaded| *loaded).await.ok();
    }

    /// Reads what is parked, and watches it, until the shutdown.
    pub async fn watch(&self, shutdown: &CancellationToken) {
        while !shutdown.is_cancelled() {
            let read = tokio::select! {
                read = self.read() => read,
                () = shutdown.cancelled() => return,
            };
            if let Err(error) = read {
                tracing::warn!(worker = self.worker, "what is parked cannot be read: {error:#}");
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    () = shutdown.cancelled() => {}
                }
            }
        }
    }

    async fn read(&self) -> anyhow::Result<()> {
        self.known().reading += 1;
        let places = format!("{}.>", self.topology.parked(self.worker, "event"));
        let config = OrderedConfig {
            filter_subject: places.clone(),
            headers_only: true,
            ..OrderedConfig::default()
        };
        let consumer = self.parked.stream().await?.create_consumer(config).await?;
        let mut reading = true;
        if consumer.cached_info().num_pending == 0 {
            reading = false;
            self.has_read();
        }
        let mut messages = consumer.messages().await?;
        let reload = tokio::time::sleep(RELOAD);
        tokio::pin!(reload);
        loop {
            let message = tokio::select! {
                message = messages.next() => message.context("the watch ended")??,
                () = &mut reload => return Ok(()),
            };
            let place = message.subject.strip_prefix(places.trim_end_matches('>'));
            if let Some((key, sequence)) = place.and_then(|place| place.rsplit_once('.'))
                && let Ok(sequence) = sequence.parse()
            {
                self.known().insert(key.to_owned(), sequence, None);
            }
            let pending = message.info().map_or(0, |info| info.pending);
            if reading && pending == 0 {
                reading = false;
                self.has_read();
            }
        }
    }

    fn has_read(&self) {
        let mut known = self.known();
        known.forget_gone(Instant::now());
        known.too_many = known.count >= MOST;
        if known.too_many {
            tracing::error!(worker = self.worker, "more is parked than can be kept in memory");
        }
        drop(known);
        self.loaded.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_later_events_of_the_same_history_wait() {
        let mut known = Known::default();
        known.insert("order.A".into(), 7, None);
        known.insert("order.A".into(), 9, None);
        let before = |known: &Known, key: &str, at| known.before(key, at).map(|(at, _)| at);
        assert_eq!(before(&known, "order.A", 8), Some(7));
        assert_eq!(before(&known, "order.A", 7), None);
        assert_eq!(before(&known, "order.A", 3), None);
        assert_eq!(before(&known, "order.B", 8), None);
        known.remove("order.A", 7);
        assert_eq!(before(&known, "order.A", 8), None);
        assert_eq!(before(&known, "order.A", 10), Some(9));
        known.remove("order.A", 9);
        assert!(known.events.is_empty() && known.count == 0);
    }

    #[test]
    fn what_a_reading_does_not_find_is_forgotten_unless_it_is_being_tried_again() {
        let now = Instant::now();
        let mut known = Known::default();
        known.insert("order.gone".into(), 1, None);
        known.insert("order.tried".into(), 2, Some(now + Duration::from_secs(1)));
        known.insert("order.there".into(), 3, None);
        known.reading += 1;
        known.insert("order.there".into(), 3, None);
        known.forget_gone(now);
        let mut left: Vec<&str> = known.events.keys().map(String::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["order.there", "order.tried"]);
        assert_eq!(known.count, 2);
    }
}
