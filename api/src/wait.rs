//! Waiting for views to change, without polling: one subscription of the process to the changes
//! wakes whoever waits for what has changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// Whoever waits looks again after this time, come what may. Nothing is known to need it: where
/// changes are lost (with the connection, in an overfull channel, while the views were made anew)
/// all who wait are woken. So it is rare: a net below the net, and no polling.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// After a look that failed: Redis may be back before any change is told.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// All who wait, by what they wait for: `SUBJECT/ID`.
#[derive(Debug)]
pub struct Waiters {
    table: Mutex<HashMap<String, Vec<Arc<Notify>>>>,
    slots: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl Waiters {
    /// Room for `most` waiters; all stop waiting when the process is `stopping`.
    pub fn new(most: usize, stopping: CancellationToken) -> Self {
        Self { table: Mutex::default(), slots: Arc::new(Semaphore::new(most)), stopping }
    }

    /// Begins to listen for changes of `keys`; nothing, if too many wait already. Register first and
    /// look then: so no change is missed.
    pub fn register(self: &Arc<Self>, keys: Vec<String>) -> Option<Waiter> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        let notify = Arc::new(Notify::new());
        let mut table = self.table();
        for key in &keys {
            table.entry(key.clone()).or_default().push(Arc::clone(&notify));
        }
        drop(table);
        Some(Waiter { waiters: Arc::clone(self), keys, notify, _slot: slot })
    }

    /// Wakes those who wait for what a message of the changes channel names: lines of
    /// `SUBJECT/ID VERSION`.
    pub fn wake(&self, changes: &str) {
        let table = self.table();
        if table.is_empty() {
            return;
        }
        let keys = changes.lines().filter_map(|line| line.split(' ').next());
        keys.filter_map(|key| table.get(key)).flatten().for_each(|notify| notify.notify_one());
    }

    /// Wakes everyone: changes may have been missed.
    pub fn wake_all(&self) {
        self.table().values().flatten().for_each(|notify| notify.notify_one());
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Vec<Arc<Notify>>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who waits; dropping it ends that.
#[derive(Debug)]
pub struct Waiter {
    waiters: Arc<Waiters>,
    keys: Vec<String>,
    notify: Arc<Notify>,
    _slot: OwnedSemaphorePermit,
}

impl Waiter {
    /// Waits until it is worth looking again; false if the time is over, or the process stops.
    pub async fn changed(&self, deadline: Instant) -> bool {
        self.woken(deadline, LOOK_AGAIN).await
    }

    /// As [`Waiter::changed`], after a look that has failed.
    pub async fn changed_or_soon(&self, deadline: Instant) -> bool {
        self.woken(deadline, AFTER_FAILURE).await
    }

    async fn woken(&self, deadline: Instant, most: Duration) -> bool {
        let next = deadline.min(Instant::now() + most);
        tokio::select! {
            // That the time has passed is no error here.
            _ = timeout_at(next, self.notify.notified()) => Instant::now() < deadline,
            () = self.waiters.stopping.cancelled() => false,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut table = self.waiters.table();
        for key in &self.keys {
            if let Some(list) = table.get_mut(key) {
                list.retain(|notify| !Arc::ptr_eq(notify, &self.notify));
                if list.is_empty() {
                    table.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiters(most: usize) -> Arc<Waiters> {
        Arc::new(Waiters::new(most, CancellationToken::new()))
    }

    fn woken(waiter: &Waiter) -> bool {
        // A wake-up is kept until somebody waits for it.
        let notified = std::pin::pin!(waiter.notify.notified());
        notified.enable()
    }

    #[test]
    fn only_those_are_woken_whose_subject_has_changed() {
        let waiters = waiters(2);
        let one = waiters.register(vec!["order/1".to_owned(), "command/9".to_owned()]).unwrap();
        let two = waiters.register(vec!["order/2".to_owned()]).unwrap();
        waiters.wake("order/1 2\norder/3 1\n");
        assert!(woken(&one) && !woken(&two));
        waiters.wake("command/9 1\n");
        assert!(woken(&one) && !woken(&two));
        waiters.wake_all();
        assert!(woken(&one) && woken(&two));
    }

    #[test]
    fn waiters_are_bounded_and_leave_nothing_behind() {
        let waiters = waiters(1);
        let one = waiters.register(vec!["order/1".to_owned()]).unwrap();
        assert!(waiters.register(vec!["order/1".to_owned()]).is_none());
        drop(one);
        assert!(waiters.table().is_empty());
        assert!(waiters.register(vec!["order/1".to_owned()]).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_the_change_with_time_and_with_the_process() {
        let stopping = CancellationToken::new();
        let waiters = Arc::new(Waiters::new(1, stopping.clone()));
        let waiter = waiters.register(vec!["order/1".to_owned()]).unwrap();
        let start = Instant::now();
        waiters.wake("order/1 1\n");
        let deadline = start + LOOK_AGAIN + Duration::from_secs(1);
        assert!(waiter.changed(deadline).await);
        assert_eq!(start.elapsed(), Duration::ZERO);
        // No change is told: it is looked again all the same.
        assert!(waiter.changed(deadline).await);
        assert_eq!(start.elapsed(), LOOK_AGAIN);
        assert!(waiter.changed_or_soon(deadline).await);
        assert_eq!(start.elapsed(), LOOK_AGAIN + AFTER_FAILURE);
        assert!(!waiter.changed(deadline).await);
        assert_eq!(Instant::now(), deadline);
        stopping.cancel();
        assert!(!waiter.changed(start + Duration::from_mins(5)).await);
    }
}
