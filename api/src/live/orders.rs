//! The stream of one order: a message for each version, with the version as its id.
//!
//! The document of an order has all its steps, so none is missed whatever the client has missed: it
//! gets a short message for each step up to the newest, and the whole order in that of the newest.

use std::sync::Arc;

use axum::body::Bytes;
use millrace_shared::message::Subject;
use millrace_shared::order::{OrderStatus, Step as OrderStep};
use millrace_shared::views::{Document, ViewError, Views};
use serde::Deserialize;
use serde_json::json;

use super::topics::Watched;
use super::{Feed, Step, Then, data};

/// An order as it is in the views, made ready to be sent to many.
#[derive(Debug)]
pub struct OrderNews {
    version: u64,
    /// The message of each version.
    messages: Vec<(u64, Bytes)>,
    /// Whether nothing can follow.
    ended: bool,
}

/// What the stream reads of the document.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Followed {
    order_id: String,
    status: String,
    #[serde(default)]
    timeline: Vec<OrderStep>,
}

impl OrderNews {
    /// The news that a document tells.
    pub fn of(document: &Document) -> Result<Self, ViewError> {
        let damaged = |_| ViewError::Damaged("of an order".to_owned());
        let order: Followed = serde_json::from_str(&document.json).map_err(damaged)?;
        let message = |version: u64, json: &str| {
            (version, Bytes::from(format!("id: {version}\n{}", data(json))))
        };
        let before = order.timeline.iter().filter(|step| step.version < document.version);
        let mut messages: Vec<(u64, Bytes)> = before
            .map(|step| {
                let short = json!({ "orderId": order.order_id, "status": step.status,
                    "version": step.version, "updatedAt": step.at });
                message(step.version, &short.to_string())
            })
            .collect();
        messages.push(message(document.version, &document.json));
        let ended = [OrderStatus::Rejected, OrderStatus::Refunded];
        let ended = ended.iter().any(|end| end.as_str() == order.status);
        Ok(Self { version: document.version, messages, ended })
    }

    /// Whether nothing can follow for a client that has this version.
    pub fn is_over_for(&self, version: Option<u64>) -> bool {
        self.ended && version.is_some_and(|version| version >= self.version)
    }
}

impl Watched for OrderNews {
    fn keys(id: &str) -> Vec<String> {
        vec![format!("order/{id}")]
    }

    async fn look(
        views: &Views,
        id: &str,
        before: Option<Arc<Self>>,
    ) -> Result<Option<Self>, ViewError> {
        let document = views.document(Subject::Order, id).await?;
        let newer = |document: &Document| {
            before.as_ref().is_none_or(|before| document.version > before.version)
        };
        document.filter(newer).map(|document| Self::of(&document)).transpose()
    }
}

/// How far a client is in the history of an order.
#[derive(Debug)]
pub struct OrderFeed {
    version: Option<u64>,
}

impl OrderFeed {
    /// After a version that the client has; without one, from the order as it is.
    pub fn after(version: Option<u64>) -> Self {
        Self { version }
    }

    /// The messages that the client has not had.
    pub fn take(&mut self, news: &OrderNews) -> Step {
        let after = self.version.unwrap_or(news.version.saturating_sub(1));
        let first = self.version.is_none();
        let newer = news.messages.iter().filter(|(version, _)| {
            // An order that is pending has no version yet, and is shown all the same.
            *version > after || (first && *version == news.version)
        });
        let messages = newer.map(|(_, message)| message.clone()).collect();
        self.version = Some(self.version.map_or(news.version, |had| had.max(news.version)));
        Step { messages, then: if news.ended { Then::End } else { Then::Wait } }
    }
}

impl Feed for OrderFeed {
    type News = OrderNews;

    async fn step(&mut self, news: Option<&OrderNews>) -> Result<Step, ViewError> {
        Ok(news.map(|news| self.take(news)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(version: u64, status: &str) -> OrderNews {
        let steps = ["validated", "paid", "shipped", "refunding", "refunded"];
        let timeline: Vec<_> = (1..=version)
            .zip(steps)
            .map(|(version, status)| {
                json!({ "version": version, "status": status, "at": "2026-01-01T00:00:00Z" })
            })
            .collect();
        let json = json!({ "orderId": "o", "status": status, "version": version,
            "timeline": timeline });
        OrderNews::of(&Document { version, json: json.to_string() }).unwrap()
    }

    fn ids(step: &Step) -> Vec<u64> {
        let id = |message: &Bytes| {
            let text = std::str::from_utf8(message).unwrap();
            text.strip_prefix("id: ").unwrap().lines().next().unwrap().parse().unwrap()
        };
        step.messages.iter().map(id).collect()
    }

    #[test]
    fn from_every_version_to_every_other_there_is_neither_gap_nor_repetition() {
        for had in 0..=5 {
            for now in 0..=5 {
                let mut feed = OrderFeed::after(Some(had));
                let expected: Vec<u64> = (had + 1..=now).collect();
                assert_eq!(ids(&feed.take(&order(now, "paid"))), expected, "{had} to {now}");
                assert_eq!(ids(&feed.take(&order(now, "paid"))), [0; 0], "once");
                let expected: Vec<u64> = (had.max(now) + 1..=5).collect();
                assert_eq!(ids(&feed.take(&order(5, "refunding"))), expected);
            }
        }
    }

    #[test]
    fn without_a_version_the_order_as_it_is_comes_first_and_pending_is_shown() {
        let mut feed = OrderFeed::after(None);
        assert_eq!(ids(&feed.take(&order(0, "pending"))), [0]);
        assert_eq!(ids(&feed.take(&order(2, "paid"))), [1, 2]);
        let mut late = OrderFeed::after(None);
        assert_eq!(ids(&late.take(&order(3, "shipped"))), [3]);
        // What is read may be older than what the client has had from elsewhere.
        assert_eq!(ids(&late.take(&order(2, "paid"))), [0; 0]);
        assert_eq!(ids(&late.take(&order(4, "refunding"))), [4]);
    }

    #[test]
    fn the_stream_ends_with_what_nothing_can_follow() {
        let mut feed = OrderFeed::after(Some(4));
        let last = order(5, "refunded");
        assert!(!last.is_over_for(Some(4)) && !last.is_over_for(None));
        let step = feed.take(&last);
        assert_eq!((ids(&step), step.then), (vec![5], Then::End));
        assert!(last.is_over_for(Some(5)));
        assert!(!order(5, "cancelled").is_over_for(Some(5)));
    }
}
