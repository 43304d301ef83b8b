//! How much one caller may ask for.

use std::time::Instant;

use serde_json::json;

use super::*;
use crate::harness::{card_order, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_too_much_is_told_when_to_come_back_and_nothing_is_done() {
    let system = System::start().await;
    system.define("pen", 100, 1_000).await;
    for customer in ["ann", "bob"] {
        system.register(customer, None).await;
    }
    let rates = ["customer=1", "anonymous=1"].map(|rate| rate.parse().expect("a rate"));
    let auth = AuthConfig::default().with_secret(SECRET).with_limits(rates.to_vec(), None);
    let edge = Guarded::with(&system, auth).await;
    let [ann, bob] = ["ann", "bob"].map(|name| token(name, Role::Customer));
    let (service, order) = (token("shop", Role::Service), card_order("ann", "pen", 1, "tok_ok"));
    let place = async |token: Option<&str>| {
        system.send(edge.request("POST", "/v1/orders", token).json(&order)).await
    };
    let start = Instant::now();
    let mut answers = Vec::new();
    for _ in 0..8 {
        answers.push(place(Some(&ann)).await);
    }
    let limited: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 429).collect();
    let taken = answers.iter().filter(|answer| answer.status == 202).count();
    // Two at once, and one each second.
    let most = 2 + usize::try_from(start.elapsed().as_secs()).expect("seconds") + 1;
    assert!((2..=most).contains(&taken) && !limited.is_empty(), "{answers:?}");
    assert_eq!(taken + limited.len(), answers.len(), "{answers:?}");
    for answer in limited {
        assert_eq!(answer.text("/type"), "/problems/too-many-requests");
        assert_eq!(answer.header("retry-after"), "1");
    }
    let orders = system.pool.clone();
    system.settle().await;
    let placed: i64 = sqlx::query_scalar("select count(*) from journal.orders")
        .fetch_one(&orders)
        .await
        .expect("the journal");
    assert_eq!(placed, i64::try_from(taken).expect("a few"), "what was refused had no effect");
    assert_eq!(edge.get("/v1/customers/bob", Some(&bob)).await.status, 200);
    for _ in 0..50 {
        assert_eq!(edge.get("/v1/customers/bob", Some(&service)).await.status, 200);
    }
    // Who has no token, or tries out some, is held back by address.
    let mut guesses = Vec::new();
    for guess in 0..8 {
        guesses.push(edge.get("/v1/products", Some(&format!("guess-{guess}"))).await.status);
    }
    assert!(guesses.contains(&401) && guesses.contains(&429), "{guesses:?}");
    eventually("it is let in again", async || {
        (place(Some(&ann)).await.status == 202).then_some(())
    })
    .await;
    edge.close().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_has_few_open_streams_and_each_ends_with_its_token() {
    let system = System::start().await;
    for customer in ["ann", "bob"] {
        system.register(customer, None).await;
    }
    let mut auth = AuthConfig::default().with_secret(SECRET).with_limits(Vec::new(), Some(2));
    auth.tokens.jwt_skew = 0;
    let edge = Guarded::with(&system, auth).await;
    let ann = token("ann", Role::Customer);
    let open = async |token: &str| {
        let request = edge.request("GET", "/v1/customers/ann/stream", Some(token));
        request.send().await.expect("an answer")
    };
    let (first, second) = (open(&ann).await, open(&ann).await);
    assert_eq!([first.status(), second.status()], [200, 200]);
    let third = open(&ann).await;
    assert_eq!(third.status(), 429);
    assert!(third.headers().contains_key("retry-after"));
    let shop = token("shop", Role::Service);
    let many: Vec<_> = [open(&shop).await, open(&shop).await, open(&shop).await].into();
    assert!(many.iter().all(|it| it.status() == 200), "a service has them for others");
    drop(first);
    eventually("there is room again", async || (open(&ann).await.status() == 200).then_some(()))
        .await;
    drop(second);
    let (expected, soon) = (TokenConfig::default().expected(), Duration::from_secs(2));
    let short = issue(SECRET.as_bytes(), &expected, "ann", Role::Customer, soon).expect("a token");
    let stream = eventually("there is room", async || {
        let stream = open(&short).await;
        (stream.status() == 200).then_some(stream)
    })
    .await;
    let text = tokio::time::timeout(Duration::from_secs(20), stream.text()).await;
    let text = text.expect("it ends with its token").expect("the whole stream");
    assert!(text.contains("\"customerId\":\"ann\""), "{text}");
    assert_eq!(edge.get("/v1/customers/ann", Some(&short)).await.status, 401);
    edge.close().await;
    system.stop().await;
}

/// A limit is asked for in no other way than the rest: without signing in there is none.
#[tokio::test(flavor = "multi_thread")]
async fn without_sign_in_nobody_is_limited_unless_it_is_said() {
    let system = System::without_workers().await;
    for _ in 0..300 {
        assert_ne!(system.get("/v1/products").await.status, 429);
    }
    let rates = vec!["anonymous=1".parse().expect("a rate")];
    let edge = Guarded::with(&system, AuthConfig::default().with_limits(rates, None)).await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        let answer = edge.post("/v1/customers", None, &json!({})).await;
        statuses.push(answer.status);
    }
    assert!(statuses.contains(&400) && statuses.contains(&429), "{statuses:?}");
    edge.close().await;
    system.stop().await;
}
