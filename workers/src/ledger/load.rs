//! Loads what is to be decided on, and locks it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use chrono::{DateTime, Utc};
use millrace_shared::customer::Customer;
use millrace_shared::ids::{CommandId, CustomerId, OrderId, ProductId};
use millrace_shared::message::{About, Subject};
use millrace_shared::money::{Currency, Money};
use millrace_shared::product::{Product, Stock};
use millrace_shared::reason::{Reason, Refusal};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool, Row as _};
use uuid::Uuid;

use super::{Needs, Waiting};
use crate::book::{Book, Past};
use crate::reservations::Holding;

/// The advisory lock of a transaction that may create a product or a customer ("creating" in ASCII):
/// what is not there yet has no row to lock.
const CREATING: i64 = 0x6372_6561_7469_6e67;

/// Loads what `needs` names.
pub async fn book(tx: &mut PgConnection, needs: &Needs) -> Result<Book> {
    if needs.creates {
        // Before any row, so that it takes part in no deadlock.
        sqlx::query("select pg_advisory_xact_lock($1)").bind(CREATING).execute(&mut *tx).await?;
    }
    let mut book = lock(tx, texts(&needs.products), texts(&needs.customers)).await?;
    // After the locks: what another replica decided meanwhile is seen.
    known(tx, &mut book, needs).await?;
    Ok(book)
}

/// Orders that still wait in the journal after their time.
pub async fn overdue(
    pool: &PgPool,
    asked: &Waiting,
    most: usize,
) -> Result<Vec<(DateTime<Utc>, OrderId)>> {
    let (after, order) = asked.after.unwrap_or((DateTime::UNIX_EPOCH, OrderId(Uuid::nil())));
    let rows: Vec<(DateTime<Utc>, Uuid)> = sqlx::query_as(
        "select o.placed_at, o.order_id
         from journal.orders o left join ledger.orders l on l.order_id = o.order_id
         where o.status = $1 and o.placed_at < $2 and coalesce(l.pay_by < $3, true)
               and o.placed_at >= $4 and (o.placed_at, o.order_id) > ($4, $5)
         order by o.placed_at, o.order_id limit $6",
    )
    .bind(asked.status.as_str())
    .bind(asked.until - asked.time_to_pay)
    .bind(asked.until)
    .bind(after)
    .bind(order.0)
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().map(|(placed_at, id)| (placed_at, OrderId(id))).collect())
}

/// Ids as PostgreSQL takes them.
pub fn texts<'a, T: ToString + 'a>(ids: impl IntoIterator<Item = &'a T>) -> Vec<String> {
    ids.into_iter().map(ToString::to_string).collect()
}

/// Locks products and then customers, each in the order of their ids, and makes a book of them.
pub async fn lock(
    tx: &mut PgConnection,
    products: Vec<String>,
    customers: Vec<String>,
) -> Result<Book> {
    // That customers come second is said by a condition: they wait for the count of the products.
    let rows = sqlx::query(
        "with products as materialized (
            select product_id, name, brand, category, price, currency, active,
                   available, reserved, sold, version, touched
            from ledger.products where product_id = any($1) order by product_id for update
         ), customers as materialized (
            select customer_id, name, credit_limit, currency, credit_used, version, touched
            from ledger.customers
            where customer_id = any($2) and (select count(*) from products) >= 0
            order by customer_id for update
         )
         select product_id, null as customer_id, name, brand, category, price as amount, currency,
                active, available, reserved, sold, null as credit_used, version, touched
         from products
         union all
         select null, customer_id, name, null, null, credit_limit, currency,
                null, null, null, null, credit_used, version, touched
         from customers",
    )
    .bind(products)
    .bind(customers)
    .fetch_all(tx)
    .await?;
    let mut book = Book::default();
    for row in rows {
        if let Some(id) = row.try_get::<Option<String>, _>("product_id")? {
            enter_product(&mut book, id.parse()?, &row)?;
        } else {
            enter_customer(&mut book, row.try_get::<String, _>("customer_id")?.parse()?, &row)?;
        }
    }
    Ok(book)
}

fn enter_product(book: &mut Book, product_id: ProductId, row: &PgRow) -> Result<()> {
    let product = Product {
        product_id: product_id.clone(),
        name: row.try_get("name")?,
        brand: row.try_get("brand")?,
        category: row.try_get("category")?,
        price: Money::new(row.try_get("amount")?, currency(row.try_get("currency")?)?),
        active: row.try_get("active")?,
        stock: Stock {
            available: row.try_get("available")?,
            reserved: row.try_get("reserved")?,
            sold: row.try_get("sold")?,
        },
        version: unsigned(row.try_get("version")?),
    };
    if row.try_get("touched")? {
        book.touched_products.insert(product_id.clone());
    }
    book.products.insert(product_id, product);
    Ok(())
}

fn enter_customer(book: &mut Book, customer_id: CustomerId, row: &PgRow) -> Result<()> {
    let limit: Option<i64> = row.try_get("amount")?;
    let code: Option<String> = row.try_get("currency")?;
    let credit_limit = match (limit, code) {
        (Some(limit), Some(code)) => Some(Money::new(limit, currency(&code)?)),
        _ => None,
    };
    let customer = Customer {
        customer_id: customer_id.clone(),
        name: row.try_get("name")?,
        credit_limit,
        credit_used: row.try_get("credit_used")?,
        version: unsigned(row.try_get("version")?),
    };
    if row.try_get("touched")? {
        book.touched_customers.insert(customer_id.clone());
    }
    book.customers.insert(customer_id, customer);
    Ok(())
}

/// Locks orders, in the order of their ids, and tells what they hold.
pub async fn holdings(tx: &mut PgConnection, ids: &[OrderId]) -> Result<Vec<Holding>> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let orders = sqlx::query(
        "select order_id, customer_id, stock = 'held' as stock_held, credit, credit_held
         from ledger.orders where order_id = any($1) order by order_id for update",
    )
    .bind(&ids)
    .fetch_all(&mut *tx)
    .await?;
    let mut pieces: BTreeMap<Uuid, BTreeMap<_, _>> = BTreeMap::new();
    let reserved: Vec<(Uuid, String, i64)> = sqlx::query_as(
        "select order_id, product_id, quantity from ledger.reservations
         where order_id = any($1)",
    )
    .bind(&ids)
    .fetch_all(tx)
    .await?;
    for (order, product, quantity) in reserved {
        pieces.entry(order).or_default().insert(product.parse()?, quantity);
    }
    orders
        .iter()
        .map(|row| {
            let order_id: Uuid = row.try_get("order_id")?;
            let held: bool = row.try_get("stock_held")?;
            let credit_held: bool = row.try_get("credit_held")?;
            Ok(Holding {
                order_id: OrderId(order_id),
                customer_id: row.try_get::<String, _>("customer_id")?.parse()?,
                pieces: pieces.remove(&order_id).filter(|_| held).unwrap_or_default(),
                credit: if credit_held { row.try_get("credit")? } else { 0 },
            })
        })
        .collect()
}

fn currency(code: &str) -> Result<Currency> {
    Currency::from_code(code).with_context(|| format!("the ledger has the currency {code:?}"))
}

/// Counters are never negative in the database, and never near the end of their range.
fn unsigned(value: i64) -> u64 {
    value.unsigned_abs()
}

/// Enters what is known of these commands, keys and orders.
async fn known(tx: &mut PgConnection, book: &mut Book, needs: &Needs) -> Result<()> {
    // One row, with nothing but the orders in it, where none of the commands is known.
    let rows = sqlx::query(
        "select placed.orders, known.*
         from (select array(select order_id from ledger.orders where order_id = any($3)) as orders)
              as placed
         left join (
            select command_id, key_id, fingerprint, subject, subject_id, reason, detail
            from ledger.decisions where command_id = any($1)
            union
            select command_id, key_id, fingerprint, subject, subject_id, reason, detail
            from ledger.decisions where key_id = any($2)
         ) as known on true",
    )
    .bind(needs.commands.iter().map(|command| command.0).collect::<Vec<_>>())
    .bind(&needs.keys)
    .bind(needs.orders.iter().map(|id| id.0).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    for row in &rows {
        let placed: Vec<Uuid> = row.try_get("orders")?;
        book.placed.extend(placed.into_iter().map(OrderId));
        let Some(command) = row.try_get("command_id")? else { continue };
        let past = past(CommandId(command), row)?;
        let key_id: Option<Uuid> = row.try_get("key_id")?;
        book.keys.extend(key_id.map(|key_id| (key_id, past.clone())));
        book.decided.insert(past.command_id, past);
    }
    Ok(())
}

fn past(command_id: CommandId, row: &PgRow) -> Result<Past> {
    let reason: Option<String> = row.try_get("reason")?;
    let detail: Option<String> = row.try_get("detail")?;
    let refusal = reason.map(|reason| -> Result<Refusal> {
        let reason: Reason = serde_json::from_value(reason.into())?;
        Ok(Refusal { reason, detail: detail.unwrap_or_default() })
    });
    let subject: Subject = serde_json::from_value(row.try_get::<String, _>("subject")?.into())?;
    Ok(Past {
        command_id,
        fingerprint: row.try_get("fingerprint")?,
        about: About { subject, id: row.try_get("subject_id")? },
        refusal: refusal.transpose()?,
    })
}
