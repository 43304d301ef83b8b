//! Stripe's `PaymentIntents` (<https://docs.stripe.com/payments/paymentintents/lifecycle>).
//!
//! An intent is begun without taking money, its id is remembered in `payment.intents`, and only then
//! it is confirmed. So there is but one intent of an order that can ever take money, and it takes it
//! once at the most, whoever confirms it how often: its card is given when it is begun. What has become
//! of it is asked by its id. Nothing rests on idempotency keys, which Stripe forgets after a day: they
//! only save intents that nobody needs.

mod amount;
mod api;
mod book;
mod decline;

use std::time::Duration;

use millrace_shared::crash;
use millrace_shared::money::Money;
use sqlx::PgPool;

pub use self::api::Api;
use self::api::{Failure, Intent, Problem};
use self::book::{Book, Outcome};
use super::{Charge, ChargeError, Gateway, GatewayError, Refund};

/// Stripe, with what is remembered of it.
#[derive(Debug)]
pub struct Stripe {
    api: Api,
    book: Book,
    /// For how long a replica that gives a payment back keeps others from it.
    refund_claim: Duration,
}

/// How an intent stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// The money is taken.
    Charged,
    /// The card was declined.
    Declined(String),
    /// The bank wants the card's owner to do something.
    NeedsOwner,
    /// It was called off.
    CalledOff,
    /// It has not been confirmed: no money is taken.
    Waiting,
    /// It is being carried out, or is in a state that it should not be in.
    UnderWay(String),
}

impl Standing {
    fn of(intent: &Intent) -> Self {
        match (intent.status.as_str(), &intent.last_payment_error) {
            ("succeeded", _) => Self::Charged,
            ("requires_payment_method", problem) => {
                let problem = problem.clone().unwrap_or_default();
                Self::Declined(decline::of_card(&problem))
            }
            ("requires_action", _) => Self::NeedsOwner,
            ("canceled", _) => Self::CalledOff,
            ("requires_confirmation", _) => Self::Waiting,
            (status, _) => Self::UnderWay(format!("the payment {} is {status}", intent.id)),
        }
    }
}

impl Stripe {
    /// Stripe, with its book in `pool`.
    pub fn new(api: Api, pool: PgPool, refund_claim: Duration) -> Self {
        Self { api, book: Book::new(pool), refund_claim }
    }

    /// Remembers for good what an intent has come to, and says it.
    async fn conclude(&self, key: &str, intent: &Intent) -> Result<Charge, ChargeError> {
        let away = |error: sqlx::Error| ChargeError::Unavailable(error.to_string());
        match Standing::of(intent) {
            Standing::Charged => {
                self.book.ended(key, Outcome::Succeeded).await.map_err(away)?;
                Ok(Charge { charge_id: intent.id.clone() })
            }
            Standing::Declined(code) => {
                self.book.ended(key, Outcome::Declined(&code)).await.map_err(away)?;
                Err(ChargeError::Declined(code))
            }
            Standing::NeedsOwner => {
                // Remembered first: a cancelled intent no longer says why.
                let code = decline::AUTHENTICATION;
                self.book.ended(key, Outcome::Declined(code)).await.map_err(away)?;
                // Nobody has what it takes to go on with it; it only does not stay open.
                if let Err(error) = self.api.cancel(&intent.id).await {
                    tracing::warn!(intent = intent.id, %error, "a payment stays open at Stripe");
                }
                Err(ChargeError::Declined(code.to_owned()))
            }
            Standing::CalledOff => {
                self.book.ended(key, Outcome::Voided).await.map_err(away)?;
                Err(ChargeError::Voided)
            }
            Standing::Waiting => {
                Err(ChargeError::Unavailable("the payment is not confirmed yet".to_owned()))
            }
            Standing::UnderWay(why) => Err(ChargeError::Unknown(why)),
        }
    }

    /// Takes the money of an intent.
    async fn confirm(&self, key: &str, id: &str) -> Result<Charge, ChargeError> {
        let refused = match self.api.confirm(id).await {
            Ok(intent) => {
                crash::point("stripe.confirmed");
                return self.conclude(key, &intent).await;
            }
            Err(Failure::NotDone(why)) => return Err(ChargeError::Unavailable(why)),
            Err(Failure::Unknown(why)) => return Err(ChargeError::Unknown(why)),
            Err(Failure::Broken(_)) => None,
            Err(Failure::Refused(status, problem)) => Some((status, problem)),
        };
        // Declined, or decided before; the intent tells.
        let intent = self.api.intent(id).await;
        let intent = intent.map_err(|error| ChargeError::Unknown(error.to_string()))?;
        match refused {
            Some((status, problem)) if Standing::of(&intent) == Standing::Waiting => {
                self.refused(key, &Failure::Refused(status, problem.clone()), &problem).await
            }
            _ => self.conclude(key, &intent).await,
        }
    }

    /// What it means that Stripe does not take a payment, of which nothing is charged.
    async fn refused(
        &self,
        key: &str,
        failure: &Failure,
        problem: &Problem,
    ) -> Result<Charge, ChargeError> {
        let Some(code) = decline::of_request(problem) else {
            return Err(ChargeError::Refused(failure.to_string()));
        };
        let ended = self.book.ended(key, Outcome::Declined(&code)).await;
        ended.map_err(|error| ChargeError::Unavailable(error.to_string()))?;
        Err(ChargeError::Declined(code))
    }
}

impl Gateway for Stripe {
    async fn charge(&self, key: &str, amount: Money, token: &str) -> Result<Charge, ChargeError> {
        let away = |error: sqlx::Error| ChargeError::Unavailable(error.to_string());
        let Some(units) = amount::in_units(amount) else {
            return Err(ChargeError::Declined("not_chargeable".to_owned()));
        };
        // The only names of cards that can be used without more ado.
        if !token.starts_with("pm_") {
            return Err(ChargeError::Declined("unknown_token".to_owned()));
        }
        let mut row = self.book.begin(key, amount).await.map_err(away)?;
        if row.known().is_none() && row.intent_id.is_none() {
            let price = (units, amount.currency.code());
            let created = self.api.create(price, token, key, &row.idempotency_key("create")).await;
            let intent = match created {
                Ok(intent) => intent,
                Err(Failure::Refused(status, problem)) => {
                    let failure = Failure::Refused(status, problem.clone());
                    return self.refused(key, &failure, &problem).await;
                }
                // Perhaps there is an intent: it takes no money.
                Err(error) => return Err(ChargeError::Unavailable(error.to_string())),
            };
            crash::point("stripe.created");
            row = self.book.remember(key, &intent.id).await.map_err(away)?;
            crash::point("stripe.remembered");
        }
        match (row.known(), &row.intent_id) {
            (Some(known), _) => known,
            (None, Some(id)) => self.confirm(key, id).await,
            (None, None) => Err(ChargeError::Unavailable("it was called off".to_owned())),
        }
    }

    async fn find(&self, key: &str) -> Result<Option<Result<Charge, ChargeError>>, GatewayError> {
        let Some(row) = self.book.find(key).await? else { return Ok(None) };
        let (None, Some(id)) = (row.known(), &row.intent_id) else { return Ok(row.known()) };
        let intent = self.api.intent(id).await?;
        match Standing::of(&intent) {
            Standing::Waiting => Ok(None),
            _ => Ok(Some(self.conclude(key, &intent).await)),
        }
    }

    async fn void(&self, key: &str) -> Result<Option<Charge>, GatewayError> {
        let row = self.book.call_off(key).await?;
        let (None, Some(id)) = (row.known(), &row.intent_id) else {
            return Ok(row.known().and_then(Result::ok));
        };
        let intent = match self.api.cancel(id).await {
            // Decided before; the intent tells.
            Err(Failure::Refused(..)) => self.api.intent(id).await?,
            cancelled => cancelled?,
        };
        crash::point("stripe.cancelled");
        match self.conclude(key, &intent).await {
            Ok(charge) => Ok(Some(charge)),
            Err(ChargeError::Voided | ChargeError::Declined(_)) => Ok(None),
            Err(error) => Err(GatewayError::Unavailable(error.to_string())),
        }
    }

    async fn refund(
        &self,
        key: &str,
        charge_id: &str,
        amount: Money,
    ) -> Result<Refund, GatewayError> {
        let row = self.book.of_intent(charge_id).await?;
        let (Some(row), Some(units)) = (row, amount::in_units(amount)) else {
            let why = format!("{charge_id} is no payment of Stripe's that is remembered here");
            return Err(GatewayError::Refused(why));
        };
        if let Some(refund_id) = row.refund_id {
            return Ok(Refund { refund_id });
        }
        if !self.book.claim_refund(charge_id, self.refund_claim).await? {
            let why = "another worker is giving it back, or was when it died".to_owned();
            return Err(GatewayError::Unavailable(why));
        }
        // One that nobody remembers, or that somebody has made by hand.
        let refunds = self.api.refunds(charge_id).await?;
        let made = refunds.into_iter().find(|refund| refund.stands() && refund.amount == units);
        let refund = match made {
            Some(refund) => refund,
            None => self.api.refund(charge_id, units, key, &row.idempotency_key("refund")).await?,
        };
        if !refund.stands() {
            let why = format!("the refund {} has failed: the money is still at Stripe", refund.id);
            return Err(GatewayError::Refused(why));
        }
        crash::point("stripe.refunded");
        self.book.refunded(charge_id, &refund.id).await?;
        Ok(Refund { refund_id: refund.id })
    }
}

impl From<Failure> for GatewayError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(..) => Self::Refused(failure.to_string()),
            Failure::NotDone(_) | Failure::Broken(_) | Failure::Unknown(_) => {
                Self::Unavailable(failure.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn standing(intent: Value) -> Standing {
        Standing::of(&serde_json::from_value(intent).unwrap())
    }

    #[test]
    fn an_intent_stands_as_its_status_says() {
        let of = |status: &str| standing(json!({ "id": "pi_1", "status": status }));
        assert_eq!(of("succeeded"), Standing::Charged);
        assert_eq!(of("canceled"), Standing::CalledOff);
        assert_eq!(of("requires_action"), Standing::NeedsOwner);
        assert_eq!(of("requires_confirmation"), Standing::Waiting);
        for status in ["processing", "requires_capture", "something_new"] {
            assert!(matches!(of(status), Standing::UnderWay(_)), "{status}");
        }
        let declined = standing(json!({
            "id": "pi_1", "status": "requires_payment_method", "latest_charge": "ch_1",
            "last_payment_error": {
                "type": "card_error", "code": "card_declined",
                "decline_code": "insufficient_funds", "message": "Your card has insufficient funds.",
            },
        }));
        assert_eq!(declined, Standing::Declined("insufficient_funds".to_owned()));
    }
}
