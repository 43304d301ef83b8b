//! The appends of the bare loop: atomic batches (NATS ADR-50).

use anyhow::{Context as _, Result, ensure};
use async_nats::jetstream::{self, stream};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use millrace_shared::command::COMMAND_ID_HEADER;
use millrace_shared::topology::StreamOptions;
use serde::Deserialize;
use uuid::Uuid;

use super::Bones;
use crate::bench::system::System;

/// Streams that are configured as Millrace's.
pub(super) struct Streams {
    jetstream: jetstream::Context,
    /// One connection for each stream, so that neither waits for the other.
    commands: Client,
    events: Client,
    namespace: String,
}

#[derive(Deserialize)]
struct Ack {
    seq: Option<u64>,
    error: Option<serde_json::Value>,
}

impl Streams {
    pub async fn new(system: &System) -> Result<Self> {
        let connect = || system.config.nats.connect_now("millrace-bench");
        let (commands, events) = tokio::try_join!(connect(), connect())?;
        let jetstream = jetstream::new(system.nats.clone());
        let namespace = system.topology.namespace().to_owned();
        let streams = Self { jetstream, commands, events, namespace };
        streams.remove().await.ok();
        let [like_commands, like_events, _] = system.topology.streams(&StreamOptions::default());
        for (name, like) in [("COMMANDS", like_commands), ("EVENTS", like_events)] {
            let name = streams.name(name);
            let config = stream::Config {
                subjects: vec![format!("{}.>", name.replace('_', "."))],
                name,
                ..like
            };
            streams.jetstream.create_stream(config).await?;
        }
        Ok(streams)
    }

    fn name(&self, stream: &str) -> String {
        format!("{}_BENCH_{stream}", self.namespace)
    }

    fn subject(&self, stream: &str) -> String {
        self.name(stream).replace('_', ".")
    }

    pub async fn commands(&self, payloads: Vec<Bytes>) -> Result<()> {
        let subject = format!("{}.order.place", self.subject("COMMANDS"));
        let messages = payloads.into_iter().map(|payload| {
            let mut headers = HeaderMap::new();
            headers.insert(COMMAND_ID_HEADER, Uuid::from_u128(rand::random()).to_string().as_str());
            (subject.clone(), headers, payload)
        });
        append(&self.commands, messages.collect()).await.map(|_| ())
    }

    /// Appends an event of each order, to follow the one at its place in the batch that begins at
    /// `after`; returns where its own batch begins.
    pub async fn events(
        &self,
        kind: &str,
        orders: &[Bones],
        payloads: Vec<Bytes>,
        after: Option<u64>,
    ) -> Result<u64> {
        let base = self.subject("EVENTS");
        let messages = orders.iter().zip(payloads).zip(0..).map(|((order, payload), place)| {
            let mut headers = HeaderMap::new();
            let expected = after.map_or(0, |first| first + place);
            let history = format!("{base}.order.{}.*", order.text);
            headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string().as_str());
            headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", history.as_str());
            (format!("{base}.order.{}.{kind}", order.text), headers, payload)
        });
        let last = append(&self.events, messages.collect()).await?;
        Ok(last + 1 - orders.len() as u64)
    }

    pub async fn remove(&self) -> Result<()> {
        for stream in ["COMMANDS", "EVENTS"] {
            self.jetstream.delete_stream(self.name(stream)).await?;
        }
        Ok(())
    }
}

/// Appends all or none; returns the stream sequence of the last.
async fn append(client: &Client, messages: Vec<(String, HeaderMap, Bytes)>) -> Result<u64> {
    let id = Uuid::now_v7().simple().to_string();
    let count = messages.len();
    let mut answer = None;
    for ((subject, mut headers, payload), number) in messages.into_iter().zip(1..) {
        headers.insert("Nats-Batch-Id", id.as_str());
        headers.insert("Nats-Batch-Sequence", number.to_string().as_str());
        if number < count {
            client.publish_with_headers(subject, headers, payload).await?;
        } else {
            headers.insert("Nats-Batch-Commit", "1");
            answer = Some(client.request_with_headers(subject, headers, payload).await?);
        }
    }
    let ack: Ack = serde_json::from_slice(&answer.context("an empty batch")?.payload)?;
    ensure!(ack.error.is_none(), "the stream refuses a batch: {:?}", ack.error);
    ack.seq.context("an acknowledgement without a sequence")
}
