//! What was found: a row for each check, as a table or as JSON.

use std::fmt;

use serde::Serialize;

/// Offenders that are named for each check.
pub const NAMED: usize = 10;

/// What all checks have found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// One row for each check.
    pub checks: Vec<Row>,
    /// Events that `--repair` has written into the journal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repaired: Option<u64>,
    /// What could not be looked at from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unseen: Option<String>,
}

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The check's name.
    pub check: &'static str,
    /// What it makes sure of.
    pub promise: &'static str,
    /// How many things it has looked at.
    pub checked: u64,
    /// How many of them break the promise.
    pub failed: u64,
    /// The first of those.
    pub offenders: Vec<Offender>,
}

/// Something that breaks a promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Offender {
    /// What it is: `order ID`, `message 17 of COMMANDS`.
    pub id: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Report {
    /// Whether every promise holds.
    pub fn is_ok(&self) -> bool {
        self.checks.iter().all(|row| row.failed == 0)
    }

    /// The names of the checks that failed.
    pub fn failed(&self) -> Vec<&'static str> {
        self.checks.iter().filter(|row| row.failed > 0).map(|row| row.check).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<14} {:>10} {:>10}   every…", "check", "checked", "failed")?;
        for row in &self.checks {
            let failed = if row.failed == 0 { "ok".to_owned() } else { row.failed.to_string() };
            let (check, checked, promise) = (row.check, row.checked, row.promise);
            writeln!(f, "{check:<14} {checked:>10} {failed:>10}   {promise}")?;
        }
        for row in self.checks.iter().filter(|row| row.failed > 0) {
            writeln!(f, "\n{}:", row.check)?;
            for offender in &row.offenders {
                writeln!(f, "  {}: {}", offender.id, offender.problem)?;
            }
            let more = row.failed.saturating_sub(row.offenders.len() as u64);
            if more > 0 {
                writeln!(f, "  and {more} more")?;
            }
        }
        if let Some(repaired) = self.repaired {
            writeln!(f, "\n{repaired} events of the log were written into the journal")?;
        }
        if let Some(unseen) = &self.unseen {
            writeln!(f, "\nNot seen from here: {unseen}")?;
        }
        let failed = self.failed();
        if failed.is_empty() {
            write!(f, "\nEvery promise holds.")
        } else {
            write!(f, "\nBroken: {}.", failed.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_the_offenders_and_counts_those_it_does_not_name() {
        let offender = |n: u64| Offender { id: format!("order {n}"), problem: "wrong".to_owned() };
        let row = |failed: u64| Row {
            check: "money",
            promise: "paid order",
            checked: 20,
            failed,
            offenders: (0..failed.min(2)).map(offender).collect(),
        };
        let mut report = Report { checks: vec![row(0)], ..Report::default() };
        assert!(report.is_ok());
        assert!(report.to_string().ends_with("Every promise holds."));
        report.checks.push(row(7));
        assert_eq!(report.failed(), ["money"]);
        let text = report.to_string();
        assert!(text.contains("  order 1: wrong\n  and 5 more\n"), "{text}");
        assert!(text.ends_with("Broken: money."), "{text}");
    }
}
