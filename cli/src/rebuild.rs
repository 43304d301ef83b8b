//! `millrace rebuild`: makes all views anew, while the system runs and serves.

use std::io::Write as _;

use anyhow::{Result, bail};
use clap::Args;
use millrace_shared::access::Principal;
use millrace_shared::config::{NatsConfig, PostgresConfig, RedisConfig};
use millrace_shared::views::Views;
use millrace_workers::rebuild::Rebuild;

/// Where the views, and what they are made of, are.
#[derive(Debug, Clone, Args)]
pub struct RebuildArgs {
    #[command(flatten)]
    nats: NatsConfig,
    #[command(flatten)]
    postgres: PostgresConfig,
    #[command(flatten)]
    redis: RedisConfig,
}

/// Makes the views anew, and tells how far it is.
pub async fn run(args: RebuildArgs) -> Result<()> {
    let topology = args.nats.topology()?;
    let client = args.nats.of(Principal::Operator).connect_now("millrace-rebuild").await?;
    let pool = args.postgres.of(Principal::Operator).pool("millrace-rebuild")?;
    let views = Views::new(args.redis.of(Principal::Operator).client()?, topology.namespace());
    let rebuild = Rebuild::new(pool, views.clone(), &client, topology);
    let outcome = rebuild.run(|step| say(&format!("{step} …"))).await?;
    // How the connection ends is of no interest; who was refused may not even have one yet.
    views.close().await.ok();
    match outcome {
        Some(done) => say(&format!("done: {done}")),
        None => bail!("another rebuild of this system is under way; this one has done nothing"),
    }
    Ok(())
}

/// Tells the operator, who may have stopped to listen: what is under way goes on.
pub(crate) fn say(text: &str) {
    writeln!(std::io::stdout().lock(), "{text}").ok();
}
