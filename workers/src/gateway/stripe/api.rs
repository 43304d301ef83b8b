//! Stripe's API, as far as it is used: requests, which of them are sent again, and what errors mean
//! (<https://docs.stripe.com/error-low-level>).

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use form_urlencoded::Serializer;
use millrace_shared::config::Secret;
use millrace_shared::https::{
    Body, HeaderValue, HttpError, Https, Method, Request, StatusCode, Uri,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use super::super::breaker::Breaker;

/// The version of the API that is spoken: a later one is read up on first.
const VERSION: &str = "2024-06-20";
/// How often one request is sent at the most.
const TRIES: u32 = 4;
/// How long it is waited before the second; doubled for each further.
const BACK_OFF: Duration = Duration::from_millis(250);
/// The most bytes of an answer.
const MOST_BYTES: usize = 1024 * 1024;

/// A payment at Stripe.
#[derive(Debug, Clone, Deserialize)]
pub struct Intent {
    pub id: String,
    pub status: String,
    pub last_payment_error: Option<Problem>,
}

/// A refund at Stripe.
#[derive(Debug, Clone, Deserialize)]
pub struct Refund {
    pub id: String,
    pub status: Option<String>,
    pub amount: i64,
}

impl Refund {
    /// Whether the money goes, or has gone, back.
    pub fn stands(&self) -> bool {
        !matches!(self.status.as_deref(), Some("failed" | "canceled"))
    }
}

/// What Stripe says is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Problem {
    #[serde(default, rename = "type")]
    pub kind: String,
    pub code: Option<String>,
    pub decline_code: Option<String>,
    pub param: Option<String>,
    pub message: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message.as_deref().or(self.code.as_deref()).unwrap_or("nothing more"))
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    error: Problem,
}

#[derive(Deserialize)]
struct List<T> {
    data: Vec<T>,
}

/// Why there is no answer that says what was done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nothing was done; the same may be asked for later.
    #[error("{0}")]
    NotDone(String),
    /// Stripe has failed in the middle of it, and can be asked what it has done.
    #[error("{0}")]
    Broken(String),
    /// It may have been done, or may be done later.
    #[error("{0}")]
    Unknown(String),
    /// Stripe does not do it.
    #[error("Stripe answers {0}: {1}")]
    Refused(StatusCode, Problem),
}

/// A request, to be sent again if need be.
struct Call<'a> {
    method: Method,
    path: String,
    form: &'a [(&'a str, &'a str)],
    /// Makes it the same request whenever it is sent again, for a day at least.
    idempotency_key: Option<&'a str>,
    /// Whether it may be sent again where nobody knows whether it was done.
    repeatable: bool,
}

/// One answer.
enum Answer<T> {
    Here(T),
    /// It is to be sent again.
    Again(String),
    /// It is to be sent under another idempotency key: to this one Stripe repeats its own failure.
    Spoilt(String),
}

/// Stripe's API at an address, with a key.
#[derive(Debug)]
pub struct Api {
    https: Https,
    /// Without a slash at its end.
    base: String,
    authorization: Secret,
    /// How long a request may take, with its repetitions.
    patience: Duration,
    breaker: Breaker,
}

impl Api {
    /// The API at this address. It does not ask for anything yet.
    pub fn new(
        https: Https,
        base: &Uri,
        key: &Secret,
        patience: Duration,
        breaker: Breaker,
    ) -> anyhow::Result<Self> {
        let fits = key.reveal().bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(fits, "the key at Stripe has characters in it that no key has");
        let authorization = Secret::from(format!("Bearer {}", key.reveal()).as_str());
        let base = base.to_string().trim_end_matches('/').to_owned();
        let api = Self { https, base, authorization, patience, breaker };
        // Whether requests can be made at all.
        api.request(&Call::get(""), None).context("--stripe-url")?;
        Ok(api)
    }

    /// Begins a payment, which takes no money before it is confirmed. The card is given here and never
    /// again, so it can be charged once at the most.
    pub async fn create(
        &self,
        (units, currency): (i64, &str),
        payment_method: &str,
        order: &str,
        key: &str,
    ) -> Result<Intent, Failure> {
        let (units, currency) = (units.to_string(), currency.to_ascii_lowercase());
        // One too many would take no money either.
        self.call(Call {
            idempotency_key: Some(key),
            repeatable: true,
            ..Call::post(
                "/v1/payment_intents".to_owned(),
                &[
                    ("amount", &units),
                    ("currency", &currency),
                    ("payment_method", payment_method),
                    ("payment_method_types[]", "card"),
                    ("metadata[millrace_key]", order),
                ],
            )
        })
        .await
    }

    /// Takes the money. It needs no idempotency key: a payment succeeds once, whoever asks how often.
    pub async fn confirm(&self, id: &str) -> Result<Intent, Failure> {
        self.call(Call::post(format!("/v1/payment_intents/{id}/confirm"), &[])).await
    }

    /// Calls a payment off, if it has not succeeded.
    pub async fn cancel(&self, id: &str) -> Result<Intent, Failure> {
        self.call(Call::post(format!("/v1/payment_intents/{id}/cancel"), &[])).await
    }

    /// A payment as it now stands.
    pub async fn intent(&self, id: &str) -> Result<Intent, Failure> {
        self.call(Call::get(format!("/v1/payment_intents/{id}"))).await
    }

    /// The refunds of a payment.
    pub async fn refunds(&self, id: &str) -> Result<Vec<Refund>, Failure> {
        let path = format!("/v1/refunds?limit=100&payment_intent={id}");
        self.call(Call::get(path)).await.map(|List { data }| data)
    }

    /// Gives a payment back. To be asked for only when there is no refund of it.
    pub async fn refund(
        &self,
        id: &str,
        units: i64,
        order: &str,
        key: &str,
    ) -> Result<Refund, Failure> {
        let units = units.to_string();
        let form = [("payment_intent", id), ("amount", &units), ("metadata[millrace_key]", order)];
        let call = Call::post("/v1/refunds".to_owned(), &form);
        self.call(Call { idempotency_key: Some(key), ..call }).await
    }

    async fn call<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Failure> {
        let Some(passage) = self.breaker.passage() else {
            let why = "Stripe has failed again and again, and is left alone for a while";
            return Err(Failure::NotDone(why.to_owned()));
        };
        let late = format!("Stripe has not answered within {:?}", self.patience);
        let answer = timeout(self.patience, self.send_again_and_again(call)).await;
        let answer = answer.unwrap_or(Err(Failure::Unknown(late)));
        // A refusal is an answer.
        passage.ended(!matches!(answer, Ok(_) | Err(Failure::Refused(..))));
        answer
    }

    /// Sends a request until it is answered, as often as that is safe.
    async fn send_again_and_again<T: DeserializeOwned>(
        &self,
        call: Call<'_>,
    ) -> Result<T, Failure> {
        let mut key = call.idempotency_key.map(str::to_owned);
        let mut wait = BACK_OFF;
        for tried in 1.. {
            let why = match self.send(&call, key.as_deref()).await? {
                Answer::Here(answer) => return Ok(answer),
                Answer::Again(why) => why,
                Answer::Spoilt(why) => {
                    key = key.map(|key| format!("{key}-again"));
                    why
                }
            };
            if tried >= TRIES {
                return Err(Failure::NotDone(why));
            }
            tracing::debug!(path = call.path, why, "to be sent to Stripe again");
            sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
            wait *= 2;
        }
        unreachable!("the loop ends by itself")
    }

    async fn send<T: DeserializeOwned>(
        &self,
        call: &Call<'_>,
        key: Option<&str>,
    ) -> Result<Answer<T>, Failure> {
        let request = self.request(call, key).map_err(|it| Failure::NotDone(format!("{it:#}")))?;
        let answer = match self.https.send(request, MOST_BYTES).await {
            Ok(answer) => answer,
            Err(error @ HttpError::NotSent(_)) => return Ok(Answer::Again(error.to_string())),
            Err(error) if call.repeatable => return Ok(Answer::Again(error.to_string())),
            Err(error) => return Err(Failure::Unknown(error.to_string())),
        };
        let (status, headers) = (answer.status(), answer.headers());
        if status.is_success() {
            let read = serde_json::from_slice(answer.body());
            return read
                .map(Answer::Here)
                .map_err(|it| Failure::Unknown(format!("Stripe's answer cannot be read: {it}")));
        }
        let problem = serde_json::from_slice(answer.body()).map(|ErrorBody { error }| error);
        let problem = problem.unwrap_or_default();
        let asked_to = headers.get("stripe-should-retry").map(|value| value.as_bytes() == b"true");
        let why = format!("Stripe answers {status}");
        match status {
            // Another request holds the key or the payment, or there are too many: nothing was done.
            StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS if asked_to != Some(false) => {
                Ok(Answer::Again(why))
            }
            _ if status.is_server_error() => match headers.contains_key("idempotent-replayed") {
                true if key.is_some() => Ok(Answer::Spoilt(why)),
                _ if call.repeatable => Ok(Answer::Again(why)),
                _ => Err(Failure::Broken(why)),
            },
            // The key is wrong, or may not do this: somebody has to mend it.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let said = problem.message.unwrap_or_default();
                Err(Failure::NotDone(format!("{why}: is the key right? {said}")))
            }
            _ => Err(Failure::Refused(status, problem)),
        }
    }

    fn request(&self, call: &Call<'_>, key: Option<&str>) -> anyhow::Result<Request<Body>> {
        let mut authorization = HeaderValue::from_str(self.authorization.reveal())?;
        authorization.set_sensitive(true);
        let mut request = Request::builder()
            .method(&call.method)
            .uri(format!("{}{}", self.base, call.path))
            .header("authorization", authorization)
            .header("stripe-version", VERSION);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let mut body = String::new();
        if call.method == Method::POST {
            request = request.header("content-type", "application/x-www-form-urlencoded");
            body = Serializer::new(body).extend_pairs(call.form).finish();
        }
        Ok(request.body(body.into())?)
    }
}

impl<'a> Call<'a> {
    fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            form: &[],
            idempotency_key: None,
            repeatable: true,
        }
    }

    fn post(path: String, form: &'a [(&'a str, &'a str)]) -> Self {
        Self { method: Method::POST, path, form, idempotency_key: None, repeatable: false }
    }
}
