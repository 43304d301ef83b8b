//! What became of the orders, counted by outcome.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use millrace_shared::money::Money;

/// The status of an order that is still open when its time is over.
pub const NO_OUTCOME: &str = "no outcome";

/// What became of one order.
#[derive(Debug, Default)]
pub struct Outcome {
    pub status: String,
    /// Empty where there is none.
    pub reason: String,
    /// Whether the system did not know the order before.
    pub is_new: bool,
    pub lines: usize,
    pub units: u64,
    pub total: Option<Money>,
    /// What is to be told of an order that was not placed or has no outcome.
    pub problem: Option<String>,
}

/// How many products and customers there were before.
#[derive(Debug, Default)]
pub struct SetUp {
    pub products: Count,
    pub customers: Count,
}

/// New ones, and those that were there already.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Not there before.
    pub new: usize,
    /// There before.
    pub known: usize,
}

impl Count {
    pub(super) fn count(&mut self, is_new: bool) {
        if is_new {
            self.new += 1;
        } else {
            self.known += 1;
        }
    }
}

/// Orders of one outcome and currency.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Row {
    /// How many.
    pub orders: usize,
    /// Their lines.
    pub lines: usize,
    /// The pieces in them.
    pub units: u64,
    /// What they sum up to; absent where the orders have no total.
    pub total: Option<Money>,
}

/// The whole replay. Shown as a table.
#[derive(Debug, Default)]
pub struct Summary {
    set_up: SetUp,
    rows: BTreeMap<(String, String, Option<&'static str>), Row>,
    orders: Count,
    problems: Vec<String>,
    time: Duration,
}

impl Summary {
    pub(super) fn new(set_up: SetUp) -> Self {
        Self { set_up, ..Self::default() }
    }

    pub(super) fn add(&mut self, outcome: Outcome) {
        let currency = outcome.total.map(|total| total.currency.code());
        let row = self.rows.entry((outcome.status, outcome.reason, currency)).or_default();
        row.orders += 1;
        row.lines += outcome.lines;
        row.units += outcome.units;
        row.total = match (row.total, outcome.total) {
            (Some(sum), Some(one)) => {
                Some(Money::new(sum.amount.saturating_add(one.amount), one.currency))
            }
            (sum, one) => sum.or(one),
        };
        self.orders.count(outcome.is_new);
        self.problems.extend(outcome.problem);
    }

    pub(super) fn took(&mut self, time: Duration) {
        self.time = time;
    }

    /// The orders of a status, for all its reasons, by currency.
    pub fn rows<'a>(&'a self, status: &'a str) -> impl Iterator<Item = (&'a str, &'a Row)> {
        let of_status = self.rows.iter().filter(move |((found, ..), _)| found == status);
        of_status.map(|((_, reason, _), row)| (reason.as_str(), row))
    }

    /// How many orders were placed now, and how many had been placed before.
    pub fn orders(&self) -> Count {
        self.orders
    }

    /// The orders that were not placed or have no outcome, with what is known about it.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SetUp { products, customers } = &self.set_up;
        writeln!(
            f,
            "{} products ({} new), {} customers ({} new)",
            products.new + products.known,
            products.new,
            customers.new + customers.known,
            customers.new
        )?;
        if products.known > 0 {
            writeln!(f, "Products that were there already keep their stock.")?;
        }
        writeln!(f)?;
        let mut cells =
            vec![["status", "reason", "orders", "lines", "units", "total"].map(String::from)];
        for ((status, reason, _), row) in &self.rows {
            let total = row.total.map_or_else(|| "-".to_owned(), |total| total.to_string());
            let reason = if reason.is_empty() { "-" } else { reason };
            cells.push([
                status.clone(),
                reason.to_owned(),
                row.orders.to_string(),
                row.lines.to_string(),
                row.units.to_string(),
                total,
            ]);
        }
        let widths: [usize; 6] = std::array::from_fn(|column| {
            cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        });
        for row in &cells {
            for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
                // Texts to the left, numbers to the right.
                if column < 2 {
                    write!(f, "{cell:width$}  ")?;
                } else {
                    write!(f, "{cell:>width$}{}", if column < 5 { "  " } else { "\n" })?;
                }
            }
        }
        let Count { new, known } = self.orders;
        let seconds = self.time.as_secs_f64();
        write!(f, "\n{} orders: {new} new, {known} already there; {seconds:.1} s", new + known)
    }
}

#[cfg(test)]
mod tests {
    use millrace_shared::money::Currency;

    use super::*;

    fn outcome(status: &str, reason: &str, total: Option<Money>) -> Outcome {
        Outcome {
            status: status.to_owned(),
            reason: reason.to_owned(),
            is_new: true,
            lines: 2,
            units: 10,
            total,
            problem: None,
        }
    }

    #[test]
    fn orders_are_summed_by_outcome_and_currency() {
        let mut summary = Summary::new(SetUp::default());
        let usd = |amount| Some(Money::new(amount, Currency::USD));
        summary.add(outcome("paid", "", usd(150)));
        summary.add(outcome("paid", "", usd(250)));
        summary.add(outcome("paid", "", Some(Money::new(7, Currency::EUR))));
        summary.add(outcome("rejected", "unknown_product", None));
        summary.add(Outcome { is_new: false, ..outcome("rejected", "out_of_stock", usd(1)) });
        let text = summary.to_string();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(
            lines[2..],
            [
                "status    reason           orders  lines  units     total",
                "paid      -                     1      2     10  0.07 EUR",
                "paid      -                     2      4     20  4.00 USD",
                "rejected  out_of_stock          1      2     10  0.01 USD",
                "rejected  unknown_product       1      2     10         -",
                "",
                "5 orders: 4 new, 1 already there; 0.0 s",
            ]
        );
        assert_eq!(summary.rows("paid").map(|(_, row)| row.orders).sum::<usize>(), 3);
    }
}
