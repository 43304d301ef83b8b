//! The products and brands that sell best.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::Response;
use chrono::{DateTime, Utc};
use futures_util::future::try_join_all;
use millrace_shared::message::Subject;
use millrace_shared::money::{Currency, Money, codes};
use millrace_shared::views::Sold;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{TooMuch, answer, hours};
use crate::App;
use crate::error::Problem;
use crate::reading::limit;
use crate::request::parameters;

/// Which of the best are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TopQuery {
    /// Widened to a whole hour. 24 hours before the end if it is not said.
    from: Option<DateTime<Utc>>,
    /// Widened likewise, and not in the range; now if it is not said.
    to: Option<DateTime<Utc>>,
    /// The items of each currency, at the most.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// What the best have most of; `amount` if it is not said.
    #[param(inline)]
    by: Option<Rank>,
}

/// What the best have most of.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Rank {
    #[default]
    Amount,
    Units,
}

/// The best in each currency: amounts of two currencies cannot be compared.
#[derive(Debug, Serialize, ToSchema)]
struct Top<T> {
    by: Rank,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    currencies: Vec<TopIn<T>>,
}

#[derive(Debug, Serialize, ToSchema)]
struct TopIn<T> {
    #[schema(schema_with = codes)]
    currency: Currency,
    items: Vec<T>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct TopProduct {
    product_id: String,
    /// As the catalogue has it now; what an order was billed as stands in the order.
    #[schema(required)]
    name: Option<String>,
    #[schema(required)]
    brand: Option<String>,
    units: i64,
    amount: Money,
}

#[derive(Debug, Serialize, ToSchema)]
struct TopBrand {
    brand: String,
    units: i64,
    amount: Money,
}

/// What of a product's view is shown.
#[derive(Debug, Default, Deserialize)]
struct Named {
    name: Option<String>,
    brand: Option<String>,
}

/// The products that were paid for most.
#[utoipa::path(
    get, path = "/v1/reports/top-products", tag = "operators", params(TopQuery),
    responses((status = OK, description = "The report", body = Top<TopProduct>), TooMuch)
)]
pub async fn top_products(
    State(app): State<Arc<App>>,
    query: Result<Query<TopQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let top = top(&app, parameters(query)?, |sold| sold.product_id).await?;
    let ids = top.currencies.iter().flat_map(|it| it.items.iter().map(|(id, ..)| id));
    let names = try_join_all(ids.map(async |id| {
        let document = app.views.document(Subject::Product, id).await?;
        let named = document.and_then(|it| serde_json::from_str::<Named>(&it.json).ok());
        Ok::<_, Problem>(named.unwrap_or_default())
    }));
    let mut names = names.await?.into_iter();
    Ok(answer(top.map(|(product_id, units, amount)| {
        let Named { name, brand } = names.next().unwrap_or_default();
        TopProduct { product_id, name, brand, units, amount }
    })))
}

/// The brands that were paid for most.
#[utoipa::path(
    get, path = "/v1/reports/top-brands", tag = "operators", params(TopQuery),
    responses((status = OK, description = "The report", body = Top<TopBrand>), TooMuch)
)]
pub async fn top_brands(
    State(app): State<Arc<App>>,
    query: Result<Query<TopQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let top = top(&app, parameters(query)?, |sold| sold.brand).await?;
    Ok(answer(top.map(|(brand, units, amount)| TopBrand { brand, units, amount })))
}

type Ranked = (String, i64, Money);

async fn top(
    app: &App,
    query: TopQuery,
    key: impl Fn(Sold) -> String,
) -> Result<Top<Ranked>, Problem> {
    let (by, limit) = (query.by.unwrap_or_default(), limit(query.limit)?);
    let range = hours(query.from, query.to)?;
    app.check_views()?;
    let mut sums: BTreeMap<Currency, HashMap<String, (i64, i64)>> = BTreeMap::new();
    for sold in app.views.sold(range).await? {
        let (currency, price, more) = (sold.currency, sold.unit_price, sold.units);
        let (units, amount) = sums.entry(currency).or_default().entry(key(sold)).or_default();
        let sum = price.checked_mul(more).and_then(|price| amount.checked_add(price));
        *amount = sum.ok_or_else(Problem::internal)?;
        *units = units.checked_add(more).ok_or_else(Problem::internal)?;
    }
    let best = |sums: HashMap<String, (i64, i64)>, currency| {
        let mut items: Vec<Ranked> = sums
            .into_iter()
            .map(|(key, (units, amount))| (key, units, Money::new(amount, currency)))
            .collect();
        items.sort_unstable_by(|a, b| {
            let [amount, units] = [b.2.amount.cmp(&a.2.amount), b.1.cmp(&a.1)];
            let order = match by {
                Rank::Amount => amount.then(units),
                Rank::Units => units.then(amount),
            };
            order.then_with(|| a.0.cmp(&b.0))
        });
        items.truncate(limit);
        items
    };
    let currencies = sums
        .into_iter()
        .map(|(currency, sums)| TopIn { currency, items: best(sums, currency) })
        .collect();
    Ok(Top { by, from: range.from, to: range.to, currencies })
}

impl<T> Top<T> {
    fn map<U>(self, mut change: impl FnMut(T) -> U) -> Top<U> {
        let currencies = self.currencies.into_iter().map(|TopIn { currency, items }| TopIn {
            currency,
            items: items.into_iter().map(&mut change).collect(),
        });
        let currencies = currencies.collect();
        Top { by: self.by, from: self.from, to: self.to, currencies }
    }
}
