//! `millrace verify`: reads the streams, the journal, the ledger, the book of payments and the views,
//! and checks every promise against the data. Each check is one type that implements
//! `engine::Check`.

mod commands;
mod current;
mod engine;
mod history;
mod journal;
mod ledger;
mod lists;
mod log;
mod money;
mod outbox;
mod repair;
mod report;
mod reports;
mod reservations;
mod stream;
mod views;

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use futures_util::future::{BoxFuture, FutureExt as _, try_join_all};
use millrace_shared::access::Principal;
use millrace_shared::config::{NatsConfig, PostgresConfig, RedisConfig};
use millrace_shared::topology::Topology;
use millrace_shared::views::Views;
use millrace_workers::WorkerConfig;
use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions as _, PgPool};
use tokio::sync::Semaphore;

use engine::Check;
pub use report::{Offender, Report, Row};

/// The servers whose data are checked.
#[derive(Debug, Clone, Args)]
pub struct VerifyConfig {
    #[command(flatten)]
    /// NATS
    pub nats: NatsConfig,
    #[command(flatten)]
    /// PostgreSQL
    pub postgres: PostgresConfig,
    #[command(flatten)]
    /// Redis
    pub redis: RedisConfig,
}

impl From<&WorkerConfig> for VerifyConfig {
    fn from(workers: &WorkerConfig) -> Self {
        Self {
            nats: workers.nats.clone(),
            postgres: workers.postgres.clone(),
            redis: workers.redis.clone(),
        }
    }
}

/// What `verify` is to do.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    config: VerifyConfig,
    /// What looks wrong is looked at again for so long before it is called an offender: longer than
    /// the workers are behind
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(0..=86_400))]
    settle: u64,
    /// Write what is in the log and not in the journal into the journal, before anything is checked
    #[arg(long)]
    repair: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Checks, and prints what was found; an error if a promise is broken.
pub async fn run(args: VerifyArgs) -> Result<()> {
    let settle = Duration::from_secs(args.settle);
    let report = if args.repair {
        repair(&args.config, settle).await?
    } else {
        check(&args.config, settle).await?
    };
    let text = if args.json { serde_json::to_string_pretty(&report)? } else { report.to_string() };
    #[expect(clippy::print_stdout, reason = "the result")]
    {
        println!("{text}");
    }
    anyhow::ensure!(report.is_ok(), "promises are broken: {}", report.failed().join(", "));
    Ok(())
}

/// Checks every promise. What is wrong only for less than `settle` is no offence.
pub async fn check(config: &VerifyConfig, settle: Duration) -> Result<Report> {
    let data = Data::open(config, settle).await?;
    let report = Box::pin(data.check()).await;
    data.close().await;
    report
}

/// Writes what is in the log and not in the journal into the journal; then checks every promise.
pub async fn repair(config: &VerifyConfig, settle: Duration) -> Result<Report> {
    let data = Data::open(config, settle).await?;
    let report = Box::pin(async {
        let repaired = repair::repair(&data, settle).await?;
        Ok(Report { repaired: Some(repaired), ..data.check().await? })
    })
    .await;
    data.close().await;
    report
}

/// Where the data are.
#[derive(Debug, Clone)]
struct Data {
    topology: Topology,
    jetstream: async_nats::jetstream::Context,
    pool: PgPool,
    views: Views,
    settle: Duration,
}

impl Data {
    async fn open(config: &VerifyConfig, settle: Duration) -> Result<Self> {
        let topology = config.nats.topology()?;
        let nats = config.nats.of(Principal::Operator).connect_now("millrace-verify").await?;
        // That a statement over everything is slow is no news.
        let options =
            config.postgres.of(Principal::Operator).options()?.disable_statement_logging();
        let pool = PgPoolOptions::new()
            .max_connections(2 * engine::AT_A_TIME)
            .acquire_timeout(crate::LIMIT)
            .connect_with(options.application_name("millrace-verify"))
            .await
            .context("PostgreSQL cannot be reached")?;
        Ok(Self {
            views: Views::new(config.redis.of(Principal::Operator).client()?, topology.namespace()),
            jetstream: async_nats::jetstream::new(nats),
            topology,
            pool,
            settle,
        })
    }

    /// Runs all checks; those that wait for something to settle wait together.
    async fn check(&self) -> Result<Report> {
        let turns = Semaphore::new(engine::AT_A_TIME as usize);
        let rows = [
            self.row(commands::Commands::new(self.clone()), &turns),
            self.row(outbox::Outbox::new(self.clone()), &turns),
            self.row(history::Histories::new(self.clone()), &turns),
            self.row(log::Log::new(self.clone()), &turns),
            self.row(current::Current::new(self.clone()), &turns),
            self.row(reservations::Reservations::new(self.clone()), &turns),
            self.row(ledger::StockCheck::new(self.clone()), &turns),
            self.row(ledger::Credit::new(self.clone()), &turns),
            self.row(money::MoneyCheck::new(self.clone()), &turns),
            self.row(views::Documents::new(self.clone()), &turns),
            self.row(views::Outcomes::new(self.clone()), &turns),
            self.row(lists::Lists::new(self.clone()), &turns),
            self.row(reports::Reports::new(self.clone()), &turns),
        ];
        let unseen = self.unseen().await?;
        Ok(Report { checks: try_join_all(rows).await?, repaired: None, unseen })
    }

    /// What is in nobody's reach here: the book of a gateway that keeps it elsewhere.
    async fn unseen(&self) -> Result<Option<String>> {
        let sql = "select count(*) from payment.intents where intent_id is not null";
        let payments: i64 = sqlx::query_scalar(sql).fetch_one(&self.pool).await?;
        Ok((payments > 0).then(|| {
            format!(
                "Stripe's own books. Of its {payments} payments it is checked what Stripe has \
                 answered; compare them with its reports by the metadata millrace_key."
            )
        }))
    }

    fn row<'a, C: Check + Send + 'a>(
        &self,
        check: C,
        turns: &'a Semaphore,
    ) -> BoxFuture<'a, Result<Row>> {
        let settle = self.settle;
        async move { engine::run(&check, turns, settle).await }.boxed()
    }

    async fn close(self) {
        // Otherwise the client would go on reconnecting; how it ends is of no interest.
        self.views.close().await.ok();
        self.pool.close().await;
    }
}
