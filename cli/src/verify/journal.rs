//! Reading the journal: pages of subjects, and rows as events.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use millrace_shared::ids::EventId;
use millrace_shared::message::{Event, Subject};
use serde_json::Value;
use serde_json::value::RawValue;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgPool, Row as _};

use super::engine::PAGE;

/// By how much the journal may be behind the views or the ledger, usually.
const BEHIND: Duration = Duration::from_millis(300);

/// What a history belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    /// An order, a customer, a product or a command.
    pub subject: Subject,
    /// Which.
    pub id: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.subject, self.id)
    }
}

/// The ids of those of `keys` that are of this subject.
pub fn ids_of(keys: &[Owner], subject: Subject) -> Vec<String> {
    keys.iter().filter(|key| key.subject == subject).map(|key| key.id.clone()).collect()
}

/// The next page of those that have a history, after the id `after`.
pub async fn owners(pool: &PgPool, subject: Subject, after: &str) -> Result<Vec<Owner>> {
    let ids: Vec<String> = sqlx::query_scalar(
        "select distinct subject_id from journal.events
         where subject = $1 and subject_id > $2 order by subject_id limit $3",
    )
    .bind(subject.as_str())
    .bind(after)
    .bind(i64::from(PAGE))
    .fetch_all(pool)
    .await?;
    Ok(ids.into_iter().map(|id| Owner { subject, id }).collect())
}

/// A row of `journal.events`, all columns, as an event.
pub fn event(row: &PgRow) -> Result<Event> {
    let subject: Subject = serde_json::from_value(Value::String(row.try_get("subject")?))?;
    let version: i64 = row.try_get("version")?;
    let schema: i32 = row.try_get("schema")?;
    Ok(Event {
        id: EventId(row.try_get("event_id")?),
        subject,
        subject_id: row.try_get("subject_id")?,
        version: version.unsigned_abs(),
        kind: row.try_get("type")?,
        schema: schema.unsigned_abs(),
        occurred_at: row.try_get("occurred_at")?,
        causation: row.try_get("causation")?,
        correlation: row.try_get("correlation")?,
        traceparent: None,
        data: row.try_get::<Json<Box<RawValue>>, _>("data")?.0,
        state: row.try_get::<Json<Box<RawValue>>, _>("state")?.0,
    })
}

/// The states of `subject`s at versions. One that is not there is asked for again a little later:
/// its version was read a moment ago from where it is known earlier.
pub async fn states(
    pool: &PgPool,
    subject: Subject,
    versions: &[(String, u64)],
) -> Result<HashMap<String, Value>> {
    let mut states = states_now(pool, subject, versions).await?;
    let is_missing = |(id, version): &&(String, u64)| *version > 0 && !states.contains_key(id);
    let missing: Vec<(String, u64)> = versions.iter().filter(is_missing).cloned().collect();
    if !missing.is_empty() {
        tokio::time::sleep(BEHIND).await;
        states.extend(states_now(pool, subject, &missing).await?);
    }
    Ok(states)
}

async fn states_now(
    pool: &PgPool,
    subject: Subject,
    versions: &[(String, u64)],
) -> Result<HashMap<String, Value>> {
    let (ids, versions): (Vec<&str>, Vec<i64>) = versions
        .iter()
        .map(|(id, version)| (id.as_str(), i64::try_from(*version).unwrap_or(i64::MAX)))
        .unzip();
    let rows: Vec<(String, Value)> = sqlx::query_as(
        "select subject_id, state from unnest($2::text[], $3::bigint[]) as at (subject_id, version)
         join journal.events using (subject_id, version) where subject = $1",
    )
    .bind(subject.as_str())
    .bind(ids)
    .bind(versions)
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Where two JSON documents differ, in words; nothing if they are equal.
pub fn difference(expected: &Value, found: &Value) -> Option<String> {
    if expected == found {
        return None;
    }
    let (Some(expected), Some(found)) = (expected.as_object(), found.as_object()) else {
        return Some(format!("it is {} instead of {}", short(found), short(expected)));
    };
    let mut fields: Vec<&String> = expected.keys().chain(found.keys()).collect();
    fields.sort_unstable();
    fields.dedup();
    let differ = |field: &String| {
        let (expected, found) = (expected.get(field), found.get(field));
        let told = |value: Option<&Value>| value.map_or("absent".to_owned(), short);
        (expected != found)
            .then(|| format!("{field} is {} instead of {}", told(found), told(expected)))
    };
    Some(fields.into_iter().filter_map(differ).collect::<Vec<_>>().join(", "))
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::difference;

    #[test]
    fn documents_that_differ_are_told_apart_by_field() {
        assert_eq!(difference(&json!({ "a": 1 }), &json!({ "a": 1 })), None);
        let told =
            difference(&json!({ "a": 1, "b": 2, "c": 3 }), &json!({ "a": 1, "b": 3, "d": 4 }));
        let expected = "b is 3 instead of 2, c is absent instead of 3, d is 4 instead of absent";
        assert_eq!(told.as_deref(), Some(expected));
        assert!(difference(&json!(1), &json!({})).is_some());
        // A difference behind the end of what is shown is one, too.
        let long = |end: &str| json!({ "a": format!("{}{end}", "x".repeat(200)) });
        assert!(difference(&long("1"), &long("2")).is_some());
    }
}
