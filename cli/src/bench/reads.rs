//! How fast the edge answers reads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tokio::task::JoinSet;

use super::client::Connection;
use super::figures::{Quantiles, Times, rate};
use super::proc;
use super::shop::Shop;
use super::system::System;

/// What is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Read {
    /// An order by its id.
    Order,
    /// A customer's last ten orders, with their lines as bought.
    History,
    /// Products by a word.
    Search,
}

impl Read {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Order, Self::History, Self::Search];
}

/// What came of it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reading {
    /// What was read.
    pub what: Read,
    /// Over so many connections, one request at a time on each.
    pub connections: usize,
    /// Answers in a second.
    pub per_second: f64,
    /// How long each took.
    pub times: Quantiles,
    /// Bytes of an answer, on average.
    pub bytes: f64,
    /// Processor milliseconds of the load for each answer.
    pub load_cpu_per_read: f64,
}

#[derive(Default)]
struct Answers {
    times: Times,
    bytes: u64,
}

/// Reads for a while; `orders` have been placed.
pub async fn read(
    system: &System,
    shop: &Arc<Shop>,
    orders: u64,
    what: Read,
    connections: usize,
    time: Duration,
) -> Result<Reading> {
    ensure!(orders > 0, "there are no orders to be read");
    let words = Arc::new(shop.words());
    let cpu = proc::own().cpu;
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for seed in 0..connections {
        let mut connection = Connection::new(&system.http, system.authorization.as_deref())?;
        let (shop, words) = (Arc::clone(shop), Arc::clone(&words));
        let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
        tasks.spawn(async move {
            let mut answers = Answers::default();
            while begin.elapsed() < time {
                let path = match what {
                    Read::Order => {
                        format!("/v1/orders/{}", shop.order(rng.random_range(0..orders))?.id)
                    }
                    Read::History => {
                        let order = shop.order(rng.random_range(0..orders))?.order;
                        format!("/v1/customers/{}/orders?limit=10", order.customer_id)
                    }
                    Read::Search => {
                        format!("/v1/products?q={}", words[rng.random_range(0..words.len())])
                    }
                };
                let start = Instant::now();
                let answer = connection.get(&path).await?;
                answers.times.add(start.elapsed());
                answers.bytes += answer.body.len() as u64;
                ensure!(answer.status == 200, "{path}: the answer is {}", answer.status);
            }
            anyhow::Ok(answers)
        });
    }
    let mut all = Answers::default();
    while let Some(ended) = tasks.join_next().await {
        let answers = ended??;
        all.times.merge(&answers.times)?;
        all.bytes += answers.bytes;
    }
    let elapsed = begin.elapsed();
    let times = all.times.quantiles();
    let cpu = proc::own().cpu.saturating_sub(cpu).as_secs_f64() * 1000.0;
    let per = |sum: f64| sum / super::figures::float(times.count.max(1));
    Ok(Reading {
        what,
        connections,
        per_second: rate(times.count, elapsed),
        bytes: per(super::figures::float(all.bytes)),
        load_cpu_per_read: per(cpu),
        times,
    })
}
