//! The journal's audit table: what operators did to parked messages.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use sqlx::PgPool;
use sqlx::types::Json;

use super::record::Parked;

/// The audit table, written in somebody's name.
#[derive(Debug, Clone)]
pub struct Audit {
    pool: PgPool,
    actor: String,
}

impl Audit {
    /// The table in `pool`, written in the name of `actor`.
    pub fn new(pool: PgPool, actor: &str) -> Self {
        Self { pool, actor: actor.to_owned() }
    }

    /// The table, written in another name.
    #[must_use]
    pub fn of(self, actor: &str) -> Self {
        Self { actor: actor.to_owned(), ..self }
    }

    /// Closes the connections; nothing can be written after it.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// Whether PostgreSQL answers.
    pub async fn ping(&self) -> sqlx::Result<()> {
        sqlx::query("select 1").execute(&self.pool).await.map(drop)
    }

    /// Writes that these are about to be replayed, all or none.
    pub async fn replays(&self, parked: &[Parked]) -> sqlx::Result<()> {
        sqlx::query(
            "insert into journal.audit (actor, action, worker, stream, sequence, parked_sequence,
                    subject, reason, attempts)
             select $1, 'replay', * from unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[],
                    $6::text[], $7::text[], $8::bigint[])",
        )
        .bind(text(&self.actor))
        .bind(parked.iter().map(|p| text(&p.worker)).collect::<Vec<_>>())
        .bind(parked.iter().map(|p| text(&p.stream)).collect::<Vec<_>>())
        .bind(parked.iter().map(|p| signed(p.original)).collect::<Vec<_>>())
        .bind(parked.iter().map(|p| signed(p.sequence)).collect::<Vec<_>>())
        .bind(parked.iter().map(|p| text(&p.subject)).collect::<Vec<_>>())
        .bind(parked.iter().map(|p| text(&p.reason)).collect::<Vec<_>>())
        .bind(parked.iter().map(|p| signed(p.attempts)).collect::<Vec<_>>())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Writes that this is about to be discarded, with all that it holds.
    pub async fn discard(
        &self,
        parked: &Parked,
        why: &str,
        payload: Option<&[u8]>,
        headers: &HeaderMap,
    ) -> sqlx::Result<()> {
        sqlx::query(
            "insert into journal.audit (actor, action, why, worker, stream, sequence,
                    parked_sequence, subject, reason, attempts, payload, headers)
             values ($1, 'discard', $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             on conflict do nothing",
        )
        .bind(text(&self.actor))
        .bind(text(why))
        .bind(text(&parked.worker))
        .bind(text(&parked.stream))
        .bind(signed(parked.original))
        .bind(signed(parked.sequence))
        .bind(text(&parked.subject))
        .bind(text(&parked.reason))
        .bind(signed(parked.attempts))
        .bind(payload)
        .bind(Json(listed(headers)))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Which of these sequences in PARKED were discarded.
    pub async fn discarded(&self, sequences: &[u64]) -> sqlx::Result<Vec<u64>> {
        let sequences: Vec<i64> = sequences.iter().copied().map(signed).collect();
        let found: Vec<i64> = sqlx::query_scalar(
            "select parked_sequence from journal.audit
             where action = 'discard' and parked_sequence = any($1)",
        )
        .bind(sequences)
        .fetch_all(&self.pool)
        .await?;
        Ok(found.into_iter().map(i64::unsigned_abs).collect())
    }
}

/// Headers by name, as they are shown.
pub fn listed(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    headers
        .iter()
        .map(|(name, values)| {
            (name.to_string(), values.iter().map(|value| value.as_str().to_owned()).collect())
        })
        .collect()
}

/// A text as PostgreSQL can keep it: without the one character that it cannot.
fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
