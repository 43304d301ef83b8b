//! What is remembered of Stripe's payments: the table `payment.intents`. Each step is one statement,
//! so that replicas that work on one order see each other's steps.

use std::time::Duration;

use millrace_shared::money::Money;
use sqlx::PgPool;
use uuid::Uuid;

use super::super::{Charge, ChargeError};

/// A statement that gives rows: its text before the columns of a row.
macro_rules! rows {
    ($sql:literal, $end:literal) => {
        concat!($sql, " key, nonce, intent_id, outcome, decline_code, refund_id ", $end)
    };
    ($sql:literal) => {
        rows!($sql, "")
    };
}

/// What is remembered of one charge.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Row {
    key: String,
    nonce: Uuid,
    pub intent_id: Option<String>,
    outcome: Option<String>,
    decline_code: Option<String>,
    pub refund_id: Option<String>,
}

impl Row {
    /// What became of the charge; nothing while Stripe must be asked.
    pub fn known(&self) -> Option<Result<Charge, ChargeError>> {
        match (self.outcome.as_deref()?, &self.intent_id) {
            ("succeeded", Some(id)) => Some(Ok(Charge { charge_id: id.clone() })),
            ("declined", _) => {
                Some(Err(ChargeError::Declined(self.decline_code.clone().unwrap_or_default())))
            }
            _ => Some(Err(ChargeError::Voided)),
        }
    }

    /// The idempotency key of a request about it. No other system on the same account has it.
    pub fn idempotency_key(&self, what: &str) -> String {
        format!("{what}-{}-{}", self.key, self.nonce)
    }
}

/// What Stripe has said for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<'a> {
    Succeeded,
    Declined(&'a str),
    Voided,
}

/// The table.
#[derive(Debug, Clone)]
pub struct Book {
    pool: PgPool,
}

impl Book {
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Writes down that a charge is asked for, before it is; the row as it then stands.
    pub async fn begin(&self, key: &str, amount: Money) -> sqlx::Result<Row> {
        let sql = rows!(
            "insert into payment.intents (key, amount, currency) values ($1, $2, $3)
             on conflict (key) do update set calls = intents.calls + 1, updated_at = now()
             returning"
        );
        let query = sqlx::query_as(sql).bind(key).bind(amount.amount);
        query.bind(amount.currency.code()).fetch_one(&self.pool).await
    }

    pub async fn find(&self, key: &str) -> sqlx::Result<Option<Row>> {
        let sql = rows!("select", "from payment.intents where key = $1");
        sqlx::query_as(sql).bind(key).fetch_optional(&self.pool).await
    }

    /// Remembers the intent of a charge, unless another is remembered already or the charge was called
    /// off meanwhile: the row that is returned tells.
    pub async fn remember(&self, key: &str, intent_id: &str) -> sqlx::Result<Row> {
        let sql = rows!(
            "update payment.intents set updated_at = now(), intent_id = case when outcome is null
                    then coalesce(intent_id, $2) else intent_id end
             where key = $1 returning"
        );
        sqlx::query_as(sql).bind(key).bind(intent_id).fetch_one(&self.pool).await
    }

    /// Calls a charge off, unless it was begun at Stripe: the row that is returned tells.
    pub async fn call_off(&self, key: &str) -> sqlx::Result<Row> {
        let sql = rows!(
            "insert into payment.intents (key, outcome) values ($1, 'voided')
             on conflict (key) do update set updated_at = now(), outcome = case
                    when intents.intent_id is null then coalesce(intents.outcome, 'voided')
                    else intents.outcome end
             returning"
        );
        sqlx::query_as(sql).bind(key).fetch_one(&self.pool).await
    }

    /// Remembers what Stripe has said for good. It never says anything else later.
    pub async fn ended(&self, key: &str, outcome: Outcome<'_>) -> sqlx::Result<()> {
        let (outcome, code) = match outcome {
            Outcome::Succeeded => ("succeeded", None),
            Outcome::Declined(code) => ("declined", Some(code)),
            Outcome::Voided => ("voided", None),
        };
        sqlx::query(
            "update payment.intents set outcome = $2, decline_code = $3, updated_at = now()
             where key = $1 and outcome is null",
        )
        .bind(key)
        .bind(outcome)
        .bind(code)
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// The charge of an intent.
    pub async fn of_intent(&self, intent_id: &str) -> sqlx::Result<Option<Row>> {
        let sql = rows!("select", "from payment.intents where intent_id = $1");
        sqlx::query_as(sql).bind(intent_id).fetch_optional(&self.pool).await
    }

    /// Lets this caller alone give a charge back, for so long; tells whether it may.
    pub async fn claim_refund(&self, intent_id: &str, time: Duration) -> sqlx::Result<bool> {
        let claimed = sqlx::query(
            "update payment.intents set refund_claimed = now(), updated_at = now()
             where intent_id = $1 and outcome = 'succeeded' and refund_id is null
               and (refund_claimed is null or refund_claimed < now() - make_interval(secs => $2))",
        )
        .bind(intent_id)
        .bind(time.as_secs_f64())
        .execute(&self.pool)
        .await?;
        Ok(claimed.rows_affected() == 1)
    }

    pub async fn refunded(&self, intent_id: &str, refund_id: &str) -> sqlx::Result<()> {
        sqlx::query(
            "update payment.intents set refund_id = $2, updated_at = now()
             where intent_id = $1 and refund_id is null",
        )
        .bind(intent_id)
        .bind(refund_id)
        .execute(&self.pool)
        .await
        .map(drop)
    }
}
