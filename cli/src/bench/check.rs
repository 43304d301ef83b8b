//! Whether what was counted is true: what was accepted against what the journal has.

use anyhow::{Result, bail};
use serde::Serialize;

use super::shop::LINES;
use super::system::System;

/// What was counted here, and what the journal has.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Orders that were accepted.
    pub accepted: u64,
    /// Orders that were refused; they must not be anywhere.
    pub refused: u64,
    /// Orders that were seen to be paid.
    pub seen_paid: u64,
    /// Orders that were read as soon as they were told to be paid.
    pub read_at_once: u64,
    /// Of those, the ones that could not be read as paid.
    pub not_yet_readable: u64,
    /// Orders of this run in the journal.
    pub journal_orders: u64,
    /// Of those, the paid ones.
    pub journal_paid: u64,
    /// Their events; two for each.
    pub journal_events: u64,
    /// Their lines; two for each.
    pub journal_lines: u64,
    /// Their decisions in the ledger.
    pub decisions: u64,
}

impl Check {
    /// Asks the journal and the ledger for what this run's customers have.
    pub async fn read(&mut self, system: &System, customers: &str) -> Result<()> {
        let mut tx = system.pool.begin().await?;
        // Right after a load the statistics are of empty tables: the plan would be for those.
        sqlx::query("set local enable_nestloop = off").execute(&mut *tx).await?;
        let (orders, paid, events, lines): (i64, i64, i64, i64) = sqlx::query_as(
            "with ours as materialized (
                 select order_id, status from journal.orders where starts_with(customer_id, $1)
             )
             select (select count(*) from ours),
                    (select count(*) from ours where status = 'paid'),
                    (select count(*) from ours join journal.events
                        on subject = 'order' and subject_id = order_id::text),
                    (select count(*) from ours join journal.order_lines using (order_id))",
        )
        .bind(customers)
        .fetch_one(&mut *tx)
        .await?;
        let decisions: i64 = sqlx::query_scalar(
            "select count(*) from ledger.orders join ledger.decisions
                 on subject = 'order' and subject_id = order_id::text
             where starts_with(customer_id, $1) and reason is null",
        )
        .bind(customers)
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        self.journal_orders = orders.unsigned_abs();
        self.journal_paid = paid.unsigned_abs();
        self.journal_events = events.unsigned_abs();
        self.journal_lines = lines.unsigned_abs();
        self.decisions = decisions.unsigned_abs();
        Ok(())
    }

    /// Fails, and says by what, if the counts do not agree.
    pub fn agree(&self) -> Result<()> {
        let accepted = self.accepted;
        let wanted = [
            ("orders were seen to be paid", self.seen_paid, accepted),
            ("orders are in the journal", self.journal_orders, accepted),
            ("orders are paid in the journal", self.journal_paid, accepted),
            ("events of them are in the journal", self.journal_events, 2 * accepted),
            ("lines of them are in the journal", self.journal_lines, LINES as u64 * accepted),
            ("decisions about them are in the ledger", self.decisions, accepted),
            ("orders could not be read as what was told", self.not_yet_readable, 0),
        ];
        let wrong = wanted.iter().filter(|(_, found, wanted)| found != wanted);
        let wrong: Vec<String> =
            wrong.map(|(what, found, wanted)| format!("{found} {what}, not {wanted}")).collect();
        if !wrong.is_empty() {
            bail!("{accepted} orders were accepted, but {}", wrong.join("; "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_is_off_by_one_is_told() {
        let good = Check {
            accepted: 3,
            seen_paid: 3,
            journal_orders: 3,
            journal_paid: 3,
            journal_events: 6,
            journal_lines: 6,
            decisions: 3,
            ..Check::default()
        };
        good.agree().unwrap();
        let told = Check { journal_paid: 2, ..good.clone() }.agree().unwrap_err().to_string();
        assert!(told.contains("2 orders are paid in the journal, not 3"), "{told}");
        assert!(Check { not_yet_readable: 1, ..good }.agree().is_err());
    }
}
