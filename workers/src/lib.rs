//! The workers: validation decides, payment charges, persistence writes the journal, projection
//! keeps the views. Each is one type that implements [`millrace_shared::consumer::Worker`].

pub mod book;
pub mod catch_up;
pub mod event_log;
pub mod expiry;
pub mod gateway;
pub mod hints;
pub mod journal;
pub mod ledger;
pub mod payment;
pub mod persistence;
pub mod projection;
pub mod rebuild;
pub mod relay;
pub mod reservations;
#[cfg(test)]
mod simulation;
pub mod stretch;
pub mod trim;
pub mod validation;

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use millrace_shared::access::Principal;
use millrace_shared::config::{NatsConfig, PostgresConfig, RedisConfig};
use millrace_shared::consumer;
use millrace_shared::log::Log;
use millrace_shared::metrics;
use millrace_shared::topology::Topology;
use millrace_shared::views::Views;
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::catch_up::CatchUp;
use crate::gateway::config::{GatewayConfig, Kind};
use crate::gateway::guard::Guarded;
use crate::gateway::measured::Measured;
use crate::gateway::sandbox::Sandbox;
use crate::gateway::{Gateway, change};
use crate::ledger::PostgresLedger;
use crate::rebuild::Rebuild;
use crate::trim::{Keep, Trim};

/// The migrations of the `migrations` folder, inside the program.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../migrations");

/// A kind of worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Role {
    /// Decides commands; keeps stock and credit.
    Validation,
    /// Charges and refunds.
    Payment,
    /// Writes the journal.
    Persistence,
    /// Keeps the Redis views.
    Projection,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] =
        [Self::Validation, Self::Payment, Self::Persistence, Self::Projection];

    /// As whom it connects.
    fn principal(self) -> Principal {
        match self {
            Self::Validation => Principal::Validation,
            Self::Payment => Principal::Payment,
            Self::Persistence => Principal::Persistence,
            Self::Projection => Principal::Projection,
        }
    }

    /// The name of a process of this role.
    pub fn name(self) -> &'static str {
        match self {
            Self::Validation => "millrace-validation",
            Self::Payment => "millrace-payment",
            Self::Persistence => "millrace-persistence",
            Self::Projection => "millrace-projection",
        }
    }
}

/// What the workers need to know.
#[derive(Debug, Clone, Args)]
pub struct WorkerConfig {
    #[command(flatten)]
    /// NATS
    pub nats: NatsConfig,
    #[command(flatten)]
    /// PostgreSQL
    pub postgres: PostgresConfig,
    #[command(flatten)]
    /// Redis
    pub redis: RedisConfig,
    /// Seconds that an accepted order may wait for its payment; then it expires, and what it holds
    /// is free again. The same for all workers
    #[arg(long, env = "MILLRACE_PAYMENT_TIMEOUT", value_name = "SECONDS",
          default_value_t = PAYMENT_TIMEOUT, value_parser = clap::value_parser!(u32).range(1..))]
    pub payment_timeout: u32,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become part of the help")]
    pub gateway: GatewayConfig,
    /// Let persistence trim the streams, from time to time: messages that are older than so many
    /// hours, in the journal and settled by everybody go. Without it nothing does
    #[arg(long, env = "MILLRACE_TRIM_KEEP_HOURS", value_name = "HOURS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub trim_keep_hours: Option<u32>,
}

impl WorkerConfig {
    /// As a principal connects.
    #[must_use]
    pub fn of(&self, principal: Principal) -> Self {
        Self {
            nats: self.nats.of(principal),
            postgres: self.postgres.of(principal),
            redis: self.redis.of(principal),
            ..self.clone()
        }
    }
}

/// How long an order may wait for its payment if nothing else is said, in seconds.
pub const PAYMENT_TIMEOUT: u32 = 900;

/// Runs one replica of a role until the shutdown.
pub async fn run(
    role: Role,
    whole: &WorkerConfig,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let config = &whole.of(role.principal());
    let topology = config.nats.topology()?;
    let client = config.nats.connect(role.name()).await?;
    let pool = config.postgres.working_pool(role.name())?;
    metrics::watch_pool(role.name(), &pool);
    let events = Log::new(client.clone(), topology.events_stream());
    match role {
        Role::Validation => {
            let time_to_pay = Duration::from_secs(config.payment_timeout.into());
            validate(client, pool.clone(), events, topology, time_to_pay, shutdown).await?;
        }
        Role::Payment => {
            let settings = &config.gateway;
            let place = Place { client, topology, shutdown };
            match settings.gateway {
                Kind::Sandbox => {
                    tokio::select! {
                        settled = change::from_stripe(&pool) => settled?,
                        () = place.shutdown.cancelled() => {}
                    }
                    pay(Sandbox::new(pool.clone()), settings, events, place).await?;
                }
                Kind::Stripe => {
                    let stripe = settings.stripe(pool.clone())?;
                    pay(stripe, settings, events, place).await?;
                }
            }
        }
        Role::Persistence => {
            let worker = Arc::new(persistence::Persistence::new(pool.clone()));
            let work = consumer::run(worker, client, topology.clone(), shutdown.clone());
            let trimming = async {
                if let Some(hours) = config.trim_keep_hours {
                    let config = whole.of(Principal::Trim);
                    let client = config.nats.connect("millrace-trim").await?;
                    let pool = config.postgres.pool("millrace-trim")?;
                    let trim = Trim::new(pool.clone(), &client, topology);
                    trim.keep(Keep::hours(hours), shutdown).await;
                    pool.close().await;
                }
                Ok(())
            };
            tokio::try_join!(work, trimming)?;
        }
        Role::Projection => {
            let views = Views::new(config.redis.client()?, topology.namespace());
            let worker = Arc::new(projection::Projection::new(views.clone()));
            // It writes the views; that there are any is seen to beside it.
            let keeper = Rebuild::new(pool.clone(), views.clone(), &client, topology.clone());
            let catch_up = CatchUp::new(views.clone(), &client, topology.clone());
            let work = consumer::run(worker, client, topology, shutdown.clone());
            let keeping = async {
                tokio::join!(keeper.keep(shutdown.clone()), catch_up.keep(shutdown));
                Ok(())
            };
            tokio::try_join!(work, keeping)?;
            // Otherwise the client would go on reconnecting; how it ends is of no interest.
            views.close().await.ok();
        }
    }
    pool.close().await;
    tracing::info!(role = role.name(), "stopped");
    Ok(())
}

/// Where a worker works, and until when.
struct Place {
    client: async_nats::Client,
    topology: Topology,
    shutdown: CancellationToken,
}

/// Payment is two loops: events, and what the gateway tells of its own accord.
async fn pay<G: Gateway>(
    gateway: G,
    settings: &GatewayConfig,
    events: Log,
    Place { client, topology, shutdown }: Place,
) -> anyhow::Result<()> {
    let gateway = Arc::new(Guarded::new(Measured(gateway), settings.limits()));
    let worker = Arc::new(payment::Payment::new(events, topology.clone(), gateway));
    let hints = hints::follow(&worker, &client, &topology, &shutdown);
    let work =
        consumer::run(Arc::clone(&worker), client.clone(), topology.clone(), shutdown.clone());
    tokio::join!(hints, work).1
}

/// Validation is four loops: commands, the ends of reservations, the relay, and overdue orders.
async fn validate(
    client: async_nats::Client,
    pool: PgPool,
    events: Log,
    topology: Topology,
    time_to_pay: Duration,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let wake = Arc::new(Notify::new());
    let ledger = PostgresLedger::new(pool);
    let validation = Arc::new(validation::Validation::new(
        ledger.clone(),
        events.clone(),
        topology.clone(),
        Arc::clone(&wake),
        time_to_pay,
    ));
    let expiry = expiry::Expiry::new(ledger.clone(), events, topology.clone(), time_to_pay);
    let reservations = Arc::new(reservations::Reservations::new(ledger.clone()));
    // It appends much at a time, behind which no order is to wait: so it has a queue of its own.
    let told = Log::new(client.clone(), topology.events_stream());
    let relay = relay::Relay::new(ledger, told, topology.clone(), wake);
    let mut loops = JoinSet::new();
    loops.spawn(consumer::run(validation, client.clone(), topology.clone(), shutdown.clone()));
    loops.spawn(consumer::run(reservations, client, topology, shutdown.clone()));
    loops.spawn(async move {
        tokio::join!(relay.run(shutdown.clone()), expiry.run(shutdown));
        Ok(())
    });
    while let Some(ended) = loops.join_next().await {
        ended??;
    }
    Ok(())
}
