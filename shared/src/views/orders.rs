//! Lists of orders, newest first: of each customer, and of each day for who asks for all.
//!
//! A list is one sorted set for each status, so that a filter reads only what it wants, however long
//! the list is. All sets of a list lie in one hash slot: an order is moved between them, and several
//! are read together, in one step. A member is a [`Place`]; it never changes, and all have the score
//! 0: so a set is in the order of its bytes, which is that of time.

mod place;
mod shelve;

use std::collections::BTreeSet;

use chrono::{DateTime, NaiveDate, Utc};
use fred::interfaces::SortedSetsInterface as _;
use fred::types::sorted_sets::{ZRange, ZRangeBound, ZRangeKind, ZSort};
use futures_util::future::try_join_all;
use serde::Deserialize;

pub use place::Place;
pub(super) use shelve::{FIND, NEWER, SHELVE};

use super::{Generations, ViewError, Views};
use crate::ids::CustomerId;
use crate::message::Subject;
use crate::order::OrderStatus;

/// Of each set: how many members there are in a range, and the first that follow a place.
pub(super) const BROWSE: &str = "
local found = {}
for i, key in ipairs(KEYS) do
  local count = redis.call('ZLEXCOUNT', key, ARGV[1], ARGV[2])
  -- A customer's orders are in few of the sets.
  found[i] = count == 0 and {}
    or redis.call('ZRANGE', key, ARGV[3], ARGV[1], 'BYLEX', 'REV', 'LIMIT', 0, ARGV[4])
  table.insert(found[i], 1, tostring(count))
end
return found";

/// Days that are looked up, and read, at a time.
const DAYS: usize = 32;

/// A list of orders.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OrderList {
    /// Those of a customer.
    Of(CustomerId),
    /// Those that were placed on a day (UTC).
    On(NaiveDate),
}

/// Which orders of a list are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrderFilter {
    /// Those that are in one of these now; all, if there are none.
    pub statuses: BTreeSet<OrderStatus>,
    /// Placed then or later.
    pub from: Option<DateTime<Utc>>,
    /// Placed before.
    pub to: Option<DateTime<Utc>>,
}

/// An order in a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrderEntry {
    /// Its place.
    pub place: Place,
    /// The set that it was found in.
    pub status: OrderStatus,
}

/// A page of a list of orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderPage {
    /// The documents' texts. There may be fewer than were asked for, and more on the next page: an
    /// order that is just leaving the wanted status is left out.
    pub items: Vec<String>,
    /// What the next page comes after; absent at the end.
    pub next: Option<Place>,
    /// How many orders the whole list has that fit the filter; not counted over all customers.
    pub count: Option<u64>,
}

#[derive(Deserialize)]
struct Standing {
    status: OrderStatus,
}

impl OrderFilter {
    fn sets(&self) -> Vec<OrderStatus> {
        let wanted = |it: &OrderStatus| self.statuses.is_empty() || self.statuses.contains(it);
        OrderStatus::ALL.into_iter().filter(wanted).collect()
    }
}

impl Views {
    fn order_set(&self, generation: u64, list: &OrderList, status: OrderStatus) -> String {
        let (ns, status) = (&self.namespace, status.as_str());
        match list {
            OrderList::Of(customer) => {
                format!("{ns}:{generation}:orders-of:{{{customer}}}:{status}")
            }
            OrderList::On(day) => format!("{ns}:{generation}:orders-on:{{{day}}}:{status}"),
        }
    }

    fn order_days_key(&self, generation: u64) -> String {
        format!("{}:{generation}:order-days", self.namespace)
    }

    /// The orders of a customer, newest first.
    pub async fn customer_orders(
        &self,
        customer: &CustomerId,
        filter: &OrderFilter,
        after: Option<&Place>,
        limit: usize,
    ) -> Result<OrderPage, ViewError> {
        let list = &OrderList::Of(customer.clone());
        self.read(|generation| async move {
            let browse = || self.browse(generation, list, filter, after, limit + 1);
            let (count, entries) = self.with_scripts(browse).await?;
            let (page, now) = self.order_page(generation, filter, entries, limit).await?;
            Ok((OrderPage { count: Some(count), ..page }, now))
        })
        .await
    }

    /// The orders of all customers, newest first.
    pub async fn all_orders(
        &self,
        filter: &OrderFilter,
        after: Option<&Place>,
        limit: usize,
    ) -> Result<OrderPage, ViewError> {
        self.read(|generation| async move {
            let browse = || self.browse_days(generation, filter, after, limit + 1);
            let entries = self.with_scripts(browse).await?;
            self.order_page(generation, filter, entries, limit).await
        })
        .await
    }

    /// What a list has after a place, in whichever of its sets.
    pub async fn order_entries(
        &self,
        list: &OrderList,
        after: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<OrderEntry>, ViewError> {
        let filter = &OrderFilter::default();
        self.read(|generation| async move {
            let browse = || self.browse(generation, list, filter, after, limit);
            let browsed = Box::pin(self.and_marker(self.with_scripts(browse)));
            let ((_, entries), now) = browsed.await?;
            Ok((entries, now))
        })
        .await
    }

    /// Up to `limit` days on which orders were placed, the last first.
    pub async fn order_days(
        &self,
        before: Option<NaiveDate>,
        limit: usize,
    ) -> Result<Vec<NaiveDate>, ViewError> {
        let days = |generation| self.days(generation, None, (before, false), limit);
        self.read(|generation| Box::pin(self.and_marker(days(generation)))).await
    }

    /// How many orders of a list fit the filter, and the first `limit` of them after a place.
    async fn browse(
        &self,
        generation: u64,
        list: &OrderList,
        filter: &OrderFilter,
        after: Option<&Place>,
        limit: usize,
    ) -> Result<(u64, Vec<OrderEntry>), ViewError> {
        let statuses = filter.sets();
        let keys: Vec<String> =
            statuses.iter().map(|status| self.order_set(generation, list, *status)).collect();
        let [low, high, next] = place::bounds((filter.from, filter.to), after);
        let words = vec![low, high, next, limit.to_string()];
        let found: Vec<Vec<String>> = self.ask(&self.scripts.browse, keys, words).await?;
        let damaged = || ViewError::Damaged(format!("{list:?}"));
        let (mut count, mut entries) = (0, Vec::new());
        for (status, set) in statuses.into_iter().zip(found) {
            let mut set = set.into_iter();
            count += set.next().and_then(|count| count.parse::<u64>().ok()).ok_or_else(damaged)?;
            for member in set {
                let place = Place::parse(&member).ok_or_else(damaged)?;
                entries.push(OrderEntry { place, status });
            }
        }
        entries.sort_unstable_by(|a, b| b.cmp(a));
        entries.truncate(limit);
        Ok((count, entries))
    }

    /// As [`Views::browse`], over the lists of all days, without a count.
    async fn browse_days(
        &self,
        generation: u64,
        filter: &OrderFilter,
        after: Option<&Place>,
        limit: usize,
    ) -> Result<Vec<OrderEntry>, ViewError> {
        let day = |time: DateTime<Utc>| time.date_naive();
        let first = filter.from.map(day);
        let mut last =
            (filter.to.into_iter().chain(after.map(Place::placed_at)).min().map(day), true);
        let mut entries = Vec::new();
        // The newest day has enough, most often; where a filter finds little, more are read at once.
        let mut at_a_time = 1;
        while entries.len() < limit {
            let days = self.days(generation, first, last, at_a_time).await?;
            let lists: Vec<OrderList> = days.iter().copied().map(OrderList::On).collect();
            let browsed = lists.iter().map(|it| self.browse(generation, it, filter, after, limit));
            entries.extend(try_join_all(browsed).await?.into_iter().flat_map(|(_, found)| found));
            if days.len() < at_a_time {
                break;
            }
            last = (days.last().copied(), false);
            at_a_time = (at_a_time * 2).min(DAYS);
        }
        entries.truncate(limit);
        Ok(entries)
    }

    /// Days of orders from `first` to `last`, which is included or not, the last first.
    async fn days(
        &self,
        generation: u64,
        first: Option<NaiveDate>,
        (last, included): (Option<NaiveDate>, bool),
        limit: usize,
    ) -> Result<Vec<NaiveDate>, ViewError> {
        let bound = |day: Option<NaiveDate>, otherwise, kind| ZRange {
            kind,
            range: day.map_or(otherwise, |day| ZRangeBound::Lex(day.to_string())),
        };
        let first = bound(first, ZRangeBound::NegInfinityLex, ZRangeKind::Inclusive);
        let kind = if included { ZRangeKind::Inclusive } else { ZRangeKind::Exclusive };
        let last = bound(last, ZRangeBound::InfiniteLex, kind);
        let key = self.order_days_key(generation);
        let limit = Some((0, i64::try_from(limit).unwrap_or(i64::MAX)));
        let days: Vec<String> =
            self.redis.zrange(&key, last, first, Some(ZSort::ByLex), true, limit, false).await?;
        days.iter().map(|day| day.parse().map_err(|_| ViewError::Damaged(key.clone()))).collect()
    }

    /// The page of these entries; of one more than `limit` there is a next page.
    async fn order_page(
        &self,
        generation: u64,
        filter: &OrderFilter,
        mut entries: Vec<OrderEntry>,
        limit: usize,
    ) -> Result<(OrderPage, Generations), ViewError> {
        let more = entries.len() > limit;
        entries.truncate(limit);
        let next = entries.last().map(|entry| entry.place.clone()).filter(|_| more);
        let keys: Vec<String> = entries
            .iter()
            .map(|entry| self.key(generation, Subject::Order, &entry.place.order().to_string()))
            .collect();
        let wanted = |json: &String| {
            filter.statuses.is_empty()
                || serde_json::from_str::<Standing>(json)
                    .is_ok_and(|order| filter.statuses.contains(&order.status))
        };
        let (found, now) = self.documents(&keys).await?;
        let items =
            found.into_iter().flatten().map(|document| document.json).filter(wanted).collect();
        Ok((OrderPage { items, next, count: None }, now))
    }
}
