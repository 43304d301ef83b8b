//! Making the views anew, while the system runs and serves: from the journal, then from the log
//! behind it, into a generation of its own, which is compared and then read instead of the old one.
//!
//! What happens meanwhile is not missed: from the moment that the marker names the new generation,
//! projection writes into both; all that was in the log at that moment is read.

use std::fmt;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::jetstream;
use futures_util::TryStreamExt as _;
use millrace_shared::command::{Command, Received};
use millrace_shared::consumer::Worker;
use millrace_shared::log::{Log, timestamp};
use millrace_shared::message::{Subject, now};
use millrace_shared::topology::{DECIDER, Topology};
use millrace_shared::views::{CommandView, FRESH, Generations, Mark, Row, Views};
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

use crate::journal;
use crate::persistence::Persistence;
use crate::stretch::{Stretch, event};

/// The advisory lock of the one rebuild of a database (`mill_new` in ASCII).
const LOCK: i64 = 0x6d69_6c6c_5f6e_6577;
/// How long a rebuild tries to get it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Rows that are written, or compared, at a time.
const CHUNK: usize = 500;
/// Documents in use that neither journal nor log account for, beyond which something else is wrong.
const MOST_AHEAD: usize = 10_000;
/// How long reads of the old generation may still be under way after the switch: longer than any
/// command of a client to Redis.
const GRACE: Duration = Duration::from_secs(5);
/// How often it is looked whether the views are there.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is looked whether a rebuild that is under way has died.
const LOOK_AFTER_OTHERS: Duration = Duration::from_secs(5);

/// What makes the views of one system anew.
#[derive(Debug, Clone)]
pub struct Rebuild {
    pool: PgPool,
    views: Views,
    topology: Topology,
    log: Log,
    events: Stretch,
    commands: Stretch,
}

/// What was done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// The generation that is read now.
    pub generation: u64,
    /// Documents of orders, customers and products from the journal.
    pub documents: u64,
    /// Outcomes of commands from the journal.
    pub outcomes: u64,
    /// Events that the log had and the journal had not yet.
    pub from_log: u64,
    /// Commands that are not decided.
    pub undecided: u64,
    /// Documents that were in use, in versions that no history knows: left behind.
    pub left_behind: u64,
    /// Keys of older generations that were removed.
    pub removed: u64,
    /// How long it took until the switch.
    pub took: Duration,
}

impl fmt::Display for Rebuilt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "generation {}: {} documents and {} outcomes from the journal, {} events from the log, \
             {} undecided commands, all compared; switched after {:.1} s; {} old keys removed",
            self.generation,
            self.documents,
            self.outcomes,
            self.from_log,
            self.undecided,
            self.took.as_secs_f64(),
            self.removed,
        )?;
        match self.left_behind {
            0 => Ok(()),
            count => write!(f, "; {count} documents without any history were left behind"),
        }
    }
}

impl Rebuild {
    /// A rebuild of `views` from the journal in `pool` and the log.
    pub fn new(
        pool: PgPool,
        views: Views,
        client: &async_nats::Client,
        topology: Topology,
    ) -> Self {
        let jetstream = jetstream::new(client.clone());
        Self {
            events: Stretch::new(jetstream.clone(), topology.events_stream()),
            commands: Stretch::new(jetstream, topology.commands_stream()),
            log: Log::new(client.clone(), topology.events_stream()),
            pool,
            views,
            topology,
        }
    }

    /// Makes all views anew; nothing, if another rebuild is under way. `told` is told how far it is.
    pub async fn run(&self, told: impl Fn(&str)) -> Result<Option<Rebuilt>> {
        let Some(lock) = self.lock_soon().await? else { return Ok(None) };
        let before = self.views.generations().await?;
        self.run_locked(lock, before, told).await.map(Some)
    }

    async fn run_locked(
        &self,
        mut lock: PgConnection,
        before: Generations,
        told: impl Fn(&str),
    ) -> Result<Rebuilt> {
        let building = Generations { building: Some(next(before)), sweeping: false, ..before };
        ensure!(self.views.replace(before, building).await?, "another rebuild has just begun");
        let result = match self.build(building, &told).await {
            // Without the lock, another rebuild may have been begun.
            Ok(rebuilt) => lock.ping().await.context("the lock is lost").map(|()| rebuilt),
            Err(error) => Err(error),
        };
        let mut rebuilt = match result {
            Ok(rebuilt) => rebuilt,
            Err(error) => {
                // The old generation stays. What was written of the new one is removed by the next.
                let sweeping = before.current.is_some();
                let left = Generations { building: None, sweeping, ..before };
                if let Err(error) = self.views.replace(building, left).await {
                    tracing::warn!("the marker of the views is left as it is: {error:#}");
                }
                return Err(error);
            }
        };
        let after = Generations { sweeping: true, ..Generations::only(rebuilt.generation) };
        ensure!(self.views.replace(building, after).await?, "another rebuild has taken over");
        told("the new views are in use; the old ones are removed");
        if before.current.is_some() {
            tokio::time::sleep(GRACE).await;
        }
        rebuilt.removed = self.sweep(after).await?;
        unlock(lock).await?;
        Ok(rebuilt)
    }

    /// The lock, unless somebody has it for longer than it takes to look whether all is well.
    async fn lock_soon(&self) -> Result<Option<PgConnection>> {
        let start = Instant::now();
        loop {
            let lock = self.lock().await?;
            if lock.is_some() || start.elapsed() > LOCK_PATIENCE {
                return Ok(lock);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The lock, if nobody has it. It belongs to the connection and ends with it.
    async fn lock(&self) -> Result<Option<PgConnection>> {
        let mut connection = self.pool.acquire().await?;
        let ours: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut *connection)
            .await?;
        Ok(ours.then(|| connection.detach()))
    }

    async fn build(&self, generations: Generations, told: &impl Fn(&str)) -> Result<Rebuilt> {
        let start = Instant::now();
        let generation = generations.building.context("no generation is to be made")?;
        let mut rebuilt = Rebuilt { generation, ..Rebuilt::default() };
        if generations.current.is_some() {
            // Every writer has seen the marker after this time.
            tokio::time::sleep(FRESH * 2).await;
        }
        let log = self.events.state().await?;
        let persisted = self.events.settled(Persistence::NAME, log.last_sequence).await?;
        let behind = persisted.unwrap_or(0).max(log.first_sequence.saturating_sub(1)) + 1;
        rebuilt.undecided = self.fill_undecided(generation).await?;
        told("the journal is read");
        self.fill_from_journal(&mut rebuilt).await?;
        told("the log behind the journal is read");
        rebuilt.from_log = self.fill_from_log(generation, behind, log.last_sequence).await?;
        let first = self.events.state().await?.first_sequence;
        ensure!(first <= behind, "the log was trimmed meanwhile; begin again");
        told("the new views are compared with the journal");
        self.compare_with_journal(generation, log.last_sequence).await?;
        if let Some(current) = generations.current {
            told("the new views are compared with those in use");
            rebuilt.left_behind = self.catch_up(current, generation).await?;
        }
        rebuilt.took = start.elapsed();
        Ok(rebuilt)
    }

    async fn fill_from_journal(&self, rebuilt: &mut Rebuilt) -> Result<()> {
        let mut chunks = pin!(journal::rows(&self.pool, None).try_chunks(CHUNK));
        while let Some(rows) = chunks.try_next().await.map_err(|cut| cut.1)? {
            self.views.fill(rebuilt.generation, &rows).await?;
            let documents = |row: &&Row| row.newest && row.event.subject != Subject::Command;
            let outcomes = |row: &&Row| row.event.answers().is_some();
            rebuilt.documents += rows.iter().filter(documents).count() as u64;
            rebuilt.outcomes += rows.iter().filter(outcomes).count() as u64;
        }
        Ok(())
    }

    /// What came after the place `through` is projection's to write, and may still be on its way.
    async fn compare_with_journal(&self, generation: u64, through: u64) -> Result<()> {
        let mut chunks = pin!(journal::rows(&self.pool, Some(through)).try_chunks(CHUNK));
        while let Some(rows) = chunks.try_next().await.map_err(|cut| cut.1)? {
            let wrong = self.views.compare(generation, &rows).await?;
            if let Some(key) = wrong.first() {
                bail!("{} of the new views are not as the journal says: {key} …", wrong.len());
            }
        }
        Ok(())
    }

    async fn fill_from_log(&self, generation: u64, from: u64, to: u64) -> Result<u64> {
        let mut count = 0;
        let mut left = (from <= to).then_some(from..=to);
        while let Some(places) = left {
            let (messages, rest) = self.events.page(places).await?;
            let events = messages.iter().filter_map(|message| event(&self.topology, message));
            let rows: Vec<Row> = events.map(|event| Row { event, newest: true }).collect();
            self.views.fill(generation, &rows).await?;
            count += rows.len() as u64;
            left = rest;
        }
        Ok(count)
    }

    /// Marks what was taken and is not decided.
    async fn fill_undecided(&self, generation: u64) -> Result<u64> {
        let last = self.commands.state().await?.last_sequence;
        let decided = self.commands.settled(DECIDER, last).await?.unwrap_or(0);
        let mut count = 0;
        let mut left = (decided < last).then(|| decided + 1..=last);
        let stream = self.topology.commands_stream();
        while let Some(places) = left {
            let (messages, rest) = self.commands.page(places).await?;
            let mut marks = Vec::with_capacity(messages.len());
            for message in messages {
                let kind = self.topology.command_kind(&message.subject);
                let header =
                    |name: &str| message.headers.get(name).map(async_nats::HeaderValue::as_str);
                let place = (stream.as_str(), message.sequence);
                let received = Received::read(kind, &message.payload, header, place);
                let mut command = CommandView::pending(received.command_id);
                command.on_behalf_of.clone_from(&received.on_behalf_of);
                let mut placed = None;
                if let Ok(identified) = &received.command {
                    let (subject, id) = identified.command.target();
                    command = command.about(subject, id);
                    if let Command::PlaceOrder(order) = &identified.command {
                        let at = timestamp(message.time.unix_timestamp_nanos());
                        placed = Some((order.customer_id.clone(), at));
                    }
                }
                marks.push(Mark { command, placed });
            }
            self.views.mark_in(generation, &marks).await?;
            count += marks.len() as u64;
            left = rest;
        }
        Ok(count)
    }

    /// Brings what is newer in the views in use into the new ones, as far as the log accounts for
    /// it; returns how much it does not account for.
    async fn catch_up(&self, current: u64, building: u64) -> Result<u64> {
        let ahead = self.views.ahead(current, building, MOST_AHEAD).await?;
        ensure!(
            ahead.len() < MOST_AHEAD,
            "more than {MOST_AHEAD} documents in use are newer than journal and log say: see \
             whether persistence writes the journal"
        );
        let mut left_behind = 0;
        for newer in ahead {
            let history = self.topology.history(newer.subject, &newer.id);
            match self.log.last(&history).await? {
                Some(stored) if stored.event.version >= newer.version => {
                    let row = Row { event: stored.event, newest: true };
                    self.views.fill(building, &[row]).await?;
                }
                _ => {
                    let (subject, id, version) = (newer.subject, &newer.id, newer.version);
                    tracing::warn!(%subject, id, version, "a view without a history is left behind");
                    left_behind += 1;
                }
            }
        }
        Ok(left_behind)
    }

    async fn sweep(&self, generations: Generations) -> Result<u64> {
        let keep = generations.current.context("there are no views to be kept")?;
        let removed = self.views.sweep(keep).await?;
        self.views.replace(generations, Generations::only(keep)).await?;
        Ok(removed)
    }

    /// Sees to it that there are views, until the shutdown: makes them where there are none, and
    /// ends what a rebuild that has died has left.
    pub async fn keep(&self, shutdown: CancellationToken) {
        // A new system's first readers wait for this.
        for _ in 0..50 {
            if self.views.is_connected() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut before = Generations::default();
        loop {
            let looked = tokio::select! {
                looked = self.look(before) => looked,
                () = shutdown.cancelled() => return,
            };
            let pause = match looked {
                Ok(seen) if seen.building.is_some() || seen.sweeping => {
                    before = seen;
                    LOOK_AFTER_OTHERS
                }
                Ok(seen) => {
                    before = seen;
                    LOOK_EVERY
                }
                Err(error) => {
                    tracing::warn!("the views cannot be looked after: {error:#}");
                    LOOK_EVERY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Looks once; returns how it left the views. `before` is how they were the last time.
    async fn look(&self, before: Generations) -> Result<Generations> {
        if !self.views.is_connected() {
            return Ok(before);
        }
        let seen = self.views.generations().await?;
        if seen.current.is_none() {
            let Some(lock) = self.lock().await? else { return Ok(seen) };
            // Another replica may have made them while this one asked for the lock.
            let seen = self.views.generations().await?;
            if seen.current.is_some() {
                unlock(lock).await?;
                return Ok(seen);
            }
            let told = |what: &str| tracing::info!("the views are made anew: {what}");
            let rebuilt = self.run_locked(lock, seen, told).await?;
            tracing::info!("the views are made anew: {rebuilt}");
            return Ok(Generations::only(rebuilt.generation));
        }
        // Old keys may go when nobody reads or writes them any more: not at the first look.
        let may_end = seen.building.is_some() || (seen.sweeping && seen == before);
        if !may_end {
            return Ok(seen);
        }
        let Some(lock) = self.lock().await? else { return Ok(seen) };
        // Nobody is at it, and nobody can begin now.
        let mut left = self.views.generations().await?;
        if left == seen && seen.building.is_some() {
            left = Generations { building: None, sweeping: true, ..seen };
            self.views.replace(seen, left).await?;
            tracing::info!("a rebuild has ended early; what it has left is going to be removed");
        } else if left == seen {
            let removed = self.sweep(seen).await?;
            tracing::info!(removed, "what a rebuild that ended early had left is removed");
            left = Generations { sweeping: false, ..seen };
        }
        unlock(lock).await?;
        Ok(left)
    }
}

/// Gives the lock back. A connection that is only closed has it until the server notices.
async fn unlock(mut lock: PgConnection) -> Result<()> {
    sqlx::query("select pg_advisory_unlock($1)").bind(LOCK).execute(&mut lock).await?;
    Ok(lock.close().await?)
}

/// A number that no generation has had before: the time in milliseconds.
fn next(before: Generations) -> u64 {
    let time = now().timestamp_millis().unsigned_abs();
    before.targets().max().map_or(time, |highest| time.max(highest + 1))
}
