//! What `millrace bench` is to do.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use millrace_workers::gateway::config::GatewayConfig;
use millrace_workers::{PAYMENT_TIMEOUT, WorkerConfig};
use serde::Serialize;

use crate::token::SignIn;
use crate::verify::VerifyConfig;

/// What `millrace bench` is to do.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Measure the system that runs behind this HTTP address, and whose servers are reached by the
    /// settings below; without it, a private system that is started for it
    #[arg(long, value_name = "URL")]
    pub target: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become part of the help")]
    pub sign_in: SignIn,
    /// The running system's servers; `up` writes the settings to the file `env`
    /// in its data folder
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become part of the help")]
    pub servers: VerifyConfig,
    /// Folder for the data of the private system, which stays [default: a temporary one]
    #[arg(long, value_name = "DIR", conflicts_with = "target")]
    pub data: Option<PathBuf>,
    /// Folder of the servers' programs; they are fetched if they are not there
    #[arg(
        long,
        env = "MILLRACE_SERVERS_DIR",
        default_value = ".millrace/servers",
        value_name = "DIR"
    )]
    pub servers_dir: PathBuf,
    /// Run every role in a process of its own, so that its cost can be told; without it all run in
    /// one process, as `up` does
    #[arg(long, conflicts_with = "target")]
    pub apart: bool,
    /// Replicas of each worker
    #[arg(long, default_value = "1", conflicts_with = "target")]
    pub replicas: NonZeroUsize,

    /// The way in
    #[arg(long, value_enum, default_value_t = Entry::Http)]
    pub entry: Entry,
    /// What is measured [default: all but the growth, which --stored asks for]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Phase>,
    /// Only to see that it works, in some seconds
    #[arg(long)]
    pub quick: bool,
    /// Write what was found to a file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// The orders follow from it
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Products in the shop
    #[arg(long, default_value = "500")]
    pub products: NonZeroUsize,
    /// Customers in the shop
    #[arg(long, default_value = "1000")]
    pub customers: NonZeroUsize,
    /// Connections over which orders are placed, at the most [default: as many as --window]
    #[arg(long)]
    pub connections: Option<NonZeroUsize>,
    /// Orders under way at once while the capacity is measured
    #[arg(long, default_value = "2000")]
    pub window: NonZeroUsize,
    /// Seconds in which orders are placed in each round of the capacity
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    pub seconds: f64,
    /// Rounds of the capacity, in turn with the bare loop
    #[arg(long, default_value = "3")]
    pub rounds: NonZeroUsize,
    /// Rates at which the latency is measured, in orders a second; can be repeated [default: 10, and
    /// 50 % and 90 % of the capacity]
    #[arg(long = "rate", value_name = "RATE", value_parser = crate::replay::parse_rate)]
    pub rates: Vec<f64>,
    /// Measure the capacity also with so many orders stored, which are placed before: this takes long
    #[arg(long, value_name = "ORDERS")]
    pub stored: Option<u64>,
}

/// The way in for orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Entry {
    /// `POST /v1/orders`
    Http,
    /// Published to `JetStream`, one by one
    Nats,
    /// By turns
    Mixed,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Orders processed in a second, their cost and size
    Capacity,
    /// The same with the bare loop in turn
    Bare,
    /// How long an order takes, at some rates
    Latency,
    /// Reads
    Reads,
}

impl BenchArgs {
    /// With what `--quick` means.
    #[must_use]
    pub fn settled(mut self) -> Self {
        if self.quick {
            let few = |count: usize| NonZeroUsize::MIN.saturating_add(count - 1);
            (self.rounds, self.seconds) = (few(1), 1.0);
            (self.products, self.customers) = (few(50), few(50));
            (self.connections, self.window) = (Some(few(16)), few(200));
        }
        self
    }

    /// Whether a part is to be done.
    pub fn does(&self, phase: Phase) -> bool {
        self.only.is_empty() || self.only.contains(&phase)
    }

    /// Connections over which orders are placed: with fewer than the window has orders, these would
    /// bound what is under way.
    pub fn connections(&self) -> NonZeroUsize {
        self.connections.unwrap_or(self.window)
    }

    /// How long orders are placed before anything counts.
    pub fn warm_up(&self) -> Duration {
        if self.quick { Duration::from_millis(500) } else { Duration::from_secs(3) }
    }

    /// How long orders are placed in a round.
    pub fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.clamp(0.1, 3600.0))
    }

    /// The parts of the capacity at which the latency is measured.
    pub fn shares(&self) -> &'static [f64] {
        if self.quick { &[0.5] } else { &[0.5, 0.9] }
    }

    /// For how long it is measured at a rate; before it counts, and then.
    pub fn latency_times(&self, rate: f64) -> (Duration, Duration) {
        let seconds = |warm_up, time| (Duration::from_secs(warm_up), Duration::from_secs(time));
        match (self.quick, rate < 100.0) {
            (true, _) => seconds(0, 1),
            // Enough orders for the 99th of a hundred to mean something.
            (false, true) => seconds(2, 60),
            (false, false) => seconds(3, 20),
        }
    }

    /// Over how many connections is read.
    pub fn read_connections(&self) -> &'static [usize] {
        if self.quick { &[1, 16] } else { &[1, 16, 64, 256] }
    }

    /// How long is read each time.
    pub fn read_time(&self) -> Duration {
        if self.quick { Duration::from_millis(300) } else { Duration::from_secs(4) }
    }

    /// The settings of the servers of a running system.
    pub fn running(&self) -> WorkerConfig {
        WorkerConfig {
            nats: self.servers.nats.clone(),
            postgres: self.servers.postgres.clone(),
            redis: self.servers.redis.clone(),
            payment_timeout: PAYMENT_TIMEOUT,
            gateway: GatewayConfig::default(),
            trim_keep_hours: None,
        }
    }

    /// What the report tells of how it was run.
    pub fn parameters(&self) -> serde_json::Value {
        let roles = match (&self.target, self.apart) {
            (Some(_), _) => "running system",
            (None, true) => "a process each",
            (None, false) => "one process",
        };
        serde_json::json!({
            "entry": self.entry,
            "seed": self.seed,
            "roles": roles,
            "replicas": self.replicas,
            "products": self.products,
            "customers": self.customers,
            "linesPerOrder": super::shop::LINES,
            "connections": self.connections(),
            "window": self.window,
            "seconds": self.seconds,
            "rounds": self.rounds,
            "quick": self.quick,
            "bareBatch": super::bare::BATCH,
            "bareBatchesUnderway": super::bare::UNDERWAY,
            "debugBuild": cfg!(debug_assertions),
        })
    }
}
