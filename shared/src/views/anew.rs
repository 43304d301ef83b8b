//! Making the views anew: a generation is filled, compared with where it came from and with the one
//! in use, and what is left of older ones is removed. All in bounded steps.

use std::pin::Pin;

use fred::interfaces::{ClientLike as _, KeysInterface as _, SortedSetsInterface as _};
use fred::types::scan::Scanner as _;
use fred::types::{Expiration, SetOptions};
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use futures_util::stream::Stream;

use super::batch::Batch;
use super::write::{PENDING_SECONDS, json};
use super::{CommandStatus, CommandView, ViewError, Views, command_view, split};
use crate::ids::CommandId;
use crate::message::{Event, Subject};

/// Keys that Redis is asked for, or to remove, at a time.
const PAGE: u32 = 1_000;

/// An event that is to be seen in the views.
#[derive(Debug, Clone)]
pub struct Row {
    /// The event; its `data` is not used.
    pub event: Event,
    /// Whether it is the last of its subject: then its state is the document. Of any other only
    /// the outcome of its command is kept.
    pub newest: bool,
}

/// A document in use that the new generation has not, or has older.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Of an order, customer or product.
    pub subject: Subject,
    /// Which.
    pub id: String,
    /// The version that is in use.
    pub version: u64,
}

type Pages<'a> = Pin<Box<dyn Stream<Item = Result<Vec<String>, ViewError>> + Send + 'a>>;

impl Views {
    /// Writes rows into one generation. Others may write into it at the same time.
    pub async fn fill(&self, generation: u64, rows: &[Row]) -> Result<(), ViewError> {
        let batch = Batch::read(rows.iter().map(|row| (&row.event, row.newest)))?;
        self.write_documents(&batch, generation).await?;
        let shelved = self.shelve(generation, &batch.orders);
        tokio::try_join!(shelved, self.count(generation, &batch.orders, true))?;
        self.unshelve(generation, &batch.orders).await
    }

    /// Which keys of a generation do not hold what these rows say; a newer document is right, too.
    pub async fn compare(&self, generation: u64, rows: &[Row]) -> Result<Vec<String>, ViewError> {
        let compare = || try_join_all(rows.iter().map(|row| self.compare_one(generation, row)));
        Ok(self.with_scripts(compare).await?.concat())
    }

    async fn compare_one(&self, generation: u64, row: &Row) -> Result<Vec<String>, ViewError> {
        let mut wrong = Vec::new();
        if row.newest && row.event.subject != Subject::Command {
            wrong.extend(Box::pin(self.compare_document(generation, &row.event)).await?);
        }
        if let Some(view) = command_view(&row.event)?
            && self.command_of(generation, view.command_id).await?.as_ref() != Some(&view)
        {
            wrong.push(self.key(generation, Subject::Command, &view.command_id.to_string()));
        }
        Ok(wrong)
    }

    async fn compare_document(
        &self,
        generation: u64,
        event: &Event,
    ) -> Result<Vec<String>, ViewError> {
        let key = self.key(generation, event.subject, &event.subject_id);
        let listed = async {
            match event.subject {
                Subject::Order => self.misplaced(generation, &event.state()?).await,
                Subject::Product => {
                    let (list, id) = (self.products_key(generation), event.subject_id.as_str());
                    let score: Option<f64> = self.redis.zscore(list.as_str(), id).await?;
                    Ok(score.is_none().then(|| format!("{id} in {list}")))
                }
                Subject::Customer | Subject::Command => Ok(None),
            }
        };
        // What is counted stands in the sums: both change in one step.
        let uncounted = async {
            if event.subject != Subject::Order {
                return Ok(None);
            }
            let counted = self.counted(generation, &event.subject_id).await?;
            Ok((counted < event.version).then(|| format!("{key} in the reports")))
        };
        let (found, listed, uncounted) =
            tokio::try_join!(self.document_at(key.clone()), listed, uncounted)?;
        let right = found.is_some_and(|found| {
            found.version > event.version
                || (found.version == event.version && found.json == event.state.get())
        });
        Ok((!right).then_some(key).into_iter().chain(listed).chain(uncounted).collect())
    }

    /// Goes through the generation in use, and returns what of it is newer than in the one that is
    /// being made: at most `most`. Marks of pending commands, and outcomes that only the views know,
    /// are copied.
    pub async fn ahead(
        &self,
        current: u64,
        building: u64,
        most: usize,
    ) -> Result<Vec<Difference>, ViewError> {
        let mut ahead = Vec::new();
        let prefix = format!("{}:{current}:", self.namespace);
        let mut pages = self.pages(&format!("{prefix}*"));
        while let Some(keys) = pages.next().await {
            let keys = keys?;
            let names = keys.iter().filter_map(|key| key.strip_prefix(&prefix));
            let found = names.map(|name| self.ahead_of(name, current, building));
            ahead.extend(try_join_all(found).await?.into_iter().flatten());
            if ahead.len() >= most {
                break;
            }
        }
        Ok(ahead)
    }

    async fn ahead_of(
        &self,
        name: &str,
        current: u64,
        building: u64,
    ) -> Result<Option<Difference>, ViewError> {
        let subject = match name.split_once(':') {
            Some(("order", id)) => Some((Subject::Order, id)),
            Some(("product", id)) => Some((Subject::Product, id)),
            Some(("customer", id)) if !id.contains(':') => Some((Subject::Customer, id)),
            Some(("command", id)) => {
                if let Ok(id) = id.parse() {
                    self.copy_command(id, current, building).await?;
                }
                None
            }
            _ => None,
        };
        let Some((subject, id)) = subject else { return Ok(None) };
        let keys = [current, building].map(|generation| self.key(generation, subject, id));
        // In this order: what is written goes into the one that is being made first.
        let text: Option<String> = self.redis.get(&keys[0]).await?;
        let made = self.document_at(keys[1].clone()).await?;
        // What is damaged is left behind: that is what making anew is for.
        let Some((version, text)) =
            text.and_then(|text| Some((split(&keys[0], text.clone()).ok()?.version, text)))
        else {
            return Ok(None);
        };
        if made.is_some_and(|made| made.version >= version) {
            return Ok(None);
        }
        if version == 0 {
            self.copy(&keys[1], text, Some(Expiration::EX(PENDING_SECONDS))).await?;
            return Ok(None);
        }
        Ok(Some(Difference { subject, id: id.to_owned(), version }))
    }

    async fn copy_command(
        &self,
        id: CommandId,
        current: u64,
        building: u64,
    ) -> Result<(), ViewError> {
        let Ok(Some(view)) = self.command_of(current, id).await else { return Ok(()) };
        if self.command_of(building, id).await?.is_some() {
            return Ok(());
        }
        let pending = view.status == CommandStatus::Pending;
        let expire = pending.then_some(Expiration::EX(PENDING_SECONDS));
        let key = self.key(building, Subject::Command, &id.to_string());
        self.copy(&key, json::<CommandView>(&view)?, expire).await
    }

    async fn copy(
        &self,
        key: &str,
        value: String,
        expire: Option<Expiration>,
    ) -> Result<(), ViewError> {
        let unless_there = Some(SetOptions::NX);
        Ok(self.redis.set::<(), _, _>(key, value, expire, unless_there, false).await?)
    }

    /// Removes all keys of the namespace that are not of the generation `keep`; returns how many.
    pub async fn sweep(&self, keep: u64) -> Result<u64, ViewError> {
        let (own, kept) = ([self.marker(), self.note_key()], format!("{}:{keep}:", self.namespace));
        let mut removed = 0;
        let mut pages = self.pages(&format!("{}:*", self.namespace));
        while let Some(keys) = pages.next().await {
            let keys = keys?;
            let old = keys.iter().filter(|key| !own.contains(key) && !key.starts_with(&kept));
            let unlinked: Vec<u64> =
                try_join_all(old.map(|key| self.redis.unlink(key.as_str()))).await?;
            removed += unlinked.iter().sum::<u64>();
        }
        Ok(removed)
    }

    /// The keys that match a pattern, page by page: the next is asked for when this one is done
    /// with. A key may come twice.
    fn pages(&self, pattern: &str) -> Pages<'_> {
        let (pattern, count) = (pattern.to_owned(), Some(PAGE));
        let scan: Pin<Box<dyn Stream<Item = _> + Send>> = if self.redis.is_clustered() {
            Box::pin(self.redis.scan_cluster(pattern, count, None))
        } else {
            Box::pin(self.redis.scan(pattern, count, None))
        };
        Box::pin(scan.map(|page| {
            let mut page = page?;
            let keys = page.take_results().unwrap_or_default();
            Ok(keys.into_iter().filter_map(fred::types::Key::into_string).collect())
        }))
    }
}
