//! The one place that appends to a stream. Concurrent appends share a batch (group commit): few
//! go out singly, many as one atomic batch (NATS ADR-50), because with `sync_interval: always` a
//! single append costs an fsync and a batch costs about as much as eight of them, whatever its
//! size.

mod send;

use std::time::Duration;

use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind};
use async_nats::{Client, HeaderMap, jetstream};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::message::{Event, EventError};
use crate::topology::Topology;

/// How much longer than the patience an answer may take on its way.
const GRACE: Duration = Duration::from_millis(150);
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
        tokio::spawn(send::run(client, stream.clone(), jobs));
        Self { queue, jetstream, stream }
    }

    /// Appends the entries of one group, in their order, and returns the stream sequence of the last.
    /// Where it fails the first of several may be there. Waits for room in the queue; tries for at most
    /// `patience`.
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
