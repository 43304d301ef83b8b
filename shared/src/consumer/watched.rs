//! What is told of a worker's messages: how many wait, and each one's place in its trace.

use async_nats::jetstream::consumer::Info;
use chrono::{DateTime, Utc};

use crate::message::now;
use crate::metrics::{label, metrics, number};
use crate::trace::{SpanKind, Trace};

/// How much work waits for all replicas of a worker; each of them tells the same.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    pending: u64,
    unsettled: usize,
    oldest: Option<DateTime<Utc>>,
}

impl Backlog {
    /// Adds what one of its consumers has, of which the oldest message came at `oldest`.
    pub fn add(&mut self, info: &Info, oldest: Option<DateTime<Utc>>) {
        self.pending += info.num_pending;
        self.unsettled += info.num_ack_pending;
        self.oldest = self.oldest.into_iter().chain(oldest).min();
    }

    pub fn tell(self, worker: &'static str) {
        let labels = [label("worker", worker)];
        let pending = usize::try_from(self.pending).unwrap_or(usize::MAX);
        metrics().pending.record(number(pending), &labels);
        metrics().unsettled.record(number(self.unsettled), &labels);
        let age = self.oldest.and_then(|oldest| (now() - oldest).to_std().ok());
        metrics().oldest.record(age.unwrap_or_default().as_secs_f64(), &labels);
    }
}

/// A worker's part in what a message went through: `validation order.place`, `payment validated`.
/// A command that came without a trace begins one.
pub(super) fn begin(
    worker: &str,
    subject: &str,
    traceparent: Option<&str>,
    sequence: u64,
    attempt: u64,
) -> Trace {
    let mut tokens = subject.rsplit('.');
    let (last, of) = (tokens.next().unwrap_or(""), tokens.next().unwrap_or(""));
    // Of an event the token before its type is an id.
    let trace = match (tokens.next(), traceparent) {
        (Some("cmd"), None) => {
            let name = || format!("{worker} {of}.{last}").into();
            Trace::enter(SpanKind::Consumer, None, name)
        }
        (Some("cmd"), _) => Trace::follow(traceparent, || format!("{worker} {of}.{last}").into()),
        _ => Trace::follow(traceparent, || format!("{worker} {last}").into()),
    };
    if trace.is_recorded() {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        trace.tell("messaging.system", "nats");
        trace.tell("messaging.destination.name", subject.to_owned());
        trace.tell("messaging.message.id", signed(sequence));
        trace.tell("millrace.attempt", signed(attempt));
    }
    trace
}
