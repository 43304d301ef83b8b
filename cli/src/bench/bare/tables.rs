//! The rows of the bare loop: tables like Millrace's, with their indexes and checks, and one
//! statement for each batch.

use std::collections::BTreeMap;

use anyhow::Result;
use millrace_shared::command::PaymentMethod;
use millrace_shared::message::{Event, now};
use sqlx::PgPool;
use uuid::Uuid;

use super::{Bones, Model};
use crate::bench::shop::Shop;
use crate::bench::system::System;

pub(super) struct Tables {
    pool: PgPool,
}

const MAKE: &str = "
drop schema if exists bench_bare cascade;
create schema bench_bare;
create table bench_bare.products (like ledger.products including all);
create table bench_bare.customers (like ledger.customers including all);
create table bench_bare.decisions (like ledger.decisions including all, event text not null);
create table bench_bare.orders (like ledger.orders including all);
create table bench_bare.reservations (like ledger.reservations including all);
create table bench_bare.charges (like sandbox.charges including all);
create table bench_bare.events (like journal.events including all);
create table bench_bare.current (like journal.orders including all);
create table bench_bare.lines (like journal.order_lines including all);
insert into bench_bare.products select * from ledger.products;";

impl Tables {
    pub async fn new(system: &System, customers: &str) -> Result<Self> {
        let pool = system.config.postgres.pool("millrace-bench-bare")?;
        sqlx::raw_sql(MAKE).execute(&pool).await?;
        sqlx::query(
            "insert into bench_bare.customers
             select * from ledger.customers where starts_with(customer_id, $1)",
        )
        .bind(customers)
        .execute(&pool)
        .await?;
        Ok(Self { pool })
    }

    pub async fn remove(&self) -> Result<()> {
        sqlx::raw_sql("drop schema if exists bench_bare cascade").execute(&self.pool).await?;
        Ok(())
    }

    /// Stock and credit, the decisions with their events, and what the orders hold.
    pub async fn ledger(&self, shop: &Shop, model: &Model, orders: &[Bones]) -> Result<()> {
        let (mut pieces, mut credit) = (BTreeMap::new(), BTreeMap::new());
        let mut owners = Vec::new();
        let (mut of, mut product, mut quantity) = (Vec::new(), Vec::new(), Vec::new());
        for bones in orders {
            let order = shop.order(bones.number)?.order;
            for line in order.lines {
                let id = line.product_id.to_string();
                *pieces.entry(id.clone()).or_insert(0) += i64::from(line.quantity);
                of.push(bones.id);
                product.push(id);
                quantity.push(i64::from(line.quantity));
            }
            let owner = order.customer_id.to_string();
            if matches!(order.payment, PaymentMethod::Account {}) {
                *credit.entry(owner.clone()).or_insert(0_i64) += 1_000;
            }
            owners.push(owner);
        }
        let validated = model.validated.encode()?;
        let event = |order| String::from_utf8(model.with_id(&validated, order).into());
        let events = orders.iter().map(event).collect::<Result<Vec<_>, _>>()?;
        let random = || orders.iter().map(|_| Uuid::from_u128(rand::random())).collect::<Vec<_>>();
        // All products before all customers, each in the order of their ids: as the ledger locks.
        sqlx::query(
            "with products_locked as materialized (
                 select product_id from bench_bare.products
                 where product_id = any($1) order by product_id for update
             ), customers_locked as materialized (
                 select customer_id from bench_bare.customers
                 where customer_id = any($3) and (select count(*) from products_locked) >= 0
                 order by customer_id for update
             ), stock as (
                 update bench_bare.products
                 set available = available - asked.quantity, reserved = reserved + asked.quantity,
                     touched = true
                 from unnest($1::text[], $2::bigint[]) as asked (product_id, quantity)
                 join products_locked using (product_id)
                 where products.product_id = asked.product_id
             ), credit as (
                 update bench_bare.customers
                 set credit_used = credit_used + asked.amount, touched = true
                 from unnest($3::text[], $4::bigint[]) as asked (customer_id, amount)
                 join customers_locked using (customer_id)
                 where customers.customer_id = asked.customer_id
             ), decided as (
                 insert into bench_bare.decisions (command_id, key_id, fingerprint, subject,
                        subject_id, decided_at, event)
                 select command_id, key_id, command_id, 'order', order_id, $13, event
                 from unnest($5::uuid[], $6::uuid[], $7::text[], $8::text[])
                      as new (command_id, key_id, order_id, event)
             ), held as (
                 insert into bench_bare.reservations (order_id, product_id, quantity)
                 select * from unnest($9::uuid[], $10::text[], $11::bigint[])
             )
             insert into bench_bare.orders (order_id, customer_id, stock, credit, credit_held)
             select order_id::uuid, customer_id, 'held', 0, false
             from unnest($7::text[], $12::text[]) as new (order_id, customer_id)",
        )
        .bind(pieces.keys().cloned().collect::<Vec<_>>())
        .bind(pieces.values().copied().collect::<Vec<_>>())
        .bind(credit.keys().cloned().collect::<Vec<_>>())
        .bind(credit.values().copied().collect::<Vec<_>>())
        .bind(random())
        .bind(random())
        .bind(orders.iter().map(|order| order.text.as_str()).collect::<Vec<_>>())
        .bind(events)
        .bind(of)
        .bind(product)
        .bind(quantity)
        .bind(owners)
        .bind(now())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The gateway's book: every second order is paid by card.
    pub async fn charges(&self, orders: &[Bones]) -> Result<()> {
        let by_card = orders.iter().step_by(2);
        sqlx::query(
            "insert into bench_bare.charges
                    (idempotency_key, charge_id, outcome, amount, currency)
             select 'charge-' || id, 'ch_' || id, 'succeeded', 1000, 'USD'
             from unnest($1::text[]) as new (id)",
        )
        .bind(by_card.map(|order| order.text.as_str()).collect::<Vec<_>>())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// An event of each order, the order after it, and with the first event its lines.
    pub async fn journal(&self, model: &Model, event: &Event, orders: &[Bones]) -> Result<()> {
        let text = |json: &str| -> Result<Vec<String>> {
            let text = |order| String::from_utf8(model.with_id(json.as_bytes(), order).into());
            Ok(orders.iter().map(text).collect::<Result<_, _>>()?)
        };
        let order = &model.order;
        let lines = if event.version == 1 { order.lines.as_slice() } else { &[] };
        let column = |get: fn(&millrace_shared::order::OrderLine) -> String| {
            lines.iter().map(get).collect::<Vec<_>>()
        };
        sqlx::query(
            "with written as (
                 insert into bench_bare.events (subject, subject_id, version, event_id, type,
                        schema, occurred_at, causation, correlation, sequence, data, state)
                 select 'order', id, $3, event_id, $4, $5, $6, $7, $7, 1, data::jsonb, state::jsonb
                 from unnest($1::text[], $2::uuid[], $8::text[], $9::text[])
                      as new (id, event_id, data, state)
                 on conflict do nothing
             ), lines as (
                 insert into bench_bare.lines (order_id, line, product_id, name, brand, quantity,
                        unit_price, line_total, currency)
                 select id::uuid, line, product_id, name, 'brand', 1, 1000, 1000, 'USD'
                 from unnest($1::text[]) as new (id)
                 cross join unnest($10::text[], $11::text[]) with ordinality
                       as bought (product_id, name, line)
                 on conflict do nothing
             )
             insert into bench_bare.current as held (order_id, customer_id, status, version, total,
                    currency, payment_method, payment_status, command_id, placed_at, updated_at)
             select id::uuid, $12, $4, $3, 1000, 'USD', 'card', 'captured', event_id, $6, $6
             from unnest($1::text[], $2::uuid[]) as new (id, event_id)
             on conflict (order_id) do update set
                    status = excluded.status, version = excluded.version,
                    payment_status = excluded.payment_status, updated_at = excluded.updated_at
             where held.version < excluded.version",
        )
        .bind(orders.iter().map(|order| order.text.as_str()).collect::<Vec<_>>())
        .bind(orders.iter().map(|_| Uuid::from_u128(rand::random())).collect::<Vec<_>>())
        .bind(i64::try_from(event.version)?)
        .bind(&event.kind)
        .bind(i32::try_from(event.schema)?)
        .bind(event.occurred_at)
        .bind(event.causation)
        .bind(text(event.data.get())?)
        .bind(text(event.state.get())?)
        .bind(column(|line| line.product_id.to_string()))
        .bind(column(|line| line.name.clone().unwrap_or_default()))
        .bind(order.customer_id.as_str())
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
