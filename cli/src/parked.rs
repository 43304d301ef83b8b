//! `millrace parked`: list, show, replay and discard what workers could not process.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use millrace_shared::access::Principal;
use millrace_shared::config::{NatsConfig, PostgresConfig};
use millrace_shared::parking::desk::{Desk, Done, Filter, Outcome, Patience, Report};
use serde::Serialize;

/// Parked messages, and what is to be done with them.
#[derive(Debug, Args)]
pub struct ParkedArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Args)]
struct Servers {
    #[command(flatten)]
    nats: NatsConfig,
    #[command(flatten)]
    postgres: PostgresConfig,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Who is named in the audit table
    #[arg(
        long,
        env = "USER",
        hide_env = true,
        default_value = "command line",
        value_name = "NAME"
    )]
    actor: String,
}

#[derive(Debug, Args)]
struct Which {
    /// Only what this worker has parked
    #[arg(long)]
    worker: Option<String>,
    /// Only what is about this: order/ID, customer/ID or product/ID
    #[arg(long, value_name = "KIND/ID")]
    subject: Option<String>,
    /// Begin at this sequence in PARKED
    #[arg(long, value_name = "SEQUENCE", default_value_t = 1)]
    cursor: u64,
}

impl Which {
    fn filter(&self) -> Result<Filter> {
        Filter::new(self.worker.as_deref(), self.subject.as_deref()).map_err(anyhow::Error::msg)
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List parked messages, in the order of their sequences in PARKED
    List {
        #[command(flatten)]
        which: Which,
        /// How many at the most
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
        #[command(flatten)]
        servers: Servers,
    },
    /// Show a parked message with its headers and payload
    Show {
        /// Its sequence in PARKED
        sequence: u64,
        #[command(flatten)]
        servers: Servers,
    },
    /// Give parked messages to their workers again, and tell what became of each. With a message goes
    /// what the same worker has parked of the same order, the oldest first
    Replay {
        /// Sequences in PARKED
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        sequences: Vec<u64>,
        /// Replay all that the options name
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        which: Which,
        /// How many at the most
        #[arg(long, default_value_t = 1000,
              value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
        /// Seconds to wait for the next result; what has none by then is replayed all the same
        #[arg(long, default_value_t = 30, value_name = "SECONDS")]
        wait: u32,
        #[command(flatten)]
        servers: Servers,
    },
    /// Write parked messages to the audit table, and remove them
    Discard {
        /// Sequences in PARKED
        #[arg(required = true)]
        sequences: Vec<u64>,
        /// The reason, for the audit table
        #[arg(long, value_name = "TEXT")]
        why: String,
        #[command(flatten)]
        servers: Servers,
    },
}

/// Runs it.
pub async fn run(args: ParkedArgs) -> Result<()> {
    match args.action {
        Action::List { which, limit, servers } => {
            let page =
                desk(&servers).await?.list(&which.filter()?, which.cursor, limit.into()).await?;
            if servers.json {
                return json(&page);
            }
            say("SEQUENCE  WORKER        ATTEMPTS  LAST SEEN             ORIGINAL")?;
            for item in &page.items {
                let seen = item.last_seen.format("%Y-%m-%dT%H:%M:%SZ");
                say(&format!(
                    "{:<9} {:<13} {:<9} {seen:<21} {} {}\n          {}",
                    item.sequence,
                    item.worker,
                    item.attempts,
                    item.subject,
                    item.original_sequence,
                    item.reason,
                ))?;
            }
            match page.next_cursor {
                Some(cursor) => say(&format!("There may be more: --cursor {cursor}")),
                None => say(&format!("{} parked", page.items.len())),
            }
        }
        Action::Show { sequence, servers } => {
            let shown = desk(&servers).await?.show(sequence).await?;
            let shown = shown.with_context(|| format!("nothing is parked as {sequence}"))?;
            // All of it, in the form that programs read as well.
            json(&shown)
        }
        Action::Replay { sequences, all, which, limit, wait, servers } => {
            let limit = limit as usize;
            let patience = Patience { each: Duration::from_secs(wait.into()), until: None };
            let desk = desk(&servers).await?;
            let report = if all {
                // Told as it happens: who stops it knows what was done.
                let tell = |outcomes: &[Outcome]| {
                    if !servers.json {
                        tell(outcomes).ok();
                    }
                };
                desk.replay_all(&which.filter()?, which.cursor, limit, patience, tell).await?
            } else {
                let report = desk.replay(&sequences, limit, patience).await?;
                if !servers.json {
                    tell(&report.results)?;
                }
                report
            };
            if servers.json {
                json(&report)?;
            }
            sum_up(&report, servers.json)
        }
        Action::Discard { sequences, why, servers } => {
            let outcomes = desk(&servers).await?.discard(&sequences, &why).await?;
            if servers.json { json(&outcomes) } else { tell(&outcomes) }
        }
    }
}

async fn desk(servers: &Servers) -> Result<Desk> {
    ensure!(!servers.actor.trim().is_empty(), "--actor must not be empty");
    let client = servers.nats.of(Principal::Operator).connect_now("millrace-parked").await?;
    let pool = servers.postgres.of(Principal::Operator).pool("millrace-parked")?;
    Ok(Desk::new(client, servers.nats.topology()?, pool, &servers.actor))
}

fn tell(outcomes: &[Outcome]) -> Result<()> {
    for outcome in outcomes {
        let what = outcome.what.as_ref().map_or_else(String::new, |what| {
            format!(" ({} {} {})", what.worker, what.subject, what.original_sequence)
        });
        let result = match &outcome.result {
            Done::Replayed => "replayed".to_owned(),
            Done::StillFailing { reason, attempts, parked_as } => {
                format!("still failing, parked as {parked_as} after {attempts} attempts: {reason}")
            }
            Done::Waiting => "waits for a worker, which will replay it".to_owned(),
            Done::Discarded => "discarded".to_owned(),
            Done::Gone => "gone: it is not parked".to_owned(),
        };
        say(&format!("{}{what}: {result}", outcome.sequence))?;
    }
    Ok(())
}

/// Tells the sums; a replay that did not succeed for all ends the program with an error.
fn sum_up(report: &Report, quiet: bool) -> Result<()> {
    let count = |fits: fn(&Done) -> bool| {
        report.results.iter().filter(|outcome| fits(&outcome.result)).count()
    };
    let replayed = count(|result| *result == Done::Replayed);
    let failing = count(|result| matches!(result, Done::StillFailing { .. }));
    let waiting = count(|result| *result == Done::Waiting);
    let gone = count(|result| *result == Done::Gone);
    if !quiet {
        say(&format!(
            "{replayed} replayed, {failing} still failing, {waiting} waiting, {gone} gone"
        ))?;
        if let Some(cursor) = report.next_cursor {
            say(&format!("The limit was reached; go on with --cursor {cursor}"))?;
        }
    }
    if failing + waiting > 0 {
        bail!("{failing} still failing and {waiting} waiting");
    }
    Ok(())
}

fn json(value: &impl Serialize) -> Result<()> {
    say(&serde_json::to_string_pretty(value)?)
}

fn say(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("nobody reads the output")
}
