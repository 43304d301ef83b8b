//! The way out by OTLP (<https://opentelemetry.io/docs/specs/otlp/>), for traces, metrics and logs:
//! on where the standard `OTEL_` variables name a collector, otherwise not there at all.
//!
//! Each signal has a bounded queue and a thread of its own that sends. Who writes never waits: what
//! finds the queue full, because the collector is away or slow, is dropped and counted.

use std::env;
use std::sync::OnceLock;

use anyhow::{Result, bail};
use opentelemetry_otlp::{LogExporter, MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::PeriodicReader;
use opentelemetry_sdk::trace::SdkTracerProvider;
use uuid::Uuid;

use crate::service::VERSION;

/// The kinds of telemetry, as the variables name them.
const SIGNALS: [&str; 3] = ["TRACES", "METRICS", "LOGS"];
/// What `OTEL_TRACES_SAMPLER` may be.
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// The name of the service, where no variable gives one.
static SERVICE: OnceLock<String> = OnceLock::new();

/// Checks the variables, so that a setting that would be ignored is refused at the start.
pub(crate) fn check(service: &str) -> Result<()> {
    // A second start in one process keeps the first name.
    SERVICE.get_or_init(|| service.to_owned());
    for signal in SIGNALS {
        let exporter = format!("OTEL_{signal}_EXPORTER");
        if let Some(other) = variable(&exporter).filter(|it| !["otlp", "none"].contains(&&**it)) {
            bail!("{exporter}={other}: only otlp and none are known; /metrics needs no setting");
        }
        if !is_on(signal) {
            continue;
        }
        if let Some(protocol) = of_signal(signal, "PROTOCOL").filter(|it| it != "http/protobuf") {
            bail!("the OTLP protocol {protocol} is not spoken here; set http/protobuf (port 4318)");
        }
        if let Some(compression) = of_signal(signal, "COMPRESSION").filter(|it| it != "none") {
            bail!("OTLP is not compressed here: {compression} is not known");
        }
        let endpoint = of_signal(signal, "ENDPOINT").unwrap_or_default();
        if !endpoint.starts_with("http://") {
            bail!(
                "the OTLP endpoint {endpoint:?} must begin with http://: TLS is left to a collector \
                 beside this program"
            );
        }
    }
    if let Some(sampler) = variable("OTEL_TRACES_SAMPLER")
        && !SAMPLERS.contains(&&*sampler)
    {
        bail!("OTEL_TRACES_SAMPLER={sampler} is not known; there are {}", SAMPLERS.join(", "));
    }
    if let Some(ratio) = variable("OTEL_TRACES_SAMPLER_ARG")
        && !ratio.parse().is_ok_and(|ratio: f64| (0.0..=1.0).contains(&ratio))
    {
        bail!("OTEL_TRACES_SAMPLER_ARG={ratio} must be a number from 0 to 1");
    }
    Ok(())
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// A setting of OTLP: that of the signal, else that of all.
fn of_signal(signal: &str, setting: &str) -> Option<String> {
    variable(&format!("OTEL_EXPORTER_OTLP_{signal}_{setting}"))
        .or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{setting}")))
}

fn is_on(signal: &str) -> bool {
    let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|it| it.eq_ignore_ascii_case("true"));
    let none = variable(&format!("OTEL_{signal}_EXPORTER")).is_some_and(|it| it == "none");
    !disabled && !none && of_signal(signal, "ENDPOINT").is_some()
}

/// What all telemetry of this process says of where it comes from.
pub(crate) fn resource() -> Resource {
    static RESOURCE: OnceLock<Resource> = OnceLock::new();
    RESOURCE.get_or_init(describe).clone()
}

fn describe() -> Resource {
    let mut resource = Resource::builder()
        .with_attribute(opentelemetry::KeyValue::new("service.version", VERSION))
        .with_attribute(opentelemetry::KeyValue::new(
            "service.instance.id",
            Uuid::now_v7().to_string(),
        ));
    let named = variable("OTEL_SERVICE_NAME").is_some()
        || variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|it| it.contains("service.name="));
    if !named {
        let service = SERVICE.get().cloned().unwrap_or_else(|| "millrace".to_owned());
        resource = resource.with_service_name(service);
    }
    resource.build()
}

/// Sends metrics, if that is on.
pub(crate) fn metric_reader() -> Option<PeriodicReader<MetricExporter>> {
    if !is_on("METRICS") {
        return None;
    }
    match MetricExporter::builder().with_http().build() {
        Ok(exporter) => Some(PeriodicReader::builder(exporter).build()),
        Err(error) => {
            tracing::error!("metrics are not exported: {error}");
            None
        }
    }
}

/// Sends traces, if that is on.
pub(crate) fn traces() -> Result<Option<SdkTracerProvider>> {
    if !is_on("TRACES") {
        return Ok(None);
    }
    let exporter = SpanExporter::builder().with_http().build()?;
    let provider = SdkTracerProvider::builder().with_resource(resource());
    Ok(Some(provider.with_batch_exporter(exporter).build()))
}

/// Sends logs, if that is on.
pub(crate) fn logs() -> Result<Option<SdkLoggerProvider>> {
    if !is_on("LOGS") {
        return Ok(None);
    }
    let exporter = LogExporter::builder().with_http().build()?;
    let provider = SdkLoggerProvider::builder().with_resource(resource());
    Ok(Some(provider.with_batch_exporter(exporter).build()))
}
