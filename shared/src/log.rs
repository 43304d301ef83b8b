//! The one place that appends to a stream. Concurrent appends share a batch (group commit): few
//! go out singly, many as one atomic batch (NATS ADR-50), because with `sync_interval: always` a
//! single append costs an fsync and a batch costs about as much as fifteen of them, whatever its
//! size.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind};
use async_nats::{Client, HeaderMap, jetstream};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::message::{Event, EventError, Subject};
use crate::topology::Topology;

/// From this many messages on an atomic batch is faster than single appends. Measured on one node
/// with `sync_interval: always`: 4.4 thousand single appends a second with many in flight, and
/// 3.3 ms for an atomic batch of any size.
const ATOMIC_FROM: usize = 15;
/// Messages in one atomic batch; the server takes up to 1,000.
const ATOMIC_MOST: usize = 500;
/// Batches under way at a time; the server takes up to 50 for a stream.
const IN_FLIGHT: usize = 4;
/// How much longer than the patience an answer may take on its way.
const GRACE: Duration = Duration::from_millis(150);
/// The types of events after which an order no longer waits for its payment.
const ENDS_WAIT: [&str; 4] = ["paid", "rejected", "cancelled", "expired"];
/// Groups that wait for their turn; beyond it appends wait or are refused.
const QUEUE: usize = 8 * 1024;

/// A message to be appended.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where.
    pub subject: String,
    /// What.
    pub payload: Bytes,
    /// Its headers.
    pub headers: HeaderMap,
    /// What must be the last message of the history it continues.
    pub expect: Option<Expect>,
}

/// The append is refused unless this holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expect {
    /// All subjects of the history, with a wildcard.
    pub history: String,
    /// The stream sequence of its last message; 0 if there is none.
    pub sequence: u64,
}

impl Entry {
    /// The entry of an event, to follow the message with the stream sequence `after` (0: none).
    pub fn event(topology: &Topology, event: &Event, after: u64) -> Result<Self, EventError> {
        let mut headers = HeaderMap::new();
        if let Some(traceparent) = &event.traceparent {
            headers.insert(crate::message::TRACEPARENT, traceparent.as_str());
        }
        // What ends the wait for a payment stops its clock, if that still runs.
        if event.subject == Subject::Order && event.version > 1 && ENDS_WAIT.contains(&&*event.kind)
        {
            headers.insert("Nats-Schedule-Next", "purge");
            headers.insert("Nats-Scheduler", topology.clock(&event.subject_id).as_str());
        }
        Ok(Self {
            subject: topology.event(event.subject, &event.subject_id, &event.kind),
            payload: event.encode()?,
            headers,
            expect: Some(Expect {
                history: topology.history(event.subject, &event.subject_id),
                sequence: after,
            }),
        })
    }
}

/// The entries of events that follow each other after the message with the sequence `after`. With
/// an order's acceptance goes the clock of its payment: a message schedule (NATS ADR-51) that tells
/// the time-out when `time_to_pay` is over.
pub fn entries<'a>(
    topology: &Topology,
    events: impl IntoIterator<Item = &'a Event>,
    after: u64,
    time_to_pay: Duration,
) -> Result<Vec<Entry>, EventError> {
    let mut entries = Vec::new();
    for event in events {
        if event.subject == Subject::Order && event.kind == "validated" {
            entries.push(clock(topology, event, time_to_pay));
        }
        entries.push(Entry::event(topology, event, after)?);
    }
    Ok(entries)
}

fn clock(topology: &Topology, event: &Event, time_to_pay: Duration) -> Entry {
    let at = event.occurred_at + time_to_pay;
    let at = at.to_rfc3339_opts(SecondsFormat::Micros, true);
    let order = event.subject_id.as_str();
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Schedule", format!("@at {at}").as_str());
    headers.insert("Nats-Schedule-Target", topology.time_out(order).as_str());
    Entry { subject: topology.clock(order), payload: Bytes::new(), headers, expect: None }
}

/// Why an append did not happen, or is not known to have happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The history has gone on meanwhile; it may be by this very append, if an earlier try timed
    /// out. Read the history to find out.
    #[error("the history has gone on meanwhile")]
    Conflict,
    /// The stream is full, or too much is waiting already. Nothing was appended.
    #[error("the stream takes no more: {0}")]
    Full(String),
    /// No answer within the time. The append may or may not have happened.
    #[error("the stream did not answer in time: {0}")]
    Unavailable(String),
    /// The server will never take this message.
    #[error("the server refuses the message: {0}")]
    Refused(String),
}

struct Job {
    entries: Vec<Entry>,
    deadline: Instant,
    reply: oneshot::Sender<Result<u64, AppendError>>,
}

/// One stream, to be appended to and read from. Clones share the queue.
#[derive(Debug, Clone)]
pub struct Log {
    queue: mpsc::Sender<Job>,
    jetstream: jetstream::Context,
    stream: String,
}

/// An event with its place in the stream.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its stream sequence.
    pub sequence: u64,
    /// When the stream took it.
    pub at: DateTime<Utc>,
    /// The event.
    pub event: Event,
}

/// Why the log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// NATS did not answer as it should.
    #[error("the log cannot be read: {0}")]
    Unavailable(String),
    /// A stored event cannot be read.
    #[error(transparent)]
    Event(#[from] EventError),
}

impl Log {
    /// A log on `stream`. Its task ends when the last clone is dropped.
    pub fn new(client: Client, stream: String) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let jetstream = jetstream::new(client.clone());
        tokio::spawn(run(client, jobs));
        Self { queue, jetstream, stream }
    }

    /// Appends the entries of one group, all or none, and returns the stream sequence of the last.
    /// Waits for room in the queue; tries for at most `patience`.
    pub async fn append(
        &self,
        entries: Vec<Entry>,
        patience: Duration,
    ) -> Result<u64, AppendError> {
        let (job, answer) = Self::job(entries, patience);
        match timeout(patience, self.queue.send(job)).await {
            Ok(sent) => sent.map_err(|_| stopping())?,
            Err(_) => return Err(too_much()),
        }
        await_answer(answer, patience).await
    }

    /// As [`Log::append`], but refuses at once where too much is waiting already.
    pub async fn try_append(
        &self,
        entries: Vec<Entry>,
        patience: Duration,
    ) -> Result<u64, AppendError> {
        let (job, answer) = Self::job(entries, patience);
        self.queue.try_send(job).map_err(|_| too_much())?;
        await_answer(answer, patience).await
    }

    fn job(
        entries: Vec<Entry>,
        patience: Duration,
    ) -> (Job, oneshot::Receiver<Result<u64, AppendError>>) {
        let (reply, answer) = oneshot::channel();
        (Job { entries, deadline: Instant::now() + patience, reply }, answer)
    }

    /// The last event of a history (a subject with a wildcard), asked from the stream's leader.
    pub async fn last(&self, history: &str) -> Result<Option<Stored>, ReadError> {
        let stream = self.stream().await?;
        match stream.get_last_raw_message_by_subject(history).await {
            Ok(message) => stored(&message).map(Some),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(ReadError::Unavailable(error.to_string())),
        }
    }

    /// All events of a history, in their order, as far as the stream still has them.
    pub async fn history(&self, history: &str) -> Result<Vec<Stored>, ReadError> {
        let stream = self.stream().await?;
        let mut events: Vec<Stored> = Vec::new();
        loop {
            let next = events.last().map_or(1, |event| event.sequence + 1);
            match stream.get_first_raw_message_by_subject(history, next).await {
                Ok(message) => events.push(stored(&message)?),
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                    return Ok(events);
                }
                Err(error) => return Err(ReadError::Unavailable(error.to_string())),
            }
        }
    }

    /// A handle of the stream, for what is not about events.
    pub async fn stream(&self) -> Result<jetstream::stream::Stream<()>, ReadError> {
        self.other(&self.stream).await
    }

    /// A handle of another stream on the same connection.
    pub async fn other(&self, name: &str) -> Result<jetstream::stream::Stream<()>, ReadError> {
        self.jetstream
            .get_stream_no_info(name)
            .await
            .map_err(|error| ReadError::Unavailable(error.to_string()))
    }
}

fn stored(message: &jetstream::message::StreamMessage) -> Result<Stored, ReadError> {
    Ok(Stored {
        sequence: message.sequence,
        at: timestamp(message.time.unix_timestamp_nanos()),
        event: Event::decode(&message.payload)?,
    })
}

/// What is not sent in time is answered by the queue; this is for what was sent.
async fn await_answer(
    answer: oneshot::Receiver<Result<u64, AppendError>>,
    patience: Duration,
) -> Result<u64, AppendError> {
    match timeout(patience + GRACE, answer).await {
        Ok(answer) => answer.unwrap_or_else(|_| Err(stopping())),
        Err(_) => Err(AppendError::Unavailable("no answer yet".to_owned())),
    }
}

fn too_much() -> AppendError {
    AppendError::Full("too much is waiting".to_owned())
}

fn stopping() -> AppendError {
    AppendError::Unavailable("the program is stopping".to_owned())
}

/// A time in nanoseconds since 1970, in microseconds.
pub fn timestamp(nanoseconds: i128) -> DateTime<Utc> {
    i64::try_from(nanoseconds / 1_000)
        .ok()
        .and_then(DateTime::from_timestamp_micros)
        .unwrap_or_default()
}

/// Takes what waits, as much as fits into a batch, and sends it while further jobs gather.
async fn run(client: Client, mut jobs: mpsc::Receiver<Job>) {
    let in_flight = std::env::var("EXP_IN_FLIGHT").ok().and_then(|t| t.parse().ok()).unwrap_or(IN_FLIGHT);
    let turns = Arc::new(Semaphore::new(in_flight));
    let mut waiting: VecDeque<Job> = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match jobs.recv().await {
                Some(job) => waiting.push_back(job),
                None => return,
            }
        }
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
        while waiting.len() < ATOMIC_MOST
            && let Ok(job) = jobs.try_recv()
        {
            waiting.push_back(job);
        }
        let batch = in_time(take_batch(&mut waiting));
        let client = client.clone();
        tokio::spawn(async move {
            send(&client, batch).await;
            drop(turn);
        });
    }
}

/// What has waited too long is refused while that has no effect.
fn in_time(batch: Vec<Job>) -> Vec<Job> {
    let now = Instant::now();
    let (late, on_time) = batch.into_iter().partition(|job| job.deadline <= now);
    fail(late, &too_much());
    on_time
}

/// The next batch. Two groups that continue one history never share it: within an atomic batch
/// the server would take both.
fn take_batch(waiting: &mut VecDeque<Job>) -> Vec<Job> {
    let mut batch = Vec::new();
    let mut later = VecDeque::new();
    let mut histories = HashSet::new();
    let mut size = 0;
    while let Some(job) = waiting.pop_front() {
        let mut expected = job.entries.iter().filter_map(|entry| entry.expect.as_ref());
        let clash = expected.any(|expect| histories.contains(&expect.history));
        if clash || (size > 0 && size + job.entries.len() > ATOMIC_MOST) {
            later.push_back(job);
            continue;
        }
        size += job.entries.len();
        histories.extend(
            job.entries.iter().filter_map(|entry| entry.expect.as_ref()).map(|e| e.history.clone()),
        );
        batch.push(job);
    }
    *waiting = later;
    batch
}

async fn send(client: &Client, batch: Vec<Job>) {
    let size: usize = batch.iter().map(|job| job.entries.len()).sum();
    // One group of several is a batch anyway, and others in it cost nothing.
    if size >= ATOMIC_FROM || batch.iter().any(|job| job.entries.len() > 1) {
        send_together(client, batch).await;
    } else {
        join_all(batch.into_iter().map(|job| send_together(client, vec![job]))).await;
    }
}

/// Sends jobs as one. If they are refused as a whole they are tried in halves, so that only the
/// one that is at fault fails.
fn send_together(client: &Client, mut jobs: Vec<Job>) -> BoxFuture<'_, ()> {
    async move {
        let mut pause = Duration::from_millis(20);
        loop {
            let entries: Vec<&Entry> = jobs.iter().flat_map(|job| &job.entries).collect();
            let outcome = match entries.as_slice() {
                [] => return,
                [entry] => append_one(client, entry).await,
                entries => append_batch(client, entries).await,
            };
            match outcome {
                Ok(last) => return succeed(jobs, last),
                Err(Failure::Final(error)) => {
                    if jobs.len() == 1 || matches!(error, AppendError::Full(_)) {
                        return fail(jobs, &error);
                    }
                    let right = jobs.split_off(jobs.len() / 2);
                    send_together(client, jobs).await;
                    send_together(client, right).await;
                    return;
                }
                Err(Failure::Transient(reason)) => {
                    tracing::debug!(%reason, "append is tried again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(1));
                    let now = Instant::now();
                    let (late, on_time) = jobs.into_iter().partition(|job| job.deadline <= now);
                    fail(late, &AppendError::Unavailable(reason));
                    jobs = on_time;
                }
            }
        }
    }
    .boxed()
}

/// The messages of an atomic batch follow each other in the stream without a gap.
fn succeed(jobs: Vec<Job>, last: u64) {
    let mut behind = 0;
    for job in jobs.into_iter().rev() {
        // Who has stopped waiting does not want the answer.
        job.reply.send(Ok(last.saturating_sub(behind))).ok();
        behind += job.entries.len() as u64;
    }
}

fn fail(jobs: Vec<Job>, error: &AppendError) {
    for job in jobs {
        job.reply.send(Err(error.clone())).ok();
    }
}

enum Failure {
    Final(AppendError),
    Transient(String),
}

#[derive(Deserialize)]
struct Ack {
    #[serde(default)]
    seq: u64,
    error: Option<AckError>,
}

#[derive(Deserialize)]
struct AckError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

async fn append_one(client: &Client, entry: &Entry) -> Result<u64, Failure> {
    request(client, entry, headers(entry)).await
}

async fn append_batch(client: &Client, entries: &[&Entry]) -> Result<u64, Failure> {
    let id = Uuid::now_v7().simple().to_string();
    let mut expected: HashSet<&str> = HashSet::new();
    for (index, entry) in entries.iter().enumerate() {
        // Of several events of one history only the first is checked.
        let first = entry.expect.as_ref().is_none_or(|e| expected.insert(&e.history));
        let mut headers = if first { headers(entry) } else { entry.headers.clone() };
        headers.insert("Nats-Batch-Id", id.as_str());
        headers.insert("Nats-Batch-Sequence", (index + 1).to_string().as_str());
        if index + 1 == entries.len() {
            headers.insert("Nats-Batch-Commit", "1");
            return request(client, entry, headers).await;
        }
        client
            .publish_with_headers(entry.subject.clone(), headers, entry.payload.clone())
            .await
            .map_err(|error| Failure::Transient(error.to_string()))?;
    }
    Err(Failure::Transient("an empty batch".to_owned()))
}

fn headers(entry: &Entry) -> HeaderMap {
    let mut headers = entry.headers.clone();
    if let Some(expect) = &entry.expect {
        headers.insert("Nats-Expected-Last-Subject-Sequence", expect.sequence.to_string().as_str());
        headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", expect.history.as_str());
    }
    headers
}

async fn request(client: &Client, entry: &Entry, headers: HeaderMap) -> Result<u64, Failure> {
    let most = client.server_info().max_payload;
    if most > 0 && entry.payload.len() > most {
        let reason = format!("{} bytes, and the server takes {most}", entry.payload.len());
        return Err(Failure::Final(AppendError::Refused(reason)));
    }
    let answer = client
        .request_with_headers(entry.subject.clone(), headers, entry.payload.clone())
        .await
        .map_err(|error| Failure::Transient(error.to_string()))?;
    let ack: Ack = serde_json::from_slice(&answer.payload)
        .map_err(|_| Failure::Transient("an answer that is no publish ack".to_owned()))?;
    let Some(error) = ack.error else { return Ok(ack.seq) };
    let reason = format!("{} ({})", error.description, error.err_code);
    Err(match error.err_code {
        // Wrong last sequence; a duplicate within a batch.
        10071 | 10201 => Failure::Final(AppendError::Conflict),
        // Message too large for the stream or the server.
        10054 | 10097 => Failure::Final(AppendError::Refused(reason)),
        // Stream or account limits.
        10047 | 10077 | 10023 | 10028 => Failure::Final(AppendError::Full(reason)),
        // Among them 10164: another append to this history is under way; it is settled by the next
        // try. And all that a change of leader brings.
        _ => Failure::Transient(reason),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(history: Option<&str>, count: usize) -> Job {
        let entry = Entry {
            subject: "s".to_owned(),
            payload: Bytes::new(),
            headers: HeaderMap::new(),
            expect: history.map(|history| Expect { history: history.to_owned(), sequence: 0 }),
        };
        Job { entries: vec![entry; count], deadline: Instant::now(), reply: oneshot::channel().0 }
    }

    #[test]
    fn two_groups_of_one_history_never_share_a_batch() {
        let mut waiting: VecDeque<Job> =
            [job(Some("a"), 1), job(Some("b"), 1), job(Some("a"), 1), job(None, 1)].into();
        assert_eq!(take_batch(&mut waiting).len(), 3);
        assert_eq!(take_batch(&mut waiting).len(), 1);
    }

    #[test]
    fn a_batch_is_bounded() {
        let mut waiting: VecDeque<Job> = (0..3).map(|_| job(None, ATOMIC_MOST / 2)).collect();
        assert_eq!(take_batch(&mut waiting).len(), 2);
        assert_eq!(waiting.len(), 1);
    }
}
