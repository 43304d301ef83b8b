//! The form of a parked message: the original's payload and headers, and headers of our own that
//! tell where it comes from and why it is here.

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::log::timestamp;

pub(super) const WORKER: &str = "Millrace-Worker";
pub(super) const STREAM: &str = "Millrace-Stream";
pub(super) const SEQUENCE: &str = "Millrace-Sequence";
pub(super) const SUBJECT: &str = "Millrace-Subject";
pub(super) const REASON: &str = "Millrace-Reason";
pub(super) const ATTEMPTS: &str = "Millrace-Attempts";
pub(super) const FIRST_SEEN: &str = "Millrace-First-Seen";
/// Says that the payload was not copied.
pub(super) const PAYLOAD: &str = "Millrace-Payload";

/// A parked message.
#[derive(Debug, Clone)]
pub struct Parked {
    /// Its subject in PARKED.
    pub place: String,
    /// Its stream sequence in PARKED; another one after each replay that failed.
    pub sequence: u64,
    /// The worker that could not process it.
    pub worker: String,
    /// The stream that it came in.
    pub stream: String,
    /// Its stream sequence there.
    pub original: u64,
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
    /// Its own headers.
    pub headers: HeaderMap,
    /// Its payload; nothing if it was too large to be copied.
    pub payload: Option<Bytes>,
}

impl Parked {
    /// Reads a message of PARKED; what is not there, or not as it should be, is empty.
    pub fn read(message: &StreamMessage) -> Self {
        let header =
            |name: &str| message.headers.get(name).map_or("", |value| value.as_str()).to_owned();
        let last_seen = timestamp(message.time.unix_timestamp_nanos());
        let first_seen = DateTime::parse_from_rfc3339(&header(FIRST_SEEN));
        Self {
            place: message.subject.to_string(),
            sequence: message.sequence,
            worker: header(WORKER),
            stream: header(STREAM),
            original: header(SEQUENCE).parse().unwrap_or(0),
            subject: header(SUBJECT),
            reason: header(REASON),
            attempts: header(ATTEMPTS).parse().unwrap_or(0),
            first_seen: first_seen.map_or(last_seen, |time| time.with_timezone(&Utc)),
            last_seen,
            headers: own(&message.headers),
            payload: message.headers.get(PAYLOAD).is_none().then(|| message.payload.clone()),
        }
    }
}

/// A message's own headers: neither its instructions to the server nor those of parking.
pub(super) fn own(headers: &HeaderMap) -> HeaderMap {
    let ours = [WORKER, STREAM, SEQUENCE, SUBJECT, REASON, ATTEMPTS, FIRST_SEEN, PAYLOAD];
    let mut own = HeaderMap::new();
    for (name, values) in headers.iter() {
        let text = name.to_string();
        if !text.starts_with("Nats-") && !ours.contains(&text.as_str()) {
            for value in values {
                own.append(name.clone(), value.clone());
            }
        }
    }
    own
}

/// A text that fits into one header line.
pub(super) fn one_line(text: &str) -> String {
    text.chars().take(1000).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
