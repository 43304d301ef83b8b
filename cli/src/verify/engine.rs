//! How a check is run: it goes through all there is, page by page, and what looks wrong is looked at
//! again until it is right or the settling time is over. So a running system, in which the log, the
//! journal, the views and the ledger are always a little apart, is not accused of anything.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::sync::Semaphore;

use super::report::{NAMED, Offender, Row};

/// Keys that are examined at a time.
pub const PAGE: u32 = 500;
/// Checks that read at a time: the system is to go on meanwhile.
pub const AT_A_TIME: u32 = 2;
/// Suspects that are remembered. Where there are more, all is gone through again after the settling
/// time.
const MOST: usize = 10_000;

/// One promise, checked against the data.
pub trait Check: Sync {
    /// What is examined: an order, a message.
    type Key: Clone + Send + Sync + Display;
    /// The check's name.
    const NAME: &'static str;
    /// What it makes sure of.
    const PROMISE: &'static str;

    /// Goes through all there is.
    fn scan(&self, found: &mut Found<Self::Key>) -> impl Future<Output = Result<()>> + Send;

    /// Those of `keys` with which something is wrong, and what.
    fn examine(
        &self,
        keys: &[Self::Key],
    ) -> impl Future<Output = Result<Vec<(Self::Key, String)>>> + Send;
}

/// What a scan has found so far.
#[derive(Debug)]
pub struct Found<K> {
    checked: u64,
    wrong: u64,
    suspects: Vec<(K, String)>,
}

impl<K> Default for Found<K> {
    fn default() -> Self {
        Self { checked: 0, wrong: 0, suspects: Vec::new() }
    }
}

impl<K> Found<K> {
    /// Notes that so many things were looked at, and what is wrong with some of them.
    pub fn note(&mut self, checked: usize, wrong: Vec<(K, String)>) {
        self.checked += checked as u64;
        self.wrong += wrong.len() as u64;
        let room = MOST.saturating_sub(self.suspects.len());
        self.suspects.extend(wrong.into_iter().take(room));
    }

    fn overflowed(&self) -> bool {
        self.wrong > self.suspects.len() as u64
    }
}

/// Runs a check. What is wrong after `settle` is an offender.
pub async fn run<C: Check>(check: &C, turns: &Semaphore, settle: Duration) -> Result<Row> {
    judge(check, turns, settle).await.with_context(|| format!("the check {} failed", C::NAME))
}

async fn judge<C: Check>(check: &C, turns: &Semaphore, settle: Duration) -> Result<Row> {
    let mut found = scan(check, turns).await?;
    if found.overflowed() {
        tokio::time::sleep(settle).await;
        found = scan(check, turns).await?;
    }
    let Found { checked, wrong, mut suspects } = found;
    let unnamed = wrong - suspects.len() as u64;
    let end = Instant::now() + settle;
    let pause = (settle / 10).clamp(Duration::from_millis(50), Duration::from_secs(1));
    while !suspects.is_empty() && Instant::now() < end {
        tokio::time::sleep(pause).await;
        let turn = turns.acquire().await?;
        let mut still = Vec::new();
        for page in suspects.chunks(PAGE as usize) {
            let keys: Vec<C::Key> = page.iter().map(|(key, _)| key.clone()).collect();
            still.extend(check.examine(&keys).await?);
        }
        suspects = still;
        drop(turn);
    }
    let failed = unnamed + suspects.len() as u64;
    let offender = |(key, problem): (C::Key, String)| Offender { id: key.to_string(), problem };
    let offenders = suspects.into_iter().take(NAMED).map(offender).collect();
    Ok(Row { check: C::NAME, promise: C::PROMISE, checked, failed, offenders })
}

async fn scan<C: Check>(check: &C, turns: &Semaphore) -> Result<Found<C::Key>> {
    let _turn = turns.acquire().await?;
    let mut found = Found::default();
    check.scan(&mut found).await?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Numbers, of which some are wrong for so many looks.
    struct Numbers {
        count: u32,
        wrong_until: u32,
        looks: AtomicU32,
    }

    impl Check for Numbers {
        type Key = u32;
        const NAME: &'static str = "numbers";
        const PROMISE: &'static str = "number is right";

        async fn scan(&self, found: &mut Found<u32>) -> Result<()> {
            let keys: Vec<u32> = (0..self.count).collect();
            found.note(keys.len(), self.examine(&keys).await?);
            Ok(())
        }

        async fn examine(&self, keys: &[u32]) -> Result<Vec<(u32, String)>> {
            let wrong = self.looks.fetch_add(1, Ordering::Relaxed) < self.wrong_until;
            Ok(keys.iter().filter(|_| wrong).map(|key| (*key, "wrong".to_owned())).collect())
        }
    }

    async fn verdict(count: u32, wrong_until: u32) -> Row {
        let numbers = Numbers { count, wrong_until, looks: AtomicU32::new(0) };
        run(&numbers, &Semaphore::new(1), Duration::from_millis(300)).await.unwrap()
    }

    #[tokio::test]
    async fn what_becomes_right_within_the_settling_time_is_no_offender() {
        let row = verdict(5, 3).await;
        assert_eq!((row.checked, row.failed, row.offenders.len()), (5, 0, 0));
    }

    #[tokio::test]
    async fn what_stays_wrong_is_counted_and_the_first_are_named() {
        let row = verdict(25, u32::MAX).await;
        assert_eq!((row.checked, row.failed, row.offenders.len()), (25, 25, NAMED));
    }

    #[tokio::test]
    async fn more_suspects_than_can_be_remembered_are_looked_for_again() {
        let many = u32::try_from(MOST).unwrap() + 7;
        let row = verdict(many, 1).await;
        assert_eq!((row.checked, row.failed), (u64::from(many), 0));
        let row = verdict(many, u32::MAX).await;
        assert_eq!(row.failed, u64::from(many));
    }
}
