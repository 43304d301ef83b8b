//! A circuit breaker: a server that fails all the time is left alone for a while. It counts requests and
//! not calls of a gateway, of which some are answered from what is remembered here.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Opens after so many failures in a row; after a pause it lets one request through, which closes it or
/// opens it again.
#[derive(Debug)]
pub struct Breaker {
    most: u32,
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Everything passes; so many have failed since the last that has not.
    Closed(u32),
    /// Nothing passes until then.
    Open(Instant),
    /// One request is on its way that tries; nothing else passes.
    Trying,
}

/// That a request may pass. One that is given up counts as failed.
#[derive(Debug)]
pub struct Passage<'a> {
    breaker: &'a Breaker,
    failed: bool,
}

impl Breaker {
    /// A closed one.
    pub fn new(most: u32, pause: Duration) -> Self {
        Self { most, pause, state: Mutex::new(State::Closed(0)) }
    }

    /// Lets a request pass, unless it is open.
    pub fn passage(&self) -> Option<Passage<'_>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Closed(_) => {}
            State::Open(until) if Instant::now() >= until => *state = State::Trying,
            State::Open(_) | State::Trying => return None,
        }
        Some(Passage { breaker: self, failed: true })
    }

    fn count(&self, failed: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || State::Open(Instant::now() + self.pause);
        *state = match (*state, failed) {
            (State::Closed(_), false) => State::Closed(0),
            (State::Open(_) | State::Trying, false) => {
                tracing::info!("the gateway answers again");
                State::Closed(0)
            }
            (State::Closed(failures), true) if failures + 1 < self.most => {
                State::Closed(failures + 1)
            }
            (State::Closed(_), true) => {
                tracing::warn!(pause = ?self.pause, "the gateway fails all the time: it is left alone");
                open()
            }
            // It was under way before the breaker opened.
            (State::Open(until), true) => State::Open(until),
            (State::Trying, true) => open(),
        };
    }
}

impl Passage<'_> {
    /// It has an answer, or has failed.
    pub fn ended(mut self, failed: bool) {
        self.failed = failed;
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        self.breaker.count(self.failed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const PAUSE: Duration = Duration::from_secs(5);

    /// Sends a request that fails or not; tells whether it passed.
    fn sends(breaker: &Breaker, failed: bool) -> bool {
        let passage = breaker.passage();
        passage.map(|passage| passage.ended(failed)).is_some()
    }

    fn open() -> Breaker {
        let breaker = Breaker::new(3, PAUSE);
        assert!((0..3).all(|_| sends(&breaker, true)));
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_and_closes_after_one_success() {
        let breaker = open();
        assert!(!sends(&breaker, false));
        sleep(PAUSE).await;
        assert!(sends(&breaker, false));
        assert!(sends(&breaker, true) && sends(&breaker, true) && sends(&breaker, false));
    }

    #[tokio::test(start_paused = true)]
    async fn one_request_tries_and_nothing_passes_until_it_has_ended() {
        let breaker = open();
        sleep(PAUSE).await;
        let trying = breaker.passage().unwrap();
        sleep(PAUSE * 2).await;
        assert!(!sends(&breaker, false), "however long it takes");
        trying.ended(true);
        sleep(Duration::from_millis(4_999)).await;
        assert!(!sends(&breaker, false), "open again for a whole pause");
        sleep(Duration::from_millis(1)).await;
        drop(breaker.passage().unwrap());
        assert!(!sends(&breaker, false), "one that is given up has failed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_forgets_the_failures_before_it() {
        let breaker = Breaker::new(3, PAUSE);
        for _ in 0..4 {
            assert!(sends(&breaker, true) && sends(&breaker, true) && sends(&breaker, false));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_under_way_when_it_opened_does_not_keep_it_open() {
        let breaker = Breaker::new(3, PAUSE);
        let under_way = breaker.passage().unwrap();
        assert!((0..3).all(|_| sends(&breaker, true)));
        sleep(Duration::from_secs(4)).await;
        under_way.ended(true);
        sleep(Duration::from_secs(1)).await;
        assert!(sends(&breaker, false));
    }
}
