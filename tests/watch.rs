//! What can be seen of the system from outside: metrics, traces and logs.

mod collector;
mod deployed;
mod logs;
mod metrics;
mod traces;

use millrace_shared::message::Subject;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::System;
use crate::process::{Process, settings};

/// The roles in processes of their own, each of which tells its metrics.
struct Roles {
    processes: Vec<Process>,
    /// Where the api answers.
    http: String,
    /// Where the metrics of each are.
    metrics: Vec<String>,
}

impl Roles {
    /// Starts one process for each role, with further settings.
    async fn start(system: &System, more: &[(&'static str, String)]) -> Self {
        let mut settings = settings(&system.config);
        settings.push(("MILLRACE_METRICS", "127.0.0.1:0".to_owned()));
        settings.push(("MILLRACE_LOG_FORMAT", "json".to_owned()));
        settings.extend(more.iter().cloned());
        let mut processes = vec![Process::start(&["api", "--http", "127.0.0.1:0"], &settings)];
        for role in ["validation", "payment", "persistence", "projection"] {
            processes.push(Process::start(&["worker", role], &settings));
        }
        let mut metrics = Vec::new();
        for process in &mut processes {
            metrics.push(process.address("metrics are served").await);
        }
        let http = processes[0].http().await;
        Self { processes, http, metrics }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.http)
    }

    /// The metrics of all roles.
    async fn scrape(&self, system: &System) -> String {
        let mut all = String::new();
        for address in &self.metrics {
            all += &text(system, &format!("{address}/metrics")).await;
        }
        all
    }

    /// What each has logged.
    fn said(&self) -> String {
        self.processes.iter().map(Process::errors).collect()
    }
}

/// The body of an answer.
async fn text(system: &System, url: &str) -> String {
    let request = system.request_to("GET", url).send().await.expect("it answers");
    request.text().await.expect("text")
}

/// An event of an order that is not there, which can be read and which PostgreSQL refuses: it fails
/// until it is parked.
async fn publish_refused(system: &System, like: &str) {
    let stored = system.history(Subject::Order, like).await;
    let mut event = serde_json::to_value(&stored[0].event).expect("an event");
    let id = Uuid::now_v7().to_string();
    event["id"] = json!(Uuid::now_v7());
    event["subjectId"] = json!(id);
    event["data"]["remark"] = json!("\u{0}");
    let subject = system.topology.event(Subject::Order, &id, "paid");
    let answer = system.nats.request(subject, event.to_string().into()).await.expect("an ack");
    let ack: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert!(ack["seq"].is_u64(), "{ack}");
}
