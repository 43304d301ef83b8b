//! Live streams as Server-Sent Events: of one order, and of one customer with its orders.
//!
//! Nothing is queued for a client: its stream knows how far the client is, and makes the next
//! messages from the views when the client takes them. Whoever is slow gets fewer and newer ones;
//! whoever takes nothing at all is cut off by the listener. What many clients watch is read once
//! for each change ([`topics`]). Everything a stream needs to go on is in the id of its last
//! message, so any replica can go on with it.

pub mod customers;
pub mod orders;
pub mod topics;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse as _, Response};
use clap::Args;
use futures_util::stream;
use millrace_shared::metrics::{Open, metrics};
use millrace_shared::views::{ViewError, Views};
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use utoipa::IntoParams;

use self::customers::CustomerNews;
use self::orders::OrderNews;
use self::topics::Topics;
use crate::auth::limits::OwnStream;
use crate::auth::{Caller, Gate};
use crate::error::Problem;
use crate::wait::Waiters;

/// How long a stream that is opened waits for what it is about: a command that places it may be on
/// its way.
pub const FIRST_WAIT: Duration = Duration::from_secs(5);
/// How long it is waited after a read that has failed.
const AFTER_FAILURE: Duration = Duration::from_millis(500);
/// When a client is to come back, in milliseconds: not all at the same time.
const RETRY: std::ops::Range<u32> = 500..2_500;
/// A comment, which clients ignore.
const HEARTBEAT: Bytes = Bytes::from_static(b":\n\n");

/// How live streams are served.
#[derive(Debug, Clone, Args)]
pub struct LiveConfig {
    /// Live streams at a time; further ones are refused with 503
    #[arg(long, env = "MILLRACE_STREAMS", value_name = "NUMBER", default_value_t = 10_000)]
    pub streams: usize,
    /// Seconds after which a live stream without news says that it is there
    #[arg(long, env = "MILLRACE_HEARTBEAT", value_name = "SECONDS", default_value_t = 15,
          value_parser = clap::value_parser!(u32).range(1..=60))]
    pub heartbeat: u32,
    /// Seconds after which a client is cut off that takes nothing of what is sent to it
    #[arg(long, env = "MILLRACE_STALLED", value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(1..=600))]
    pub stalled: u32,
}

impl Default for LiveConfig {
    fn default() -> Self {
        Self { streams: 10_000, heartbeat: 15, stalled: 30 }
    }
}

/// What all live streams share.
#[derive(Debug)]
pub struct Live {
    pub(crate) orders: Arc<Topics<OrderNews>>,
    pub(crate) customers: Arc<Topics<CustomerNews>>,
    waiters: Arc<Waiters>,
    slots: Arc<Semaphore>,
    heartbeat: Duration,
    stopping: CancellationToken,
}

impl Live {
    /// Streams over `views`; all end when the process is `stopping`.
    pub fn new(config: &LiveConfig, views: &Views, stopping: CancellationToken) -> Self {
        // A topic ends a moment after its last stream.
        let waiters = Arc::new(Waiters::new(config.streams * 2, stopping.clone()));
        Self {
            orders: Topics::new(views.clone(), Arc::clone(&waiters)),
            customers: Topics::new(views.clone(), Arc::clone(&waiters)),
            waiters,
            slots: Arc::new(Semaphore::new(config.streams)),
            heartbeat: Duration::from_secs(config.heartbeat.into()),
            stopping,
        }
    }

    /// Those who are woken by changes.
    pub fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Room for one more stream of a caller, until its token ends.
    pub fn slot(&self, gate: &Gate, caller: &Caller) -> Result<Slot, Problem> {
        let own = gate.stream(caller)?;
        let all = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| too_many())?;
        let until = caller.left().map(|left| Instant::now() + left);
        Ok(Slot { until, _all: all, _own: own })
    }

    /// The answer that goes on until the feed ends, the client leaves or the process stops.
    pub fn answer<F: Feed>(
        &self,
        slot: Slot,
        news: News<F::News>,
        feed: F,
        first: Step,
    ) -> Response {
        let retry = format!("retry: {}\n\n", rand::random_range(RETRY));
        let mut client = Client {
            feed,
            news,
            ready: VecDeque::from([Bytes::from(retry)]),
            then: Then::Wait,
            heartbeat: self.heartbeat,
            stopping: self.stopping.clone(),
            slot,
            _open: Open::new(&metrics().streams, 1, Vec::new()),
        };
        client.queue(first);
        let frames = stream::unfold(client, |mut client| async {
            let frame = client.next().await?;
            Some((Ok::<_, Infallible>(frame), client))
        });
        let mut response = Body::from_stream(frames).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // Or nginx keeps messages until it has a page of them.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }
}

/// The place of one open stream.
#[derive(Debug)]
pub struct Slot {
    /// When its caller's token ends.
    until: Option<Instant>,
    _all: OwnedSemaphorePermit,
    _own: OwnStream,
}

/// The answer to who wants one stream too many.
pub fn too_many() -> Problem {
    Problem::overloaded("too many live streams are open")
}

/// What tells a stream of news.
pub type News<T> = watch::Receiver<Option<Arc<T>>>;

/// How far a client is, and what it gets next.
pub trait Feed: Send + 'static {
    /// What it follows.
    type News: Send + Sync + 'static;
    /// The next messages after `news`, or after a look of its own.
    fn step(
        &mut self,
        news: Option<&Self::News>,
    ) -> impl Future<Output = Result<Step, ViewError>> + Send;
}

/// What a client gets next: a bounded number of messages.
#[derive(Debug, Default)]
pub struct Step {
    /// The messages.
    pub messages: Vec<Bytes>,
    /// What comes after them.
    pub then: Then,
}

/// What comes after the messages of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Then {
    /// News are waited for.
    #[default]
    Wait,
    /// There is more already.
    More,
    /// The stream ends: nothing can ever follow.
    End,
}

/// One open stream.
struct Client<F: Feed> {
    feed: F,
    news: News<F::News>,
    ready: VecDeque<Bytes>,
    then: Then,
    heartbeat: Duration,
    stopping: CancellationToken,
    slot: Slot,
    _open: Open,
}

impl<F: Feed> Client<F> {
    fn queue(&mut self, step: Step) {
        self.ready.extend(step.messages);
        self.then = step.then;
    }

    /// The next bytes; nothing at the end. Only called when the last ones were taken.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            let (stopping, until) = (self.stopping.clone(), self.slot.until);
            tokio::select! {
                biased;
                // Clients come back, to another replica.
                () = stopping.cancelled() => return None,
                // Or with another token.
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => return None,
                went_on = self.advance() => match went_on {
                    Some(true) => {}
                    Some(false) => return Some(HEARTBEAT),
                    None => return None,
                }
            }
        }
    }

    /// Makes a step; false if there was no news for a while, nothing at the end.
    async fn advance(&mut self) -> Option<bool> {
        let news = match self.then {
            Then::End => return None,
            Then::More => None,
            Then::Wait => match tokio::time::timeout(self.heartbeat, self.news.changed()).await {
                Ok(changed) => {
                    changed.ok()?;
                    self.news.borrow_and_update().clone()
                }
                Err(_) => return Some(false),
            },
        };
        // Boxed, so that a stream that waits is small.
        match Box::pin(self.feed.step(news.as_deref())).await {
            Ok(step) => self.queue(step),
            Err(error) => {
                tracing::debug!(%error, "a live stream cannot go on now");
                sleep(AFTER_FAILURE).await;
                self.then = Then::More;
            }
        }
        Some(true)
    }
}

/// Where a stream is to go on, for clients that cannot set headers.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Resume {
    /// The `id` of the last event that the client has.
    last_event_id: Option<String>,
}

impl Resume {
    /// The id of the last message that the client has: the header goes before the query, for an
    /// `EventSource` repeats its first query when it comes back.
    pub fn last<'a>(&'a self, headers: &'a HeaderMap) -> Option<&'a str> {
        let header = headers.get("last-event-id").and_then(|value| value.to_str().ok());
        header.filter(|id| !id.is_empty()).or(self.last_event_id.as_deref())
    }
}

/// The text of a message that comes after its id.
pub fn data(json: &str) -> String {
    let mut text = String::with_capacity(json.len() + 16);
    // A line break is white space in JSON, and would end the field.
    for line in json.split(['\r', '\n']) {
        // Writing into a string does not fail.
        let _ = writeln!(text, "data: {line}");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_breaks_in_a_document_do_not_break_the_message() {
        assert_eq!(data("{}"), "data: {}\n\n");
        assert_eq!(data("{\n \"a\":\r1}"), "data: {\ndata:  \"a\":\ndata: 1}\n\n");
    }
}
