//! What reports are made of: sums in Redis that are exact, however often, in whatever order and by
//! however many replicas events are projected.
//!
//! An event carries the order after it, and that order carries its whole timeline. So it is enough
//! to keep, for each order, up to which version it has been counted: an event adds the steps behind
//! that version, whichever they are, and nothing a second time. The version and the sums that come
//! from it change in one script, and stand in one hash slot; orders are spread over [`SLOTS`] of
//! them, and a report adds those up.
//!
//! | key (below `NS:G:reports:{SLOT}:`) | hash of |
//! |---|---|
//! | `orders` | order id, 16 bytes → the version up to which it is counted |
//! | `status` | `STATUS`, or `rejected/REASON` → orders that are in it now |
//! | `sales:minutes:HOUR`, `sales:hours:DAY`, `sales:days:MONTH` | `BUCKET CURRENCY MEASURE` → sum |
//! | `lines:HOUR`, `lines:DAY` | `PRODUCT CURRENCY PRICE BRAND` → pieces that were paid |
//! | `times:HOUR`, `times:DAY` | milliseconds from placing to payment → orders |
//!
//! No key expires: all of it is a few hundred bytes for an order, and is what the shop has earned.

mod read;
mod span;
mod tally;

pub use read::Sold;
pub use span::{By, Range};
pub use tally::Sales;

use fred::interfaces::LuaInterface as _;
use fred::types::Value;
use futures_util::future::try_join_all;

use super::batch::{Seen, Shown};
use super::{ViewError, Views};
use tally::{Sheet, Sums};

/// Adds sums, and notes up to which version their orders are counted by that; nothing, if one of
/// the orders is not counted up to where the caller thought: then it returns how far each is.
///
/// Money is added by HINCRBY, in 64-bit integers: Lua calculates in floating point. Counts of pieces
/// and of orders, which are many fields, are exact there too (up to 2^53), and are written together.
/// A field that is damaged stays so until `millrace rebuild`; it must not hold up the others.
pub(super) const COUNT: &str = "
local n = tonumber(ARGV[1])
local ids = {unpack(ARGV, 2, n + 1)}
local counted = redis.call('HMGET', KEYS[1], unpack(ids))
for i = 1, n do
  if (counted[i] or '0') ~= ARGV[n + 1 + i] then return counted end
end
local versions = {}
for i = 1, n do
  versions[2 * i - 1] = ids[i]
  versions[2 * i] = ARGV[2 * n + 1 + i]
end
redis.call('HSET', KEYS[1], unpack(versions))
local at = 3 * n + 3
local rest = at + 3 * tonumber(ARGV[at - 1])
for at = at, rest - 1, 3 do
  redis.pcall('HINCRBY', KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2])
end
while rest < #ARGV do
  local key, count = KEYS[tonumber(ARGV[rest])], tonumber(ARGV[rest + 1])
  local fields = {unpack(ARGV, rest + 2, rest + 1 + count)}
  local sums = redis.pcall('HMGET', key, unpack(fields))
  local words = {}
  for i = 1, count do
    local sum = not sums.err and tonumber(sums[i] or '0')
    if sum then
      words[#words + 1] = fields[i]
      words[#words + 1] = string.format('%.0f', sum + tonumber(ARGV[rest + 1 + count + i]))
    end
  end
  if #words > 0 then redis.call('HSET', key, unpack(words)) end
  rest = rest + 2 + 2 * count
end
return {}";

/// Hash slots that the orders are spread over. Changing it needs a rebuild.
const SLOTS: u8 = 4;
/// Fields of a sheet that are written together: so many words fit on Lua's stack.
const FIELDS: usize = 1_000;
/// Orders that one script counts at a time: so many words still fit on Lua's stack.
const AT_A_TIME: usize = 500;

/// An order that is to be counted.
#[derive(Debug)]
struct Uncounted<'a> {
    order: &'a Shown,
    /// The version up to which it is counted, as far as is known.
    counted: u64,
}

impl Views {
    /// Counts what has happened to orders. They may come twice and in any order.
    ///
    /// `fresh` says that the generation is new: then nothing is taken to be counted already. It is
    /// only a guess, as is the other one, that versions come one after another: a wrong one costs a
    /// round trip.
    pub(super) async fn count(
        &self,
        generation: u64,
        orders: &[Seen],
        fresh: bool,
    ) -> Result<(), ViewError> {
        let mut slots: Vec<Vec<Uncounted<'_>>> = (0..SLOTS).map(|_| Vec::new()).collect();
        for Seen { order, first } in orders {
            let counted = if fresh { 0 } else { first.saturating_sub(1) };
            slots[usize::from(slot_of(order.order_id.0))].push(Uncounted { order, counted });
        }
        let mut counts = Vec::new();
        for (slot, mut orders) in (0..SLOTS).zip(slots) {
            while !orders.is_empty() {
                let rest = orders.split_off(orders.len().min(AT_A_TIME));
                counts.push(self.count_in(generation, slot, orders));
                orders = rest;
            }
        }
        try_join_all(counts).await.map(|_| ())
    }

    /// Counts orders of one slot. Each time that the script refuses, another writer has counted one
    /// of them further; what is counted to the end drops out, so this comes to an end.
    async fn count_in(
        &self,
        generation: u64,
        slot: u8,
        mut orders: Vec<Uncounted<'_>>,
    ) -> Result<(), ViewError> {
        let prefix = self.reports_prefix(generation, slot);
        loop {
            orders.retain(|uncounted| uncounted.counted < uncounted.order.version);
            if orders.is_empty() {
                return Ok(());
            }
            let (keys, words) = script_input(&prefix, &orders);
            let call = || async {
                let sha = self.scripts.count.sha1().clone();
                Ok(self.redis.evalsha(sha, keys.clone(), words.clone()).await?)
            };
            let refused: Vec<Option<String>> = self.with_scripts(call).await?;
            if refused.is_empty() {
                return Ok(());
            }
            for (uncounted, version) in orders.iter_mut().zip(refused) {
                // What cannot be read is damaged: nothing is added until the views are made anew.
                uncounted.counted =
                    version.map_or(0, |version| version.parse().unwrap_or(u64::MAX));
            }
        }
    }

    /// Up to which version an order is counted.
    pub(super) async fn counted(&self, generation: u64, id: &str) -> Result<u64, ViewError> {
        use fred::interfaces::HashesInterface as _;
        let Ok(id) = id.parse::<uuid::Uuid>() else { return Ok(0) };
        let key = format!("{}orders", self.reports_prefix(generation, slot_of(id)));
        let version: Option<String> = self.redis.hget(key, id.as_bytes().as_slice()).await?;
        Ok(version.and_then(|version| version.parse().ok()).unwrap_or(0))
    }

    fn reports_prefix(&self, generation: u64, slot: u8) -> String {
        format!("{}:{generation}:reports:{{{slot}}}:", self.namespace)
    }
}

fn slot_of(id: uuid::Uuid) -> u8 {
    id.as_bytes()[15] % SLOTS
}

/// Keys and words for the script.
fn script_input(prefix: &str, orders: &[Uncounted<'_>]) -> (Vec<String>, Vec<Value>) {
    let mut sums = Sums::default();
    for uncounted in orders {
        uncounted.order.tally(uncounted.counted, &mut sums);
    }
    let count = i64::try_from(orders.len()).unwrap_or(i64::MAX);
    let mut words = vec![Value::from(count)];
    words.extend(orders.iter().map(|it| Value::from(it.order.order_id.0.as_bytes().as_slice())));
    words.extend(orders.iter().map(|it| Value::from(it.counted.to_string())));
    words.extend(orders.iter().map(|it| Value::from(it.order.version.to_string())));
    let mut keys = vec![format!("{prefix}orders")];
    let (mut money, mut counts) = (Vec::new(), Vec::new());
    for (sheet, fields) in sums.sheets {
        keys.push(format!("{prefix}{sheet}"));
        let key = Value::from(keys.len().to_string());
        if matches!(sheet, Sheet::Lines(_) | Sheet::Times(_)) {
            let fields: Vec<(String, i64)> = fields.into_iter().collect();
            for fields in fields.chunks(FIELDS) {
                counts.extend([key.clone(), Value::from(fields.len().to_string())]);
                counts.extend(fields.iter().map(|(field, _)| Value::from(field.clone())));
                counts.extend(fields.iter().map(|(_, sum)| Value::from(*sum)));
            }
        } else {
            money.extend(
                fields.into_iter().map(|(field, sum)| [key.clone(), field.into(), sum.into()]),
            );
        }
    }
    words.push(Value::from(money.len().to_string()));
    words.extend(money.into_iter().flatten());
    words.extend(counts);
    (keys, words)
}
