//! Telling a story: an event in a sentence, and the whole as text for a terminal.

use std::fmt;

use chrono::TimeDelta;

use super::{Kind, Moment, Story};
use crate::message::{Event, EventError};
use crate::money::Money;
use crate::order::{OrderEvent, OrderLine};

/// What happened, in a sentence. A card's token is no part of it.
pub(super) fn event(event: &Event) -> Result<String, EventError> {
    Ok(match event.order_event()? {
        OrderEvent::Validated(placement) => {
            let total = placement.total.map_or_else(String::new, |total| format!(", {total}"));
            format!("{}{total}; stock reserved", lines(&placement.lines))
        }
        OrderEvent::Rejected { refusal, .. } => {
            format!("{}: {}", refusal.reason.as_str(), refusal.detail)
        }
        OrderEvent::PaymentUnknown { detail } => detail,
        OrderEvent::Paid { charge_id: Some(charge) } => format!("charge {charge}"),
        OrderEvent::Paid { charge_id: None } => "booked on the customer's account".to_owned(),
        OrderEvent::Shipped(shipment) => {
            format!("{} {}", shipment.carrier, shipment.tracking_number)
        }
        OrderEvent::Delivered {} => "received by the customer".to_owned(),
        OrderEvent::Cancelled { reason } | OrderEvent::RefundRequested { reason } => {
            reason.map_or_else(String::new, |reason| format!("the client says: {reason}"))
        }
        OrderEvent::Expired {} => "not paid in time".to_owned(),
        OrderEvent::Refunded { refund_id: Some(refund), .. } => format!("refund {refund}"),
        OrderEvent::Refunded { refund_id: None, .. } => "taken off the account".to_owned(),
    })
}

fn lines(lines: &[OrderLine]) -> String {
    let named: Vec<String> = lines
        .iter()
        .take(3)
        .map(|line| format!("{} × {}", line.quantity, line.product_id))
        .collect();
    match lines.len().saturating_sub(3) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// A duration as people say it.
fn lasted(time: TimeDelta) -> String {
    let ms = time.num_milliseconds();
    match ms {
        ..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{}.{} s", ms / 1_000, ms % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", ms / 60_000, ms / 1_000 % 60),
        3_600_000..172_800_000 => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
        _ => format!("{} days", ms / 86_400_000),
    }
}

/// The story for a terminal.
impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.total.map_or_else(String::new, |total| format!(", {total}"));
        writeln!(f, "Order {} is {}", self.order_id, self.status.as_str())?;
        writeln!(
            f,
            "version {}, of {}{total}, by {}",
            self.version, self.customer_id, self.payment_method
        )?;
        let mut before: Option<&Moment> = None;
        for moment in &self.timeline {
            if before.is_none_or(|before| before.at.date_naive() != moment.at.date_naive()) {
                writeln!(f, "\n{} UTC", moment.at.format("%Y-%m-%d"))?;
            }
            let after =
                before.map_or_else(String::new, |it| format!("+{}", lasted(moment.at - it.at)));
            let time = moment.at.format("%H:%M:%S%.3f");
            let mark = match moment.kind {
                Kind::Command => ">".to_owned(),
                Kind::Event => {
                    moment.version.map_or_else(String::new, |version| version.to_string())
                }
                Kind::Gateway => "$".to_owned(),
                Kind::Parked => "!".to_owned(),
            };
            writeln!(f, "  {time}  {after:>12}  {mark:>2} {:<16} {}", moment.what, moment.detail)?;
            let of = match (&moment.cause, moment.id, moment.kind) {
                (Some(cause), ..) => format!("by {cause}"),
                (None, Some(id), Kind::Command) => format!("command {id}"),
                _ => String::new(),
            };
            if !of.is_empty() {
                writeln!(f, "{:50}{of}", "")?;
            }
            before = Some(moment);
        }
        writeln!(f, "\n  > command   1 event   $ gateway's book   ! parked")?;
        writeln!(f, "\nTime")?;
        for stay in &self.steps {
            let long = stay
                .milliseconds
                .map_or("since then".to_owned(), |ms| lasted(TimeDelta::milliseconds(ms)));
            writeln!(f, "  {:<16} {long:>14}", stay.status)?;
        }
        if let Some(holds) = &self.holds {
            let pieces: Vec<String> = holds
                .pieces
                .iter()
                .map(|it| format!("{} × {}", it.quantity, it.product_id))
                .collect();
            writeln!(f, "\nHolds")?;
            writeln!(f, "  stock   {}  {}", holds.stock, pieces.join(", "))?;
            if let (Some(total), 1..) = (self.total, holds.credit) {
                writeln!(f, "  credit  {}", Money::new(holds.credit, total.currency))?;
            }
            if let Some(at) = &holds.expires_at {
                writeln!(f, "  clock   expires at {at} unless it is paid")?;
            }
        }
        for missing in &self.missing {
            writeln!(f, "\nNot told: {missing}")?;
        }
        Ok(())
    }
}

impl Moment {
    pub(super) fn new(
        at: chrono::DateTime<chrono::Utc>,
        kind: Kind,
        what: &str,
        detail: String,
    ) -> Self {
        Self { at, kind, what: what.to_owned(), detail, version: None, id: None, cause: None }
    }

    pub(super) fn with_id(mut self, id: uuid::Uuid) -> Self {
        self.id = Some(id);
        self
    }
}
