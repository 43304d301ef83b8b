//! Feeding what reads bytes from outside with damaged ones, for a bounded time: it may refuse them,
//! and must not panic, hang or read them as something else than it would write. For tests only.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// How long each reader is fed if `MILLRACE_FUZZ_SECONDS` does not say.
const SECONDS: f64 = 0.5;
/// The most bytes of an input.
const MOST: usize = 4_096;
/// The longest that one input may take, on a machine with much else to do.
const SLOW: Duration = Duration::from_secs(5);
/// What decoders like to stumble over.
const SPICE: [&[u8]; 22] = [
    b"\0",
    b"\xff",
    b"\xc3\x28",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]]",
    b",",
    b":",
    b"null",
    b"-1",
    b"0.5",
    b"1e999",
    b"9223372036854775808",
    b"18446744073709551616",
    b"\r\n",
    b"%00",
    b"%",
    "\u{202e}é\u{10ffff}".as_bytes(),
];

/// Feeds `read` with damaged copies of the inputs in `corpus`. A failure names the seed and the
/// input; `MILLRACE_FUZZ_SEED` begins with the same again.
///
/// # Panics
/// Where `read` does, or takes longer than five seconds.
#[expect(clippy::print_stderr, reason = "what is needed to see a failure again")]
pub fn fuzz(what: &str, corpus: &[Vec<u8>], read: impl Fn(&[u8])) {
    let asked = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<f64>().ok());
    let lasts = Duration::from_secs_f64(asked("MILLRACE_FUZZ_SECONDS").unwrap_or(SECONDS));
    let named = std::env::var("MILLRACE_FUZZ_SEED").ok().and_then(|text| text.parse().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed: u64 = named.unwrap_or_else(now);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let end = Instant::now() + lasts;
    for round in 0.. {
        // Whole ones first.
        let input = match corpus.get(round) {
            Some(whole) => whole.clone(),
            None if Instant::now() > end => break,
            None => damaged(corpus, &mut random),
        };
        let begin = Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| read(&input)));
        let took = begin.elapsed();
        if result.is_err() || took > SLOW {
            let shown = input.escape_ascii();
            eprintln!("{what}: MILLRACE_FUZZ_SEED={seed}, round {round}, {took:?}: \"{shown}\"");
        }
        if let Err(panic) = result {
            resume_unwind(panic);
        }
        assert!(took < SLOW, "{what} took {took:?}");
    }
}

fn damaged(corpus: &[Vec<u8>], random: &mut ChaCha8Rng) -> Vec<u8> {
    let any = |random: &mut ChaCha8Rng| {
        let whole = corpus.get(random.random_range(0..corpus.len().max(1)));
        whole.cloned().unwrap_or_default()
    };
    let mut input = any(random);
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..=input.len());
        let to = random.random_range(at..=input.len().min(at + 64));
        match random.random_range(0..6) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 => input.truncate(at),
            2 => drop(input.drain(at..to)),
            3 => {
                let again = input[at..to].repeat(random.random_range(1..20));
                input.splice(at..at, again);
            }
            4 => {
                let other = any(random);
                let from = random.random_range(0..=other.len());
                input.splice(at..to, other[from..other.len().min(from + 64)].iter().copied());
            }
            _ => {
                let spice = SPICE[random.random_range(0..SPICE.len())];
                input.splice(at..to, spice.iter().copied());
            }
        }
    }
    input.truncate(MOST);
    input
}
