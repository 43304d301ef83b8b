//! Finding what a story is made of: in the log, the journal, the ledger, the gateway's book and among
//! the parked messages.

use std::collections::HashSet;

use async_nats::Client;
use chrono::{DateTime, Utc};
use sqlx::{PgPool, Row as _};
use uuid::Uuid;

use super::{Holds, Kind, Moment, Pieces, Story, cause_of, stays};
use crate::ids::OrderId;
use crate::log::{Log, ReadError};
use crate::message::Event;
use crate::order::Order;
use crate::parking::Reader;
use crate::past::{Past, PastError};

/// Parked messages of one order that are told at the most.
const PARKED: usize = 100;

/// Who is told a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Operators, who are told which of them did what, and why.
    Operators,
    /// Anybody.
    Public,
}

/// Finds stories.
#[derive(Debug, Clone)]
pub struct Finder {
    past: Past,
    parked: Log,
}

impl Finder {
    /// A finder that reads streams through `client` and, if it is given, PostgreSQL.
    pub fn new(client: &Client, past: Past) -> Self {
        let parked = Log::new(client.clone(), past.topology().parked_stream());
        Self { past, parked }
    }

    /// An order's story for an audience; nothing if it has no events.
    pub async fn story(&self, id: OrderId, audience: Audience) -> Result<Option<Story>, PastError> {
        let history = self.past.history(id).await?;
        let Some(last) = history.last() else { return Ok(None) };
        let order: Order = last.state().map_err(ReadError::from)?;
        let mut timeline: Vec<Moment> =
            history.iter().map(|event| happened(event, &history)).collect();
        timeline.push(
            Moment::new(order.placed_at, Kind::Command, "place", "stored in COMMANDS".to_owned())
                .with_id(order.command_id.0),
        );
        let mut missing = Vec::new();
        timeline.extend(self.parked(id).await?);
        let holds = match self.past.pool() {
            None => {
                missing.push("refused commands, the gateway's book and what the order holds: no PostgreSQL is configured".to_owned());
                None
            }
            Some(pool) => match from_database(pool, id, &history, audience).await {
                Ok((moments, holds)) => {
                    timeline.extend(moments);
                    holds
                }
                Err(error) => {
                    tracing::warn!(%error, "a story is told without PostgreSQL");
                    missing.push("refused commands, the gateway's book and what the order holds: PostgreSQL is away".to_owned());
                    None
                }
            },
        };
        timeline.sort_by_key(|moment| (moment.at, moment.kind, moment.version));
        Ok(Some(Story {
            order_id: id,
            status: order.status,
            version: order.version,
            customer_id: order.customer_id.to_string(),
            total: order.total,
            payment_method: order.payment.method.as_str(),
            timeline,
            steps: stays(&order),
            holds: holds.map(|holds| Holds {
                expires_at: holds.expires_at.filter(|_| order.status.awaits_payment()),
                ..holds
            }),
            missing,
        }))
    }

    async fn parked(&self, id: OrderId) -> Result<Vec<Moment>, PastError> {
        let places = format!("{}.order.{id}.*", self.past.topology().parked("*", "event"));
        let reader = Reader::new(self.parked.clone());
        let (mut moments, mut next) = (Vec::new(), 1);
        while moments.len() < PARKED
            && let Some(parked) = reader.next(&places, next).await?
        {
            next = parked.sequence + 1;
            let kind = parked.subject.rsplit('.').next().unwrap_or("");
            let detail = format!(
                "{} has parked {kind} after {} deliveries: {} (see `millrace parked show {}`)",
                parked.worker, parked.attempts, parked.reason, parked.sequence
            );
            moments.push(Moment::new(parked.last_seen, Kind::Parked, "parked", detail));
        }
        Ok(moments)
    }
}

fn happened(event: &Event, history: &[Event]) -> Moment {
    let detail = super::tell::event(event).unwrap_or_default();
    let mut moment = Moment::new(event.occurred_at, Kind::Event, &event.kind, detail);
    moment.version = Some(event.version);
    moment.id = Some(event.id.0);
    moment.cause = Some(cause_of(event, history));
    moment
}

async fn from_database(
    pool: &PgPool,
    id: OrderId,
    history: &[Event],
    audience: Audience,
) -> sqlx::Result<(Vec<Moment>, Option<Holds>)> {
    let (commands, charges, dealt, holds) = tokio::try_join!(
        commands(pool, id, history, audience),
        gateway(pool, id),
        operators(pool, id, audience),
        holds(pool, id),
    )?;
    Ok(([commands, charges, dealt].concat(), holds))
}

/// Every decision about the order: what was refused stands nowhere else.
async fn commands(
    pool: &PgPool,
    id: OrderId,
    history: &[Event],
    audience: Audience,
) -> sqlx::Result<Vec<Moment>> {
    let rows = sqlx::query(
        "select command_id, reason, detail, actor, decided_at from ledger.decisions
         where subject = 'order' and subject_id = $1",
    )
    .bind(id.to_string())
    .fetch_all(pool)
    .await?;
    let answered: HashSet<Uuid> = history.iter().map(|event| event.causation).collect();
    let mut moments = Vec::new();
    for row in rows {
        let command: Uuid = row.try_get("command_id")?;
        let reason: Option<String> = row.try_get("reason")?;
        let actor: Option<String> = row.try_get("actor")?;
        let actor = actor.filter(|_| audience == Audience::Operators);
        let by = actor.map(|actor| format!("by {actor}"));
        let (what, detail) = match reason {
            // The event tells it, and not who wanted it.
            _ if answered.contains(&command) => match by.clone() {
                Some(by) => ("given", by),
                None => continue,
            },
            Some(reason) => {
                let detail: Option<String> = row.try_get("detail")?;
                let by = by.map_or_else(String::new, |by| format!("; {by}"));
                ("refused", format!("{reason}: {}{by}", detail.unwrap_or_default()))
            }
            None => ("accepted", "repeats another command, or its event is on its way".to_owned()),
        };
        let at: DateTime<Utc> = row.try_get("decided_at")?;
        moments.push(Moment::new(at, Kind::Command, what, detail).with_id(command));
    }
    Ok(moments)
}

/// What the gateway has in its book: the sandbox, or what payment remembers of Stripe.
async fn gateway(pool: &PgPool, id: OrderId) -> sqlx::Result<Vec<Moment>> {
    let mut moments = Vec::new();
    let charge = sqlx::query(
        "select charge_id, outcome, decline_code, calls, created_at from sandbox.charges
         where idempotency_key = $1",
    )
    .bind(format!("charge-{id}"))
    .fetch_optional(pool)
    .await?;
    if let Some(row) = charge {
        let (outcome, calls): (String, i32) = (row.try_get("outcome")?, row.try_get("calls")?);
        let code: Option<String> = row.try_get("decline_code")?;
        let charge: String = row.try_get("charge_id")?;
        let answer = match outcome.as_str() {
            "succeeded" => format!("charged as {charge}"),
            "declined" => format!("declined: {}", code.unwrap_or_default()),
            "voided" => "called off before any charge".to_owned(),
            _ => "failed before the charge".to_owned(),
        };
        let times = if calls == 1 { "1 call".to_owned() } else { format!("{calls} calls") };
        let detail = format!("{answer}; {times} in the gateway's book");
        moments.push(Moment::new(row.try_get("created_at")?, Kind::Gateway, "charge", detail));
    }
    moments.extend(at_stripe(pool, id).await?);
    let refund =
        sqlx::query("select refund_id, created_at from sandbox.refunds where idempotency_key = $1")
            .bind(format!("refund-{id}"))
            .fetch_optional(pool)
            .await?;
    if let Some(row) = refund {
        let refund: String = row.try_get("refund_id")?;
        let detail = format!("given back as {refund}");
        moments.push(Moment::new(row.try_get("created_at")?, Kind::Gateway, "refund", detail));
    }
    Ok(moments)
}

/// What payment remembers of the order's payment at Stripe.
async fn at_stripe(pool: &PgPool, id: OrderId) -> sqlx::Result<Option<Moment>> {
    let row = sqlx::query(
        "select intent_id, outcome, decline_code, refund_id, calls, created_at
         from payment.intents where key = $1",
    )
    .bind(format!("charge-{id}"))
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let [intent, outcome, code, refund] = ["intent_id", "outcome", "decline_code", "refund_id"]
        .map(|name| row.try_get::<Option<String>, _>(name));
    let (intent, calls): (Option<String>, i32) = (intent?, row.try_get("calls")?);
    let answer = match outcome?.as_deref() {
        Some("succeeded") => "charged".to_owned(),
        Some("declined") => format!("declined: {}", code?.unwrap_or_default()),
        Some(_) => "called off before any charge".to_owned(),
        None => "begun, and nothing is known of it yet".to_owned(),
    };
    let at = intent.map_or_else(String::new, |intent| format!(" as {intent}"));
    let back = refund?.map_or_else(String::new, |refund| format!("; given back as {refund}"));
    let times = if calls == 1 { "1 call".to_owned() } else { format!("{calls} calls") };
    let detail = format!("{answer} at Stripe{at}; {times}{back}");
    Ok(Some(Moment::new(row.try_get("created_at")?, Kind::Gateway, "charge", detail)))
}

/// What operators did to parked messages of the order.
async fn operators(pool: &PgPool, id: OrderId, audience: Audience) -> sqlx::Result<Vec<Moment>> {
    let rows = sqlx::query(
        "select at, actor, action, why, worker, subject, reason, attempts from journal.audit
         where subject like $1",
    )
    .bind(format!("%.evt.order.{id}.%"))
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let [actor, worker, reason, subject] =
                ["actor", "worker", "reason", "subject"].map(|name| row.try_get::<String, _>(name));
            let (subject, attempts): (String, i64) = (subject?, row.try_get("attempts")?);
            let why: Option<String> = row.try_get("why")?;
            let kind = subject.rsplit('.').next().unwrap_or("");
            let why = why.map_or_else(String::new, |why| format!(", because: {why}"));
            let by = match audience {
                Audience::Operators => format!("by {}{why}; ", actor?),
                Audience::Public => String::new(),
            };
            let detail = format!(
                "{by}{} had parked {kind} after {attempts} deliveries: {}",
                worker?, reason?
            );
            let action: String = row.try_get("action")?;
            Ok(Moment::new(row.try_get("at")?, Kind::Parked, &action, detail))
        })
        .collect()
}

async fn holds(pool: &PgPool, id: OrderId) -> sqlx::Result<Option<Holds>> {
    let order = sqlx::query(
        "select stock, credit, credit_held, pay_by from ledger.orders where order_id = $1",
    )
    .bind(id.0)
    .fetch_optional(pool)
    .await?;
    let Some(order) = order else { return Ok(None) };
    let pieces: Vec<(String, i64)> = sqlx::query_as(
        "select product_id, quantity from ledger.reservations where order_id = $1
         order by product_id",
    )
    .bind(id.0)
    .fetch_all(pool)
    .await?;
    let held: bool = order.try_get("credit_held")?;
    Ok(Some(Holds {
        stock: order.try_get("stock")?,
        pieces: pieces
            .into_iter()
            .map(|(product_id, quantity)| Pieces { product_id, quantity })
            .collect(),
        credit: if held { order.try_get("credit")? } else { 0 },
        expires_at: order.try_get("pay_by")?,
    }))
}
