//! Parking: what cannot be processed is kept in PARKED, with all that an operator needs to know.
//!
//! A parked message has a subject of its own, made of the worker, the original's stream and its
//! stream sequence. So it is parked once however often it is delivered, a replay that fails replaces
//! it in one step, and it is in PARKED until it is replayed or discarded: there is no moment in
//! which a crash could lose it.

pub mod audit;
pub mod desk;
pub mod held;
pub mod record;
pub mod told;

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind};
use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::log::{AppendError, Entry, Expect, Log, ReadError};
use crate::topology::Topology;
pub(crate) use record::Parked;
use record::{one_line, own};

/// A message larger than this (bytes) is not copied: it is in its stream. With what parking adds, a
/// copy must not become larger than the server takes.
const MOST_COPIED: usize = 512 * 1024;
/// How long parking is tried before it is left for the redelivery.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where one worker parks the messages of one stream.
#[derive(Debug, Clone)]
pub struct Parking {
    worker: &'static str,
    stream: String,
    topology: Topology,
    parked: Log,
}

/// A message that cannot be processed.
#[derive(Debug, Clone, Copy)]
pub struct Unprocessable<'a> {
    /// Its subject.
    pub subject: &'a str,
    /// Its place in the stream.
    pub sequence: u64,
    /// When the stream took it.
    pub at: DateTime<Utc>,
    /// Its headers.
    pub headers: Option<&'a HeaderMap>,
    /// Its payload.
    pub payload: &'a [u8],
    /// The bytes of it all.
    pub size: usize,
}

impl Parking {
    /// The parking of `worker` for `stream`, in the log of PARKED.
    pub fn new(topology: Topology, worker: &'static str, stream: String, parked: Log) -> Self {
        Self { worker, stream, topology, parked }
    }

    /// Stores the message in PARKED; returns only when that is confirmed. One that is there already
    /// stays as it is.
    pub async fn park(
        &self,
        message: Unprocessable<'_>,
        attempts: u64,
        reason: &str,
    ) -> anyhow::Result<()> {
        let copied = message.size <= MOST_COPIED;
        let (stream, sequence) = (self.stream.as_str(), message.sequence);
        let parked = Parked {
            place: self.topology.parked_place(self.worker, stream, message.subject, sequence),
            sequence: 0,
            worker: self.worker.to_owned(),
            stream: stream.to_owned(),
            original: sequence,
            subject: message.subject.to_owned(),
            reason: reason.to_owned(),
            attempts,
            first_seen: message.at,
            last_seen: message.at,
            headers: message.headers.filter(|_| copied).map(own).unwrap_or_default(),
            payload: copied.then(|| Bytes::copy_from_slice(message.payload)),
        };
        self.store(&parked).await
    }

    /// Parks a message again whose replay has failed. If it was discarded meanwhile it stays so.
    pub async fn park_again(
        &self,
        parked: Parked,
        attempts: u64,
        reason: &str,
    ) -> anyhow::Result<()> {
        self.store(&Parked { attempts, reason: reason.to_owned(), ..parked }).await
    }

    /// Stores it in place of the message with its sequence; 0: there is none.
    async fn store(&self, parked: &Parked) -> anyhow::Result<()> {
        let mut headers = parked.headers.clone();
        for (name, value) in [
            (record::WORKER, parked.worker.as_str()),
            (record::STREAM, &parked.stream),
            (record::SEQUENCE, &parked.original.to_string()),
            (record::SUBJECT, &parked.subject),
            (record::REASON, &one_line(&parked.reason)),
            (record::ATTEMPTS, &parked.attempts.to_string()),
            (record::FIRST_SEEN, &parked.first_seen.to_rfc3339()),
        ] {
            headers.insert(name, value);
        }
        if parked.payload.is_none() {
            headers.insert(record::PAYLOAD, "too large to be copied: it is in the stream");
        }
        if parked.sequence > 0 {
            headers.insert("Nats-Rollup", "sub");
        }
        let entry = Entry {
            subject: parked.place.clone(),
            payload: parked.payload.clone().unwrap_or_default(),
            headers,
            expect: Some(Expect { history: parked.place.clone(), sequence: parked.sequence }),
        };
        match self.parked.append(vec![entry], PATIENCE).await {
            // It is there: by an earlier delivery, another replica, or a try that timed out. Or,
            // where it should be replaced, somebody has discarded or replaced it.
            Ok(_) | Err(AppendError::Conflict) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads PARKED.
#[derive(Debug, Clone)]
pub struct Reader {
    parked: Log,
}

impl Reader {
    /// A reader on the log of PARKED.
    pub fn new(parked: Log) -> Self {
        Self { parked }
    }

    /// The parked message with this sequence.
    pub async fn get(&self, sequence: u64) -> Result<Option<Parked>, ReadError> {
        match self.parked.stream().await?.get_raw_message(sequence).await {
            Ok(message) => Ok(Some(Parked::read(&message))),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(ReadError::Unavailable(error.to_string())),
        }
    }

    /// The first parked message with at least this sequence whose place fits.
    pub async fn next(&self, places: &str, sequence: u64) -> Result<Option<Parked>, ReadError> {
        let stream = self.parked.stream().await?;
        match stream.get_first_raw_message_by_subject(places, sequence.max(1)).await {
            Ok(message) => Ok(Some(Parked::read(&message))),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(ReadError::Unavailable(error.to_string())),
        }
    }

    /// The parked message at a place.
    pub async fn at(&self, place: &str) -> Result<Option<Parked>, ReadError> {
        match self.parked.stream().await?.get_last_raw_message_by_subject(place).await {
            Ok(message) => Ok(Some(Parked::read(&message))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(ReadError::Unavailable(error.to_string())),
        }
    }

    /// Its payload and its own headers, from its own stream if they were not copied; nothing if they
    /// are no longer there.
    pub async fn content(&self, parked: &Parked) -> Result<Option<(Bytes, HeaderMap)>, ReadError> {
        if let Some(payload) = &parked.payload {
            return Ok(Some((payload.clone(), parked.headers.clone())));
        }
        let stream = self.parked.other(&parked.stream).await?;
        match stream.get_raw_message(parked.original).await {
            Ok(message) => Ok(Some((message.payload, own(&message.headers)))),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(ReadError::Unavailable(error.to_string())),
        }
    }

    /// Removes a message of PARKED; tells whether it was there.
    pub async fn remove(&self, sequence: u64) -> Result<bool, ReadError> {
        let stream = self.parked.stream().await?;
        match stream.delete_message(sequence).await {
            Ok(removed) => Ok(removed),
            Err(error) => match self.get(sequence).await? {
                Some(_) => Err(ReadError::Unavailable(error.to_string())),
                None => Ok(false),
            },
        }
    }
}
