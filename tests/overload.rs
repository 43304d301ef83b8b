//! What is too much is refused early and honestly, and what was refused has had no effect.

mod memory;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use millrace_api::{ApiConfig, Server};
use millrace_cli::servers::{ServerOptions, Servers, Which};
use millrace_shared::access::Principal;
use millrace_shared::topology::StreamOptions;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{System, card_order, eventually, servers_dir};
use crate::process::folder;

/// A refusal must not take longer.
const A_SECOND: Duration = Duration::from_secs(1);

/// What the stream of commands holds: its last sequence, its messages.
async fn commands(system: &System) -> (u64, u64) {
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let stream = jetstream.get_stream(system.topology.commands_stream()).await.expect("COMMANDS");
    let state = &stream.cached_info().state;
    (state.last_sequence, state.messages)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_refuses_commands_within_a_second_and_without_any_effect() {
    let system = System::without_workers().await;
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let small = StreamOptions { stream_max_bytes: Some(1 << 20), ..StreamOptions::default() };
    system.topology.create(&jetstream, &small).await.expect("the stream becomes small");
    // 60 kB each: 17 of them fill it.
    let lines: Vec<Value> = (0..190)
        .map(|n| json!({ "productId": format!("{n:0>64}"), "quantity": 1, "unitPrice": { "amount": 900_000_000_000_i64, "currency": "USD" } }))
        .collect();
    let order = json!({ "customerId": "ann", "lines": lines, "payment": { "method": "account" } });
    let answers = join_all((0..60).map(async |_| {
        let start = Instant::now();
        let answer = system.post("/v1/orders", &order).await;
        (answer, start.elapsed())
    }))
    .await;
    let (stored, refused): (Vec<_>, Vec<_>) =
        answers.iter().partition(|(answer, _)| answer.status == 202);
    assert!(!stored.is_empty() && !refused.is_empty(), "some of both");
    for (answer, took) in refused {
        assert_eq!((answer.status, answer.text("/type").as_str()), (503, "/problems/overloaded"));
        assert_eq!(answer.header("retry-after"), "1");
        assert!(*took < A_SECOND, "{took:?}");
    }
    let (last, messages) = commands(&system).await;
    assert_eq!((last, messages), (stored.len() as u64, stored.len() as u64));
    // With room again it goes on.
    system.topology.create(&jetstream, &StreamOptions::default()).await.expect("room");
    assert_eq!(system.post("/v1/orders", &order).await.status, 202);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nats_server_that_hangs_or_is_gone_is_told_within_a_second_and_is_forgiven() {
    let options = ServerOptions {
        data_dir: folder("overload"),
        servers_dir: servers_dir(),
        durable: true,
        namespaces: vec!["millrace".to_owned()],
    };
    let mut servers = Box::pin(Servers::start(&options)).await.expect("servers of its own");
    let config = millrace_cli::up::worker_config(servers.addresses(), "millrace");
    millrace_cli::topology(&config.nats.of(Principal::Admin), &StreamOptions::default())
        .await
        .expect("streams");
    let http = "127.0.0.1:0".parse().expect("an address");
    let edge = ApiConfig::new(http, config.nats.clone(), config.redis.clone());
    let edge = Server::bind(edge).await.expect("the edge binds");
    let url = format!("http://{}/v1/orders", edge.local_addr());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(edge.serve(stop.clone()));
    let client = reqwest::Client::new();
    let post = async || {
        let start = Instant::now();
        let order = card_order("ann", "box", 1, "tok_ok");
        let answer = client.post(&url).json(&order).send().await.expect("an answer");
        (answer.status().as_u16(), answer.headers().contains_key("retry-after"), start.elapsed())
    };
    assert_eq!(post().await.0, 202);

    let pid = servers
        .pid(Which::Nats)
        .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
        .expect("a pid");
    kill_process(pid, Signal::STOP).expect("it hangs");
    // Not all of its threads stop at once.
    eventually("all of it has stopped", async || {
        let threads = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).ok()?;
        let stopped = |thread: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
        };
        threads.flatten().all(stopped).then_some(())
    })
    .await;
    for (status, retry, took) in join_all((0..50).map(async |_| post().await)).await {
        assert_eq!((status, retry), (503, true));
        assert!(took < A_SECOND + Duration::from_millis(200), "{took:?}");
    }
    kill_process(pid, Signal::CONT).expect("it goes on");
    eventually("commands are taken again", async || (post().await.0 == 202).then_some(())).await;

    servers.kill(Which::Nats).await.expect("it is gone");
    for _ in 0..5 {
        let (status, retry, took) = post().await;
        assert_eq!((status, retry), (503, true));
        assert!(took < A_SECOND + Duration::from_millis(200), "{took:?}");
    }
    servers.restart(Which::Nats).await.expect("it is back");
    eventually("commands are taken again", async || (post().await.0 == 202).then_some(())).await;
    stop.cancel();
    serving.await.expect("no panic").expect("the edge ends well");
    servers.stop().await.expect("the servers end");
}
