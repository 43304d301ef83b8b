//! Every role as a NATS micro service (NATS ADR-32): `nats micro ls`, `info` and `stats` show which
//! replicas run, in which version, and what they have done since they were started.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::anyhow;
use async_nats::Client;
use async_nats::service::{Service, ServiceExt as _};
use futures_util::StreamExt as _;
use opentelemetry::KeyValue;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::metrics::{Open, Timed, label, metrics, number};
use crate::times::Times;
use crate::topology::Topology;

/// The version of the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What one replica of a worker has done since it was started: counted here, for its statistics and
/// for the process's metrics.
#[derive(Debug)]
pub struct Counters {
    /// Of the metrics.
    labels: [KeyValue; 1],
    processed: AtomicU64,
    failed: AtomicU64,
    redelivered: AtomicU64,
    parked: AtomicU64,
    batches: AtomicU64,
    /// From the moment at which the stream took a message until it was done with.
    times: Times,
}

impl Counters {
    /// Those of a worker.
    pub fn new(worker: &'static str) -> Self {
        Self {
            labels: [label("worker", worker)],
            processed: AtomicU64::default(),
            failed: AtomicU64::default(),
            redelivered: AtomicU64::default(),
            parked: AtomicU64::default(),
            batches: AtomicU64::default(),
            times: Times::default(),
        }
    }

    /// A message is done with, so long after its stream took it.
    pub fn processed(&self, after: Duration) {
        self.processed.fetch_add(1, Ordering::Relaxed);
        self.times.add(after);
        metrics().processed.add(1, &self.labels);
        metrics().message_time.record(after.as_secs_f64(), &self.labels);
    }

    /// An attempt at a message has failed.
    pub fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        metrics().failed.add(1, &self.labels);
    }

    /// A message has come that had come before, here or at another replica.
    pub fn redelivered(&self) {
        self.redelivered.fetch_add(1, Ordering::Relaxed);
        metrics().redelivered.add(1, &self.labels);
    }

    /// A message was parked.
    pub fn parked(&self) {
        self.parked.fetch_add(1, Ordering::Relaxed);
        metrics().parked.add(1, &self.labels);
    }

    /// A batch of so many messages is handed over; it is in hand until the two are dropped.
    pub fn batch(&self, size: usize) -> (Open, Timed) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        metrics().batch_size.record(number(size), &self.labels);
        let open = Open::new(&metrics().in_hand, size, self.labels.to_vec());
        (open, Timed::new(&metrics().batch_time, self.labels.to_vec()))
    }

    /// The numbers by their names.
    pub fn json(&self) -> Value {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "processed": number(&self.processed), "failed": number(&self.failed),
            "redelivered": number(&self.redelivered), "parked": number(&self.parked),
            "batches": number(&self.batches), "times": self.times.counted(),
        })
    }
}

/// A worker that has told that it is there; [`Announced::stop`] takes it back.
#[derive(Debug)]
pub struct Announced {
    service: Service,
    answering: JoinHandle<()>,
}

impl Announced {
    /// Announces one replica of a worker. Its counters are in the statistics of its one endpoint,
    /// which answers with them as well: `{ns}.query.worker.{worker}`.
    pub async fn worker(
        client: &Client,
        topology: &Topology,
        worker: &str,
        counters: Arc<Counters>,
    ) -> anyhow::Result<Self> {
        let told = Arc::clone(&counters);
        let service = client
            .service_builder()
            .description(format!("Millrace worker {worker} of {}", topology.namespace()))
            .stats_handler(move |_, _| told.json())
            .queue_group(worker)
            .start(topology.service(worker), VERSION)
            .await
            .map_err(|error| anyhow!("{error}"))?;
        let mut endpoint = service
            .endpoint_builder()
            .name("status")
            .add(topology.query("worker", worker))
            .await
            .map_err(|error| anyhow!("{error}"))?;
        let answering = tokio::spawn(async move {
            while let Some(request) = endpoint.next().await {
                let answer = counters.json().to_string().into();
                if let Err(error) = request.respond(Ok(answer)).await {
                    tracing::debug!(%error, "a request for counters was not answered");
                }
            }
        });
        Ok(Self { service, answering })
    }

    /// Takes it back.
    pub async fn stop(self) {
        self.answering.abort();
        // It only fails where it has ended.
        self.service.stop().await.ok();
    }
}
