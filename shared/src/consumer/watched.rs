//! What is told of a worker's messages: how many wait, and each one's place in its trace.

use async_nats::jetstream::consumer::Info;
use chrono::{DateTime, Utc};

use crate::message::now;
use crate::metrics::{label, metrics, number};
use crate::trace::{SpanKind, Trace};

/// Tells how much work waits for all replicas of a worker; each of them tells the same.
pub(super) fn tell_backlog(worker: &'static str, info: &Info, oldest: Option<DateTime<Utc>>) {
    let labels = [label("worker", worker)];
    let pending = usize::try_from(info.num_pending).unwrap_or(usize::MAX);
    metrics().pending.record(number(pending), &labels);
    metrics().unsettled.record(number(info.num_ack_pending), &labels);
    let age = oldest.and_then(|oldest| (now() - oldest).to_std().ok()).unwrap_or_default();
    metrics().oldest.record(age.as_secs_f64(), &labels);
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
