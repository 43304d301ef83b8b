//! A gateway whose calls are measured, by call and outcome, and told in traces.

use millrace_shared::metrics::{Timed, label, metrics};
use millrace_shared::money::Money;
use millrace_shared::trace::step;

use super::{Charge, ChargeError, Gateway, GatewayError, Refund};

/// Another gateway, measured.
#[derive(Debug)]
pub struct Measured<G>(pub G);

/// A call that is given up before it has an answer counts as `unknown`.
fn timed(call: &'static str) -> Timed {
    Timed::new(&metrics().gateway, vec![label("call", call), label("outcome", "unknown")])
}

fn of_charge(result: &Result<Charge, ChargeError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(ChargeError::Declined(_)) => "declined",
        Err(ChargeError::Voided) => "voided",
        Err(ChargeError::Unknown(_)) => "unknown",
        Err(ChargeError::Unavailable(_)) => "unavailable",
        Err(ChargeError::Refused(_)) => "refused",
    }
}

fn of_other<T>(result: &Result<T, GatewayError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(GatewayError::Refused(_)) => "refused",
        Err(_) => "unavailable",
    }
}

impl<G: Gateway> Gateway for Measured<G> {
    async fn charge(&self, key: &str, amount: Money, token: &str) -> Result<Charge, ChargeError> {
        let timed = timed("charge");
        let result = step("gateway charge", self.0.charge(key, amount, token)).await;
        timed.outcome(of_charge(&result));
        result
    }

    async fn find(&self, key: &str) -> Result<Option<Result<Charge, ChargeError>>, GatewayError> {
        let timed = timed("find");
        let result = step("gateway find", self.0.find(key)).await;
        timed.outcome(match &result {
            Ok(Some(charge)) => of_charge(charge),
            Ok(None) => "none",
            Err(_) => of_other(&result),
        });
        result
    }

    async fn void(&self, key: &str) -> Result<Option<Charge>, GatewayError> {
        let timed = timed("void");
        let result = step("gateway void", self.0.void(key)).await;
        timed.outcome(of_other(&result));
        result
    }

    async fn refund(
        &self,
        key: &str,
        charge_id: &str,
        amount: Money,
    ) -> Result<Refund, GatewayError> {
        let timed = timed("refund");
        let result = step("gateway refund", self.0.refund(key, charge_id, amount)).await;
        timed.outcome(of_other(&result));
        result
    }
}
