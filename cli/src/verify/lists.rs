//! The lists in Redis hold exactly the orders of each customer, newest first, and the products.

use std::fmt;

use anyhow::Result;
use futures_util::{StreamExt as _, TryStreamExt as _};
use millrace_shared::message::now;
use millrace_shared::views::{Page, ViewError};
use serde::Deserialize;
use sqlx::types::chrono::{DateTime, Utc};

use super::Data;
use super::engine::{AT_A_TIME, Check, Found, PAGE};

/// A list.
#[derive(Debug, Clone)]
pub enum List {
    Products,
    OrdersOf(String),
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Products => f.write_str("the list of products"),
            Self::OrdersOf(customer) => write!(f, "the orders of customer {customer}"),
        }
    }
}

/// What of a document tells its place in a list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    order_id: Option<String>,
    product_id: Option<String>,
    placed_at: Option<DateTime<Utc>>,
}

/// The check of the lists.
pub struct Lists {
    data: Data,
}

impl Lists {
    pub fn new(data: Data) -> Self {
        Self { data }
    }

    /// The first place where a list is not what the journal has. Orders that are younger than the
    /// settling time may be in the one and not yet in the other.
    async fn compare(&self, list: &List) -> Result<Option<String>> {
        let old = now() - self.data.settle;
        let query = match list {
            List::Products => sqlx::query_scalar::<_, String>(
                "select product_id from journal.products order by product_id collate \"C\"",
            ),
            List::OrdersOf(customer) => sqlx::query_scalar(
                "select order_id::text from journal.orders
                 where customer_id = $1 and placed_at <= $2
                 order by placed_at desc, order_id desc",
            )
            .bind(customer)
            .bind(old),
        };
        let mut expected = query.fetch(&self.data.pool);
        let mut cursor = None;
        loop {
            let page = match self.page(list, cursor.as_deref()).await {
                Ok(page) => page,
                Err(ViewError::Absent) => Page { items: Vec::new(), next_cursor: None },
                Err(error) => return Err(error.into()),
            };
            for item in &page.items {
                let item: Item = serde_json::from_str(item)?;
                if item.placed_at.is_some_and(|at| at > old) {
                    continue;
                }
                let id = item.order_id.or(item.product_id).unwrap_or_default();
                let next = expected.try_next().await?;
                if next.as_ref() != Some(&id) {
                    let next = next.unwrap_or_else(|| "its end".to_owned());
                    return Ok(Some(format!("it has {id} where the journal has {next}")));
                }
            }
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        let missing = expected.try_next().await?;
        Ok(missing.map(|id| format!("it ends where the journal has {id}")))
    }

    async fn page(&self, list: &List, cursor: Option<&str>) -> Result<Page, ViewError> {
        match list {
            List::Products => self.data.views.products(cursor, PAGE as usize).await,
            List::OrdersOf(customer) => match customer.parse() {
                Ok(customer) => {
                    self.data.views.customer_orders(&customer, None, cursor, PAGE as usize).await
                }
                // No order of the journal has such a customer.
                Err(_) => Ok(Page { items: Vec::new(), next_cursor: None }),
            },
        }
    }
}

impl Check for Lists {
    type Key = List;
    const NAME: &'static str = "lists";
    const PROMISE: &'static str = "list in Redis has exactly a customer's orders, or the products";

    async fn scan(&self, found: &mut Found<List>) -> Result<()> {
        found.note(1, self.examine(&[List::Products]).await?);
        let mut after = String::new();
        loop {
            let customers: Vec<String> = sqlx::query_scalar(
                "select distinct customer_id from journal.orders where customer_id > $1
                 order by customer_id limit $2",
            )
            .bind(&after)
            .bind(i64::from(PAGE))
            .fetch_all(&self.data.pool)
            .await?;
            let Some(last) = customers.last() else { return Ok(()) };
            after.clone_from(last);
            let lists: Vec<List> = customers.into_iter().map(List::OrdersOf).collect();
            found.note(lists.len(), self.examine(&lists).await?);
        }
    }

    async fn examine(&self, keys: &[List]) -> Result<Vec<(List, String)>> {
        let found = futures_util::stream::iter(keys.to_vec())
            .map(async |list| {
                let problem = self.compare(&list).await?;
                anyhow::Ok(problem.map(|problem| (list, problem)))
            })
            .buffered(AT_A_TIME as usize);
        Ok(found.try_collect::<Vec<_>>().await?.into_iter().flatten().collect())
    }
}
