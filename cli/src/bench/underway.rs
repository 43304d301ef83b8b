//! The orders that are under way, and when each of them is to be seen as paid.
//!
//! Projection tells every change on a Redis channel after it has written it: one subscription shows
//! when an order is paid, without asking for any. A part of the orders is read at once, to be sure
//! that what is told can be read.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use millrace_shared::ids::OrderId;
use millrace_shared::views::{Change, watch_changes};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::client::Connection;
use super::figures::Times;
use super::system::System;

/// One order in so many is read as soon as it is told to be paid.
const READ_ONE_IN: u64 = 50;
/// Without any order having become paid for so long, those under way are read one by one.
const STALLED: Duration = Duration::from_secs(5);
/// An order is paid in its second version.
const PAID: &str = "2";

/// What is known of the orders of a run.
#[derive(Debug)]
pub struct Underway {
    state: Mutex<State>,
    paid: AtomicU64,
    checked: AtomicU64,
    not_yet: AtomicU64,
    check: mpsc::Sender<OrderId>,
}

#[derive(Debug, Default)]
struct State {
    orders: HashMap<OrderId, Order>,
    times: Times,
    last: Option<Instant>,
}

#[derive(Debug)]
struct Order {
    scheduled: Instant,
    counted: bool,
    /// Its place among those that may be under way at once.
    _place: OwnedSemaphorePermit,
}

/// The subscription; it ends with this.
pub struct Watch {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Underway {
    /// Begins to watch a system.
    pub fn watch(system: &System) -> Result<(Arc<Self>, Watch)> {
        let (check, asked) = mpsc::channel(64);
        let underway = Arc::new(Self {
            state: Mutex::default(),
            paid: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            not_yet: AtomicU64::new(0),
            check,
        });
        let stop = CancellationToken::new();
        let connection = Connection::new(&system.http, system.authorization.as_deref())?;
        let reader = tokio::spawn(Arc::clone(&underway).read(connection, asked));
        let (redis, namespace) =
            (system.config.redis.clone(), system.topology.namespace().to_owned());
        let (watched, until) = (Arc::clone(&underway), stop.clone());
        let told = tokio::spawn(async move {
            let told = |change: Change<'_>| {
                // Of what was missed, the orders are read when nothing else happens.
                if let Change::Views(lines) = change {
                    watched.told(lines);
                }
            };
            if let Err(error) = watch_changes(&redis, &namespace, &until, told).await {
                tracing::warn!("the changes of the views cannot be followed: {error:#}");
            }
        });
        Ok((underway, Watch { stop, tasks: vec![reader, told] }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; it is whole in any case.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An order is about to be sent. `counted`: its time counts, from when it was scheduled.
    pub fn begin(
        &self,
        id: OrderId,
        scheduled: Instant,
        counted: bool,
        place: OwnedSemaphorePermit,
    ) {
        self.lock().orders.insert(id, Order { scheduled, counted, _place: place });
    }

    /// An order was not taken.
    pub fn forget(&self, id: OrderId) {
        self.lock().orders.remove(&id);
    }

    fn told(&self, lines: &str) {
        let now = Instant::now();
        let mut state = self.lock();
        for line in lines.lines() {
            let Some((id, version)) = line.strip_prefix("order/").and_then(|it| it.split_once(' '))
            else {
                continue;
            };
            if version == PAID
                && let Ok(id) = id.parse()
            {
                self.is_paid(&mut state, id, now);
            }
        }
    }

    fn is_paid(&self, state: &mut State, id: OrderId, now: Instant) {
        let Some(order) = state.orders.remove(&id) else { return };
        state.last = Some(now);
        if order.counted {
            state.times.add(now.saturating_duration_since(order.scheduled));
        }
        if self.paid.fetch_add(1, Ordering::Relaxed).is_multiple_of(READ_ONE_IN) {
            // If it is busy with others, this one is not read.
            self.check.try_send(id).ok();
        }
    }

    async fn read(self: Arc<Self>, mut connection: Connection, mut asked: mpsc::Receiver<OrderId>) {
        while let Some(id) = asked.recv().await {
            let paid = is_paid(&mut connection, id).await.unwrap_or(false);
            self.checked.fetch_add(1, Ordering::Relaxed);
            self.not_yet.fetch_add(u64::from(!paid), Ordering::Relaxed);
        }
    }

    /// Waits until no order is under way any more; returns when the last was seen to be paid.
    pub async fn ended(&self, connection: &mut Connection) -> Result<Option<Instant>> {
        let mut progress = Instant::now();
        let mut before = self.paid();
        loop {
            let left: Vec<OrderId> = {
                let state = self.lock();
                if state.orders.is_empty() {
                    return Ok(state.last);
                }
                if progress.elapsed() < STALLED {
                    Vec::new()
                } else {
                    state.orders.keys().copied().collect()
                }
            };
            for id in &left {
                if is_paid(connection, *id).await? {
                    self.is_paid(&mut self.lock(), *id, Instant::now());
                }
            }
            if !left.is_empty() && self.paid() == before {
                bail!("{} accepted orders do not become paid, such as {}", left.len(), left[0]);
            }
            if self.paid() != before {
                (progress, before) = (Instant::now(), self.paid());
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// How many orders were seen to be paid.
    pub fn paid(&self) -> u64 {
        self.paid.load(Ordering::Relaxed)
    }

    /// The orders that were read when they were told to be paid, and those of them that did not show it.
    pub fn checks(&self) -> (u64, u64) {
        (self.checked.load(Ordering::Relaxed), self.not_yet.load(Ordering::Relaxed))
    }

    /// The times that were counted since the last call.
    pub fn take_times(&self) -> Times {
        std::mem::take(&mut self.lock().times)
    }
}

async fn is_paid(connection: &mut Connection, id: OrderId) -> Result<bool> {
    let answer = connection.get(&format!("/v1/orders/{id}")).await?;
    let status = "\"status\":\"paid\"";
    let has = |text: &str| text.contains(status);
    Ok(answer.status == 200 && std::str::from_utf8(&answer.body).is_ok_and(has))
}

impl Watch {
    /// Ends the subscription.
    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.tasks {
            task.abort();
            task.await.ok();
        }
    }
}
