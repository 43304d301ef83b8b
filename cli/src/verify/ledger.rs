//! The ledger's sums: stock adds up for every product, and the credit in use is what open account
//! orders sum up to. Each is read in one statement, so that it is of one moment; then the row is
//! compared with the event of its version.

use anyhow::{Context as _, Result};
use futures_util::TryStreamExt as _;
use millrace_shared::customer::Customer;
use millrace_shared::message::Subject;
use millrace_shared::money::{Currency, Money};
use millrace_shared::product::{Product, Stock};
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row as _};

use super::Data;
use super::engine::{Check, Found, PAGE};
use super::journal::{self, Owner, difference, ids_of};

/// A product or customer as the ledger has it.
struct Account {
    id: String,
    version: u64,
    /// What does not add up.
    problem: Option<String>,
    /// The state that its last event must have told.
    state: Value,
    /// The part of the state that orders have changed since the last event.
    untold: Option<&'static str>,
    /// All pieces that ever came in.
    received: Option<i64>,
}

/// The check of the products.
pub struct StockCheck {
    data: Data,
}

impl StockCheck {
    pub fn new(data: Data) -> Self {
        Self { data }
    }
}

/// The check of the customers.
pub struct Credit {
    data: Data,
}

impl Credit {
    pub fn new(data: Data) -> Self {
        Self { data }
    }
}

const STOCK: &str = "
select p.*, coalesce(held.reserved, 0)::bigint as held, coalesce(held.sold, 0)::bigint as shipped
from ledger.products p
left join (
    select product_id, sum(quantity) filter (where stock = 'held' or stock is null) as reserved,
           sum(quantity) filter (where stock = 'sold') as sold
    from ledger.reservations left join ledger.orders using (order_id)
    where $1::text[] is null or product_id = any($1) group by product_id
) as held using (product_id)
where $1::text[] is null or p.product_id = any($1)";

const CREDIT: &str = "
select c.*, coalesce(held.credit, 0)::bigint as held
from ledger.customers c
left join (
    select customer_id, sum(credit) as credit from ledger.orders
    where credit_held and ($1::text[] is null or customer_id = any($1)) group by customer_id
) as held using (customer_id)
where $1::text[] is null or c.customer_id = any($1)";

fn money(row: &PgRow, amount: &str) -> Result<Option<Money>> {
    let (amount, code): (Option<i64>, Option<String>) =
        (row.try_get(amount)?, row.try_get("currency")?);
    let (Some(amount), Some(code)) = (amount, code) else { return Ok(None) };
    let currency = Currency::from_code(&code).with_context(|| format!("the currency {code:?}"))?;
    Ok(Some(Money::new(amount, currency)))
}

fn product(row: &PgRow) -> Result<Account> {
    let id: String = row.try_get("product_id")?;
    let version = row.try_get::<i64, _>("version")?.unsigned_abs();
    let product = Product {
        product_id: id.parse()?,
        name: row.try_get("name")?,
        brand: row.try_get("brand")?,
        category: row.try_get("category")?,
        price: money(row, "price")?.context("a product without a price")?,
        active: row.try_get("active")?,
        stock: Stock {
            available: row.try_get("available")?,
            reserved: row.try_get("reserved")?,
            sold: row.try_get("sold")?,
        },
        version,
    };
    let Stock { available, reserved, sold } = product.stock;
    let received: i64 = row.try_get("received")?;
    let (held, shipped): (i64, i64) = (row.try_get("held")?, row.try_get("shipped")?);
    let problem = if received != available + reserved + sold {
        Some(format!("{available} + {reserved} + {sold} are not the {received} that came in"))
    } else if reserved != held {
        Some(format!("{reserved} are reserved, but orders hold {held}"))
    } else {
        (sold != shipped).then(|| format!("{sold} are sold, but orders have shipped {shipped}"))
    };
    let untold = row.try_get::<bool, _>("touched")?.then_some("stock");
    let state = serde_json::to_value(product)?;
    Ok(Account { id, version, problem, state, untold, received: Some(received) })
}

fn customer(row: &PgRow) -> Result<Account> {
    let id: String = row.try_get("customer_id")?;
    let version = row.try_get::<i64, _>("version")?.unsigned_abs();
    let customer = Customer {
        customer_id: id.parse()?,
        name: row.try_get("name")?,
        credit_limit: money(row, "credit_limit")?,
        credit_used: row.try_get("credit_used")?,
        version,
    };
    let (used, held): (i64, i64) = (customer.credit_used, row.try_get("held")?);
    let problem =
        (used != held).then(|| format!("{used} are in use, but open orders sum up to {held}"));
    let untold = row.try_get::<bool, _>("touched")?.then_some("creditUsed");
    let state = serde_json::to_value(customer)?;
    Ok(Account { id, version, problem, state, untold, received: None })
}

/// What is wrong with accounts: in themselves, or beside the events of their versions.
async fn judge(
    pool: &PgPool,
    subject: Subject,
    accounts: Vec<Account>,
) -> Result<Vec<(Owner, String)>> {
    let versions: Vec<(String, u64)> =
        accounts.iter().map(|account| (account.id.clone(), account.version)).collect();
    let told = journal::states(pool, subject, &versions).await?;
    let problem = |account: Account| {
        let problem = match (account.problem, told.get(&account.id)) {
            (Some(problem), _) => Some(problem),
            (None, None) => Some(format!("its version {} has no event", account.version)),
            (None, Some(told)) => against(account.state, account.untold, account.received, told),
        };
        problem.map(|problem| (Owner { subject, id: account.id }, problem))
    };
    Ok(accounts.into_iter().filter_map(problem).collect())
}

fn against(
    mut state: Value,
    untold: Option<&str>,
    received: Option<i64>,
    told: &Value,
) -> Option<String> {
    let pieces = |part: &str| told["stock"][part].as_i64().unwrap_or(0);
    let came_in = pieces("available") + pieces("reserved") + pieces("sold");
    if let Some(received) = received
        && received != came_in
    {
        return Some(format!("{received} came in, but {came_in} by its events"));
    }
    if let Some(part) = untold {
        state[part] = told[part].clone();
    }
    difference(told, &state).map(|difference| format!("beside its last event {difference}"))
}

async fn scan(
    pool: &PgPool,
    subject: Subject,
    query: &'static str,
    account: fn(&PgRow) -> Result<Account>,
    found: &mut Found<Owner>,
) -> Result<()> {
    let mut rows = sqlx::query(query).bind(None::<Vec<String>>).fetch(pool);
    let mut page = Vec::with_capacity(PAGE as usize);
    loop {
        let row = rows.try_next().await?;
        let is_end = row.is_none();
        page.extend(row.as_ref().map(account).transpose()?);
        if page.len() == PAGE as usize || is_end {
            found.note(page.len(), judge(pool, subject, std::mem::take(&mut page)).await?);
        }
        if is_end {
            return Ok(());
        }
    }
}

async fn examine(
    pool: &PgPool,
    query: &'static str,
    account: fn(&PgRow) -> Result<Account>,
    subject: Subject,
    keys: &[Owner],
) -> Result<Vec<(Owner, String)>> {
    let rows = sqlx::query(query).bind(Some(ids_of(keys, subject))).fetch_all(pool).await?;
    let accounts = rows.iter().map(account).collect::<Result<_>>()?;
    judge(pool, subject, accounts).await
}

impl Check for StockCheck {
    type Key = Owner;
    const NAME: &'static str = "stock";
    const PROMISE: &'static str =
        "piece that came in is available, reserved by an open order, or shipped";

    async fn scan(&self, found: &mut Found<Owner>) -> Result<()> {
        scan(&self.data.pool, Subject::Product, STOCK, product, found).await
    }

    async fn examine(&self, keys: &[Owner]) -> Result<Vec<(Owner, String)>> {
        examine(&self.data.pool, STOCK, product, Subject::Product, keys).await
    }
}

impl Check for Credit {
    type Key = Owner;
    const NAME: &'static str = "credit";
    const PROMISE: &'static str =
        "customer's credit in use is the sum of their open account orders";

    async fn scan(&self, found: &mut Found<Owner>) -> Result<()> {
        scan(&self.data.pool, Subject::Customer, CREDIT, customer, found).await
    }

    async fn examine(&self, keys: &[Owner]) -> Result<Vec<(Owner, String)>> {
        examine(&self.data.pool, CREDIT, customer, Subject::Customer, keys).await
    }
}
