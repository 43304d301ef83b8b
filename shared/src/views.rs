//! The read views in Redis (or Valkey): keys, scripts, reads and writes. The only file that knows
//! Redis. Every script touches one hash slot, so a Redis Cluster serves as well.
//!
//! | key | type | holds |
//! |---|---|---|
//! | `NS:generation` | string | which generation `G` is read: see [`Generations`] |
//! | `NS:G:order:ID` | string | `VERSION JSON`; version 0 while the order is pending |
//! | `NS:G:customer:ID` | string | `VERSION JSON` |
//! | `NS:G:product:ID` | string | `VERSION JSON` |
//! | `NS:G:command:ID` | string | the outcome as JSON |
//! | `NS:G:orders-of:{CUSTOMER}:STATUS` | sorted set | the customer's orders that are in this status: `MICROSECOND_ORDER` |
//! | `NS:G:orders-on:{DAY}:STATUS` | sorted set | the same of all orders that were placed on a day |
//! | `NS:G:order-days` | sorted set | the days that have orders |
//! | `NS:G:customer:ID:changed` | sorted set | the orders that changed last, for those who follow the customer; not part of what is rebuilt |
//! | `NS:G:products` | sorted set | product ids, in the order of their bytes |
//! | `NS:G:reports:{SLOT}:…` | hashes | the sums of the reports: see `views/reports.rs` |
//! | `NS:through` | string | `RUN PLACE`: which server has all events up to which place |
//! | `NS:changes` | channel | `SUBJECT/ID VERSION` lines, after the views were written; `customer-orders/ID` for the customer of a changed order |

mod anew;
mod batch;
mod changed;
mod changes;
mod generation;
mod lists;
mod orders;
mod reports;
mod scripts;
mod through;
mod write;

pub use anew::{Difference, Row};
pub use changed::{CHANGES_KEPT, ChangedOrder, Changes, CustomerChanges};
pub use changes::{Change, watch_changes};
pub use generation::{FRESH, Generations};
pub use lists::Page;
pub use orders::{OrderEntry, OrderFilter, OrderList, OrderPage, Place};
pub use reports::{By, Range, Sales, Sold};
pub use through::Restarted;
pub use write::Mark;

use std::sync::Arc;

use fred::clients::Client;
use fred::error::Error as RedisError;
use fred::interfaces::{ClientLike as _, KeysInterface as _};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{CommandId, CustomerId};
use crate::message::{CommandOutcome, Event, EventError, Subject};
use crate::order::Order;
use crate::reason::Reason;

/// Why a view could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Redis is away, slow or refuses.
    #[error("Redis did not answer as it should")]
    Redis(#[from] RedisError),
    /// An event, or a document, that cannot be read.
    #[error(transparent)]
    Event(#[from] EventError),
    /// There are no views: Redis is new, or was emptied, and they are still to be made.
    #[error("the views are not there; they are made anew")]
    Absent,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
    /// The customer in whose name it was given, while no event of that customer's order tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<CustomerId>,
}

/// How far a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
            on_behalf_of: None,
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
    scripts: scripts::Scripts,
    seen: Arc<generation::Seen>,
}

impl Views {
    /// The views that `redis` holds below `namespace`.
    pub fn new(redis: Client, namespace: &str) -> Self {
        Self {
            redis,
            namespace: namespace.to_owned(),
            scripts: scripts::Scripts::new(),
            seen: Arc::default(),
        }
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

    fn key(&self, generation: u64, subject: Subject, id: &str) -> String {
        format!("{}:{generation}:{subject}:{id}", self.namespace)
    }

    fn products_key(&self, generation: u64) -> String {
        format!("{}:{generation}:products", self.namespace)
    }

    /// The channel on which changes are told.
    pub fn changes_channel(&self) -> String {
        format!("{}:changes", self.namespace)
    }

    /// What became of a command.
    pub async fn command(&self, id: CommandId) -> Result<Option<CommandView>, ViewError> {
        self.read(|generation| async move {
            let keys = [self.key(generation, Subject::Command, &id.to_string())];
            let (texts, now) = self.texts(&keys).await?;
            Ok((outcome(&keys[0], texts.into_iter().next().flatten())?, now))
        })
        .await
    }

    /// The document of an order, customer or product.
    pub async fn document(
        &self,
        subject: Subject,
        id: &str,
    ) -> Result<Option<Document>, ViewError> {
        self.read(|generation| async move {
            let (documents, now) = self.documents(&[self.key(generation, subject, id)]).await?;
            Ok((documents.into_iter().next().flatten(), now))
        })
        .await
    }

    /// What became of a command, and the document that it is about, both at one moment.
    pub async fn outcome(
        &self,
        command: CommandId,
        (subject, id): (Subject, &str),
    ) -> Result<(Option<CommandView>, Option<Document>), ViewError> {
        self.read(|generation| async move {
            let command = self.key(generation, Subject::Command, &command.to_string());
            let keys = [command, self.key(generation, subject, id)];
            let (texts, now) = self.texts(&keys).await?;
            let mut texts = texts.into_iter();
            let command = outcome(&keys[0], texts.next().flatten())?;
            Ok(((command, document(&keys[1], texts.next().flatten())?), now))
        })
        .await
    }

    async fn command_of(
        &self,
        generation: u64,
        id: CommandId,
    ) -> Result<Option<CommandView>, ViewError> {
        let key = self.key(generation, Subject::Command, &id.to_string());
        outcome(&key, self.redis.get(&key).await?)
    }

    async fn document_at(&self, key: String) -> Result<Option<Document>, ViewError> {
        document(&key, self.redis.get(&key).await?)
    }

    async fn documents(
        &self,
        keys: &[String],
    ) -> Result<(Vec<Option<Document>>, Generations), ViewError> {
        let (texts, now) = self.texts(keys).await?;
        let documents = keys.iter().zip(texts).map(|(key, text)| document(key, text));
        Ok((documents.collect::<Result<_, _>>()?, now))
    }
}

fn outcome(key: &str, text: Option<String>) -> Result<Option<CommandView>, ViewError> {
    let read = |text: String| serde_json::from_str(&text);
    text.map(read).transpose().map_err(|_| ViewError::Damaged(key.to_owned()))
}

fn document(key: &str, text: Option<String>) -> Result<Option<Document>, ViewError> {
    text.map(|text| split(key, text)).transpose()
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
            view.on_behalf_of = outcome.on_behalf_of;
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

fn split(key: &str, mut text: String) -> Result<Document, ViewError> {
    let damaged = || ViewError::Damaged(key.to_owned());
    let (version, _) = text.split_once(' ').ok_or_else(damaged)?;
    let (end, version) = (version.len(), version.parse().map_err(|_| damaged())?);
    text.drain(..=end);
    Ok(Document { version, json: text })
}
