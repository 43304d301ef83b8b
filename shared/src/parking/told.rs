//! What operators ask about parked messages, and what they are told.

use async_nats::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::audit::listed;
use super::record::Parked;
use crate::topology::Topology;

/// Which parked messages are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    worker: Option<String>,
    about: Option<(String, String)>,
}

impl Filter {
    /// Those of a worker, and about one subject: `order/ID`, `customer/ID` or `product/ID`.
    pub fn new(worker: Option<&str>, subject: Option<&str>) -> Result<Self, String> {
        let token = |text: &str| {
            let fits = |c: char| !c.is_whitespace() && !c.is_control() && !".*>".contains(c);
            ((1..=200).contains(&text.chars().count()) && text.chars().all(fits))
                .then(|| text.to_owned())
        };
        let worker = match worker {
            Some(name) => Some(token(name).ok_or("the worker must be a worker's name")?),
            None => None,
        };
        let about = |subject: &str| {
            let (kind, id) = subject.split_once('/')?;
            Some((token(kind)?, token(id)?))
        };
        let about = match subject {
            Some(subject) => Some(about(subject).ok_or("the subject must be like order/ID")?),
            None => None,
        };
        Ok(Self { worker, about })
    }

    /// The places that it means.
    pub(super) fn places(&self, topology: &Topology) -> String {
        match (&self.about, &self.worker) {
            (Some((kind, id)), worker) => {
                let events = topology.parked(worker.as_deref().unwrap_or("*"), "event");
                format!("{events}.{kind}.{id}.*")
            }
            (None, Some(worker)) => topology.parked(worker, ">"),
            (None, None) => topology.all_parked(),
        }
    }
}

/// A parked message as it is listed.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    /// Its sequence in PARKED.
    pub sequence: u64,
    /// The worker that could not process it.
    pub worker: String,
    /// The stream that it came in.
    pub stream: String,
    /// Its sequence there.
    pub original_sequence: u64,
    /// Its subject there.
    pub subject: String,
    /// Why it is parked.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u64,
    /// When its stream took it.
    pub first_seen: DateTime<Utc>,
    /// When it was parked, or tried for the last time.
    pub last_seen: DateTime<Utc>,
}

impl From<&Parked> for Listed {
    fn from(parked: &Parked) -> Self {
        Self {
            sequence: parked.sequence,
            worker: parked.worker.clone(),
            stream: parked.stream.clone(),
            original_sequence: parked.original,
            subject: parked.subject.clone(),
            reason: parked.reason.clone(),
            attempts: parked.attempts,
            first_seen: parked.first_seen,
            last_seen: parked.last_seen,
        }
    }
}

/// A parked message with all that it holds.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Shown {
    /// What the list tells.
    #[serde(flatten)]
    pub listed: Listed,
    /// Its own headers.
    #[serde(serialize_with = "by_name")]
    #[schema(value_type = Object)]
    pub headers: HeaderMap,
    /// Its payload; nothing if it was too large to be copied and its stream has it no longer.
    #[serde(flatten)]
    #[schema(ignore)]
    pub payload: Payload,
}

/// A payload: text as `payload`, other bytes as `payloadBase64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload(pub Option<Bytes>);

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self.0.as_deref().map(|bytes| (std::str::from_utf8(bytes), bytes)) {
            Some((Ok(text), _)) => map.serialize_entry("payload", text)?,
            Some((Err(_), bytes)) => {
                map.serialize_entry("payloadBase64", &STANDARD.encode(bytes))?;
            }
            None => map.serialize_entry("payload", &())?,
        }
        map.end()
    }
}

fn by_name<S: Serializer>(headers: &HeaderMap, serializer: S) -> Result<S::Ok, S::Error> {
    listed(headers).serialize(serializer)
}

/// Some parked messages of a list.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Page {
    /// In the order of their sequences.
    pub items: Vec<Listed>,
    /// Where the next page begins, if there may be one.
    pub next_cursor: Option<u64>,
}

/// What became of a message that was to be replayed or discarded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Its sequence in PARKED when it was asked for.
    pub sequence: u64,
    /// Worker and original subject and sequence; empty if it was gone.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = MaybeWhat)]
    pub what: Option<What>,
    /// What became of it.
    #[serde(flatten)]
    pub result: Done,
}

/// Which message it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct What {
    /// The worker.
    pub worker: String,
    /// The original's subject.
    pub subject: String,
    /// The original's sequence.
    pub original_sequence: u64,
}

/// The same, where it may be gone.
#[derive(ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct MaybeWhat {
    #[schema(nullable = false)]
    worker: Option<String>,
    #[schema(nullable = false)]
    subject: Option<String>,
    #[schema(nullable = false)]
    original_sequence: Option<u64>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "result", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Done {
    /// The worker has processed it, and it is no longer parked.
    Replayed,
    /// It is parked still, or again.
    StillFailing {
        /// Why.
        reason: String,
        /// How often it was tried by now.
        attempts: u64,
        /// Its sequence in PARKED now.
        #[serde(rename = "parkedAs")]
        parked_as: u64,
    },
    /// It was asked for, and no worker has come to it yet. It will be replayed as soon as one does.
    Waiting,
    /// It is in the audit table, and no longer parked.
    Discarded,
    /// It is not parked: it was replayed or discarded before, or never was.
    Gone,
}

/// What a replay of many did.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// One for each message, in the order in which they were asked for.
    pub results: Vec<Outcome>,
    /// Where to go on; nothing when all have been seen.
    pub next_cursor: Option<u64>,
}

impl Outcome {
    /// Of a message that was found; what became of it is still to be said.
    pub(super) fn of(parked: &Parked) -> Self {
        Self {
            sequence: parked.sequence,
            what: Some(What {
                worker: parked.worker.clone(),
                subject: parked.subject.clone(),
                original_sequence: parked.original,
            }),
            result: Done::Gone,
        }
    }
}
