//! How long things took, counted in classes: small, cheap to add up over replicas, and good for
//! percentiles to within a tenth.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Four classes for each doubling, from a quarter of a millisecond to more than an hour.
pub const CLASSES: usize = 96;
const SMALLEST_MS: f64 = 0.25;
const FOR_EACH_DOUBLING: f64 = 4.0;

/// Numbers of things by the class of the time that they took.
pub type Counts = [u64; CLASSES];

/// Counts that many tasks add to.
#[derive(Debug)]
pub struct Times([AtomicU64; CLASSES]);

impl Default for Times {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Times {
    /// Something took so long.
    pub fn add(&self, time: Duration) {
        self.0[class(time)].fetch_add(1, Ordering::Relaxed);
    }

    /// The classes that have something in them, with their numbers.
    pub fn counted(&self) -> Vec<(usize, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        counts.enumerate().filter(|(_, count)| *count > 0).collect()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast of what is negative or too large ends at the first or last class"
)]
fn class(time: Duration) -> usize {
    let doublings = (time.as_secs_f64() * 1_000.0 / SMALLEST_MS).log2();
    ((doublings * FOR_EACH_DOUBLING) as usize).min(CLASSES - 1)
}

/// The milliseconds within which so many of a hundred things were done: the middle of a class.
/// Nothing, if nothing was done.
pub fn percentile(counts: &Counts, percent: u64) -> Option<f64> {
    let all: u64 = counts.iter().sum();
    let mut within = 0;
    let class = counts.iter().position(|count| {
        within += count;
        *count > 0 && within * 100 >= all * percent
    })?;
    #[expect(clippy::cast_precision_loss, reason = "there are few classes")]
    let doublings = (class as f64 + 0.5) / FOR_EACH_DOUBLING;
    Some(SMALLEST_MS * doublings.exp2())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(times: &Times) -> Counts {
        let mut counts = [0; CLASSES];
        times.counted().into_iter().for_each(|(class, count)| counts[class] = count);
        counts
    }

    #[test]
    fn percentiles_are_right_to_within_a_tenth() {
        for ms in [1_u64, 3, 40, 950, 12_000, 3_000_000] {
            let times = Times::default();
            (0..98).for_each(|_| times.add(Duration::from_millis(ms)));
            times.add(Duration::from_millis(ms * 100));
            times.add(Duration::from_millis(ms * 100));
            let of = |percent| percentile(&counts(&times), percent).unwrap();
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let ratio = of(50) / ms as f64;
            assert!((0.9..1.1).contains(&ratio), "{ms}: {ratio}");
            assert_eq!(of(50).to_bits(), of(98).to_bits());
            assert!(of(99) > of(98));
        }
        assert_eq!(percentile(&[0; CLASSES], 50), None);
    }

    #[test]
    fn what_took_no_time_or_for_ever_has_a_class_as_well() {
        assert_eq!(class(Duration::ZERO), 0);
        assert_eq!(class(Duration::MAX), CLASSES - 1);
    }
}
