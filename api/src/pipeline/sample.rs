//! What is told of the pipeline: made from two looks, one after the other, and from the replicas.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use millrace_shared::times::percentile;
use serde::Serialize;
use utoipa::ToSchema;

use super::looks::Look;
use super::replicas::Replicas;

/// The pipeline at a moment.
#[derive(Debug, Serialize, ToSchema)]
pub struct Sample {
    /// When it was looked at.
    pub at: DateTime<Utc>,
    streams: Vec<StreamSample>,
    workers: Vec<WorkerSample>,
    /// Edges that are alive.
    edges: usize,
    health: Vec<ServerSample>,
}

/// A stream.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct StreamSample {
    /// `commands`, `events` or `parked`.
    name: &'static str,
    messages: u64,
    bytes: u64,
    last_sequence: u64,
    /// Messages that came in a second, since the look before.
    per_second: Option<f64>,
}

/// A worker: all replicas of one role.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct WorkerSample {
    name: String,
    /// The stream that it works on.
    stream: &'static str,
    /// Replicas that are alive.
    replicas: usize,
    /// Messages that no replica has had yet.
    pending: u64,
    /// Messages that replicas work on.
    in_flight: u64,
    /// Messages among them that had come before.
    redelivered: u64,
    /// The age of the oldest message that is not done with, in milliseconds.
    oldest_ms: Option<i64>,
    /// Messages done with in a second, since the look before.
    per_second: Option<f64>,
    /// What its replicas have counted since each was started.
    processed: u64,
    failed: u64,
    redelivered_total: u64,
    parked: u64,
    /// How long messages of the last minute took, from the moment at which the stream had them.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
}

/// A server behind the pipeline.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ServerSample {
    name: &'static str,
    up: bool,
    /// How long it took to answer.
    answered_ms: Option<f64>,
}

/// What is kept of a sample for charts.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Point {
    /// When it was looked at.
    pub at: DateTime<Utc>,
    /// Messages a second into each stream.
    streams: BTreeMap<&'static str, Option<f64>>,
    /// Of each worker: messages a second, pending and in flight, oldest in ms, p50 and p99 in ms.
    workers: BTreeMap<String, [Option<f64>; 5]>,
}

/// What the next sample needs of the one before.
#[derive(Debug, Default)]
pub struct Work {
    before: Option<Look>,
}

impl Work {
    /// What is told of a look.
    pub fn sample(&mut self, look: Look, replicas: &Replicas) -> Sample {
        let before = self.before.as_ref();
        let seconds = before.map(|before| seconds(before.at, look.at));
        let rate = |then: Option<u64>, now: u64| {
            // A stream or a consumer that was made anew begins again at nothing.
            let done = now.saturating_sub(then?);
            #[expect(clippy::cast_precision_loss, reason = "numbers of messages in some seconds")]
            seconds.filter(|seconds| *seconds > 0.0).map(|seconds| tenths(done as f64 / seconds))
        };
        let streams = look.streams.iter().map(|it| {
            let then = before.and_then(|look| look.streams.iter().find(|old| old.name == it.name));
            StreamSample {
                name: it.name,
                messages: it.messages,
                bytes: it.bytes,
                last_sequence: it.last,
                per_second: rate(then.map(|then| then.last), it.last),
            }
        });
        let workers = look.workers.iter().map(|it| {
            let then = before.and_then(|look| {
                look.workers.iter().find(|old| old.name == it.name && old.stream == it.stream)
            });
            let role = replicas.role(&it.name).cloned().unwrap_or_default();
            let times = role.times();
            WorkerSample {
                name: it.name.clone(),
                stream: it.stream,
                replicas: role.alive,
                pending: it.pending,
                in_flight: it.in_flight,
                redelivered: it.redelivered,
                oldest_ms: it.oldest.map(|oldest| (look.at - oldest).num_milliseconds().max(0)),
                per_second: rate(then.map(|then| then.done), it.done),
                processed: role.counted.processed,
                failed: role.counted.failed,
                redelivered_total: role.counted.redelivered,
                parked: role.counted.parked,
                p50_ms: percentile(&times, 50).map(tenths),
                p99_ms: percentile(&times, 99).map(tenths),
            }
        });
        let names = ["NATS", "PostgreSQL", "Redis"];
        let health = names.into_iter().zip(look.answered).map(|(name, answered)| ServerSample {
            name,
            up: answered.is_some(),
            answered_ms: answered.map(|time| tenths(time.as_secs_f64() * 1_000.0)),
        });
        let sample = Sample {
            at: look.at,
            streams: streams.collect(),
            workers: workers.collect(),
            edges: replicas.role("api").map_or(0, |role| role.alive),
            health: health.collect(),
        };
        self.before = Some(look);
        sample
    }
}

impl Point {
    /// What is kept of a sample.
    pub fn of(sample: &Sample) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "numbers for charts")]
        let worker = |it: &WorkerSample| {
            let waiting = Some((it.pending + it.in_flight) as f64);
            [it.per_second, waiting, it.oldest_ms.map(|ms| ms as f64), it.p50_ms, it.p99_ms]
        };
        Self {
            at: sample.at,
            streams: sample.streams.iter().map(|it| (it.name, it.per_second)).collect(),
            workers: sample.workers.iter().map(|it| (it.name.clone(), worker(it))).collect(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "some seconds")]
fn seconds(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    (to - from).num_milliseconds() as f64 / 1_000.0
}

/// Nobody reads more digits.
fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::looks::{StreamLook, WorkerLook};
    use super::*;

    fn look(second: i64, last: u64, done: u64) -> Look {
        let at = DateTime::from_timestamp(1_000 + second, 0).unwrap();
        let consumer = WorkerLook {
            name: "payment".to_owned(),
            stream: "events",
            pending: 7,
            in_flight: 3,
            redelivered: 1,
            done,
            oldest: DateTime::from_timestamp(999, 0),
        };
        Look {
            at,
            streams: vec![StreamLook { name: "events", messages: last, bytes: 0, last }],
            workers: vec![consumer],
            answered: [Some(Duration::from_micros(1_260)), None, None],
        }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let (mut work, replicas) = (Work::default(), Replicas::default());
        let first = work.sample(look(0, 100, 50), &replicas);
        assert_eq!(first.streams[0].per_second, None);
        let second = work.sample(look(4, 500, 70), &replicas);
        assert_eq!(second.streams[0].per_second, Some(100.0));
        assert_eq!(second.workers[0].per_second, Some(5.0));
        assert_eq!(second.workers[0].oldest_ms, Some(5_000));
        assert_eq!(second.health[0].answered_ms, Some(1.3));
        assert!(second.health[0].up && !second.health[1].up);
        let point = Point::of(&second);
        assert_eq!(point.workers["payment"], [Some(5.0), Some(10.0), Some(5_000.0), None, None]);
        // It was made anew.
        assert_eq!(work.sample(look(8, 3, 0), &replicas).streams[0].per_second, Some(0.0));
    }
}
