//! Marks of pending commands in the views: a courtesy for who reads right after an acceptance. They
//! are written for many commands at a time, and never hold an acceptance up for long.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millrace_shared::views::{Mark, Views};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

/// How long an acceptance waits for its mark.
const GLANCE: Duration = Duration::from_millis(100);
/// After a failure Redis is left alone for this long on the way of an acceptance.
const REST: Duration = Duration::from_secs(1);
/// Marks that are written at a time.
const BATCH: usize = 256;

/// Writes marks, as long as that works.
#[derive(Debug)]
pub struct Marks {
    queue: mpsc::Sender<(Mark, oneshot::Sender<()>)>,
    failed_at: Arc<Mutex<Option<Instant>>>,
}

impl Marks {
    /// Marks in `views`. Their task ends with this.
    pub fn new(views: Views) -> Self {
        let (queue, waiting) = mpsc::channel(BATCH * 4);
        let failed_at = Arc::default();
        tokio::spawn(write(views, waiting, Arc::clone(&failed_at)));
        Self { queue, failed_at }
    }

    /// Whether Redis may be asked: not for a while after it has failed.
    pub fn may_try(&self) -> bool {
        let failed_at = *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        failed_at.is_none_or(|at| at.elapsed() >= REST)
    }

    /// Notes that a command is pending; gives up after a moment.
    pub async fn note(&self, mark: Mark) {
        let (done, marked) = oneshot::channel();
        if self.queue.try_send((mark, done)).is_err() || timeout(GLANCE, marked).await.is_err() {
            failed(&self.failed_at);
        }
    }
}

fn failed(at: &Mutex<Option<Instant>>) {
    tracing::debug!("a pending command was not marked in the views");
    *at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
}

/// Takes what waits and writes it, while further marks gather.
async fn write(
    views: Views,
    mut waiting: mpsc::Receiver<(Mark, oneshot::Sender<()>)>,
    failed_at: Arc<Mutex<Option<Instant>>>,
) {
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        let (marks, done): (Vec<Mark>, Vec<_>) = batch.drain(..).unzip();
        if !matches!(timeout(GLANCE, views.mark_pending(&marks)).await, Ok(Ok(()))) {
            failed(&failed_at);
        }
        for done in done {
            // Who has stopped waiting does not want the answer.
            done.send(()).ok();
        }
    }
}
