//! Expiry: ends orders that were not paid in time. The clock of an order starts with its acceptance,
//! or just before it, and is stopped by the event that ends its wait. A time-out may race that
//! event, so what it means is decided on the order as it then is.

use std::time::Duration;

use anyhow::Result;
use futures_util::future::join_all;
use millrace_shared::consumer::{Delivery, Raw, Verdict, Worker};
use millrace_shared::crash;
use millrace_shared::ids::OrderId;
use millrace_shared::log::{AppendError, Entry};
use millrace_shared::message::{Event, now};
use millrace_shared::order::{self, Order, Stamp};
use millrace_shared::topology::Topology;

use crate::event_log::EventLog;

/// How long an append is tried before the time-out is left for redelivery.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a time-out is decided anew because the order has gone on meanwhile.
const ROUNDS: usize = 8;

/// The worker on time-outs.
#[derive(Debug)]
pub struct Expiry<L> {
    log: L,
    topology: Topology,
}

impl<L: EventLog> Expiry<L> {
    /// An expiry that appends to `log` (EVENTS).
    pub fn new(log: L, topology: Topology) -> Self {
        Self { log, topology }
    }

    async fn expire(&self, order_id: OrderId) -> Result<Verdict> {
        let history = self.topology.order_history(order_id);
        for _ in 0..ROUNDS {
            // An order without events was trimmed, long after its end. (A clock that is stored ahead
            // of its order ends minutes after it: see `Entry::ahead`.)
            let Some(last) = self.log.last(&history).await? else { return Ok(Verdict::Done) };
            let order: Order = last.event.state()?;
            let Some(event) = order::expire(&order) else { return Ok(Verdict::Done) };
            let cause = last.event.as_cause();
            let stamp = Stamp { version: order.version + 1, at: now(), causation: cause.causation };
            let after = Order::apply(Some(&order), order_id, stamp, &event)?;
            let expired = Event::order(&event, &after, &cause)?;
            let entry = Entry::event(&self.topology, &expired, last.sequence)?;
            match self.log.append(vec![entry], PATIENCE).await {
                Ok(_) => {
                    crash::point("expiry.appended");
                    return Ok(Verdict::Done);
                }
                Err(AppendError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(AppendError::Conflict.into())
    }
}

impl<L: EventLog> Worker for Expiry<L> {
    type Message = OrderId;
    const NAME: &'static str = "expiry";
    const BATCH: usize = 256;
    const BATCHES: usize = 2;

    fn stream(&self, topology: &Topology) -> String {
        topology.events_stream()
    }

    fn subjects(&self, topology: &Topology) -> Vec<String> {
        vec![topology.all_time_outs()]
    }

    fn decode(&self, raw: &Raw<'_>) -> Result<OrderId, String> {
        let id = raw.subject.rsplit('.').next().unwrap_or("");
        id.parse().map_err(|error| format!("{id:?} {error}"))
    }

    async fn handle(&self, batch: &[Delivery<OrderId>]) -> Vec<Verdict> {
        join_all(batch.iter().map(async |delivery| {
            self.expire(delivery.message).await.unwrap_or_else(|error| Verdict::of(&error))
        }))
        .await
    }
}
