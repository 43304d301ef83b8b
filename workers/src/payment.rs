//! Payment: charges and refunds through a gateway, and appends the result to the order's history.
//!
//! If the process dies after a charge and before the append, the redelivered event asks the gateway
//! by idempotency key and finds the charge. If the order was cancelled meanwhile, the log refuses the
//! append, the new state says so, and the charge is given back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::TimeDelta;
use millrace_shared::command::PaymentMethod;
use millrace_shared::consumer::{Delivery, Raw, Verdict, Worker, decode_event};
use millrace_shared::crash;
use millrace_shared::ids::OrderId;
use millrace_shared::log::{AppendError, Entry};
use millrace_shared::message::{Cause, Event, now};
use millrace_shared::order::{
    self, AfterCharge, Order, OrderEvent, OrderStatus, PaymentKind, PaymentStatus, Stamp,
};
use millrace_shared::topology::Topology;
use millrace_shared::trace::step;

use crate::event_log::EventLog;
use crate::gateway::{Charge, ChargeError, Gateway, GatewayError};

/// How long an append is tried before the event is left for redelivery.
const PATIENCE: Duration = Duration::from_secs(30);
/// A card is charged without a look at the log while its order was accepted no longer ago than this:
/// whoever cancels so early is given the money back. An order that has waited is looked at first; so is
/// one on account, which validation pays with the credit that it reserves, unless it is fresh.
const FRESH: TimeDelta = TimeDelta::seconds(1);
/// How often a result is decided anew because the order has gone on meanwhile.
const ROUNDS: usize = 8;

/// The worker on events that ask for money, or for giving it back.
#[derive(Debug)]
pub struct Payment<L, G> {
    log: L,
    topology: Topology,
    gateway: Arc<G>,
}

/// An order as the log has it.
struct Current {
    order: Order,
    sequence: u64,
}

impl<L: EventLog, G: Gateway> Payment<L, G> {
    /// A payment worker that appends to `log` (EVENTS).
    pub fn new(log: L, topology: Topology, gateway: Arc<G>) -> Self {
        Self { log, topology, gateway }
    }

    async fn work(&self, delivery: &Delivery<Event>) -> Result<Verdict> {
        let event = &delivery.message;
        let Some(current) = self.current(event, delivery).await? else { return Ok(Verdict::Done) };
        let cause = event.as_cause();
        match current.order.status {
            // Boxed: it holds much, and would be copied with all that is around it.
            OrderStatus::Validated => {
                Box::pin(self.charge(event, delivery.attempt, current, &cause)).await
            }
            OrderStatus::PaymentUnknown if event.kind == "payment-unknown" => {
                Box::pin(self.ask(current, &cause)).await
            }
            OrderStatus::Cancelled | OrderStatus::Expired | OrderStatus::Refunding => {
                Box::pin(self.give_back(current, &cause)).await
            }
            // Paid or ended, or another event's to go on with: nothing is owed to anybody.
            _ => Ok(Verdict::Done),
        }
    }

    /// The order now; nothing, if validation pays it. The first delivery of a fresh acceptance trusts the
    /// state that the event carries: if the order has gone on, the append will be refused.
    async fn current(&self, event: &Event, delivery: &Delivery<Event>) -> Result<Option<Current>> {
        let order: Order = event.state()?;
        let fresh = delivery.attempt == 1 && now() - event.occurred_at < FRESH;
        Ok(match order.payment.method {
            _ if event.kind != "validated" || !fresh => Some(self.latest(&order).await?),
            PaymentKind::Card => Some(Current { order, sequence: delivery.sequence }),
            PaymentKind::Account => None,
        })
    }

    async fn latest(&self, order: &Order) -> Result<Current> {
        let history = self.topology.order_history(order.order_id);
        let last = self.log.last(&history).await?.context("the order is not in the log")?;
        Ok(Current { order: last.event.state()?, sequence: last.sequence })
    }

    async fn charge(
        &self,
        event: &Event,
        attempt: u64,
        current: Current,
        cause: &Cause,
    ) -> Result<Verdict> {
        let OrderEvent::Validated(placement) = event.order_event()? else {
            // A cancellation that the log no longer shows would be a fork.
            anyhow::bail!("a {} event of an order that is only validated", event.kind);
        };
        let charge = match &placement.payment {
            PaymentMethod::Account {} => Ok(None),
            PaymentMethod::Card { token } => {
                self.charge_card(&current.order, attempt, token).await?.map(Some)
            }
        };
        crash::point("payment.charged");
        match charge {
            Ok(charge) => self.record_charge(charge, current, cause).await,
            Err(ChargeError::Declined(code)) => {
                self.append(current, cause, |order| order::declined(order, &code)).await?;
                Ok(Verdict::Done)
            }
            Err(ChargeError::Unknown(detail)) => {
                self.append(current, cause, |order| order::unanswered(order, &detail)).await?;
                Ok(Verdict::Done)
            }
            // By a replica that has seen the order's end, which this one will see next.
            Err(error @ ChargeError::Voided) => Ok(Verdict::Later(error.to_string())),
            Err(error @ ChargeError::Unavailable(_)) => Ok(Verdict::Unavailable(error.to_string())),
            Err(error @ ChargeError::Refused(_)) => Ok(Verdict::Failed(error.to_string())),
        }
    }

    /// Asks the gateway what became of a charge, until it knows or the order's time is over; never
    /// charges again.
    async fn ask(&self, current: Current, cause: &Cause) -> Result<Verdict> {
        match self.gateway.find(&charge_key(&current.order)).await? {
            Some(Ok(charge)) => self.record_charge(Some(charge), current, cause).await,
            Some(Err(ChargeError::Declined(code))) => {
                self.append(current, cause, |order| order::declined(order, &code)).await?;
                Ok(Verdict::Done)
            }
            Some(Err(error)) => Ok(Verdict::Waits(error.to_string())),
            None => Ok(Verdict::Waits("the gateway knows of no charge yet".to_owned())),
        }
    }

    /// Asks the gateway at once about an order whose payment's outcome is unknown, if it is.
    pub async fn look(&self, order: OrderId) -> Result<()> {
        let Some(last) = self.log.last(&self.topology.order_history(order)).await? else {
            return Ok(());
        };
        if last.event.kind == "payment-unknown" {
            let current = Current { order: last.event.state()?, sequence: last.sequence };
            self.ask(current, &last.event.as_cause()).await?;
        }
        Ok(())
    }

    async fn charge_card(
        &self,
        order: &Order,
        attempt: u64,
        token: &str,
    ) -> Result<Result<Charge, ChargeError>, GatewayError> {
        let key = charge_key(order);
        if attempt > 1
            && let Some(known) = self.gateway.find(&key).await?
        {
            return Ok(known);
        }
        match order.total {
            Some(total) => Ok(self.gateway.charge(&key, total, token).await),
            None => Ok(Err(ChargeError::Declined("no_amount".to_owned()))),
        }
    }

    /// Records a charge that stands (none for an account), or gives it back if the order has ended.
    async fn record_charge(
        &self,
        charge: Option<Charge>,
        current: Current,
        cause: &Cause,
    ) -> Result<Verdict> {
        let charge_id = charge.as_ref().map(|charge| charge.charge_id.as_str());
        let after = self
            .append(current, cause, |order| match order::charged(order, charge_id) {
                AfterCharge::Append(event) => Some(event),
                AfterCharge::GiveBack | AfterCharge::Known => None,
            })
            .await?;
        match (order::charged(&after.order, charge_id), charge) {
            (AfterCharge::GiveBack, Some(charge)) => self.refund(after, &charge, cause).await,
            _ => Ok(Verdict::Done),
        }
    }

    /// Gives back what an order that has ended was charged.
    async fn give_back(&self, current: Current, cause: &Cause) -> Result<Verdict> {
        let order = &current.order;
        let captured = order.payment.status == PaymentStatus::Captured;
        let charge = match (order.payment.method, &order.payment.charge_id) {
            (PaymentKind::Account, _) if captured => {
                self.append(current, cause, |order| order::refunded(order, None, None)).await?;
                return Ok(Verdict::Done);
            }
            (PaymentKind::Account, _) => return Ok(Verdict::Done),
            (PaymentKind::Card, Some(charge_id)) => Charge { charge_id: charge_id.clone() },
            // Not charged as far as the order knows; the gateway knows better, and takes no more.
            (PaymentKind::Card, None) => {
                let voided = self.gateway.void(&charge_key(order)).await?;
                crash::point("payment.voided");
                match voided {
                    Some(charge) => charge,
                    None => return Ok(Verdict::Done),
                }
            }
        };
        self.refund(current, &charge, cause).await
    }

    async fn refund(&self, current: Current, charge: &Charge, cause: &Cause) -> Result<Verdict> {
        let order = &current.order;
        let total = order.total.context("a charged order has a total")?;
        let key = format!("refund-{}", order.order_id);
        let refund = self.gateway.refund(&key, &charge.charge_id, total).await?;
        crash::point("payment.refunded");
        self.append(current, cause, |order| {
            order::refunded(order, Some(&charge.charge_id), Some(&refund.refund_id))
        })
        .await?;
        Ok(Verdict::Done)
    }

    /// Appends what `decide` makes of the order, deciding again on the new state whenever the order
    /// has gone on meanwhile. Returns the order after it.
    async fn append(
        &self,
        mut current: Current,
        cause: &Cause,
        decide: impl Fn(&Order) -> Option<OrderEvent>,
    ) -> Result<Current> {
        for _ in 0..ROUNDS {
            let order = &current.order;
            let Some(event) = decide(order) else { return Ok(current) };
            let stamp = Stamp { version: order.version + 1, at: now(), causation: cause.causation };
            let after = Order::apply(Some(order), order.order_id, stamp, &event)?;
            let message = Event::order(&event, &after, cause)?;
            let entry = Entry::event(&self.topology, &message, current.sequence)?;
            match step("append", self.log.append(vec![entry], PATIENCE)).await {
                Ok(sequence) => {
                    crash::point("payment.appended");
                    return Ok(Current { order: after, sequence });
                }
                // By another, or by an earlier try of ours: the state tells.
                Err(AppendError::Conflict) => current = self.latest(order).await?,
                Err(error) => return Err(error.into()),
            }
        }
        Err(AppendError::Conflict.into())
    }
}

fn charge_key(order: &Order) -> String {
    format!("charge-{}", order.order_id)
}

impl<L: EventLog, G: Gateway> Worker for Payment<L, G> {
    type Message = Event;
    const NAME: &'static str = "payment";
    const BATCH: usize = 1;
    const BATCHES: usize = 256;

    fn stream(&self, topology: &Topology) -> String {
        topology.events_stream()
    }

    fn decode(&self, raw: &Raw<'_>) -> Result<Event, String> {
        decode_event(raw)
    }

    async fn handle(&self, batch: &[Delivery<Event>]) -> Vec<Verdict> {
        let mut verdicts = Vec::with_capacity(batch.len());
        for delivery in batch {
            verdicts.push(self.work(delivery).await.unwrap_or_else(|error| {
                match error.chain().find_map(|cause| cause.downcast_ref()) {
                    Some(GatewayError::Refused(_)) => Verdict::Failed(format!("{error:#}")),
                    // Money waits for its gateway for as long as it takes.
                    Some(_) => Verdict::Unavailable(format!("{error:#}")),
                    None => Verdict::of(&error),
                }
            }));
        }
        verdicts
    }
}
