//! The one place that acks.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};

use super::{Verdict, jitter};
use crate::log::timestamp;
use crate::message::now;
use crate::parking::held::{Held, Turn};
use crate::parking::{Parking, Unprocessable};
use crate::service::Counters;
use crate::topology::Topology;
use crate::trace::Trace;

/// Deliveries after which a message that keeps failing is parked.
const ATTEMPTS: u64 = 8;
/// What is waited for is under way.
const SOON: Pause = Pause { base: Duration::from_millis(30), most: Duration::from_secs(2) };
/// It is waited for somebody else.
const WAITS: Pause = Pause { base: Duration::from_millis(30), most: Duration::from_secs(15) };
/// A server is away.
const AWAY: Pause = Pause { base: Duration::from_millis(250), most: Duration::from_secs(5) };
/// It has failed.
const RETRY: Pause = Pause { base: Duration::from_millis(100), most: Duration::from_secs(30) };
/// It cannot even be parked.
const PARKING: Pause = Pause { base: Duration::from_secs(1), most: Duration::from_secs(30) };
/// The time that a redelivery, or parking, takes in the usual case.
const MOMENT: Duration = Duration::from_secs(2);

/// How long it is waited for the next delivery: doubled with each, up to a limit.
#[derive(Debug, Clone, Copy)]
struct Pause {
    base: Duration,
    most: Duration,
}

impl Pause {
    fn delay(self, attempt: u64) -> Duration {
        self.base.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(self.most)
    }
}

/// How long ago its stream took a message; none, where the clocks of two machines do not agree.
fn age(message: &Message) -> Duration {
    let stored = message.info().map(|info| timestamp(info.published.unix_timestamp_nanos()));
    stored.ok().and_then(|stored| (now() - stored).to_std().ok()).unwrap_or_default()
}

/// A lost ack only means another delivery.
async fn acknowledge(message: &Message, ack: AckKind) {
    if let Err(error) = message.ack_with(ack).await {
        tracing::debug!(subject = %message.subject, "the ack was not sent: {error}");
    }
}

/// Settles the messages of one worker.
pub(super) struct Settler {
    pub worker: &'static str,
    pub topology: Topology,
    pub counters: Arc<Counters>,
    pub parking: Parking,
    /// Nothing for a worker on commands: a parked command holds back nothing.
    pub held: Option<Held>,
}

impl Settler {
    /// Whether it is this message's turn; if not, the verdict on it.
    pub async fn turn(&self, subject: &str, sequence: u64) -> Result<(), Verdict> {
        let Some(held) = &self.held else { return Ok(()) };
        match held.turn(subject, sequence).await {
            Ok(Turn::Free) => Ok(()),
            Ok(Turn::Wait(earlier)) => {
                Err(Verdict::Later(format!("message {earlier} has failed and is tried again")))
            }
            Ok(Turn::Behind { parked, original }) => Err(Verdict::Park(format!(
                "waits behind parked message {parked} (message {original} of its stream)"
            ))),
            Err(error) => Err(Verdict::of(&error)),
        }
    }

    /// Settles a message that the worker does not want.
    pub async fn pass(&self, message: &Message) {
        acknowledge(message, AckKind::Ack).await;
    }

    /// Carries out the verdict on a message.
    pub async fn settle(&self, message: &Message, attempt: u64, trace: &Trace, verdict: Verdict) {
        trace.end(verdict.problem());
        trace.around(self.carry_out(message, attempt, trace.id(), verdict)).await;
    }

    async fn carry_out(
        &self,
        message: &Message,
        attempt: u64,
        trace_id: Option<&str>,
        verdict: Verdict,
    ) {
        let worker = self.worker;
        let subject = message.subject.as_str();
        let nak = |pause: Pause| AckKind::Nak(Some(jitter(pause.delay(attempt))));
        let sequence = message.info().map_or(0, |info| info.stream_sequence);
        if let Some(held) = &self.held {
            match &verdict {
                Verdict::Done => held.done(subject, sequence),
                Verdict::Failed(_) if attempt < ATTEMPTS => {
                    held.stumbled(subject, sequence, RETRY.delay(attempt) * 2 + MOMENT);
                }
                // Before it is parked, so that nothing can slip past it meanwhile.
                Verdict::Failed(_) | Verdict::Park(_) => {
                    held.stumbled(subject, sequence, PARKING.delay(attempt) * 2 + MOMENT);
                }
                Verdict::Later(_) | Verdict::Waits(_) | Verdict::Unavailable(_) => {}
            }
        }
        if matches!(verdict, Verdict::Failed(_)) {
            self.counters.failed();
        }
        let ack = match verdict {
            Verdict::Done => {
                self.counters.processed(age(message));
                AckKind::Ack
            }
            Verdict::Later(reason) => {
                tracing::debug!(worker, subject, attempt, trace_id, reason, "later");
                nak(SOON)
            }
            Verdict::Waits(reason) => {
                tracing::debug!(worker, subject, attempt, reason, "waits");
                nak(WAITS)
            }
            Verdict::Unavailable(reason) => {
                tracing::warn!(worker, subject, attempt, trace_id, reason, "a server is away");
                nak(AWAY)
            }
            Verdict::Failed(reason) if attempt < ATTEMPTS => {
                tracing::warn!(
                    worker,
                    subject,
                    attempt,
                    trace_id,
                    reason,
                    "failed, to be tried again"
                );
                nak(RETRY)
            }
            Verdict::Failed(reason) | Verdict::Park(reason) => {
                match Box::pin(self.park(message, attempt, &reason)).await {
                    Ok(()) => {
                        crate::crash::point("parking.parked");
                        self.counters.parked();
                        tracing::error!(worker, subject, attempt, trace_id, reason, "parked");
                        if let Some(held) = &self.held {
                            held.parked(subject, sequence);
                        }
                        AckKind::Term
                    }
                    Err(error) => {
                        tracing::warn!(
                            worker,
                            subject,
                            trace_id,
                            reason,
                            "cannot be parked yet: {error:#}"
                        );
                        nak(PARKING)
                    }
                }
            }
        };
        acknowledge(message, ack).await;
    }

    async fn park(&self, message: &Message, attempt: u64, reason: &str) -> anyhow::Result<()> {
        let info = message.info().map_err(|error| anyhow::anyhow!("{error}"))?;
        let found = Unprocessable {
            subject: &message.subject,
            sequence: info.stream_sequence,
            at: timestamp(info.published.unix_timestamp_nanos()),
            headers: message.headers.as_ref(),
            payload: &message.payload,
            size: message.length,
        };
        self.parking.park(found, attempt, reason).await
    }
}
