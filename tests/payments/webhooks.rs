//! What Stripe tells of its own accord makes an unknown outcome known sooner, and nothing else.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use millrace_api::{ApiConfig, Server, WebhookConfig};
use ring::hmac;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::stand_in::{Fault, LocalStripe, Unreliable};
use super::{GOOD, close, place, shop, through, verified};
use crate::harness::{Running, System, eventually};

/// The secret of the webhooks.
const SECRET: &str = "whsec_of_this_test";

/// An edge that takes webhooks; its address for them.
async fn edge(system: &System) -> (Running, String) {
    let config = ApiConfig::new(
        "127.0.0.1:0".parse().expect("an address"),
        system.config.nats.clone(),
        system.config.redis.clone(),
    );
    let server = Server::bind(config.with_webhooks(WebhookConfig::with_secret(SECRET))).await;
    let server = server.expect("the edge binds");
    let url = format!("http://{}/v1/webhooks/stripe", server.local_addr());
    let stop = CancellationToken::new();
    let serving = server.serve(stop.clone());
    let task = tokio::spawn(async move { serving.await.expect("the edge ends well") });
    (Running::new(stop, task), url)
}

fn signed(secret: &str, seconds: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{seconds}.{body}").as_bytes());
    let digits = tag.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let tag: String = digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect();
    format!("t={seconds},v1={tag}")
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs()
}

async fn send(url: &str, signature: Option<&str>, body: &str) -> (u16, Value) {
    let mut request = reqwest::Client::new().post(url).body(body.to_owned());
    if let Some(signature) = signature {
        request = request.header("Stripe-Signature", signature);
    }
    let answer = request.send().await.expect("the edge answers");
    (answer.status().as_u16(), answer.json().await.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_is_taken_by_its_signature_alone() {
    let system = System::without_workers().await;
    let (edge, url) = edge(&system).await;
    let order = "018f2d5e-7b3a-7c3e-9c1d-000000000009";
    let metadata = json!({ "millrace_key": format!("charge-{order}") });
    let body = json!({ "data": { "object": { "metadata": metadata } } }).to_string();
    let mut hints = system.nats.subscribe(system.topology.payment_hint()).await.expect("hints");
    system.nats.flush().await.expect("NATS answers");
    let good = signed(SECRET, now(), &body);
    // Said twice it is taken twice: a hint does no harm.
    for _ in 0..2 {
        assert_eq!(send(&url, Some(&good), &body).await.0, 204);
        let hint = hints.next().await.expect("a hint");
        assert_eq!(&hint.payload[..], order.as_bytes());
    }
    let (old, other) = (signed(SECRET, now() - 301, &body), signed("whsec_other", now(), &body));
    for (signature, body) in [
        (None, body.as_str()),
        (Some(""), &body),
        (Some("t=1,v1=00"), &body),
        (Some(&old), &body),
        (Some(&other), &body),
        (Some(&good), "{}"),
    ] {
        let (status, problem) = send(&url, signature, body).await;
        assert_eq!(status, 400, "{signature:?} {problem}");
        assert_eq!(problem["errors"][0]["field"], "Stripe-Signature", "{problem}");
    }
    // Of nothing that is ours: taken, so that it is not sent again and again.
    for body in ["{}", "no JSON"] {
        assert_eq!(send(&url, Some(&signed(SECRET, now(), body)), body).await.0, 204);
    }
    let large = "x".repeat(100_000);
    assert_eq!(send(&url, Some(&signed(SECRET, now(), &large)), &large).await.0, 413);
    let further = tokio::time::timeout(Duration::from_millis(500), hints.next()).await;
    assert!(further.is_err(), "{further:?}");
    // Where no secret is set there is no such route.
    assert_eq!(
        send(&format!("{}/v1/webhooks/stripe", system.http), Some(&good), &body).await.0,
        404
    );
    edge.stop().await;
    system.stop().await;
}

/// Holds payment's events back until a time.
async fn hold_back(system: &System, until: DateTime<Utc>) {
    let events = system.topology.events_stream();
    let request = json!({ "pause_until": until }).to_string();
    for (consumer, _) in system.topology.consumers("payment") {
        let subject = format!("$JS.API.CONSUMER.PAUSE.{events}.{consumer}");
        let answer = system.nats.request(subject, request.clone().into()).await.expect("an answer");
        let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        assert!(answer["error"].is_null(), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_of_stripe_makes_an_unknown_outcome_known_at_once() {
    let Some(stripe) = LocalStripe::start().await else { return };
    let line = Unreliable::to(stripe.url()).await;
    let (system, running) = shop(through(line.url())).await;
    line.fail("/confirm", 1, Fault::NoAnswer);
    line.fail("GET /v1/payment_intents", usize::MAX, Fault::Answer(500));
    let order = place(&system, GOOD).await;
    system.order_in(&order, "payment_unknown").await;
    // From now on nothing but a hint can bring the outcome.
    hold_back(&system, Utc::now() + Duration::from_hours(1)).await;
    line.mend();
    let (edge, url) = edge(&system).await;
    let told = stripe.all("events").await;
    let body = told.iter().find(|event| event["type"] == "payment_intent.succeeded");
    let mut body = body.expect("Stripe has told it").clone();
    // What it says is not believed.
    body["data"]["object"]["amount"] = json!(1);
    let body = body.to_string();
    eventually("the hint is heard", async || {
        assert_eq!(send(&url, Some(&signed(SECRET, now(), &body)), &body).await.0, 204);
        (system.order(&order).await["status"] == "paid").then_some(())
    })
    .await;
    stripe.has_charged(&[(&order, false)]).await;
    hold_back(&system, Utc::now()).await;
    verified(&system).await;
    edge.stop().await;
    close(system, running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stripe_itself_signs_is_taken() {
    let Some(stripe) = LocalStripe::start().await else { return };
    let (system, running) = shop(through(stripe.url())).await;
    let (edge, url) = edge(&system).await;
    stripe.send_webhooks_to(&url, SECRET).await;
    let mut hints = system.nats.subscribe(system.topology.payment_hint()).await.expect("hints");
    let order = place(&system, GOOD).await;
    let hint = tokio::time::timeout(Duration::from_secs(20), hints.next()).await;
    let hint = hint.expect("a hint").expect("a hint");
    assert_eq!(&hint.payload[..], order.as_bytes());
    system.order_in(&order, "paid").await;
    verified(&system).await;
    edge.stop().await;
    close(system, running).await;
}
