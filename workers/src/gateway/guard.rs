//! What stands before every gateway: so many calls at a time, and a limit of time for each. What is
//! refused here was not begun: it stays in the stream and comes again.

use std::future::Future;
use std::time::Duration;

use millrace_shared::money::Money;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Charge, ChargeError, Gateway, GatewayError, Refund};

/// How long a call waits for its turn.
const TURN: Duration = Duration::from_secs(2);

/// How much a gateway is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Calls at a time.
    pub calls: usize,
    /// How long one may take.
    pub time: Duration,
}

/// A gateway with its guard.
#[derive(Debug)]
pub struct Guarded<G> {
    gateway: G,
    limits: Limits,
    turns: Semaphore,
}

impl<G: Gateway> Guarded<G> {
    /// Guards a gateway.
    pub fn new(gateway: G, limits: Limits) -> Self {
        Self { gateway, limits, turns: Semaphore::new(limits.calls) }
    }

    /// Makes a call when it is its turn. The first error is that it was not made; the second, that it
    /// took too long.
    async fn call<T>(
        &self,
        call: impl Future<Output = T> + Send,
    ) -> Result<Result<T, String>, String> {
        let turn = timeout(TURN, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(format!("{} calls of it are under way", self.limits.calls));
        };
        let answer = timeout(self.limits.time, call).await;
        Ok(answer.map_err(|_| format!("no answer within {:?}", self.limits.time)))
    }

    /// A call that may be repeated.
    async fn ask<T: Send>(
        &self,
        call: impl Future<Output = Result<T, GatewayError>> + Send,
    ) -> Result<T, GatewayError> {
        match self.call(call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) | Err(why) => Err(GatewayError::Unavailable(why)),
        }
    }
}

impl<G: Gateway> Gateway for Guarded<G> {
    async fn charge(&self, key: &str, amount: Money, token: &str) -> Result<Charge, ChargeError> {
        match self.call(self.gateway.charge(key, amount, token)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(why)) => Err(ChargeError::Unknown(why)),
            Err(why) => Err(ChargeError::Unavailable(why)),
        }
    }

    async fn find(&self, key: &str) -> Result<Option<Result<Charge, ChargeError>>, GatewayError> {
        self.ask(self.gateway.find(key)).await
    }

    async fn void(&self, key: &str) -> Result<Option<Charge>, GatewayError> {
        self.ask(self.gateway.void(key)).await
    }

    async fn refund(
        &self,
        key: &str,
        charge_id: &str,
        amount: Money,
    ) -> Result<Refund, GatewayError> {
        self.ask(self.gateway.refund(key, charge_id, amount)).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use millrace_shared::money::Currency;
    use tokio::time::Instant;

    use super::*;

    const LIMITS: Limits = Limits { calls: 2, time: Duration::from_secs(8) };

    /// Takes a second for a charge, or for ever; counts who asks at once.
    #[derive(Default)]
    struct Slow {
        hangs: AtomicBool,
        at_once: AtomicUsize,
        most_at_once: AtomicUsize,
    }

    impl Gateway for Arc<Slow> {
        async fn charge(&self, key: &str, _: Money, _: &str) -> Result<Charge, ChargeError> {
            let now = self.at_once.fetch_add(1, Ordering::Relaxed) + 1;
            self.most_at_once.fetch_max(now, Ordering::Relaxed);
            let hangs = self.hangs.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(if hangs { 1_000 } else { 1 })).await;
            self.at_once.fetch_sub(1, Ordering::Relaxed);
            Ok(Charge { charge_id: key.to_owned() })
        }

        async fn find(&self, _: &str) -> Result<Option<Result<Charge, ChargeError>>, GatewayError> {
            Ok(Some(Err(ChargeError::Declined("no".to_owned()))))
        }

        async fn void(&self, _: &str) -> Result<Option<Charge>, GatewayError> {
            Ok(None)
        }

        async fn refund(&self, _: &str, _: &str, _: Money) -> Result<Refund, GatewayError> {
            Err(GatewayError::Refused("no".to_owned()))
        }
    }

    fn guarded() -> (Arc<Slow>, Guarded<Arc<Slow>>) {
        let slow = Arc::new(Slow::default());
        (Arc::clone(&slow), Guarded::new(slow, LIMITS))
    }

    async fn charge(guarded: &Guarded<Arc<Slow>>) -> Result<Charge, ChargeError> {
        guarded.charge("key", Money::new(1, Currency::USD), "token").await
    }

    #[tokio::test(start_paused = true)]
    async fn a_charge_without_an_answer_is_unknown_and_what_was_not_sent_is_not() {
        let (slow, guarded) = guarded();
        slow.hangs.store(true, Ordering::Relaxed);
        let began = Instant::now();
        let (one, other, third) =
            tokio::join!(charge(&guarded), charge(&guarded), charge(&guarded));
        assert_eq!(began.elapsed(), LIMITS.time);
        assert!(matches!(
            (one, other),
            (Err(ChargeError::Unknown(_)), Err(ChargeError::Unknown(_)))
        ));
        assert!(matches!(third, Err(ChargeError::Unavailable(_))), "it never had its turn");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_calls_are_under_way_than_are_allowed() {
        let (slow, guarded) = guarded();
        let charges = (0..4).map(|_| charge(&guarded));
        let charges = futures_util::future::join_all(charges).await;
        assert!(charges.iter().all(Result::is_ok), "{charges:?}");
        assert_eq!(slow.most_at_once.load(Ordering::Relaxed), LIMITS.calls);
    }
}
