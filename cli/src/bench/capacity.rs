//! How many orders a system processes when there are always some to be processed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use tokio::time::sleep;

use super::batches::Batches;
use super::client::Connection;
use super::figures::{Quantiles, float, median, rate};
use super::load::{Arrivals, Load};
use super::proc::{self, Used, Watched};
use super::stored::Stored;
use super::system::System;

/// How often the memory is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A saturated run.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Round {
    /// Orders.
    pub orders: u64,
    /// Orders that were refused.
    pub refused: u64,
    /// Accepted in a second.
    pub accepted_per_second: f64,
    /// Paid, visible and in the journal, in a second, all waiting for the last of them included.
    pub processed_per_second: f64,
    /// From the first order until the last was accepted.
    pub accepted_seconds: f64,
    /// Until it was visible as paid.
    pub visible_seconds: f64,
    /// Until it was in the journal.
    pub journal_seconds: f64,
    /// From sending to the acknowledgement.
    pub accept: Quantiles,
    /// From sending until it was seen to be paid; mostly waiting in queues that are kept full.
    pub paid: Quantiles,
    /// Processor milliseconds for each order, by process.
    pub cpu_per_order: BTreeMap<String, f64>,
    /// Messages in a batch, by place; see [`Batches`].
    pub batches: BTreeMap<String, f64>,
    /// Of the load itself; in no sum.
    pub load_cpu_per_order: f64,
    /// What the servers hold more than before.
    #[serde(skip)]
    pub stored: Stored,
}

/// The most memory that each process had.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<BTreeMap<String, u64>>>);

impl Memory {
    /// The most until now.
    pub fn most(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn look(&self, processes: &[Watched]) {
        loop {
            if let Ok(used) = proc::used(processes) {
                let mut most = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                for (name, usage) in used {
                    let most = most.entry(name).or_default();
                    *most = usage.rss.max(*most);
                }
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// One saturated run.
pub async fn round(
    system: &System,
    load: &mut Load,
    window: usize,
    time: Duration,
    memory: &Memory,
) -> Result<Round> {
    system.worked_off(&[]).await?;
    let stored = Stored::read(system).await?;
    let mut edge = Connection::new(&system.http, system.authorization.as_deref())?;
    let batches = Batches::read(&mut edge).await?;
    let (used, own) = (proc::used(&system.processes)?, proc::own());
    let work = async {
        let placed = load.run(Arrivals::Window(window), Duration::ZERO, time).await?;
        system.worked_off(&["persistence"]).await?;
        let journal = placed.begin.map_or(Duration::ZERO, |begin| begin.elapsed());
        system.worked_off(&[]).await?;
        anyhow::Ok((placed, journal))
    };
    let (placed, journal) = tokio::select! {
        done = work => done?,
        () = memory.look(&system.processes) => unreachable!("it goes on for ever"),
    };
    let orders = placed.accepted;
    let spent = spent(&used, &proc::used(&system.processes)?, orders);
    let own = proc::own().cpu.saturating_sub(own.cpu);
    Ok(Round {
        orders,
        refused: placed.refused,
        accepted_per_second: rate(orders, placed.accepting),
        processed_per_second: rate(orders, placed.visible.max(journal)),
        accepted_seconds: placed.accepting.as_secs_f64(),
        visible_seconds: placed.visible.as_secs_f64(),
        journal_seconds: journal.as_secs_f64(),
        accept: placed.accept_times.quantiles(),
        paid: placed.paid_times.quantiles(),
        cpu_per_order: spent,
        batches: Batches::read(&mut edge).await?.since(&batches),
        load_cpu_per_order: own.as_secs_f64() * 1000.0 / float(orders.max(1)),
        stored: Stored::read(system).await?.since(stored),
    })
}

/// The medians of figures that have the same names.
pub fn medians(rounds: &[&BTreeMap<String, f64>]) -> BTreeMap<String, f64> {
    let names = rounds.iter().flat_map(|round| round.keys());
    let of = |name: &String| {
        median(rounds.iter().filter_map(|round| round.get(name).copied()).collect())
    };
    names.map(|name| (name.clone(), of(name))).collect()
}

/// Processor milliseconds for each order.
pub fn spent(before: &Used, after: &Used, orders: u64) -> BTreeMap<String, f64> {
    let of = |(name, after): (&String, &proc::Usage)| {
        let before = before.get(name).map_or(Duration::ZERO, |before| before.cpu);
        let spent = after.cpu.saturating_sub(before);
        (name.clone(), spent.as_secs_f64() * 1000.0 / float(orders.max(1)))
    };
    let mut spent: BTreeMap<String, f64> = after.iter().map(of).collect();
    if !spent.is_empty() {
        spent.insert("total".to_owned(), spent.values().sum());
    }
    spent
}
