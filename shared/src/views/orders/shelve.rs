//! Putting orders where they belong in their lists.

use std::collections::BTreeSet;

use fred::interfaces::{LuaInterface as _, SortedSetsInterface as _};
use fred::types::Value;

use super::{OrderList, Place};
use crate::order::OrderStatus;
use crate::views::batch::{Seen, Shown};
use crate::views::scripts::Item;
use crate::views::{ViewError, Views};

/// Puts orders (place, and how many of its sets it has left behind, after each other) where they
/// belong. Each has as many keys: the first is the set that it belongs in; it is taken out of the
/// next ones, which it has left, unless it is in one of the others: then a newer event has put it
/// there. This needs no version, since no order has a status again that it has left.
pub(in crate::views) const SHELVE: &str = "
local sets = #KEYS / (#ARGV / 2)
for i = 1, #ARGV / 2 do
  local place, left, first = ARGV[2 * i - 1], tonumber(ARGV[2 * i]), (i - 1) * sets + 1
  local later = false
  for at = first + left + 1, first + sets - 1 do
    later = later or redis.call('ZSCORE', KEYS[at], place)
  end
  if not later then
    for at = first + 1, first + left do redis.call('ZREM', KEYS[at], place) end
    redis.call('ZADD', KEYS[first], 0, place)
  end
end
return 1";

/// In which of the sets an order is.
pub(in crate::views) const FIND: &str = "
local found = {}
for i, key in ipairs(KEYS) do
  if redis.call('ZSCORE', key, ARGV[1]) then found[#found + 1] = i - 1 end
end
return found";

impl Shown {
    fn place(&self) -> Place {
        Place::new(self.placed_at, self.order_id)
    }

    fn day(&self) -> String {
        self.placed_at.date_naive().to_string()
    }

    fn lists(&self) -> [OrderList; 2] {
        [OrderList::Of(self.customer_id.clone()), OrderList::On(self.placed_at.date_naive())]
    }

    fn has_left(&self, status: OrderStatus) -> bool {
        status != self.status && self.timeline.iter().any(|step| step.status == status)
    }

    /// All statuses: the order's own, then those that it has left, so many, then all others.
    fn statuses(&self) -> (usize, Vec<OrderStatus>) {
        let others = OrderStatus::ALL.into_iter().filter(|it| *it != self.status);
        let (left, others): (Vec<_>, Vec<_>) = others.partition(|it| self.has_left(*it));
        (left.len(), [vec![self.status], left, others].concat())
    }
}

impl Views {
    /// Puts orders where they belong in their customers' lists and in those of their days.
    pub(in crate::views) async fn shelve(
        &self,
        generation: u64,
        orders: &[Seen],
    ) -> Result<(), ViewError> {
        let moves = orders.iter().flat_map(|Seen { order, .. }| {
            let (left, statuses) = order.statuses();
            let words = [order.place().to_string(), left.to_string()].map(Value::from).to_vec();
            order.lists().map(|list| {
                let set = |status: &OrderStatus| self.order_set(generation, &list, *status);
                Item { keys: statuses.iter().map(set).collect(), words: words.clone() }
            })
        });
        let days: BTreeSet<String> = orders.iter().map(|seen| seen.order.day()).collect();
        let days: Vec<(f64, String)> = days.into_iter().map(|day| (0.0, day)).collect();
        let known = async {
            if days.is_empty() {
                return Ok(());
            }
            let key = self.order_days_key(generation);
            Ok(self.redis.zadd::<(), _, _>(key, None, None, false, false, days).await?)
        };
        tokio::try_join!(self.each(&self.scripts.shelve, moves), known).map(|_| ())
    }

    /// Which list does not have an order in its place, or in a later one.
    pub(in crate::views) async fn misplaced(
        &self,
        generation: u64,
        order: &Shown,
    ) -> Result<Option<String>, ViewError> {
        let place = order.place().to_string();
        for list in order.lists() {
            let set = |status| self.order_set(generation, &list, status);
            let keys = OrderStatus::ALL.map(set).to_vec();
            let found: Vec<usize> = self
                .redis
                .evalsha(self.scripts.find.sha1().clone(), keys, vec![place.clone()])
                .await?;
            let right = match found.as_slice() {
                [one] => OrderStatus::ALL.get(*one).is_some_and(|status| !order.has_left(*status)),
                _ => false,
            };
            if !right {
                return Ok(Some(format!("{place} in {}", set(order.status))));
            }
        }
        let (days, day) = (self.order_days_key(generation), order.day());
        let known: Option<f64> = self.redis.zscore(days.as_str(), day.as_str()).await?;
        Ok(known.is_none().then(|| format!("{day} in {days}")))
    }
}
