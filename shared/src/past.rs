//! An order's past: every event of it, from the log and, where the log's beginning was trimmed, from
//! the journal. Nothing is written here.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use sqlx::{PgPool, Row as _};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::ids::{EventId, OrderId};
use crate::log::{Log, ReadError};
use crate::message::{Event, SCHEMA, Subject};
use crate::order::Order;
use crate::topology::Topology;

/// How often a history is read again that has a gap.
const ROUNDS: usize = 3;

/// Where the past of orders is read.
#[derive(Debug, Clone)]
pub struct Past {
    log: Log,
    topology: Topology,
    journal: Option<PgPool>,
}

/// Why the past cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    /// NATS is away: what happened last is known only there.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// The log no longer has the beginning, and no journal was configured.
    #[error("the log no longer has the beginning of this order, and no journal is configured")]
    NoJournal,
    /// The log no longer has the beginning, and PostgreSQL is away.
    #[error("the journal cannot be read, and the log no longer has the beginning of this order")]
    Journal(#[source] sqlx::Error),
    /// An event of the journal cannot be read.
    #[error("the journal's version {0} of this order cannot be read")]
    Unreadable(u64),
    /// Neither has this version. It is a defect: see `millrace verify`.
    #[error("version {0} of this order is neither in the log nor in the journal")]
    Gap(u64),
}

/// An event as it is told.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = ToldEvent)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// Its place in the history, from 1.
    pub version: u64,
    /// What happened: `paid`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The event.
    pub event_id: EventId,
    /// When it was decided.
    pub occurred_at: DateTime<Utc>,
    /// The command or event that caused it.
    pub causation: Uuid,
    /// The command at the beginning of the chain of causes.
    pub correlation: Uuid,
    /// What happened, in detail; without the card's token.
    #[schema(value_type = Object)]
    pub data: Value,
}

impl Past {
    /// Closes the connections to the journal.
    pub async fn close(&self) {
        if let Some(journal) = &self.journal {
            journal.close().await;
        }
    }

    /// The past by the log (EVENTS) and, if there is one, the journal.
    pub fn new(log: Log, topology: Topology, journal: Option<PgPool>) -> Self {
        Self { log, topology, journal }
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.topology
    }

    pub(crate) fn pool(&self) -> Option<&PgPool> {
        self.journal.as_ref()
    }

    /// All events of an order, versions 1..n; none if there is no such order.
    ///
    /// The log is read first: what is trimmed from it meanwhile is in the journal by then.
    pub async fn history(&self, order: OrderId) -> Result<Vec<Event>, PastError> {
        let subject = self.topology.order_history(order);
        let mut gap = None;
        for _ in 0..ROUNDS {
            let stored = self.log.history(&subject).await?;
            let logged = stored.into_iter().map(|stored| (stored.event.version, stored.event));
            let mut events: BTreeMap<u64, Event> = logged.collect();
            if !events.is_empty() && missing(&events).is_none() {
                return Ok(events.into_values().collect());
            }
            for event in self.journal(order).await? {
                events.entry(event.version).or_insert(event);
            }
            gap = missing(&events);
            if gap.is_none() {
                return Ok(events.into_values().collect());
            }
        }
        gap.map_or(Ok(Vec::new()), |version| Err(PastError::Gap(version)))
    }

    /// The events of an order in the journal. Where it cannot be asked, that is no harm as long as
    /// the log has never been trimmed.
    async fn journal(&self, order: OrderId) -> Result<Vec<Event>, PastError> {
        match self.read_journal(order).await {
            Err(error @ (PastError::NoJournal | PastError::Journal(_))) => {
                let stream = self.log.stream().await?;
                let info = stream.get_info().await;
                let info = info.map_err(|error| ReadError::Unavailable(error.to_string()))?;
                if info.state.first_sequence <= 1 { Ok(Vec::new()) } else { Err(error) }
            }
            read => read,
        }
    }

    async fn read_journal(&self, order: OrderId) -> Result<Vec<Event>, PastError> {
        let pool = self.journal.as_ref().ok_or(PastError::NoJournal)?;
        let rows = sqlx::query(
            "select version, event_id, type, occurred_at, causation, correlation,
                    data::text as data, state::text as state
             from journal.events where subject = 'order' and subject_id = $1 order by version",
        )
        .bind(order.to_string())
        .fetch_all(pool)
        .await
        .map_err(PastError::Journal)?;
        let read = |row: &sqlx::postgres::PgRow| -> Result<Event, PastError> {
            let version: i64 = row.try_get("version").map_err(PastError::Journal)?;
            let unreadable = || PastError::Unreadable(version.unsigned_abs());
            let text = |name: &str| row.try_get::<String, _>(name).map_err(PastError::Journal);
            let id = |name: &str| row.try_get::<Uuid, _>(name).map_err(PastError::Journal);
            // As the log has it: `jsonb` puts members into an order of its own.
            let state: Order = serde_json::from_str(&text("state")?).map_err(|_| unreadable())?;
            Ok(Event {
                id: EventId(id("event_id")?),
                subject: Subject::Order,
                subject_id: order.to_string(),
                version: version.unsigned_abs(),
                kind: text("type")?,
                schema: SCHEMA,
                occurred_at: row.try_get("occurred_at").map_err(PastError::Journal)?,
                causation: id("causation")?,
                correlation: id("correlation")?,
                traceparent: None,
                data: RawValue::from_string(text("data")?).map_err(|_| unreadable())?,
                state: to_raw_value(&state).map_err(|_| unreadable())?,
            })
        };
        rows.iter().map(read).collect()
    }
}

/// The first version that is not there, below the last one.
fn missing(events: &BTreeMap<u64, Event>) -> Option<u64> {
    (1..).zip(events.keys()).find(|(expected, version)| expected != *version).map(|(gap, _)| gap)
}

/// The last event at a moment, if the order existed by then.
pub fn as_of(events: &[Event], time: DateTime<Utc>) -> Option<&Event> {
    events.iter().rev().find(|event| event.occurred_at <= time)
}

impl From<&Event> for Told {
    fn from(event: &Event) -> Self {
        let mut data = serde_json::from_str(event.data.get()).unwrap_or(Value::Null);
        forget_token(&mut data);
        Self {
            version: event.version,
            kind: event.kind.clone(),
            event_id: event.id,
            occurred_at: event.occurred_at,
            causation: event.causation,
            correlation: event.correlation,
            data,
        }
    }
}

/// The token buys: it is for payment alone.
fn forget_token(data: &mut Value) {
    for pointer in ["/payment", "/placement/payment"] {
        if let Some(payment) = data.pointer_mut(pointer).and_then(Value::as_object_mut) {
            payment.remove("token");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_is_never_told() {
        for mut data in [
            json!({ "payment": { "method": "card", "token": "tok_ok" } }),
            json!({ "placement": { "payment": { "method": "card", "token": "tok_ok" } } }),
        ] {
            forget_token(&mut data);
            assert!(!data.to_string().contains("tok"), "{data}");
            assert!(data.to_string().contains("card"), "{data}");
        }
    }
}
