//! An OTLP collector (<https://opentelemetry.io/docs/specs/otlp/>, protobuf over HTTP) that keeps what
//! it is sent, so that tests can look at it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use tokio::net::TcpListener;

/// A span as it came.
#[derive(Debug, Clone)]
pub struct Span {
    /// The process that sent it.
    pub service: String,
    /// Ids in hexadecimal digits; no parent is an empty text.
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub name: String,
    /// In nanoseconds.
    pub start: u64,
    pub end: u64,
    /// The status is an error.
    pub failed: bool,
    attributes: Vec<KeyValue>,
}

impl Span {
    /// The text of an attribute, or nothing.
    pub fn text(&self, name: &str) -> String {
        value(&self.attributes, name)
    }
}

/// A log entry as it came.
#[derive(Debug, Clone)]
pub struct Entry {
    pub service: String,
    /// In hexadecimal digits; empty if it belongs to no trace.
    pub trace: String,
    pub text: String,
}

/// All that came.
#[derive(Debug, Default)]
pub struct Taken {
    pub spans: Vec<Span>,
    pub entries: Vec<Entry>,
    /// Service and name.
    pub metrics: Vec<(String, String)>,
}

/// A collector that listens on this machine.
pub struct Collector {
    taken: Arc<Mutex<Taken>>,
    /// `http://127.0.0.1:PORT`
    pub url: String,
}

#[derive(Clone)]
struct Shared {
    taken: Arc<Mutex<Taken>>,
    delay: Duration,
}

impl Collector {
    /// Begins to listen; each request is answered after `delay`.
    pub async fn start(delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let taken = Arc::<Mutex<Taken>>::default();
        let routes = Router::new()
            .route("/v1/traces", post(traces))
            .route("/v1/metrics", post(metrics))
            .route("/v1/logs", post(logs))
            .layer(DefaultBodyLimit::max(64 * 1024 * 1024))
            .with_state(Shared { taken: Arc::clone(&taken), delay });
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { taken, url }
    }

    /// What came so far.
    pub fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().expect("nobody panics with it")
    }
}

async fn traces(State(shared): State<Shared>, body: Bytes) {
    tokio::time::sleep(shared.delay).await;
    let request = ExportTraceServiceRequest::decode(body).expect("spans in protobuf");
    let mut taken = shared.taken.lock().expect("nobody panics with it");
    for of_resource in request.resource_spans {
        let service = service(of_resource.resource);
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            taken.spans.push(Span {
                service: service.clone(),
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                name: span.name,
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                failed: span.status.is_some_and(|status| status.code == 2),
                attributes: span.attributes,
            });
        }
    }
}

async fn metrics(State(shared): State<Shared>, body: Bytes) {
    tokio::time::sleep(shared.delay).await;
    let request = ExportMetricsServiceRequest::decode(body).expect("metrics in protobuf");
    let mut taken = shared.taken.lock().expect("nobody panics with it");
    for of_resource in request.resource_metrics {
        let service = service(of_resource.resource);
        for metric in of_resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            taken.metrics.push((service.clone(), metric.name));
        }
    }
}

async fn logs(State(shared): State<Shared>, body: Bytes) {
    tokio::time::sleep(shared.delay).await;
    let request = ExportLogsServiceRequest::decode(body).expect("logs in protobuf");
    let mut taken = shared.taken.lock().expect("nobody panics with it");
    for of_resource in request.resource_logs {
        let service = service(of_resource.resource);
        for entry in of_resource.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
            let text = plain(entry.body);
            taken.entries.push(Entry {
                service: service.clone(),
                trace: hex(&entry.trace_id),
                text,
            });
        }
    }
}

fn service(resource: Option<Resource>) -> String {
    value(&resource.expect("a resource").attributes, "service.name")
}

fn value(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    plain(found.and_then(|attribute| attribute.value.clone()))
}

fn plain(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(other) => format!("{other:?}"),
        None => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from_digit(u32::from(half), 16).expect("a digit");
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
