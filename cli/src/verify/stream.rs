//! Reading a stream by sequence, through the API, in which headers are only bytes: a message that no
//! client can receive (see `millrace_shared::quarantine`) is read like any other.

use std::time::Duration;

use anyhow::{Result, anyhow};
use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RawMessage;
use async_nats::jetstream::{self, ErrorCode};
use futures_util::{StreamExt as _, TryStreamExt as _};
use millrace_shared::quarantine::unreceivable;
use serde::Deserialize;

/// Requests that are under way at a time.
const IN_FLIGHT: usize = 128;
/// How often a read is tried: a cluster may be choosing a new leader.
const TRIES: u32 = 20;

/// A stream that is read.
#[derive(Debug, Clone)]
pub struct Messages {
    jetstream: jetstream::Context,
    stream: String,
}

/// A message of the stream.
#[derive(Debug)]
pub struct Message {
    /// Its place.
    pub sequence: u64,
    /// Its subject.
    pub subject: String,
    /// Its headers; none if no client can receive them.
    pub headers: HeaderMap,
    /// Why no client can receive it.
    pub unreceivable: Option<&'static str>,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Messages {
    /// The messages of a stream.
    pub fn new(jetstream: jetstream::Context, stream: String) -> Self {
        Self { jetstream, stream }
    }

    /// The sequences of the first and of the last message. In an empty stream the first is beyond
    /// the last.
    pub async fn range(&self) -> Result<(u64, u64)> {
        let state = self.jetstream.get_stream(&self.stream).await?.cached_info().state.clone();
        Ok((state.first_sequence.max(1), state.last_sequence))
    }

    /// The messages with these sequences, in their order; those that are not there are left out.
    pub async fn read(&self, sequences: impl IntoIterator<Item = u64>) -> Result<Vec<Message>> {
        let reads: Vec<_> = sequences.into_iter().map(|sequence| self.read_one(sequence)).collect();
        let found: Vec<Option<Message>> =
            futures_util::stream::iter(reads).buffered(IN_FLIGHT).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn read_one(&self, sequence: u64) -> Result<Option<Message>> {
        let mut tries = 0;
        loop {
            match self.get(sequence).await {
                Ok(raw) => return raw.map(message).transpose(),
                Err(error) if tries == TRIES => return Err(error),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn get(&self, sequence: u64) -> Result<Option<RawMessage>> {
        #[derive(Deserialize)]
        struct Answer {
            message: RawMessage,
        }
        let subject = format!("STREAM.MSG.GET.{}", self.stream);
        let request = serde_json::json!({ "seq": sequence });
        match self.jetstream.request(subject, &request).await? {
            Response::Ok(Answer { message }) => Ok(Some(message)),
            Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                Ok(None)
            }
            Response::Err { error } => Err(error.into()),
        }
    }
}

fn message(mut raw: RawMessage) -> Result<Message> {
    let unreceivable = unreceivable(&raw)?;
    if unreceivable.is_some() {
        raw.headers = None;
    }
    let sequence = raw.sequence;
    let subject = raw.subject.clone();
    let read =
        StreamMessage::try_from(raw).map_err(|error| anyhow!("message {sequence}: {error}"))?;
    Ok(Message {
        sequence,
        subject,
        headers: read.headers,
        unreceivable,
        payload: read.payload.to_vec(),
    })
}
