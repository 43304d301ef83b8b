//! Reading from the journal: what the log no longer has, because it was trimmed, is here. Whatever
//! the log has lost of a subject, the journal has its whole history.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use futures_util::stream::Stream;
use millrace_shared::customer::Customer;
use millrace_shared::ids::{EventId, OrderId};
use millrace_shared::message::{CommandOutcome, Event, SCHEMA, Subject};
use millrace_shared::order::Order;
use millrace_shared::product::Product;
use millrace_shared::views::Row;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row as _};
use uuid::Uuid;

/// An order as the journal has it. Ask the log first: the journal is behind it.
pub async fn order(pool: &PgPool, id: OrderId) -> Result<Option<Order>> {
    Ok(orders(pool, &[id]).await?.remove(&id))
}

/// As [`order`], for several; those that the journal does not have are left out.
pub async fn orders(pool: &PgPool, ids: &[OrderId]) -> Result<HashMap<OrderId, Order>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let texts: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select id, last.state
         from unnest($1::text[]) as asked (id)
         cross join lateral (
             select state::text from journal.events
             where subject = 'order' and subject_id = asked.id
             order by version desc limit 1
         ) as last (state)",
    )
    .bind(texts)
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|(id, state)| {
            let order: Order = serde_json::from_str(&state)
                .with_context(|| format!("the journal's state of the order {id} cannot be read"))?;
            Ok((order.order_id, order))
        })
        .collect()
}

/// An event's place in its subject's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The version of the last event.
    pub version: u64,
    /// Its id.
    pub event_id: Uuid,
}

/// The last event of a subject in the journal: what follows it, where the log has nothing of the
/// subject any more.
pub async fn head(pool: &PgPool, subject: Subject, id: &str) -> Result<Option<Head>> {
    let row = sqlx::query(
        "select version, event_id from journal.events
         where subject = $1 and subject_id = $2 order by version desc limit 1",
    )
    .bind(subject.as_str())
    .bind(id)
    .fetch_optional(pool)
    .await?;
    row.map(|row| {
        let version: i64 = row.try_get("version")?;
        Ok(Head { version: version.unsigned_abs(), event_id: row.try_get("event_id")? })
    })
    .transpose()
}

/// The journal as it is to be seen in the views, subject by subject: the last event of each, and the
/// outcome of every command; without what stands behind the place `through` of EVENTS, if it is
/// given. Streamed; the order is that of the journal's key.
pub fn rows(pool: &PgPool, through: Option<u64>) -> impl Stream<Item = Result<Row>> {
    let through = through.and_then(|place| i64::try_from(place).ok()).unwrap_or(i64::MAX);
    sqlx::query(
        "select subject, subject_id, version, event_id, type, occurred_at, causation, correlation,
                state::text as state, newest
         from (
             select *, row_number() over subject_history = 1 as newest
             from journal.events
             where sequence <= $2
             window subject_history as (partition by subject, subject_id order by version desc)
         ) as events
         where newest or (causation = correlation and causation <> $1)",
    )
    .bind(Uuid::nil())
    .bind(through)
    .fetch(pool)
    .map(|row| read_row(&row.context("the journal cannot be read")?))
}

fn read_row(row: &PgRow) -> Result<Row> {
    let subject: String = row.try_get("subject")?;
    let subject: Subject = serde_json::from_value(subject.into())?;
    let version: i64 = row.try_get("version")?;
    let event = Event {
        id: EventId(row.try_get("event_id")?),
        subject,
        subject_id: row.try_get("subject_id")?,
        version: version.unsigned_abs(),
        kind: row.try_get("type")?,
        schema: SCHEMA,
        occurred_at: row.try_get("occurred_at")?,
        causation: row.try_get("causation")?,
        correlation: row.try_get("correlation")?,
        traceparent: None,
        data: RawValue::NULL.to_owned(),
        state: as_written(subject, row.try_get("state")?)?,
    };
    Ok(Row { event, newest: row.try_get("newest")? })
}

/// The state as the log has it, letter by letter: PostgreSQL's `jsonb` puts members into an order of
/// its own.
fn as_written(subject: Subject, state: &str) -> Result<Box<RawValue>> {
    fn again<T: Serialize + DeserializeOwned>(state: &str) -> Result<Box<RawValue>> {
        Ok(to_raw_value(&serde_json::from_str::<T>(state)?)?)
    }
    match subject {
        Subject::Order => again::<Order>(state),
        Subject::Customer => again::<Customer>(state),
        Subject::Product => again::<Product>(state),
        Subject::Command => again::<CommandOutcome>(state),
    }
    .with_context(|| format!("the journal's state of a {subject} cannot be read"))
}

/// Those of `events` that the journal does not have.
pub async fn missing(pool: &PgPool, events: &[Event]) -> Result<Vec<Uuid>> {
    let column = |get: fn(&Event) -> String| events.iter().map(get).collect::<Vec<_>>();
    let ids: Vec<Uuid> = events.iter().map(|event| event.id.0).collect();
    let versions: Vec<i64> =
        events.iter().map(|event| i64::try_from(event.version).unwrap_or(i64::MAX)).collect();
    let missing = sqlx::query_scalar(
        "select asked.event_id
         from unnest($1::text[], $2::text[], $3::bigint[], $4::uuid[])
              as asked (subject, subject_id, version, event_id)
         where not exists (
             select from journal.events as held
             where (held.subject, held.subject_id, held.version, held.event_id)
                 = (asked.subject, asked.subject_id, asked.version, asked.event_id)
         )",
    )
    .bind(column(|event| event.subject.to_string()))
    .bind(column(|event| event.subject_id.clone()))
    .bind(versions)
    .bind(ids)
    .fetch_all(pool)
    .await?;
    Ok(missing)
}

/// The first place in EVENTS that is still needed by what is under way: an order that waits for its
/// payment or its refund, or an event that lies in the outbox and would be published again.
pub async fn needed_from(pool: &PgPool) -> Result<Option<u64>> {
    let first: Option<i64> = sqlx::query_scalar(
        "select min(sequence) from (
             select held.sequence
             from journal.orders
             join journal.events as held
               on held.subject = 'order' and held.subject_id = orders.order_id::text
             where orders.status in ('validated', 'payment_unknown', 'refunding')
             union all
             select held.sequence
             from ledger.outbox
             join journal.events as held using (subject, subject_id, version)
         ) as needed",
    )
    .fetch_one(pool)
    .await?;
    Ok(first.map(i64::unsigned_abs))
}
