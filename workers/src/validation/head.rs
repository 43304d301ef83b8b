//! What can be appended to a history. An event was decided on one state of its order. It may follow
//! that state and no other, though the version be the same: between decision and append a process
//! may have died, and others gone on.

use anyhow::Result;
use millrace_shared::message::Event;
use millrace_shared::order::Order;

use crate::book::Incoming;

/// The events of one order or command that are to be appended, each with its command.
pub type Group<'a> = Vec<(&'a Incoming, Event)>;

/// Where a history stands.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// The order, if it is the history of one that is there.
    pub order: Option<Order>,
    /// The stream sequence of its last event; 0 if the log has none.
    pub sequence: u64,
}

impl Head {
    /// How many events of the group can follow here, one after another. Those that were decided
    /// before may have been overtaken; two decisions may be for one version.
    pub fn fitting(&self, group: &Group<'_>) -> Result<usize> {
        for (count, (_, event)) in group.iter().enumerate() {
            let before = match count {
                0 => self.order.clone(),
                _ => Some(group[count - 1].1.state()?),
            };
            if !event.follows(before.as_ref()) {
                return Ok(count);
            }
        }
        Ok(group.len())
    }

    /// The events that can never follow from here, and the rest; what is moot is in neither. Only the
    /// former may be decided again: of the others it is not known that nobody has appended them, or
    /// still will.
    pub fn split<'a>(&self, group: Group<'a>) -> Result<(Group<'a>, Group<'a>)> {
        let (mut dead, mut rest) = (Group::new(), Group::new());
        for (incoming, event) in group {
            let is_dead = match &self.order {
                Some(order) => is_overtaken(&event, order)?,
                None => false,
            };
            if !is_dead {
                rest.push((incoming, event));
            } else if event.answers().is_some() {
                dead.push((incoming, event));
            }
        }
        Ok((dead, rest))
    }
}

/// Whether an event can never follow from an order any more.
fn is_overtaken(event: &Event, order: &Order) -> Result<bool> {
    let state: Order = event.state()?;
    Ok(!state.timeline.starts_with(&order.timeline)
        || (state.version == order.version + 1 && !event.follows(Some(order))))
}

/// Whether nothing is to be done about an event any more, though it is not in the log: nobody asked for
/// it (a payment on account follows its order's placement by itself), and the order has gone on without.
pub fn is_moot(event: &Event, order: Option<&Order>) -> Result<bool> {
    match order {
        Some(order) if event.answers().is_none() => is_overtaken(event, order),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use millrace_shared::command::Received;
    use millrace_shared::ids::OrderId;
    use millrace_shared::message::Cause;
    use millrace_shared::order::{OrderEvent, Stamp};
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    fn placed() -> OrderEvent {
        let data = json!({ "customerId": "ANA", "lines": [], "payment": { "method": "account" },
                           "placedAt": "2026-01-01T00:00:00Z" });
        serde_json::from_value(json!({ "type": "validated", "data": data })).unwrap()
    }

    /// The order and the event after `before`, decided in this second.
    fn next(before: Option<&Order>, event: &OrderEvent, second: i64) -> (Order, Event) {
        let at = DateTime::from_timestamp(second, 0).unwrap();
        let version = before.map_or(0, |order| order.version) + 1;
        let causation = Uuid::from_u128(second.unsigned_abs().into());
        let stamp = Stamp { version, at, causation };
        let after = Order::apply(before, OrderId(Uuid::nil()), stamp, event).unwrap();
        let cause = Cause { causation, correlation: causation, traceparent: None };
        let event = Event::order(event, &after, &cause).unwrap();
        (after, event)
    }

    fn incoming() -> Incoming {
        let received = Received::read("order.ship", b"{}", |_| None, ("COMMANDS", 1));
        Incoming { received, at: DateTime::UNIX_EPOCH, sequence: 1, traceparent: None }
    }

    #[test]
    fn of_two_decisions_for_one_version_only_one_follows() {
        let (paid, cancelled) =
            (OrderEvent::Paid { charge_id: None }, OrderEvent::Cancelled { reason: None });
        let (order, _) = next(None, &placed(), 1);
        let (after, first) = next(Some(&order), &paid, 2);
        let (_, second) = next(Some(&order), &cancelled, 3);
        let incoming = incoming();
        let group: Group<'_> = vec![(&incoming, first), (&incoming, second.clone())];
        let head = Head { order: Some(order), sequence: 1 };
        assert_eq!(head.fitting(&group).unwrap(), 1);
        let head = Head { order: Some(after), sequence: 2 };
        let (dead, rest) = head.split(vec![(&incoming, second)]).unwrap();
        assert_eq!((dead.len(), rest.len()), (1, 0));
    }

    #[test]
    fn a_payment_that_follows_by_itself_is_moot_once_its_order_was_cancelled() {
        let (order, validated) = next(None, &placed(), 1);
        let stamp = Stamp { version: 2, at: order.updated_at, causation: validated.id.0 };
        let paid = OrderEvent::Paid { charge_id: None };
        let after = Order::apply(Some(&order), order.order_id, stamp, &paid).unwrap();
        let paid = Event::order(&paid, &after, &validated.as_cause()).unwrap();
        let (cancelled, asked) = next(Some(&order), &OrderEvent::Cancelled { reason: None }, 2);
        assert!(!is_moot(&paid, None).unwrap());
        assert!(!is_moot(&paid, Some(&order)).unwrap(), "it can still follow");
        assert!(is_moot(&paid, Some(&cancelled)).unwrap());
        let (incoming, head) = (incoming(), Head { order: Some(cancelled), sequence: 2 });
        let (dead, rest) = head.split(vec![(&incoming, paid)]).unwrap();
        assert_eq!((dead.len(), rest.len()), (0, 0), "nothing is left to do");
        assert!(!is_moot(&asked, Some(&after)).unwrap(), "a command has an answer to come");
    }

    #[test]
    fn what_builds_upon_an_event_that_is_not_there_yet_is_not_dead() {
        let (order, _) = next(None, &placed(), 1);
        let (after, _) = next(Some(&order), &OrderEvent::Paid { charge_id: None }, 2);
        let (_, event) = next(Some(&after), &OrderEvent::Cancelled { reason: None }, 3);
        let incoming = incoming();
        let group: Group<'_> = vec![(&incoming, event)];
        let head = Head { order: Some(order), sequence: 1 };
        assert_eq!(head.fitting(&group).unwrap(), 0);
        let (dead, rest) = head.split(group).unwrap();
        assert_eq!((dead.len(), rest.len()), (0, 1));
    }
}
