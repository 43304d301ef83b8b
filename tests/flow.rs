//! An order goes in, by HTTP or by NATS, and is validated, charged, persisted and seen.

use serde_json::json;

use crate::harness::{System, account_order, card_order};

#[tokio::test(flavor = "multi_thread")]
async fn an_order_over_http_is_validated_charged_persisted_and_seen() {
    let system = System::start().await;
    system.register("ada", Some(10_000)).await;
    system.define("mug", 1_250, 10).await;
    let placed = system.post("/v1/orders", &card_order("ada", "mug", 2, "tok_ok")).await;
    assert_eq!(placed.status, 202, "{placed:?}");
    let id = placed.text("/orderId");
    // Right after the 202 the order is known.
    assert_eq!(system.get(&format!("/v1/orders/{id}")).await.status, 200);
    let order = system.order_in(&id, "paid").await;
    assert_eq!(order["version"], 2);
    assert_eq!(order["total"], json!({ "amount": 2_500, "currency": "USD" }));
    assert_eq!(order["lines"][0]["name"], "Product mug");
    assert_eq!(order["lines"][0]["unitPrice"]["amount"], 1_250);
    assert_eq!(order["timeline"][0]["status"], "validated");
    assert_eq!(order["timeline"][1]["status"], "paid");
    let list = system.get("/v1/customers/ada/orders").await;
    assert_eq!(list.text("/items/0/orderId"), id);
    system.stock_is("mug", [8, 2, 0]).await;
    system.settle().await;
    assert_eq!(system.steps(&id).await, ["validated", "paid"]);
    let (status, total): (String, i64) =
        sqlx::query_as("select status, total from journal.orders where order_id = $1::uuid")
            .bind(&id)
            .fetch_one(&system.pool)
            .await
            .expect("the journal has the order");
    assert_eq!((status.as_str(), total), ("paid", 2_500));
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_over_nats_without_any_ids_is_carried_out_and_its_outcome_can_be_asked_for() {
    let system = System::start().await;
    system.register("bob", Some(10_000)).await;
    system.define("pen", 300, 10).await;
    let sequence = system.publish("order.place", &account_order("bob", "pen", 3)).await;
    let outcome = system.outcome(&sequence.to_string()).await;
    assert_eq!(outcome["status"], "accepted");
    let id = outcome["orderId"].as_str().expect("an order id");
    let order = system.order_in(id, "paid").await;
    assert_eq!(order["payment"]["method"], "account");
    system.settle().await;
    let customer = system.get("/v1/customers/bob").await.body;
    assert_eq!(customer["creditUsed"]["amount"], 900);
    assert_eq!(customer["creditAvailable"]["amount"], 9_100);
    system.stop().await;
}
