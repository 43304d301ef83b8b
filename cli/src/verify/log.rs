//! The log and the journal say the same, as far as both reach: each event of the log is in the
//! journal, and each row of the journal is in the log unless the log was trimmed. So a history in
//! the log has no gap and no fork either: its events are those of the journal, in their order.

use std::collections::HashMap;
use std::fmt;

use anyhow::Result;
use futures_util::StreamExt as _;
use millrace_shared::message::{Event, Subject};
use serde_json::{Value, json};
use sqlx::Row as _;
use uuid::Uuid;

use super::Data;
use super::engine::{Check, Found, PAGE};
use super::journal::{self, difference};
use super::stream::{Message, Messages};

/// Something that is in one of the two.
#[derive(Debug, Clone)]
pub enum Place {
    /// A message of the log.
    Log(u64),
    /// A row of the journal, by its place in the log.
    Journal(u64, Uuid, String),
}

impl Place {
    fn sequence(&self) -> u64 {
        match self {
            Self::Log(sequence) | Self::Journal(sequence, _, _) => *sequence,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log(sequence) => write!(f, "message {sequence} of EVENTS"),
            Self::Journal(_, _, event) => f.write_str(event),
        }
    }
}

/// An event of the log, with its place and its subject.
pub struct Logged {
    pub sequence: u64,
    pub event: Event,
    subject: String,
}

/// What is wrong with an event of the log.
pub struct Wrong {
    pub sequence: u64,
    pub problem: String,
    /// The journal does not have it, nor another one in its place: `repair` can write it.
    pub missing: bool,
}

/// The check of log and journal.
pub struct Log {
    data: Data,
    messages: Messages,
}

impl Log {
    pub fn new(data: Data) -> Self {
        let messages = Messages::new(data.jetstream.clone(), data.topology.events_stream());
        Self { data, messages }
    }

    /// The places of the first and of the last message.
    pub async fn range(&self) -> Result<(u64, u64)> {
        self.messages.range().await
    }

    /// The events with these places. What is no event was put there by a stranger, and is parked.
    pub async fn events(&self, sequences: impl IntoIterator<Item = u64>) -> Result<Vec<Logged>> {
        let messages = self.messages.read(sequences).await?;
        Ok(messages.into_iter().filter_map(|message| self.event(message)).collect())
    }

    fn event(&self, message: Message) -> Option<Logged> {
        let tokens = message.subject.strip_prefix(self.data.topology.namespace())?;
        let kind = tokens.strip_prefix(".evt.")?.split('.').next()?;
        serde_json::from_value::<Subject>(kind.into()).ok()?;
        let event = Event::decode(&message.payload).ok()?;
        Some(Logged { sequence: message.sequence, event, subject: message.subject })
    }

    /// What is wrong with events of the log.
    pub async fn compare(&self, events: &[Logged]) -> Result<Vec<Wrong>> {
        let version = |logged: &Logged| i64::try_from(logged.event.version).unwrap_or(i64::MAX);
        let rows = sqlx::query(
            "select old.* from unnest($1::text[], $2::text[], $3::bigint[])
                    as log (subject, subject_id, version)
             join journal.events old using (subject, subject_id, version)",
        )
        .bind(events.iter().map(|l| l.event.subject.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|l| l.event.subject_id.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(version).collect::<Vec<_>>())
        .fetch_all(&self.data.pool)
        .await?;
        let mut journal = HashMap::new();
        for row in &rows {
            let (event, sequence) = (journal::event(row)?, row.try_get::<i64, _>("sequence")?);
            let key = (event.subject, event.subject_id.clone(), event.version);
            journal.insert(key, (event, sequence.unsigned_abs()));
        }
        let mut wrong = Vec::new();
        for logged in events {
            let Logged { sequence, event, subject } = logged;
            let key = (event.subject, event.subject_id.clone(), event.version);
            let found = journal.get(&key);
            let name = name(event);
            let expected = self.data.topology.event(event.subject, &event.subject_id, &event.kind);
            let problem = match found {
                _ if expected != *subject => Some(format!("{name} stands on {subject}")),
                None => Some(format!("{name} is not in the journal")),
                Some((known, _)) if known.id != event.id => Some(format!(
                    "{name} is a fork: the journal has {} as this version",
                    known.kind
                )),
                Some((_, place)) if place != sequence => {
                    Some(format!("{name} stands in the log at {place} according to the journal"))
                }
                Some((known, _)) => {
                    difference(&document(event)?, &document(known)?).map(|difference| {
                        format!("{name} is another one in the journal: {difference}")
                    })
                }
            };
            let missing = found.is_none();
            wrong.extend(problem.map(|problem| Wrong { sequence: *sequence, problem, missing }));
        }
        Ok(wrong)
    }

    async fn look(&self, sequences: Vec<u64>) -> Result<(Vec<Logged>, Vec<(Place, String)>)> {
        let events = self.events(sequences).await?;
        let wrong = self.compare(&events).await?;
        let place = |wrong: Wrong| (Place::Log(wrong.sequence), wrong.problem);
        Ok((events, wrong.into_iter().map(place).collect()))
    }
}

fn name(event: &Event) -> String {
    format!("{} {} version {} ({})", event.subject, event.subject_id, event.version, event.kind)
}

/// What log and journal must agree on.
fn document(event: &Event) -> Result<Value> {
    Ok(json!({
        "type": event.kind, "schema": event.schema, "occurredAt": event.occurred_at,
        "causation": event.causation, "correlation": event.correlation,
        "data": serde_json::from_str::<Value>(event.data.get())?,
        "state": event.state::<Value>()?,
    }))
}

impl Check for Log {
    type Key = Place;
    const NAME: &'static str = "log";
    const PROMISE: &'static str =
        "event of the log is in the journal, the same, and the other way round";

    async fn scan(&self, found: &mut Found<Place>) -> Result<()> {
        let (mut next, last) = self.range().await?;
        let signed = |sequence: u64| i64::try_from(sequence).unwrap_or(i64::MAX);
        let rows = sqlx::query(
            "select sequence, event_id, subject, subject_id, version, type from journal.events
             where sequence between $1 and $2 order by sequence",
        )
        .bind(signed(next))
        .bind(signed(last))
        .fetch(&self.data.pool);
        let mut rows = std::pin::pin!(rows.peekable());
        while next <= last {
            let end = last.min(next + u64::from(PAGE) - 1);
            let (events, mut wrong) = self.look((next..=end).collect()).await?;
            let logged: HashMap<u64, Uuid> =
                events.iter().map(|logged| (logged.sequence, logged.event.id.0)).collect();
            let reached = |row: &Result<sqlx::postgres::PgRow, sqlx::Error>| {
                row.as_ref().map_or(true, |row| {
                    row.try_get::<i64, _>("sequence").is_ok_and(|at| at <= signed(end))
                })
            };
            while let Some(row) = rows.as_mut().next_if(reached).await {
                let row = row?;
                let (at, id) =
                    (row.try_get::<i64, _>("sequence")?.unsigned_abs(), row.try_get("event_id")?);
                if logged.get(&at) != Some(&id) {
                    let (subject, of): (String, String) =
                        (row.try_get("subject")?, row.try_get("subject_id")?);
                    let (version, kind): (i64, String) =
                        (row.try_get("version")?, row.try_get("type")?);
                    let event = format!("{subject} {of} version {version} ({kind})");
                    wrong.push((Place::Journal(at, id, event), not_there(at)));
                }
            }
            found.note(events.len(), wrong);
            next = end + 1;
        }
        Ok(())
    }

    async fn examine(&self, keys: &[Place]) -> Result<Vec<(Place, String)>> {
        let (first, _) = self.range().await?;
        let (of_log, of_journal): (Vec<Place>, Vec<Place>) =
            keys.iter().cloned().partition(|key| matches!(key, Place::Log(_)));
        let (_, mut wrong) = self.look(of_log.iter().map(Place::sequence).collect()).await?;
        let events = self.events(of_journal.iter().map(Place::sequence)).await?;
        for place in of_journal {
            let Place::Journal(at, id, _) = &place else { continue };
            let is_there =
                events.iter().any(|logged| logged.sequence == *at && logged.event.id.0 == *id);
            // Before the first message the log was trimmed meanwhile.
            if !is_there && *at >= first {
                let problem = not_there(*at);
                wrong.push((place, problem));
            }
        }
        Ok(wrong)
    }
}

fn not_there(sequence: u64) -> String {
    format!("it is in the journal, but not in the log at {sequence}")
}
