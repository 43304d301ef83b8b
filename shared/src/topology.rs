//! Every stream, subject and consumer name of Millrace, below one namespace.

use std::time::Duration;

use async_nats::jetstream::{self, stream};

use crate::ids::{CommandId, OrderId};
use crate::message::Subject;

/// The consumer of COMMANDS that decides: what it has acknowledged has its outcome in EVENTS.
pub const DECIDER: &str = "validation";
/// The loops of workers, each with the kinds of orders' events that it wants; if there are none, it is
/// given all of its stream.
pub const WORKERS: [(&str, &[&str]); 5] = [
    (DECIDER, &[]),
    ("reservations", &["rejected", "shipped", "cancelled", "expired", "refunded"]),
    ("payment", &["validated", "payment-unknown", "cancelled", "expired", "refund-requested"]),
    ("persistence", &[]),
    ("projection", &[]),
];

/// The names below one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    namespace: String,
}

/// How the streams are to be kept.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct StreamOptions {
    /// Copies of each stream, on as many servers of the cluster (1, 3 or 5)
    #[arg(long, env = "MILLRACE_STREAM_REPLICAS", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=5))]
    pub stream_replicas: u8,
    /// Bytes that COMMANDS and PARKED may take on disk each; when COMMANDS is full, new commands
    /// are refused. Without it only the server's own limit holds, as it does for EVENTS
    #[arg(long, env = "MILLRACE_STREAM_MAX_BYTES",
          value_parser = clap::value_parser!(i64).range(1_048_576..))]
    pub stream_max_bytes: Option<i64>,
    /// The cluster in which the streams are to be, where there are several
    #[arg(long, env = "MILLRACE_STREAM_CLUSTER", value_name = "NAME")]
    pub stream_cluster: Option<String>,
    /// Tags that each server has to have that keeps a stream, separated by commas
    #[arg(long, env = "MILLRACE_STREAM_TAGS", value_name = "TAG", value_delimiter = ',')]
    pub stream_tags: Vec<String>,
}

impl Default for StreamOptions {
    fn default() -> Self {
        let (stream_cluster, stream_tags) = (None, Vec::new());
        Self { stream_replicas: 1, stream_max_bytes: None, stream_cluster, stream_tags }
    }
}

impl StreamOptions {
    /// On which servers; nothing if on any.
    fn placement(&self) -> Option<stream::Placement> {
        (self.stream_cluster.is_some() || !self.stream_tags.is_empty()).then(|| stream::Placement {
            cluster: self.stream_cluster.clone(),
            tags: self.stream_tags.clone(),
        })
    }
}

impl Topology {
    /// The names below `namespace`: 1 to 40 of `a-z A-Z 0-9 _ -`.
    pub fn new(namespace: &str) -> anyhow::Result<Self> {
        let fits = (1..=40).contains(&namespace.len())
            && namespace.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        anyhow::ensure!(
            fits,
            "the namespace {namespace:?} must be 1 to 40 of the characters A-Z a-z 0-9 _ -"
        );
        Ok(Self { namespace: namespace.to_owned() })
    }

    /// The namespace itself.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The stream of commands.
    pub fn commands_stream(&self) -> String {
        format!("{}_COMMANDS", self.namespace)
    }

    /// The stream of events: the log.
    pub fn events_stream(&self) -> String {
        format!("{}_EVENTS", self.namespace)
    }

    /// The stream of parked messages.
    pub fn parked_stream(&self) -> String {
        format!("{}_PARKED", self.namespace)
    }

    /// Where a question is asked: about an `order`, a `customer`, a `command`, or to a `worker`.
    pub fn query(&self, about: &str, id: &str) -> String {
        format!("{}.query.{about}.{id}", self.namespace)
    }

    /// Where it is told, to whom it may concern at this moment, that the gateway has something to say
    /// about an order's payment. No stream keeps it.
    pub fn payment_hint(&self) -> String {
        format!("{}.hint.payment", self.namespace)
    }

    /// The name of a role among NATS micro services.
    pub fn service(&self, role: &str) -> String {
        format!("{}-{role}", self.namespace)
    }

    /// The subject of a kind of command (`order.place`).
    pub fn command(&self, kind: &str) -> String {
        format!("{}.cmd.{kind}", self.namespace)
    }

    /// All commands.
    pub fn all_commands(&self) -> String {
        self.command(">")
    }

    /// The kind of command that a subject of the COMMANDS stream names.
    pub fn command_kind<'a>(&self, subject: &'a str) -> &'a str {
        subject
            .strip_prefix(self.namespace.as_str())
            .and_then(|rest| rest.strip_prefix(".cmd."))
            .unwrap_or(subject)
    }

    /// The subject of an event.
    pub fn event(&self, subject: Subject, id: &str, kind: &str) -> String {
        format!("{}.evt.{subject}.{id}.{kind}", self.namespace)
    }

    /// All events of one subject: what an append is checked against.
    pub fn history(&self, subject: Subject, id: &str) -> String {
        self.event(subject, id, "*")
    }

    /// All events of one order.
    pub fn order_history(&self, id: OrderId) -> String {
        self.history(Subject::Order, &id.to_string())
    }

    /// The events of a kind, of every order.
    pub fn order_events(&self, kind: &str) -> String {
        self.event(Subject::Order, "*", kind)
    }

    /// All events.
    pub fn all_events(&self) -> Vec<String> {
        [Subject::Order, Subject::Customer, Subject::Product, Subject::Command]
            .map(|subject| format!("{}.evt.{subject}.>", self.namespace))
            .to_vec()
    }

    /// Whether a subject of the EVENTS stream is an event's. Earlier versions kept clocks there, and
    /// strangers may publish what they like.
    pub fn is_event(&self, subject: &str) -> bool {
        let rest = subject.strip_prefix(self.namespace.as_str());
        let rest = rest.and_then(|rest| rest.strip_prefix(".evt.")).unwrap_or("");
        let kind = rest.split('.').next().unwrap_or("");
        [Subject::Order, Subject::Customer, Subject::Product, Subject::Command]
            .iter()
            .any(|subject| subject.as_str() == kind)
    }

    /// The durable consumers of a worker, each with the subject that it asks for, if that is not the
    /// whole stream.
    ///
    /// A worker that wants some kinds of events only ([`WORKERS`]) has one for each. For a consumer with
    /// several filters nats-server (2.15) goes through all subjects of the stream whenever nothing in
    /// a block of its store fits, and holds up every append meanwhile (`docs/performance.md`). With one
    /// filter it does so only while there are fewer than 65,536 (`LoadNextMsg` in its `filestore.go`).
    pub fn consumers(&self, worker: &str) -> Vec<(String, Option<String>)> {
        let consumer = |kind: &&str| (format!("{worker}-{kind}"), Some(self.order_events(kind)));
        match kinds(worker) {
            [] => vec![(worker.to_owned(), None)],
            kinds => kinds.iter().map(consumer).collect(),
        }
    }

    /// Whether a worker wants a message with this subject, as far as [`WORKERS`] tells.
    pub fn is_wanted(&self, worker: &str, subject: &str) -> bool {
        let of_order = || {
            let rest =
                subject.strip_prefix(self.namespace.as_str())?.strip_prefix(".evt.order.")?;
            rest.split_once('.').map(|(_, kind)| kind)
        };
        let kinds = kinds(worker);
        kinds.is_empty() || of_order().is_some_and(|kind| kinds.contains(&kind))
    }

    /// What a worker has parked; `kind` is `command` or `event`. Each message has a place of its own
    /// below it.
    pub fn parked(&self, worker: &str, kind: &str) -> String {
        format!("{}.parked.{worker}.{kind}", self.namespace)
    }

    /// All that is parked.
    pub fn all_parked(&self) -> String {
        format!("{}.parked.>", self.namespace)
    }

    /// The place of one parked message: worker, stream and stream sequence tell which it is, so
    /// nothing is ever parked twice. An event's place names its order, customer or product as well.
    pub fn parked_place(&self, worker: &str, stream: &str, subject: &str, sequence: u64) -> String {
        if stream == self.commands_stream() {
            return format!("{}.{sequence}", self.parked(worker, "command"));
        }
        let events = self.parked(worker, "event");
        match self.about(subject) {
            Some((kind, id)) => format!("{events}.{kind}.{id}.{sequence}"),
            None => format!("{events}.{sequence}"),
        }
    }

    /// What an event's subject says that it is about: `order` and its id. Nothing where a stranger
    /// has published something else.
    pub fn about<'a>(&self, subject: &'a str) -> Option<(&'a str, &'a str)> {
        let rest = subject.strip_prefix(self.namespace.as_str())?.strip_prefix(".evt.")?;
        let mut tokens = rest.split('.');
        let (kind, id) = (tokens.next()?, tokens.next()?);
        tokens.next()?;
        // A longer one might not fit into the subject of a parked message.
        (tokens.next().is_none() && kind.len() + id.len() <= 200).then_some((kind, id))
    }

    /// Where the replay of a parked message is asked for.
    pub fn replay_place(&self, parked: &str) -> Option<String> {
        let rest = parked.strip_prefix(self.namespace.as_str())?.strip_prefix(".parked.")?;
        Some(format!("{}.replay.{rest}", self.namespace))
    }

    /// The place of the parked message whose replay is asked for.
    pub fn replayed_place(&self, replay: &str) -> Option<String> {
        let rest = replay.strip_prefix(self.namespace.as_str())?.strip_prefix(".replay.")?;
        Some(format!("{}.parked.{rest}", self.namespace))
    }

    /// The replays that a worker is asked for.
    pub fn replays(&self, worker: &str) -> String {
        format!("{}.replay.{worker}.>", self.namespace)
    }

    /// The command id of a message that brought none.
    pub fn command_id(&self, sequence: u64) -> CommandId {
        CommandId::from_sequence(&self.commands_stream(), sequence)
    }

    /// The configurations of the three streams. None of them ever drops a message to make room:
    /// a full stream refuses what is new.
    pub fn streams(&self, options: &StreamOptions) -> [stream::Config; 3] {
        let base = |name: String, subject: String| stream::Config {
            name,
            subjects: vec![subject],
            retention: stream::RetentionPolicy::Limits,
            discard: stream::DiscardPolicy::New,
            storage: stream::StorageType::File,
            num_replicas: usize::from(options.stream_replicas),
            placement: options.placement(),
            max_bytes: options.stream_max_bytes.unwrap_or(-1),
            duplicate_window: Duration::from_mins(2),
            allow_atomic_publish: true,
            allow_direct: true,
            ..stream::Config::default()
        };
        [
            base(self.commands_stream(), self.all_commands()),
            stream::Config {
                // What was decided must find its place: a full COMMANDS refuses what is new.
                max_bytes: -1,
                ..base(self.events_stream(), format!("{}.evt.>", self.namespace))
            },
            stream::Config {
                subjects: vec![self.all_parked(), format!("{}.replay.>", self.namespace)],
                // What is parked anew replaces what was parked before, in one step.
                allow_rollup: true,
                ..base(self.parked_stream(), String::new())
            },
        ]
    }

    /// Creates the streams, or brings existing ones to this configuration. Never deletes one.
    pub async fn create(
        &self,
        jetstream: &jetstream::Context,
        options: &StreamOptions,
    ) -> anyhow::Result<()> {
        for mut config in self.streams(options) {
            let name = config.name.clone();
            // Earlier versions kept clocks in EVENTS. The server does not take that right back, and gives
            // it only without `discard new`; without a limit of its own the stream discards nothing.
            if let Ok(stream) = jetstream.get_stream(&name).await
                && stream.cached_info().config.allow_message_schedules
            {
                config.allow_message_schedules = true;
                config.discard = stream::DiscardPolicy::Old;
            }
            jetstream.create_or_update_stream(config).await.map_err(|error| {
                anyhow::Error::new(error).context(format!(
                    "the stream {name} cannot be created or updated; an existing stream is never \
                     deleted, compare it with `nats stream info {name}`"
                ))
            })?;
        }
        Ok(())
    }
}

/// The worker that a durable consumer is of ([`Topology::consumers`]); its own name, if it is of none.
pub fn worker_of(consumer: &str) -> &str {
    let is_of = |(worker, kinds): &(&str, &[&str])| {
        let kind = consumer.strip_prefix(worker).and_then(|rest| rest.strip_prefix('-'));
        kind.is_some_and(|kind| kinds.contains(&kind))
    };
    WORKERS.into_iter().find(is_of).map_or(consumer, |(worker, _)| worker)
}

fn kinds(worker: &str) -> &'static [&'static str] {
    WORKERS.into_iter().find(|(name, _)| *name == worker).map_or(&[], |(_, kinds)| kinds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_cannot_break_out_of_its_subjects() {
        for bad in ["", "a.b", "a b", "*", ">", "a\n"] {
            assert!(Topology::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_kind_of_a_command_is_the_end_of_its_subject() {
        let topology = Topology::new("shop").unwrap();
        assert_eq!(topology.command_kind("shop.cmd.order.place"), "order.place");
        assert_eq!(topology.command("order.place"), "shop.cmd.order.place");
    }

    #[test]
    fn a_consumer_has_one_filter_at_the_most() {
        let topology = Topology::new("shop").unwrap();
        assert_eq!(topology.consumers("projection"), [("projection".to_owned(), None)]);
        let shipped =
            ("reservations-shipped".to_owned(), Some("shop.evt.order.*.shipped".to_owned()));
        assert_eq!(topology.consumers("reservations").len(), 5);
        assert_eq!(topology.consumers("reservations")[1], shipped);
        for worker in WORKERS.map(|(worker, _)| worker) {
            for (consumer, _) in topology.consumers(worker) {
                assert_eq!(worker_of(&consumer), worker);
            }
        }
        assert_eq!(worker_of("payment-replay"), "payment-replay");
    }

    #[test]
    fn a_worker_is_spared_what_it_does_not_want() {
        let topology = Topology::new("shop").unwrap();
        let shipped = topology.event(Subject::Order, "A-1", "shipped");
        assert!(topology.is_wanted("reservations", &shipped));
        assert!(topology.is_wanted("projection", &shipped));
        let others = [
            "shop.evt.order.A-1.paid",
            "shop.evt.product.A-1.shipped",
            "other.evt.order.A-1.shipped",
            "shops.evt.order.A-1.shipped",
            "shop.evt.order.shipped",
        ];
        for other in others {
            assert!(!topology.is_wanted("reservations", other), "{other}");
        }
    }

    #[test]
    fn a_parked_message_has_one_place_and_its_replay_another() {
        let topology = Topology::new("shop").unwrap();
        let place = |stream: &str, subject: &str| topology.parked_place("w", stream, subject, 7);
        assert_eq!(place("shop_COMMANDS", "shop.cmd.order.place"), "shop.parked.w.command.7");
        let event = place("shop_EVENTS", "shop.evt.order.A-1.paid");
        assert_eq!(event, "shop.parked.w.event.order.A-1.7");
        for strange in ["shop.evt.order", "shop.evt.time-out.A", "shop.evt.a.b.c.d", "x.y.z"] {
            assert_eq!(place("shop_EVENTS", strange), "shop.parked.w.event.7", "{strange}");
        }
        let replay = topology.replay_place(&event).unwrap();
        assert_eq!(replay, "shop.replay.w.event.order.A-1.7");
        assert_eq!(topology.replayed_place(&replay), Some(event));
        assert_eq!(topology.replayed_place("shop.parked.w.event.7"), None);
    }
}
