//! What the chaos has found, each as a test of its own.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use millrace_cli::servers::{ServerOptions, Servers, Which};
use millrace_shared::access::Principal;
use millrace_shared::message::Subject;
use millrace_shared::topology::StreamOptions;
use millrace_workers::Role;
use rustix::process::Signal;
use serde_json::json;

use crate::harness::{System, card_order, eventually, servers_dir, usd};
use crate::process::{Process, folder, settings};
use crate::proxy::Line;

/// Validation dies between the commit of a cancellation and its append; meanwhile the order is
/// paid. The redelivered cancellation must not be appended as it was decided, on the unpaid order.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_was_overtaken_before_its_append_is_made_again() {
    let system = System::without_workers().await;
    let [validation, payment, persistence, projection] = Role::ALL.map(|role| system.run(role));
    system.register("ann", None).await;
    system.define("box", 1_000, 50).await;
    let placed = system.post("/v1/orders", &card_order("ann", "box", 1, "tok_slow")).await;
    let id = placed.text("/orderId");
    system.order_in(&id, "validated").await;
    validation.stop().await;
    let mut fatal = settings(&system.config);
    fatal.push(("MILLRACE_CRASH_POINT", "validation.committed".to_owned()));
    let dies = Process::start(&["worker", "validation"], &fatal);
    let asked = system.post(&format!("/v1/orders/{id}/cancel"), &json!({})).await;
    assert_eq!(asked.status, 202, "{asked:?}");
    let ended = dies.ended().await;
    assert!(ended.errors.contains("validation.committed"), "{ended:?}");
    system.order_in(&id, "paid").await;

    let successor = Process::start(&["worker", "validation"], &settings(&system.config));
    system.order_in(&id, "refunded").await;
    assert_eq!(system.steps(&id).await, ["validated", "paid", "cancelled", "refunded"]);
    system.settle().await;
    system.stock_is("box", [50, 0, 0]).await;
    successor.end(Signal::TERM).await;
    for worker in [payment, persistence, projection] {
        worker.stop().await;
    }
    system.stop().await;
}

/// Nothing can be locked that is not there yet: two replicas that create the same product at once
/// must not both believe that theirs is the first event of its history.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_created_twice_at_once_has_one_history() {
    let system = System::with_workers(3).await;
    let define = async |number: u32, price: i64| {
        let product = json!({
            "productId": format!("p{number}"), "name": "Thing", "brand": "Acme",
            "category": "Things", "price": usd(price), "initialStock": 5,
        });
        system.publish("product.define", &product).await;
        let customer = json!({ "customerId": format!("c{number}"), "name": price.to_string() });
        system.publish("customer.register", &customer).await;
    };
    for number in 0..40 {
        join_all((100..106).map(|price| define(number, price))).await;
    }
    system.settle().await;
    for number in 0..40 {
        let product = format!("p{number}");
        for (subject, id) in
            [(Subject::Product, &product), (Subject::Customer, &format!("c{number}"))]
        {
            let history = system.history(subject, id).await;
            let versions: Vec<u64> = history.iter().map(|stored| stored.event.version).collect();
            let dense: Vec<u64> = (1..=versions.len() as u64).collect();
            assert_eq!(versions, dense, "{subject} {id}");
        }
        system.stock_is(&product, [5, 0, 0]).await;
    }
    system.stop().await;
}

/// Where NATS no longer knows of a connection and cannot say so, the edge must find out by itself,
/// and soon: until then it refuses every command.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_to_nats_is_found_within_seconds() {
    let system = System::without_workers().await;
    let url = &system.config.nats.nats_url[0];
    let server = url.strip_prefix("nats://").and_then(|address| address.parse().ok());
    let line = Line::to(server.expect("an address")).await;
    let mut config = system.config.clone();
    config.nats.nats_url = vec![format!("nats://{}", line.address())];
    let mut edge = Process::start(&["api", "--http", "127.0.0.1:0"], &settings(&config));
    let url = format!("{}/v1/orders", edge.http().await);
    let order = card_order("ann", "box", 1, "tok_ok");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let taken = async || {
        let answer = client.post(&url).json(&order).send().await.expect("an answer");
        (answer.status() == 202).then_some(())
    };
    eventually("commands are taken", taken).await;
    line.silence();
    let start = Instant::now();
    assert_eq!(taken().await, None, "the line is dead");
    eventually("commands are taken again", taken).await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    edge.end(Signal::TERM).await;
    system.stop().await;
}

/// With `appendfsync everysec` a Redis that is killed may come back without what it acknowledged
/// last, which projection has acked: nobody would write it again.
#[tokio::test(flavor = "multi_thread")]
async fn what_redis_has_lost_in_a_crash_is_written_again() {
    let data_dir = folder("forgetful");
    let log = data_dir.join("valkey9/appendonlydir/appendonly.aof.1.incr.aof");
    let options = ServerOptions {
        data_dir,
        servers_dir: servers_dir(),
        durable: true,
        namespaces: vec!["forgetful".to_owned()],
    };
    let mut servers = Box::pin(Servers::start(&options)).await.expect("servers of its own");
    let config = millrace_cli::up::worker_config(servers.addresses(), "forgetful");
    let made = millrace_cli::up::prepare_database(servers.addresses(), "forgetful").await;
    made.expect("a database");
    millrace_cli::topology(&config.nats.of(Principal::Admin), &StreamOptions::default())
        .await
        .expect("streams");
    let settings = settings(&config);
    let mut edge = Process::start(&["api", "--http", "127.0.0.1:0"], &settings);
    let all = ["worker", "validation", "payment", "persistence", "projection"];
    let workers = Process::start(&all, &settings);
    let edge_url = edge.http().await;
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let register = async |id: &str| {
        let customer = json!({ "customerId": id, "name": "Somebody" });
        let url = format!("{edge_url}/v1/customers");
        let request = client.post(url).header("Prefer", "wait=20").json(&customer);
        request.send().await.expect("an answer").status().as_u16()
    };
    let read = async |id: &str| {
        let url = format!("{edge_url}/v1/customers/{id}");
        client.get(url).send().await.expect("an answer").status().as_u16()
    };
    eventually("the first is there", async || (register("ann").await == 200).then_some(())).await;
    let kept = || std::fs::metadata(&log).expect("the log of Redis").len();
    let mut before = kept();
    // It is noted how far the views are.
    eventually("nothing more is written", async || {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let now = kept();
        (std::mem::replace(&mut before, now) == now).then_some(())
    })
    .await;
    assert_eq!(register("bob").await, 200);
    assert_eq!(read("bob").await, 200);

    servers.kill(Which::Redis).await.expect("it is killed");
    let file = std::fs::File::options().write(true).open(&log).expect("the log of Redis");
    file.set_len(before).expect("it is cut off");
    servers.restart(Which::Redis).await.expect("it is back");
    for (id, how) in [("ann", "is there still"), ("bob", "is there again")] {
        eventually(&format!("{id} {how}"), async || (read(id).await == 200).then_some(())).await;
    }
    for process in [workers, edge] {
        process.end(Signal::TERM).await;
    }
    servers.stop().await.expect("the servers end");
}
