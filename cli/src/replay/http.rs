//! The HTTP way in.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use millrace_shared::command::{Command, KEY_HEADER};
use millrace_shared::ids::CommandId;
use millrace_shared::import::Report;
use millrace_shared::message::Subject;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::token::SignIn;

use super::target::{Answer, Refused, Request, can_retry};

/// How long the system is asked to hold an answer back for the outcome.
const WAIT: u64 = 10;
/// Before trying again, where the server does not say when.
const RETRY: Duration = Duration::from_millis(500);

pub struct Http {
    client: Client,
    base: String,
}

impl Http {
    pub async fn new(target: &str, sign_in: &SignIn) -> anyhow::Result<Self> {
        let url = Url::parse(target).with_context(|| {
            format!("--target {target:?} is not an address like http://HOST:PORT")
        })?;
        ensure!(
            url.scheme() == "http",
            "--target {target:?}: only plain http:// is spoken here; where the API is behind TLS, \
             use an address inside of it, or --via nats"
        );
        let client = Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(WAIT + 10))
            .default_headers(signed(sign_in)?)
            .build()?;
        let base = target.trim_end_matches('/').to_owned();
        // A wrong address is told at once; later on a failed request is tried again for a while.
        let reached = client.get(format!("{base}/livez")).send().await;
        reached.with_context(|| format!("there is no answer from --target {target:?}"))?;
        Ok(Self { client, base })
    }

    pub async fn look(
        &self,
        subject: Subject,
        id: &str,
        deadline: Instant,
    ) -> anyhow::Result<Option<Value>> {
        self.get(&format!("/v1/{subject}s/{id}"), deadline).await
    }

    pub async fn refusal(
        &self,
        id: CommandId,
        deadline: Instant,
    ) -> anyhow::Result<Option<Refused>> {
        let outcome = self.get(&format!("/v1/commands/{id}"), deadline).await?;
        Ok(outcome
            .filter(|outcome| outcome["status"] == "rejected")
            .map(|outcome| refused(&outcome)))
    }

    pub async fn send(&self, request: &Request, deadline: Instant) -> anyhow::Result<Answer> {
        let (method, path, body) = route(&request.command)?;
        let (status, answer) = self
            .exchange(deadline, &path, || {
                let url = format!("{}{path}", self.base);
                self.client
                    .request(method.clone(), url)
                    .header(KEY_HEADER, &request.key)
                    .header("Prefer", format!("wait={WAIT}"))
                    .json(&body)
            })
            .await?;
        may_be_used(status, &answer)?;
        if status.is_client_error() {
            return Ok(Answer::Refused(refused(&answer)));
        }
        ensure!(status.is_success(), "{path}: unexpected answer {status}");
        // Without the outcome there is no subject in the answer, only what it is called.
        Ok(Answer::Taken((status != StatusCode::ACCEPTED).then_some(answer)))
    }

    /// Imports products, an object on each line.
    pub async fn import(&self, rows: Vec<u8>, deadline: Instant) -> anyhow::Result<Report> {
        let path = "/v1/products:import";
        let rows = bytes::Bytes::from(rows);
        let (status, answer) = self
            .exchange(deadline, path, || {
                let request = self.client.post(format!("{}{path}", self.base));
                request.header(CONTENT_TYPE, "application/x-ndjson").body(rows.clone())
            })
            .await?;
        may_be_used(status, &answer)?;
        ensure!(status.is_success(), "{path}: the answer is {status}: {}", refused(&answer).detail);
        Ok(serde_json::from_value(answer)?)
    }

    async fn get(&self, path: &str, deadline: Instant) -> anyhow::Result<Option<Value>> {
        let url = format!("{}{path}", self.base);
        let (status, body) = self.exchange(deadline, path, || self.client.get(&url)).await?;
        may_be_used(status, &body)?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(body)),
            status => bail!("{path}: unexpected answer {status}: {}", refused(&body).detail),
        }
    }

    /// Sends a request until it has an answer that trying again would not change. Every request
    /// has an idempotency key or only reads, so that it does no harm to send it twice.
    async fn exchange(
        &self,
        deadline: Instant,
        path: &str,
        request: impl Fn() -> reqwest::RequestBuilder,
    ) -> anyhow::Result<(StatusCode, Value)> {
        loop {
            let (error, wait) = match request().send().await {
                Ok(answer) if is_passing(answer.status()) => {
                    let (status, wait) = (answer.status(), retry_after(&answer));
                    let body: Value = answer.json().await.unwrap_or_default();
                    let detail = body["detail"].as_str().unwrap_or("no reason is given");
                    (anyhow!("the answer is {status}: {detail}"), wait)
                }
                Ok(answer) => {
                    let status = answer.status();
                    match answer.json().await {
                        Ok(body) => return Ok((status, body)),
                        // An error without a body that can be read is told by its status.
                        Err(_) if status.is_client_error() => {
                            return Ok((
                                status,
                                json!({
                                    "title": status.to_string(),
                                }),
                            ));
                        }
                        Err(error) => (error.into(), RETRY),
                    }
                }
                Err(error) => (error.into(), RETRY),
            };
            if !can_retry(wait, deadline).await {
                return Err(error.context(format!("{}{path} cannot be used", self.base)));
            }
        }
    }
}

/// The header that every request has.
fn signed(sign_in: &SignIn) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    if let Some(authorization) = sign_in.authorization()? {
        let mut value = HeaderValue::try_from(authorization)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

fn retry_after(answer: &Response) -> Duration {
    let seconds =
        answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    seconds.map_or(RETRY, Duration::from_secs)
}

/// Method, path and body of a command. What the path names is not in the body.
fn route(command: &Command) -> anyhow::Result<(Method, String, Value)> {
    let mut body = serde_json::to_value(command)?;
    let mut without = |field: &str| {
        body.as_object_mut().and_then(|fields| fields.remove(field));
    };
    let (method, path) = match command {
        Command::PlaceOrder(_) => (Method::POST, "/v1/orders".to_owned()),
        Command::RegisterCustomer(_) => (Method::POST, "/v1/customers".to_owned()),
        Command::SetCreditLimit(set) => {
            without("customerId");
            (Method::PUT, format!("/v1/customers/{}/credit-limit", set.customer_id))
        }
        Command::DefineProduct(product) => {
            without("productId");
            (Method::PUT, format!("/v1/products/{}", product.product_id))
        }
        Command::RetireProduct(product) => {
            without("productId");
            (Method::POST, format!("/v1/products/{}/retire", product.product_id))
        }
        other => bail!("a replay has no use for {}", other.kind()),
    };
    Ok((method, path, body))
}

/// Whether it is no matter of this one request that it was refused.
fn may_be_used(status: StatusCode, answer: &Value) -> anyhow::Result<()> {
    let signed_in = !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    let detail = refused(answer).detail;
    ensure!(signed_in, "the answer is {status}: {detail} (see --token-file)");
    Ok(())
}

/// The reason in a problem document or in a command's outcome.
fn refused(body: &Value) -> Refused {
    let text = |name: &str| body[name].as_str().map(str::to_owned);
    // Without a reason of its own a problem is named by the end of its type.
    let kind = || text("type")?.rsplit(['/', ':', '#']).next().map(str::to_owned);
    let reason = text("reason").or_else(kind).or_else(|| text("title")).unwrap_or_default();
    let mut detail = text("detail").or_else(|| text("title")).unwrap_or_default();
    if let Some(errors) = body.get("errors") {
        detail = format!("{detail} {errors}");
    }
    Refused { reason, detail }
}
