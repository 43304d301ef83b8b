//! Writing the views: every write goes into each generation that is kept at that moment.

use chrono::{DateTime, Utc};
use fred::interfaces::{
    ClientLike as _, KeysInterface as _, LuaInterface as _, PubsubInterface as _,
    SortedSetsInterface as _,
};
use fred::types::{Expiration, SetOptions};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};

use super::reports::COUNT;
use super::{CommandView, PUT, ViewError, Views, command_view};
use crate::ids::CustomerId;
use crate::message::{Event, EventError, Subject};

/// How long an accepted command may be shown as pending. It is decided within milliseconds, or
/// after an outage; the mark only bridges the time in which no view exists yet.
pub(super) const PENDING_SECONDS: i64 = 7 * 24 * 3600;

/// What the list of a customer's orders needs of an order.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listed {
    customer_id: CustomerId,
    placed_at: DateTime<Utc>,
}

impl Listed {
    /// The key of the list, and the place in it.
    pub(super) fn place(&self, views: &Views, generation: u64) -> (String, f64) {
        #[expect(clippy::cast_precision_loss, reason = "exact until the year 2255")]
        let score = self.placed_at.timestamp_micros() as f64;
        (views.customer_orders_key(generation, self.customer_id.as_str()), score)
    }
}

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
            .with_script(|| try_join_all(events.clone().map(|e| self.write_one(e, generation))));
        let counts = self.count(generation, events.clone(), false);
        tokio::try_join!(documents, counts).map(|_| ())
    }

    /// Does what needs the scripts, and again where Redis does not have them: it was restarted, or
    /// is new. Writing again is harmless.
    pub(super) async fn with_script<T, F>(&self, write: impl Fn() -> F) -> Result<T, ViewError>
    where
        F: Future<Output = Result<T, ViewError>>,
    {
        match write().await {
            Err(ViewError::Redis(error)) if error.details().starts_with("NOSCRIPT") => {
                for script in [PUT, COUNT] {
                    if self.redis.is_clustered() {
                        self.redis.script_load_cluster::<(), _>(script).await?;
                    } else {
                        self.redis.script_load::<(), _>(script).await?;
                    }
                }
                write().await
            }
            result => result,
        }
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
        let put = self.redis.evalsha::<(), _, _, _>(self.put.sha1().clone(), vec![key], arguments);
        let (key, score) = match event.subject {
            Subject::Order => event.state::<Listed>()?.place(self, generation),
            Subject::Product => (self.products_key(generation), 0.0),
            Subject::Customer | Subject::Command => return Ok(put.await?),
        };
        let list = self.redis.zadd(key, None, None, false, false, (score, id.as_str()));
        Ok(tokio::try_join!(put, list).map(|((), ())| ())?)
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
