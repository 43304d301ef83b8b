//! The relay publishes what the ledger holds for the log: the events of products and customers, in
//! the order in which they were decided, and (as the sweeper) any other event that was committed and
//! has not been published for some seconds. One replica at a time does it, under a PostgreSQL
//! advisory lock; when it dies the lock is free and another takes over.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::join_all;
use millrace_shared::crash;
use millrace_shared::log::{AppendError, Entry};
use millrace_shared::message::{Event, Subject, now};
use millrace_shared::order::Order;
use millrace_shared::topology::Topology;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event_log::EventLog;
use crate::ledger::{Ledger, Outbox as _, Turn};
use crate::validation::head::is_moot;

/// How often it looks for what other replicas have committed, and for stock and credit that orders
/// have changed. What its own process has put into the outbox wakes it at once.
const TICK: Duration = Duration::from_millis(50);
/// How often stock and credit are told that change all the time: one event for all orders since the
/// last. What has not changed for so long is told at once.
const TELL: Duration = Duration::from_secs(1);
/// So many products, and as many customers, are told at a time: they are locked meanwhile, and their
/// events hold up others. The rest follows with the next ticks.
const PORTION: i64 = 100;
/// How often a replica asks whether the lock is free.
const STANDBY: Duration = Duration::from_secs(1);
/// Events published in a round.
const ROUND: i64 = 1_000;
/// Subjects whose last sequence is remembered; then memory starts anew.
const REMEMBERED: usize = 100_000;
/// How long an append is tried in a round.
const PATIENCE: Duration = Duration::from_secs(10);

/// The relay of one ledger.
#[derive(Debug)]
pub struct Relay<D, L> {
    ledger: D,
    log: L,
    topology: Topology,
    wake: Arc<Notify>,
}

/// What a round has done.
pub(crate) struct Round {
    /// Whether stock or credit had changed.
    told: bool,
    /// Whether there may be more to publish.
    more: bool,
}

/// What is to be done with the events of one subject.
struct Place<'a> {
    /// The places in the outbox of those that are in the log.
    done: Vec<i64>,
    /// Those that can be appended now, one after another.
    next: Vec<&'a (i64, Event)>,
    /// The sequence of the subject's last message; 0 if there is none.
    head: u64,
}

/// The sequences of the last messages of subjects that nobody else appends to.
pub(crate) type Heads = HashMap<(Subject, String), u64>;

impl<D: Ledger, L: EventLog> Relay<D, L> {
    /// A relay from the outbox of `ledger` to `log` (EVENTS); `wake` tells it that there is work.
    pub fn new(ledger: D, log: L, topology: Topology, wake: Arc<Notify>) -> Self {
        Self { ledger, log, topology, wake }
    }

    /// Runs until the shutdown.
    pub async fn run(&self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            if let Err(error) = self.lead(&shutdown).await {
                tracing::warn!("the relay starts anew: {error:#}");
            }
            tokio::select! {
                () = tokio::time::sleep(STANDBY) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Publishes for as long as this replica holds the outbox.
    async fn lead(&self, shutdown: &CancellationToken) -> Result<()> {
        let Some(mut outbox) = self.ledger.outbox().await? else { return Ok(()) };
        let mut heads = Heads::new();
        let mut turn = Turn::new();
        let mut quiet_until = Instant::now();
        while !shutdown.is_cancelled() {
            let begins = turn == Turn::new();
            let more = if begins && Instant::now() < quiet_until {
                self.publish(&mut outbox, &mut heads).await?
            } else {
                let Round { told, more } = self.round(&mut outbox, &mut heads, &mut turn).await?;
                if begins && told {
                    quiet_until = Instant::now() + TELL;
                }
                more
            };
            if !more {
                tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep(TICK) => {}
                    () = shutdown.cancelled() => {}
                }
            }
        }
        Ok(())
    }

    /// Turns changed stock and credit into events (one for a product or customer, however many
    /// orders have changed it since the last), and publishes what waits.
    pub(crate) async fn round(
        &self,
        outbox: &mut D::Outbox,
        heads: &mut Heads,
        turn: &mut Turn,
    ) -> Result<Round> {
        let told = outbox.tell(turn, PORTION, |book| book.tell(now())).await?;
        if turn.is_over() {
            *turn = Turn::new();
        }
        Ok(Round { told, more: self.publish(outbox, heads).await? })
    }

    /// Publishes a round; tells whether there may be more.
    async fn publish(&self, outbox: &mut D::Outbox, heads: &mut Heads) -> Result<bool> {
        if heads.len() > REMEMBERED {
            heads.clear();
        }
        let waiting = outbox.waiting(ROUND).await?;
        let full = waiting.len() == usize::try_from(ROUND).unwrap_or(0);
        // Events of one subject go one after another; subjects go together.
        let mut subjects: BTreeMap<(Subject, String), Vec<(i64, Event)>> = BTreeMap::new();
        for (place, event) in waiting {
            let subject = (event.subject, event.subject_id.clone());
            subjects.entry(subject).or_default().push((place, event));
        }
        let appends = subjects.into_iter().map(async |(subject, events)| {
            let head = heads.get(&subject).copied();
            let result = self.publish_subject(&subject, head, &events).await;
            (subject, events.len(), result)
        });
        let mut published = Vec::new();
        for (subject, count, result) in join_all(appends).await {
            match result {
                Ok((ids, head)) => {
                    // Remembered is only what the relay alone appends to, and where nothing is left:
                    // the next round appends to it without another look.
                    if is_counted(subject.0) && ids.len() == count {
                        heads.insert(subject, head);
                    } else {
                        heads.remove(&subject);
                    }
                    published.extend(ids);
                }
                Err(error) => {
                    heads.remove(&subject);
                    tracing::warn!(subject = %subject.0, id = subject.1, "not published: {error:#}");
                }
            }
        }
        let progress = !published.is_empty();
        if progress {
            crash::point("relay.appended");
            outbox.remove(&published).await?;
        }
        Ok(full && progress)
    }

    /// Publishes the events of one subject; returns the places in the outbox of those that are in the
    /// log now, and the sequence of the subject's last message.
    async fn publish_subject(
        &self,
        (subject, id): &(Subject, String),
        head: Option<u64>,
        events: &[(i64, Event)],
    ) -> Result<(Vec<i64>, u64)> {
        if let Some(head) = head {
            let entries = self.entries(events.iter().map(|(_, event)| event), head)?;
            match self.log.append(entries, PATIENCE).await {
                Ok(last) => return Ok((events.iter().map(|(id, _)| *id).collect(), last)),
                Err(AppendError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let Place { mut done, next, head } = if is_counted(*subject) {
            self.place_of_counted(*subject, id, events).await?
        } else {
            self.place_of_shared(*subject, id, events).await?
        };
        if next.is_empty() {
            return Ok((done, head));
        }
        let entries = self.entries(next.iter().map(|(_, event)| event), head)?;
        let last = self.log.append(entries, PATIENCE).await?;
        done.extend(next.iter().map(|(id, _)| *id));
        Ok((done, last))
    }

    /// Where versions are given out by the ledger alone the last one in the log tells what is there
    /// already, from a relay that died before it could say so.
    async fn place_of_counted<'a>(
        &self,
        subject: Subject,
        id: &str,
        events: &'a [(i64, Event)],
    ) -> Result<Place<'a>> {
        let last = self.log.last(&self.topology.history(subject, id)).await?;
        let (version, head) = match last {
            Some(stored) => (stored.event.version, stored.sequence),
            // It is new, or its events were trimmed.
            None => (self.ledger.journal_version(subject, id).await?, 0),
        };
        let (done, rest): (Vec<_>, Vec<_>) =
            events.iter().partition(|(_, event)| event.version <= version);
        let in_line = |(row, version): &(&(i64, Event), u64)| row.1.version == *version;
        let next = rest.into_iter().zip(version + 1..).take_while(in_line);
        Ok(Place {
            done: done.iter().map(|(id, _)| *id).collect(),
            next: next.map(|(row, _)| row).collect(),
            head,
        })
    }

    /// An order has other writers. What was decided on a state of it that has been overtaken stays:
    /// it is decided again by its command's redelivery.
    async fn place_of_shared<'a>(
        &self,
        subject: Subject,
        id: &str,
        events: &'a [(i64, Event)],
    ) -> Result<Place<'a>> {
        let stored = self.log.history(&self.topology.history(subject, id)).await?;
        let mut before: Option<Order> = match stored.last() {
            _ if subject != Subject::Order => None,
            Some(last) => Some(last.event.state()?),
            None => self.ledger.journal_orders(&[id.parse()?]).await?.into_values().next(),
        };
        let mut done = Vec::new();
        let mut rest = Vec::new();
        for row in events {
            let (_, event) = row;
            let there = stored.iter().any(|stored| stored.event.id == event.id);
            let settled = there || is_moot(event, before.as_ref())?;
            (if settled { &mut done } else { &mut rest }).push(row);
        }
        let mut next = Vec::new();
        for row in rest {
            if !row.1.follows(before.as_ref()) {
                break;
            }
            if subject == Subject::Order {
                before = Some(row.1.state()?);
            }
            next.push(row);
        }
        Ok(Place {
            done: done.iter().map(|(id, _)| *id).collect(),
            next,
            head: stored.last().map_or(0, |stored| stored.sequence),
        })
    }

    fn entries<'a>(
        &self,
        events: impl Iterator<Item = &'a Event>,
        after: u64,
    ) -> Result<Vec<Entry>> {
        Ok(events
            .map(|event| Entry::event(&self.topology, event, after))
            .collect::<Result<_, _>>()?)
    }
}

/// Whether all versions of such subjects are given out by the ledger, one after another, and
/// appended by the relay alone. An order has other writers: nothing is known about it without a look.
fn is_counted(subject: Subject) -> bool {
    matches!(subject, Subject::Product | Subject::Customer)
}
