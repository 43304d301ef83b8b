//! Pages of other origins (CORS), and answers that are compressed on their way.

use millrace_api::ApiConfig;
use reqwest::Method;
use reqwest::header::ACCEPT_ENCODING;
use serde_json::json;

use crate::harness::{Answer, System, card_order, usd};
use crate::past::Beside;

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_named_origins_can_read_answers_and_errors_and_no_others_any() {
    let system = System::start().await;
    let (nats, redis) = (system.config.nats.clone(), system.config.redis.clone());
    let named = vec!["https://shop.example".parse().expect("an origin")];
    let config = ApiConfig::new(([127, 0, 0, 1], 0).into(), nats, redis);
    let edge = Beside::open(config.with_cors_origins(named)).await;
    let client = reqwest::Client::new();
    let send = async |method: Method, path: &str, origin: &str| -> Answer {
        let request = client.request(method, format!("{}{path}", edge.http));
        let request = request.header("Origin", origin);
        system.send(request.header("Access-Control-Request-Method", "POST")).await
    };
    // What is answered by the routes, by axum itself, before any route, and to the question before.
    for (method, path, status) in [
        (Method::GET, "/livez", 200),
        (Method::GET, "/v1/products/nothing", 404),
        (Method::GET, "/v1/nothing", 404),
        (Method::PATCH, "/v1/orders", 405),
        (Method::POST, "/v1/orders", 400),
        (Method::OPTIONS, "/v1/orders", 200),
    ] {
        let answer = send(method.clone(), path, "https://shop.example").await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        let allowed = answer.header("access-control-allow-origin");
        assert_eq!(allowed, "https://shop.example", "{method} {path}: {answer:?}");
        if status >= 400 {
            let kind = answer.header("content-type");
            assert_eq!(kind, "application/problem+json", "{method} {path}: {answer:?}");
            assert_eq!(answer.body["status"], status, "{method} {path}: {answer:?}");
        }
        let answer = send(method.clone(), path, "https://other.example").await;
        let allowed = answer.header("access-control-allow-origin");
        assert_ne!(allowed, "https://other.example", "{method} {path}: {answer:?}");
        assert_ne!(allowed, "*", "{method} {path}: {answer:?}");
    }
    edge.close().await;
    // Where none is named, none may.
    let answer =
        client.get(format!("{}/livez", system.http)).header("Origin", "https://shop.example");
    assert_eq!(system.send(answer).await.header("access-control-allow-origin"), "");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_answer_has_a_weak_tag_by_which_it_is_known_again() {
    let system = System::start().await;
    system.register("ann", None).await;
    // Small answers are not compressed.
    let name = "Box of cardboard ".repeat(11);
    let mut order = card_order("ann", "box-0", 1, "tok_ok");
    order["lines"] =
        (0..5).map(|at| json!({ "productId": format!("box-{at}"), "quantity": 1 })).collect();
    for at in 0..5 {
        let product = json!({
            "name": name.trim(), "brand": "Acme", "category": "Things", "price": usd(1_000), "initialStock": 5,
        });
        assert_eq!(
            system.put_and_wait(&format!("/v1/products/box-{at}"), &product).await.status,
            200
        );
    }
    let id = system.post_and_wait("/v1/orders", &order).await.text("/orderId");
    system.order_in(&id, "paid").await;
    let client = reqwest::Client::new();
    let get = async |encoding: &str, known: &str| {
        let request = client.get(format!("{}/v1/orders/{id}", system.http));
        system.send(request.header(ACCEPT_ENCODING, encoding).header("If-None-Match", known)).await
    };
    let plain = get("identity", "").await;
    let tag = plain.header("etag");
    assert_eq!((plain.status, plain.header("content-encoding")), (200, ""), "{plain:?}");
    assert!(tag.starts_with('"'), "{plain:?}");
    for encoding in ["gzip", "br"] {
        let packed = get(encoding, "").await;
        assert_eq!(packed.header("content-encoding"), encoding, "{packed:?}");
        assert_eq!(packed.header("etag"), format!("W/{tag}"), "{packed:?}");
        let known = get(encoding, packed.header("etag")).await;
        assert_eq!(known.status, 304, "{known:?}");
    }
    system.stop().await;
}
