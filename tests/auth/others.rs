//! What is somebody else's, by every route.

use chrono::Utc;
use futures_util::future::join_all;
use serde_json::json;

use super::*;
use crate::harness::{card_order, eventually};

/// What another order, customer or command is called that is not there.
const ABSENT: &str = "0193b7a2-0000-7000-8000-00000000ffff";

/// An answer without what differs by id and by chance.
fn told(answer: &Answer, id: &str) -> (u16, String, Vec<String>) {
    let body = answer.body.to_string().replace(id, "ID");
    let headers = answer.headers.iter().filter(|(name, _)| name.as_str() != "date");
    let mut headers: Vec<String> = headers
        .filter(|(name, _)| name.as_str() != "content-length")
        .map(|(name, value)| format!("{name}: {value:?}"))
        .collect();
    headers.sort_unstable();
    (answer.status, body, headers)
}

struct Shop {
    order: String,
    placed: String,
    cancelled: String,
}

/// Ann's orders, one of which she has called off with a key.
async fn filled(system: &System, edge: &Guarded<'_>, ann: &str) -> Shop {
    system.define("pen", 100, 1_000).await;
    system.register("ann", Some(100_000)).await;
    system.register("bob", Some(100_000)).await;
    let order = card_order("ann", "pen", 1, "tok_ok");
    let first = edge.post("/v1/orders", Some(ann), &order).await;
    assert_eq!(first.status, 201, "{first:?}");
    let second = edge.post("/v1/orders", Some(ann), &order).await;
    let cancel = format!("/v1/orders/{}/cancel", second.text("/orderId"));
    let cancel = edge.request("POST", &cancel, Some(ann)).header("Idempotency-Key", "once");
    let accepted = system.send(cancel.json(&json!({}))).await;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    system.settle().await;
    Shop {
        order: first.text("/orderId"),
        placed: first.text("/commandId"),
        cancelled: second.text("/orderId"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_somebody_elses_is_answered_like_what_is_not_there_by_every_route() {
    let system = System::start().await;
    // All of it is asked for at once.
    let rates = vec!["customer=0".parse().expect("a rate")];
    let auth = AuthConfig::default().with_secret(SECRET).with_limits(rates, Some(1_000));
    let edge = Guarded::with(&system, auth).await;
    let [ann, bob] = ["ann", "bob"].map(|name| token(name, Role::Customer));
    let [shop, ops] = [token("shop", Role::Service), token("ops", Role::Operator)];
    let there = filled(&system, &edge, &ann).await;
    let now = Utc::now().to_rfc3339().replace('+', "%2B");
    let queries = [
        "",
        "version=1",
        "version=9",
        "minVersion=1&waitMs=1",
        "minVersion=9&waitMs=60",
        "waitMs=1",
        "lastEventId=1",
        "status=paid",
        "limit=1",
    ];
    let queries = queries.map(str::to_owned).into_iter().chain([format!("asOf={now}")]);
    let queries: Vec<String> = queries.collect();
    let document = edge.get("/openapi.json", None).await.body;
    let mut reached = 0;
    for (path, item) in document["paths"].as_object().expect("paths") {
        let Some(operation) = item.get("get") else { continue };
        let roles = operation["x-roles"].as_array().cloned().unwrap_or_default();
        if !roles.contains(&json!("customer")) {
            continue;
        }
        let id = match path.split('/').nth(2) {
            Some("orders") => there.order.as_str(),
            Some("customers") => "ann",
            Some("commands") => there.placed.as_str(),
            _ => panic!("say here what {path} shows of somebody"),
        };
        let of = |id: &str, query: &str| format!("{}?{query}", path.replace("{id}", id));
        for token in [&ann, &shop, &ops] {
            let answer = edge.request("GET", &of(id, ""), Some(token)).send().await;
            assert_eq!(answer.expect("an answer").status(), 200, "{path}: it is there");
        }
        let asked = queries.iter().flat_map(|query| [(query, "GET"), (query, "HEAD")]);
        let told = join_all(asked.map(async |(query, method)| {
            let ask = async |id: &str| {
                let request = edge.request(method, &of(id, query), Some(&bob));
                told(&system.send(request.header("If-None-Match", "*")).await, id)
            };
            (format!("{method} {path}?{query}"), ask(id).await, ask(ABSENT).await)
        }));
        for (asked, theirs, nobodys) in told.await {
            assert_eq!(theirs, nobodys, "{asked}");
            assert!([400, 404].contains(&theirs.0), "{asked}: {theirs:?}");
            reached += 1;
        }
        assert_eq!(edge.get(&of(id, ""), Some(&bob)).await.status, 404, "{path}");
    }
    assert!(reached > 100, "{reached}");
    // Places in the stream could be counted through.
    for place in 1..=commands(&system).await {
        let path = format!("/v1/commands/{place}");
        assert_eq!(edge.get(&path, Some(&bob)).await.status, 404);
        assert_eq!(edge.get(&path, Some(&ops)).await.status, 200);
    }
    edge.close().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_changes_what_is_somebody_elses_or_learns_of_it_by_trying() {
    let system = System::start().await;
    let edge = Guarded::open(&system).await;
    let [ann, bob] = ["ann", "bob"].map(|name| token(name, Role::Customer));
    let there = filled(&system, &edge, &ann).await;
    let cancel = async |id: &str, key: &str, headers: &[(&str, &str)]| {
        let path = format!("/v1/orders/{id}/cancel");
        let mut request = edge.request("POST", &path, Some(&bob)).header("Prefer", "wait=20");
        for (name, value) in [("Idempotency-Key", key)].iter().chain(headers) {
            request = request.header(*name, *value);
        }
        let answer = system.send(request.json(&json!({}))).await;
        let command = answer.text("/commandId");
        let mut same = answer.body.clone();
        same["commandId"] = json!(null);
        (answer.status, same.to_string().replace(id, "ID"), command)
    };
    let trusted = [("Millrace-On-Behalf-Of", "ann"), ("Millrace-Actor", "operator:ann")];
    let nobodys = cancel(ABSENT, "once", &[]).await;
    assert_eq!(nobodys.0, 404, "{nobodys:?}");
    assert!(nobodys.1.contains("unknown_order"), "{nobodys:?}");
    for (id, key, headers) in [
        (&there.order, "mine", &[][..]),
        (&there.order, "another", &trusted),
        // The very request that ann has sent, with her key.
        (&there.cancelled, "once", &[]),
    ] {
        let answer = cancel(id, key, headers).await;
        assert_eq!((answer.0, &answer.1), (nobodys.0, &nobodys.1), "{id} {key}");
        // Who has tried it is told the outcome, and nobody else.
        let outcome = format!("/v1/commands/{}", answer.2);
        let told = eventually("the outcome is there", async || {
            let told = edge.get(&outcome, Some(&bob)).await;
            (told.text("/status") == "rejected").then_some(told)
        })
        .await;
        assert_eq!(told.text("/reason"), "unknown_order");
        assert_eq!(edge.get(&outcome, Some(&ann)).await.status, 404);
    }
    assert_eq!(system.order(&there.order).await["status"], "paid");
    let stored = commands(&system).await;
    let mut order = card_order("ann", "pen", 1, "tok_ok");
    let refused = edge.post("/v1/orders", Some(&bob), &order).await;
    assert_eq!((refused.status, refused.text("/type")), (403, "/problems/forbidden".to_owned()));
    order["customerId"] = json!("bob");
    for field in ["onBehalfOf", "actor", "commandId"] {
        let mut order = order.clone();
        order[field] = json!("ann");
        assert_eq!(edge.post("/v1/orders", Some(&bob), &order).await.status, 400, "{field}");
    }
    assert_eq!(commands(&system).await, stored, "nothing was stored");
    assert_eq!(edge.post("/v1/orders", Some(&bob), &order).await.status, 201);
    edge.close().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_do_is_kept_with_their_names_which_customers_are_not_told() {
    let system = System::start().await;
    let edge = Guarded::open(&system).await;
    let (ann, olga) = (token("ann", Role::Customer), token("olga", Role::Operator));
    let there = filled(&system, &edge, &ann).await;
    let shipment = json!({ "carrier": "Ravens", "trackingNumber": "R-1" });
    let ship = format!("/v1/orders/{}/ship", there.order);
    let shipped = edge.post(&ship, Some(&olga), &shipment).await;
    assert_eq!(shipped.status, 200, "{shipped:?}");
    let again = edge.post(&ship, Some(&olga), &shipment).await;
    assert_eq!(again.status, 409, "{again:?}");
    let kept: Vec<(Option<String>, Option<String>)> = sqlx::query_as(
        "select actor, reason from ledger.decisions where subject_id = $1 order by decided_at",
    )
    .bind(&there.order)
    .fetch_all(&system.pool)
    .await
    .expect("the decisions");
    let olga_did = |reason: Option<&str>| (Some("operator:olga".into()), reason.map(str::to_owned));
    let expected =
        [(Some("customer:ann".to_owned()), None), olga_did(None), olga_did(Some("not_allowed"))];
    assert_eq!(kept, expected);
    let explain = format!("/v1/orders/{}/explain", there.order);
    let told = edge.get(&explain, Some(&olga)).await.body.to_string();
    assert!(told.contains("by operator:olga"), "{told}");
    let told = edge.get(&explain, Some(&ann)).await;
    assert_eq!(told.status, 200);
    assert!(!told.body.to_string().contains("olga"), "{told:?}");
    // A message that nobody can read is parked, and discarded by somebody.
    system.publish_raw("order.place", b"no JSON".to_vec()).await;
    let parked = eventually("the message is parked", async || {
        let list = edge.get("/v1/ops/parked", Some(&olga)).await;
        list.body["items"][0]["sequence"].as_u64()
    })
    .await;
    let discard = json!({ "sequences": [parked], "why": "a test" });
    let discarded = edge.post("/v1/ops/parked/discard", Some(&olga), &discard).await;
    assert_eq!(discarded.status, 200, "{discarded:?}");
    let actor: String = sqlx::query_scalar("select actor from journal.audit")
        .fetch_one(&system.pool)
        .await
        .expect("the audit table");
    assert_eq!(actor, "operator:olga");
    edge.close().await;
    system.stop().await;
}
