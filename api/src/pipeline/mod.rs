//! The pipeline as operators watch it: what lies in the streams, how far every worker is, who is
//! alive. One sampler for each process looks, often while somebody watches and seldom otherwise; all
//! who watch share what it has seen, and the last quarter of an hour is kept.

mod looks;
mod replicas;
mod sample;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use chrono::TimeDelta;
use millrace_shared::views::ViewError;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

pub use self::sample::{Point, Sample};

use self::looks::Looks;
use self::replicas::Replicas;
use self::sample::Work;
use crate::App;
use crate::live::{Feed, News, Step, data};

/// How often it is looked while somebody watches.
const WATCHED: Duration = Duration::from_secs(2);
/// How often it is looked otherwise, so that who comes finds the last quarter of an hour.
const UNWATCHED: Duration = Duration::from_secs(10);
/// At every so many looks the replicas are asked, which may be hundreds.
const ASK_REPLICAS: u32 = 3;
/// What is kept.
const KEPT: TimeDelta = TimeDelta::minutes(15);

/// The pipeline now, and its last quarter of an hour.
#[derive(Debug, Serialize, ToSchema)]
pub struct Pipeline {
    /// As it is now; absent until it was looked at for the first time.
    #[schema(value_type = Option<Sample>)]
    now: Option<Box<RawValue>>,
    /// One for each look, the oldest first.
    history: Vec<Point>,
}

/// What the sampler has seen.
#[derive(Debug)]
pub struct Monitor {
    latest: watch::Sender<Option<Arc<Seen>>>,
    history: Mutex<VecDeque<Point>>,
    woken: Notify,
}

/// A sample, made ready to be sent to many.
#[derive(Debug)]
pub struct Seen {
    json: Box<RawValue>,
    message: Bytes,
}

impl Default for Monitor {
    fn default() -> Self {
        Self { latest: watch::Sender::new(None), history: Mutex::default(), woken: Notify::new() }
    }
}

impl Monitor {
    /// Tells every sample from now on; it is looked often as long as this is held.
    pub fn watch(&self) -> News<Seen> {
        let news = self.latest.subscribe();
        self.woken.notify_one();
        news
    }

    /// What is known now.
    pub fn pipeline(&self) -> Pipeline {
        let now = self.latest.borrow().as_ref().map(|seen| seen.json.clone());
        Pipeline { now, history: self.history().iter().cloned().collect() }
    }

    fn history(&self) -> MutexGuard<'_, VecDeque<Point>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the pipeline again and again, until the shutdown.
    pub async fn run(&self, app: &App, shutdown: &CancellationToken) {
        let mut looks = Looks::default();
        let mut work = Work::default();
        let mut replicas = Replicas::default();
        let mut count = 0_u32;
        while !shutdown.is_cancelled() {
            // A role without replicas is looked for at every look: it may just be starting.
            if count.is_multiple_of(ASK_REPLICAS) || !replicas.all_alive() {
                replicas.ask(app).await;
            }
            count = count.wrapping_add(1);
            let sample = work.sample(looks.look(app).await, &replicas);
            self.tell(&sample);
            let watched = self.latest.receiver_count() > 0;
            tokio::select! {
                () = sleep(if watched { WATCHED } else { UNWATCHED }) => {}
                // Who comes sees how it is now; but not faster than others do.
                () = self.woken.notified(), if !watched => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    fn tell(&self, sample: &Sample) {
        let point = Point::of(sample);
        let mut history = self.history();
        while history.front().is_some_and(|oldest| sample.at - oldest.at > KEPT) {
            history.pop_front();
        }
        history.push_back(point);
        drop(history);
        match serde_json::value::to_raw_value(sample) {
            Ok(json) => {
                let message = Bytes::from(data(json.get()));
                self.latest.send_replace(Some(Arc::new(Seen { json, message })));
            }
            Err(error) => tracing::error!(%error, "a sample cannot be written as JSON"),
        }
    }
}

/// A stream of samples. There is nothing to go on from: the newest is all that counts.
#[derive(Debug)]
pub struct Samples;

impl Samples {
    /// The first message: what is known now.
    pub fn first(news: &mut News<Seen>) -> Step {
        Self::messages(news.borrow_and_update().as_deref())
    }

    fn messages(seen: Option<&Seen>) -> Step {
        let messages = seen.map(|seen| seen.message.clone()).into_iter().collect();
        Step { messages, ..Step::default() }
    }
}

impl Feed for Samples {
    type News = Seen;

    async fn step(&mut self, news: Option<&Seen>) -> Result<Step, ViewError> {
        Ok(Self::messages(news))
    }
}
