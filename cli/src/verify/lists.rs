//! The lists in Redis hold exactly the orders of each customer and of each day, newest first and each
//! in its status, and the products.

use std::fmt;

use anyhow::Result;
use futures_util::{StreamExt as _, TryStreamExt as _};
use millrace_shared::ids::OrderId;
use millrace_shared::message::{Subject, now};
use millrace_shared::order::Order;
use millrace_shared::views::{OrderEntry, OrderList, ViewError};
use serde::Deserialize;
use sqlx::types::Uuid;
use sqlx::types::chrono::{DateTime, NaiveDate, Utc};

use super::Data;
use super::engine::{AT_A_TIME, Check, Found, PAGE};

/// A list.
#[derive(Debug, Clone)]
pub enum List {
    Products,
    Days,
    Orders(OrderList),
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Products => f.write_str("the list of products"),
            Self::Days => f.write_str("the list of days that have orders"),
            Self::Orders(OrderList::Of(customer)) => write!(f, "the orders of customer {customer}"),
            Self::Orders(OrderList::On(day)) => write!(f, "the orders of {day}"),
        }
    }
}

/// An order as the journal has it.
#[derive(sqlx::FromRow)]
struct Recorded {
    order_id: Uuid,
    status: String,
    placed_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

/// The check of the lists.
pub struct Lists {
    data: Data,
}

impl Lists {
    pub fn new(data: Data) -> Self {
        Self { data }
    }

    /// What is younger may be in the one and not yet in the other.
    fn old(&self) -> DateTime<Utc> {
        now() - self.data.settle
    }

    /// The first place where a list is not what the journal has.
    async fn compare(&self, list: &List) -> Result<Option<String>> {
        let compared = match list {
            List::Products => self.compare_products().await,
            List::Days => self.compare_days().await,
            List::Orders(list) => self.compare_orders(list).await,
        };
        compared.or_else(|error| match error.downcast_ref::<ViewError>() {
            Some(ViewError::Damaged(what)) => Ok(Some(format!("it cannot be read: {what}"))),
            _ => Err(error),
        })
    }

    async fn compare_products(&self) -> Result<Option<String>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Item {
            product_id: String,
        }
        let mut expected = sqlx::query_scalar::<_, String>(
            "select product_id from journal.products order by product_id collate \"C\"",
        )
        .fetch(&self.data.pool);
        let mut cursor = None;
        loop {
            let page =
                or_nothing(self.data.views.products(cursor.as_deref(), PAGE as usize).await)?;
            for item in &page.items {
                let Item { product_id } = serde_json::from_str(item)?;
                let next = expected.try_next().await?;
                if next.as_ref() != Some(&product_id) {
                    let next = next.unwrap_or_else(|| "its end".to_owned());
                    return Ok(Some(format!("it has {product_id} where the journal has {next}")));
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

    async fn compare_days(&self) -> Result<Option<String>> {
        let old = self.old();
        let mut day = None;
        loop {
            let next = self.day_before(day, old).await?;
            let listed = or_nothing(self.data.views.order_days(day, 3).await)?;
            let listed = listed.into_iter().find(|it| *it <= old.date_naive());
            match (listed, next) {
                (None, None) => return Ok(None),
                (Some(listed), Some(next)) if listed == next => day = Some(next),
                // The first orders of a day that has just begun.
                (Some(listed), _) if listed == old.date_naive() => day = Some(listed),
                (listed, next) => {
                    let name = |day: Option<NaiveDate>| {
                        day.map_or_else(|| "its end".to_owned(), |day| day.to_string())
                    };
                    let (listed, next) = (name(listed), name(next));
                    return Ok(Some(format!("it has {listed} where the journal has {next}")));
                }
            }
        }
    }

    /// The last day before another that has orders, by the journal.
    async fn day_before(
        &self,
        day: Option<NaiveDate>,
        old: DateTime<Utc>,
    ) -> Result<Option<NaiveDate>> {
        let last: Option<DateTime<Utc>> = sqlx::query_scalar(
            "select max(placed_at) from journal.orders
             where placed_at <= $1 and placed_at < coalesce($2::timestamp, 'infinity') at time zone 'UTC'",
        )
        .bind(old)
        .bind(day.map(|day| day.and_time(sqlx::types::chrono::NaiveTime::MIN)))
        .fetch_one(&self.data.pool)
        .await?;
        Ok(last.map(|last| last.date_naive()))
    }

    async fn compare_orders(&self, list: &OrderList) -> Result<Option<String>> {
        let old = self.old();
        let query = match list {
            OrderList::Of(customer) => sqlx::query_as::<_, Recorded>(
                "select order_id, status, placed_at, updated_at from journal.orders
                 where placed_at <= $1 and customer_id = $2
                 order by placed_at desc, order_id desc",
            )
            .bind(old)
            .bind(customer.as_str()),
            OrderList::On(day) => sqlx::query_as(
                "select order_id, status, placed_at, updated_at from journal.orders
                 where placed_at <= $1 and placed_at >= $2::date::timestamp at time zone 'UTC'
                   and placed_at < ($2::date + 1)::timestamp at time zone 'UTC'
                 order by placed_at desc, order_id desc",
            )
            .bind(old)
            .bind(day),
        };
        let mut expected = query.fetch(&self.data.pool);
        let mut after = None;
        loop {
            let page = or_nothing(
                self.data.views.order_entries(list, after.as_ref(), PAGE as usize).await,
            )?;
            for entry in page.iter().filter(|entry| entry.place.placed_at() <= old) {
                let next = expected.try_next().await?;
                let id = entry.place.order();
                match next {
                    Some(next)
                        if next.order_id == id.0 && next.placed_at == entry.place.placed_at() =>
                    {
                        if next.status != entry.status.as_str()
                            && next.updated_at <= old
                            && !self.has_just_changed(id, old).await?
                        {
                            let (found, right) = (entry.status.as_str(), next.status);
                            return Ok(Some(format!(
                                "it has {id} as {found}, and the journal as {right}"
                            )));
                        }
                    }
                    next => {
                        let next =
                            next.map_or_else(|| "its end".to_owned(), |it| it.order_id.to_string());
                        return Ok(Some(format!("it has {id} where the journal has {next}")));
                    }
                }
            }
            after = page.last().map(|OrderEntry { place, .. }| place.clone());
            if page.len() < PAGE as usize {
                break;
            }
        }
        let missing = expected.try_next().await?;
        Ok(missing.map(|missing| format!("it ends where the journal has {}", missing.order_id)))
    }

    /// Whether the journal may not know of an order's last step yet.
    async fn has_just_changed(&self, id: OrderId, old: DateTime<Utc>) -> Result<bool> {
        let document = self.data.views.document(Subject::Order, &id.to_string()).await?;
        let order = document.and_then(|it| serde_json::from_str::<Order>(&it.json).ok());
        Ok(order.is_some_and(|order| order.updated_at > old))
    }
}

/// Where there are no views there are no lists.
fn or_nothing<T: Default>(read: Result<T, ViewError>) -> Result<T, ViewError> {
    match read {
        Err(ViewError::Absent) => Ok(T::default()),
        read => read,
    }
}

impl Check for Lists {
    type Key = List;
    const NAME: &'static str = "lists";
    const PROMISE: &'static str = "list in Redis has exactly a customer's or a day's orders, in their statuses, or the products";

    async fn scan(&self, found: &mut Found<List>) -> Result<()> {
        found.note(2, self.examine(&[List::Products, List::Days]).await?);
        let mut day = None;
        loop {
            day = self.day_before(day, now()).await?;
            let Some(day) = day else { break };
            found.note(1, self.examine(&[List::Orders(OrderList::On(day))]).await?);
        }
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
            // No order of the journal has a customer whose id is none.
            let lists: Vec<List> = customers
                .iter()
                .filter_map(|customer| Some(List::Orders(OrderList::Of(customer.parse().ok()?))))
                .collect();
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
