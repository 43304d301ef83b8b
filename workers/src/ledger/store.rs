//! Stores what was decided, and what it changed.

use anyhow::Result;
use millrace_shared::customer::Customer;
use millrace_shared::ids::{CommandId, OrderId, ProductId};
use millrace_shared::message::{Event, now};
use millrace_shared::product::Product;
use sqlx::PgConnection;
use uuid::Uuid;

use super::Raced;
use crate::book::{Book, Decision, Past, Placed};
use crate::reservations::Settlement;

/// Stores the products and customers that have changed.
pub async fn book(tx: &mut PgConnection, book: &Book) -> Result<()> {
    let products: Vec<&Product> =
        book.changed_products.iter().filter_map(|id| book.products.get(id)).collect();
    let customers: Vec<&Customer> =
        book.changed_customers.iter().filter_map(|id| book.customers.get(id)).collect();
    if products.is_empty() && customers.is_empty() {
        return Ok(());
    }
    let text = |get: fn(&Product) -> &str| products.iter().map(|p| get(p)).collect::<Vec<_>>();
    let number = |get: fn(&Product) -> i64| products.iter().map(|p| get(p)).collect::<Vec<_>>();
    let touched = |p: &&Product| book.touched_products.contains(&p.product_id);
    let credit_touched = |c: &&Customer| book.touched_customers.contains(&c.customer_id);
    sqlx::query(
        "with changed_products as (
            insert into ledger.products (product_id, name, brand, category, price, currency, active,
                   received, available, reserved, sold, version, touched)
            select id, name, brand, category, price, currency, active,
                   available + reserved + sold, available, reserved, sold, version, touched
            from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[],
                        $7::bool[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[],
                        $12::bool[])
                 as new (id, name, brand, category, price, currency, active,
                         available, reserved, sold, version, touched)
            on conflict (product_id) do update set
                   name = excluded.name, brand = excluded.brand, category = excluded.category,
                   price = excluded.price, currency = excluded.currency, active = excluded.active,
                   received = excluded.received, available = excluded.available,
                   reserved = excluded.reserved, sold = excluded.sold, version = excluded.version,
                   touched = excluded.touched
            where products.version <= excluded.version
         )
         insert into ledger.customers
                (customer_id, name, credit_limit, currency, credit_used, version, touched)
         select * from unnest($13::text[], $14::text[], $15::bigint[], $16::text[], $17::bigint[],
                              $18::bigint[], $19::bool[])
         on conflict (customer_id) do update set
                name = excluded.name, credit_limit = excluded.credit_limit,
                currency = excluded.currency, credit_used = excluded.credit_used,
                version = excluded.version, touched = excluded.touched",
    )
    .bind(text(|p| p.product_id.as_str()))
    .bind(text(|p| &p.name))
    .bind(text(|p| &p.brand))
    .bind(text(|p| &p.category))
    .bind(number(|p| p.price.amount))
    .bind(text(|p| p.price.currency.code()))
    .bind(products.iter().map(|p| p.active).collect::<Vec<_>>())
    .bind(number(|p| p.stock.available))
    .bind(number(|p| p.stock.reserved))
    .bind(number(|p| p.stock.sold))
    .bind(number(|p| signed(p.version)))
    .bind(products.iter().map(touched).collect::<Vec<_>>())
    .bind(customers.iter().map(|c| c.customer_id.as_str()).collect::<Vec<_>>())
    .bind(customers.iter().map(|c| c.name.as_str()).collect::<Vec<_>>())
    .bind(customers.iter().map(|c| c.credit_limit.map(|it| it.amount)).collect::<Vec<_>>())
    .bind(customers.iter().map(|c| c.credit_limit.map(|it| it.currency.code())).collect::<Vec<_>>())
    .bind(customers.iter().map(|c| c.credit_used).collect::<Vec<_>>())
    .bind(customers.iter().map(|c| signed(c.version)).collect::<Vec<_>>())
    .bind(customers.iter().map(credit_touched).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

/// Stores decisions, what the orders that they place hold, and their events, in one round trip.
pub async fn decisions(tx: &mut PgConnection, decisions: &[Decision]) -> Result<()> {
    if decisions.is_empty() {
        return Ok(());
    }
    let past: Vec<&Past> = decisions.iter().map(|decision| &decision.past).collect();
    let reason = |p: &&Past| p.refusal.as_ref().map(|r| r.reason.as_str().to_owned());
    let detail = |p: &&Past| p.refusal.as_ref().map(|r| r.detail.clone());
    let placed: Vec<&Placed> = decisions.iter().filter_map(|d| d.placed.as_ref()).collect();
    let stock = |p: &&Placed| if p.pieces.is_empty() { "none" } else { "held" }.to_owned();
    let pieces: Vec<(OrderId, &ProductId, u32)> = placed
        .iter()
        .flat_map(|p| p.pieces.iter().map(move |(product, count)| (p.order_id, product, *count)))
        .collect();
    let events: Vec<(Uuid, &Event)> = decisions
        .iter()
        .flat_map(|d| d.events.iter().map(|event| (d.past.command_id.0, event)))
        .collect();
    let texts: Vec<String> =
        events.iter().map(|(_, event)| serde_json::to_string(event)).collect::<Result<_, _>>()?;
    // A decision is replaced only by `decide again`, after the log refused its event.
    let (decided, ordered): (i64, i64) = sqlx::query_as(
        "with decided as (
            insert into ledger.decisions
                   (command_id, key_id, fingerprint, subject, subject_id, reason, detail, actor,
                    decided_at)
            select *, $9 from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[],
                                     $6::text[], $7::text[], $8::text[])
            on conflict do nothing returning 1
         ), ordered as (
            insert into ledger.orders (order_id, customer_id, stock, credit, credit_held, pay_by)
            select id, customer, stock, credit, credit > 0, pay_by
            from unnest($10::uuid[], $11::text[], $12::text[], $13::bigint[], $22::timestamptz[])
                 as new (id, customer, stock, credit, pay_by)
            on conflict do nothing returning 1
         ), held as (
            insert into ledger.reservations (order_id, product_id, quantity)
            select * from unnest($14::uuid[], $15::text[], $16::bigint[])
            on conflict do nothing
         ), waiting as (
            insert into ledger.outbox (command_id, subject, subject_id, version, event)
            select * from unnest($17::uuid[], $18::text[], $19::text[], $20::bigint[],
                                 $21::text[])
         )
         select (select count(*) from decided), (select count(*) from ordered)",
    )
    .bind(past.iter().map(|p| p.command_id.0).collect::<Vec<_>>())
    .bind(decisions.iter().map(|decision| decision.key_id).collect::<Vec<_>>())
    .bind(past.iter().map(|p| p.fingerprint).collect::<Vec<_>>())
    .bind(past.iter().map(|p| p.about.subject.to_string()).collect::<Vec<_>>())
    .bind(past.iter().map(|p| p.about.id.clone()).collect::<Vec<_>>())
    .bind(past.iter().map(reason).collect::<Vec<_>>())
    .bind(past.iter().map(detail).collect::<Vec<_>>())
    .bind(decisions.iter().map(|decision| decision.actor.as_deref()).collect::<Vec<_>>())
    .bind(now())
    .bind(placed.iter().map(|p| p.order_id.0).collect::<Vec<_>>())
    .bind(placed.iter().map(|p| p.customer_id.to_string()).collect::<Vec<_>>())
    .bind(placed.iter().map(stock).collect::<Vec<_>>())
    .bind(placed.iter().map(|p| p.credit).collect::<Vec<_>>())
    .bind(pieces.iter().map(|(order, _, _)| order.0).collect::<Vec<_>>())
    .bind(pieces.iter().map(|(_, product, _)| product.to_string()).collect::<Vec<_>>())
    .bind(pieces.iter().map(|(_, _, count)| i64::from(*count)).collect::<Vec<_>>())
    .bind(events.iter().map(|(command, _)| *command).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, event)| event.subject.to_string()).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, event)| event.subject_id.clone()).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, event)| signed(event.version)).collect::<Vec<_>>())
    .bind(texts)
    .bind(placed.iter().map(|p| p.pay_by).collect::<Vec<_>>())
    .fetch_one(tx)
    .await?;
    if (decided, ordered) == (count(&past), count(&placed)) { Ok(()) } else { Err(Raced.into()) }
}

fn count<T>(rows: &[T]) -> i64 {
    i64::try_from(rows.len()).unwrap_or(i64::MAX)
}

/// Puts events that no command's redelivery publishes into the outbox.
pub async fn events(tx: &mut PgConnection, events: &[Event]) -> Result<()> {
    let texts: Vec<String> = events.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    sqlx::query(
        "insert into ledger.outbox (subject, subject_id, version, event)
         select * from unnest($1::text[], $2::text[], $3::bigint[], $4::text[])",
    )
    .bind(events.iter().map(|event| event.subject.to_string()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| event.subject_id.clone()).collect::<Vec<_>>())
    .bind(events.iter().map(|event| signed(event.version)).collect::<Vec<_>>())
    .bind(texts)
    .execute(tx)
    .await?;
    Ok(())
}

/// Takes a decision back, whose event the log has refused, unless that event does not stand in the
/// outbox any more; returns what stands there then.
pub async fn withdraw(
    tx: &mut PgConnection,
    command: CommandId,
    refused: &Event,
) -> Result<Vec<Event>> {
    sqlx::query("select 1 from ledger.decisions where command_id = $1 for update")
        .bind(command.0)
        .fetch_optional(&mut *tx)
        .await?;
    let texts: Vec<String> =
        sqlx::query_scalar("select event from ledger.outbox where command_id = $1 order by id")
            .bind(command.0)
            .fetch_all(&mut *tx)
            .await?;
    let events: Vec<Event> =
        texts.iter().map(|text| Event::decode(text.as_bytes())).collect::<Result<_, _>>()?;
    if events.iter().all(|event| event.id != refused.id) {
        return Ok(events);
    }
    sqlx::query("delete from ledger.outbox where command_id = $1")
        .bind(command.0)
        .execute(&mut *tx)
        .await?;
    sqlx::query("delete from ledger.decisions where command_id = $1")
        .bind(command.0)
        .execute(tx)
        .await?;
    Ok(Vec::new())
}

/// Stores what orders hold after a settlement.
pub async fn settlement(tx: &mut PgConnection, settlement: &Settlement) -> Result<()> {
    let Settlement { released, sold, freed, .. } = settlement;
    let uuids = |ids: &[OrderId]| ids.iter().map(|id| id.0).collect::<Vec<_>>();
    sqlx::query(
        "update ledger.orders set
                stock = case when order_id = any($1) then 'released'
                             when order_id = any($2) then 'sold' else stock end,
                credit_held = credit_held and not order_id = any($3)
         where order_id = any($4)",
    )
    .bind(uuids(released))
    .bind(uuids(sold))
    .bind(uuids(freed))
    .bind(uuids(&[released.as_slice(), sold, freed].concat()))
    .execute(tx)
    .await?;
    Ok(())
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
