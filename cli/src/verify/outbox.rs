//! What is decided comes into the log: nothing stays in the outbox.

use std::fmt;

use anyhow::Result;

use super::Data;
use super::engine::{Check, Found};

/// A row of the outbox.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Waiting {
    id: i64,
    subject: String,
    subject_id: String,
    version: i64,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} version {}", self.subject, self.subject_id, self.version)
    }
}

/// The check of the outbox.
pub struct Outbox {
    data: Data,
}

impl Outbox {
    pub fn new(data: Data) -> Self {
        Self { data }
    }

    async fn rows(&self, ids: Option<Vec<i64>>) -> Result<Vec<(Waiting, String)>> {
        let rows: Vec<Waiting> = sqlx::query_as(
            "select id, subject, subject_id, version from ledger.outbox
             where $1::bigint[] is null or id = any($1) order by id limit 10000",
        )
        .bind(ids)
        .fetch_all(&self.data.pool)
        .await?;
        let problem = || "it is decided, but stays in the outbox".to_owned();
        Ok(rows.into_iter().map(|row| (row, problem())).collect())
    }
}

impl Check for Outbox {
    type Key = Waiting;
    const NAME: &'static str = "outbox";
    const PROMISE: &'static str = "decided event has left the outbox for the log";

    async fn scan(&self, found: &mut Found<Waiting>) -> Result<()> {
        let rows = self.rows(None).await?;
        found.note(rows.len(), rows);
        Ok(())
    }

    async fn examine(&self, keys: &[Waiting]) -> Result<Vec<(Waiting, String)>> {
        self.rows(Some(keys.iter().map(|row| row.id).collect())).await
    }
}
