//! Reading a stretch of a stream by the places of its messages, through the API: it ends where it is
//! told to, leaves no consumer behind, and does not stumble over messages that no client can receive.

use std::ops::RangeInclusive;

use anyhow::{Context as _, Result};
use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{RawMessage, State};
use async_nats::jetstream::{self, ErrorCode};
use chrono::TimeDelta;
use futures_util::TryStreamExt as _;
use futures_util::future::try_join_all;
use millrace_shared::log::timestamp;
use millrace_shared::message::{Event, now};
use millrace_shared::topology::Topology;
use serde::Deserialize;

/// Messages that are asked for at a time.
const PAGE: u64 = 256;

/// A stream that is read by places.
#[derive(Debug, Clone)]
pub struct Stretch {
    jetstream: jetstream::Context,
    stream: String,
}

impl Stretch {
    /// Reads from `stream`.
    pub fn new(jetstream: jetstream::Context, stream: String) -> Self {
        Self { jetstream, stream }
    }

    /// What the stream holds now.
    pub async fn state(&self) -> Result<State> {
        let unread = || format!("the stream {} cannot be read", self.stream);
        let stream = self.jetstream.get_stream(&self.stream).await.with_context(unread)?;
        Ok(stream.cached_info().state.clone())
    }

    /// Up to where a durable consumer has settled everything that it wants, if there is one. `last`
    /// is the end of the stream, read before: a consumer with nothing left has passed it.
    pub async fn settled(&self, consumer: &str, last: u64) -> Result<Option<u64>> {
        let stream = self.jetstream.get_stream_no_info(&self.stream).await?;
        match stream.consumer_info(consumer).await {
            Ok(info) => Ok(Some(settled(&info, last))),
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(anyhow::Error::new(error)
                .context(format!("the consumer {consumer} of {} cannot be read", self.stream))),
        }
    }

    /// The last place that a durable consumer has delivered.
    pub async fn delivered(&self, consumer: &str) -> Result<u64> {
        let stream = self.jetstream.get_stream_no_info(&self.stream).await?;
        Ok(stream.consumer_info(consumer).await?.delivered.stream_sequence)
    }

    /// As [`Stretch::settled`], for all durable consumers, by their names.
    pub async fn all_settled(&self, last: u64) -> Result<Vec<(String, u64)>> {
        let stream = self.jetstream.get_stream(&self.stream).await?;
        let mut consumers = stream.consumers();
        let mut all = Vec::new();
        while let Some(info) = consumers.try_next().await? {
            if let Some(name) = &info.config.durable_name {
                all.push((name.clone(), settled(&info, last)));
            }
        }
        Ok(all)
    }

    /// The last place up to which all messages are older than `age`; 0 if none is.
    pub async fn older_than(&self, state: &State, age: TimeDelta) -> Result<u64> {
        let limit = now() - age;
        let (mut low, mut high) = (state.first_sequence, state.last_sequence + 1);
        // All below `low` are older; `high` and all above it are not.
        while low < high {
            let middle = low.midpoint(high);
            match self.first(middle, ">").await? {
                Some(message) if timestamp(message.time.unix_timestamp_nanos()) < limit => {
                    low = message.sequence + 1;
                }
                _ => high = middle,
            }
        }
        Ok(low.saturating_sub(1))
    }

    /// The first message from a place on whose subject fits.
    pub async fn first(&self, from: u64, subject: &str) -> Result<Option<StreamMessage>> {
        self.ask(&serde_json::json!({ "seq": from, "next_by_subj": subject })).await
    }

    /// Removes all messages up to a place; returns how many there were.
    pub async fn purge(&self, through: u64) -> Result<u64> {
        let stream = self.jetstream.get_stream_no_info(&self.stream).await?;
        Ok(stream.purge().sequence(through + 1).await?.purged)
    }

    /// The messages at the first places of `places`, and the places that are left.
    pub async fn page(
        &self,
        places: RangeInclusive<u64>,
    ) -> Result<(Vec<StreamMessage>, Option<RangeInclusive<u64>>)> {
        let (from, to) = places.into_inner();
        let end = to.min(from.saturating_add(PAGE - 1));
        let found = try_join_all((from..=end).map(|place| self.message(place))).await?;
        let left = (end < to).then_some(end + 1..=to);
        Ok((found.into_iter().flatten().collect(), left))
    }

    async fn message(&self, sequence: u64) -> Result<Option<StreamMessage>> {
        self.ask(&serde_json::json!({ "seq": sequence })).await
    }

    async fn ask(&self, request: &serde_json::Value) -> Result<Option<StreamMessage>> {
        #[derive(Deserialize)]
        struct Answer {
            message: RawMessage,
        }
        let subject = format!("STREAM.MSG.GET.{}", self.stream);
        let raw = match self.jetstream.request(subject, request).await? {
            Response::Ok(Answer { message }) => message,
            Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                return Ok(None);
            }
            Response::Err { error } => return Err(error.into()),
        };
        let message = StreamMessage::try_from(raw.clone())
            // Headers that no client can receive: the worker went without them, too.
            .or_else(|_| StreamMessage::try_from(RawMessage { headers: None, ..raw }));
        message.map(Some).map_err(|error| anyhow::anyhow!(error))
    }
}

/// The event in a message of the log; nothing for a clock, or for what no worker could read.
pub fn event(topology: &Topology, message: &StreamMessage) -> Option<Event> {
    let event = Event::decode(&message.payload).ok()?;
    let subject = topology.event(event.subject, &event.subject_id, &event.kind);
    (*message.subject == *subject).then_some(event)
}

fn settled(info: &Info, last: u64) -> u64 {
    if info.num_pending == 0 && info.num_ack_pending == 0 {
        last
    } else {
        info.ack_floor.stream_sequence.min(last)
    }
}
