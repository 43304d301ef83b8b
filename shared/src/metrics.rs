//! What is counted and measured, in one place: each thing once, with two ways out, Prometheus'
//! text at `/metrics` and OTLP (see [`crate::telemetry`]).
//!
//! Labels have few values, known beforehand: names of workers, routes, outcomes; never an id.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use opentelemetry::metrics::{
    AsyncInstrument, Counter, Gauge, Histogram, Meter, MeterProvider as _, ObservableGauge,
    UpDownCounter,
};
use opentelemetry::{KeyValue, Value, global};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Encoder as _, Registry, TextEncoder};
use sqlx::PgPool;

use crate::export;
use crate::service::VERSION;

/// Seconds up to which the classes of a time reach.
const TIMES: [f64; 16] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    120.0,
];
/// Messages up to which the classes of a batch reach.
const SIZES: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0];

/// An instrument as it is told of in the documentation.
#[derive(Debug, Clone, Copy)]
pub struct Described {
    /// Its name in OTLP; [`Described::prometheus`] is that at `/metrics`.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`, as Prometheus has it.
    pub kind: &'static str,
    /// Its unit (UCUM): `s`, or a word in braces for what is counted.
    pub unit: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

impl Described {
    /// Its name at `/metrics`.
    pub fn prometheus(&self) -> String {
        let unit = if self.unit == "s" { "_seconds" } else { "" };
        let counter = if self.kind == "counter" { "_total" } else { "" };
        format!("{}{unit}{counter}", self.name.replace('.', "_"))
    }
}

/// How each type of instrument is made.
trait Instrument {
    const KIND: &'static str;
    fn make(meter: &Meter, it: &Described) -> Self;
}

impl Instrument for Counter<u64> {
    const KIND: &'static str = "counter";
    fn make(meter: &Meter, it: &Described) -> Self {
        meter.u64_counter(it.name).with_unit(it.unit).with_description(it.help).build()
    }
}

impl Instrument for UpDownCounter<i64> {
    const KIND: &'static str = "gauge";
    fn make(meter: &Meter, it: &Described) -> Self {
        meter.i64_up_down_counter(it.name).with_unit(it.unit).with_description(it.help).build()
    }
}

impl Instrument for Gauge<f64> {
    const KIND: &'static str = "gauge";
    fn make(meter: &Meter, it: &Described) -> Self {
        meter.f64_gauge(it.name).with_unit(it.unit).with_description(it.help).build()
    }
}

impl Instrument for Histogram<f64> {
    const KIND: &'static str = "histogram";
    fn make(meter: &Meter, it: &Described) -> Self {
        let classes = if it.unit == "s" { TIMES.to_vec() } else { SIZES.to_vec() };
        let histogram = meter.f64_histogram(it.name).with_unit(it.unit);
        histogram.with_description(it.help).with_boundaries(classes).build()
    }
}

/// What is looked at when somebody asks: the pools.
impl Instrument for ObservableGauge<f64> {
    const KIND: &'static str = "gauge";
    fn make(meter: &Meter, it: &Described) -> Self {
        let gauge = meter.f64_observable_gauge(it.name).with_unit(it.unit);
        gauge.with_description(it.help).with_callback(tell_pools).build()
    }
}

macro_rules! instruments {
    ($(#[doc = $help:literal] $field:ident: $type:ty = $name:literal, $unit:literal, $labels:expr;)*) => {
        /// All instruments. See [`metrics`].
        #[derive(Debug)]
        pub struct Metrics {
            $(#[doc = $help] pub $field: $type,)*
            registry: Registry,
            provider: SdkMeterProvider,
        }

        /// All that is measured, in the order in which it is documented.
        pub const ALL: &[Described] = &[$(Described {
            name: $name, kind: <$type as Instrument>::KIND, unit: $unit, labels: &$labels,
            help: $help.trim_ascii(),
        }),*];

        impl Metrics {
            fn new(provider: SdkMeterProvider, registry: Registry) -> Self {
                let meter = provider.meter("millrace");
                let mut described = ALL.iter();
                // Fields and ALL are written by the same lines.
                $(let $field = <$type as Instrument>::make(
                    &meter,
                    described.next().unwrap_or(&ALL[0]),
                );)*
                Self { $($field,)* registry, provider }
            }
        }
    };
}

instruments! {
    /// Always 1: which version runs
    build_info: Gauge<f64> = "millrace.build_info", "", ["version"];
    /// Messages that a worker is done with
    processed: Counter<u64> = "millrace.messages.processed", "{message}", ["worker"];
    /// Attempts at a message that have failed
    failed: Counter<u64> = "millrace.messages.failed", "{message}", ["worker"];
    /// Messages that came again, after an attempt here or at another replica
    redelivered: Counter<u64> = "millrace.messages.redelivered", "{message}", ["worker"];
    /// Messages that were parked
    parked: Counter<u64> = "millrace.messages.parked", "{message}", ["worker"];
    /// Messages that a worker has in hand now
    in_hand: UpDownCounter<i64> = "millrace.messages.in_hand", "{message}", ["worker"];
    /// From the moment at which its stream took a message until the worker was done with it
    message_time: Histogram<f64> = "millrace.message.duration", "s", ["worker"];
    /// Messages in a batch that a worker was handed
    batch_size: Histogram<f64> = "millrace.batch.messages", "{message}", ["worker"];
    /// How long a worker took over a batch
    batch_time: Histogram<f64> = "millrace.batch.duration", "s", ["worker"];
    /// 1 while a worker pulls from its stream, 0 while it cannot
    consuming: Gauge<f64> = "millrace.worker.consuming", "", ["worker"];
    /// Messages of its stream that no replica of a worker has had yet
    pending: Gauge<f64> = "millrace.consumer.pending", "{message}", ["worker"];
    /// Messages that replicas of a worker have and have not settled
    unsettled: Gauge<f64> = "millrace.consumer.unsettled", "{message}", ["worker"];
    /// The age of the oldest message that a worker has not settled; 0 if there is none
    oldest: Gauge<f64> = "millrace.consumer.oldest", "s", ["worker"];
    /// Commands that were decided, by kind (`order.place`), outcome (`accepted`, `rejected`) and reason
    decided: Counter<u64> = "millrace.commands.decided", "{command}", ["kind", "outcome", "reason"];
    /// Commands that the edge was sent, by kind and what became of them there: `stored`, `full`, `unknown`, `unavailable`, `failed`
    commands: Counter<u64> = "millrace.commands.received", "{command}", ["kind", "outcome"];
    /// From the moment at which an order was placed until its first event could be read from the views
    visible: Histogram<f64> = "millrace.order.visible", "s", [];
    /// Calls of the payment gateway: how long each took, by call (`charge`, `find`, `void`, `refund`) and outcome
    gateway: Histogram<f64> = "millrace.gateway.duration", "s", ["call", "outcome"];
    /// Messages in an append to a stream
    append_size: Histogram<f64> = "millrace.append.messages", "{message}", ["stream"];
    /// How long an append took, by outcome: `stored`, `conflict`, `full`, `refused`, `retried`, `given_up`
    append_time: Histogram<f64> = "millrace.append.duration", "s", ["stream", "outcome"];
    /// Connections to PostgreSQL, by pool and state: `used`, `idle`, `unopened` (it may still open them)
    connections: ObservableGauge<f64> = "millrace.postgres.connections", "{connection}", ["pool", "state"];
    /// HTTP requests: how long each took until its answer began, by route template and status
    http: Histogram<f64> = "millrace.http.request.duration", "s", ["method", "route", "status"];
    /// HTTP requests that are under way
    http_open: UpDownCounter<i64> = "millrace.http.requests.open", "{request}", [];
    /// Live streams that are open
    streams: UpDownCounter<i64> = "millrace.live.streams", "{stream}", [];
    /// Products in the catalogue's index
    catalogue: Gauge<f64> = "millrace.catalogue.products", "{product}", [];
}

/// The process's instruments. They are made when first asked for, by the standard `OTEL_` settings.
pub fn metrics() -> &'static Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| {
        let registry = Registry::new();
        let mut provider = SdkMeterProvider::builder().with_resource(export::resource());
        let text = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .without_target_info()
            .build();
        match text {
            Ok(text) => provider = provider.with_reader(text),
            Err(error) => tracing::error!("/metrics will be empty: {error}"),
        }
        if let Some(reader) = export::metric_reader() {
            provider = provider.with_reader(reader);
        }
        let provider = provider.build();
        // The exporters of traces and logs count there what they have to drop.
        global::set_meter_provider(provider.clone());
        let metrics = Metrics::new(provider, registry);
        metrics.build_info.record(1.0, &[label("version", VERSION)]);
        metrics
    })
}

/// A label.
pub fn label(name: &'static str, value: impl Into<Value>) -> KeyValue {
    KeyValue::new(name, value)
}

impl Metrics {
    /// All of it, in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!("the metrics cannot be written: {error}");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    /// Exports what is there for the last time.
    pub(crate) fn stop(&self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!("the last metrics were not exported: {error}");
        }
    }
}

/// The media type of [`Metrics::text`].
pub const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

static POOLS: Mutex<BTreeMap<&'static str, PgPool>> = Mutex::new(BTreeMap::new());

/// Tells of the connections of a pool, until it is closed.
pub fn watch_pool(name: &'static str, pool: &PgPool) {
    POOLS.lock().unwrap_or_else(PoisonError::into_inner).insert(name, pool.clone());
}

fn tell_pools(gauge: &dyn AsyncInstrument<f64>) {
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    pools.retain(|_, pool| !pool.is_closed());
    for (name, pool) in &*pools {
        let open = pool.size();
        let idle = u32::try_from(pool.num_idle()).unwrap_or(u32::MAX).min(open);
        let unopened = pool.options().get_max_connections().saturating_sub(open);
        for (state, count) in [("used", open - idle), ("idle", idle), ("unopened", unopened)] {
            gauge.observe(count.into(), &[label("pool", *name), label("state", state)]);
        }
    }
}

/// Something that is open: it is counted until this is dropped.
#[derive(Debug)]
pub struct Open {
    counter: &'static UpDownCounter<i64>,
    labels: Vec<KeyValue>,
    count: i64,
}

impl Open {
    /// Counts `count` more.
    pub fn new(counter: &'static UpDownCounter<i64>, count: usize, labels: Vec<KeyValue>) -> Self {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        counter.add(count, &labels);
        Self { counter, labels, count }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counter.add(-self.count, &self.labels);
    }
}

/// A number of things as instruments take it.
#[expect(clippy::cast_precision_loss, reason = "nobody counts so far")]
pub fn number(count: usize) -> f64 {
    count as f64
}

/// Records how long something took, whatever ends it: a call that was given up counts as well, under
/// the outcome that it began with.
#[derive(Debug)]
pub struct Timed {
    histogram: &'static Histogram<f64>,
    labels: Vec<KeyValue>,
    start: Instant,
}

impl Timed {
    /// Begins now.
    pub fn new(histogram: &'static Histogram<f64>, labels: Vec<KeyValue>) -> Self {
        Self { histogram, labels, start: Instant::now() }
    }

    /// It has this outcome.
    pub fn outcome(mut self, outcome: &'static str) {
        self.labels.retain(|it| it.key.as_str() != "outcome");
        self.tell(label("outcome", outcome));
    }

    /// One more label.
    pub fn tell(&mut self, label: KeyValue) {
        self.labels.push(label);
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.histogram.record(self.start.elapsed().as_secs_f64(), &self.labels);
    }
}
