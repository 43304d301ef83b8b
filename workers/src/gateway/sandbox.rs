//! The sandbox gateway: in this process, with a durable book in PostgreSQL, as a real gateway has
//! one. The token tells what happens:
//!
//! | token | outcome |
//! |---|---|
//! | `tok_ok` | charged |
//! | `tok_slow` | charged after two seconds |
//! | `tok_timeout` | the first call is charged, but its answer is lost |
//! | `tok_lost` | the call never arrives, and has no answer |
//! | `tok_flaky` | the first two calls fail before the charge |
//! | `tok_declined`, `tok_insufficient_funds` | declined |
//! | any other | declined, `unknown_token` |

use std::collections::HashMap;
use std::time::Duration;

use millrace_shared::ids;
use millrace_shared::money::Money;
use sqlx::PgPool;
use tokio::sync::{mpsc, oneshot};

use super::{Charge, ChargeError, Gateway, GatewayError, Refund};

/// Charges that are booked in one transaction at the most.
const BATCH: usize = 256;

/// The sandbox gateway. Concurrent charges are booked together.
#[derive(Debug)]
pub struct Sandbox {
    pool: PgPool,
    queue: mpsc::Sender<Call>,
}

struct Call {
    key: String,
    amount: Money,
    /// The outcome, if this call is the one that books.
    outcome: &'static str,
    decline_code: Option<&'static str>,
    reply: oneshot::Sender<Result<Booked, String>>,
}

/// A row of the book.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
struct Booked {
    idempotency_key: String,
    charge_id: String,
    outcome: String,
    decline_code: Option<String>,
    calls: i32,
}

impl Booked {
    fn result(self) -> Result<Charge, ChargeError> {
        match self.outcome.as_str() {
            "succeeded" => Ok(Charge { charge_id: self.charge_id }),
            "declined" => Err(ChargeError::Declined(self.decline_code.unwrap_or_default())),
            "voided" => Err(ChargeError::Voided),
            _ => Err(ChargeError::Unavailable("try again".to_owned())),
        }
    }
}

fn charge_id(key: &str) -> String {
    format!("ch_{}", ids::key_id("sandbox charge", key).simple())
}

impl Sandbox {
    /// A sandbox with its book in `pool`.
    pub fn new(pool: PgPool) -> Self {
        let (queue, calls) = mpsc::channel(BATCH * 4);
        tokio::spawn(keep_book(pool.clone(), calls));
        Self { pool, queue }
    }

    async fn book(
        &self,
        key: &str,
        amount: Money,
        outcome: &'static str,
        decline_code: Option<&'static str>,
    ) -> Result<Booked, ChargeError> {
        let (reply, answer) = oneshot::channel();
        let call = Call { key: key.to_owned(), amount, outcome, decline_code, reply };
        let away = |error: String| ChargeError::Unavailable(error);
        self.queue.send(call).await.map_err(|_| away("the program is stopping".to_owned()))?;
        answer.await.map_err(|_| away("the program is stopping".to_owned()))?.map_err(away)
    }
}

impl Gateway for Sandbox {
    async fn charge(&self, key: &str, amount: Money, token: &str) -> Result<Charge, ChargeError> {
        if token == "tok_lost" {
            return Err(ChargeError::Unknown("the request was lost".to_owned()));
        }
        let (outcome, decline_code) = match token {
            "tok_ok" | "tok_slow" | "tok_timeout" => ("succeeded", None),
            "tok_flaky" => ("pending", None),
            "tok_declined" => ("declined", Some("declined")),
            "tok_insufficient_funds" => ("declined", Some("insufficient_funds")),
            _ => ("declined", Some("unknown_token")),
        };
        if token == "tok_slow" {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let booked = self.book(key, amount, outcome, decline_code).await?;
        if token == "tok_timeout" && booked.calls == 1 {
            return Err(ChargeError::Unknown("the connection was lost".to_owned()));
        }
        booked.result()
    }

    async fn find(&self, key: &str) -> Result<Option<Result<Charge, ChargeError>>, GatewayError> {
        let booked: Option<Booked> = sqlx::query_as(
            "select idempotency_key, charge_id, outcome, decline_code, calls
             from sandbox.charges where idempotency_key = $1 and outcome <> 'pending'",
        )
        .bind(key)
        .fetch_optional(&self.pool)
        .await?;
        Ok(booked.map(Booked::result))
    }

    async fn void(&self, key: &str) -> Result<Option<Charge>, GatewayError> {
        let booked: Booked = sqlx::query_as(
            "insert into sandbox.charges (idempotency_key, charge_id, outcome, amount, currency)
             values ($1, $2, 'voided', 0, 'XXX')
             on conflict (idempotency_key) do update set
                    outcome = case charges.outcome when 'pending' then 'voided'
                                                   else charges.outcome end
             returning idempotency_key, charge_id, outcome, decline_code, calls",
        )
        .bind(key)
        .bind(charge_id(key))
        .fetch_one(&self.pool)
        .await?;
        Ok(booked.result().ok())
    }

    async fn refund(
        &self,
        key: &str,
        charge_id: &str,
        amount: Money,
    ) -> Result<Refund, GatewayError> {
        let refund_id = format!("re_{}", ids::key_id("sandbox refund", key).simple());
        let refund_id: String = sqlx::query_scalar(
            "insert into sandbox.refunds (idempotency_key, refund_id, charge_id, amount, currency)
             values ($1, $2, $3, $4, $5)
             on conflict (idempotency_key) do update set idempotency_key = excluded.idempotency_key
             returning refund_id",
        )
        .bind(key)
        .bind(refund_id)
        .bind(charge_id)
        .bind(amount.amount)
        .bind(amount.currency.code())
        .fetch_one(&self.pool)
        .await
        .map_err(|error| match error.as_database_error() {
            Some(wrong) if wrong.is_foreign_key_violation() => {
                GatewayError::Refused(format!("{charge_id} is no charge of the sandbox's"))
            }
            _ => error.into(),
        })?;
        Ok(Refund { refund_id })
    }
}

/// Books what has gathered, in one statement at a time.
async fn keep_book(pool: PgPool, mut calls: mpsc::Receiver<Call>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        if batch.is_empty() && calls.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        // A key that stands twice in a batch waits for the next.
        let mut now: HashMap<String, Call> = HashMap::new();
        let mut later = Vec::new();
        for call in batch.drain(..) {
            if now.contains_key(&call.key) {
                later.push(call);
            } else {
                now.insert(call.key.clone(), call);
            }
        }
        batch = later;
        match book(&pool, &now).await {
            Ok(rows) => {
                for row in rows {
                    if let Some(call) = now.remove(&row.idempotency_key) {
                        call.reply.send(Ok(row)).ok();
                    }
                }
            }
            Err(error) => {
                for call in now.into_values() {
                    call.reply.send(Err(error.to_string())).ok();
                }
            }
        }
    }
}

/// The first call of a key books it; later calls are counted and get what is booked. A pending row
/// (`tok_flaky`) succeeds at its third call.
async fn book(pool: &PgPool, calls: &HashMap<String, Call>) -> Result<Vec<Booked>, sqlx::Error> {
    let mut calls: Vec<&Call> = calls.values().collect();
    calls.sort_by(|a, b| a.key.cmp(&b.key));
    sqlx::query_as(
        "insert into sandbox.charges
                (idempotency_key, charge_id, outcome, decline_code, amount, currency)
         select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[],
                              $6::text[])
         on conflict (idempotency_key) do update set
                calls = charges.calls + 1,
                outcome = case when charges.outcome = 'pending' and charges.calls >= 2
                               then 'succeeded' else charges.outcome end
         returning idempotency_key, charge_id, outcome, decline_code, calls",
    )
    .bind(column(&calls, |call| call.key.as_str()))
    .bind(column(&calls, |call| charge_id(&call.key)))
    .bind(column(&calls, |call| call.outcome))
    .bind(column(&calls, |call| call.decline_code))
    .bind(column(&calls, |call| call.amount.amount))
    .bind(column(&calls, |call| call.amount.currency.code()))
    .fetch_all(pool)
    .await
}

fn column<'a, T>(calls: &[&'a Call], get: impl Fn(&'a Call) -> T) -> Vec<T> {
    calls.iter().map(|call| get(call)).collect()
}
