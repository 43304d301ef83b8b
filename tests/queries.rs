//! Questions over NATS: the same answers as over HTTP, from any replica, and every role is a micro
//! service that tells its version and what it has done.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::Message;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use millrace_api::live::LiveConfig;
use millrace_workers::Role;
use serde_json::{Value, json};
use tokio::time::timeout;
use uuid::Uuid;

use crate::harness::{System, card_order, eventually};
use crate::live::Edge;

/// The roles as they name themselves.
const ROLES: [&str; 6] =
    ["api", "payment", "persistence", "projection", "reservations", "validation"];

async fn ask(system: &System, about: &str, id: &str, with: &str) -> Message {
    let subject = system.topology.query(about, id);
    let request = system.nats.request(subject, with.to_owned().into_bytes().into());
    timeout(Duration::from_secs(40), request).await.expect("in time").expect("an answer")
}

fn body(message: &Message) -> Value {
    serde_json::from_slice(&message.payload).expect("JSON")
}

fn header<'m>(message: &'m Message, name: &str) -> &'m str {
    let headers = message.headers.as_ref().expect("headers");
    headers.get(name).map_or("", |value| value.as_str())
}

/// Asks every micro service on the server; the answers of this system's roles by their names.
async fn all(system: &System, verb: &str) -> BTreeMap<String, Vec<Value>> {
    let inbox = system.nats.new_inbox();
    let mut answers = system.nats.subscribe(inbox.clone()).await.expect("a subscription");
    system
        .nats
        .publish_with_reply(format!("$SRV.{verb}"), inbox, "".into())
        .await
        .expect("a question");
    let mut found: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    while let Ok(Some(answer)) = timeout(Duration::from_millis(700), answers.next()).await {
        let answer = body(&answer);
        let name = answer["name"].as_str().expect("a name").to_owned();
        if let Some(role) = name.strip_prefix(&format!("{}-", system.topology.namespace())) {
            found.entry(role.to_owned()).or_default().push(answer);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_over_nats_is_answered_like_one_over_http() {
    let system = System::start().await;
    system.register("ann", Some(5_000)).await;
    system.define("pen", 100, 5).await;
    let placed = system.post_and_wait("/v1/orders", &card_order("ann", "pen", 1, "tok_ok")).await;
    let (order, command) = (placed.text("/orderId"), placed.text("/commandId"));
    system.settle().await;
    let restock = json!({ "productId": "pen", "quantity": 1 });
    let sequence = system.publish("product.restock", &restock).await.to_string();
    for (about, id, path) in [
        ("order", order.as_str(), format!("/v1/orders/{order}")),
        ("customer", "ann", "/v1/customers/ann".to_owned()),
        ("command", command.as_str(), format!("/v1/commands/{command}")),
    ] {
        let (over_nats, over_http) = (ask(&system, about, id, "").await, system.get(&path).await);
        assert_eq!(body(&over_nats), over_http.body, "{about}");
        assert_eq!(header(&over_nats, "Millrace-Status"), "200");
        let version = over_http.header("etag").trim_matches('"').to_owned();
        assert_eq!(header(&over_nats, "Millrace-Version"), version, "{about}");
        assert_eq!(header(&over_nats, "Nats-Service-Error-Code"), "");
    }
    let outcome = ask(&system, "command", &sequence, "{\"waitMs\":20000}").await;
    assert_eq!(body(&outcome)["status"], "accepted", "{outcome:?}");

    let early = ask(&system, "order", &order, "{\"minVersion\":3,\"waitMs\":200}").await;
    assert_eq!(header(&early, "Millrace-Status"), "202");
    assert_eq!((header(&early, "Millrace-Version"), &body(&early)["version"]), ("2", &json!(2)));
    let (late, shipped) =
        tokio::join!(ask(&system, "order", &order, "{\"minVersion\":3,\"waitMs\":30000}"), async {
            let body = json!({ "carrier": "Post", "trackingNumber": "1" });
            system.post_and_wait(&format!("/v1/orders/{order}/ship"), &body).await
        });
    assert_eq!((body(&late), header(&late, "Millrace-Status")), (shipped.body, "200"));

    let nobody = Uuid::now_v7().to_string();
    for (about, id, with, status, problem) in [
        ("order", nobody.as_str(), "", "404", "/problems/not-found"),
        ("customer", "nobody", "", "404", "/problems/not-found"),
        ("command", nobody.as_str(), "", "404", "/problems/not-found"),
        ("order", "7", "", "400", "/problems/validation"),
        ("order", order.as_str(), "no JSON", "400", "/problems/validation"),
        ("order", order.as_str(), "{\"minversion\":1}", "400", "/problems/validation"),
    ] {
        let answer = ask(&system, about, id, with).await;
        assert_eq!(header(&answer, "Nats-Service-Error-Code"), status, "{about} {id} {with}");
        assert!(!header(&answer, "Nats-Service-Error").is_empty());
        assert_eq!(body(&answer)["type"], problem);
        assert_eq!(body(&answer)["status"].to_string(), status);
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_role_is_a_micro_service_with_its_version_and_counters() {
    let system = System::start().await;
    system.register("ann", None).await;
    system.define("pen", 100, 50).await;
    join_all((0..5).map(async |_| {
        let order = card_order("ann", "pen", 1, "tok_ok");
        assert_eq!(system.post_and_wait("/v1/orders", &order).await.status, 201);
    }))
    .await;
    system.publish_raw("order.place", b"no JSON".to_vec()).await;
    system.settle().await;
    for verb in ["PING", "INFO", "STATS"] {
        let found = eventually("all roles answer", async || {
            let found = all(&system, verb).await;
            (found.len() == ROLES.len()).then_some(found)
        })
        .await;
        assert_eq!(found.keys().collect::<Vec<_>>(), ROLES, "{verb}");
        for answer in found.values().flatten() {
            assert_eq!(answer["version"], env!("CARGO_PKG_VERSION"), "{answer}");
        }
    }
    let stats = all(&system, "STATS").await;
    let data = |role: &str| stats[role][0]["endpoints"][0]["data"].clone();
    let count = |role: &str, what: &str| data(role)[what].as_u64().expect("a number");
    // Seven commands of this test, and one that cannot be read.
    assert_eq!(count("validation", "processed") + count("validation", "parked"), 8);
    assert_eq!(count("validation", "parked"), 1);
    assert_eq!(count("payment", "failed"), 0);
    assert!(count("persistence", "processed") >= 12, "{stats:?}");
    assert!((1..=count("projection", "processed")).contains(&count("projection", "batches")));
    assert!(data("projection")["redelivered"].is_u64());
    assert_eq!(body(&ask(&system, "worker", "persistence", "").await), data("persistence"));

    // Another replica is one more of the same name, and is gone when it is stopped.
    let replica = system.run(Role::Persistence);
    let persistence = async |count: usize| {
        eventually("as many replicas", async || {
            let found = all(&system, "INFO").await;
            (found["persistence"].len() == count).then_some(())
        })
        .await;
    };
    persistence(2).await;
    replica.stop().await;
    persistence(1).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_question_is_answered_once_by_one_of_the_replicas() {
    let system = System::start().await;
    let other = Edge::start(&system, LiveConfig::default()).await;
    system.register("ann", None).await;
    system.settle().await;
    eventually("both are there", async || {
        all(&system, "PING").await.get("api").is_some_and(|found| found.len() == 2).then_some(())
    })
    .await;
    let asked = 200;
    for answer in join_all((0..asked).map(|_| ask(&system, "customer", "ann", ""))).await {
        assert_eq!(body(&answer)["customerId"], "ann");
    }
    let stats = all(&system, "STATS").await;
    let counts: Vec<u64> = stats["api"]
        .iter()
        .flat_map(|replica| replica["endpoints"].as_array().expect("endpoints"))
        .filter(|endpoint| endpoint["name"] == "customer")
        .map(|endpoint| endpoint["data"]["documents"].as_u64().expect("a number"))
        .collect();
    assert_eq!((counts.len(), counts.iter().sum::<u64>()), (2, asked), "{counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    other.stop().await;
    system.stop().await;
}
