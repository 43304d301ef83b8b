//! What a run has found, as JSON with names that stay.

use std::collections::BTreeMap;
use std::fs;

use serde::Serialize;

use super::capacity::Round;
use super::check::Check;
use super::figures::Quantiles;
use super::reads::Reading;
use super::stored::PerOrder;

/// All that a run has found. Times of processors are milliseconds, memory is bytes.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The version of the program that measures, and for a private system of the one measured.
    pub version: String,
    /// The commit that it was built from, where that is known.
    pub commit: Option<String>,
    /// When it began.
    pub begun_at: String,
    /// What it ran on.
    pub machine: Machine,
    /// How it was run.
    pub parameters: serde_json::Value,
    /// From the start of the program to a ready edge, for a private system.
    pub cold_start_seconds: Option<f64>,
    /// Orders paid, visible and in the journal, in a second; the median of the rounds.
    pub processed_per_second: Option<f64>,
    /// Orders accepted in a second meanwhile; the median.
    pub accepted_per_second: Option<f64>,
    /// Orders of the bare loop in a second; the median.
    pub bare_loop_per_second: Option<f64>,
    /// The median of the rounds' ratios of Millrace to the bare loop.
    pub ratio_to_bare_loop: Option<f64>,
    /// The rounds, in turn with those of the bare loop.
    pub rounds: Vec<Round>,
    /// The bare loop's, in orders a second.
    pub bare_loop_rounds: Vec<f64>,
    /// Processor milliseconds of the servers for each of its orders; the medians. Compared with
    /// `cpuPerOrder` it tells what of the servers' work is indispensable.
    pub bare_loop_cpu_per_order: BTreeMap<String, f64>,
    /// At given rates.
    pub latency: Vec<Latency>,
    /// Processor milliseconds for each order, by process, over all rounds.
    pub cpu_per_order: BTreeMap<String, f64>,
    /// Messages in a batch, by place; the medians of the rounds. With all roles in one process those
    /// of all, otherwise those of the edge.
    pub batches: BTreeMap<String, f64>,
    /// Of the load itself.
    pub load_cpu_per_order: Option<f64>,
    /// Bytes of memory, by process.
    pub rss: Rss,
    /// Bytes that each order takes.
    pub bytes_per_order: Option<PerOrder>,
    /// Reads.
    pub reads: Vec<Reading>,
    /// With many orders stored.
    pub growth: Option<Growth>,
    /// Whether the counts agree.
    pub check: Check,
}

/// What a run was made on.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Processors that may be used.
    pub cpus: usize,
    /// Their kind.
    pub model: String,
    /// Bytes.
    pub memory: u64,
    /// The operating system.
    pub system: String,
}

/// Orders that come at a rate.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// Orders a second, on average.
    pub rate: f64,
    /// The part of the capacity that this is.
    pub share_of_capacity: Option<f64>,
    /// Orders that were refused.
    pub refused: u64,
    /// From the scheduled time to the acknowledgement.
    pub accepted: Quantiles,
    /// From the scheduled time until it can be read as paid.
    pub paid: Quantiles,
    /// The same of the bare loop, at this rate, on the same servers.
    pub bare_loop: Option<Quantiles>,
}

/// Memory in bytes, by process.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rss {
    /// After the start, with the shop set up.
    pub idle: BTreeMap<String, u64>,
    /// The most in the rounds.
    pub load: BTreeMap<String, u64>,
    /// The most of the load itself, until the end.
    pub generator: u64,
}

/// How the cost of an order grows with the orders that are stored.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Growth {
    /// Orders that were stored before the second round.
    pub stored: u64,
    /// The rounds before.
    pub before: Vec<Round>,
    /// The rounds after.
    pub after: Vec<Round>,
    /// Processor time for an order after, to that before; the medians of the rounds.
    pub cpu_ratio: Option<f64>,
    /// Time for an order after, to that before.
    pub time_ratio: f64,
}

impl Machine {
    /// This one.
    pub fn read() -> Self {
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let line = |text: &str, name: &str| {
            let found = text.lines().find(|line| line.starts_with(name));
            let value = found.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim());
            value.unwrap_or_default().to_owned()
        };
        let memory = line(&file("/proc/meminfo"), "MemTotal");
        let kilobytes: u64 =
            memory.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        Self {
            cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            model: line(&file("/proc/cpuinfo"), "model name"),
            memory: kilobytes * 1024,
            system: format!(
                "{} {}",
                std::env::consts::OS,
                file("/proc/sys/kernel/osrelease").trim()
            ),
        }
    }
}
