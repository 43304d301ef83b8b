//! What was pulled: read, handed to the worker, settled by its verdicts.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use futures_util::FutureExt as _;
use tokio::time::{Instant, interval_at, timeout};

use super::settle::Settler;
use super::watched::begin;
use super::{Delivery, Raw, Verdict, Worker};
use crate::log::timestamp;
use crate::message::TRACEPARENT;
use crate::trace;

/// How often unfinished work is reported, so that the server goes on waiting.
const PROGRESS: Duration = Duration::from_secs(5);
/// The most time that one batch may take. A database that no longer knows of the connection and cannot
/// say so is noticed by nothing else.
const LIMIT: Duration = Duration::from_secs(45);
/// From this delivery on a message is handled alone, so that it spoils no others' batch.
const ALONE_FROM: u64 = 3;

/// Handles what was pulled; tells whether a server was away.
pub(super) async fn process<W: Worker>(
    worker: &W,
    settler: &Settler,
    messages: Vec<Message>,
) -> bool {
    let mut batch = Vec::with_capacity(messages.len());
    let mut alone = Vec::new();
    let mut away = false;
    for message in messages {
        if !worker.wants(&settler.topology, &message.subject) {
            settler.pass(&message).await;
            continue;
        }
        let Ok(info) = message.info() else { continue };
        let (sequence, attempt) = (info.stream_sequence, info.delivered.unsigned_abs());
        if attempt > 1 {
            settler.counters.redelivered();
        }
        let traceparent = message.headers.as_ref().and_then(|headers| headers.get(TRACEPARENT));
        let traceparent = traceparent.map(async_nats::HeaderValue::as_str);
        let trace = begin(W::NAME, &message.subject, traceparent, sequence, attempt);
        let raw = Raw {
            trace: &trace,
            subject: &message.subject,
            payload: &message.payload,
            headers: message.headers.as_ref(),
            sequence,
            at: timestamp(info.published.unix_timestamp_nanos()),
        };
        match worker.decode(&raw) {
            Ok(decoded) => {
                if let Err(verdict) = settler.turn(&message.subject, sequence).await {
                    away |= matches!(verdict, Verdict::Unavailable(_));
                    settler.settle(&message, attempt, &trace, verdict).await;
                    continue;
                }
                let delivery = Delivery { message: decoded, sequence, attempt, trace };
                if attempt < ALONE_FROM {
                    batch.push((message, delivery));
                } else {
                    alone.push((message, delivery));
                }
            }
            Err(reason) => settler.settle(&message, attempt, &trace, Verdict::Park(reason)).await,
        }
    }
    if !batch.is_empty() {
        away |= process_batch(worker, settler, batch).await;
    }
    for single in alone {
        away |= process_batch(worker, settler, vec![single]).await;
    }
    away
}

async fn process_batch<W: Worker>(
    worker: &W,
    settler: &Settler,
    batch: Vec<(Message, Delivery<W::Message>)>,
) -> bool {
    let (messages, deliveries): (Vec<Message>, Vec<Delivery<W::Message>>) =
        batch.into_iter().unzip();
    let mut away = false;
    let mut again = Vec::new();
    let under_way = settler.counters.batch(messages.len());
    for (at, verdict) in judge(worker, &messages, &deliveries).await.into_iter().enumerate() {
        // Perhaps only because of another message in the batch.
        if messages.len() > 1 && matches!(verdict, Verdict::Failed(_) | Verdict::Park(_)) {
            again.push(at);
        } else {
            away |= matches!(verdict, Verdict::Unavailable(_));
            let Delivery { attempt, trace, .. } = &deliveries[at];
            settler.settle(&messages[at], *attempt, trace, verdict).await;
        }
    }
    drop(under_way);
    for at in again {
        // Perhaps it now comes after one that was parked just before.
        let verdicts = match settler.turn(&messages[at].subject, deliveries[at].sequence).await {
            Ok(()) => Box::pin(judge(worker, &messages[at..=at], &deliveries[at..=at])).await,
            Err(verdict) => vec![verdict],
        };
        for verdict in verdicts {
            away |= matches!(verdict, Verdict::Unavailable(_));
            let Delivery { attempt, trace, .. } = &deliveries[at];
            settler.settle(&messages[at], *attempt, trace, verdict).await;
        }
    }
    away
}

/// The worker's verdict on each message, whatever it does; meanwhile the server is told that they
/// are being worked on.
pub(super) async fn judge<W: Worker>(
    worker: &W,
    messages: &[Message],
    deliveries: &[Delivery<W::Message>],
) -> Vec<Verdict> {
    // A panic is a defect, but it must not take the loop or other messages with it.
    let looked_at = deliveries.iter().map(|it| &it.trace).filter(|trace| trace.is_recorded());
    // Boxed, as elsewhere what is large or rare: each layer around it would copy it.
    let work = trace::batch(looked_at.collect(), worker.handle(deliveries).boxed());
    let guarded = AssertUnwindSafe(work).catch_unwind();
    let work = timeout(LIMIT, guarded);
    tokio::pin!(work);
    // Its first tick is not awaited: though due at once, it would come with the next millisecond.
    let mut progress = interval_at(Instant::now() + PROGRESS, PROGRESS);
    let ended = loop {
        tokio::select! {
            ended = &mut work => break ended,
            _ = progress.tick() => {
                for message in messages {
                    message.ack_with(AckKind::Progress).await.ok();
                }
            }
        }
    };
    let (mut verdicts, missing) = match ended {
        Ok(Ok(verdicts)) => (verdicts, "the worker gave no verdict".to_owned()),
        Ok(Err(_)) => (Vec::new(), "the worker panicked".to_owned()),
        Err(_) => (Vec::new(), format!("it took longer than {} s", LIMIT.as_secs())),
    };
    verdicts.resize_with(messages.len(), || Verdict::Failed(missing.clone()));
    verdicts
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::topology::Topology;

    /// A worker that has nothing to do.
    struct Idle;

    impl Worker for Idle {
        type Message = ();
        const NAME: &'static str = "idle";
        const BATCH: usize = 1;
        const BATCHES: usize = 1;

        fn stream(&self, topology: &Topology) -> String {
            topology.events_stream()
        }

        fn decode(&self, _raw: &Raw<'_>) -> Result<(), String> {
            Ok(())
        }

        async fn handle(&self, _batch: &[Delivery<()>]) -> Vec<Verdict> {
            Vec::new()
        }
    }

    /// The runtime's timers come with whole milliseconds: any that was awaited first would be seen here.
    #[tokio::test(start_paused = true)]
    async fn the_work_on_a_batch_begins_at_once() {
        advance(Duration::from_micros(500)).await;
        let start = Instant::now();
        judge(&Idle, &[], &[]).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
