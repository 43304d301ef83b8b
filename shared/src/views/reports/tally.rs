//! What an order adds to the sums of the reports: pure.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use chrono::{DateTime, Utc};

use super::span::{By, Page};
use crate::money::Currency;
use crate::order::{OrderStatus, PaymentKind};
use crate::views::batch::Shown;

/// What was sold and given back, in one bucket and currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sales {
    /// Orders that were paid.
    pub orders: i64,
    /// Those of them that were paid by card.
    pub by_card: i64,
    /// Pieces in them.
    pub units: i64,
    /// What was paid for them.
    pub gross: i64,
    /// Paid orders whose money was given back, in the bucket of the refund.
    pub refunds: i64,
    /// How much was given back.
    pub refunded: i64,
    /// Orders whose payment was declined.
    pub declined: i64,
}

impl Sales {
    /// The measures and the letters that they have in the fields.
    pub(super) fn measures(&mut self) -> [(char, &mut i64); 7] {
        [
            ('o', &mut self.orders),
            ('c', &mut self.by_card),
            ('u', &mut self.units),
            ('a', &mut self.gross),
            ('r', &mut self.refunds),
            ('b', &mut self.refunded),
            ('d', &mut self.declined),
        ]
    }
}

impl AddAssign for Sales {
    fn add_assign(&mut self, mut more: Self) {
        for ((_, sum), (_, more)) in self.measures().into_iter().zip(more.measures()) {
            *sum = sum.saturating_add(*more);
        }
    }
}

/// A hash of sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Sheet {
    Status,
    Sales(By, Page),
    Lines(Page),
    Times(Page),
}

/// The end of its key.
impl fmt::Display for Sheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => f.write_str("status"),
            Self::Sales(By::Minute, page) => write!(f, "sales:minutes:{page}"),
            Self::Sales(By::Hour, page) => write!(f, "sales:hours:{page}"),
            Self::Sales(By::Day, page) => write!(f, "sales:days:{page}"),
            Self::Lines(page) => write!(f, "lines:{page}"),
            Self::Times(page) => write!(f, "times:{page}"),
        }
    }
}

/// The field of a bucket on its page.
pub(super) fn sales_field(place: u32, currency: Currency, measure: char) -> String {
    format!("{place:02} {} {measure}", currency.code())
}

/// What is to be added to the sums.
#[derive(Debug, Default)]
pub(super) struct Sums {
    pub(super) sheets: BTreeMap<Sheet, BTreeMap<String, i64>>,
}

impl Sums {
    fn add(&mut self, sheet: Sheet, field: String, count: i64) {
        *self.sheets.entry(sheet).or_default().entry(field).or_default() += count;
    }

    fn add_sales(&mut self, at: DateTime<Utc>, currency: Currency, mut sales: Sales) {
        for by in [By::Minute, By::Hour, By::Day] {
            for (measure, count) in sales.measures() {
                if *count != 0 {
                    let field = sales_field(by.place(at), currency, measure);
                    self.add(Sheet::Sales(by, by.page(at)), field, *count);
                }
            }
        }
    }
}

impl Shown {
    /// Adds what the steps behind the version `counted` have brought.
    pub(super) fn tally(&self, counted: u64, sums: &mut Sums) {
        let mut paid = false;
        for step in &self.timeline {
            let new = step.version > counted;
            match step.status {
                OrderStatus::Paid => {
                    paid = true;
                    if new {
                        self.tally_payment(step.at, sums);
                    }
                }
                // A charge that came too late for its order was no sale: giving it back is none.
                OrderStatus::Refunded if new && paid => {
                    self.tally_sales(step.at, sums, |total| Sales {
                        refunds: 1,
                        refunded: total,
                        ..Sales::default()
                    });
                }
                // As the first event it is a refused placement: nothing was charged.
                OrderStatus::Rejected if new && step.version > 1 => {
                    self.tally_sales(step.at, sums, |_| Sales { declined: 1, ..Sales::default() });
                }
                _ => {}
            }
            // It leaves the status that it is counted in, and comes into the last one.
            if step.version == counted {
                sums.add(Sheet::Status, self.standing(step.status), -1);
            } else if step.version == self.version {
                sums.add(Sheet::Status, self.standing(step.status), 1);
            }
        }
    }

    fn tally_sales(&self, at: DateTime<Utc>, sums: &mut Sums, sales: impl FnOnce(i64) -> Sales) {
        if let Some(total) = self.total {
            sums.add_sales(at, total.currency, sales(total.amount));
        }
    }

    fn tally_payment(&self, at: DateTime<Utc>, sums: &mut Sums) {
        let by_card = i64::from(self.payment.method == PaymentKind::Card);
        let units = self.lines.iter().map(|line| i64::from(line.quantity)).sum();
        self.tally_sales(at, sums, |gross| Sales {
            orders: 1,
            by_card,
            units,
            gross,
            ..Sales::default()
        });
        // The clock of the log says when it was placed, a worker's when it was paid.
        let took = (at - self.placed_at).num_milliseconds().max(0);
        for page in [By::Hour, By::Day].map(|by| Page::of(by, at)) {
            sums.add(Sheet::Times(page), took.to_string(), 1);
            for line in &self.lines {
                let Some(price) = line.unit_price else { continue };
                let (product, brand) = (&line.product_id, line.brand.as_deref().unwrap_or(""));
                let (currency, price) = (price.currency.code(), price.amount);
                let field = format!("{product} {currency} {price} {brand}");
                sums.add(Sheet::Lines(page), field, i64::from(line.quantity));
            }
        }
    }

    fn standing(&self, status: OrderStatus) -> String {
        match (status, self.reason) {
            (OrderStatus::Rejected, Some(reason)) => {
                format!("{}/{}", status.as_str(), reason.as_str())
            }
            _ => status.as_str().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// An order of 2 × 5.00 and 1 × 3.50 that has had these statuses, a second apart.
    fn order(statuses: &[&str]) -> Shown {
        let timeline: Vec<_> = (1..)
            .zip(statuses)
            .map(|(version, status)| {
                let at = format!("2026-11-21T13:59:{version:02}.250Z");
                json!({ "status": status, "version": version, "at": at })
            })
            .collect();
        let usd = |amount: i64| json!({ "amount": amount, "currency": "USD" });
        let order = json!({
            "orderId": "018f2d5e-7b3a-7c3e-9c1d-0123456789ab", "version": statuses.len(),
            "customerId": "ann", "status": statuses.last(), "lines": [
                { "productId": "a", "brand": "Acme & Co", "quantity": 2, "unitPrice": usd(500) },
                { "productId": "b", "brand": "Best", "quantity": 1, "unitPrice": usd(350) },
            ],
            "total": usd(1_350), "payment": { "method": "card", "status": "none" },
            "reason": "payment_declined", "placedAt": "2026-11-21T13:59:00.999Z",
            "timeline": timeline,
        });
        serde_json::from_value(order).unwrap()
    }

    fn lines(sums: Sums) -> Vec<String> {
        let sums = sums.sheets.into_iter().flat_map(|(sheet, fields)| {
            fields
                .into_iter()
                .filter(|(_, sum)| *sum != 0)
                .map(move |(field, sum)| format!("{sheet} {field} {sum}"))
        });
        sums.collect()
    }

    fn tallied(statuses: &[&str], counted: u64) -> Vec<String> {
        let mut sums = Sums::default();
        order(statuses).tally(counted, &mut sums);
        lines(sums)
    }

    #[test]
    fn a_paid_order_is_counted_by_minute_hour_and_day_by_line_and_by_its_time() {
        let expected = [
            "status paid 1",
            "sales:minutes:2026-11-21T13 59 USD a 1350",
            "sales:minutes:2026-11-21T13 59 USD c 1",
            "sales:minutes:2026-11-21T13 59 USD o 1",
            "sales:minutes:2026-11-21T13 59 USD u 3",
            "sales:hours:2026-11-21 13 USD a 1350",
            "sales:hours:2026-11-21 13 USD c 1",
            "sales:hours:2026-11-21 13 USD o 1",
            "sales:hours:2026-11-21 13 USD u 3",
            "sales:days:2026-11 21 USD a 1350",
            "sales:days:2026-11 21 USD c 1",
            "sales:days:2026-11 21 USD o 1",
            "sales:days:2026-11 21 USD u 3",
            "lines:2026-11-21 a USD 500 Acme & Co 2",
            "lines:2026-11-21 b USD 350 Best 1",
            "lines:2026-11-21T13 a USD 500 Acme & Co 2",
            "lines:2026-11-21T13 b USD 350 Best 1",
            "times:2026-11-21 1251 1",
            "times:2026-11-21T13 1251 1",
        ];
        assert_eq!(tallied(&["validated", "paid"], 0), expected);
    }

    #[test]
    fn in_whatever_portions_an_order_is_counted_the_sums_are_the_same() {
        let history = ["validated", "payment_unknown", "paid", "shipped", "refunding", "refunded"];
        let whole = tallied(&history, 0);
        for portions in 0..1_u32 << (history.len() - 1) {
            let mut sums = Sums::default();
            let mut counted = 0;
            for version in 1..=history.len() {
                if version == history.len() || portions & (1 << (version - 1)) != 0 {
                    order(&history[..version]).tally(counted, &mut sums);
                    counted = version as u64;
                }
            }
            assert_eq!(lines(sums), whole);
        }
        assert!(whole.contains(&"sales:minutes:2026-11-21T13 59 USD b 1350".to_owned()));
        assert!(whole.contains(&"status refunded 1".to_owned()));
    }

    #[test]
    fn a_declined_payment_is_no_refused_placement_and_a_late_charge_no_sale() {
        let declined = tallied(&["validated", "rejected"], 0);
        assert_eq!(declined[0], "status rejected/payment_declined 1");
        assert_eq!(declined[1], "sales:minutes:2026-11-21T13 59 USD d 1");
        assert_eq!(tallied(&["rejected"], 0), ["status rejected/payment_declined 1"]);
        let late = tallied(&["validated", "expired", "refunded"], 0);
        assert_eq!(late, ["status refunded 1"]);
    }

    #[test]
    fn what_is_counted_is_not_counted_again() {
        assert_eq!(
            tallied(&["validated", "paid", "shipped"], 2),
            ["status paid -1", "status shipped 1"]
        );
    }
}
