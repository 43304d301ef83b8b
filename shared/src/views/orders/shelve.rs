//! Putting orders where they belong in their lists.

use chrono::{DateTime, Utc};
use fred::interfaces::{LuaInterface as _, SortedSetsInterface as _};
use futures_util::future::try_join_all;
use serde::Deserialize;

use super::{OrderList, Place};
use crate::ids::{CustomerId, OrderId};
use crate::order::{OrderStatus, Step};
use crate::views::{ViewError, Views};

/// Puts an order into the first set and takes it out of those that it has left behind (the next
/// `ARGV[2]`), unless it is in one of the others: then a newer event has put it there. This needs no
/// version, since no order has a status again that it has left.
pub(in crate::views) const SHELVE: &str = "
local left = tonumber(ARGV[2])
for i = 2 + left, #KEYS do
  if redis.call('ZSCORE', KEYS[i], ARGV[1]) then return 0 end
end
for i = 2, 1 + left do redis.call('ZREM', KEYS[i], ARGV[1]) end
redis.call('ZADD', KEYS[1], 0, ARGV[1])
return 1";

/// In which of the sets an order is.
pub(in crate::views) const FIND: &str = "
local found = {}
for i, key in ipairs(KEYS) do
  if redis.call('ZSCORE', key, ARGV[1]) then found[#found + 1] = i - 1 end
end
return found";

/// What the lists need of an order.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::views) struct Listed {
    order_id: OrderId,
    customer_id: CustomerId,
    status: OrderStatus,
    placed_at: DateTime<Utc>,
    timeline: Vec<Step>,
}

impl Listed {
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
    /// Puts an order where it belongs in its customer's list and in that of its day.
    pub(in crate::views) async fn shelve(
        &self,
        generation: u64,
        order: &Listed,
    ) -> Result<(), ViewError> {
        let (left, statuses) = order.statuses();
        let moves = order.lists().map(|list| {
            let set = |status: &OrderStatus| self.order_set(generation, &list, *status);
            let keys: Vec<String> = statuses.iter().map(set).collect();
            let arguments = vec![order.place().to_string(), left.to_string()];
            self.redis.evalsha::<(), _, _, _>(self.scripts.shelve.sha1().clone(), keys, arguments)
        });
        let days = self.order_days_key(generation);
        let day = self.redis.zadd::<(), _, _>(days, None, None, false, false, (0.0, order.day()));
        Ok(tokio::try_join!(try_join_all(moves), day).map(|_| ())?)
    }

    /// Which list does not have an order in its place, or in a later one.
    pub(in crate::views) async fn misplaced(
        &self,
        generation: u64,
        order: &Listed,
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
