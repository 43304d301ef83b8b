//! Times, and what is told of them.

use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest time that is told apart: ten minutes.
const LONGEST: u64 = 600_000_000;

/// A histogram of times, in microseconds to three digits.
#[derive(Debug, Clone)]
pub struct Times(Histogram<u64>);

/// What is told of a histogram.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Quantiles {
    /// How many times it has.
    pub count: u64,
    /// Half of them were not longer.
    pub p50_ms: f64,
    /// 95 % were not.
    pub p95_ms: f64,
    /// 99 % were not.
    pub p99_ms: f64,
    /// 99.9 % were not.
    #[serde(rename = "p999Ms")]
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Default for Times {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "the bounds are constants that fit")]
        Self(Histogram::new_with_bounds(1, LONGEST, 3).expect("bounds"))
    }
}

impl Times {
    /// Adds a time.
    pub fn add(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_micros()).unwrap_or(LONGEST).max(1));
    }

    /// Adds all times of another.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    /// What is told of them.
    pub fn quantiles(&self) -> Quantiles {
        let at = |quantile| milliseconds(self.0.value_at_quantile(quantile));
        Quantiles {
            count: self.0.len(),
            p50_ms: at(0.5),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: milliseconds(self.0.max()),
        }
    }
}

fn milliseconds(micros: u64) -> f64 {
    float(micros) / 1000.0
}

/// A count as a number to calculate with.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn float(count: u64) -> f64 {
    count as f64
}

/// How many of something there were in a second.
pub fn rate(count: u64, time: Duration) -> f64 {
    float(count) / time.as_secs_f64().max(1e-9)
}

/// The middle one; of two, the mean.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => 0.0,
        (count, middle) if count % 2 == 1 => values[middle],
        (_, middle) => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_told_in_milliseconds() {
        let mut times = Times::default();
        (1..=1000).for_each(|ms| times.add(Duration::from_millis(ms)));
        let told = times.quantiles();
        assert_eq!(told.count, 1000);
        for (value, wanted) in [(told.p50_ms, 500.0), (told.p99_ms, 990.0), (told.max_ms, 1000.0)] {
            assert!((value - wanted).abs() <= wanted / 500.0, "{value} for {wanted}");
        }
    }

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0]) - 2.5).abs() < 1e-9);
    }
}
