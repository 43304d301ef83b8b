//! The contract: what the documents say of the HTTP edge and of the streams is what they do.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use millrace_api::auth::Role;
use millrace_api::auth::config::AuthConfig;
use millrace_shared::asyncapi::{Message, Messages};
use serde_json::{Value, json};

use crate::auth::{Guarded, SECRET, token};
use crate::clients::{installed, not_tested, there};
use crate::harness::{System, account_order, card_order, eventually};
use crate::past::Beside;

/// Requests of each kind that schemathesis makes up for one operation, besides those that cover its
/// schema.
const EXAMPLES: &str = "4";
/// The same, where time does not matter.
const MANY_EXAMPLES: &str = "60";

/// schemathesis, which knows only the `OpenAPI` document, sends what keeps to it and what does not:
/// in each run the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_edge_does_what_its_openapi_document_says() {
    attacked(&["--seed", "1", "--max-examples", EXAMPLES, "--generation-deterministic"]).await;
}

/// `cargo test -p millrace-tests contract::the_edge -- --ignored --nocapture`
#[ignore = "long, and another one each time"]
#[tokio::test(flavor = "multi_thread")]
async fn the_edge_does_what_its_openapi_document_says_whatever_is_sent() {
    let seed = rand::random::<u32>().to_string();
    println!("the seed is {seed}");
    attacked(&["--seed", &seed, "--max-examples", MANY_EXAMPLES, "--generation-database", "none"])
        .await;
}

/// The folder with schemathesis; nothing where it cannot be had.
fn schemathesis() -> Option<PathBuf> {
    if !there(&[&["python3"], &["python3", "-m", "pip"]]) {
        return None;
    }
    let files = ["contract.txt", "schemathesis.toml", "contract_hooks.py"];
    let folder = installed("contract", &files, |folder| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        pip.args(["--no-deps", "--only-binary", ":all:", "--target"]).arg(folder);
        pip.args(["-r", "contract.txt"]);
        pip
    });
    folder.map_err(|error| not_tested(&error)).ok()
}

/// What there is to be read, by the first part of the path.
async fn filled(system: &System) -> Value {
    system.define("0", 100, 1_000).await;
    system.register("0", Some(100_000)).await;
    let place = async |token| {
        let placed = system.post_and_wait("/v1/orders", &card_order("0", "0", 1, token)).await;
        (placed.text("/orderId"), placed.text("/commandId"))
    };
    let (paid, declined, refunded) =
        (place("tok_ok").await, place("tok_declined").await, place("tok_ok").await);
    let cancel = format!("/v1/orders/{}/cancel", refunded.0);
    assert_eq!(system.post_and_wait(&cancel, &json!({})).await.status, 200);
    system.order_in(&refunded.0, "refunded").await;
    system.settle().await;
    json!({
        "orders": [paid.0, declined.0, refunded.0],
        "commands": [paid.1, declined.1],
        "customers": ["0"],
        "products": ["0"],
    })
}

/// Has schemathesis attack an edge of its own; it must find nothing.
async fn attacked(with: &[&str]) {
    let found = tokio::task::spawn_blocking(schemathesis).await;
    let Some(folder) = found.expect("no panic") else { return };
    let system = System::with_workers(1).await;
    let known = filled(&system).await.to_string();
    // Nobody has to wait: it is the schema that is attacked.
    let rates = ["operator=0", "anonymous=0"].map(|rate| rate.parse().expect("a rate"));
    let auth = AuthConfig::default().with_secret(SECRET).with_limits(rates.into(), Some(1_000));
    let edge = Guarded::with(&system, auth).await;
    // Or searches are refused, and that is within the contract.
    eventually("the edge has read the catalogue", async || {
        let ready = edge.get("/readyz", None).await;
        (ready.text("/status") == "ok").then_some(())
    })
    .await;
    let mut command = Command::new("python3");
    command
        .args(["-m", "schemathesis.cli", "--config-file"])
        .arg(folder.join("schemathesis.toml"))
        .args(["run", &format!("{}/openapi.json", edge.http()), "--no-color"])
        .args(["-H", &format!("Authorization: Bearer {}", token("ops", Role::Operator))])
        .args(with)
        .env("PYTHONPATH", &folder)
        .env("MILLRACE_KNOWN", known)
        .current_dir(&folder);
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = output.await.expect("it runs").expect("it starts");
    let (said, errors) = (output.stdout, output.stderr);
    let [said, errors] = [said, errors].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains("No issues found") || said.contains("passed"), "{said}");
    println!("{said}");
    edge.close().await;
    system.stop().await;
}

/// Each path has the methods that the document says, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn every_method_of_every_path_is_in_the_document() {
    let system = System::without_workers().await;
    let edge = Beside::for_operators(&system).await;
    let document = edge.get(&system, "/openapi.json").await.body;
    for (path, item) in document["paths"].as_object().expect("paths") {
        let path = path.replace("{id}", "0").replace("{sequence}", "1");
        let url = format!("{}{path}", edge.http);
        let options = reqwest::Client::new().request(reqwest::Method::OPTIONS, url);
        let answer = system.send(options).await;
        let allowed = answer.header("allow").split(',').map(str::trim).map(str::to_lowercase);
        let allowed: BTreeSet<String> = allowed.filter(|method| method != "head").collect();
        let documented: BTreeSet<String> =
            item.as_object().expect("operations").keys().cloned().collect();
        assert_eq!(allowed, documented, "{path}");
    }
    edge.close().await;
    system.stop().await;
}

/// Every message that went over the streams keeps to the schema of its kind.
#[tokio::test(flavor = "multi_thread")]
async fn real_messages_keep_to_their_schemas() {
    let system = System::with_workers(1).await;
    system.define("box", 1_000, 50).await;
    system.register("ann", Some(100_000)).await;
    let step = async |id: &str, step: &str, body: Value| {
        system.post_and_wait(&format!("/v1/orders/{id}/{step}"), &body).await
    };
    let sent = system.post_and_wait("/v1/orders", &card_order("ann", "box", 2, "tok_ok")).await;
    let sent = sent.text("/orderId");
    let shipment = json!({ "carrier": "Ravens", "trackingNumber": "R-1" });
    assert_eq!(step(&sent, "ship", shipment).await.status, 200);
    assert_eq!(step(&sent, "deliver", json!({})).await.status, 200);
    assert_eq!(step(&sent, "cancel", json!({})).await.status, 409);
    assert_eq!(step(&sent, "refund", json!({ "reason": "broken" })).await.status, 200);
    let account = system.post_and_wait("/v1/orders", &account_order("ann", "box", 1)).await;
    step(&account.text("/orderId"), "cancel", json!({ "reason": "changed my mind" })).await;
    system.post_and_wait("/v1/orders", &card_order("ann", "box", 1, "tok_declined")).await;
    system.post_and_wait("/v1/orders", &card_order("nobody", "box", 1, "tok_ok")).await;
    system.publish("product.restock", &json!({ "productId": "box", "quantity": 5 })).await;
    system.publish("product.retire", &json!({ "productId": "box" })).await;
    let limit = json!({ "creditLimit": { "amount": 5, "currency": "USD" } });
    system.put_and_wait("/v1/customers/ann/credit-limit", &limit).await;
    system.settle().await;

    let messages = Messages::new(&system.topology);
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let mut seen = BTreeSet::new();
    for (stream, list) in [
        (system.topology.commands_stream(), &messages.commands),
        (system.topology.events_stream(), &messages.events),
    ] {
        let stream = jetstream.get_stream(stream).await.expect("the stream");
        let state = stream.cached_info().state.clone();
        for sequence in state.first_sequence..=state.last_sequence {
            let Ok(stored) = stream.get_raw_message(sequence).await else { continue };
            let of = |message: &&Message| matches(&message.address, &stored.subject);
            let message = list.iter().find(of);
            let message = message.unwrap_or_else(|| panic!("{} has no schema", stored.subject));
            let body: Value = serde_json::from_slice(&stored.payload).expect("JSON");
            let schema = messages.alone(message);
            let errors: Vec<String> = jsonschema::validator_for(&schema)
                .expect("a schema")
                .iter_errors(&body)
                .map(|error| format!("{}: {error}", error.instance_path()))
                .collect();
            assert!(errors.is_empty(), "{}: {errors:?}: {body}", message.name);
            seen.insert(message.name.clone());
        }
    }
    for kind in ["order.place", "order.refunded", "customer.credit-changed", "command.rejected"] {
        assert!(seen.contains(kind), "{kind} was not among {seen:?}");
    }
    system.stop().await;
}

/// Whether a subject is one of an address with `{…}` in it.
fn matches(address: &str, subject: &str) -> bool {
    let (address, subject) = (address.split('.'), subject.split('.'));
    address.clone().count() == subject.clone().count()
        && address.zip(subject).all(|(token, own)| token.starts_with('{') || token == own)
}
