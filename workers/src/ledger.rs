//! The ledger in PostgreSQL: loads what a batch of commands needs, with its rows locked, and stores
//! what was decided. One transaction a batch; rows are locked in one order (products, then
//! customers, each by id), so that replicas wait for each other and never deadlock.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, Result};
use chrono::{DateTime, Utc};
use millrace_shared::command::Command;
use millrace_shared::customer::Customer;
use millrace_shared::ids::{CommandId, OrderId, ProductId};
use millrace_shared::message::{About, Event, Subject};
use millrace_shared::money::{Currency, Money};
use millrace_shared::product::{Product, Stock};
use millrace_shared::reason::{Reason, Refusal};
use sqlx::{PgConnection, PgPool, Row as _};
use uuid::Uuid;

use crate::book::{Book, Decision, Incoming, Past, Placed};

/// The advisory lock of a transaction that may create a product or a customer ("creating" in ASCII):
/// what is not there yet has no row to lock.
const CREATING: i64 = 0x6372_6561_7469_6e67;

/// Loads what `batch` needs, except for the orders that it continues: those are in the log.
pub async fn load(tx: &mut PgConnection, batch: &[&Incoming]) -> Result<Book> {
    let mut products = BTreeSet::new();
    let mut customers = BTreeSet::new();
    let mut placed = Vec::new();
    let mut keys = Vec::new();
    let mut commands = Vec::new();
    let mut creates = false;
    for incoming in batch {
        commands.push(incoming.received.command_id.0);
        commands.push(incoming.received.fallback_id.0);
        let Ok(command) = &incoming.received.command else { continue };
        keys.extend(command.key_id);
        match &command.command {
            Command::PlaceOrder(place) => {
                products.extend(place.lines.iter().map(|line| line.product_id.to_string()));
                customers.insert(place.customer_id.to_string());
                placed.extend(place.order_id.map(|id| id.0));
            }
            Command::RegisterCustomer(register) => {
                creates = true;
                customers.extend(register.customer_id.as_ref().map(ToString::to_string));
            }
            Command::SetCreditLimit(set) => {
                customers.insert(set.customer_id.to_string());
            }
            Command::DefineProduct(define) => {
                creates = true;
                products.insert(define.product_id.to_string());
            }
            Command::RestockProduct(restock) => {
                products.insert(restock.product_id.to_string());
            }
            Command::RetireProduct(retire) => {
                products.insert(retire.product_id.to_string());
            }
            Command::CancelOrder(_)
            | Command::ShipOrder(_)
            | Command::DeliverOrder(_)
            | Command::RefundOrder(_) => {}
        }
    }
    if creates {
        // Before any row, so that it takes part in no deadlock.
        sqlx::query("select pg_advisory_xact_lock($1)").bind(CREATING).execute(&mut *tx).await?;
    }
    let mut book = Book::default();
    for (product, touched) in lock_products(tx, &Vec::from_iter(products)).await? {
        if touched {
            book.touched_products.insert(product.product_id.clone());
        }
        book.products.insert(product.product_id.clone(), product);
    }
    for (customer, touched) in lock_customers(tx, &Vec::from_iter(customers)).await? {
        if touched {
            book.touched_customers.insert(customer.customer_id.clone());
        }
        book.customers.insert(customer.customer_id.clone(), customer);
    }
    // After the locks: what another replica decided meanwhile is seen.
    for (past, key_id) in decisions(tx, &commands, &keys).await? {
        book.keys.extend(key_id.map(|key_id| (key_id, past.clone())));
        book.decided.insert(past.command_id, past);
    }
    book.placed = orders(tx, &placed).await?.into_iter().collect();
    Ok(book)
}

/// Locks products, in the order of their ids, and tells which have changes that no event has told.
pub async fn lock_products(tx: &mut PgConnection, ids: &[String]) -> Result<Vec<(Product, bool)>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "select product_id, name, brand, category, price, currency, active,
                available, reserved, sold, version, touched
         from ledger.products where product_id = any($1) order by product_id for update",
    )
    .bind(ids)
    .fetch_all(tx)
    .await?;
    rows.iter()
        .map(|row| {
            let product = Product {
                product_id: row.try_get::<String, _>("product_id")?.parse()?,
                name: row.try_get("name")?,
                brand: row.try_get("brand")?,
                category: row.try_get("category")?,
                price: Money::new(row.try_get("price")?, currency(row.try_get("currency")?)?),
                active: row.try_get("active")?,
                stock: Stock {
                    available: row.try_get("available")?,
                    reserved: row.try_get("reserved")?,
                    sold: row.try_get("sold")?,
                },
                version: unsigned(row.try_get("version")?),
            };
            Ok((product, row.try_get("touched")?))
        })
        .collect()
}

/// As [`lock_products`], for customers.
pub async fn lock_customers(
    tx: &mut PgConnection,
    ids: &[String],
) -> Result<Vec<(Customer, bool)>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query(
        "select customer_id, name, credit_limit, currency, credit_used, version, touched
         from ledger.customers where customer_id = any($1) order by customer_id for update",
    )
    .bind(ids)
    .fetch_all(tx)
    .await?;
    rows.iter()
        .map(|row| {
            let limit: Option<i64> = row.try_get("credit_limit")?;
            let code: Option<String> = row.try_get("currency")?;
            let credit_limit = match (limit, code) {
                (Some(limit), Some(code)) => Some(Money::new(limit, currency(&code)?)),
                _ => None,
            };
            let customer = Customer {
                customer_id: row.try_get::<String, _>("customer_id")?.parse()?,
                name: row.try_get("name")?,
                credit_limit,
                credit_used: row.try_get("credit_used")?,
                version: unsigned(row.try_get("version")?),
            };
            Ok((customer, row.try_get("touched")?))
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

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

async fn decisions(
    tx: &mut PgConnection,
    commands: &[Uuid],
    keys: &[Uuid],
) -> Result<Vec<(Past, Option<Uuid>)>> {
    let rows = sqlx::query(
        "select command_id, key_id, fingerprint, subject, subject_id, reason, detail
         from ledger.decisions where command_id = any($1) or key_id = any($2)",
    )
    .bind(commands)
    .bind(keys)
    .fetch_all(tx)
    .await?;
    rows.iter()
        .map(|row| {
            let reason: Option<String> = row.try_get("reason")?;
            let detail: Option<String> = row.try_get("detail")?;
            let refusal = reason.map(|reason| -> Result<Refusal> {
                let reason: Reason = serde_json::from_value(reason.into())?;
                Ok(Refusal { reason, detail: detail.unwrap_or_default() })
            });
            let subject: Subject =
                serde_json::from_value(row.try_get::<String, _>("subject")?.into())?;
            let past = Past {
                command_id: CommandId(row.try_get("command_id")?),
                fingerprint: row.try_get("fingerprint")?,
                about: About { subject, id: row.try_get("subject_id")? },
                refusal: refusal.transpose()?,
            };
            Ok((past, row.try_get("key_id")?))
        })
        .collect()
}

/// Those of `ids` that were placed.
pub async fn orders(tx: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<OrderId>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let found: Vec<Uuid> =
        sqlx::query_scalar("select order_id from ledger.orders where order_id = any($1)")
            .bind(ids)
            .fetch_all(tx)
            .await?;
    Ok(found.into_iter().map(OrderId).collect())
}

/// Stores the decisions of a batch and what they changed.
pub async fn store(
    tx: &mut PgConnection,
    book: &Book,
    decisions: &[Decision],
    now: DateTime<Utc>,
) -> Result<()> {
    store_products(tx, book).await?;
    store_customers(tx, book).await?;
    store_decisions(tx, decisions, now).await?;
    store_orders(tx, decisions).await?;
    let events: Vec<(Option<Uuid>, &Event)> = decisions
        .iter()
        .flat_map(|decision| {
            let command = Some(decision.past.command_id.0);
            decision.events.iter().map(move |event| (command, event))
        })
        .collect();
    put_outbox(tx, &events).await
}

async fn store_products(tx: &mut PgConnection, book: &Book) -> Result<()> {
    let changed: Vec<&Product> =
        book.changed_products.iter().filter_map(|id| book.products.get(id)).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let column = |get: fn(&Product) -> i64| changed.iter().map(|p| get(p)).collect::<Vec<_>>();
    let text = |get: fn(&Product) -> &str| {
        changed.iter().map(|p| get(p).to_owned()).collect::<Vec<String>>()
    };
    let touched: Vec<bool> =
        changed.iter().map(|p| book.touched_products.contains(&p.product_id)).collect();
    sqlx::query(
        "insert into ledger.products (product_id, name, brand, category, price, currency, active,
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
         where products.version <= excluded.version",
    )
    .bind(text(|p| p.product_id.as_str()))
    .bind(text(|p| &p.name))
    .bind(text(|p| &p.brand))
    .bind(text(|p| &p.category))
    .bind(column(|p| p.price.amount))
    .bind(text(|p| p.price.currency.code()))
    .bind(changed.iter().map(|p| p.active).collect::<Vec<_>>())
    .bind(column(|p| p.stock.available))
    .bind(column(|p| p.stock.reserved))
    .bind(column(|p| p.stock.sold))
    .bind(column(|p| signed(p.version)))
    .bind(touched)
    .execute(tx)
    .await?;
    Ok(())
}

async fn store_customers(tx: &mut PgConnection, book: &Book) -> Result<()> {
    let changed: Vec<&Customer> =
        book.changed_customers.iter().filter_map(|id| book.customers.get(id)).collect();
    if changed.is_empty() {
        return Ok(());
    }
    let limit = |c: &&Customer| c.credit_limit.map(|limit| limit.amount);
    let code = |c: &&Customer| c.credit_limit.map(|limit| limit.currency.code().to_owned());
    sqlx::query(
        "insert into ledger.customers
                (customer_id, name, credit_limit, currency, credit_used, version, touched)
         select * from unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::bigint[],
                              $6::bigint[], $7::bool[])
         on conflict (customer_id) do update set
                name = excluded.name, credit_limit = excluded.credit_limit,
                currency = excluded.currency, credit_used = excluded.credit_used,
                version = excluded.version, touched = excluded.touched",
    )
    .bind(changed.iter().map(|c| c.customer_id.to_string()).collect::<Vec<_>>())
    .bind(changed.iter().map(|c| c.name.clone()).collect::<Vec<_>>())
    .bind(changed.iter().map(limit).collect::<Vec<_>>())
    .bind(changed.iter().map(code).collect::<Vec<_>>())
    .bind(changed.iter().map(|c| c.credit_used).collect::<Vec<_>>())
    .bind(changed.iter().map(|c| signed(c.version)).collect::<Vec<_>>())
    .bind(
        changed.iter().map(|c| book.touched_customers.contains(&c.customer_id)).collect::<Vec<_>>(),
    )
    .execute(tx)
    .await?;
    Ok(())
}

async fn store_decisions(
    tx: &mut PgConnection,
    decisions: &[Decision],
    now: DateTime<Utc>,
) -> Result<()> {
    if decisions.is_empty() {
        return Ok(());
    }
    let past: Vec<&Past> = decisions.iter().map(|decision| &decision.past).collect();
    let reason = |p: &&Past| p.refusal.as_ref().map(|r| r.reason.as_str().to_owned());
    let detail = |p: &&Past| p.refusal.as_ref().map(|r| r.detail.clone());
    // A decision is replaced only by `decide again`, after the log refused its event.
    sqlx::query(
        "insert into ledger.decisions
                (command_id, key_id, fingerprint, subject, subject_id, reason, detail, decided_at)
         select *, $8 from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[],
                                  $6::text[], $7::text[])",
    )
    .bind(past.iter().map(|p| p.command_id.0).collect::<Vec<_>>())
    .bind(decisions.iter().map(|decision| decision.key_id).collect::<Vec<_>>())
    .bind(past.iter().map(|p| p.fingerprint).collect::<Vec<_>>())
    .bind(past.iter().map(|p| p.about.subject.to_string()).collect::<Vec<_>>())
    .bind(past.iter().map(|p| p.about.id.clone()).collect::<Vec<_>>())
    .bind(past.iter().map(reason).collect::<Vec<_>>())
    .bind(past.iter().map(detail).collect::<Vec<_>>())
    .bind(now)
    .execute(tx)
    .await?;
    Ok(())
}

async fn store_orders(tx: &mut PgConnection, decisions: &[Decision]) -> Result<()> {
    let placed: Vec<&Placed> = decisions.iter().filter_map(|d| d.placed.as_ref()).collect();
    if placed.is_empty() {
        return Ok(());
    }
    let stock = |p: &&Placed| if p.pieces.is_empty() { "none" } else { "held" }.to_owned();
    sqlx::query(
        "insert into ledger.orders (order_id, customer_id, stock, credit, credit_held)
         select id, customer, stock, credit, credit > 0
         from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[])
              as new (id, customer, stock, credit)",
    )
    .bind(placed.iter().map(|p| p.order_id.0).collect::<Vec<_>>())
    .bind(placed.iter().map(|p| p.customer_id.to_string()).collect::<Vec<_>>())
    .bind(placed.iter().map(stock).collect::<Vec<_>>())
    .bind(placed.iter().map(|p| p.credit).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await?;
    let pieces: Vec<(OrderId, &ProductId, u32)> = placed
        .iter()
        .flat_map(|p| p.pieces.iter().map(move |(product, count)| (p.order_id, product, *count)))
        .collect();
    sqlx::query(
        "insert into ledger.reservations (order_id, product_id, quantity)
         select * from unnest($1::uuid[], $2::text[], $3::bigint[])",
    )
    .bind(pieces.iter().map(|(order, _, _)| order.0).collect::<Vec<_>>())
    .bind(pieces.iter().map(|(_, product, _)| product.to_string()).collect::<Vec<_>>())
    .bind(pieces.iter().map(|(_, _, count)| i64::from(*count)).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

/// Puts events into the outbox, with the command whose redelivery publishes them.
pub async fn put_outbox(tx: &mut PgConnection, events: &[(Option<Uuid>, &Event)]) -> Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let texts: Vec<String> =
        events.iter().map(|(_, event)| serde_json::to_string(event)).collect::<Result<_, _>>()?;
    sqlx::query(
        "insert into ledger.outbox (command_id, subject, subject_id, version, event)
         select * from unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::text[])",
    )
    .bind(events.iter().map(|(command, _)| *command).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, event)| event.subject.to_string()).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, event)| event.subject_id.clone()).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, event)| signed(event.version)).collect::<Vec<_>>())
    .bind(texts)
    .execute(tx)
    .await?;
    Ok(())
}

/// The events of commands that were decided before and that may not be in the log yet.
pub async fn outbox_of(pool: &PgPool, commands: &[Uuid]) -> Result<HashMap<Uuid, Vec<Event>>> {
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "select command_id, event from ledger.outbox
         where command_id = any($1) and subject in ('order', 'command') order by id",
    )
    .bind(commands)
    .fetch_all(pool)
    .await?;
    let mut events: HashMap<Uuid, Vec<Event>> = HashMap::new();
    for (command, text) in rows {
        events.entry(command).or_default().push(Event::decode(text.as_bytes())?);
    }
    Ok(events)
}

/// Forgets the order and command events of commands, now that they are in the log. Not durable at
/// once: what is forgotten by a crash is published again, and refused by the log.
pub async fn clear_outbox(pool: &PgPool, commands: &[Uuid]) -> Result<()> {
    let mut tx = pool.begin().await?;
    sqlx::query("set local synchronous_commit = off").execute(&mut *tx).await?;
    sqlx::query(
        "delete from ledger.outbox
         where command_id = any($1) and subject in ('order', 'command')",
    )
    .bind(commands)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}

/// Takes a decision back, whose event `attempted` the log refused, so that the command is decided
/// again. Another replica may have done so, or may have finished, meanwhile: then nothing is taken
/// back, and what stands in the outbox now is returned.
pub async fn withdraw(
    tx: &mut PgConnection,
    command: CommandId,
    attempted: &Event,
) -> Result<Option<Vec<Event>>> {
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
    if events.iter().all(|event| event.id != attempted.id) {
        return Ok(Some(events));
    }
    sqlx::query("delete from ledger.outbox where command_id = $1")
        .bind(command.0)
        .execute(&mut *tx)
        .await?;
    sqlx::query("delete from ledger.decisions where command_id = $1")
        .bind(command.0)
        .execute(tx)
        .await?;
    Ok(None)
}
