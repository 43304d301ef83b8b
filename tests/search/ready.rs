//! When an edge has the catalogue, and what it says before and after.

use async_nats::jetstream;
use chrono::TimeDelta;
use millrace_api::{ApiConfig, Server};
use millrace_shared::message::Subject;
use millrace_workers::trim::{Keep, Trim};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{define_all, make, total_is};
use crate::harness::{System, eventually};

/// Another edge of the same system.
struct Edge {
    http: String,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Edge {
    async fn start(system: &System) -> Self {
        let any = "127.0.0.1:0".parse().expect("an address");
        let config = ApiConfig::new(any, system.config.nats.clone(), system.config.redis.clone());
        let server = Server::bind(config).await.expect("the api binds");
        let http = format!("http://{}", server.local_addr());
        let stop = CancellationToken::new();
        let shutdown = stop.clone();
        let task = tokio::spawn(async move { server.serve(shutdown).await.expect("it ends well") });
        Self { http, stop, task }
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let answer = reqwest::get(format!("{}{path}", self.http)).await.expect("the edge answers");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    }

    async fn is_ready(&self) {
        eventually("the edge is ready", async || {
            (self.get("/readyz").await.1["status"] == "ok").then_some(())
        })
        .await;
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("it ended");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_edge_reads_the_whole_catalogue_before_it_is_ready_even_what_was_trimmed() {
    let system = System::start().await;
    let made = make(3, 200);
    define_all(&system, &made).await;
    system.post_and_wait("/v1/products/P-0001/retire", &json!({})).await;
    system.settle().await;
    let query = "/v1/products?q=pencil&sort=newest&limit=100";
    total_is(&system, "active=false", 1).await;
    let before = system.get(query).await.body;

    let edge = Edge::start(&system).await;
    edge.is_ready().await;
    assert_eq!(edge.get(query).await, (200, before.clone()));
    edge.stop().await;

    // The events go; a few come after them.
    let trim = Trim::new(system.pool.clone(), &system.nats, system.topology.clone());
    let nothing = Keep { age: TimeDelta::zero(), messages: 0 };
    trim.run(nothing, false).await.expect("trimmed").expect("no other trim");
    assert!(system.history(Subject::Product, "P-0007").await.is_empty());
    system.post_and_wait("/v1/products/P-0002/restock", &json!({ "quantity": 900 })).await;
    system.define("pencil-new", 100, 1).await;
    let edge = Edge::start(&system).await;
    edge.is_ready().await;
    let (_, all) = edge.get("/v1/products?q=").await;
    assert_eq!(all["total"], 201);
    let (_, restocked) = edge.get("/v1/products?q=P-0002&limit=1").await;
    let (_, view) = edge.get("/v1/products/P-0002").await;
    assert_eq!(restocked["items"][0], view);
    assert!(view["stock"]["available"].as_i64() >= Some(900), "{view}");
    edge.stop().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_before_the_catalogue_is_read_is_told_to_come_back_and_a_lost_log_is_told() {
    let system = System::start().await;
    system.define("pen", 100, 1).await;
    total_is(&system, "q=pen", 1).await;
    // The log goes away under the edge that follows it.
    let jetstream = jetstream::new(system.nats.clone());
    let name = system.topology.events_stream();
    let config = jetstream.get_stream(&name).await.expect("the log").cached_info().config.clone();
    jetstream.delete_stream(&name).await.expect("it is gone");
    eventually("the edge tells that it may be old", async || {
        let answer = system.get("/v1/products?q=pen").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body["total"], 1);
        answer.body["staleSince"].is_string().then_some(())
    })
    .await;
    // A new edge knows nothing yet: that is not told as an empty catalogue.
    let edge = Edge::start(&system).await;
    let answer =
        system.send(reqwest::Client::new().get(format!("{}/v1/products?q=", edge.http))).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").parse::<u32>().is_ok(), "{answer:?}");
    assert_eq!(edge.get("/readyz").await.0, 503);
    // The plain list needs the views only.
    assert_eq!(edge.get("/v1/products").await.0, 200);

    jetstream.create_stream(config).await.expect("there is a log again");
    edge.is_ready().await;
    eventually("the edge follows again", async || {
        system.get("/v1/products?q=pen").await.body["staleSince"].is_null().then_some(())
    })
    .await;
    edge.stop().await;
    system.stop().await;
}
