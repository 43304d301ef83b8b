//! Expiry: ends orders that were not paid in time. The ledger knows until when an order is to be paid,
//! the journal which orders still wait. Both are looked at again and again, so that nothing has to
//! be stored for an order that is paid in time, and nothing is lost when a process dies: what has not
//! ended is found the next time. The journal is behind the log, and a time-out may race a payment: so
//! what it means is decided on the order as the log has it.

use std::time::Duration;

use anyhow::Result;
use futures_util::future::join_all;
use millrace_shared::crash;
use millrace_shared::ids::OrderId;
use millrace_shared::log::{AppendError, Entry};
use millrace_shared::message::{Event, now};
use millrace_shared::order::{self, Order, OrderStatus, Stamp};
use millrace_shared::topology::Topology;
use tokio_util::sync::CancellationToken;

use crate::event_log::EventLog;
use crate::ledger::{Ledger, Waiting};

/// How often overdue orders are looked for. Each replica does so: the log lets only one of them end an
/// order.
const EVERY: Duration = Duration::from_secs(1);
/// While the journal shows a whole page of orders that wait no longer, it is behind by far: then it is
/// asked less and less often, down to this.
const SELDOM: Duration = Duration::from_mins(1);
/// Orders that are looked at together.
const PAGE: usize = 256;
/// How long an append is tried before the order is left for the next time.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a time-out is decided anew because the order has gone on meanwhile.
const ROUNDS: usize = 8;

/// What ends orders that were not paid in time.
#[derive(Debug)]
pub struct Expiry<D, L> {
    ledger: D,
    log: L,
    topology: Topology,
    time_to_pay: Duration,
}

/// What a look has found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Looked {
    /// Orders that seemed to be overdue.
    pub found: usize,
    /// Those of them that had ended before: the journal does not know it yet.
    pub over: usize,
}

impl Looked {
    /// How long to wait before the next look, after a look that was waited for so long.
    fn pause_after(self, pause: Duration) -> Duration {
        let is_behind = self.over >= PAGE && self.over == self.found;
        if is_behind { (pause * 2).min(SELDOM) } else { EVERY }
    }
}

impl<D: Ledger, L: EventLog> Expiry<D, L> {
    /// An expiry that appends to `log` (EVENTS). Orders have `time_to_pay` to be paid.
    pub fn new(ledger: D, log: L, topology: Topology, time_to_pay: Duration) -> Self {
        Self { ledger, log, topology, time_to_pay }
    }

    /// Looks again and again until the shutdown.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut pause = EVERY;
        while !shutdown.is_cancelled() {
            // What was begun by a look that is cut off is found again.
            let looked = tokio::select! {
                looked = self.look() => looked,
                () = shutdown.cancelled() => return,
            };
            pause = match looked {
                Ok(looked) => looked.pause_after(pause),
                Err(error) => {
                    tracing::warn!("overdue orders cannot be looked for: {error:#}");
                    EVERY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Ends what is overdue.
    pub async fn look(&self) -> Result<Looked> {
        let mut looked = Looked::default();
        let waits = OrderStatus::ALL.into_iter().filter(|status| status.awaits_payment());
        for status in waits {
            let mut after = None;
            loop {
                let asked = Waiting { status, until: now(), time_to_pay: self.time_to_pay, after };
                let page = self.ledger.overdue(&asked, PAGE).await?;
                let ended = join_all(page.iter().map(|(_, order)| self.expire(*order))).await;
                looked.found += page.len();
                for ((_, order), ended) in page.iter().zip(ended) {
                    match ended {
                        Ok(ended) => looked.over += usize::from(!ended),
                        // It must not hold up the others.
                        Err(error) => tracing::warn!(%order, "an overdue order waits: {error:#}"),
                    }
                }
                after = page.last().copied();
                if page.len() < PAGE {
                    break;
                }
            }
        }
        Ok(looked)
    }

    /// Ends an order if it waits for its payment still; tells whether it did.
    async fn expire(&self, order_id: OrderId) -> Result<bool> {
        let history = self.topology.order_history(order_id);
        for _ in 0..ROUNDS {
            let Some(last) = self.log.last(&history).await? else { return Ok(false) };
            let order: Order = last.event.state()?;
            let Some(event) = order::expire(&order) else { return Ok(false) };
            let cause = last.event.as_cause();
            let stamp = Stamp { version: order.version + 1, at: now(), causation: cause.causation };
            let after = Order::apply(Some(&order), order_id, stamp, &event)?;
            let expired = Event::order(&event, &after, &cause)?;
            let entry = Entry::event(&self.topology, &expired, last.sequence)?;
            match self.log.append(vec![entry], PATIENCE).await {
                Ok(_) => {
                    crash::point("expiry.appended");
                    return Ok(true);
                }
                Err(AppendError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(AppendError::Conflict.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_journal_that_is_far_behind_is_asked_less_and_less_often() {
        let behind = Looked { found: PAGE, over: PAGE };
        let mut pause = EVERY;
        for _ in 0..10 {
            let next = behind.pause_after(pause);
            assert!(next > pause || next == SELDOM);
            pause = next;
        }
        assert_eq!(pause, SELDOM);
        // One that waits still is due, and a few that have ended say nothing.
        for found in [Looked { found: PAGE + 1, over: PAGE }, Looked { found: 1, over: 1 }] {
            assert_eq!(found.pause_after(SELDOM), EVERY);
        }
    }
}
