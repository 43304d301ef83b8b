//! Lists: of a customer's orders, of products.

use fred::interfaces::SortedSetsInterface as _;
use fred::types::sorted_sets::{ZRange, ZRangeBound, ZRangeKind, ZSort};
use serde::Deserialize;

use super::{ViewError, Views};
use crate::ids::{CustomerId, OrderId};
use crate::message::Subject;
use crate::order::OrderStatus;

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The documents' texts.
    pub items: Vec<String>,
    /// Give this to get the next page; absent at the end.
    pub next_cursor: Option<String>,
}

impl Views {
    /// Whether a text can be a cursor of [`Views::customer_orders`].
    pub fn is_orders_cursor(text: &str) -> bool {
        parse_position(text).is_some_and(|(_, id)| id.parse::<OrderId>().is_ok())
    }

    /// The orders of a customer, newest first; `status` picks those that are in it now.
    pub async fn customer_orders(
        &self,
        customer: &CustomerId,
        status: Option<OrderStatus>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ViewError> {
        self.read_slowly(|it| self.orders_of(it, customer, status, cursor, limit)).await
    }

    async fn orders_of(
        &self,
        generation: u64,
        customer: &CustomerId,
        status: Option<OrderStatus>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ViewError> {
        let key = self.customer_orders_key(generation, customer.as_str());
        let mut position = cursor.and_then(parse_position);
        let mut items = Vec::with_capacity(limit);
        loop {
            let ids = self.older(&key, position.as_ref(), limit).await?;
            let Some(last) = ids.last().cloned() else { break };
            let keys: Vec<String> =
                ids.iter().map(|(_, id)| self.key(generation, Subject::Order, id)).collect();
            let found = self.documents(&keys).await?;
            for (place, document) in ids.into_iter().zip(found) {
                position = Some(place);
                let Some(document) = document else { continue };
                let fits = match status {
                    None => true,
                    Some(status) => serde_json::from_str::<Status>(&document.json)
                        .is_ok_and(|found| found.status == status.as_str()),
                };
                if fits {
                    items.push(document.json);
                }
                if items.len() == limit {
                    break;
                }
            }
            if items.len() == limit || position.as_ref() != Some(&last) {
                break;
            }
        }
        let more = match &position {
            Some(position) if items.len() == limit => {
                !self.older(&key, Some(position), 1).await?.is_empty()
            }
            _ => false,
        };
        let next_cursor = position.filter(|_| more).map(|(score, id)| format!("{score}_{id}"));
        Ok(Page { items, next_cursor })
    }

    /// Up to `limit` entries of a customer's list that come after `position`.
    async fn older(
        &self,
        key: &str,
        position: Option<&(i64, String)>,
        limit: usize,
    ) -> Result<Vec<(i64, String)>, ViewError> {
        let mut entries = Vec::with_capacity(limit);
        // Orders of the very same microsecond stand in the descending order of their ids; those up
        // to the position are passed over.
        let mut skip: i64 = 0;
        loop {
            let highest = match position {
                #[expect(clippy::cast_precision_loss, reason = "microseconds, exact until 2255")]
                Some((score, _)) => ZRangeBound::Score(*score as f64),
                None => ZRangeBound::InfiniteScore,
            };
            let found: Vec<(String, f64)> = self
                .redis
                .zrange(
                    key,
                    ZRange { kind: ZRangeKind::Inclusive, range: highest },
                    ZRange { kind: ZRangeKind::Inclusive, range: ZRangeBound::NegInfiniteScore },
                    Some(ZSort::ByScore),
                    true,
                    Some((skip, i64::try_from(limit).unwrap_or(i64::MAX))),
                    true,
                )
                .await?;
            let exhausted = found.len() < limit;
            skip += i64::try_from(found.len()).unwrap_or(0);
            for (id, score) in found {
                #[expect(clippy::cast_possible_truncation, reason = "it was written from an i64")]
                let score = score as i64;
                let passed =
                    position.is_some_and(|(at, last)| score > *at || (score == *at && id >= *last));
                if !passed && entries.len() < limit {
                    entries.push((score, id));
                }
            }
            if exhausted || entries.len() == limit {
                return Ok(entries);
            }
        }
    }

    /// The products, in the order of their ids.
    pub async fn products(&self, cursor: Option<&str>, limit: usize) -> Result<Page, ViewError> {
        self.read_slowly(|generation| self.products_of(generation, cursor, limit)).await
    }

    async fn products_of(
        &self,
        generation: u64,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page, ViewError> {
        let lowest = match cursor {
            Some(id) => ZRange { kind: ZRangeKind::Exclusive, range: ZRangeBound::Lex(id.into()) },
            None => ZRange { kind: ZRangeKind::Inclusive, range: ZRangeBound::NegInfinityLex },
        };
        let highest = ZRange { kind: ZRangeKind::Inclusive, range: ZRangeBound::InfiniteLex };
        let count = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let mut ids: Vec<String> = self
            .redis
            .zrange(
                self.products_key(generation),
                lowest,
                highest,
                Some(ZSort::ByLex),
                false,
                Some((0, count)),
                false,
            )
            .await?;
        let more = ids.len() > limit;
        ids.truncate(limit);
        let keys: Vec<String> =
            ids.iter().map(|id| self.key(generation, Subject::Product, id)).collect();
        let items = self.documents(&keys).await?.into_iter().flatten().map(|d| d.json).collect();
        Ok(Page { items, next_cursor: ids.pop().filter(|_| more) })
    }
}

#[derive(Deserialize)]
struct Status<'a> {
    status: &'a str,
}

fn parse_position(cursor: &str) -> Option<(i64, String)> {
    let (score, id) = cursor.split_once('_')?;
    Some((score.parse().ok()?, id.to_owned()))
}
