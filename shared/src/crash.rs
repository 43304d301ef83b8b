//! Crash points: named places between an effect and what must follow it. A test makes the process
//! die exactly there (`MILLRACE_CRASH_POINT`), starts it again, and checks the promises. Without the
//! feature `crash-points`, which only the tests have, a point is nothing.

/// All crash points: the name, and what has happened when it is reached.
pub const POINTS: [(&str, &str); 33] = [
    ("api.stored", "the command is stored, the client has no answer yet"),
    (
        "api.marked",
        "the command is stored and, where Redis answers, shown as pending, the client has no answer yet",
    ),
    ("validation.before-commit", "a batch is decided, nothing is committed"),
    ("validation.committed", "decisions and outbox are committed, nothing is in the log"),
    ("validation.appended", "the events are in the log, and in the outbox still"),
    ("validation.cleared", "the outbox is cleared, the commands are not acked"),
    (
        "log.appended-first",
        "of several events that belong together the first is in the log, the next is not",
    ),
    ("relay.told", "a change of stock or credit is in the outbox, not in the log"),
    ("relay.appended", "it is in the log, and in the outbox still"),
    ("reservations.before-commit", "a release is written, not committed"),
    ("reservations.committed", "a release is committed, its event is not acked"),
    ("payment.charged", "the gateway has charged, the log does not know"),
    ("payment.appended", "the charge is in the log, its event is not acked"),
    ("payment.voided", "the gateway takes no charge any more, nothing else is known"),
    ("payment.refunded", "the gateway has refunded, the log does not know"),
    ("stripe.created", "Stripe has an intent that takes no money yet, nobody knows of it"),
    ("stripe.remembered", "the intent is remembered, it takes no money yet"),
    ("stripe.confirmed", "Stripe has charged or declined, that is not remembered"),
    ("stripe.cancelled", "Stripe takes no charge any more, that is not remembered"),
    ("stripe.refunded", "Stripe has refunded, that is not remembered"),
    ("expiry.appended", "the expiry is in the log, the next overdue order is not looked at"),
    ("persistence.before-commit", "a batch is written, not committed"),
    ("persistence.committed", "a batch is committed, its events are not acked"),
    ("projection.documents", "documents are in the views, neither in lists nor in reports"),
    ("projection.listed", "they are in lists and reports, no stream can resume behind them"),
    ("projection.written", "the views are written, the events are not acked"),
    ("catch-up.written", "some of what a crash of Redis took is written again, nothing is noted"),
    ("parking.parked", "a message is parked, and not terminated yet"),
    ("replay.asked", "a replay is asked for and audited, the worker has not begun"),
    ("replay.done", "the worker has done it, the message is parked still"),
    ("replay.removed", "the message is no longer parked, the request is not acked"),
    ("replay.parked-again", "it has failed and is parked again, the request is not acked"),
    ("discard.written", "a discard is audited, the message is parked still"),
];

/// Dies here, if that is asked for.
pub fn point(name: &str) {
    #[cfg(feature = "crash-points")]
    if std::env::var("MILLRACE_CRASH_POINT").is_ok_and(|asked| asked == name) {
        tracing::error!(name, "the process dies here, as it was asked to");
        std::process::abort();
    }
    #[cfg(not(feature = "crash-points"))]
    let _ = name;
}
