//! Putting orders where they belong in their lists.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use fred::interfaces::{LuaInterface as _, SortedSetsInterface as _};
use futures_util::future::try_join_all;

use super::{OrderList, Place};
use crate::message::Subject;
use crate::order::OrderStatus;
use crate::views::batch::{Seen, Shown};
use crate::views::scripts::Item;
use crate::views::{ViewError, Views};

/// Moves orders between the sets of lists. For each key: `ZADD` or `ZREM`, how many words follow, and
/// these.
pub(in crate::views) const SHELVE: &str = "
local at = 1
for _, key in ipairs(KEYS) do
  local last = at + 1 + tonumber(ARGV[at + 1])
  redis.call(ARGV[at], key, unpack(ARGV, at + 2, last))
  at = last + 1
end
return {}";

/// Which of the documents (the places of their keys) are newer than these versions.
pub(in crate::views) const NEWER: &str = "
local newer = {}
for i, key in ipairs(KEYS) do
  local version = string.match(redis.call('GETRANGE', key, 0, 19), '^%d+')
  if version and tonumber(version) > tonumber(ARGV[i]) then newer[#newer + 1] = i end
end
return newer";

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
}

/// What is done to one list: places that come into a set, and that leave it.
#[derive(Default)]
struct Moves {
    come: BTreeMap<OrderStatus, Vec<String>>,
    leave: BTreeMap<OrderStatus, Vec<String>>,
}

impl Views {
    /// Puts orders where they belong in their customers' lists and in those of their days, and takes
    /// them out of what they have left. Their documents are written before.
    ///
    /// Another writer may be on the way with a newer event of the same order; then
    /// [`Views::unshelve`] must come after this.
    pub(in crate::views) async fn shelve(
        &self,
        generation: u64,
        orders: &[Seen],
    ) -> Result<(), ViewError> {
        let mut lists: HashMap<OrderList, Moves> = HashMap::new();
        for Seen { order, .. } in orders {
            for list in order.lists() {
                let moves = lists.entry(list).or_default();
                moves.come.entry(order.status).or_default().push(order.place().to_string());
                for status in OrderStatus::ALL.into_iter().filter(|it| order.has_left(*it)) {
                    moves.leave.entry(status).or_default().push(order.place().to_string());
                }
            }
        }
        let moves = lists.into_iter().map(|(list, moves)| {
            let mut item = Item { keys: Vec::new(), words: Vec::new() };
            for (status, places) in moves.come {
                item.keys.push(self.order_set(generation, &list, status));
                let scored = places.into_iter().flat_map(|place| ["0".to_owned(), place]);
                item.push("ZADD", scored.collect());
            }
            for (status, places) in moves.leave {
                item.keys.push(self.order_set(generation, &list, status));
                item.push("ZREM", places);
            }
            item
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
        tokio::try_join!(self.each::<()>(&self.scripts.shelve, moves), known).map(|_| ())
    }

    /// Takes orders out of the sets in which [`Views::shelve`] has just put them, if their documents
    /// have become newer since.
    ///
    /// Whoever writes a newer document takes the order out of what it has left *after* that. So it is
    /// either seen here, or its writer is still to come. No order has a status again that it has left:
    /// nothing that is in its right place is taken away.
    pub(in crate::views) async fn unshelve(
        &self,
        generation: u64,
        orders: &[Seen],
    ) -> Result<(), ViewError> {
        let key = |order: &Shown| self.key(generation, Subject::Order, &order.order_id.to_string());
        let documents = orders.iter().map(|Seen { order, .. }| Item {
            keys: vec![key(order)],
            words: vec![order.version.to_string().into()],
        });
        let mut overtaken: HashSet<String> = HashSet::new();
        for (items, newer) in self.each::<Vec<usize>>(&self.scripts.newer, documents).await? {
            overtaken.extend(newer.into_iter().flat_map(|at| items[at - 1].keys.clone()));
        }
        let late = orders.iter().map(|seen| &seen.order);
        let late: Vec<&Shown> = late.filter(|order| overtaken.contains(&key(order))).collect();
        let removed = late.into_iter().flat_map(|order| {
            order.lists().map(|list| {
                let set = self.order_set(generation, &list, order.status);
                self.redis.zrem::<(), _, _>(set, order.place().to_string())
            })
        });
        Ok(try_join_all(removed).await.map(|_| ())?)
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
