//! A simulation of the pipeline: the real validation, reservations, expiry, relay and payment, in
//! several replicas, on a log, a ledger and a gateway in memory. One seed decides who goes on next,
//! what is lost, late, cut off or delivered again, and who dies between any two steps; when all is
//! at rest the promises are checked. A seed always gives the same run.
//!
//! `MILLRACE_SIM_SEEDS=100000 cargo test -p millrace-workers simulation` tries more seeds;
//! `MILLRACE_SIM_SEED=7` tries one and prints what happens in it.

mod check;
mod fate;
mod gateway;
mod ledger;
mod load;
mod log;
mod processes;
mod tables;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use millrace_shared::topology::Topology;

use self::fate::{Fate, Flaw};
use self::processes::World;

/// Seeds that are tried if nothing else is said.
const SEEDS: u64 = 2_000;
/// Within so many seeds a flaw must be noticed.
const NOTICED: u64 = 200;

/// What a seed came to.
struct Outcome {
    problems: Vec<String>,
    trace: Vec<String>,
}

fn run(seed: u64, flaw: Option<Flaw>, traced: bool) -> Outcome {
    // Payment limits its waiting by a timer, which never fires here.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _context = runtime.enter();
    let fate = Fate::new(seed, flaw, traced);
    let mut world = World::new(fate.clone(), Topology::new("sim").unwrap());
    let problems = if world.run() {
        check::problems(&world)
    } else {
        vec![format!("it does not come to rest: {}", world.unrest())]
    };
    Outcome { problems, trace: fate.trace() }
}

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// The first seed that breaks a promise, of those up to `seeds`.
fn first_failure(seeds: u64, flaw: Option<Flaw>) -> Option<u64> {
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.min(failed.load(Ordering::Relaxed)) {
                return;
            }
            let broken = std::panic::catch_unwind(|| run(seed, flaw, false).problems);
            if broken.map_or(true, |problems| !problems.is_empty()) {
                failed.fetch_min(seed, Ordering::Relaxed);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    Some(failed.into_inner()).filter(|seed| *seed < u64::MAX)
}

#[test]
fn no_seed_breaks_a_promise() {
    let seed = match asked("MILLRACE_SIM_SEED") {
        Some(seed) => Some(seed),
        None => first_failure(asked("MILLRACE_SIM_SEEDS").unwrap_or(SEEDS), None),
    };
    let Some(seed) = seed else { return };
    let Outcome { problems, trace } = run(seed, None, true);
    println!("{}", trace.join("\n"));
    assert!(problems.is_empty(), "seed {seed}: {}", problems.join("\n"));
}

#[test]
fn a_seed_always_gives_the_same_run() {
    for seed in 0..20 {
        let (first, second) = (run(seed, None, true).trace, run(seed, None, true).trace);
        assert!(first.len() > 100, "{}", first.len());
        assert_eq!(first, second);
    }
}

#[test]
fn a_server_that_breaks_its_word_is_noticed() {
    for flaw in [Flaw::AppendsAnywhere, Flaw::ChargesAgain, Flaw::SharesLocks] {
        let seed = first_failure(NOTICED, Some(flaw));
        assert!(seed.is_some(), "{flaw:?} is not noticed");
    }
}
