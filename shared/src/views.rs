//! The read views in Redis (or Valkey): keys, scripts, reads and writes. The only file that knows
//! Redis. Every script touches one key, so a Redis Cluster serves as well.
//!
//! | key | type | holds |
//! |---|---|---|
//! | `NS:order:ID` | string | `VERSION JSON`; version 0 while the order is pending |
//! | `NS:customer:ID` | string | `VERSION JSON` |
//! | `NS:product:ID` | string | `VERSION JSON` |
//! | `NS:command:ID` | string | the outcome as JSON |
//! | `NS:customer:ID:orders` | sorted set | order ids by the microsecond they were placed |
//! | `NS:products` | sorted set | product ids, in the order of their bytes |
//! | `NS:changes` | channel | `SUBJECT/ID VERSION` lines, after the views were written |

mod changes;
mod lists;

pub use changes::{Change, watch_changes};
pub use lists::Page;

use chrono::{DateTime, Utc};
use fred::clients::Client;
use fred::error::Error as RedisError;
use fred::interfaces::{
    ClientLike, KeysInterface, LuaInterface, PubsubInterface, SortedSetsInterface,
};
use fred::types::scripts::Script;
use fred::types::{Expiration, SetOptions};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};

use crate::ids::{CommandId, CustomerId};
use crate::message::{CommandOutcome, Event, EventError, Subject};
use crate::order::Order;
use crate::reason::Reason;

/// Writes a document unless one of the same or a newer version is there.
const PUT: &str = "
local old = string.match(redis.call('GETRANGE', KEYS[1], 0, 19), '^%d+')
if old and tonumber(old) >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2])
return 1";

/// How long an accepted command may be shown as pending. It is decided within milliseconds, or
/// after an outage; the mark only bridges the time in which no view exists yet.
const PENDING_SECONDS: i64 = 7 * 24 * 3600;

/// Why a view could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Redis is away, slow or refuses.
    #[error("Redis did not answer as it should")]
    Redis(#[from] RedisError),
    /// An event, or a document, that cannot be read.
    #[error(transparent)]
    Event(#[from] EventError),
    /// A document that does not have the form of this file.
    #[error("the view {0} is damaged; `millrace rebuild` makes it anew")]
    Damaged(String),
}

/// A document with its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The version of the subject's last event in it; 0 is pending.
    pub version: u64,
    /// The document as JSON text.
    pub json: String,
}

/// What became of a command, as it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandView {
    /// The command.
    pub command_id: CommandId,
    /// How far it is.
    pub status: CommandStatus,
    /// Why it was rejected, for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Why it was rejected, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The order that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_id: Option<String>,
    /// The customer that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<String>,
    /// The product that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product_id: Option<String>,
    /// The version of the event that it led to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

/// How far a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandStatus {
    /// Stored, not decided.
    Pending,
    /// Carried out.
    Accepted,
    /// Refused; it has had no effect.
    Rejected,
}

impl CommandView {
    /// A command that is stored and not decided.
    pub fn pending(command_id: CommandId) -> Self {
        Self {
            command_id,
            status: CommandStatus::Pending,
            reason: None,
            detail: None,
            order_id: None,
            customer_id: None,
            product_id: None,
            version: None,
        }
    }

    /// Names what the command is about.
    #[must_use]
    pub fn about(mut self, subject: Subject, id: String) -> Self {
        match subject {
            Subject::Order => self.order_id = Some(id),
            Subject::Customer => self.customer_id = Some(id),
            Subject::Product => self.product_id = Some(id),
            Subject::Command => {}
        }
        self
    }
}

/// The views below one namespace.
#[derive(Debug, Clone)]
pub struct Views {
    redis: Client,
    namespace: String,
    put: Script,
}

impl Views {
    /// The views that `redis` holds below `namespace`.
    pub fn new(redis: Client, namespace: &str) -> Self {
        Self { redis, namespace: namespace.to_owned(), put: Script::from_lua(PUT) }
    }

    /// Whether there is a connection to Redis now. Ask first where waiting for one is worse than
    /// doing without.
    pub fn is_connected(&self) -> bool {
        self.redis.is_connected()
    }

    /// Closes the connection.
    pub async fn close(&self) -> Result<(), ViewError> {
        Ok(self.redis.quit().await?)
    }

    /// Whether Redis answers.
    pub async fn ping(&self) -> Result<(), ViewError> {
        Ok(self.redis.ping::<()>(None).await?)
    }

    fn key(&self, subject: Subject, id: &str) -> String {
        format!("{}:{subject}:{id}", self.namespace)
    }

    fn customer_orders_key(&self, customer: &str) -> String {
        format!("{}:customer:{customer}:orders", self.namespace)
    }

    fn products_key(&self) -> String {
        format!("{}:products", self.namespace)
    }

    /// The channel on which changes are told.
    pub fn changes_channel(&self) -> String {
        format!("{}:changes", self.namespace)
    }

    /// Writes the views of a batch of events, in one round trip, then tells the changes. Events may
    /// come twice and in any order: a view never goes back to an older version.
    pub async fn apply<'a>(
        &self,
        events: impl Iterator<Item = &'a Event> + Clone + Send,
    ) -> Result<(), ViewError> {
        match self.write(events.clone()).await {
            Err(ViewError::Redis(error)) if error.details().starts_with("NOSCRIPT") => {
                // Redis was restarted, or is new. Writing again is harmless.
                self.redis.script_load::<(), _>(PUT).await?;
                self.write(events.clone()).await?;
            }
            result => result?,
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
        events: impl Iterator<Item = &'a Event> + Send,
    ) -> Result<(), ViewError> {
        // The commands share one connection and go out together: a pipeline.
        try_join_all(events.map(|event| self.write_one(event))).await?;
        Ok(())
    }

    async fn write_one(&self, event: &Event) -> Result<(), ViewError> {
        let id = &event.subject_id;
        if event.subject != Subject::Command {
            let arguments = vec![event.version.to_string(), event.state.get().to_owned()];
            let key = self.key(event.subject, id);
            let put =
                self.redis.evalsha::<(), _, _, _>(self.put.sha1().clone(), vec![key], arguments);
            match event.subject {
                Subject::Order => {
                    let order: Listed = event.state()?;
                    #[expect(clippy::cast_precision_loss, reason = "exact until the year 2255")]
                    let score = order.placed_at.timestamp_micros() as f64;
                    let key = self.customer_orders_key(order.customer_id.as_str());
                    let list = self.redis.zadd(key, None, None, false, false, (score, id.as_str()));
                    tokio::try_join!(put, list).map(|((), ())| ())?;
                }
                Subject::Product => {
                    let member = (0.0, id.as_str());
                    let list =
                        self.redis.zadd(self.products_key(), None, None, false, false, member);
                    tokio::try_join!(put, list).map(|((), ())| ())?;
                }
                _ => put.await?,
            }
        }
        if let Some(view) = command_view(event)? {
            let key = self.key(Subject::Command, &view.command_id.to_string());
            self.redis.set::<(), _, _>(key, json(&view)?, None, None, false).await?;
        }
        Ok(())
    }

    /// Notes that a command was stored, so that a read in the next moment says *pending* instead of
    /// *not found*. Changes nothing where a view exists already.
    pub async fn mark_pending(
        &self,
        command: &CommandView,
        placed: Option<(&CustomerId, DateTime<Utc>)>,
    ) -> Result<(), ViewError> {
        let expire = || Some(Expiration::EX(PENDING_SECONDS));
        let key = self.key(Subject::Command, &command.command_id.to_string());
        let mark =
            self.redis.set::<(), _, _>(key, json(command)?, expire(), Some(SetOptions::NX), false);
        let (Some(order), Some((customer, placed_at))) = (&command.order_id, placed) else {
            return Ok(mark.await?);
        };
        let pending = serde_json::json!({
            "orderId": order, "customerId": customer, "status": "pending", "version": 0,
            "placedAt": placed_at, "commandId": command.command_id,
        });
        let key = self.key(Subject::Order, order);
        let value = format!("0 {pending}");
        let view = self.redis.set::<(), _, _>(key, value, expire(), Some(SetOptions::NX), false);
        tokio::try_join!(mark, view)?;
        Ok(())
    }

    /// What became of a command.
    pub async fn command(&self, id: CommandId) -> Result<Option<CommandView>, ViewError> {
        let key = self.key(Subject::Command, &id.to_string());
        let text: Option<String> = self.redis.get(&key).await?;
        text.map(|text| serde_json::from_str(&text).map_err(|_| ViewError::Damaged(key)))
            .transpose()
    }

    /// The document of an order, customer or product.
    pub async fn document(
        &self,
        subject: Subject,
        id: &str,
    ) -> Result<Option<Document>, ViewError> {
        let key = self.key(subject, id);
        let text: Option<String> = self.redis.get(&key).await?;
        text.map(|text| split(&key, &text)).transpose()
    }

    async fn documents(&self, keys: &[String]) -> Result<Vec<Option<Document>>, ViewError> {
        // Not MGET: the keys lie in different slots of a cluster.
        let texts: Vec<Option<String>> =
            try_join_all(keys.iter().map(|key| self.redis.get(key))).await?;
        keys.iter()
            .zip(texts)
            .map(|(key, text)| text.map(|text| split(key, &text)).transpose())
            .collect()
    }
}

/// What the list of a customer's orders needs of an order.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    customer_id: CustomerId,
    placed_at: DateTime<Utc>,
}

impl Event {
    /// The command that this event answers: absent where another event caused it, or where it sums
    /// up several causes.
    pub fn answers(&self) -> Option<CommandId> {
        (self.causation == self.correlation && !self.causation.is_nil())
            .then_some(CommandId(self.causation))
    }
}

/// The outcome of a command that an event tells, if it tells one.
pub fn command_view(event: &Event) -> Result<Option<CommandView>, ViewError> {
    let Some(command_id) = event.answers() else { return Ok(None) };
    let mut view = CommandView::pending(command_id);
    view.status = CommandStatus::Accepted;
    let mut refusal = None;
    match event.subject {
        Subject::Command => {
            let outcome: CommandOutcome = event.state()?;
            if let Some(about) = outcome.about {
                view = view.about(about.subject, about.id);
            }
            refusal = outcome.refusal.map(|refusal| (refusal.reason, refusal.detail));
        }
        subject => {
            view.version = Some(event.version);
            view = view.about(subject, event.subject_id.clone());
            if event.kind == "rejected" {
                let order: Order = event.state()?;
                refusal = order.reason.map(|reason| (reason, order.detail.unwrap_or_default()));
            }
        }
    }
    if let Some((reason, detail)) = refusal {
        view.status = CommandStatus::Rejected;
        view.reason = Some(reason);
        view.detail = Some(detail);
    }
    Ok(Some(view))
}

fn json<T: Serialize>(value: &T) -> Result<String, EventError> {
    Ok(serde_json::to_string(value)?)
}

fn split(key: &str, text: &str) -> Result<Document, ViewError> {
    let damaged = || ViewError::Damaged(key.to_owned());
    let (version, json) = text.split_once(' ').ok_or_else(damaged)?;
    let version = version.parse().map_err(|_| damaged())?;
    Ok(Document { version, json: json.to_owned() })
}
