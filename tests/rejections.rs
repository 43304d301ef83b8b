//! Every reason for which an order is rejected or a command refused, by HTTP and by NATS.

use serde_json::{Value, json};

use crate::harness::{System, account_order, card_order, usd};

/// Places an order that must be rejected, by HTTP and then by NATS, and checks that nothing has
/// been reserved for it.
async fn rejected(system: &System, order: &Value, reason: &str) {
    let answer = system.post_and_wait("/v1/orders", order).await;
    assert_eq!(answer.status, 422, "{answer:?}");
    assert_eq!(answer.text("/reason"), reason, "{answer:?}");
    let id = answer.text("/orderId");
    let view = system.order_in(&id, "rejected").await;
    assert_eq!(view["reason"], reason);
    let sequence = system.publish("order.place", order).await;
    let id = system.outcome(&sequence.to_string()).await["orderId"]
        .as_str()
        .expect("an order")
        .to_owned();
    let view = system.order_in(&id, "rejected").await;
    assert_eq!(view["reason"], reason);
    let steps = system.steps(&id).await;
    assert_eq!(steps.last().map(String::as_str), Some("rejected"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sold_is_rejected_for_the_right_reason_and_holds_nothing() {
    let system = System::start().await;
    system.register("eve", Some(1_000)).await;
    system.register("cash", None).await;
    system.define("mug", 500, 5).await;
    system.define("old", 500, 5).await;
    system.define("gold", 1_000_000_000_000, 5).await;
    assert_eq!(system.post_and_wait("/v1/products/old/retire", &json!({})).await.status, 200);
    let euro = json!({"name": "Euro", "brand": "B", "category": "C", "initialStock": 5,
        "price": {"amount": 1, "currency": "EUR"}});
    assert_eq!(system.put_and_wait("/v1/products/euro", &euro).await.status, 200);

    rejected(&system, &card_order("nobody", "mug", 1, "tok_ok"), "unknown_customer").await;
    rejected(&system, &card_order("eve", "nothing", 1, "tok_ok"), "unknown_product").await;
    rejected(&system, &card_order("eve", "old", 1, "tok_ok"), "product_inactive").await;
    rejected(&system, &card_order("eve", "mug", 6, "tok_ok"), "out_of_stock").await;
    rejected(&system, &account_order("eve", "mug", 3), "insufficient_credit").await;
    rejected(&system, &account_order("cash", "mug", 1), "insufficient_credit").await;
    rejected(&system, &account_order("eve", "euro", 1), "insufficient_credit").await;
    rejected(&system, &card_order("eve", "gold", 2, "tok_ok"), "amount_too_large").await;
    let mut cheap = card_order("eve", "mug", 1, "tok_ok");
    cheap["lines"][0]["unitPrice"] = usd(1);
    rejected(&system, &cheap, "price_changed").await;
    let mut mixed = card_order("eve", "mug", 1, "tok_ok");
    mixed["lines"] = json!([
        { "productId": "mug", "quantity": 1 }, { "productId": "euro", "quantity": 1 },
    ]);
    rejected(&system, &mixed, "mixed_currencies").await;
    for token in ["tok_declined", "tok_insufficient_funds", "tok_of_nobody"] {
        rejected(&system, &card_order("eve", "mug", 1, token), "payment_declined").await;
    }

    // What the declined orders had reserved is free again; the others never had anything.
    system.settle().await;
    system.stock_is("mug", [5, 0, 0]).await;
    let customer = system.get("/v1/customers/eve").await.body;
    assert_eq!(customer["creditUsed"]["amount"], 0);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_command_says_why_and_leaves_the_history_alone() {
    let system = System::start().await;
    system.register("kim", Some(10_000)).await;
    system.define("hat", 1_000, 3).await;
    let nowhere = "018f2d5e-7b3a-7c3e-9c1d-000000000001";
    let answer = system.post_and_wait(&format!("/v1/orders/{nowhere}/cancel"), &json!({})).await;
    assert_eq!((answer.status, answer.text("/reason").as_str()), (404, "unknown_order"));

    let placed = system.post_and_wait("/v1/orders", &card_order("kim", "hat", 1, "tok_ok")).await;
    assert_eq!(placed.status, 201, "{placed:?}");
    let id = placed.text("/orderId");
    let answer = system.post_and_wait(&format!("/v1/orders/{id}/deliver"), &json!({})).await;
    assert_eq!((answer.status, answer.text("/reason").as_str()), (409, "not_allowed"));
    assert!(answer.text("/detail").contains("paid"), "{answer:?}");
    assert_eq!(system.steps(&id).await, ["validated", "paid"]);

    let again = json!({ "customerId": "kim", "name": "Another Kim" });
    let answer = system.post_and_wait("/v1/customers", &again).await;
    assert_eq!((answer.status, answer.text("/reason").as_str()), (409, "already_exists"));
    let answer = system.post_and_wait("/v1/products/none/restock", &json!({ "quantity": 1 })).await;
    assert_eq!((answer.status, answer.text("/reason").as_str()), (404, "unknown_product"));
    let limit = json!({ "creditLimit": usd(1) });
    let answer = system.put_and_wait("/v1/customers/nobody/credit-limit", &limit).await;
    assert_eq!((answer.status, answer.text("/reason").as_str()), (404, "unknown_customer"));

    assert_eq!(
        system.post_and_wait("/v1/orders", &account_order("kim", "hat", 1)).await.status,
        201
    );
    let euros = json!({ "creditLimit": { "amount": 1, "currency": "EUR" } });
    let answer = system.put_and_wait("/v1/customers/kim/credit-limit", &euros).await;
    assert_eq!((answer.status, answer.text("/reason").as_str()), (409, "currency_mismatch"));
    system.stop().await;
}
