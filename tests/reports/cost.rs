//! What reports cost projection, measured: programs of different versions project the same log.

use std::time::{Duration, Instant};

use millrace_shared::views::Generations;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::{past, publish};
use crate::harness::System;
use crate::process::{Process, settings};
use crate::rebuild::redis;
use rustix::process::Signal;

const ORDERS: u32 = 30_000;
const ROUNDS: u64 = 3;

/// `MILLRACE_PROGRAMS=old/millrace,new/millrace cargo test -p millrace-tests -- --ignored --nocapture
/// reports::cost`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement; it needs programs to compare"]
async fn projection_of_the_same_log_by_several_programs() {
    let programs = std::env::var("MILLRACE_PROGRAMS").expect("MILLRACE_PROGRAMS names them");
    let system = System::without_workers().await;
    let histories = past::past(1, ORDERS, 10);
    let events: usize = histories.iter().map(Vec::len).sum();
    for chunk in histories.chunks(200) {
        publish(&system, chunk, &mut ChaCha8Rng::seed_from_u64(1)).await;
    }
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let stream = jetstream.get_stream(system.topology.events_stream()).await.expect("EVENTS");
    println!("{events} events of {ORDERS} orders");
    let mut generation = 0;
    for _ in 0..ROUNDS {
        for program in programs.split(',') {
            // As after the first start: a consumer that has seen nothing, and views without content.
            stream.delete_consumer("projection").await.ok();
            let before = system.views.generations().await.expect("Redis answers");
            generation += 1;
            let fresh = system.views.replace(before, Generations::only(generation)).await;
            assert!(fresh.expect("Redis answers"));
            system.views.sweep(generation).await.expect("it is swept");
            let empty = memory(&system).await;
            let arguments = ["worker", "projection"];
            let worker = Process::of(program, &arguments, &settings(&system.config));
            let took = projected(&stream).await;
            let bytes = (memory(&system).await - empty) / u64::from(ORDERS);
            println!(
                "{program}: {:.0} events/s, {bytes} bytes of Redis for an order",
                f64::from(u32::try_from(events).expect("a count")) / took.as_secs_f64()
            );
            worker.end(Signal::TERM).await;
        }
    }
    system.stop().await;
}

/// How long it takes from the first event that is taken to the last that is done.
async fn projected(stream: &async_nats::jetstream::stream::Stream) -> Duration {
    let mut begun = None;
    loop {
        if let Ok(info) = stream.consumer_info("projection").await {
            if info.delivered.stream_sequence > 0 && begun.is_none() {
                begun = Some(Instant::now());
            }
            if let Some(begun) = begun
                && info.num_pending == 0
                && info.num_ack_pending == 0
            {
                return begun.elapsed();
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The bytes that Redis has in use.
async fn memory(system: &System) -> u64 {
    let info = redis(system, &["INFO", "memory"]).await;
    let line = info.lines().find_map(|line| line.strip_prefix("used_memory_dataset:"));
    line.and_then(|bytes| bytes.trim().parse().ok()).expect("a number of bytes")
}
