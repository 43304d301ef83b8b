//! What operators do with parked messages: list, show, replay, discard. The command line and the
//! HTTP edge are two ways to it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use sqlx::PgPool;
use tokio::time::Instant;

use super::Reader;
use super::audit::Audit;
use super::record::Parked;
pub use super::told::{Done, Filter, Listed, Outcome, Page, Payload, Report, Shown, What};
use crate::crash;
use crate::log::{AppendError, Entry, Expect, Log, ReadError};
use crate::topology::Topology;

/// Messages that are asked for at a time; the next are asked for when these have their results.
const BATCH: usize = 100;
/// How long a request is tried.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for results.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// How long results of a replay are waited for. What has none by then is replayed all the same.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For the next one.
    pub each: Duration,
    /// For all of them.
    pub until: Option<Instant>,
}

impl Patience {
    /// At most `all` for all of them.
    pub fn of(all: Duration) -> Self {
        Self { each: all, until: Some(Instant::now() + all) }
    }

    fn over(&self, since: Instant) -> bool {
        since.elapsed() >= self.each || self.until.is_some_and(|until| Instant::now() >= until)
    }
}

/// The desk of an operator.
#[derive(Debug, Clone)]
pub struct Desk {
    topology: Topology,
    parked: Log,
    reader: Reader,
    audit: Audit,
}

impl Desk {
    /// A desk for `actor`, who is named in the audit table in `pool`.
    pub fn new(client: Client, topology: Topology, pool: PgPool, actor: &str) -> Self {
        let parked = Log::new(client, topology.parked_stream());
        let reader = Reader::new(parked.clone());
        Self { topology, parked, reader, audit: Audit::new(pool, actor) }
    }

    /// The desk as it is used by somebody whose name is known.
    #[must_use]
    pub fn of(&self, actor: Option<&str>) -> Self {
        let mut desk = self.clone();
        if let Some(actor) = actor {
            desk.audit = desk.audit.of(actor);
        }
        desk
    }

    /// Closes the connections to PostgreSQL.
    pub async fn close(&self) {
        self.audit.close().await;
    }

    /// Whether PostgreSQL answers.
    pub async fn ping(&self) -> sqlx::Result<()> {
        self.audit.ping().await
    }

    /// Up to `limit` parked messages from the sequence `cursor` on.
    pub async fn list(
        &self,
        filter: &Filter,
        cursor: u64,
        limit: usize,
    ) -> Result<Page, ReadError> {
        let places = filter.places(&self.topology);
        let (mut items, mut cursor) = (Vec::new(), cursor);
        while items.len() < limit {
            let Some(parked) = self.reader.next(&places, cursor).await? else {
                return Ok(Page { items, next_cursor: None });
            };
            cursor = parked.sequence + 1;
            items.push(Listed::from(&parked));
        }
        Ok(Page { items, next_cursor: Some(cursor) })
    }

    /// One parked message with its payload and headers.
    pub async fn show(&self, sequence: u64) -> Result<Option<Shown>, ReadError> {
        let Some(parked) = self.get(sequence).await? else { return Ok(None) };
        let listed = Listed::from(&parked);
        Ok(Some(match self.reader.content(&parked).await? {
            Some((payload, headers)) => Shown { listed, headers, payload: Payload(Some(payload)) },
            None => Shown { listed, headers: parked.headers, payload: Payload(None) },
        }))
    }

    /// A parked message; not the request for a replay, which is in the same stream.
    async fn get(&self, sequence: u64) -> Result<Option<Parked>, ReadError> {
        if sequence == 0 {
            // To NATS this is any message.
            return Ok(None);
        }
        let parked = self.reader.get(sequence).await?;
        Ok(parked.filter(|parked| self.topology.replay_place(&parked.place).is_some()))
    }

    /// Replays these messages, and what is parked of the same orders, oldest first.
    pub async fn replay(
        &self,
        sequences: &[u64],
        limit: usize,
        patience: Patience,
    ) -> anyhow::Result<Report> {
        let (mut results, mut chosen, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for sequence in sequences.iter().copied().collect::<BTreeSet<u64>>() {
            match self.get(sequence).await? {
                Some(parked) => self.choose(parked, limit, &mut chosen, &mut seen).await?,
                None => results.push(Outcome { sequence, what: None, result: Done::Gone }),
            }
        }
        for batch in chosen.chunks(BATCH) {
            results.extend(self.replay_batch(batch.to_vec(), patience).await?);
        }
        Ok(Report { results, next_cursor: None })
    }

    /// Replays up to `limit` of the messages that the filter means, from the sequence `cursor` on,
    /// and what is parked of the same orders. What is parked anew meanwhile is left out.
    pub async fn replay_all(
        &self,
        filter: &Filter,
        cursor: u64,
        limit: usize,
        patience: Patience,
        mut progress: impl FnMut(&[Outcome]),
    ) -> anyhow::Result<Report> {
        let places = filter.places(&self.topology);
        let end = self.parked.stream().await?.get_info().await?.state.last_sequence;
        let (mut results, mut seen, mut cursor) = (Vec::new(), BTreeSet::new(), cursor);
        while results.len() < limit {
            let room = BATCH.min(limit - results.len());
            let mut chosen = Vec::new();
            while chosen.len() < room {
                match self.reader.next(&places, cursor).await? {
                    Some(parked) if parked.sequence <= end => {
                        cursor = parked.sequence + 1;
                        self.choose(parked, room, &mut chosen, &mut seen).await?;
                    }
                    _ => {
                        let last = self.replay_batch(chosen, patience).await?;
                        progress(&last);
                        results.extend(last);
                        return Ok(Report { results, next_cursor: None });
                    }
                }
            }
            let batch = self.replay_batch(chosen, patience).await?;
            progress(&batch);
            results.extend(batch);
        }
        Ok(Report { results, next_cursor: Some(cursor) })
    }

    /// Adds a message to those that are chosen, and with it what the same worker has parked of the
    /// same order, as far as there is room: the oldest.
    async fn choose(
        &self,
        parked: Parked,
        room: usize,
        chosen: &mut Vec<Parked>,
        seen: &mut BTreeSet<String>,
    ) -> anyhow::Result<()> {
        if seen.contains(&parked.place) {
            return Ok(());
        }
        let Some((history, _)) = parked.place.rsplit_once('.') else { return Ok(()) };
        if self.topology.about(&parked.subject).is_none() {
            seen.insert(parked.place.clone());
            chosen.push(Parked { payload: None, ..parked });
            return Ok(());
        }
        let stream = self.parked.stream().await?;
        let mut places = stream.info_with_subjects(format!("{history}.*")).await?;
        let mut oldest: BTreeSet<(u64, String)> = BTreeSet::new();
        while let Some((place, _)) = places.try_next().await? {
            if let Some(sequence) = place.rsplit_once('.').and_then(|(_, at)| at.parse().ok()) {
                oldest.insert((sequence, place));
                if oldest.len() > room.saturating_sub(chosen.len()).max(1) {
                    oldest.pop_last();
                }
            }
        }
        for (_, place) in oldest {
            if seen.insert(place.clone())
                && let Some(parked) = self.reader.at(&place).await?
            {
                // Payloads are not needed here, and many of them would be much.
                chosen.push(Parked { payload: None, ..parked });
            }
        }
        Ok(())
    }

    /// Asks for the replay of these, and waits for the results.
    async fn replay_batch(
        &self,
        mut batch: Vec<Parked>,
        patience: Patience,
    ) -> anyhow::Result<Vec<Outcome>> {
        // The oldest first, over all orders: so each order's are in their order too.
        batch.sort_by_key(|parked| parked.original);
        self.audit.replays(&batch).await.context("the audit table cannot be written")?;
        let mut requested = VecDeque::new();
        for parked in batch {
            let place = self.topology.replay_place(&parked.place).context("a place in PARKED")?;
            let entry = Entry {
                subject: place.clone(),
                payload: Bytes::new(),
                headers: HeaderMap::new(),
                expect: Some(Expect { history: place.clone(), sequence: 0 }),
            };
            match self.parked.append(vec![entry], PATIENCE).await {
                // A conflict: it has been asked for already.
                Ok(_) | Err(AppendError::Conflict) => requested.push_back((parked, place)),
                Err(error) => {
                    return Err(anyhow::Error::new(error).context(
                        "the replay cannot be asked for; what was asked for before goes on",
                    ));
                }
            }
            crash::point("replay.asked");
        }
        let (mut results, mut since) = (Vec::new(), Instant::now());
        while let Some((parked, place)) = requested.pop_front() {
            let asked = loop {
                let waiting = self.reader.at(&place).await?.is_some();
                if !waiting || patience.over(since) {
                    break waiting;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            };
            if !asked {
                since = Instant::now();
            }
            let result = self.result(&parked, asked).await?;
            results.push(Outcome { result, ..Outcome::of(&parked) });
        }
        self.tell_discarded(&mut results).await?;
        Ok(results)
    }

    async fn result(&self, parked: &Parked, asked: bool) -> Result<Done, ReadError> {
        if asked {
            return Ok(Done::Waiting);
        }
        Ok(match self.reader.at(&parked.place).await? {
            None => Done::Replayed,
            Some(now) => Done::StillFailing {
                reason: now.reason,
                attempts: now.attempts,
                parked_as: now.sequence,
            },
        })
    }

    /// What is no longer there was replayed, unless another operator has discarded it meanwhile.
    async fn tell_discarded(&self, results: &mut [Outcome]) -> anyhow::Result<()> {
        let replayed = |outcome: &&Outcome| outcome.result == Done::Replayed;
        let gone: Vec<u64> = results.iter().filter(replayed).map(|of| of.sequence).collect();
        let discarded = self.audit.discarded(&gone).await?;
        for outcome in results {
            if discarded.contains(&outcome.sequence) {
                outcome.result = Done::Gone;
            }
        }
        Ok(())
    }

    /// Writes these messages to the audit table, and then removes them. What waits behind them stays
    /// parked until it is replayed.
    pub async fn discard(&self, sequences: &[u64], why: &str) -> anyhow::Result<Vec<Outcome>> {
        ensure!(!why.trim().is_empty(), "the reason must be told");
        let mut results = Vec::new();
        for sequence in sequences.iter().copied().collect::<BTreeSet<u64>>() {
            let Some(parked) = self.get(sequence).await? else {
                results.push(Outcome { sequence, what: None, result: Done::Gone });
                continue;
            };
            let content = self.reader.content(&parked).await?;
            let (payload, headers) = match &content {
                Some((payload, headers)) => (Some(payload.as_ref()), headers),
                None => (None, &parked.headers),
            };
            let written = self.audit.discard(&parked, why, payload, headers).await;
            written.context("the audit table cannot be written, so nothing was discarded")?;
            crash::point("discard.written");
            // It may have been replayed, or have failed again, since it was read.
            let removed = self.reader.remove(sequence).await?;
            let result = if removed { Done::Discarded } else { Done::Gone };
            results.push(Outcome { result, ..Outcome::of(&parked) });
        }
        Ok(results)
    }
}
