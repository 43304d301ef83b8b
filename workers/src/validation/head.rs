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

    /// The events that can never follow from here, and the rest. Only the former may be decided
    /// again: of the others it is not known that nobody has appended them, or still will.
    pub fn split<'a>(&self, group: Group<'a>) -> Result<(Group<'a>, Group<'a>)> {
        let (mut dead, mut rest) = (Group::new(), Group::new());
        for (incoming, event) in group {
            let state: Order = event.state()?;
            let is_dead = self.order.as_ref().is_some_and(|order| {
                !state.timeline.starts_with(&order.timeline)
                    || (state.version == order.version + 1 && !event.follows(Some(order)))
            });
            (if is_dead { &mut dead } else { &mut rest }).push((incoming, event));
        }
        Ok((dead, rest))
    }
}
