//! Writing the views: every write goes into each generation that is kept at that moment.

use chrono::{DateTime, Utc};
use fred::interfaces::{PubsubInterface as _, SortedSetsInterface as _};
use futures_util::future::try_join_all;
use serde::Serialize;

use super::batch::Batch;
use super::scripts::Item;
use super::{CommandView, ViewError, Views};
use crate::crash;
use crate::ids::CustomerId;
use crate::message::{Event, EventError, Subject};

/// For how many seconds an accepted command may be shown as pending: a week. It is decided within
/// milliseconds, or after an outage; the mark only bridges the time in which no view exists yet.
pub(super) const PENDING_SECONDS: i64 = 604_800;

/// Marks what is pending ([`PENDING_SECONDS`]), where nothing is known of it yet.
pub(super) const MARK: &str = "
for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[i], 'NX', 'EX', 604800) end
return 1";

/// A command that is stored and not decided.
#[derive(Debug, Clone)]
pub struct Mark {
    /// What it is about.
    pub command: CommandView,
    /// Whose order it places, and when, if it places one.
    pub placed: Option<(CustomerId, DateTime<Utc>)>,
}

impl Views {
    /// Writes the views of a batch of events, in a few round trips, then tells the changes. Events may
    /// come twice and in any order: a view never goes back to an older version.
    ///
    /// Where there are no views at all nothing is written: who makes them reads all that is in the
    /// log by then.
    pub async fn apply<'a>(
        &self,
        events: impl Iterator<Item = &'a Event> + Send,
    ) -> Result<(), ViewError> {
        let batch = Batch::read(events.map(|event| (event, true)))?;
        let mut done: Vec<u64> = Vec::new();
        let mut generations = self.recent().await?;
        loop {
            let open: Vec<u64> = generations.targets().filter(|it| !done.contains(it)).collect();
            let Some((last, before)) = open.split_last() else { break };
            for generation in before {
                Box::pin(self.write(&batch, *generation)).await?;
            }
            let write = Box::pin(self.write(&batch, *last));
            generations = tokio::try_join!(biased; write, self.generations())?.1;
            done.extend(open);
        }
        Ok(self.redis.publish::<(), _, _>(self.changes_channel(), batch.changes()).await?)
    }

    async fn write(&self, batch: &Batch<'_>, generation: u64) -> Result<(), ViewError> {
        self.write_documents(batch, generation).await?;
        crash::point("projection.documents");
        let shelved = self.shelve(generation, &batch.orders);
        tokio::try_join!(shelved, self.count(generation, &batch.orders, false))?;
        crash::point("projection.listed");
        // Only now: what is told to have changed can be read.
        let noted = self.note_changes(&batch.orders, generation);
        tokio::try_join!(noted, self.unshelve(generation, &batch.orders)).map(|_| ())
    }

    pub(super) async fn write_documents(
        &self,
        batch: &Batch<'_>,
        generation: u64,
    ) -> Result<(), ViewError> {
        let documents = batch.newest.iter().map(|event| Item {
            keys: vec![self.key(generation, event.subject, &event.subject_id)],
            words: vec![event.version.to_string().into(), event.state.get().into()],
        });
        let outcomes = batch.outcomes.iter().map(|view| {
            let key = self.key(generation, Subject::Command, &view.command_id.to_string());
            Ok(Item { keys: vec![key], words: vec!["".into(), json(view)?.into()] })
        });
        let outcomes: Vec<Item> = outcomes.collect::<Result<_, EventError>>()?;
        let products = batch.newest.iter().filter(|event| event.subject == Subject::Product);
        let products: Vec<(f64, &str)> = products.map(|it| (0.0, &*it.subject_id)).collect();
        let listed = async {
            if products.is_empty() {
                return Ok(());
            }
            let key = self.products_key(generation);
            Ok(self.redis.zadd::<(), _, _>(key, None, None, false, false, products).await?)
        };
        tokio::try_join!(self.each::<()>(&self.scripts.put, documents.chain(outcomes)), listed)
            .map(|_| ())
    }

    /// Notes that commands were stored, so that a read in the next moment says *pending* instead of
    /// *not found*. Changes nothing where a view exists already.
    pub async fn mark_pending(&self, marks: &[Mark]) -> Result<(), ViewError> {
        let mut done: Vec<u64> = Vec::new();
        let mut generations = self.recent().await?;
        loop {
            let open: Vec<u64> = generations.targets().filter(|it| !done.contains(it)).collect();
            if open.is_empty() {
                return Ok(());
            }
            let mark = try_join_all(open.iter().map(|it| self.mark_in(*it, marks)));
            generations = tokio::try_join!(biased; mark, self.generations())?.1;
            done.extend(open);
        }
    }

    /// As [`Views::mark_pending`], in one generation.
    pub async fn mark_in(&self, generation: u64, marks: &[Mark]) -> Result<(), ViewError> {
        let mut items = Vec::with_capacity(marks.len() * 2);
        for Mark { command, placed } in marks {
            let key = self.key(generation, Subject::Command, &command.command_id.to_string());
            items.push(Item { keys: vec![key], words: vec![json(command)?.into()] });
            if let (Some(order), Some((customer, placed_at))) = (&command.order_id, placed) {
                let document = serde_json::json!({
                    "orderId": order, "customerId": customer, "status": "pending", "version": 0,
                    "placedAt": placed_at, "commandId": command.command_id,
                });
                let key = self.key(generation, Subject::Order, order);
                items.push(Item { keys: vec![key], words: vec![format!("0 {document}").into()] });
            }
        }
        self.each::<()>(&self.scripts.mark, items.into_iter()).await.map(|_| ())
    }
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<String, EventError> {
    Ok(serde_json::to_string(value)?)
}
