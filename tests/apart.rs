//! Every role in processes of its own, as in production, and an edge that reaches only one of its
//! servers.

use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{Answer, System, card_order, eventually};
use crate::process::{Process, settings};

/// An address where nobody listens.
const NOWHERE: &str = "127.0.0.1:1";

/// An edge in a process of its own.
struct Edge {
    process: Process,
    http: String,
    client: reqwest::Client,
}

impl Edge {
    /// Starts it; `more` goes before the system's settings.
    async fn start(system: &System, more: &[(&'static str, String)]) -> Self {
        let mut settings = settings(&system.config);
        settings.extend(more.iter().cloned());
        let mut process = Process::start(&["api", "--http", "127.0.0.1:0"], &settings);
        let http = process.http().await;
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { process, http, client }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.http)
    }

    async fn get(&self, system: &System, path: &str) -> Answer {
        system.send(self.client.get(self.url(path))).await
    }

    async fn post(&self, system: &System, path: &str, body: &Value) -> Answer {
        system.send(self.client.post(self.url(path)).json(body)).await
    }
}

fn worker(system: &System, roles: &[&str]) -> Process {
    let words: Vec<&str> = ["worker"].iter().chain(roles).copied().collect();
    Process::start(&words, &settings(&system.config))
}

/// Asks a process to end, and checks that it drains and ends well.
async fn drain(process: Process) {
    let ended = process.end(Signal::TERM).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!ended.errors.contains("panicked"), "{ended:?}");
}

/// How many commands the stream has taken.
async fn commands(system: &System) -> u64 {
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let stream = jetstream.get_stream(system.topology.commands_stream()).await;
    stream.expect("the stream").cached_info().state.last_sequence
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_in_processes_of_their_own_pay_every_order_while_half_of_them_leave() {
    let system = System::without_workers().await;
    let others = ["payment", "persistence", "projection"];
    let (edge, more) = tokio::join!(Edge::start(&system, &[]), Edge::start(&system, &[]));
    let staying = [worker(&system, &["validation"]), worker(&system, &others)];
    let leaving = [worker(&system, &["validation"]), worker(&system, &others)];
    system.register("ann", None).await;
    system.define("pen", 250, 1_000).await;

    let place = async |number: usize| {
        let edge = if number.is_multiple_of(2) { &edge } else { &more };
        let order = card_order("ann", "pen", 1, "tok_ok");
        let answer = edge.post(&system, "/v1/orders", &order).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.text("/orderId")
    };
    let first = join_all((0..20).map(place)).await;
    // They leave at their work; what they have begun is finished by them or by the others.
    let (second, ..) = tokio::join!(join_all((20..40).map(place)), join_all(leaving.map(drain)));
    let orders = [first, second].concat();
    for id in &orders {
        eventually(&format!("order {id} is paid"), async || {
            let order = edge.get(&system, &format!("/v1/orders/{id}")).await;
            (order.body["status"] == "paid").then_some(())
        })
        .await;
        assert_eq!(system.steps(id).await, ["validated", "paid"]);
    }
    system.stock_is("pen", [960, 40, 0]).await;
    for process in staying.into_iter().chain([edge.process, more.process]) {
        drain(process).await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_without_redis_takes_orders() {
    let system = System::without_workers().await;
    let all = ["validation", "payment", "persistence", "projection"];
    let workers = worker(&system, &all);
    system.register("ann", None).await;
    system.define("pen", 250, 10).await;
    drain(workers).await;

    let edge = Edge::start(&system, &[("MILLRACE_REDIS_URL", format!("redis://{NOWHERE}"))]).await;
    assert_eq!(edge.get(&system, "/livez").await.status, 200);
    let ready = edge.get(&system, "/readyz").await;
    assert_eq!(ready.status, 200, "{ready:?}");
    assert_eq!(
        ready.body,
        json!({ "status": "degraded", "nats": "up", "redis": "down", "catalogue": "up" })
    );
    let placed = edge.post(&system, "/v1/orders", &card_order("ann", "pen", 2, "tok_ok")).await;
    assert_eq!(placed.status, 202, "{placed:?}");
    // Who asks for the outcome gets it as far as it is known.
    let order = card_order("ann", "pen", 1, "tok_ok");
    let request = edge.client.post(edge.url("/v1/orders")).header("Prefer", "wait=1");
    let waited = system.send(request.json(&order)).await;
    assert_eq!(waited.status, 202, "{waited:?}");
    let read = edge.get(&system, "/v1/products/pen").await;
    assert_eq!(read.status, 503, "{read:?}");
    assert!(read.header("content-type").starts_with("application/problem+json"), "{read:?}");

    let workers = worker(&system, &all);
    system.order_in(&placed.text("/orderId"), "paid").await;
    system.order_in(&waited.text("/orderId"), "paid").await;
    system.stock_is("pen", [7, 3, 0]).await;
    drain(workers).await;
    drain(edge.process).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_without_nats_shows_what_there_is_and_takes_nothing() {
    let system = System::start().await;
    system.register("ann", None).await;
    system.define("pen", 250, 10).await;
    let placed = system.post_and_wait("/v1/orders", &card_order("ann", "pen", 2, "tok_ok")).await;
    let id = placed.text("/orderId");
    let order = system.order_in(&id, "paid").await;
    system.settle().await;
    let before = commands(&system).await;

    let edge = Edge::start(&system, &[("MILLRACE_NATS_URL", format!("nats://{NOWHERE}"))]).await;
    assert_eq!(edge.get(&system, "/livez").await.status, 200);
    let ready = edge.get(&system, "/readyz").await;
    assert_eq!(
        ready.body,
        json!({ "status": "degraded", "nats": "down", "redis": "up", "catalogue": "down" })
    );
    let seen = edge.get(&system, &format!("/v1/orders/{id}")).await;
    assert_eq!((seen.status, seen.body), (200, order));
    assert_eq!(edge.get(&system, "/v1/products").await.status, 200);
    assert_eq!(edge.get(&system, "/v1/customers/ann/orders").await.status, 200);

    let start = tokio::time::Instant::now();
    let refused = edge.post(&system, "/v1/orders", &card_order("ann", "pen", 1, "tok_ok")).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(start.elapsed() < Duration::from_secs(10), "it took {:?}", start.elapsed());
    assert!(refused.header("content-type").starts_with("application/problem+json"), "{refused:?}");
    assert!(refused.header("retry-after").parse::<u32>().is_ok(), "{refused:?}");
    assert_eq!(refused.body["status"], 503);
    drain(edge.process).await;
    assert_eq!(commands(&system).await, before, "nothing was taken");
    system.stop().await;
}
