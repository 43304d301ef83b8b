//! Parking: what cannot be processed is kept in PARKED, with all that an operator needs to know.

use std::time::Duration;

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::log::{Entry, Log};
use crate::topology::Topology;

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
    subject: String,
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
    /// The parking of `worker` for `stream`.
    pub fn new(client: &Client, topology: &Topology, worker: &'static str, stream: String) -> Self {
        let kind = if stream == topology.commands_stream() { "command" } else { "event" };
        let parked = Log::new(client.clone(), topology.parked_stream());
        Self { worker, subject: topology.parked(worker, kind), stream, parked }
    }

    /// Stores the message in PARKED; returns only when that is confirmed.
    pub async fn park(
        &self,
        message: Unprocessable<'_>,
        attempts: u64,
        reason: &str,
    ) -> anyhow::Result<()> {
        let copied = message.size <= MOST_COPIED;
        let mut headers = HeaderMap::new();
        for (name, values) in message.headers.iter().flat_map(|headers| headers.iter()) {
            // The original's instructions to the server are not for PARKED.
            if copied && !name.to_string().starts_with("Nats-") {
                for value in values {
                    headers.append(name.clone(), value.clone());
                }
            }
        }
        let (stream, sequence) = (self.stream.as_str(), message.sequence.to_string());
        let one_line: String =
            reason.chars().take(1000).map(|c| if c.is_control() { ' ' } else { c }).collect();
        for (name, value) in [
            ("Millrace-Worker", self.worker),
            ("Millrace-Stream", stream),
            ("Millrace-Sequence", &sequence),
            ("Millrace-Subject", message.subject),
            ("Millrace-Reason", &one_line),
            ("Millrace-Attempts", &attempts.to_string()),
            ("Millrace-First-Seen", &message.at.to_rfc3339()),
            // Parking twice within the dedupe window leaves one.
            ("Nats-Msg-Id", &format!("{}/{stream}/{sequence}", self.worker)),
        ] {
            headers.insert(name, value);
        }
        if !copied {
            headers.insert("Millrace-Payload", "too large to be copied: it is in the stream");
        }
        let payload = if copied { Bytes::copy_from_slice(message.payload) } else { Bytes::new() };
        let entry = Entry { subject: self.subject.clone(), payload, headers, expect: None };
        self.parked.append(vec![entry], PATIENCE).await?;
        Ok(())
    }
}
