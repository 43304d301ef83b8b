//! Chaos: every role twice, in processes of its own, under load, while a schedule made from a seed
//! kills and freezes processes and servers and spoils the lines between them. When it is over every
//! promise must hold.

mod check;
mod found;
mod load;
mod plan;
mod world;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use check::Check;
use load::Client;
use plan::Plan;
use world::World;

/// Clients at a time.
const CLIENTS: u64 = 12;

/// Lets a schedule happen, and checks the promises.
#[expect(clippy::print_stderr, reason = "so that it can be repeated, whatever happens")]
async fn holds_through(seed: u64, lasts: Duration) {
    let plan = Plan::new(seed, lasts);
    eprintln!("{plan}");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join("chaos")
        .join(format!("{seed}-{}", std::process::id()));
    let world = World::start(&folder, plan.payment_timeout).await;
    std::fs::write(folder.join("schedule"), plan.to_string()).expect("a file");
    let (mut clients, known) = Client::all(&world, seed, CLIENTS).await;
    clients[1].open_shop().await;
    let end = Instant::now() + lasts;
    let load = join_all(clients.into_iter().map(|client| client.act_until(end)));
    tokio::join!(load, world.suffer(&plan));
    let known = std::mem::take(&mut *known.lock().expect("no panic"));
    let Check { problems, report, .. } = Check::all(&world, &known).await;
    assert!(
        problems.is_empty(),
        "{} problems:\n{}\n\n{report}\n{plan}\nDone:\n{}\nSee {}",
        problems.len(),
        problems.join("\n"),
        world.done(),
        folder.display()
    );
    eprintln!("{report}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_promise_holds_through_kills_freezes_and_cut_lines() {
    holds_through(1, Duration::from_secs(25)).await;
}

/// `MILLRACE_CHAOS_SEED=7 MILLRACE_CHAOS_SECONDS=600 cargo test -p millrace-tests chaos::every_promise_holds_for_long -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as it is asked to"]
async fn every_promise_holds_for_long_through_kills_freezes_and_cut_lines() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("MILLRACE_CHAOS_SEED").unwrap_or_else(rand::random);
    let seconds = number("MILLRACE_CHAOS_SECONDS").unwrap_or(300);
    holds_through(seed, Duration::from_secs(seconds)).await;
}
