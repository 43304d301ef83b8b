//! The schedule of what is done to the system: made from a seed, so that it can be repeated.

use std::fmt;
use std::time::Duration;

use millrace_cli::servers::Which;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::world::MEMBERS;

/// All that is done.
pub struct Plan {
    pub seed: u64,
    pub lasts: Duration,
    /// How long an order may wait for its payment, in seconds.
    pub payment_timeout: u32,
    /// What is done at the same time; within a lane one after another.
    pub lanes: [Vec<Step>; 4],
}

/// One disturbance.
#[derive(Clone, Copy)]
pub struct Step {
    /// When, from the start of the chaos.
    pub at: Duration,
    pub what: What,
    /// How long until it is made good again.
    pub lasts: Duration,
}

#[derive(Clone, Copy)]
pub enum What {
    /// `kill -9` of a server, which starts again on its data.
    KillServer(Which),
    /// SIGSTOP of a server and all its processes, then SIGCONT.
    FreezeServer(Which),
    /// `kill -9` of a role's process; another is started.
    Kill(usize),
    /// SIGSTOP of a role's process, then SIGCONT.
    Freeze(usize),
    /// Something on the lines to a server.
    Line(Wrong, Which, Whose),
}

/// What is wrong with a line.
#[derive(Clone, Copy)]
pub enum Wrong {
    /// All connections are closed, and new ones for a while.
    Cut,
    /// Bytes arrive so many milliseconds later.
    Slow(u64),
    /// Bytes do not arrive until it is over.
    Stopped,
    /// The connections never carry a byte again, and the client is not told.
    HalfOpen,
}

/// Whose lines.
#[derive(Clone, Copy)]
pub enum Whose {
    All,
    Member(usize),
}

const SERVERS: [Which; 3] = [Which::Nats, Which::Postgres, Which::Redis];

impl Plan {
    /// The schedule of a seed.
    pub fn new(seed: u64, lasts: Duration) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rng = &mut rng;
        let payment_timeout = *[6, 20, 900].choose(rng).expect("one of them");
        let halves = [0, MEMBERS.len() / 2, MEMBERS.len()];
        let lanes = [
            lane(rng, lasts, 2_500..6_000, server),
            // One lane for the first of each role and one for the second: at times both are down.
            lane(rng, lasts, 700..3_500, |rng| process(rng, halves[0]..halves[1])),
            lane(rng, lasts, 700..3_500, |rng| process(rng, halves[1]..halves[2])),
            lane(rng, lasts, 500..3_000, line),
        ];
        Self { seed, lasts, payment_timeout, lanes }
    }
}

fn lane(
    rng: &mut ChaCha8Rng,
    until: Duration,
    pause: std::ops::Range<u64>,
    mut next: impl FnMut(&mut ChaCha8Rng) -> (What, u64),
) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += Duration::from_millis(rng.random_range(pause.clone()));
        if at >= until {
            return steps;
        }
        let (what, lasts) = next(rng);
        let lasts = Duration::from_millis(lasts);
        steps.push(Step { at, what, lasts });
        at += lasts;
    }
}

/// Mostly short, at times long.
fn time(rng: &mut ChaCha8Rng, most: u64, rarely: u64) -> u64 {
    if rng.random_ratio(1, 8) { rng.random_range(most..rarely) } else { rng.random_range(0..most) }
}

fn server(rng: &mut ChaCha8Rng) -> (What, u64) {
    let which = *SERVERS.choose(rng).expect("a server");
    if rng.random_bool(0.6) {
        (What::KillServer(which), time(rng, 2_000, 8_000))
    } else {
        (What::FreezeServer(which), time(rng, 4_000, 12_000))
    }
}

fn process(rng: &mut ChaCha8Rng, among: std::ops::Range<usize>) -> (What, u64) {
    let member = rng.random_range(among);
    if rng.random_bool(0.65) {
        (What::Kill(member), time(rng, 1_500, 8_000))
    } else {
        // At times for longer than the server waits for an ack.
        (What::Freeze(member), time(rng, 5_000, 18_000))
    }
}

fn line(rng: &mut ChaCha8Rng) -> (What, u64) {
    let which = *SERVERS.choose(rng).expect("a server");
    let whose = if rng.random_bool(0.3) {
        Whose::All
    } else {
        Whose::Member(rng.random_range(0..MEMBERS.len()))
    };
    let (wrong, lasts) = match rng.random_range(0..10) {
        0..4 => (Wrong::Cut, time(rng, 1_500, 6_000)),
        4..6 => (Wrong::Slow(rng.random_range(10..400)), time(rng, 3_000, 6_000)),
        6..8 => (Wrong::Stopped, time(rng, 4_000, 12_000)),
        _ => (Wrong::HalfOpen, 0),
    };
    (What::Line(wrong, which, whose), lasts)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "MILLRACE_CHAOS_SEED={} MILLRACE_CHAOS_SECONDS={} (orders have {} s to be paid)",
            self.seed,
            self.lasts.as_secs(),
            self.payment_timeout
        )?;
        let mut steps: Vec<&Step> = self.lanes.iter().flatten().collect();
        steps.sort_by_key(|step| step.at);
        for step in steps {
            writeln!(f, "{step}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        let Self { what, .. } = self;
        write!(f, "{at:8.3} s  {what}, for {lasts:.3} s")
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillServer(which) => write!(f, "kill -9 {which:?}"),
            Self::FreezeServer(which) => write!(f, "SIGSTOP {which:?}"),
            Self::Kill(member) => write!(f, "kill -9 {}", MEMBERS[*member].0),
            Self::Freeze(member) => write!(f, "SIGSTOP {}", MEMBERS[*member].0),
            Self::Line(wrong, which, whose) => {
                let whose = match whose {
                    Whose::All => "everybody",
                    Whose::Member(member) => MEMBERS[*member].0,
                };
                match wrong {
                    Wrong::Cut => write!(f, "cut the line of {whose} to {which:?}"),
                    Wrong::Slow(delay) => {
                        write!(f, "slow the line of {whose} to {which:?} by {delay} ms")
                    }
                    Wrong::Stopped => write!(f, "stop the line of {whose} to {which:?}"),
                    Wrong::HalfOpen => {
                        write!(f, "leave the line of {whose} to {which:?} half-open")
                    }
                }
            }
        }
    }
}

#[test]
fn a_seed_gives_the_same_schedule_again() {
    let lasts = Duration::from_mins(1);
    let text = |seed| Plan::new(seed, lasts).to_string();
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
}
