//! The program `millrace`: one binary, its roles and tools as subcommands.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use millrace_api::ApiConfig;
use millrace_shared::access::Principal;
use millrace_shared::config::{NatsConfig, PostgresConfig};
use millrace_shared::telemetry::LogConfig;
use millrace_shared::topology::StreamOptions;
use millrace_workers::{MIGRATIONS, Role, WorkerConfig};
use sqlx::{Connection as _, PgConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::AdminArgs;
use crate::credentials::Credentials;

mod admin;
pub mod bench;
pub mod credentials;
pub mod explain;
pub mod import;
pub mod parked;
mod progress;
pub mod rebuild;
pub mod replay;
pub mod sample;
pub mod servers;
pub mod token;
pub mod trim;
pub mod up;
pub mod verify;

/// How long a server may take to answer the tools.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);
/// How long a runtime waits at its end for work that cannot be interrupted.
const LAST_WORK: std::time::Duration = std::time::Duration::from_secs(5);

/// Order processing on NATS JetStream
#[derive(Debug, Parser)]
#[command(name = "millrace", version = env!("MILLRACE_VERSION"), about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    log: LogConfig,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run the whole system on this machine, with private servers: no Docker, no set-up
    Up(up::UpArgs),
    /// Run the HTTP edge
    Api {
        #[command(flatten)]
        config: ApiConfig,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Run workers; start as many as you like, anywhere
    Worker {
        /// Which workers run in this process
        #[arg(required = true, value_enum)]
        roles: Vec<Role>,
        #[command(flatten)]
        config: WorkerConfig,
        #[command(flatten)]
        admin: AdminArgs,
    },
    /// Make a password for each part of the system, and what the servers are told of them
    Credentials(credentials::CredentialsArgs),
    /// Bring the database to this version's schema
    Migrate {
        #[command(flatten)]
        postgres: PostgresConfig,
        /// Folder that `millrace credentials` has made: lets the roles of the database log in with
        /// these passwords
        #[arg(long, env = "MILLRACE_CREDENTIALS", value_name = "DIR")]
        credentials: Option<PathBuf>,
    },
    /// Create the streams, or bring existing ones to the configuration; deletes nothing
    Topology {
        #[command(flatten)]
        nats: NatsConfig,
        #[command(flatten)]
        streams: StreamOptions,
    },
    /// List, show, replay or discard messages that could not be processed
    Parked(parked::ParkedArgs),
    /// Tell an order's whole story: commands, events, charges, parkings, times and what it holds
    Explain(explain::ExplainArgs),
    /// Make all Redis views anew from the journal and the log, while the system runs and serves
    Rebuild(rebuild::RebuildArgs),
    /// Remove old messages from the streams that are stored elsewhere and settled by everybody
    Trim(trim::TrimArgs),
    /// Define products from a CSV or NDJSON file
    Import(import::ImportArgs),
    /// Place a shop's recorded orders again, from CSV files
    Replay(replay::ReplayArgs),
    /// Measure how many orders are processed and how fast, and the servers' own limit beside it
    Bench(bench::BenchArgs),
    /// Make API keys, with which programs and operators sign in
    #[command(subcommand)]
    Key(token::KeyAction),
    /// Make tokens, with which customers and others sign in
    #[command(subcommand)]
    Token(token::TokenAction),
    /// Check every promise against the data, while the system runs
    Verify(verify::VerifyArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let usual = match cli.action {
        // What the Redis client says of lost connections is said by whoever needs them.
        Action::Up(_)
        | Action::Import(_)
        | Action::Replay(_)
        | Action::Parked(_)
        | Action::Explain(_)
        | Action::Rebuild(_)
        | Action::Trim(_)
        | Action::Bench(_)
        | Action::Key(_)
        | Action::Token(_)
        | Action::Verify(_) => "warn,fred=off",
        _ => "info,sqlx=warn,async_nats=warn,fred=off",
    };
    let result = cli.log.start(usual, &service(&cli.action)).and_then(|telemetry| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let result = runtime.block_on(Box::pin(run(cli.action)));
        runtime.shutdown_timeout(LAST_WORK);
        telemetry.stop();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the program's last words")]
            {
                eprintln!("millrace: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

/// What a process is called in traces, metrics and logs that are exported.
fn service(action: &Action) -> String {
    match action {
        Action::Api { .. } => "millrace-api".to_owned(),
        Action::Worker { roles, .. } => match roles.as_slice() {
            [role] => role.name().to_owned(),
            _ => "millrace-worker".to_owned(),
        },
        _ => "millrace".to_owned(),
    }
}

async fn run(action: Action) -> Result<()> {
    match action {
        Action::Up(args) => Box::pin(up::run(args, until_signal()?)).await?,
        Action::Api { config, admin } => {
            let shutdown = until_signal()?;
            admin.serve(shutdown.clone()).await?;
            Box::pin(millrace_api::run(config, shutdown)).await?;
        }
        Action::Worker { mut roles, config, admin } => {
            roles.sort_unstable_by_key(|role| *role as u8);
            roles.dedup();
            let shutdown = until_signal()?;
            admin.serve(shutdown.clone()).await?;
            workers(&roles, &config, shutdown).await?;
        }
        Action::Credentials(args) => credentials::run(&args)?,
        Action::Migrate { postgres, credentials } => {
            let credentials = credentials.as_deref().map(Credentials::at);
            migrate(&postgres.of(Principal::Admin), credentials.as_ref()).await?;
        }
        Action::Topology { nats, streams } => {
            topology(&nats.of(Principal::Admin), &streams).await?;
        }
        Action::Parked(args) => parked::run(args).await?,
        Action::Explain(args) => explain::run(args).await?,
        Action::Rebuild(args) => Box::pin(rebuild::run(args)).await?,
        Action::Trim(args) => trim::run(args).await?,
        Action::Import(args) => import::run(args).await?,
        Action::Replay(args) => replay::run(args).await?,
        Action::Bench(args) => Box::pin(bench::run(args, until_signal()?)).await?,
        Action::Key(action) => token::key(&action)?,
        Action::Token(action) => token::token(&action)?,
        Action::Verify(args) => verify::run(args).await?,
    }
    Ok(())
}

/// Runs one replica of each role until the shutdown; if one fails, all stop.
pub async fn workers(
    roles: &[Role],
    config: &WorkerConfig,
    shutdown: CancellationToken,
) -> Result<()> {
    let mut running = JoinSet::new();
    for role in roles.iter().copied() {
        let (config, shutdown) = (config.clone(), shutdown.clone());
        running
            .spawn(async move { Box::pin(millrace_workers::run(role, &config, shutdown)).await });
    }
    all_or_none(running, &shutdown).await
}

/// Waits until all have ended; if one fails, all are told to.
async fn all_or_none(mut running: JoinSet<Result<()>>, shutdown: &CancellationToken) -> Result<()> {
    let mut result = Ok(());
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended.map_err(anyhow::Error::new).flatten() {
            shutdown.cancel();
            result = Err(error);
        }
    }
    result
}

/// Brings the database to this version's schema; sqlx takes an advisory lock for it, so several
/// can be started at once. With credentials its roles can log in from then on.
pub async fn migrate(config: &PostgresConfig, credentials: Option<&Credentials>) -> Result<()> {
    let options = config.options()?.application_name("millrace-migrate");
    let at = format!("{}:{}", options.get_host(), options.get_port());
    // Not from a pool: it would try for a while, and then tell only that it did.
    let mut connection = tokio::time::timeout(LIMIT, PgConnection::connect_with(&options))
        .await
        .map_err(anyhow::Error::new)
        .and_then(|connected| Ok(connected?))
        .with_context(|| format!("PostgreSQL at {at} cannot be reached"))?;
    MIGRATIONS.run(&mut connection).await.context("the migrations were not all carried out")?;
    if let Some(credentials) = credentials {
        credentials.let_in(&mut connection).await.context("the roles cannot be let in")?;
    }
    connection.close().await?;
    Ok(())
}

/// Creates or updates the streams.
pub async fn topology(nats: &NatsConfig, streams: &StreamOptions) -> Result<()> {
    let create = nats.topology()?;
    let client = nats.connect_now("millrace-topology").await?;
    let jetstream = async_nats::jetstream::new(client);
    tokio::time::timeout(LIMIT, create.create(&jetstream, streams))
        .await
        .with_context(|| format!("no answer from NATS at {}", nats.nats_url.join(", ")))?
}

/// A token that SIGINT (Ctrl-C) or SIGTERM cancels; a second signal ends the process at once.
fn until_signal() -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        for again in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if again {
                std::process::exit(130);
            }
            stop.cancel();
        }
    });
    Ok(token)
}
