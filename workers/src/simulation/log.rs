//! The two streams and their consumers, in memory: honest about expected sequences, atomic groups,
//! redelivery and acks that are not durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Result;
use async_nats::HeaderMap;
use bytes::Bytes;
use millrace_shared::ids::OrderId;
use millrace_shared::log::{AppendError, Entry, ReadError, Stored};
use millrace_shared::message::{Event, Subject, now};
use millrace_shared::order::Order;

use super::fate::{Fate, Flaw, lock};
use crate::event_log::EventLog;

/// A message in a stream; its sequence is its place, from 1.
#[derive(Debug, Clone)]
pub struct Message {
    pub subject: String,
    pub payload: Bytes,
    pub headers: HeaderMap,
}

/// A durable consumer.
#[derive(Debug, Default)]
pub struct Consumer {
    subjects: Vec<String>,
    /// How many messages of the stream it has looked at.
    seen: usize,
    pending: BTreeMap<u64, Pending>,
    acked: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Pending {
    attempts: u64,
    in_work: bool,
}

/// A message and which delivery of it this is.
pub type Delivered = (u64, u64);

#[derive(Debug, Default)]
pub struct Stream {
    pub messages: Vec<Message>,
    pub consumers: BTreeMap<&'static str, Consumer>,
}

impl Stream {
    pub fn consume(&mut self, name: &'static str, subjects: Vec<String>) {
        self.consumers.insert(name, Consumer { subjects, ..Consumer::default() });
    }

    /// What the consumer gives out next, at most `most`.
    pub fn fetch(&mut self, fate: &Fate, name: &str, most: usize) -> Vec<Delivered> {
        let Some(consumer) = self.consumers.get_mut(name) else { return Vec::new() };
        while let Some(message) = self.messages.get(consumer.seen) {
            consumer.seen += 1;
            if consumer.subjects.iter().any(|subject| matches(subject, &message.subject)) {
                consumer.pending.insert(consumer.seen as u64, Pending::default());
            }
        }
        let impatient = fate.rates().impatient;
        let mut out = Vec::new();
        for (sequence, pending) in &mut consumer.pending {
            // New ones come in their order; what is delivered again comes at some time.
            let again = pending.attempts > 0;
            let due = !pending.in_work || fate.strikes(impatient);
            if out.len() == most || !due || (again && fate.one_in(2)) {
                continue;
            }
            pending.attempts += 1;
            pending.in_work = true;
            out.push((*sequence, pending.attempts));
        }
        out
    }

    /// Settles a delivery: acked, or to be delivered again.
    pub fn settle(&mut self, name: &str, sequence: u64, acked: bool) {
        let Some(consumer) = self.consumers.get_mut(name) else { return };
        if acked {
            consumer.pending.remove(&sequence);
            consumer.acked.insert(sequence);
        } else if let Some(pending) = consumer.pending.get_mut(&sequence) {
            pending.in_work = false;
        }
    }

    /// Forgets some acks, as a server does that is killed.
    pub fn forget_acks(&mut self, fate: &Fate) {
        for consumer in self.consumers.values_mut() {
            let acked = std::mem::take(&mut consumer.acked);
            let (lost, kept) = acked.into_iter().partition::<BTreeSet<u64>, _>(|_| fate.one_in(4));
            consumer.acked = kept;
            consumer
                .pending
                .extend(lost.into_iter().map(|sequence| (sequence, Pending::default())));
        }
    }

    fn floor(&self, name: &str) -> u64 {
        let acked = self.consumers.get(name).map(|consumer| &consumer.acked);
        acked.map_or(0, |acked| acked.iter().zip(1..).take_while(|(a, b)| **a == *b).count() as u64)
    }

    /// Whether there is nothing to be given out, and nothing given out.
    pub fn is_idle(&self) -> bool {
        self.consumers.values().all(|c| c.seen == self.messages.len() && c.pending.is_empty())
    }
}

/// Whether a subject fits a filter.
fn matches(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for part in filter.split('.') {
        match (part, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (part, Some(token)) if part == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// COMMANDS and EVENTS.
#[derive(Debug, Default)]
pub struct Streams {
    pub commands: Stream,
    pub events: Stream,
    /// The places of each history's messages in EVENTS.
    histories: BTreeMap<String, Vec<usize>>,
}

impl Streams {
    pub fn stored(&self, at: usize) -> Result<Stored, ReadError> {
        let event = Event::decode(&self.events.messages[at].payload)?;
        Ok(Stored { sequence: at as u64 + 1, at: now(), event })
    }

    fn places(&self, history: &str) -> &[usize] {
        self.histories.get(history).map_or(&[], Vec::as_slice)
    }

    /// All histories, by their subjects with a wildcard.
    pub fn histories(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.histories.iter().map(|(history, places)| (history.as_str(), places.as_slice()))
    }

    fn append(&mut self, fate: &Fate, entries: &[Entry]) -> Result<u64, AppendError> {
        let mut expected = BTreeSet::new();
        for expect in entries.iter().filter_map(|entry| entry.expect.as_ref()) {
            let last = self.places(&expect.history).last().map_or(0, |at| *at as u64 + 1);
            // Of several events of one history only the first is checked.
            if expected.insert(&expect.history)
                && last != expect.sequence
                && !fate.has(Flaw::AppendsAnywhere)
            {
                fate.tell(|| {
                    let (subject, after) = (&entries[entries.len() - 1].subject, expect.sequence);
                    format!("EVENTS refuses {subject} after {after}: the last is {last}")
                });
                return Err(AppendError::Conflict);
            }
        }
        for entry in entries {
            let at = self.push_event(&entry.subject, entry.payload.clone());
            if let Some(expect) = &entry.expect {
                self.histories.entry(expect.history.clone()).or_default().push(at);
            }
            fate.tell(|| {
                let event = Event::decode(&entry.payload);
                let version = event.map_or_else(|_| String::new(), |e| format!(" v{}", e.version));
                format!("EVENTS {}: {}{version}", at + 1, entry.subject)
            });
        }
        Ok(self.events.messages.len() as u64)
    }

    fn push_event(&mut self, subject: &str, payload: Bytes) -> usize {
        let (subject, headers) = (subject.to_owned(), HeaderMap::new());
        self.events.messages.push(Message { subject, payload, headers });
        self.events.messages.len() - 1
    }

    /// Orders that wait for their payment.
    pub fn unpaid(&self) -> BTreeSet<OrderId> {
        let last = self.histories.values().filter_map(|places| places.last());
        let events = last.filter_map(|at| self.stored(*at).ok()).map(|stored| stored.event);
        events
            .filter(|event| event.subject == Subject::Order)
            .filter_map(|event| event.state::<Order>().ok())
            .filter(|order| order.status.awaits_payment())
            .map(|order| order.order_id)
            .collect()
    }
}

/// The log. Clones share the streams.
#[derive(Clone)]
pub struct MemoryLog {
    fate: Fate,
    streams: Arc<Mutex<Streams>>,
}

impl MemoryLog {
    pub fn new(fate: Fate) -> Self {
        Self { fate, streams: Arc::default() }
    }

    pub fn streams(&self) -> MutexGuard<'_, Streams> {
        lock(&self.streams)
    }

    async fn answers(&self) -> Result<(), ReadError> {
        self.fate.turn().await;
        if self.fate.strikes(self.fate.rates().away) {
            return Err(ReadError::Unavailable("NATS is away".to_owned()));
        }
        Ok(())
    }

    async fn append_all(&self, entries: Vec<Entry>) -> Result<u64, AppendError> {
        let subject = entries.last().map(|entry| entry.subject.clone()).unwrap_or_default();
        loop {
            let (log, entries) = (self.clone(), entries.clone());
            let append = move || log.streams().append(&log.fate, &entries);
            let named = subject.clone();
            match self.fate.request(move || format!("append {named}"), append).await {
                Some(result) => return result,
                // The client tries again by itself, for as long as it has patience.
                None if self.fate.one_in(2) => {}
                None => return Err(AppendError::Unavailable("no answer".to_owned())),
            }
        }
    }
}

impl EventLog for MemoryLog {
    async fn last(&self, history: &str) -> Result<Option<Stored>, ReadError> {
        self.answers().await?;
        let last = {
            let streams = self.streams();
            streams.places(history).last().map(|at| streams.stored(*at)).transpose()
        };
        self.fate.turn().await;
        last
    }

    async fn history(&self, history: &str) -> Result<Vec<Stored>, ReadError> {
        self.answers().await?;
        let events = {
            let streams = self.streams();
            streams.places(history).iter().map(|at| streams.stored(*at)).collect()
        };
        self.fate.turn().await;
        events
    }

    /// Where they are few they go one after another, and the process may die in between.
    async fn append(&self, entries: Vec<Entry>, _: Duration) -> Result<u64, AppendError> {
        if self.fate.one_in(2) {
            return self.append_all(entries).await;
        }
        let mut last = Ok(0);
        for (place, mut entry) in entries.into_iter().enumerate() {
            if let (Some(expect), Ok(before), true) = (&mut entry.expect, &last, place > 0) {
                expect.sequence = *before;
            }
            last = self.append_all(vec![entry]).await;
            if last.is_err() {
                break;
            }
        }
        last
    }

    async fn acknowledged(&self, _: &str, name: &str) -> Result<u64> {
        self.answers().await?;
        let floor = self.streams().commands.floor(name);
        self.fate.turn().await;
        Ok(floor)
    }
}
