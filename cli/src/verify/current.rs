//! The journal's tables of the current state show what the last event says.

use anyhow::Result;
use millrace_shared::customer::Customer;
use millrace_shared::message::Subject;
use millrace_shared::money::Money;
use millrace_shared::order::Order;
use millrace_shared::product::Product;
use serde_json::{Value, json};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::types::chrono::{DateTime, Utc};
use uuid::Uuid;

use super::Data;
use super::engine::{Check, Found};
use super::journal::{self, Owner, difference, ids_of};

const SUBJECTS: [Subject; 3] = [Subject::Order, Subject::Customer, Subject::Product];

/// The check of the current state.
pub struct Current {
    data: Data,
}

impl Current {
    pub fn new(data: Data) -> Self {
        Self { data }
    }

    async fn look(&self, subject: Subject, mut ids: Vec<String>) -> Result<Vec<(Owner, String)>> {
        let mut wrong = Vec::new();
        let owner = |id: String| Owner { subject, id };
        if subject == Subject::Order {
            let (good, bad): (Vec<_>, Vec<_>) =
                ids.into_iter().partition(|id| id.parse::<Uuid>().is_ok());
            wrong.extend(bad.into_iter().map(|id| (owner(id), "it is no order id".to_owned())));
            ids = good;
        }
        if ids.is_empty() {
            return Ok(wrong);
        }
        let query = match subject {
            Subject::Customer => CUSTOMERS,
            Subject::Product => PRODUCTS,
            _ => ORDERS,
        };
        for row in sqlx::query(query).bind(&ids).fetch_all(&self.data.pool).await? {
            let problem = match (expected(subject, &row)?, row.try_get("found")?) {
                (Some(expected), Some(found)) => {
                    difference(&plain_times(expected), &plain_times(found))
                        .map(|difference| format!("the table shows it otherwise: {difference}"))
                }
                (Some(_), None) => Some("the table does not have it".to_owned()),
                (None, Some(_)) => Some("the table has it, but it has no history".to_owned()),
                (None, None) => None,
            };
            wrong.extend(problem.map(|problem| (owner(row.get("id")), problem)));
        }
        Ok(wrong)
    }

    /// Those in the tables that have no history.
    async fn strangers(&self) -> Result<Vec<Owner>> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "select subject, id from (
                select 'order' as subject, order_id::text as id from journal.orders
                union all select 'customer', customer_id from journal.customers
                union all select 'product', product_id from journal.products
             ) as shown
             where not exists (select from journal.events
                               where subject = shown.subject and subject_id = shown.id)
             limit 10000",
        )
        .fetch_all(&self.data.pool)
        .await?;
        rows.into_iter()
            .map(|(subject, id)| {
                Ok(Owner { subject: serde_json::from_value(Value::String(subject))?, id })
            })
            .collect()
    }
}

const ORDERS: &str = "
select asked.id, last.state, last.occurred_at,
       to_jsonb(o) || jsonb_build_object('lines', (
           select jsonb_agg(to_jsonb(l) - 'order_id' - 'line' order by line)
           from journal.order_lines l where l.order_id = o.order_id)) as found
from unnest($1::text[]) as asked (id)
left join lateral (
    select state, occurred_at from journal.events
    where subject = 'order' and subject_id = asked.id order by version desc limit 1
) as last on true
left join journal.orders o on o.order_id = asked.id::uuid";

const CUSTOMERS: &str = "
select asked.id, last.state, last.occurred_at, to_jsonb(c) as found
from unnest($1::text[]) as asked (id)
left join lateral (
    select state, occurred_at from journal.events
    where subject = 'customer' and subject_id = asked.id order by version desc limit 1
) as last on true
left join journal.customers c on c.customer_id = asked.id";

const PRODUCTS: &str = "
select asked.id, last.state, last.occurred_at, to_jsonb(p) as found
from unnest($1::text[]) as asked (id)
left join lateral (
    select state, occurred_at from journal.events
    where subject = 'product' and subject_id = asked.id order by version desc limit 1
) as last on true
left join journal.products p on p.product_id = asked.id";

/// The row as the last event makes it.
fn expected(subject: Subject, row: &PgRow) -> Result<Option<Value>> {
    let Some(state) = row.try_get::<Option<Value>, _>("state")? else { return Ok(None) };
    let at: DateTime<Utc> = row.try_get("occurred_at")?;
    Ok(Some(match subject {
        Subject::Customer => customer(&serde_json::from_value(state)?, at),
        Subject::Product => product(&serde_json::from_value(state)?, at),
        _ => order(&serde_json::from_value(state)?),
    }))
}

fn amount(money: Option<Money>) -> Option<i64> {
    money.map(|money| money.amount)
}

fn code(money: Option<Money>) -> Option<&'static str> {
    money.map(|money| money.currency.code())
}

fn order(order: &Order) -> Value {
    let lines: Vec<Value> = order
        .lines
        .iter()
        .map(|line| {
            json!({
                "product_id": line.product_id, "name": line.name, "brand": line.brand,
                "quantity": line.quantity, "unit_price": amount(line.unit_price),
                "line_total": amount(line.line_total), "currency": code(line.unit_price),
            })
        })
        .collect();
    json!({
        "order_id": order.order_id, "customer_id": order.customer_id, "status": order.status,
        "version": order.version, "total": amount(order.total), "currency": code(order.total),
        "payment_method": order.payment.method, "payment_status": order.payment.status,
        "charge_id": order.payment.charge_id, "refund_id": order.payment.refund_id,
        "carrier": order.shipment.as_ref().map(|shipment| &shipment.carrier),
        "tracking_number": order.shipment.as_ref().map(|shipment| &shipment.tracking_number),
        "reason": order.reason, "detail": order.detail, "command_id": order.command_id,
        "placed_at": order.placed_at, "updated_at": order.updated_at, "lines": lines,
    })
}

fn customer(customer: &Customer, at: DateTime<Utc>) -> Value {
    json!({
        "customer_id": customer.customer_id, "name": customer.name,
        "credit_limit": amount(customer.credit_limit), "currency": code(customer.credit_limit),
        "credit_used": customer.credit_used, "version": customer.version, "updated_at": at,
    })
}

fn product(product: &Product, at: DateTime<Utc>) -> Value {
    json!({
        "product_id": product.product_id, "name": product.name, "brand": product.brand,
        "category": product.category, "price": product.price.amount,
        "currency": product.price.currency.code(), "active": product.active,
        "available": product.stock.available, "reserved": product.stock.reserved,
        "sold": product.stock.sold, "version": product.version, "updated_at": at,
    })
}

/// PostgreSQL writes times otherwise, depending on its settings.
fn plain_times(mut row: Value) -> Value {
    for field in ["placed_at", "updated_at"] {
        if let Some(at) = row.get_mut(field)
            && let Some(parsed) = at.as_str().and_then(|at| DateTime::parse_from_rfc3339(at).ok())
        {
            *at = parsed.with_timezone(&Utc).to_rfc3339().into();
        }
    }
    row
}

impl Check for Current {
    type Key = Owner;
    const NAME: &'static str = "current";
    const PROMISE: &'static str =
        "order, customer and product in the journal's tables is as its last event says";

    async fn scan(&self, found: &mut Found<Owner>) -> Result<()> {
        for subject in SUBJECTS {
            let mut after = String::new();
            loop {
                let page = journal::owners(&self.data.pool, subject, &after).await?;
                let Some(last) = page.last() else { break };
                after.clone_from(&last.id);
                let wrong = self.look(subject, ids_of(&page, subject)).await?;
                found.note(page.len(), wrong);
            }
        }
        let strangers = self.strangers().await?;
        found.note(strangers.len(), self.examine(&strangers).await?);
        Ok(())
    }

    async fn examine(&self, keys: &[Owner]) -> Result<Vec<(Owner, String)>> {
        let mut wrong = Vec::new();
        for subject in SUBJECTS {
            wrong.extend(self.look(subject, ids_of(keys, subject)).await?);
        }
        Ok(wrong)
    }
}
