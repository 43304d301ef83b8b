//! Reading one's own writes: a command that is waited for answers its outcome, a read that is waited
//! for answers the asked version or says that it is not there yet, and nobody polls.

use std::time::{Duration, Instant};

use millrace_workers::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{System, account_order, card_order, eventually, usd};

/// How soon a change must reach who waits for it: sooner than a waiting request looks by itself.
const TOLD: Duration = Duration::from_secs(15);

/// A waiting command on what stands at `resource`; checks that the outcome, and a read that asks
/// for its version, show the same.
async fn carried_out(system: &System, method: &str, path: &str, resource: &str, body: &Value) {
    let request = system.request(method, path).header("Prefer", "respond-async, wait=20");
    let answer = system.send(request.json(body)).await;
    assert!([200, 201].contains(&answer.status), "{path}: {answer:?}");
    assert_eq!(answer.header("preference-applied"), "wait=20", "{path}");
    let version = answer.header("etag").trim_matches('"').to_owned();
    assert_eq!(answer.body["version"].to_string(), version, "{path}: {answer:?}");
    let read = system.get(&format!("{resource}?minVersion={version}&waitMs=0")).await;
    assert_eq!(read.status, 200, "{path}: {read:?}");
    assert!(read.body["version"].as_u64() >= answer.body["version"].as_u64(), "{path}: {read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_that_is_waited_for_answers_what_can_then_be_read() {
    let system = System::start().await;
    let shipment = json!({ "carrier": "Post", "trackingNumber": "1" });
    let product = json!({ "name": "Pen", "brand": "B", "category": "C", "price": usd(100),
        "initialStock": 3 });
    let pen = "/v1/products/pen";
    carried_out(&system, "PUT", pen, pen, &product).await;
    let more = json!({ "quantity": 4 });
    carried_out(&system, "POST", "/v1/products/pen/restock", pen, &more).await;
    let ann = "/v1/customers/ann";
    let customer = json!({ "customerId": "ann", "name": "Ann" });
    carried_out(&system, "POST", "/v1/customers", ann, &customer).await;
    let limit = json!({ "creditLimit": usd(10_000) });
    carried_out(&system, "PUT", "/v1/customers/ann/credit-limit", ann, &limit).await;
    for last in ["deliver", "cancel"] {
        let order = account_order("ann", "pen", 1);
        let placed = system.post_and_wait("/v1/orders", &order).await;
        assert_eq!((placed.status, placed.header("preference-applied")), (201, "wait=20"));
        let order = format!("/v1/orders/{}", placed.text("/orderId"));
        let step = async |step: &str, body: Value| {
            carried_out(&system, "POST", &format!("{order}/{step}"), &order, &body).await;
        };
        if last == "deliver" {
            step("ship", shipment.clone()).await;
            step("deliver", json!({})).await;
            step("refund", json!({})).await;
        } else {
            step("cancel", json!({})).await;
            let again = system.post_and_wait(&format!("{order}/ship"), &shipment).await;
            assert_eq!((again.status, again.header("preference-applied")), (409, "wait=20"));
        }
    }
    carried_out(&system, "POST", "/v1/products/pen/retire", pen, &json!({})).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_too_early_says_so_with_the_version_it_has() {
    let system = System::without_workers().await;
    let workers = [Role::Validation, Role::Projection].map(|role| system.run(role));
    system.register("ann", None).await;
    system.define("pen", 100, 5).await;
    let [validation, projection] = workers;
    validation.stop().await;
    let placed = system.post("/v1/orders", &card_order("ann", "pen", 1, "tok_ok")).await;
    let order = format!("/v1/orders/{}", placed.text("/orderId"));
    for (path, has) in [(order.as_str(), 0), ("/v1/customers/ann", 1), ("/v1/products/pen", 1)] {
        let wanted = has + 1;
        let answer = system.get(&format!("{path}?minVersion={wanted}&waitMs=200")).await;
        assert_eq!(answer.status, 202, "{path}: {answer:?}");
        assert_eq!(answer.header("etag"), format!("\"{has}\""), "{path}");
        assert_eq!(answer.body["version"], has, "{path}");
        // What the client has already is no answer to a wish for something newer.
        let request = system.request("GET", &format!("{path}?minVersion={wanted}&waitMs=1"));
        let known = system.send(request.header("If-None-Match", format!("\"{has}\""))).await;
        assert_eq!((known.status, &known.body["version"]), (202, &json!(has)), "{path}");
        let there = system.get(&format!("{path}?minVersion={has}")).await;
        assert_eq!(there.status, 200, "{path}: {there:?}");
    }
    let nothing = format!("/v1/orders/{}?minVersion=1&waitMs=200", Uuid::now_v7());
    assert_eq!(system.get(&nothing).await.status, 404);

    // Who still waits is told by the change itself.
    let start = Instant::now();
    let request = system.request("GET", &format!("{order}?minVersion=1"));
    let late = system.send(request.header("Prefer", "wait=30"));
    let (answer, validation) = tokio::join!(late, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        system.run(Role::Validation)
    });
    assert_eq!((answer.status, answer.text("/status").as_str()), (200, "validated"), "{answer:?}");
    assert!(start.elapsed() < TOLD, "{:?}", start.elapsed());
    for worker in [validation, projection] {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_is_waited_for_by_id_and_by_sequence() {
    let system = System::without_workers().await;
    let projection = system.run(Role::Projection);
    let named = json!({ "commandId": Uuid::now_v7(), "customerId": "bob", "name": "Bob" });
    let sequence = system.publish("customer.register", &named).await;
    let over_http = json!({ "customerId": "ann", "name": "Ann" });
    eventually("the first views are there", async || {
        (system.get("/v1/products").await.status == 200).then_some(())
    })
    .await;
    let accepted = system.post("/v1/customers", &over_http).await;
    let by_id = format!("/v1/commands/{}", accepted.text("/commandId"));
    let by_sequence = format!("/v1/commands/{sequence}");
    for path in [&by_id, &by_sequence] {
        let plain = system.get(path).await;
        assert_eq!((plain.status, plain.text("/status").as_str()), (200, "pending"), "{plain:?}");
        let early = system.get(&format!("{path}?waitMs=200")).await;
        assert_eq!((early.status, early.text("/status").as_str()), (202, "pending"), "{early:?}");
    }
    let unknown = format!("/v1/commands/{}?waitMs=200", Uuid::now_v7());
    assert_eq!(system.get(&unknown).await.status, 404);
    assert_eq!(system.get(&format!("{by_id}?waitMs=soon")).await.status, 400);

    let start = Instant::now();
    let by_sequence = format!("{by_sequence}?waitMs=30000");
    let preferring = system.request("GET", &by_id).header("Prefer", "wait=30");
    let (first, second, validation) =
        tokio::join!(system.send(preferring), system.get(&by_sequence), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            system.run(Role::Validation)
        });
    for answer in [first, second] {
        let status = answer.text("/status");
        assert_eq!((answer.status, status.as_str()), (200, "accepted"), "{answer:?}");
    }
    assert!(start.elapsed() < TOLD, "{:?}", start.elapsed());
    for worker in [validation, projection] {
        worker.stop().await;
    }
    system.stop().await;
}
