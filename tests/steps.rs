//! An order's further steps: shipping, delivery, refunds, and cancellation at every stage.

use std::time::Duration;

use millrace_shared::log::{Entry, Log};
use millrace_shared::message::{Event, Subject};
use millrace_workers::Role;
use serde_json::json;
use uuid::Uuid;

use crate::harness::{System, account_order, card_order, eventually};

/// What the sandbox gateway has booked for an order: charges that stand, refunds.
async fn booked(system: &System, order_id: &str) -> (i64, i64) {
    let key = format!("charge-{order_id}");
    let charges = sqlx::query_scalar(
        "select count(*) from sandbox.charges where idempotency_key = $1 and outcome = 'succeeded'",
    );
    let refunds = sqlx::query_scalar(
        "select count(*) from sandbox.refunds join sandbox.charges using (charge_id)
         where charges.idempotency_key = $1",
    );
    (
        charges.bind(&key).fetch_one(&system.pool).await.expect("the book is read"),
        refunds.bind(&key).fetch_one(&system.pool).await.expect("the book is read"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_shipped_delivered_and_refunded_over_http() {
    let system = System::start().await;
    system.register("ann", None).await;
    system.define("box", 700, 9).await;
    let placed = system.post_and_wait("/v1/orders", &card_order("ann", "box", 2, "tok_ok")).await;
    assert_eq!(placed.status, 201, "{placed:?}");
    let id = placed.text("/orderId");
    let shipment = json!({ "carrier": "Post", "trackingNumber": "RR123" });
    let answer = system.post_and_wait(&format!("/v1/orders/{id}/ship"), &shipment).await;
    assert_eq!((answer.status, answer.text("/status").as_str()), (200, "shipped"), "{answer:?}");
    assert_eq!(answer.body["shipment"], shipment);
    system.stock_is("box", [7, 0, 2]).await;
    let answer = system.post_and_wait(&format!("/v1/orders/{id}/cancel"), &json!({})).await;
    assert_eq!(answer.status, 409, "what has left cannot be cancelled");
    let answer = system.post_and_wait(&format!("/v1/orders/{id}/deliver"), &json!({})).await;
    assert_eq!(answer.text("/status"), "delivered");
    let answer = system.post_and_wait(&format!("/v1/orders/{id}/refund"), &json!({})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let order = system.order_in(&id, "refunded").await;
    assert_eq!(order["payment"]["status"], "refunded");
    assert_eq!(
        system.steps(&id).await,
        ["validated", "paid", "shipped", "delivered", "refund-requested", "refunded"]
    );
    assert_eq!(booked(&system, &id).await, (1, 1));
    system.settle().await;
    system.stock_is("box", [7, 0, 2]).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_steps_go_over_nats() {
    let system = System::start().await;
    system.publish("customer.register", &json!({ "customerId": "lee", "name": "Lee" })).await;
    let limit =
        json!({ "customerId": "lee", "creditLimit": { "amount": 5_000, "currency": "USD" } });
    let sequence = system.publish("customer.set-credit-limit", &limit).await;
    assert_eq!(system.outcome(&sequence.to_string()).await["status"], "accepted");
    let define = json!({ "productId": "cup", "name": "Cup", "brand": "B", "category": "C",
        "price": { "amount": 100, "currency": "USD" } });
    system.publish("product.define", &define).await;
    let sequence =
        system.publish("product.restock", &json!({ "productId": "cup", "quantity": 4 })).await;
    assert_eq!(system.outcome(&sequence.to_string()).await["status"], "accepted");
    system.stock_is("cup", [4, 0, 0]).await;
    let sequence = system.publish("order.place", &account_order("lee", "cup", 4)).await;
    let outcome = system.outcome(&sequence.to_string()).await;
    let id = outcome["orderId"].as_str().expect("an order").to_owned();
    system.order_in(&id, "paid").await;
    let ship = json!({ "orderId": id, "carrier": "Post", "trackingNumber": "1" });
    system.publish("order.ship", &ship).await;
    system.order_in(&id, "shipped").await;
    system.publish("order.deliver", &json!({ "orderId": id })).await;
    system.order_in(&id, "delivered").await;
    system.publish("order.refund", &json!({ "orderId": id, "reason": "broken" })).await;
    system.order_in(&id, "refunded").await;
    system.publish("product.retire", &json!({ "productId": "cup" })).await;
    eventually("the product is retired", async || {
        (system.get("/v1/products/cup").await.body["active"] == false).then_some(())
    })
    .await;
    system.settle().await;
    assert_eq!(system.get("/v1/customers/lee").await.body["creditUsed"]["amount"], 0);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_cancelled_while_pending_costs_nothing() {
    let system = System::without_workers().await;
    let setup = system.run(Role::Validation);
    let view = system.run(Role::Projection);
    system.register("pat", None).await;
    system.define("map", 100, 5).await;
    setup.stop().await;
    let placed = system.post("/v1/orders", &card_order("pat", "map", 1, "tok_ok")).await;
    let id = placed.text("/orderId");
    assert_eq!(system.order(&id).await["status"], "pending");
    assert_eq!(system.post(&format!("/v1/orders/{id}/cancel"), &json!({})).await.status, 202);
    let validation = system.run(Role::Validation);
    system.order_in(&id, "cancelled").await;
    let payment = system.run(Role::Payment);
    system.settle().await;
    // Payment may see the acceptance before the cancellation: then the charge is given back.
    let steps = system.steps(&id).await;
    match booked(&system, &id).await {
        (0, 0) => assert_eq!(steps, ["validated", "cancelled"]),
        (1, 1) => assert_eq!(steps, ["validated", "cancelled", "refunded"]),
        other => panic!("charges and refunds: {other:?} after {steps:?}"),
    }
    system.stock_is("map", [5, 0, 0]).await;
    for worker in [validation, payment, view] {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_cancelled_before_its_payment_gives_its_stock_back_and_is_not_charged() {
    let system = System::without_workers().await;
    let workers = [system.run(Role::Validation), system.run(Role::Projection)];
    system.register("sam", None).await;
    system.define("bag", 100, 5).await;
    let placed = system.post("/v1/orders", &card_order("sam", "bag", 2, "tok_ok")).await;
    let id = placed.text("/orderId");
    system.order_in(&id, "validated").await;
    system.stock_is("bag", [3, 2, 0]).await;
    let answer = system.post_and_wait(&format!("/v1/orders/{id}/cancel"), &json!({})).await;
    assert_eq!(answer.text("/status"), "cancelled", "{answer:?}");
    system.stock_is("bag", [5, 0, 0]).await;
    // What comes at once is charged as it comes, and given back if it was cancelled meanwhile.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let payment = system.run(Role::Payment);
    system.settle().await;
    assert_eq!(system.steps(&id).await, ["validated", "cancelled"]);
    assert_eq!(booked(&system, &id).await, (0, 0));
    payment.stop().await;
    for worker in workers {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_charge_raced_by_a_cancellation_ends_refunded() {
    let system = System::start().await;
    system.register("joe", None).await;
    system.define("lamp", 4_000, 5).await;
    // The gateway takes two seconds; the cancellation comes in between.
    let placed = system.post("/v1/orders", &card_order("joe", "lamp", 1, "tok_slow")).await;
    let id = placed.text("/orderId");
    system.order_in(&id, "validated").await;
    let answer = system.post_and_wait(&format!("/v1/orders/{id}/cancel"), &json!({})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    system.settle().await;
    let (charges, refunds) = booked(&system, &id).await;
    assert_eq!(charges, refunds, "what was charged was refunded");
    let status = system.order(&id).await["status"].as_str().unwrap_or("").to_owned();
    assert_eq!(status, if charges == 1 { "refunded" } else { "cancelled" });
    system.stock_is("lamp", [5, 0, 0]).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_cancelled_after_its_payment_is_refunded_once_in_full() {
    let system = System::start().await;
    system.register("una", Some(10_000)).await;
    system.define("fan", 3_000, 5).await;
    for order in [card_order("una", "fan", 1, "tok_ok"), account_order("una", "fan", 1)] {
        let card = order["payment"]["method"] == "card";
        let placed = system.post_and_wait("/v1/orders", &order).await;
        assert_eq!(placed.status, 201, "{placed:?}");
        let id = placed.text("/orderId");
        let cancel = json!({ "reason": "changed my mind" });
        let answer = system.post_and_wait(&format!("/v1/orders/{id}/cancel"), &cancel).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        system.order_in(&id, "refunded").await;
        system.settle().await;
        assert_eq!(system.steps(&id).await, ["validated", "paid", "cancelled", "refunded"]);
        assert_eq!(booked(&system, &id).await, if card { (1, 1) } else { (0, 0) });
    }
    system.stock_is("fan", [5, 0, 0]).await;
    assert_eq!(system.get("/v1/customers/una").await.body["creditUsed"]["amount"], 0);
    system.stop().await;
}

/// Until validation did it, payment paid orders on account; one of then may still wait.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_on_account_that_an_earlier_version_left_to_payment_is_paid_by_it() {
    let system = System::start().await;
    system.register("una", Some(10_000)).await;
    system.define("fan", 3_000, 5).await;
    let placed = system.post_and_wait("/v1/orders", &account_order("una", "fan", 1)).await;
    let known = placed.text("/orderId");
    let history = system.history(Subject::Order, &known).await;
    let validated = &history.first().expect("it is validated").event;
    // The same order under another id, of which nobody but the log knows.
    let id = Uuid::now_v7().to_string();
    let text = serde_json::to_string(validated).expect("JSON").replace(&known, &id);
    let mut event = Event::decode(text.as_bytes()).expect("an event");
    event.id.0 = Uuid::now_v7();
    // Payment leaves to validation what was accepted just now.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let log = Log::new(system.nats.clone(), system.topology.events_stream());
    let entry = Entry::event(&system.topology, &event, 0).expect("an entry");
    log.append(vec![entry], Duration::from_secs(5)).await.expect("it is appended");
    system.order_in(&id, "paid").await;
    assert_eq!(system.steps(&id).await, ["validated", "paid"]);
    assert_eq!(booked(&system, &id).await, (0, 0), "no gateway is asked");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_times_out_or_flakes_is_asked_again_and_charges_once() {
    let system = System::start().await;
    system.register("max", None).await;
    system.define("tin", 100, 50).await;
    for token in ["tok_timeout", "tok_flaky", "tok_slow"] {
        let placed = system.post("/v1/orders", &card_order("max", "tin", 1, token)).await;
        let id = placed.text("/orderId");
        system.order_in(&id, "paid").await;
        assert_eq!(booked(&system, &id).await, (1, 0), "{token}");
    }
    system.stop().await;
}

/// Whoever updates from a build with other consumers has these begin anew as well.
#[tokio::test(flavor = "multi_thread")]
async fn workers_whose_consumers_are_gone_make_them_anew_and_do_nothing_twice() {
    let system = System::start().await;
    system.register("ann", None).await;
    system.define("box", 700, 9).await;
    let placed = async |pieces: u32| {
        let order = card_order("ann", "box", pieces, "tok_ok");
        let id = system.post_and_wait("/v1/orders", &order).await.text("/orderId");
        system.order_in(&id, "paid").await;
        id
    };
    let (shipped, kept, cancelled) = (placed(2).await, placed(1).await, placed(3).await);
    let shipment = json!({ "carrier": "Post", "trackingNumber": "RR123" });
    system.post_and_wait(&format!("/v1/orders/{shipped}/ship"), &shipment).await;
    system.order_in(&shipped, "shipped").await;
    system.post_and_wait(&format!("/v1/orders/{cancelled}/cancel"), &json!({})).await;
    system.order_in(&cancelled, "refunded").await;
    system.settle().await;
    system.stock_is("box", [6, 1, 2]).await;

    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let events = jetstream.get_stream(system.topology.events_stream()).await.expect("EVENTS");
    for worker in ["payment", "reservations"] {
        for (consumer, _) in system.topology.consumers(worker) {
            events.delete_consumer(&consumer).await.expect("the consumer is removed");
        }
    }
    let late = placed(1).await;
    system.post_and_wait(&format!("/v1/orders/{late}/cancel"), &json!({})).await;
    system.order_in(&late, "refunded").await;
    system.settle().await;
    system.stock_is("box", [6, 1, 2]).await;
    for (id, refunds) in [(shipped, 0), (kept, 0), (cancelled, 1), (late, 1)] {
        assert_eq!(booked(&system, &id).await, (1, refunds), "{id}");
    }
    system.stop().await;
}
