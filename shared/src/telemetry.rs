//! Telemetry: what is logged, in which form, and whether logs, traces and metrics go out by OTLP
//! (see `export.rs`).

use std::io::{IsTerminal as _, stderr};
use std::sync::mpsc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_appender_tracing::layer::OpenTelemetryTracingBridge;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{FilterFn, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use crate::metrics::metrics;
use crate::{export, trace};

/// How long the end of the process waits for what is still to be exported.
const LAST: Duration = Duration::from_secs(3);

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

/// What goes out by OTLP; [`Telemetry::stop`] sends the rest of it.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    logs: Option<SdkLoggerProvider>,
}

impl LogConfig {
    /// Starts logging to standard error and, by the standard `OTEL_` variables, the export of traces,
    /// metrics and logs, for the whole process. `usual` is logged if nothing else is asked for;
    /// `service` is the name in what is exported if no variable gives one.
    pub fn start(&self, usual: &str, service: &str) -> anyhow::Result<Telemetry> {
        let filter = self.log.as_deref().unwrap_or(usual);
        let filter = EnvFilter::try_new(filter)
            .map_err(|error| anyhow::anyhow!("--log {filter:?} is no filter: {error}"))?;
        export::check(service)?;
        let lines = match self.log_format {
            LogFormat::Pretty => fmt::layer()
                .with_writer(stderr)
                .with_target(false)
                .with_ansi(stderr().is_terminal())
                .boxed(),
            LogFormat::Json => fmt::layer().with_writer(stderr).json().flatten_event(true).boxed(),
        };
        // Before the others: they count there what they drop.
        metrics();
        let (traces, logs) = (export::traces()?, export::logs()?);
        if let Some(traces) = &traces {
            trace::start(traces.tracer("millrace"));
        }
        let bridge = logs.as_ref().map(OpenTelemetryTracingBridge::new);
        tracing_subscriber::registry()
            .with(filter)
            .with(lines)
            .with(bridge.map(|bridge| bridge.with_filter(not_of_the_export())))
            .try_init()
            .map_err(|error| anyhow::anyhow!("logging cannot be started: {error}"))?;
        Ok(Telemetry { traces, logs })
    }
}

/// What the export itself says must not be exported: it would say more for ever.
fn not_of_the_export() -> FilterFn {
    const PARTS: [&str; 4] = ["opentelemetry", "hyper", "reqwest", "h2"];
    filter_fn(|about| !PARTS.iter().any(|part| about.target().starts_with(part)))
}

impl Telemetry {
    /// Sends what is left, for at most three seconds: a collector that is away delays no end.
    pub fn stop(self) {
        let (done, wait) = mpsc::channel();
        std::thread::spawn(move || {
            if let Some(traces) = self.traces {
                traces.shutdown().ok();
            }
            metrics().stop();
            if let Some(logs) = self.logs {
                logs.shutdown().ok();
            }
            done.send(()).ok();
        });
        // Either way it ends now.
        wait.recv_timeout(LAST).ok();
    }
}
