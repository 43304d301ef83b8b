//! The list of products.

use fred::interfaces::SortedSetsInterface as _;
use fred::types::sorted_sets::{ZRange, ZRangeBound, ZRangeKind, ZSort};

use super::{Generations, ViewError, Views};
use crate::message::Subject;

/// A page of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The documents' texts.
    pub items: Vec<String>,
    /// Give this to get the next page; absent at the end.
    pub next_cursor: Option<String>,
}

impl Views {
    /// The products, in the order of their ids.
    pub async fn products(&self, cursor: Option<&str>, limit: usize) -> Result<Page, ViewError> {
        self.read(|generation| self.products_of(generation, cursor, limit)).await
    }

    async fn products_of(
        &self,
        generation: u64,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<(Page, Generations), ViewError> {
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
        let (documents, now) = self.documents(&keys).await?;
        let items = documents.into_iter().flatten().map(|document| document.json).collect();
        Ok((Page { items, next_cursor: ids.pop().filter(|_| more) }, now))
    }
}
