//! Sales and payments, in buckets of time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use chrono::{DateTime, Utc};
use millrace_shared::money::{Currency, Money, codes};
use millrace_shared::views::{By, Sales};
use serde::Serialize;
use utoipa::ToSchema;

use super::{BucketsQuery, TooMuch, answer, buckets};
use crate::App;
use crate::error::Problem;
use crate::request::parameters;

/// Whole buckets, and what was in each.
#[derive(Debug, Serialize, ToSchema)]
struct Bucketed<T> {
    by: By,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    buckets: Vec<Bucket<T>>,
    total: T,
}

#[derive(Debug, Serialize, ToSchema)]
struct Bucket<T> {
    from: DateTime<Utc>,
    #[serde(flatten)]
    content: T,
}

/// Sales in each currency.
#[derive(Debug, Serialize, ToSchema)]
struct Currencies {
    currencies: Vec<InCurrency>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SalesInCurrency)]
struct InCurrency {
    #[schema(schema_with = codes)]
    currency: Currency,
    orders: i64,
    units: i64,
    gross: Money,
    refunds: i64,
    refunded: Money,
    net: Money,
}

impl InCurrency {
    fn new(currency: Currency, sales: Sales) -> Self {
        Self {
            currency,
            orders: sales.orders,
            units: sales.units,
            gross: Money::new(sales.gross, currency),
            refunds: sales.refunds,
            refunded: Money::new(sales.refunded, currency),
            net: Money::new(sales.gross.saturating_sub(sales.refunded), currency),
        }
    }
}

impl Currencies {
    /// Each of `currencies`, also where nothing was sold in it.
    fn of(currencies: &BTreeSet<Currency>, sales: impl Fn(Currency) -> Sales) -> Self {
        let currencies = currencies.iter().map(|it| InCurrency::new(*it, sales(*it))).collect();
        Self { currencies }
    }
}

/// What was paid and refunded in each bucket of time, in each currency.
#[utoipa::path(
    get, path = "/v1/reports/sales", tag = "operators", params(BucketsQuery),
    responses((status = OK, description = "The report", body = Bucketed<Currencies>), TooMuch)
)]
pub async fn sales(
    State(app): State<Arc<App>>,
    query: Result<Query<BucketsQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let range = buckets(&parameters(query)?)?;
    app.check_views()?;
    let sales = app.views.sales(range).await?;
    let currencies: BTreeSet<Currency> = sales.keys().map(|(_, currency)| *currency).collect();
    let of_bucket = |from| {
        Currencies::of(&currencies, |it| sales.get(&(from, it)).copied().unwrap_or_default())
    };
    let buckets = range.starts().map(|from| Bucket { from, content: of_bucket(from) });
    let total = Currencies::of(&currencies, |it| sum(sales.iter().filter(|(key, _)| key.1 == it)));
    let (by, from, to) = (range.by, range.from, range.to);
    Ok(answer(Bucketed { by, from, to, buckets: buckets.collect(), total }))
}

/// How payments went.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Payments {
    paid: i64,
    declined: i64,
    /// Absent where nothing was tried.
    success_rate: Option<f64>,
}

impl Payments {
    fn new(paid: i64, declined: i64) -> Self {
        let tried = paid + declined;
        #[expect(clippy::cast_precision_loss, reason = "numbers of orders")]
        let success_rate = (tried > 0).then(|| paid as f64 / tried as f64);
        Self { paid, declined, success_rate }
    }
}

/// All payments, and those by card among them: one on account is never declined.
#[derive(Debug, Serialize, ToSchema)]
struct AllPayments {
    #[serde(flatten)]
    all: Payments,
    card: Payments,
}

impl From<Sales> for AllPayments {
    fn from(sales: Sales) -> Self {
        Self {
            all: Payments::new(sales.orders, sales.declined),
            card: Payments::new(sales.by_card, sales.declined),
        }
    }
}

/// How payments went in each bucket of time.
#[utoipa::path(
    get, path = "/v1/reports/payments", tag = "operators", params(BucketsQuery),
    responses((status = OK, description = "The report", body = Bucketed<AllPayments>), TooMuch)
)]
pub async fn payments(
    State(app): State<Arc<App>>,
    query: Result<Query<BucketsQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let range = buckets(&parameters(query)?)?;
    app.check_views()?;
    let sales = app.views.sales(range).await?;
    let total = sum(sales.iter()).into();
    let mut by_bucket: BTreeMap<DateTime<Utc>, Sales> = BTreeMap::new();
    for ((from, _), sales) in &sales {
        *by_bucket.entry(*from).or_default() += *sales;
    }
    let buckets = range.starts().map(|from| Bucket {
        from,
        content: AllPayments::from(by_bucket.get(&from).copied().unwrap_or_default()),
    });
    let (by, from, to) = (range.by, range.from, range.to);
    Ok(answer(Bucketed { by, from, to, buckets: buckets.collect(), total }))
}

fn sum<'a>(sales: impl Iterator<Item = (&'a (DateTime<Utc>, Currency), &'a Sales)>) -> Sales {
    sales.fold(Sales::default(), |mut sum, (_, sales)| {
        sum += *sales;
        sum
    })
}
