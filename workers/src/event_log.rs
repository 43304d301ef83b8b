//! The log of events as the workers see it.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result};
use millrace_shared::log::{AppendError, Entry, Log, ReadError, Stored};

/// EVENTS, to be read from and appended to.
pub trait EventLog: Send + Sync + 'static {
    /// The last event of a history (a subject with a wildcard).
    fn last(&self, history: &str)
    -> impl Future<Output = Result<Option<Stored>, ReadError>> + Send;

    /// All events of a history, in their order, as far as the log still has them.
    fn history(&self, history: &str)
    -> impl Future<Output = Result<Vec<Stored>, ReadError>> + Send;

    /// Appends the entries, in their order, and returns the stream sequence of the last; tries for at
    /// most `patience`. Where it fails the first of several may be there; where no answer came the
    /// append may have happened, or may yet happen.
    fn append(
        &self,
        entries: Vec<Entry>,
        patience: Duration,
    ) -> impl Future<Output = Result<u64, AppendError>> + Send;

    /// Up to which stream sequence of another stream its consumer `name` has acknowledged all.
    fn acknowledged(&self, stream: &str, name: &str) -> impl Future<Output = Result<u64>> + Send;
}

impl EventLog for Log {
    async fn last(&self, history: &str) -> Result<Option<Stored>, ReadError> {
        Self::last(self, history).await
    }

    async fn history(&self, history: &str) -> Result<Vec<Stored>, ReadError> {
        Self::history(self, history).await
    }

    async fn append(&self, entries: Vec<Entry>, patience: Duration) -> Result<u64, AppendError> {
        Self::append(self, entries, patience).await
    }

    async fn acknowledged(&self, stream: &str, name: &str) -> Result<u64> {
        let info = self.other(stream).await?.consumer_info(name).await;
        let info =
            info.with_context(|| format!("the consumer {name} of {stream} cannot be read"))?;
        Ok(info.ack_floor.stream_sequence)
    }
}
