//! `millrace explain`: one order's whole story.

use anyhow::{Context as _, Result};
use clap::Args;
use millrace_shared::access::Principal;
use millrace_shared::config::{NatsConfig, PostgresConfig};
use millrace_shared::ids::OrderId;
use millrace_shared::log::Log;
use millrace_shared::past::Past;
use millrace_shared::story::{Audience, Finder};

/// Which order.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The order's id
    order: OrderId,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: NatsConfig,
    #[command(flatten)]
    postgres: PostgresConfig,
}

/// Tells it.
pub async fn run(args: ExplainArgs) -> Result<()> {
    let client = args.nats.of(Principal::Operator).connect_now("millrace-explain").await?;
    let topology = args.nats.topology()?;
    let log = Log::new(client.clone(), topology.events_stream());
    let pool = args.postgres.of(Principal::Operator).reading_pool("millrace-explain")?;
    let past = Past::new(log, topology, Some(pool));
    let finder = Finder::new(&client, past);
    let story = finder.story(args.order, Audience::Operators).await?;
    let story = story
        .with_context(|| format!("there is no order {}, or it is not decided yet", args.order))?;
    let text = if args.json { serde_json::to_string_pretty(&story)? } else { story.to_string() };
    #[expect(clippy::print_stdout, reason = "the story")]
    {
        println!("{}", text.trim_end());
    }
    Ok(())
}
