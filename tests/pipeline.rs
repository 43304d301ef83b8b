//! What operators are told of the pipeline.

use std::sync::Arc;

use millrace_shared::service::{Announced, Counters};
use millrace_workers::Role;
use serde_json::Value;

use crate::harness::{System, card_order, eventually};
use crate::web::Edge;

/// Of a worker in a sample.
fn worker<'a>(sample: &'a Value, name: &str) -> &'a Value {
    let workers = sample["workers"].as_array().map_or(&[][..], Vec::as_slice);
    workers.iter().find(|worker| worker["name"] == name).unwrap_or(&Value::Null)
}

/// Waits until a sample of the pipeline fits; somebody watches meanwhile, so that it is looked often.
async fn seen(what: &str, edge: &Edge, fits: impl Fn(&Value) -> bool) -> Value {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let address = format!("http://{}/v1/ops/pipeline", edge.address);
    let _watching = client.get(format!("{address}/stream")).send().await.expect("a stream");
    eventually(what, async || {
        let answer = client.get(&address).send().await.ok()?;
        let pipeline: Value = answer.json().await.ok()?;
        fits(&pipeline["now"]).then_some(pipeline)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_told_with_its_age_and_that_it_is_worked_off() {
    let system = System::without_workers().await;
    let edge = Edge::open(&system).await;
    let roles = [Role::Validation, Role::Payment, Role::Persistence, Role::Projection];
    let running = roles.map(|role| system.run(role));
    let names = ["validation", "payment", "persistence", "projection"];
    let alive = |many: u64| {
        move |sample: &Value| names.iter().all(|name| worker(sample, name)["replicas"] == many)
    };
    seen("all workers are alive", &edge, alive(1)).await;
    for role in running {
        role.stop().await;
    }
    seen("no worker is alive", &edge, alive(0)).await;
    for _ in 0..20 {
        system.publish("order.place", &card_order("nobody", "nothing", 1, "tok_ok")).await;
    }
    let waiting = |sample: &Value| {
        let validation = worker(sample, "validation");
        validation["pending"] == 20 && validation["oldestMs"].as_i64() > Some(0)
    };
    let pipeline = seen("all commands wait", &edge, waiting).await;
    let now = &pipeline["now"];
    assert_eq!(now["streams"][0]["lastSequence"], 20);
    for server in now["health"].as_array().expect("servers") {
        assert_eq!(server["up"], true, "{server}");
    }

    let running = roles.map(|role| system.run(role));
    let done = |sample: &Value| {
        ["validation", "projection"].iter().all(|name| {
            let worker = worker(sample, name);
            worker["pending"] == 0
                && worker["inFlight"] == 0
                && worker["replicas"] == 1
                && worker["processed"].as_u64() >= Some(20)
        })
    };
    let pipeline = seen("all commands are decided", &edge, done).await;
    assert_eq!(worker(&pipeline["now"], "validation")["oldestMs"], Value::Null);
    let history = pipeline["history"].as_array().expect("points");
    let backlog = |point: &Value| point["workers"]["validation"][1].as_f64();
    assert!(history.iter().any(|point| backlog(point) >= Some(20.0)), "{history:?}");

    system.publish("order.place", &card_order("nobody", "nothing", 1, "tok_ok")).await;
    let timed = |sample: &Value| worker(sample, "validation")["p99Ms"].as_f64() > Some(0.0);
    seen("it is told how long a command took", &edge, timed).await;
    for role in running {
        role.stop().await;
    }
    edge.close().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_replicas_are_counted_by_role() {
    const MANY: usize = 300;
    let system = System::start().await;
    let edge = Edge::open(&system).await;
    let mut announced = Vec::new();
    for _ in 0..MANY {
        let it = Announced::worker(
            &system.nats,
            &system.topology,
            "payment",
            Arc::new(Counters::new("payment")),
        )
        .await;
        announced.push(it.expect("it is announced"));
    }
    let counted = |many: usize| {
        move |sample: &Value| {
            worker(sample, "payment")["replicas"] == many
                && worker(sample, "projection")["replicas"] == 1
        }
    };
    seen("all replicas are counted", &edge, counted(MANY + 1)).await;
    for it in announced {
        it.stop().await;
    }
    seen("those that have gone are not", &edge, counted(1)).await;
    edge.close().await;
    system.stop().await;
}
