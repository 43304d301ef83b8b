//! Which of a customer's orders have changed, in the order in which they did: what a client that
//! follows a customer needs to go on where it was.
//!
//! A sorted set for each customer holds the orders that changed last, each at its last change. The
//! score is the change's sequence, which only grows, with the order's version behind it. A sequence
//! is the time in milliseconds, or one more than the last: so none is given twice, whatever happens
//! to the key. It is written after the order's document, and again where a process has died between
//! the two: who sees the change can read the order.

use fred::interfaces::SortedSetsInterface as _;
use fred::types::sorted_sets::{ZRange, ZRangeBound, ZRangeKind, ZSort};

use super::batch::Seen;
use super::scripts::Item;
use super::{Document, Generations, ViewError, Views};
use crate::ids::CustomerId;
use crate::message::Subject;

/// The orders that are kept for each customer. Up to 128 Redis keeps them in a compact form.
pub const CHANGES_KEPT: u64 = 100;
/// The score is the sequence times this, and the version. An order has a handful of versions.
const SHIFT: u64 = 1_000;

/// Notes changes of orders (id and version after each other), each with its customer's key, unless
/// it or a later one of the same order is there. Keeps 100 ([`CHANGES_KEPT`]).
pub(super) const NOTE: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i, key in ipairs(KEYS) do
  local order, version = ARGV[2 * i - 1], math.min(tonumber(ARGV[2 * i]), 999)
  local last = redis.call('ZREVRANGE', key, 0, 0, 'WITHSCORES')[2]
  local sequence = now
  if last then sequence = math.max(now, math.floor(tonumber(last) / 1000) + 1) end
  local score = string.format('%.0f', sequence * 1000 + version)
  -- Most orders are new to it.
  if redis.call('ZADD', key, 'NX', score, order) == 1 then
    redis.call('ZREMRANGEBYRANK', key, 0, -101)
  elseif tonumber(redis.call('ZSCORE', key, order)) % 1000 < version then
    redis.call('ZADD', key, score, order)
  end
end
return 1";

/// The last change of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedOrder {
    /// Its place among the changes of the customer's orders.
    pub sequence: u64,
    /// The order.
    pub order_id: String,
    /// Its version after the change.
    pub version: u64,
    /// Its document, in exactly this version. Absent where the order has changed again: then that
    /// change has a place further on, or is about to get one.
    pub document: Option<String>,
}

/// A customer, and changes of its orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomerChanges {
    /// The generation of the views; sequences of different ones do not compare.
    pub generation: u64,
    /// The customer's document.
    pub customer: Option<Document>,
    /// The changes that were asked for, the oldest first.
    pub orders: Vec<ChangedOrder>,
    /// All changes after this place are in `orders`, up to the last one in it.
    pub complete_after: u64,
}

/// Which changes are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// The last ones, so many.
    Last(u32),
    /// The first ones after a place, so many.
    After(u64, u32),
}

impl Views {
    fn changed_key(&self, generation: u64, customer: &str) -> String {
        format!("{}:{generation}:customer:{customer}:changed", self.namespace)
    }

    /// Notes which customers' orders have changed.
    pub(super) async fn note_changes(
        &self,
        orders: &[Seen],
        generation: u64,
    ) -> Result<(), ViewError> {
        let note = |Seen { order, .. }: &Seen| Item {
            keys: vec![self.changed_key(generation, order.customer_id.as_str())],
            words: vec![order.order_id.to_string().into(), order.version.to_string().into()],
        };
        self.each::<()>(&self.scripts.note, orders.iter().map(note)).await.map(|_| ())
    }

    /// A customer, and changes of its orders. The document of an order is left out where the caller
    /// has it already: `has` is given order and version.
    pub async fn customer_changes(
        &self,
        customer: &CustomerId,
        changes: Changes,
        has: impl Fn(&str, u64) -> bool,
    ) -> Result<CustomerChanges, ViewError> {
        let read = |generation| self.changes_in(generation, customer, changes, &has);
        Box::pin(self.read(read)).await
    }

    async fn changes_in(
        &self,
        generation: u64,
        customer: &CustomerId,
        changes: Changes,
        has: impl Fn(&str, u64) -> bool,
    ) -> Result<(CustomerChanges, Generations), ViewError> {
        let key = self.changed_key(generation, customer.as_str());
        let document = self.document_at(self.key(generation, Subject::Customer, customer.as_str()));
        let (newest_first, least, most) = match changes {
            Changes::Last(most) => (true, 0, most),
            Changes::After(sequence, most) => (false, sequence.saturating_add(1), most),
        };
        #[expect(clippy::cast_precision_loss, reason = "exact for sequences until the year 2255")]
        let least = ZRangeBound::Score(least.saturating_mul(SHIFT) as f64);
        let bounds = [least, ZRangeBound::InfiniteScore]
            .map(|range| ZRange { kind: ZRangeKind::Inclusive, range });
        let [low, high] = bounds;
        let (min, max) = if newest_first { (high, low) } else { (low, high) };
        let limit = Some((0, i64::from(most)));
        let sort = Some(ZSort::ByScore);
        let asked = async {
            let range = self.redis.zrange(&key, min, max, sort, newest_first, limit, true);
            Ok::<Vec<(String, f64)>, ViewError>(range.await?)
        };
        // What is removed between the two looks makes this one later, not earlier.
        let first = async {
            Ok::<Vec<(String, f64)>, ViewError>(
                self.redis.zrange(&key, 0, 0, None, false, None, true).await?,
            )
        };
        let count = async { Ok::<u64, ViewError>(self.redis.zcard(&key).await?) };
        let (found, first, count, customer) =
            tokio::try_join!(biased; asked, first, count, document)?;
        let mut orders: Vec<ChangedOrder> = found.into_iter().map(ChangedOrder::new).collect();
        if newest_first {
            orders.reverse();
        }
        let complete_after = match changes {
            Changes::Last(most) if orders.len() as u64 >= u64::from(most) => {
                orders.first().map_or(0, |order| order.sequence - 1)
            }
            Changes::After(..) if count >= CHANGES_KEPT => {
                // Something may have been removed.
                first.into_iter().next().map_or(0, |first| ChangedOrder::new(first).sequence - 1)
            }
            _ => 0,
        };
        let wanted: Vec<usize> = (0..orders.len())
            .filter(|at| !has(&orders[*at].order_id, orders[*at].version))
            .collect();
        let keys: Vec<String> = wanted
            .iter()
            .map(|at| self.key(generation, Subject::Order, &orders[*at].order_id))
            .collect();
        let (documents, now) = self.documents(&keys).await?;
        for (at, document) in wanted.into_iter().zip(documents) {
            let version = orders[at].version;
            let exact = document.filter(|document| document.version == version);
            orders[at].document = exact.map(|document| document.json);
        }
        Ok((CustomerChanges { generation, customer, orders, complete_after }, now))
    }
}

impl ChangedOrder {
    fn new((order_id, score): (String, f64)) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it was written as a whole number"
        )]
        let score = score as u64;
        let (sequence, version) = (score / SHIFT, score % SHIFT);
        Self { sequence, order_id, version, document: None }
    }
}
