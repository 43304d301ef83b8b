//! What an order holds of stock and credit is what its history says: held while it is under way,
//! sold when it has left, and given back once where it ended otherwise.

use std::collections::BTreeMap;

use anyhow::Result;
use millrace_shared::message::Subject;
use millrace_shared::order::{Order, OrderStatus, PaymentKind};
use serde_json::{Value, json};
use sqlx::Row as _;
use uuid::Uuid;

use super::Data;
use super::engine::{Check, Found, PAGE};
use super::journal::{Owner, difference};

/// The check of the ledger's orders.
pub struct Reservations {
    data: Data,
}

/// What the ledger must have of an order.
fn expected(order: &Order) -> Value {
    let refused = order.timeline.first().is_some_and(|step| step.status == OrderStatus::Rejected);
    let ended = matches!(
        order.status,
        OrderStatus::Rejected
            | OrderStatus::Cancelled
            | OrderStatus::Expired
            | OrderStatus::Refunded
    );
    let stock = match (refused, &order.shipment) {
        (true, _) => "none",
        (false, Some(_)) => "sold",
        (false, None) if ended => "released",
        (false, None) => "held",
    };
    let on_account = order.payment.method == PaymentKind::Account && !refused;
    let credit = order.total.filter(|_| on_account).map_or(0, |total| total.amount);
    let pieces: BTreeMap<&str, u32> = order
        .lines
        .iter()
        .filter(|_| !refused)
        .map(|line| (line.product_id.as_str(), line.quantity))
        .collect();
    json!({
        "customer": order.customer_id, "stock": stock, "credit": credit,
        "creditHeld": credit > 0 && !ended, "pieces": pieces,
    })
}

impl Reservations {
    pub fn new(data: Data) -> Self {
        Self { data }
    }

    async fn look(&self, ids: &[Uuid]) -> Result<Vec<(Owner, String)>> {
        let rows = sqlx::query(
            "select asked.id::text, last.state,
                    case when held.order_id is not null then jsonb_build_object(
                        'customer', held.customer_id, 'stock', held.stock, 'credit', held.credit,
                        'creditHeld', held.credit_held, 'pieces', coalesce((
                            select jsonb_object_agg(product_id, quantity) from ledger.reservations
                            where order_id = asked.id), '{}')) end as found
             from unnest($1::uuid[]) as asked (id)
             left join ledger.orders held on held.order_id = asked.id
             left join lateral (
                 select state from journal.events
                 where subject = 'order' and subject_id = asked.id::text
                 order by version desc limit 1
             ) as last on true",
        )
        .bind(ids)
        .fetch_all(&self.data.pool)
        .await?;
        let mut wrong = Vec::new();
        for row in rows {
            let problem = match (row.try_get("state")?, row.try_get("found")?) {
                (Some(state), Some(found)) => {
                    difference(&expected(&serde_json::from_value(state)?), &found)
                        .map(|difference| format!("the ledger has it otherwise: {difference}"))
                }
                (Some(_), None) => Some("the ledger does not have it".to_owned()),
                (None, Some(_)) => Some("it is in the ledger, but has no history".to_owned()),
                (None, None) => None,
            };
            let owner = Owner { subject: Subject::Order, id: row.try_get("id")? };
            wrong.extend(problem.map(|problem| (owner, problem)));
        }
        Ok(wrong)
    }
}

impl Check for Reservations {
    type Key = Owner;
    const NAME: &'static str = "reservations";
    const PROMISE: &'static str =
        "order holds the stock and credit that its history says, and has given it back once";

    async fn scan(&self, found: &mut Found<Owner>) -> Result<()> {
        let mut after = Uuid::nil();
        loop {
            let ids: Vec<Uuid> = sqlx::query_scalar(
                "select order_id from ledger.orders where order_id > $1 order by order_id limit $2",
            )
            .bind(after)
            .bind(i64::from(PAGE))
            .fetch_all(&self.data.pool)
            .await?;
            let Some(last) = ids.last() else { break };
            after = *last;
            found.note(ids.len(), self.look(&ids).await?);
        }
        let strangers: Vec<Uuid> = sqlx::query_scalar(
            "select order_id from journal.orders o
             where not exists (select from ledger.orders where order_id = o.order_id) limit 10000",
        )
        .fetch_all(&self.data.pool)
        .await?;
        found.note(strangers.len(), self.look(&strangers).await?);
        Ok(())
    }

    async fn examine(&self, keys: &[Owner]) -> Result<Vec<(Owner, String)>> {
        let ids: Vec<Uuid> = keys.iter().filter_map(|key| key.id.parse().ok()).collect();
        self.look(&ids).await
    }
}
