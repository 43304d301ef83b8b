//! Trim: removes old messages from EVENTS and COMMANDS, so that the streams do not grow for ever. A
//! message goes only if nobody needs it any more:
//!
//! - it is older than what is to be kept;
//! - every durable consumer of the stream has settled it, and all below it;
//! - it lies below every order that awaits payment or refund, and every event that waits in the
//!   outbox;
//! - an event is in the journal, the very same one, and so are all below it.
//!
//! What is trimmed is a whole beginning of the stream, by place: nothing is left between.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::jetstream;
use chrono::TimeDelta;
use millrace_shared::consumer::Worker;
use millrace_shared::log::Log;
use millrace_shared::message::{Event, EventError};
use millrace_shared::topology::{DECIDER, Topology};
use sqlx::{Connection as _, PgPool};
use tokio_util::sync::CancellationToken;

use crate::gateway::sandbox::Sandbox;
use crate::journal;
use crate::ledger::PostgresLedger;
use crate::payment::Payment;
use crate::persistence::Persistence;
use crate::projection::Projection;
use crate::reservations::Reservations;
use crate::stretch::Stretch;

/// The advisory lock of the one trim of a database ("milltrim" in ASCII).
const LOCK: i64 = 0x6d69_6c6c_7472_696d;
/// How often a persistence worker that is configured to trim does so.
const EVERY: Duration = Duration::from_mins(10);
/// Who must have seen an event: without one of them nothing is trimmed, since it may have all its
/// work before it.
const READERS: [&str; 4] = [
    Persistence::NAME,
    Projection::NAME,
    Payment::<Log, Sandbox>::NAME,
    Reservations::<PostgresLedger>::NAME,
];

/// What is to be kept in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// What is younger. It must be longer than any process may be frozen and go on after it: who
    /// goes on with a decision on a trimmed order can no longer be refused by the log.
    pub age: TimeDelta,
    /// So many messages of each stream.
    pub messages: u64,
}

impl Keep {
    /// What is younger than so many hours.
    pub fn hours(hours: u32) -> Self {
        Self { age: TimeDelta::hours(hours.into()), messages: 0 }
    }
}

/// What trims the streams of one system.
#[derive(Debug, Clone)]
pub struct Trim {
    pool: PgPool,
    topology: Topology,
    events: Stretch,
    commands: Stretch,
}

/// What was trimmed of one stream, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trimmed {
    /// The stream.
    pub stream: String,
    /// Its first message before.
    pub first: u64,
    /// Its last message.
    pub last: u64,
    /// The last message that goes; below `first` if none does.
    pub through: u64,
    /// Why the next one stays.
    pub held_by: String,
}

impl fmt::Display for Trimmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, first, last, through, held_by } = self;
        if through < first {
            write!(f, "{stream} {first}..{last}: nothing goes; {held_by}")
        } else {
            write!(f, "{stream} {first}..{last}: {first}..{through} goes; then {held_by}")
        }
    }
}

/// The lowest of several limits, with its reason.
struct Limit {
    through: u64,
    held_by: String,
}

impl Limit {
    fn lower(&mut self, through: u64, held_by: impl FnOnce() -> String) {
        if through < self.through {
            *self = Self { through, held_by: held_by() };
        }
    }
}

impl Trim {
    /// A trim of the streams of `topology` behind the journal in `pool`.
    pub fn new(pool: PgPool, client: &async_nats::Client, topology: Topology) -> Self {
        let jetstream = jetstream::new(client.clone());
        Self {
            events: Stretch::new(jetstream.clone(), topology.events_stream()),
            commands: Stretch::new(jetstream, topology.commands_stream()),
            pool,
            topology,
        }
    }

    /// Trims both streams, or only tells what would go; nothing, if another trim is under way.
    pub async fn run(&self, keep: Keep, only_tell: bool) -> Result<Option<[Trimmed; 2]>> {
        let mut connection = self.pool.acquire().await?;
        let ours: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut *connection)
            .await?;
        if !ours {
            return Ok(None);
        }
        // The lock belongs to this connection and ends with it.
        let mut lock = connection.detach();
        let commands = self.plan_commands(keep).await?;
        let events = self.plan_events(keep).await?;
        if !only_tell {
            for (plan, stream) in [(&commands, &self.commands), (&events, &self.events)] {
                if plan.through >= plan.first {
                    let removed = stream.purge(plan.through).await?;
                    tracing::info!(removed, "trimmed: {plan}");
                }
            }
        }
        // A connection that is only closed has the lock until the server notices.
        sqlx::query("select pg_advisory_unlock($1)").bind(LOCK).execute(&mut lock).await?;
        lock.close().await?;
        Ok(Some([commands, events]))
    }

    /// Trims from time to time until the shutdown.
    pub async fn keep(&self, keep: Keep, shutdown: CancellationToken) {
        loop {
            if let Err(error) = self.run(keep, false).await {
                tracing::warn!("the streams are not trimmed: {error:#}");
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Commands go behind the decider.
    async fn plan_commands(&self, keep: Keep) -> Result<Trimmed> {
        let (state, mut limit) = self.begin(&self.commands, keep, &[DECIDER]).await?;
        limit.through = limit.through.max(state.0.saturating_sub(1));
        Ok(trimmed(self.topology.commands_stream(), state, limit))
    }

    async fn plan_events(&self, keep: Keep) -> Result<Trimmed> {
        let (state, mut limit) = self.begin(&self.events, keep, &READERS).await?;
        // After what the consumers have settled was read: that much is in the journal by now.
        if let Some(needed) = journal::needed_from(&self.pool).await? {
            limit.lower(needed - 1, || {
                format!(
                    "event {needed} belongs to what is under way: a payment, a refund, an outbox"
                )
            });
        }
        self.limit_to_journal(state.0, &mut limit).await?;
        limit.through = limit.through.max(state.0.saturating_sub(1));
        Ok(trimmed(self.topology.events_stream(), state, limit))
    }

    /// The first and last place of a stream, and how far it may be trimmed as its readers and what is
    /// to be kept allow.
    async fn begin(
        &self,
        stream: &Stretch,
        keep: Keep,
        readers: &[&str],
    ) -> Result<((u64, u64), Limit)> {
        let state = stream.state().await?;
        let (first, last) = (state.first_sequence, state.last_sequence);
        let mut limit = Limit { through: last, held_by: "the stream is empty".to_owned() };
        let settled = stream.all_settled(last).await?;
        for (reader, _) in readers.iter().flat_map(|worker| self.topology.consumers(worker)) {
            if settled.iter().all(|(name, _)| *name != reader) {
                limit.lower(0, || format!("the consumer {reader} is not there yet"));
            }
        }
        for (name, through) in settled {
            limit.lower(through, || format!("the consumer {name} has not settled {}", through + 1));
        }
        limit.lower(last.saturating_sub(keep.messages), || {
            format!("{} messages are to be kept", keep.messages)
        });
        let old = stream.older_than(&state, keep.age).await.context("the age cannot be told")?;
        limit.lower(old, || format!("what follows is younger than {}", hours(keep.age)));
        Ok(((first, last), limit))
    }

    /// Stops before the first event that the journal does not have.
    async fn limit_to_journal(&self, first: u64, limit: &mut Limit) -> Result<()> {
        let mut left = (first <= limit.through).then_some(first..=limit.through);
        while let Some(places) = left {
            let (messages, rest) = self.events.page(places).await?;
            let (mut places, mut events) = (Vec::new(), Vec::new());
            for message in messages {
                if !self.topology.is_event(&message.subject) {
                    continue;
                }
                match Event::decode(&message.payload) {
                    Ok(event) => {
                        places.push(message.sequence);
                        events.push(event);
                    }
                    // No worker can read it: it was parked, and has been kept there.
                    Err(EventError::Malformed(_)) => {}
                    Err(error) => {
                        let held_by = || format!("event {}: {error}", message.sequence);
                        limit.lower(message.sequence - 1, held_by);
                    }
                }
            }
            let missing = journal::missing(&self.pool, &events).await?;
            let held = events.iter().position(|event| missing.contains(&event.id.0));
            if let Some((place, event)) = held.and_then(|at| places.get(at).zip(events.get(at))) {
                limit.lower(place - 1, || {
                    format!(
                        "event {place}, version {} of {} {}, is not in the journal",
                        event.version, event.subject, event.subject_id
                    )
                });
            }
            left = rest.filter(|rest| *rest.start() <= limit.through);
        }
        Ok(())
    }
}

fn hours(age: TimeDelta) -> String {
    format!("{} h", age.num_hours())
}

fn trimmed(stream: String, (first, last): (u64, u64), limit: Limit) -> Trimmed {
    Trimmed { stream, first, last, through: limit.through, held_by: limit.held_by }
}
