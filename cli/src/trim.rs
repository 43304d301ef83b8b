//! `millrace trim`: removes what is old and stored elsewhere from the streams.

use anyhow::{Result, bail};
use clap::Args;
use millrace_shared::access::Principal;
use millrace_shared::config::{NatsConfig, PostgresConfig};
use millrace_workers::trim::{Keep, Trim};

use crate::rebuild::say;

/// What is to be kept, and where the streams and the journal are.
#[derive(Debug, Clone, Args)]
pub struct TrimArgs {
    /// Only tell what would go, and what holds the rest
    #[arg(long)]
    dry_run: bool,
    /// Keep what is younger than so many hours
    #[arg(long, env = "MILLRACE_TRIM_KEEP_HOURS", value_name = "HOURS", default_value_t = 168,
          value_parser = clap::value_parser!(u32).range(1..))]
    keep_hours: u32,
    /// Keep so many messages of each stream
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    keep_messages: u64,
    #[command(flatten)]
    nats: NatsConfig,
    #[command(flatten)]
    postgres: PostgresConfig,
}

/// Trims, and tells what went.
pub async fn run(args: TrimArgs) -> Result<()> {
    let topology = args.nats.topology()?;
    let client = args.nats.of(Principal::Operator).connect_now("millrace-trim").await?;
    let pool = args.postgres.of(Principal::Operator).pool("millrace-trim")?;
    let keep = Keep { messages: args.keep_messages, ..Keep::hours(args.keep_hours) };
    let Some(trimmed) = Trim::new(pool, &client, topology).run(keep, args.dry_run).await? else {
        bail!("another trim of this system is under way; this one has done nothing");
    };
    for stream in trimmed {
        say(&stream.to_string());
    }
    if args.dry_run {
        say("nothing was removed: a dry run");
    }
    Ok(())
}
