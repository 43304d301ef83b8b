//! What is watched by any number of clients, and read once for each change.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use millrace_shared::views::{ViewError, Views};
use tokio::sync::watch;
use tokio::time::Instant;

use super::News;
use crate::wait::{Waiter, Waiters};

/// A time that no stream lives to see; the looks in between are the waiter's matter.
const FAR: Duration = Duration::from_hours(365 * 24);

/// Something in the views that is watched.
pub trait Watched: Send + Sync + Sized + 'static {
    /// What it waits for in the changes of the views.
    fn keys(id: &str) -> Vec<String>;

    /// Looks at the views; nothing, if there is nothing new since `before`.
    fn look(
        views: &Views,
        id: &str,
        before: Option<Arc<Self>>,
    ) -> impl Future<Output = Result<Option<Self>, ViewError>> + Send;
}

/// All that is watched now, by id. What nobody watches any more goes.
#[derive(Debug)]
pub struct Topics<T> {
    table: Mutex<HashMap<String, watch::Sender<Option<Arc<T>>>>>,
    views: Views,
    waiters: Arc<Waiters>,
}

impl<T: Watched> Topics<T> {
    /// Nothing is watched at first.
    pub fn new(views: Views, waiters: Arc<Waiters>) -> Arc<Self> {
        Arc::new(Self { table: Mutex::default(), views, waiters })
    }

    /// Watches what has this id: all that changes in the views from now on is told. What is there
    /// now is not: look for yourself afterwards. Nothing, if too much is watched.
    pub fn watch(self: &Arc<Self>, id: &str) -> Option<News<T>> {
        let mut table = self.table();
        if let Some(sender) = table.get(id) {
            return Some(sender.subscribe());
        }
        let waiter = self.waiters.register(T::keys(id))?;
        let (sender, news) = watch::channel(None);
        table.insert(id.to_owned(), sender.clone());
        tokio::spawn(Arc::clone(self).follow(id.to_owned(), sender, waiter));
        Some(news)
    }

    /// Reads what has changed, and tells it, while anybody watches.
    async fn follow(
        self: Arc<Self>,
        id: String,
        sender: watch::Sender<Option<Arc<T>>>,
        waiter: Waiter,
    ) {
        let mut failed = false;
        loop {
            let deadline = Instant::now() + FAR;
            let woken = async {
                if failed {
                    waiter.changed_or_soon(deadline).await
                } else {
                    waiter.changed(deadline).await
                }
            };
            tokio::select! {
                goes_on = woken => if !goes_on {
                    return;
                },
                () = sender.closed() => {
                    if self.forget(&id) {
                        return;
                    }
                    continue;
                }
            }
            let before = sender.borrow().clone();
            // Boxed, as that of a read from Redis is large and most of the time there is none.
            match Box::pin(T::look(&self.views, &id, before)).await {
                Ok(news) => {
                    failed = false;
                    if let Some(news) = news {
                        sender.send_replace(Some(Arc::new(news)));
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "what is watched cannot be looked at now");
                    failed = true;
                }
            }
        }
    }

    /// Ends a topic, unless somebody has begun to watch it meanwhile.
    fn forget(&self, id: &str) -> bool {
        let mut table = self.table();
        let unwatched = table.get(id).is_none_or(|sender| sender.receiver_count() == 0);
        if unwatched {
            table.remove(id);
        }
        unwatched
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Option<Arc<T>>>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use millrace_shared::config::RedisConfig;
    use tokio_util::sync::CancellationToken;

    use super::*;

    static LOOKS: AtomicU32 = AtomicU32::new(0);

    /// Each look sees something new.
    struct Looked(u32);

    impl Watched for Looked {
        fn keys(id: &str) -> Vec<String> {
            vec![format!("order/{id}")]
        }

        async fn look(_: &Views, _: &str, _: Option<Arc<Self>>) -> Result<Option<Self>, ViewError> {
            Ok(Some(Self(LOOKS.fetch_add(1, Ordering::Relaxed) + 1)))
        }
    }

    #[tokio::test]
    async fn what_many_watch_is_looked_at_once_for_each_change_and_forgotten_when_nobody_does() {
        let redis = RedisConfig {
            redis_url: "redis://127.0.0.1:1".to_owned(),
            redis_password: None,
            redis_password_file: None,
            redis_ca_file: None,
        };
        let views = Views::new(redis.client().unwrap(), "test");
        let waiters = Arc::new(Waiters::new(1, CancellationToken::new()));
        let topics = Topics::<Looked>::new(views, Arc::clone(&waiters));
        let mut watching: Vec<_> = (0..100).map(|_| topics.watch("1").unwrap()).collect();
        assert!(topics.watch("2").is_none(), "no more than there is room for");
        for change in 1..=3 {
            waiters.wake("order/1 2\norder/9 1");
            for news in &mut watching {
                news.changed().await.unwrap();
                assert_eq!(news.borrow_and_update().as_ref().unwrap().0, change);
            }
        }
        assert_eq!(LOOKS.load(Ordering::Relaxed), 3);
        drop(watching);
        while !topics.table().is_empty() {
            tokio::task::yield_now().await;
        }
        while waiters.register(vec!["order/2".to_owned()]).is_none() {
            tokio::task::yield_now().await;
        }
    }
}
