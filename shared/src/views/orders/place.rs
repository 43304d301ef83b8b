//! Places in the lists of orders.

use std::fmt;

use chrono::{DateTime, Utc};

use crate::ids::OrderId;

/// The place of an order in its lists, and the cursor of what comes after it there: the microsecond
/// in which the order was placed, and the order. Orders of one microsecond stand in the order of
/// their ids.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    micros: i64,
    order: OrderId,
}

impl Place {
    /// The place of an order.
    pub fn new(placed_at: DateTime<Utc>, order: OrderId) -> Self {
        Self { micros: placed_at.timestamp_micros().max(0), order }
    }

    /// Reads what [`Place`] displays, and nothing else.
    pub fn parse(text: &str) -> Option<Self> {
        let (micros, order) = text.split_once('_')?;
        let place = Self { micros: micros.parse().ok()?, order: order.parse().ok()? };
        DateTime::from_timestamp_micros(place.micros)?;
        (place.micros >= 0 && place.to_string() == text).then_some(place)
    }

    /// The order.
    pub fn order(&self) -> OrderId {
        self.order
    }

    /// When it was placed.
    pub fn placed_at(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.micros).unwrap_or_default()
    }
}

/// Texts sort as places do: until the year 2286.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016}_{}", self.micros, self.order)
    }
}

/// Where a range of time begins and ends, and where the page after a place begins, as Redis wants
/// to be told (`ZRANGE … BYLEX`).
pub(super) fn bounds(
    (from, to): (Option<DateTime<Utc>>, Option<DateTime<Utc>>),
    after: Option<&Place>,
) -> [String; 3] {
    // A time without an order stands before all orders of its microsecond. Orders are placed at
    // whole microseconds; what is asked for need not be one.
    let text = |time: DateTime<Utc>| {
        let rest = i64::from(!time.timestamp_subsec_nanos().is_multiple_of(1_000));
        format!("{:016}", (time.timestamp_micros().saturating_add(rest)).max(0))
    };
    let excluded = |bound: Option<String>| bound.map_or("+".to_owned(), |it| format!("({it}"));
    let low = from.map(text).map_or("-".to_owned(), |from| format!("[{from}"));
    let to = to.map(text);
    let next = to.clone().into_iter().chain(after.map(ToString::to_string)).min();
    [low, excluded(to), excluded(next)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDER: &str = "458e6af9-7128-5dda-b6dc-8d9a342352d4";

    fn time(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn a_cursor_is_read_only_as_it_was_written() {
        let place = Place::new(time("2026-11-21T10:00:00.000007Z"), ORDER.parse().unwrap());
        let text = place.to_string();
        assert_eq!(text, format!("1795255200000007_{ORDER}"));
        assert_eq!(Place::parse(&text), Some(place));
        let upper = format!("1795255200000007_{}", ORDER.to_uppercase());
        let [short, negative] = ["7", "-000000000000007"].map(|micros| format!("{micros}_{ORDER}"));
        for bad in ["", "_", "1795255200000007_x", &upper, &short, &negative, ORDER] {
            assert_eq!(Place::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_range_begins_with_its_first_microsecond_and_ends_before_its_last() {
        let (from, to) = (time("1970-01-01T00:00:00.000001Z"), time("1970-01-01T00:00:00.000002Z"));
        assert_eq!(bounds((None, None), None), ["-", "+", "+"]);
        let low = "[0000000000000001";
        let high = "(0000000000000002";
        assert_eq!(bounds((Some(from), Some(to)), None), [low, high, high]);
        // Later than the first microsecond is the second.
        let from = time("1970-01-01T00:00:00.0000000001Z") + chrono::TimeDelta::nanoseconds(1);
        assert_eq!(bounds((Some(from), None), None)[0], low);
        let after = Place::new(time("1970-01-01T00:00:00.000001Z"), ORDER.parse().unwrap());
        let next = format!("({after}");
        assert_eq!(bounds((None, Some(to)), Some(&after)), ["-", high, &next]);
        let early = time("1970-01-01T00:00:00.000001Z");
        assert_eq!(bounds((None, Some(early)), Some(&after))[2], low.replace('[', "("));
    }
}
