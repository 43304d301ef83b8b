//! Who may do what at NATS and Redis: one user for each principal, who may do what its work needs
//! and nothing else. What they may do in PostgreSQL is in `migrations/0005_access.sql`.

use std::fmt;

use crate::topology::{Topology, WORKERS};

/// Who connects to the servers. Each has a user of its own at each server that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Principal {
    /// Sets up: makes streams, and the schema of the database. May do everything.
    Admin,
    /// The HTTP edge: publishes commands, reads views, the log and the journal.
    Api,
    /// The operators' routes of the edge: replay and discard parked messages.
    Desk,
    /// Decides commands: the ledger, and all events.
    Validation,
    /// Charges: the gateway's book, and the events of payments.
    Payment,
    /// Writes the journal.
    Persistence,
    /// Trims the streams; used by persistence where that is asked for.
    Trim,
    /// Writes the views.
    Projection,
    /// Whoever runs the system, with the program's tools and the NATS CLI.
    Operator,
    /// Another system that places commands over NATS and listens to events.
    Service,
    /// Whoever evaluates the journal with SQL.
    Reports,
}

/// What a user may do at NATS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NatsRights {
    /// Subjects to publish on.
    pub publish: Vec<String>,
    /// Exceptions from these.
    pub never: Vec<String>,
    /// Subjects to listen on.
    pub subscribe: Vec<String>,
    /// Whether a request that it got may be answered, whatever the subject.
    pub answers: bool,
}

impl Principal {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Admin,
        Self::Api,
        Self::Desk,
        Self::Validation,
        Self::Payment,
        Self::Persistence,
        Self::Trim,
        Self::Projection,
        Self::Operator,
        Self::Service,
        Self::Reports,
    ];

    /// The name, as it stands in users and in the names of password files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Api => "api",
            Self::Desk => "desk",
            Self::Validation => "validation",
            Self::Payment => "payment",
            Self::Persistence => "persistence",
            Self::Trim => "trim",
            Self::Projection => "projection",
            Self::Operator => "operator",
            Self::Service => "service",
            Self::Reports => "reports",
        }
    }

    /// What it may do at NATS; nothing if it has no user there.
    pub fn at_nats(self, topology: &Topology) -> Option<NatsRights> {
        let ns = topology.namespace();
        let (commands, events) = (topology.commands_stream(), topology.events_stream());
        let parked = topology.parked_stream();
        // Replies come to an inbox that nobody else can listen on.
        let own = Rights { topology, it: NatsRights::default() }.hears([inbox(ns, self) + ".>"]);
        let rights = match self {
            Self::Admin => own.says([">".to_owned()]).hears([">".to_owned()]),
            Self::Api => own
                .says([topology.all_commands(), topology.payment_hint()])
                .hears(["order", "customer", "command"].map(|of| topology.query(of, "*")))
                .serves()
                // The pipeline's figures.
                .says(
                    WORKERS
                        .map(|(worker, _)| worker)
                        .iter()
                        .chain(&["api"])
                        .map(|it| format!("$SRV.STATS.{}", topology.service(it))),
                )
                .reads(&commands)
                .reads(&events)
                .reads(&parked)
                .follows(&events),
            Self::Desk => own
                .reads(&commands)
                .reads(&events)
                .reads(&parked)
                .says([format!("{ns}.replay.>"), removal(&parked)]),
            Self::Validation => own
                .works(&commands, "validation")
                .works(&events, "reservations")
                .reads(&events)
                .says([format!("{ns}.evt.>")]),
            Self::Payment => own
                .works(&events, "payment")
                .hears([topology.payment_hint()])
                .reads(&events)
                .says(PAYMENT_EVENTS.map(|kind| topology.order_events(kind))),
            Self::Persistence => own.works(&events, "persistence"),
            Self::Trim => own
                .reads(&commands)
                .reads(&events)
                .reads(&parked)
                .says([&commands, &events].map(|it| format!("$JS.API.STREAM.PURGE.{it}"))),
            Self::Projection => {
                own.works(&events, "projection").reads(&commands).reads(&events).follows(&events)
            }
            Self::Operator => own
                .says(["cmd", "query", "replay"].map(|of| format!("{ns}.{of}.>")))
                .says(["$SRV.>", "$JS.API.INFO"].map(str::to_owned))
                .says(["$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST"].map(str::to_owned))
                .hears(["cmd", "evt", "parked", "query", "replay"].map(|of| format!("{ns}.{of}.>")))
                // Where the NATS CLI and others wait for answers.
                .hears(["_INBOX.>".to_owned()])
                .reads(&commands)
                .reads(&events)
                .reads(&parked)
                .follows(&commands)
                .follows(&events)
                .follows(&parked)
                .says([&commands, &events].map(|it| format!("$JS.API.STREAM.PURGE.{it}")))
                .says([removal(&parked)]),
            Self::Service => own
                .says([topology.all_commands(), "$SRV.>".to_owned()])
                .says(["order", "customer", "command"].map(|of| topology.query(of, "*")))
                .hears([format!("{ns}.evt.>"), "_INBOX.>".to_owned()]),
            Self::Reports => return None,
        };
        let NatsRights { publish, mut never, subscribe, answers } = rights.it;
        // What is said to be allowed to nobody but its worker is allowed to the worker.
        never.retain(|subject| !publish.contains(subject));
        Some(NatsRights { publish, never, subscribe, answers })
    }

    /// What it may do at Redis, as rules of an ACL; nothing if it has no user there.
    pub fn at_redis(self, namespace: &str) -> Option<String> {
        let ns = namespace;
        let common = "-@all +@connection +@read +@pubsub +@scripting +@transaction";
        // Dangerous are commands that hold up the server or change it; `INFO` tells of it only.
        let safe = "-@dangerous -script|flush -script|kill +info +time +cluster|slots";
        let (keys, rights) = match self {
            Self::Admin => return Some("~* &* +@all".to_owned()),
            // It marks what is pending (`views/write.rs`), and reads.
            Self::Api => {
                let keys = format!("%R~{ns}:* %RW~{ns}:*:order:* %RW~{ns}:*:command:*");
                (keys, "+set -publish -spublish")
            }
            Self::Projection | Self::Operator => (format!("~{ns}:*"), "+@write"),
            _ => return None,
        };
        Some(format!("{keys} &{ns}:changes {common} {rights} {safe}"))
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What payment appends to the history of an order.
const PAYMENT_EVENTS: [&str; 4] = ["paid", "rejected", "payment-unknown", "refunded"];

/// Where the replies to a principal arrive.
pub fn inbox(namespace: &str, principal: Principal) -> String {
    format!("{namespace}.inbox.{principal}")
}

fn removal(stream: &str) -> String {
    format!("$JS.API.STREAM.MSG.DELETE.{stream}")
}

/// Rights that are being put together.
struct Rights<'a> {
    topology: &'a Topology,
    it: NatsRights,
}

impl Rights<'_> {
    fn says(mut self, subjects: impl IntoIterator<Item = String>) -> Self {
        self.it.publish.extend(subjects);
        self
    }

    fn never(mut self, subjects: impl IntoIterator<Item = String>) -> Self {
        self.it.never.extend(subjects);
        self
    }

    fn hears(mut self, subjects: impl IntoIterator<Item = String>) -> Self {
        self.it.subscribe.extend(subjects);
        self
    }

    /// Is seen by `nats micro`, and answers.
    fn serves(mut self) -> Self {
        self.it.answers = true;
        self.hears(["$SRV.>".to_owned()])
    }

    /// Reads single messages, and how a stream and its consumers stand.
    fn reads(self, stream: &str) -> Self {
        self.says([
            format!("$JS.API.STREAM.INFO.{stream}"),
            format!("$JS.API.STREAM.MSG.GET.{stream}"),
            format!("$JS.API.DIRECT.GET.{stream}"),
            format!("$JS.API.DIRECT.GET.{stream}.>"),
            format!("$JS.API.CONSUMER.INFO.{stream}.*"),
            format!("$JS.API.CONSUMER.LIST.{stream}"),
            format!("$JS.API.CONSUMER.NAMES.{stream}"),
        ])
    }

    /// Reads a stream through consumers of its own, of any name but a worker's.
    fn follows(self, stream: &str) -> Self {
        let own = WORKERS.iter().flat_map(|(worker, _)| self.topology.consumers(worker));
        let replays = WORKERS.iter().map(|(worker, _)| format!("{worker}-replay"));
        let theirs = own.map(|(name, _)| name).chain(replays).flat_map(|it| {
            [
                format!("$JS.API.CONSUMER.CREATE.{stream}.{it}"),
                format!("$JS.API.CONSUMER.CREATE.{stream}.{it}.>"),
                format!("$JS.API.CONSUMER.DELETE.{stream}.{it}"),
                format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{it}"),
                format!("$JS.ACK.{stream}.{it}.>"),
            ]
        });
        let theirs: Vec<String> = theirs.collect();
        self.says([
            format!("$JS.API.CONSUMER.CREATE.{stream}"),
            format!("$JS.API.CONSUMER.CREATE.{stream}.>"),
            format!("$JS.API.CONSUMER.DELETE.{stream}.*"),
            format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"),
            format!("$JS.ACK.{stream}.>"),
        ])
        .never(theirs)
    }

    /// Runs the loop of a worker on a stream, parks what it cannot do, and is asked to try that again.
    fn works(self, stream: &str, worker: &str) -> Self {
        let (ns, parked) = (self.topology.namespace(), self.topology.parked_stream());
        let own = self.topology.consumers(worker).into_iter().map(|(name, _)| (stream, name));
        let replays = (parked.as_str(), format!("{worker}-replay"));
        let consumers = own.chain([replays]).flat_map(|(stream, consumer)| {
            [
                format!("$JS.API.CONSUMER.CREATE.{stream}.{consumer}"),
                format!("$JS.API.CONSUMER.CREATE.{stream}.{consumer}.>"),
                format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
                format!("$JS.ACK.{stream}.{consumer}.>"),
            ]
        });
        let consumers: Vec<String> = consumers.collect();
        let places = [format!("{ns}.parked.{worker}.>")];
        let asked = [self.topology.query("worker", worker)];
        self.says(consumers)
            .says(places)
            .hears(asked)
            .serves()
            .reads(stream)
            .reads(&parked)
            // What was replayed is removed there.
            .says([removal(&parked)])
            // What it has parked already, which it holds other events back for.
            .follows(&parked)
    }
}
