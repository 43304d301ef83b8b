//! Persistence: writes every event into the journal, and the current state beside it. A batch is one
//! transaction of a few UNNEST statements. Events may come twice and in any order.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::Result;
use millrace_shared::consumer::{Delivery, Raw, Verdict, Worker, decode_event};
use millrace_shared::crash;
use millrace_shared::customer::Customer;
use millrace_shared::message::{Event, Subject};
use millrace_shared::money::Money;
use millrace_shared::order::Order;
use millrace_shared::product::Product;
use millrace_shared::topology::Topology;
use millrace_shared::trace::step;
use sqlx::types::chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

/// The worker that writes the journal.
#[derive(Debug)]
pub struct Persistence {
    pool: PgPool,
}

impl Persistence {
    /// A persistence into the journal in `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Writes the batch; returns the ids of events that contradict the journal.
    pub async fn write(&self, batch: &[Delivery<Event>]) -> Result<HashSet<Uuid>> {
        // In the order of their keys, so that replicas wait for each other and never deadlock.
        let mut sorted: Vec<&Delivery<Event>> = batch.iter().collect();
        sorted.sort_by_key(|d| (d.message.subject, &d.message.subject_id, d.message.version));
        let mut tx = self.pool.begin().await?;
        let forks = step("write events", write_events(&mut tx, &sorted)).await?;
        let newest = newest(sorted.iter().map(|d| &d.message).filter(|e| !forks.contains(&e.id.0)));
        let current = async {
            write_orders(&mut tx, &states(&newest, Subject::Order)?).await?;
            write_customers(&mut tx, &states(&newest, Subject::Customer)?).await?;
            write_products(&mut tx, &states(&newest, Subject::Product)?).await
        };
        step("write current state", current).await?;
        crash::point("persistence.before-commit");
        step("commit", tx.commit()).await?;
        crash::point("persistence.committed");
        Ok(forks)
    }
}

/// The last event of each subject in a batch: its state is all that the current tables need.
fn newest<'a>(sorted: impl Iterator<Item = &'a Event>) -> BTreeMap<(Subject, &'a str), &'a Event> {
    sorted.map(|event| ((event.subject, event.subject_id.as_str()), event)).collect()
}

fn states<'a, T: for<'de> serde::Deserialize<'de>>(
    newest: &BTreeMap<(Subject, &'a str), &'a Event>,
    subject: Subject,
) -> Result<Vec<(DateTime<Utc>, T)>> {
    newest
        .values()
        .filter(|event| event.subject == subject)
        .map(|event| Ok((event.occurred_at, event.state()?)))
        .collect()
}

fn column<'a, T, C>(rows: &'a [T], get: impl Fn(&'a T) -> C) -> Vec<C> {
    rows.iter().map(get).collect()
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

async fn write_events(tx: &mut PgConnection, rows: &[&Delivery<Event>]) -> Result<HashSet<Uuid>> {
    let written = sqlx::query(
        "insert into journal.events (subject, subject_id, version, event_id, type, schema,
                occurred_at, causation, correlation, sequence, data, state)
         select subject, subject_id, version, event_id, type, schema, occurred_at, causation,
                correlation, sequence, data::jsonb, state::jsonb
         from unnest($1::text[], $2::text[], $3::bigint[], $4::uuid[], $5::text[], $6::int[],
                     $7::timestamptz[], $8::uuid[], $9::uuid[], $10::bigint[], $11::text[],
                     $12::text[])
              as new (subject, subject_id, version, event_id, type, schema, occurred_at, causation,
                      correlation, sequence, data, state)
         on conflict do nothing",
    )
    .bind(column(rows, |d| d.message.subject.as_str()))
    .bind(column(rows, |d| d.message.subject_id.as_str()))
    .bind(column(rows, |d| signed(d.message.version)))
    .bind(column(rows, |d| d.message.id.0))
    .bind(column(rows, |d| d.message.kind.as_str()))
    .bind(column(rows, |d| i32::try_from(d.message.schema).unwrap_or(i32::MAX)))
    .bind(column(rows, |d| d.message.occurred_at))
    .bind(column(rows, |d| d.message.causation))
    .bind(column(rows, |d| d.message.correlation))
    .bind(column(rows, |d| signed(d.sequence)))
    .bind(column(rows, |d| d.message.data.get()))
    .bind(column(rows, |d| d.message.state.get()))
    .execute(&mut *tx)
    .await?;
    if written.rows_affected() == rows.len() as u64 {
        return Ok(HashSet::new());
    }
    // Some were there. They must be the very same events.
    let forks: Vec<Uuid> = sqlx::query_scalar(
        "select new.event_id
         from unnest($1::text[], $2::text[], $3::bigint[], $4::uuid[])
              as new (subject, subject_id, version, event_id)
         join journal.events old using (subject, subject_id, version)
         where old.event_id <> new.event_id",
    )
    .bind(column(rows, |d| d.message.subject.as_str()))
    .bind(column(rows, |d| d.message.subject_id.as_str()))
    .bind(column(rows, |d| signed(d.message.version)))
    .bind(column(rows, |d| d.message.id.0))
    .fetch_all(tx)
    .await?;
    Ok(forks.into_iter().collect())
}

async fn write_orders(tx: &mut PgConnection, rows: &[(DateTime<Utc>, Order)]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let amount = |money: Option<Money>| money.map(|money| money.amount);
    let code = |money: Option<Money>| money.map(|money| money.currency.code());
    let lines: Vec<_> = rows
        .iter()
        .flat_map(|(_, order)| {
            order.lines.iter().zip(1_i32..).map(|(line, number)| (order.order_id.0, number, line))
        })
        .collect();
    // The lines never change, so whichever event comes first brings them.
    sqlx::query(
        "with written as (
            insert into journal.orders (order_id, customer_id, status, version, total, currency,
                   payment_method, payment_status, charge_id, refund_id, carrier, tracking_number,
                   reason, detail, command_id, placed_at, updated_at)
            select * from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::bigint[],
                   $6::text[], $7::text[], $8::text[], $9::text[], $10::text[], $11::text[],
                   $12::text[], $13::text[], $14::text[], $15::uuid[], $16::timestamptz[],
                   $17::timestamptz[])
            on conflict (order_id) do update set
                   status = excluded.status, version = excluded.version,
                   payment_status = excluded.payment_status, charge_id = excluded.charge_id,
                   refund_id = excluded.refund_id, carrier = excluded.carrier,
                   tracking_number = excluded.tracking_number, reason = excluded.reason,
                   detail = excluded.detail, updated_at = excluded.updated_at
            where orders.version < excluded.version
            returning order_id, xmax = 0 as inserted
         )
         insert into journal.order_lines (order_id, line, product_id, name, brand, quantity,
                unit_price, line_total, currency)
         select new.* from unnest($18::uuid[], $19::int[], $20::text[], $21::text[], $22::text[],
                $23::bigint[], $24::bigint[], $25::bigint[], $26::text[])
                as new (order_id, line, product_id, name, brand, quantity, unit_price, line_total,
                        currency)
         join written using (order_id) where written.inserted
         on conflict do nothing",
    )
    .bind(column(rows, |(_, o)| o.order_id.0))
    .bind(column(rows, |(_, o)| o.customer_id.as_str()))
    .bind(column(rows, |(_, o)| o.status.as_str()))
    .bind(column(rows, |(_, o)| signed(o.version)))
    .bind(column(rows, |(_, o)| amount(o.total)))
    .bind(column(rows, |(_, o)| code(o.total)))
    .bind(column(rows, |(_, o)| o.payment.method.as_str()))
    .bind(column(rows, |(_, o)| o.payment.status.as_str()))
    .bind(column(rows, |(_, o)| o.payment.charge_id.as_deref()))
    .bind(column(rows, |(_, o)| o.payment.refund_id.as_deref()))
    .bind(column(rows, |(_, o)| o.shipment.as_ref().map(|s| s.carrier.as_str())))
    .bind(column(rows, |(_, o)| o.shipment.as_ref().map(|s| s.tracking_number.as_str())))
    .bind(column(rows, |(_, o)| o.reason.map(millrace_shared::reason::Reason::as_str)))
    .bind(column(rows, |(_, o)| o.detail.as_deref()))
    .bind(column(rows, |(_, o)| o.command_id.0))
    .bind(column(rows, |(_, o)| o.placed_at))
    .bind(column(rows, |(_, o)| o.updated_at))
    .bind(column(&lines, |(order, _, _)| *order))
    .bind(column(&lines, |(_, number, _)| *number))
    .bind(column(&lines, |(_, _, line)| line.product_id.as_str()))
    .bind(column(&lines, |(_, _, line)| line.name.as_deref()))
    .bind(column(&lines, |(_, _, line)| line.brand.as_deref()))
    .bind(column(&lines, |(_, _, line)| i64::from(line.quantity)))
    .bind(column(&lines, |(_, _, line)| line.unit_price.map(|price| price.amount)))
    .bind(column(&lines, |(_, _, line)| line.line_total.map(|total| total.amount)))
    .bind(column(&lines, |(_, _, line)| line.unit_price.map(|price| price.currency.code())))
    .execute(tx)
    .await?;
    Ok(())
}

async fn write_customers(tx: &mut PgConnection, rows: &[(DateTime<Utc>, Customer)]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into journal.customers (customer_id, name, credit_limit, currency, credit_used,
                version, updated_at)
         select * from unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::bigint[],
                $6::bigint[], $7::timestamptz[])
         on conflict (customer_id) do update set
                name = excluded.name, credit_limit = excluded.credit_limit,
                currency = excluded.currency, credit_used = excluded.credit_used,
                version = excluded.version, updated_at = excluded.updated_at
         where customers.version < excluded.version",
    )
    .bind(column(rows, |(_, c)| c.customer_id.as_str()))
    .bind(column(rows, |(_, c)| c.name.as_str()))
    .bind(column(rows, |(_, c)| c.credit_limit.map(|limit| limit.amount)))
    .bind(column(rows, |(_, c)| c.credit_limit.map(|limit| limit.currency.code())))
    .bind(column(rows, |(_, c)| c.credit_used))
    .bind(column(rows, |(_, c)| signed(c.version)))
    .bind(column(rows, |(at, _)| *at))
    .execute(tx)
    .await?;
    Ok(())
}

async fn write_products(tx: &mut PgConnection, rows: &[(DateTime<Utc>, Product)]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into journal.products (product_id, name, brand, category, price, currency, active,
                available, reserved, sold, version, updated_at)
         select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[],
                $6::text[], $7::bool[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[],
                $12::timestamptz[])
         on conflict (product_id) do update set
                name = excluded.name, brand = excluded.brand, category = excluded.category,
                price = excluded.price, currency = excluded.currency, active = excluded.active,
                available = excluded.available, reserved = excluded.reserved,
                sold = excluded.sold, version = excluded.version, updated_at = excluded.updated_at
         where products.version < excluded.version",
    )
    .bind(column(rows, |(_, p)| p.product_id.as_str()))
    .bind(column(rows, |(_, p)| p.name.as_str()))
    .bind(column(rows, |(_, p)| p.brand.as_str()))
    .bind(column(rows, |(_, p)| p.category.as_str()))
    .bind(column(rows, |(_, p)| p.price.amount))
    .bind(column(rows, |(_, p)| p.price.currency.code()))
    .bind(column(rows, |(_, p)| p.active))
    .bind(column(rows, |(_, p)| p.stock.available))
    .bind(column(rows, |(_, p)| p.stock.reserved))
    .bind(column(rows, |(_, p)| p.stock.sold))
    .bind(column(rows, |(_, p)| signed(p.version)))
    .bind(column(rows, |(at, _)| *at))
    .execute(tx)
    .await?;
    Ok(())
}

impl Worker for Persistence {
    type Message = Event;
    const NAME: &'static str = "persistence";
    const BATCH: usize = 2_000;
    const BATCHES: usize = 2;
    // Nobody waits for the journal, a batch costs a commit, and an order that has gone on meanwhile is
    // written once instead of twice.
    const REST: Duration = Duration::from_millis(250);

    fn stream(&self, topology: &Topology) -> String {
        topology.events_stream()
    }

    fn wants(&self, topology: &Topology, subject: &str) -> bool {
        topology.is_event(subject)
    }

    fn decode(&self, raw: &Raw<'_>) -> Result<Event, String> {
        decode_event(raw)
    }

    async fn handle(&self, batch: &[Delivery<Event>]) -> Vec<Verdict> {
        let forks = match self.write(batch).await {
            Ok(forks) => forks,
            Err(error) => return vec![Verdict::of(&error); batch.len()],
        };
        let verdict = |delivery: &Delivery<Event>| {
            let event = &delivery.message;
            if forks.contains(&event.id.0) {
                Verdict::Park(format!(
                    "the journal has another event as version {} of {} {}",
                    event.version, event.subject, event.subject_id
                ))
            } else {
                Verdict::Done
            }
        };
        batch.iter().map(verdict).collect()
    }
}
