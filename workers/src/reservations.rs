//! Reservations: the part of validation that listens to the log. When an order ends unpaid, is
//! cancelled or refunded, its stock and credit are given back; when it is shipped, what was reserved
//! is sold. Each happens once: the order's row in the ledger tells what it still holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use millrace_shared::consumer::{Delivery, Raw, Verdict, Worker, decode_event};
use millrace_shared::crash;
use millrace_shared::ids::OrderId;
use millrace_shared::message::{Event, now};
use millrace_shared::order::Order;
use millrace_shared::topology::Topology;
use sqlx::{PgPool, Row as _};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::book::Book;
use crate::ledger;

/// The worker on the events that end a reservation.
#[derive(Debug)]
pub struct Reservations {
    pool: PgPool,
    relay: Arc<Notify>,
}

/// What an event does to what its order holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Effect {
    releases_stock: bool,
    sells_stock: bool,
    frees_credit: bool,
}

/// A refund of a shipped order may be seen before its shipment: the state tells.
fn effect(event: &Event) -> Result<Effect> {
    let order: Order = event.state()?;
    let ended = event.kind != "shipped";
    let left = order.shipment.is_some();
    Ok(Effect { sells_stock: left, releases_stock: !left, frees_credit: ended })
}

impl Reservations {
    /// Reservations in the ledger in `pool`; wakes the relay.
    pub fn new(pool: PgPool, relay: Arc<Notify>) -> Self {
        Self { pool, relay }
    }

    async fn settle(&self, events: &[&Event]) -> Result<()> {
        let mut effects: BTreeMap<Uuid, Vec<Effect>> = BTreeMap::new();
        for event in events {
            let order: OrderId = event.subject_id.parse()?;
            effects.entry(order.0).or_default().push(effect(event)?);
        }
        let ids: Vec<Uuid> = effects.keys().copied().collect();
        let mut tx = self.pool.begin().await?;
        let orders = sqlx::query(
            "select order_id, customer_id, stock, credit, credit_held
             from ledger.orders where order_id = any($1) order by order_id for update",
        )
        .bind(&ids)
        .fetch_all(&mut *tx)
        .await?;
        let (mut released, mut sold, mut freed) = (Vec::new(), Vec::new(), Vec::new());
        let mut credits: BTreeMap<String, i64> = BTreeMap::new();
        for row in &orders {
            let order_id: Uuid = row.try_get("order_id")?;
            let mut held = row.try_get::<String, _>("stock")? == "held";
            let mut credit_held: bool = row.try_get("credit_held")?;
            for effect in effects.remove(&order_id).unwrap_or_default() {
                if held && effect.sells_stock {
                    sold.push(order_id);
                    held = false;
                }
                if held && effect.releases_stock {
                    released.push(order_id);
                    held = false;
                }
                if credit_held && effect.frees_credit {
                    freed.push(order_id);
                    credit_held = false;
                    *credits.entry(row.try_get("customer_id")?).or_default() +=
                        row.try_get::<i64, _>("credit")?;
                }
            }
        }
        let changes: Vec<(String, i64, i64)> = sqlx::query_as(
            "select product_id,
                    coalesce(sum(quantity) filter (where order_id = any($1)), 0)::bigint,
                    coalesce(sum(quantity) filter (where order_id = any($2)), 0)::bigint
             from ledger.reservations where order_id = any($1) or order_id = any($2)
             group by product_id",
        )
        .bind(&released)
        .bind(&sold)
        .fetch_all(&mut *tx)
        .await?;
        let book = self.changed(&mut tx, &changes, &credits).await?;
        ledger::store(&mut tx, &book, &[], now()).await?;
        sqlx::query(
            "update ledger.orders set
                    stock = case when order_id = any($1) then 'released'
                                 when order_id = any($2) then 'sold' else stock end,
                    credit_held = credit_held and not order_id = any($3)
             where order_id = any($4)",
        )
        .bind(&released)
        .bind(&sold)
        .bind(&freed)
        .bind(&ids)
        .execute(&mut *tx)
        .await?;
        crash::point("reservations.before-commit");
        tx.commit().await?;
        crash::point("reservations.committed");
        self.relay.notify_one();
        Ok(())
    }

    /// The products and customers after the changes, locked.
    async fn changed(
        &self,
        tx: &mut sqlx::PgConnection,
        changes: &[(String, i64, i64)],
        credits: &BTreeMap<String, i64>,
    ) -> Result<Book> {
        let mut book = Book::default();
        let ids: Vec<String> = changes.iter().map(|(id, _, _)| id.clone()).collect();
        for (mut product, _) in ledger::lock_products(tx, &ids).await? {
            let id = product.product_id.clone();
            if let Some((_, released, sold)) = changes.iter().find(|(of, _, _)| *of == id.as_str())
            {
                product.stock.available += released;
                product.stock.sold += sold;
                product.stock.reserved -= released + sold;
            }
            book.touched_products.insert(id.clone());
            book.changed_products.insert(id.clone());
            book.products.insert(id, product);
        }
        let ids: Vec<String> = credits.keys().cloned().collect();
        for (mut customer, _) in ledger::lock_customers(tx, &ids).await? {
            let id = customer.customer_id.clone();
            customer.credit_used -= credits.get(id.as_str()).copied().unwrap_or(0);
            book.touched_customers.insert(id.clone());
            book.changed_customers.insert(id.clone());
            book.customers.insert(id, customer);
        }
        Ok(book)
    }
}

impl Worker for Reservations {
    type Message = Event;
    const NAME: &'static str = "reservations";
    const BATCH: usize = 256;
    const BATCHES: usize = 1;

    fn stream(&self, topology: &Topology) -> String {
        topology.events_stream()
    }

    fn subjects(&self, topology: &Topology) -> Vec<String> {
        ["rejected", "shipped", "cancelled", "expired", "refunded"]
            .map(|kind| topology.order_events(kind))
            .to_vec()
    }

    fn decode(&self, raw: &Raw<'_>) -> Result<Event, String> {
        decode_event(raw)
    }

    async fn handle(&self, batch: &[Delivery<Event>]) -> Vec<Verdict> {
        let events: Vec<&Event> = batch.iter().map(|delivery| &delivery.message).collect();
        let verdict = match self.settle(&events).await {
            Ok(()) => Verdict::Done,
            Err(error) => Verdict::of(&error),
        };
        vec![verdict; batch.len()]
    }
}
