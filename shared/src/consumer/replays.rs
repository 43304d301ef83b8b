//! Replays: parked messages that an operator has asked for again. A request is a message of PARKED
//! beside the parked one; it is removed last. So whatever dies in between, the parked message is
//! there until it is done, and the request until there is a result.
//!
//! One request is in work at a time for each worker, over all replicas, in the order in which they
//! were asked for: what was parked behind each other is released in that order. A replay tries for a
//! short while and then ends either way, so none blocks those behind it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::Client;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, AckKind, Message};
use futures_util::StreamExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batch::judge;
use super::settle::Settler;
use super::watched::begin;
use super::{ACK_WAIT, Delivery, Raw, Verdict, Worker, jitter, pause};
use crate::crash;
use crate::log::Log;
use crate::message::TRACEPARENT;
use crate::parking::Reader;
use crate::parking::record::Parked;
use crate::topology::Topology;

/// How long a replay is tried.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a message that fails is tried in one replay.
const TRIES: u32 = 3;
/// Deliveries after which a request is given up that cannot even be tried.
const MOST_DELIVERIES: i64 = 10;

/// The replays of one worker.
pub(super) struct Replays<W> {
    worker: Arc<W>,
    settler: Arc<Settler>,
    topology: Topology,
    reader: Reader,
}

/// How a replay ended.
enum Ended {
    Done,
    /// So many more attempts, and why the last one failed.
    Failed(u64, String),
    /// It was not tried.
    NotNow(String),
}

impl<W: Worker> Replays<W> {
    pub fn new(
        worker: Arc<W>,
        settler: Arc<Settler>,
        client: &Client,
        topology: &Topology,
    ) -> Self {
        let parked = Log::new(client.clone(), topology.parked_stream());
        Self { worker, settler, topology: topology.clone(), reader: Reader::new(parked) }
    }

    /// Carries out requests until the shutdown.
    pub async fn run(self, jetstream: jetstream::Context, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            if let Err(error) = self.pull(&jetstream, &shutdown).await {
                tracing::debug!(worker = W::NAME, "replays are pulled anew: {error:#}");
                pause(Duration::from_secs(1), &shutdown).await;
            }
        }
    }

    async fn pull(
        &self,
        jetstream: &jetstream::Context,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        if let Some(held) = &self.settler.held {
            // Otherwise one might be released before another that it waits for.
            tokio::select! {
                () = held.loaded() => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
        let stream = jetstream.get_stream(self.topology.parked_stream()).await?;
        let config = pull::Config {
            durable_name: Some(format!("{}-replay", W::NAME)),
            filter_subject: self.topology.replays(W::NAME),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_deliver: -1,
            max_ack_pending: 1,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let mut requests = consumer
            .stream()
            .max_messages_per_batch(1)
            .expires(Duration::from_secs(10))
            .heartbeat(Duration::from_secs(3))
            .messages()
            .await?;
        loop {
            let request = tokio::select! {
                request = requests.next() => request.context("the pull ended")??,
                () = shutdown.cancelled() => return Ok(()),
            };
            let ack = match self.replay(&request, shutdown).await {
                Ok(()) => AckKind::Ack,
                Err(error) => {
                    tracing::warn!(worker = W::NAME, "a replay is left for later: {error:#}");
                    AckKind::Nak(Some(jitter(Duration::from_secs(1))))
                }
            };
            // A lost ack only means that a request comes again whose message is gone.
            request.ack_with(ack).await.ok();
        }
    }

    /// Carries out one request, and removes it.
    async fn replay(&self, request: &Message, stop: &CancellationToken) -> anyhow::Result<()> {
        let info = request.info().map_err(|error| anyhow::anyhow!("{error}"))?;
        if info.delivered > MOST_DELIVERIES {
            tracing::error!(worker = W::NAME, subject = %request.subject, "a replay is given up");
        } else if let Some(place) = self.topology.replayed_place(&request.subject)
            && let Some(parked) = self.reader.at(&place).await?
        {
            self.replay_parked(request, parked, stop).await?;
        }
        self.reader.remove(info.stream_sequence).await?;
        Ok(())
    }

    async fn replay_parked(
        &self,
        request: &Message,
        parked: Parked,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let (worker, subject, sequence) = (W::NAME, parked.subject.clone(), parked.original);
        match self.attempt(request, &parked, stop).await? {
            Ended::Done => {
                crash::point("replay.done");
                self.reader.remove(parked.sequence).await?;
                crash::point("replay.removed");
                if let Some(held) = &self.settler.held {
                    held.done(&subject, sequence);
                }
                tracing::info!(worker, subject, sequence, "replayed");
            }
            Ended::Failed(attempts, reason) => {
                tracing::error!(worker, subject, sequence, reason, "a replay has failed");
                let attempts = parked.attempts + attempts;
                self.settler.parking.park_again(parked, attempts, &reason).await?;
                crash::point("replay.parked-again");
            }
            Ended::NotNow(reason) => {
                tracing::info!(worker, subject, sequence, reason, "not replayed");
            }
        }
        Ok(())
    }

    async fn attempt(
        &self,
        request: &Message,
        parked: &Parked,
        stop: &CancellationToken,
    ) -> anyhow::Result<Ended> {
        if let Err(verdict) = self.settler.turn(&parked.subject, parked.original).await {
            return match verdict {
                Verdict::Park(reason) => Ok(Ended::NotNow(reason)),
                Verdict::Unavailable(reason) => bail!(reason),
                other => Ok(Ended::NotNow(format!("{other:?}"))),
            };
        }
        let Some((payload, headers)) = self.reader.content(parked).await? else {
            let reason = "it was too large to be copied, and its stream has it no longer";
            return Ok(Ended::NotNow(reason.to_owned()));
        };
        let traceparent = headers.get(TRACEPARENT).map(async_nats::HeaderValue::as_str);
        let (subject, sequence) = (&*parked.subject, parked.original);
        let trace = begin(W::NAME, subject, traceparent, sequence, parked.attempts + 1);
        let raw = Raw {
            subject: &parked.subject,
            payload: &payload,
            headers: Some(&headers),
            sequence: parked.original,
            at: parked.first_seen,
            trace: &trace,
        };
        let message = match self.worker.decode(&raw) {
            Ok(message) => message,
            Err(reason) => return Ok(Ended::Failed(1, reason)),
        };
        let mut delivery =
            Delivery { message, sequence: parked.original, attempt: parked.attempts, trace };
        let (start, mut wait, mut tries) = (Instant::now(), Duration::from_millis(50), 0);
        loop {
            delivery.attempt += 1;
            tries += 1;
            let one = std::slice::from_ref(&delivery);
            let verdicts = judge(self.worker.as_ref(), std::slice::from_ref(request), one).await;
            let (reason, last) = match verdicts.into_iter().next() {
                Some(Verdict::Done) => return Ok(Ended::Done),
                Some(Verdict::Park(reason)) => (reason, true),
                Some(Verdict::Failed(reason)) => (reason, tries >= TRIES),
                Some(
                    Verdict::Later(reason) | Verdict::Waits(reason) | Verdict::Unavailable(reason),
                ) => (reason, false),
                None => bail!("no verdict"),
            };
            if last || start.elapsed() > PATIENCE {
                return Ok(Ended::Failed(delivery.attempt - parked.attempts, reason));
            }
            if stop.is_cancelled() {
                bail!("the worker stops");
            }
            pause(wait, stop).await;
            wait = (wait * 2).min(Duration::from_secs(1));
        }
    }
}
