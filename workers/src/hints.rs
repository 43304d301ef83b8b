//! Hints that the gateway knows more of a payment: they make an unknown outcome known sooner. A hint is
//! never believed, the gateway is asked; and where one is lost, the event that waits for the outcome is
//! delivered again by and by.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt as _;
use millrace_shared::ids::OrderId;
use millrace_shared::topology::Topology;
use tokio_util::sync::CancellationToken;

use crate::event_log::EventLog;
use crate::gateway::Gateway;
use crate::payment::Payment;

/// How many hints are looked into at a time; more wait, or are lost.
const AT_A_TIME: usize = 8;

/// Looks into hints until the shutdown; of several replicas one gets each.
pub async fn follow<L: EventLog, G: Gateway>(
    payment: &Arc<Payment<L, G>>,
    client: &Client,
    topology: &Topology,
    shutdown: &CancellationToken,
) {
    let subscribed = client.queue_subscribe(topology.payment_hint(), "payment".to_owned()).await;
    let hints = match subscribed {
        Ok(hints) => hints.take_until(shutdown.cancelled()),
        Err(error) => {
            tracing::warn!("unknown outcomes are not told sooner: {error}");
            return;
        }
    };
    hints
        .for_each_concurrent(AT_A_TIME, async |hint| {
            let Some(order) = order(&hint.payload) else { return };
            let looked = tokio::time::timeout(Duration::from_secs(45), payment.look(order)).await;
            if !matches!(looked, Ok(Ok(()))) {
                tracing::debug!(%order, ?looked, "a hint was of no use");
            }
        })
        .await;
}

fn order(payload: &[u8]) -> Option<OrderId> {
    std::str::from_utf8(payload).ok()?.parse().ok()
}
