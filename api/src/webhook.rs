//! What Stripe tells of its own accord (webhooks): whether it is from Stripe, and of which order's payment
//! it speaks. What it says of the payment is not believed, and not even read: payment asks Stripe.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use millrace_shared::config::Secret;
use millrace_shared::ids::OrderId;
use ring::hmac;
use serde::Deserialize;

/// How far the time of a signature may be from ours: what is older may be somebody's recording.
const TOLERANCE: Duration = Duration::from_mins(5);
/// Signatures that are looked at: Stripe sends two while a secret is replaced.
const SIGNATURES: usize = 8;

/// Whose webhooks are taken.
#[derive(Debug, Clone, Default, Args)]
pub struct WebhookConfig {
    /// Secret of Stripe's webhooks (`whsec_…`): with it they are taken, at /v1/webhooks/stripe; better
    /// in a file
    #[arg(
        long,
        env = "MILLRACE_STRIPE_WEBHOOK_SECRET",
        hide_env_values = true,
        value_name = "SECRET",
        conflicts_with = "stripe_webhook_secret_file"
    )]
    stripe_webhook_secret: Option<Secret>,
    /// File with that secret
    #[arg(long, env = "MILLRACE_STRIPE_WEBHOOK_SECRET_FILE", value_name = "FILE")]
    stripe_webhook_secret_file: Option<PathBuf>,
}

impl WebhookConfig {
    /// With a secret.
    pub fn with_secret(secret: &str) -> Self {
        Self { stripe_webhook_secret: Some(secret.into()), stripe_webhook_secret_file: None }
    }

    pub(crate) fn signatures(&self) -> anyhow::Result<Option<Signatures>> {
        let file = self.stripe_webhook_secret_file.as_ref();
        let what = "the secret of Stripe's webhooks";
        let secret = Secret::read(self.stripe_webhook_secret.as_ref(), file, what)?;
        Ok(secret.map(Signatures))
    }
}

/// Why a webhook is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forged {
    /// There is no header that can be read.
    #[error("must be t=SECONDS,v1=SIGNATURE")]
    Unreadable,
    /// Its time is too long ago, or in the future.
    #[error("is of another time: more than five minutes from now")]
    OtherTime,
    /// Nobody who knows the secret has signed this.
    #[error("is not by the secret of these webhooks, or of another body")]
    Wrong,
}

/// Checks signatures (<https://docs.stripe.com/webhooks/signature>).
#[derive(Debug)]
pub struct Signatures(Secret);

impl Signatures {
    /// Whether a body has the signature of this header, at this time.
    pub fn check(&self, header: &str, body: &[u8], now: SystemTime) -> Result<(), Forged> {
        let parts = || header.split(',').filter_map(|part| part.trim().split_once('='));
        let time = parts().find(|(name, _)| *name == "t").map(|(_, time)| time);
        let time = time.ok_or(Forged::Unreadable)?;
        let seconds: u64 = time.parse().map_err(|_| Forged::Unreadable)?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if now.abs_diff(Duration::from_secs(seconds)) > TOLERANCE {
            return Err(Forged::OtherTime);
        }
        let signed = [time.as_bytes(), b".", body].concat();
        // They are compared in a time that does not depend on where they differ.
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.reveal().as_bytes());
        let fits = |signature: &[u8]| hmac::verify(&key, &signed, signature).is_ok();
        let signatures = parts().filter(|(name, _)| *name == "v1").take(SIGNATURES);
        let mut signatures = signatures.filter_map(|(_, hex)| from_hex(hex));
        signatures.any(|signature| fits(&signature)).then_some(()).ok_or(Forged::Wrong)
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|it| it.try_into().ok())).collect();
    let digits = digits.filter(|digits| digits.len() == 64)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// The order whose payment an event speaks of, if it speaks of one of ours.
pub fn order_of(body: &[u8]) -> Option<OrderId> {
    #[derive(Deserialize)]
    struct Event {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        object: Object,
    }
    #[derive(Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        millrace_key: String,
    }
    let event: Event = serde_json::from_slice(body).ok()?;
    event.data.object.metadata.millrace_key.strip_prefix("charge-")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"{\"id\":\"evt_1\"}";
    const TIME: u64 = 1_700_000_000;

    fn signatures() -> Signatures {
        Signatures("whsec_test".into())
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn sign(secret: &str, time: u64, body: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let signed = [format!("{time}.").as_bytes(), body].concat();
        let tag = hmac::sign(&key, &signed);
        let digits = tag.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 15]);
        digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
    }

    #[test]
    fn a_signature_is_of_one_secret_one_body_and_one_time() {
        let good = sign("whsec_test", TIME, BODY);
        let check = |header: &str, body: &[u8], now| signatures().check(header, body, at(now));
        let header = format!("t={TIME},v1={good}");
        assert_eq!(check(&header, BODY, TIME), Ok(()));
        assert_eq!(check(&header, BODY, TIME + 300), Ok(()));
        assert_eq!(check(&header, BODY, TIME - 300), Ok(()));
        assert_eq!(check(&header, BODY, TIME + 301), Err(Forged::OtherTime));
        assert_eq!(check(&header, BODY, TIME - 301), Err(Forged::OtherTime));
        assert_eq!(check(&header, b"{}", TIME), Err(Forged::Wrong));
        let other_time = format!("t={},v1={good}", TIME + 1);
        assert_eq!(check(&other_time, BODY, TIME), Err(Forged::Wrong));
        let other_secret = sign("whsec_other", TIME, BODY);
        assert_eq!(check(&format!("t={TIME},v1={other_secret}"), BODY, TIME), Err(Forged::Wrong));
        // While a secret is replaced there are two; `v0` is for tests of Stripe's own.
        let both = format!("t={TIME},v0={good},v1={other_secret},v1={good}");
        assert_eq!(check(&both, BODY, TIME), Ok(()));
        assert_eq!(check(&format!("t={TIME},v0={good}"), BODY, TIME), Err(Forged::Wrong));
    }

    #[test]
    fn without_a_secret_or_with_an_empty_one_nothing_can_be_signed() {
        for config in [WebhookConfig::default(), WebhookConfig::with_secret("")] {
            assert!(config.signatures().unwrap().is_none(), "{config:?}");
        }
        assert!(WebhookConfig::with_secret("whsec_1").signatures().unwrap().is_some());
    }

    #[test]
    fn a_header_of_whatever_form_is_refused() {
        for header in ["", "t=", "v1=00", "t=-1,v1=00", "t=99999999999999999999,v1=00", "="] {
            let checked = signatures().check(header, BODY, at(TIME));
            assert_eq!(checked, Err(Forged::Unreadable), "{header:?}");
        }
        for signature in ["", "0", "zz", "é", &"0".repeat(63), &"g".repeat(64), &"0".repeat(66)] {
            let header = format!("t={TIME},v1={signature}");
            let checked = signatures().check(&header, BODY, at(TIME));
            assert_eq!(checked, Err(Forged::Wrong), "{header:?}");
        }
    }

    #[test]
    fn an_event_is_of_an_order_only_by_the_key_that_was_given_to_its_payment() {
        let order = "018f2d5e-7b3a-7c3e-9c1d-000000000009";
        let event = |key: &str| {
            let metadata = serde_json::json!({ "millrace_key": key });
            let object = serde_json::json!({ "id": "pi_1", "metadata": metadata });
            serde_json::json!({ "data": { "object": object } }).to_string()
        };
        let found = order_of(event(&format!("charge-{order}")).as_bytes());
        assert_eq!(found.map(|found| found.to_string()).as_deref(), Some(order));
        assert_eq!(order_of(event("charge-*").as_bytes()), None);
        assert_eq!(order_of(event(order).as_bytes()), None);
        assert_eq!(order_of(br#"{"data":{"object":{"metadata":{}}}}"#), None);
        assert_eq!(order_of(b"no JSON"), None);
    }
}
