//! Validation: the only decider about commands. A batch is decided in one PostgreSQL transaction;
//! then the events are appended to the log; then the commands are acked.
//!
//! If the process dies after the commit, the redelivered command finds its decision and appends the
//! same events. If it dies after the append, the log refuses the second append and shows that the
//! event is there.

pub(crate) mod head;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures_util::future::{join_all, try_join_all};
use millrace_shared::command::Received;
use millrace_shared::consumer::{Delivery, Raw, Verdict, Worker};
use millrace_shared::crash;
use millrace_shared::ids::{CommandId, OrderId};
use millrace_shared::log::{AppendError, Entry};
use millrace_shared::message::{Event, Subject, now};
use millrace_shared::metrics::{label, metrics};
use millrace_shared::reason::Reason;
use millrace_shared::topology::{DECIDER, Topology};
use millrace_shared::trace::step;
use tokio::sync::Notify;

use self::head::{Group, Head};
use crate::book::{Book, Incoming, Known, Ruling};
use crate::event_log::EventLog;
use crate::ledger::{Ledger, Raced};

/// How long an append is tried before the command is left for redelivery.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a command is decided anew because its order has gone on meanwhile.
const ROUNDS: usize = 8;
/// After so many deliveries a command is no longer kept waiting for what others before it may bring.
const WAITING: u64 = 20;

/// The worker on COMMANDS.
#[derive(Debug)]
pub struct Validation<D, L> {
    ledger: D,
    log: L,
    topology: Topology,
    relay: Arc<Notify>,
    time_to_pay: Duration,
}

impl<D: Ledger, L: EventLog> Validation<D, L> {
    /// A validation on `ledger` that appends to `log` (EVENTS) and wakes the relay.
    /// Orders have `time_to_pay` to be paid.
    pub fn new(
        ledger: D,
        log: L,
        topology: Topology,
        relay: Arc<Notify>,
        time_to_pay: Duration,
    ) -> Self {
        Self { ledger, log, topology, relay, time_to_pay }
    }

    /// Decides the batch; returns, for each stream sequence, the events that are to be appended (none
    /// if they are known to be in the log, or are the relay's), or nothing if it cannot be decided
    /// yet.
    async fn decide(
        &self,
        batch: &[&Delivery<Incoming>],
        orders: &HashMap<OrderId, Head>,
    ) -> Result<HashMap<u64, Option<Vec<Event>>>> {
        let mut outcome = self.decide_after(0, batch, orders).await?;
        let open = |delivery: &&&Delivery<Incoming>| {
            outcome.get(&delivery.sequence).is_some_and(Option::is_none)
        };
        let open: Vec<&Delivery<Incoming>> = batch.iter().filter(open).copied().collect();
        if !open.is_empty() {
            // Something that they name is missing: is it on its way, or is it nowhere?
            let settled = self.settled(batch).await?;
            outcome.extend(self.decide_after(settled, &open, orders).await?);
        }
        Ok(outcome)
    }

    /// Decides the batch, knowing that all commands up to the stream sequence `settled` are decided.
    async fn decide_after(
        &self,
        settled: u64,
        batch: &[&Delivery<Incoming>],
        orders: &HashMap<OrderId, Head>,
    ) -> Result<HashMap<u64, Option<Vec<Event>>>> {
        let incoming: Vec<&Incoming> = batch.iter().map(|delivery| &delivery.message).collect();
        let mut outcome = HashMap::new();
        let mut repeated: Vec<(CommandId, u64)> = Vec::new();
        let mut relayed = false;
        let mut ruled: Vec<(&'static str, Option<Reason>)> = Vec::new();
        let rule = |book: &mut Book| {
            book.time_to_pay = self.time_to_pay;
            for delivery in batch {
                let early = delivery.sequence > settled + 1 && delivery.attempt < WAITING;
                if early {
                    book.early.insert(delivery.sequence);
                }
                let Some(id) = delivery.message.continues() else { continue };
                let known = match orders.get(&id).and_then(|head| head.order.clone()) {
                    Some(order) => Known::Here(order.into()),
                    None if early || book.placed.contains(&id) => Known::NotYet,
                    None => Known::Nowhere,
                };
                book.orders.insert(id, known);
            }
            let now = now();
            let mut decisions = Vec::new();
            for message in &incoming {
                let events = match book.rule(message, now)? {
                    Ruling::Repeated(command) => {
                        repeated.push((command, message.sequence));
                        Some(Vec::new())
                    }
                    Ruling::NotYet => None,
                    Ruling::Decided(decision) => {
                        let events = to_append(&decision.events);
                        // Stock and credit that orders have changed are told within its tick.
                        relayed |= events.len() < decision.events.len();
                        let refusal = decision.past.refusal.as_ref();
                        ruled.push((message.kind(), refusal.map(|refusal| refusal.reason)));
                        decisions.push(*decision);
                        Some(events)
                    }
                };
                outcome.insert(message.sequence, events);
            }
            Ok(decisions)
        };
        self.ledger.decide(&incoming, rule).await?;
        crash::point("validation.committed");
        for (kind, reason) in ruled {
            tell_decided(kind, reason);
        }
        if relayed {
            self.relay.notify_one();
        }
        if !repeated.is_empty() {
            let commands: Vec<CommandId> = repeated.iter().map(|(command, _)| *command).collect();
            let mut unpublished = self.ledger.unpublished(&commands).await?;
            for (command, sequence) in repeated {
                outcome.insert(sequence, Some(unpublished.remove(&command).unwrap_or_default()));
            }
        }
        Ok(outcome)
    }

    /// The orders that the batch continues: as the log has them, or as the journal does where their
    /// events were trimmed.
    async fn load_orders(&self, batch: &[&Delivery<Incoming>]) -> Result<HashMap<OrderId, Head>> {
        let ids: BTreeSet<OrderId> =
            batch.iter().filter_map(|delivery| delivery.message.continues()).collect();
        let last = try_join_all(ids.into_iter().map(async |id| {
            let last = self.log.last(&self.topology.order_history(id)).await?;
            anyhow::Ok((id, last))
        }));
        let mut found = HashMap::new();
        let mut missing = Vec::new();
        for (id, last) in last.await? {
            if let Some(last) = last {
                found.insert(id, Head { order: last.event.state()?, sequence: last.sequence });
            } else {
                missing.push(id);
            }
        }
        for (id, order) in self.ledger.journal_orders(&missing).await? {
            found.insert(id, Head { order: Some(order), sequence: 0 });
        }
        Ok(found)
    }

    /// Up to which stream sequence all commands are decided, those of the batch included.
    async fn settled(&self, batch: &[&Delivery<Incoming>]) -> Result<u64> {
        let commands = self.topology.commands_stream();
        let mut settled = self.log.acknowledged(&commands, Self::NAME).await?;
        for delivery in batch {
            if delivery.sequence == settled + 1 {
                settled += 1;
            }
        }
        Ok(settled)
    }

    /// Appends the events of one order (or of one command that touched nothing), as far as they
    /// follow from it as it is; decides again what does not.
    async fn append(&self, mut group: Group<'_>, mut head: Head) -> Result<()> {
        for _ in 0..ROUNDS {
            let Some((_, first)) = group.first() else { return Ok(()) };
            let history = self.topology.history(first.subject, &first.subject_id);
            let fitting = head.fitting(&group)?;
            if fitting > 0 {
                let entries = group[..fitting]
                    .iter()
                    .map(|(_, event)| Entry::event(&self.topology, event, head.sequence))
                    .collect::<Result<_, _>>()?;
                match self.log.append(entries, PATIENCE).await {
                    Ok(_) if fitting == group.len() => return Ok(()),
                    Ok(_) | Err(AppendError::Conflict) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let stored = self.log.history(&history).await?;
            group.retain(|(_, event)| stored.iter().all(|stored| stored.event.id != event.id));
            let (Some((_, next)), Some(last)) = (group.first(), stored.last()) else { continue };
            if next.subject != Subject::Order || next.version == 1 {
                bail!(
                    "{history} has the event {} {}, the ledger has another: {}",
                    last.event.version,
                    last.event.kind,
                    next.kind
                );
            }
            head = Head { order: Some(last.event.state()?), sequence: last.sequence };
            let (dead, mut rest) = head.split(group)?;
            if dead.is_empty() && rest.is_empty() {
                return Ok(());
            }
            if head.fitting(&rest)? > 0 {
                rest.extend(dead);
                group = rest;
            } else if dead.is_empty() {
                // What comes before them is decided, and not in the log yet.
                break;
            } else {
                let (again, refused): (Group<'_>, Group<'_>) = self
                    .decide_again(dead, &head)
                    .await?
                    .into_iter()
                    .partition(|(_, event)| event.subject == Subject::Order);
                // A step that is no longer allowed has become a refused command.
                for single in refused {
                    Box::pin(self.append(vec![single], Head::default())).await?;
                }
                group = again;
                group.extend(rest);
            }
        }
        // Others are faster, or first; the redelivery goes on.
        Err(AppendError::Conflict.into())
    }

    /// These events can never follow from their order any more: decides their commands again.
    async fn decide_again<'a>(&self, group: Group<'a>, head: &Head) -> Result<Group<'a>> {
        let order = head.order.clone().context("an order that is not there")?;
        let refused: Vec<(&Incoming, &Event)> =
            group.iter().map(|(incoming, event)| (*incoming, event)).collect();
        let mut anew: Group<'a> = Vec::new();
        let rule = |book: &mut Book| {
            book.time_to_pay = self.time_to_pay;
            book.orders.insert(order.order_id, Known::Here(order.into()));
            let now = now();
            let mut decisions = Vec::new();
            for (incoming, _) in &group {
                if let Ruling::Decided(decision) = book.rule(incoming, now)? {
                    anew.extend(decision.events.iter().map(|event| (*incoming, event.clone())));
                    decisions.push(*decision);
                }
            }
            Ok(decisions)
        };
        let standing = self.ledger.decide_again(&refused, rule).await?;
        let standing = group
            .iter()
            .zip(standing)
            .flat_map(|((incoming, _), events)| events.into_iter().map(|event| (*incoming, event)));
        let mut group: Group<'a> = standing.chain(anew).collect();
        group.sort_by_key(|(_, event)| event.version);
        Ok(group)
    }

    async fn work(&self, batch: &[&Delivery<Incoming>]) -> Result<HashMap<u64, Verdict>> {
        let orders = step("load orders", self.load_orders(batch)).await?;
        let mut decided = step("decide", self.decide(batch, &orders)).await?;
        let mut verdicts = HashMap::new();
        let mut groups: BTreeMap<(Subject, String), Group<'_>> = BTreeMap::new();
        for delivery in batch {
            let verdict = match decided.remove(&delivery.sequence).flatten() {
                None => Verdict::Later("what it names is not there yet".to_owned()),
                Some(events) => {
                    for event in events {
                        let subject = (event.subject, event.subject_id.clone());
                        groups.entry(subject).or_default().push((&delivery.message, event));
                    }
                    Verdict::Done
                }
            };
            verdicts.insert(delivery.sequence, verdict);
        }
        let appends = groups.into_iter().map(async |((subject, id), mut group)| {
            // A command that came twice in this batch has its event here once.
            group.sort_by_key(|(_, event)| event.version);
            group.dedup_by_key(|(_, event)| event.id);
            let causes: Vec<(u64, CommandId)> = group
                .iter()
                .map(|(incoming, event)| (incoming.sequence, CommandId(event.correlation)))
                .collect();
            let order = (subject == Subject::Order).then(|| id.parse().ok()).flatten();
            let head = order.and_then(|id: OrderId| orders.get(&id)).cloned().unwrap_or_default();
            // Boxed: what is joined is copied.
            (causes, Box::pin(self.append(group, head)).await)
        });
        let mut finished = Vec::new();
        for (causes, result) in step("append", join_all(appends)).await {
            match result {
                Ok(()) => finished.extend(causes.iter().map(|(_, command)| *command)),
                Err(error) => {
                    let verdict = verdict_of(&error);
                    verdicts.extend(causes.into_iter().map(|(at, _)| (at, verdict.clone())));
                }
            }
        }
        crash::point("validation.appended");
        if let Err(error) = self.ledger.published(&finished).await {
            // The relay finds and clears them.
            tracing::debug!("published events stay in the outbox: {error:#}");
        }
        crash::point("validation.cleared");
        Ok(verdicts)
    }
}

fn tell_decided(kind: &'static str, reason: Option<Reason>) {
    let outcome = if reason.is_some() { "rejected" } else { "accepted" };
    let reason = reason.map_or("", Reason::as_str);
    let labels = [label("kind", kind), label("outcome", outcome), label("reason", reason)];
    metrics().decided.add(1, &labels);
}

fn verdict_of(error: &anyhow::Error) -> Verdict {
    if error.is::<Raced>() { Verdict::Later(error.to_string()) } else { Verdict::of(error) }
}

/// The events that validation appends itself; those of products and customers are the relay's.
fn to_append(events: &[Event]) -> Vec<Event> {
    let own = |event: &&Event| matches!(event.subject, Subject::Order | Subject::Command);
    events.iter().filter(own).cloned().collect()
}

impl<D: Ledger, L: EventLog> Worker for Validation<D, L> {
    type Message = Incoming;
    const NAME: &'static str = DECIDER;
    const BATCH: usize = 256;
    const BATCHES: usize = 2;

    fn stream(&self, topology: &Topology) -> String {
        topology.commands_stream()
    }

    fn decode(&self, raw: &Raw<'_>) -> Result<Incoming, String> {
        let kind = self.topology.command_kind(raw.subject);
        let stream = self.topology.commands_stream();
        Ok(Incoming {
            received: Received::read(
                kind,
                raw.payload,
                |name| raw.header(name),
                (&stream, raw.sequence),
            ),
            at: raw.at,
            sequence: raw.sequence,
            traceparent: raw.trace.traceparent().map(str::to_owned),
        })
    }

    async fn handle(&self, batch: &[Delivery<Incoming>]) -> Vec<Verdict> {
        let mut sorted: Vec<&Delivery<Incoming>> = batch.iter().collect();
        sorted.sort_by_key(|delivery| delivery.sequence);
        match self.work(&sorted).await {
            Ok(verdicts) => batch
                .iter()
                .map(|delivery| {
                    let received = &delivery.message.received;
                    match verdicts.get(&delivery.sequence) {
                        // Its refusal is recorded; the bytes are kept for the operator.
                        Some(Verdict::Done) if received.garbage => match &received.command {
                            Err(malformed) => Verdict::Park(malformed.to_string()),
                            Ok(_) => Verdict::Done,
                        },
                        Some(verdict) => verdict.clone(),
                        None => Verdict::Failed("no decision was made".to_owned()),
                    }
                })
                .collect(),
            Err(error) => vec![verdict_of(&error); batch.len()],
        }
    }
}
