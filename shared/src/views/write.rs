//! Writing the views: every write goes into each generation that is kept at that moment.

use chrono::{DateTime, Utc};
use fred::interfaces::{
    KeysInterface as _, LuaInterface as _, PubsubInterface as _, SortedSetsInterface as _,
};
use fred::types::{Expiration, SetOptions};
use futures_util::future::try_join_all;
use serde::Serialize;

use super::changed::Owned;
use super::{CommandView, ViewError, Views, command_view};
use crate::ids::CustomerId;
use crate::message::{Event, EventError, Subject};

/// How long an accepted command may be shown as pending. It is decided within milliseconds, or
/// after an outage; the mark only bridges the time in which no view exists yet.
pub(super) const PENDING_SECONDS: i64 = 7 * 24 * 3600;

impl Views {
    /// Writes the views of a batch of events, in a round trip or two, then tells the changes. Events may
    /// come twice and in any order: a view never goes back to an older version.
    ///
    /// Where there are no views at all nothing is written: who makes them reads all that is in the
    /// log by then.
    pub async fn apply<'a>(
        &self,
        events: impl Iterator<Item = &'a Event> + Clone + Send,
    ) -> Result<(), ViewError> {
        let mut done: Vec<u64> = Vec::new();
        let mut generations = self.recent().await?;
        loop {
            let open: Vec<u64> = generations.targets().filter(|it| !done.contains(it)).collect();
            let Some((last, before)) = open.split_last() else { break };
            for generation in before {
                self.write(events.clone(), *generation).await?;
            }
            let write = self.write(events.clone(), *last);
            generations = tokio::try_join!(biased; write, self.generations())?.1;
            done.extend(open);
        }
        let mut changes = Vec::new();
        for event in events {
            changes.push(format!("{}/{} {}", event.subject, event.subject_id, event.version));
            changes.extend(event.answers().map(|command| format!("command/{command} 1")));
            if event.subject == Subject::Order {
                let customer = event.state::<Owned>()?.customer_id;
                changes.push(format!("customer-orders/{customer} {}", event.version));
            }
        }
        let changes = changes.join("\n");
        Ok(self.redis.publish::<(), _, _>(self.changes_channel(), changes).await?)
    }

    async fn write<'a>(
        &self,
        events: impl Iterator<Item = &'a Event> + Clone + Send,
        generation: u64,
    ) -> Result<(), ViewError> {
        let documents = self
            .with_scripts(|| try_join_all(events.clone().map(|e| self.write_one(e, generation))));
        let counts = self.count(generation, events.clone(), false);
        tokio::try_join!(documents, counts)?;
        // Only now: what is told to have changed can be read.
        self.note_changes(events, generation).await
    }

    pub(super) async fn write_one(&self, event: &Event, generation: u64) -> Result<(), ViewError> {
        let answer = self.write_answer(event, generation);
        tokio::try_join!(self.write_document(event, generation), answer).map(|_| ())
    }

    async fn write_document(&self, event: &Event, generation: u64) -> Result<(), ViewError> {
        let id = &event.subject_id;
        if event.subject == Subject::Command {
            return Ok(());
        }
        let arguments = vec![event.version.to_string(), event.state.get().to_owned()];
        let key = self.key(generation, event.subject, id);
        let sha = self.scripts.put.sha1().clone();
        let put = async { Ok(self.redis.evalsha::<(), _, _, _>(sha, vec![key], arguments).await?) };
        let list = async {
            match event.subject {
                Subject::Order => self.shelve(generation, &event.state()?).await,
                Subject::Product => {
                    let (key, place) = (self.products_key(generation), (0.0, id.as_str()));
                    Ok(self.redis.zadd(key, None, None, false, false, place).await?)
                }
                Subject::Customer | Subject::Command => Ok(()),
            }
        };
        tokio::try_join!(put, list).map(|((), ())| ())
    }

    /// Writes the outcome of the command that the event answers.
    pub(super) async fn write_answer(
        &self,
        event: &Event,
        generation: u64,
    ) -> Result<(), ViewError> {
        let Some(view) = command_view(event)? else { return Ok(()) };
        let key = self.key(generation, Subject::Command, &view.command_id.to_string());
        Ok(self.redis.set(key, json(&view)?, None, None, false).await?)
    }

    /// Notes that a command was stored, so that a read in the next moment says *pending* instead of
    /// *not found*. Changes nothing where a view exists already.
    pub async fn mark_pending(
        &self,
        command: &CommandView,
        placed: Option<(&CustomerId, DateTime<Utc>)>,
    ) -> Result<(), ViewError> {
        let mut done: Vec<u64> = Vec::new();
        let mut generations = self.recent().await?;
        loop {
            let open: Vec<u64> = generations.targets().filter(|it| !done.contains(it)).collect();
            if open.is_empty() {
                return Ok(());
            }
            let mark = try_join_all(open.iter().map(|it| self.mark_in(*it, command, placed)));
            generations = tokio::try_join!(biased; mark, self.generations())?.1;
            done.extend(open);
        }
    }

    /// As [`Views::mark_pending`], in one generation.
    pub async fn mark_in(
        &self,
        generation: u64,
        command: &CommandView,
        placed: Option<(&CustomerId, DateTime<Utc>)>,
    ) -> Result<(), ViewError> {
        let expire = || Some(Expiration::EX(PENDING_SECONDS));
        let key = self.key(generation, Subject::Command, &command.command_id.to_string());
        let mark =
            self.redis.set::<(), _, _>(key, json(command)?, expire(), Some(SetOptions::NX), false);
        let (Some(order), Some((customer, placed_at))) = (&command.order_id, placed) else {
            return Ok(mark.await?);
        };
        let document = serde_json::json!({
            "orderId": order, "customerId": customer, "status": "pending", "version": 0,
            "placedAt": placed_at, "commandId": command.command_id,
        });
        let key = self.key(generation, Subject::Order, order);
        let value = format!("0 {document}");
        let view = self.redis.set::<(), _, _>(key, value, expire(), Some(SetOptions::NX), false);
        tokio::try_join!(mark, view)?;
        Ok(())
    }
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<String, EventError> {
    Ok(serde_json::to_string(value)?)
}
