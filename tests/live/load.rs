//! What live streams cost: memory for each, and the time from a write of projection to the client.
//!
//! `cargo test --release -p millrace-tests -- --ignored --nocapture live::load`

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream;
use millrace_workers::Role;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::event;
use crate::harness::{System, eventually};
use crate::process::{Process, settings};

/// Open streams.
const STREAMS: usize = 5_000;
/// Orders that are followed by them.
const ORDERS: usize = 4_000;
/// The streams that follow one and the same order; each of the others has an order of its own.
const CROWD: usize = STREAMS - ORDERS + 1;
/// Changes that are measured, one every few milliseconds.
const CHANGES: usize = 2_000;

/// Follows an order, and tells when which of its versions has come.
async fn follow(
    address: String,
    order: usize,
    id: String,
    told: mpsc::Sender<(usize, u64, Instant)>,
) {
    let mut stream = TcpStream::connect(&address).await.expect("a connection");
    let request = format!("GET /v1/orders/{id}/stream HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut lines = BufReader::with_capacity(1024, stream).lines();
    let status = lines.next_line().await;
    if !status.as_ref().is_ok_and(|line| line.as_deref() == Some("HTTP/1.1 200 OK")) {
        // Seen as a message that nobody expects: a stream that is missing must not be waited for.
        println!("a stream was refused: {status:?}");
        told.send((order, 0, Instant::now())).await.ok();
        return;
    }
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(version) = line.strip_prefix("id: ") {
            let version = version.trim().parse().expect("a version");
            if told.send((order, version, Instant::now())).await.is_err() {
                return;
            }
        }
    }
}

/// The memory of a process, in KiB.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

fn show(what: &str, mut delays: Vec<Duration>) {
    delays.sort_unstable();
    let at = |share: usize| delays[(delays.len() - 1) * share / 100];
    let (half, most, all) = (at(50), at(99), at(100));
    println!("{what}: {} messages, p50 {half:.2?}, p99 {most:.2?}, max {all:.2?}", delays.len());
}

#[ignore = "a measurement"]
#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_streams() {
    let system = System::without_workers().await;
    let projection = system.run(Role::Projection);
    eventually("the first views are there", async || {
        (system.get("/v1/products").await.status == 200).then_some(())
    })
    .await;
    let mut edge = Process::start(&["api", "--http", "127.0.0.1:0"], &settings(&system.config));
    let address = edge.http().await.trim_start_matches("http://").to_owned();
    let ids: Vec<String> = (0..ORDERS).map(|_| Uuid::now_v7().to_string()).collect();
    let write = async |order: usize, version: u64| {
        // A document as large as that of a usual order.
        let event = event(&ids[order], "ann", version, 900);
        system.views.apply([&event].into_iter()).await.expect("Redis answers");
    };
    stream::iter(0..ORDERS).for_each_concurrent(64, |order| write(order, 1)).await;

    let before = memory(edge.pid());
    let (told, mut messages) = mpsc::channel(10_000);
    for number in 0..STREAMS {
        let order = number.saturating_sub(CROWD - 1);
        tokio::spawn(follow(address.clone(), order, ids[order].clone(), told.clone()));
    }
    for _ in 0..STREAMS {
        let (_, version, _) = messages.recv().await.expect("a first message");
        assert_eq!(version, 1, "a stream was refused");
    }
    let open = memory(edge.pid());
    let each = (open - before) * 1024 / STREAMS as u64;
    println!("{STREAMS} streams: {before} KiB before, {open} KiB with them, {each} bytes each");

    let (mut delays, mut writes, mut versions) = (Vec::new(), Vec::new(), vec![1; ORDERS]);
    for change in 0..CHANGES {
        // Any but the crowd's.
        let order = 1 + change * 7 % (ORDERS - 1);
        versions[order] += 1;
        let start = Instant::now();
        write(order, versions[order]).await;
        writes.push(start.elapsed());
        let (told, version, at) = messages.recv().await.expect("a message");
        assert_eq!((told, version), (order, versions[order]));
        delays.push(at - start);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    show("one order, one client; from the begin of the write", delays);
    show("of which the write itself, with its change message", writes);

    let mut delays = Vec::new();
    for version in 2..=21 {
        let start = Instant::now();
        write(0, version).await;
        for _ in 0..CROWD {
            let (told, now, at) = messages.recv().await.expect("a message");
            assert_eq!((told, now), (0, version));
            delays.push(at - start);
        }
    }
    show(&format!("one order, {CROWD} clients"), delays);
    println!("{} KiB in the end", memory(edge.pid()));
    edge.end(rustix::process::Signal::TERM).await;
    projection.stop().await;
    system.stop().await;
}
