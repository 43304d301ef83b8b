//! Logging: what is written, in which form.

use std::io::{IsTerminal as _, stderr};

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;

/// What is logged, and how.
#[derive(Debug, Clone, Args)]
pub struct LogConfig {
    /// What is logged: `info`, or by part: `warn,millrace_workers=debug`
    #[arg(long, env = "MILLRACE_LOG", global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// One line of text or of JSON for each entry
    #[arg(long, env = "MILLRACE_LOG_FORMAT", default_value = "pretty", global = true)]
    pub log_format: LogFormat,
}

/// The form of a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// For machines.
    Json,
}

impl LogConfig {
    /// Starts logging to standard error, for the whole process; `usual` is logged if nothing else
    /// is asked for.
    pub fn start(&self, usual: &str) -> anyhow::Result<()> {
        let filter = self.log.as_deref().unwrap_or(usual);
        let filter = EnvFilter::try_new(filter)
            .map_err(|error| anyhow::anyhow!("--log {filter:?} is no filter: {error}"))?;
        let builder = SubscriberBuilder::default().with_env_filter(filter).with_writer(stderr);
        match self.log_format {
            LogFormat::Pretty => {
                builder.with_target(false).with_ansi(stderr().is_terminal()).try_init()
            }
            LogFormat::Json => builder.json().flatten_event(true).try_init(),
        }
        .map_err(|error| anyhow::anyhow!("logging cannot be started: {error}"))
    }
}
