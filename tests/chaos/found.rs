//! What the chaos has found, each as a test of its own.

use futures_util::future::join_all;
use millrace_shared::message::Subject;
use millrace_workers::Role;
use rustix::process::Signal;
use serde_json::json;

use crate::harness::{System, card_order, usd};
use crate::process::{Process, settings};

/// Validation dies between the commit of a cancellation and its append; meanwhile the order is
/// paid. The redelivered cancellation must not be appended as it was decided, on the unpaid order.
#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_was_overtaken_before_its_append_is_made_again() {
    let system = System::without_workers().await;
    let [validation, payment, persistence, projection] = Role::ALL.map(|role| system.run(role));
    system.register("ann", None).await;
    system.define("box", 1_000, 50).await;
    let placed = system.post("/v1/orders", &card_order("ann", "box", 1, "tok_slow")).await;
    let id = placed.text("/orderId");
    system.order_in(&id, "validated").await;
    validation.stop().await;
    let mut fatal = settings(&system.config);
    fatal.push(("MILLRACE_CRASH_POINT", "validation.committed".to_owned()));
    let dies = Process::start(&["worker", "validation"], &fatal);
    let asked = system.post(&format!("/v1/orders/{id}/cancel"), &json!({})).await;
    assert_eq!(asked.status, 202, "{asked:?}");
    let ended = dies.ended().await;
    assert!(ended.errors.contains("validation.committed"), "{ended:?}");
    system.order_in(&id, "paid").await;

    let successor = Process::start(&["worker", "validation"], &settings(&system.config));
    system.order_in(&id, "refunded").await;
    assert_eq!(system.steps(&id).await, ["validated", "paid", "cancelled", "refunded"]);
    system.settle().await;
    system.stock_is("box", [50, 0, 0]).await;
    successor.end(Signal::TERM).await;
    for worker in [payment, persistence, projection] {
        worker.stop().await;
    }
    system.stop().await;
}

/// Nothing can be locked that is not there yet: two replicas that create the same product at once
/// must not both believe that theirs is the first event of its history.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_created_twice_at_once_has_one_history() {
    let system = System::with_workers(3).await;
    let define = async |number: u32, price: i64| {
        let product = json!({
            "productId": format!("p{number}"), "name": "Thing", "brand": "Acme",
            "category": "Things", "price": usd(price), "initialStock": 5,
        });
        system.publish("product.define", &product).await;
        let customer = json!({ "customerId": format!("c{number}"), "name": price.to_string() });
        system.publish("customer.register", &customer).await;
    };
    for number in 0..40 {
        join_all((100..106).map(|price| define(number, price))).await;
    }
    system.settle().await;
    for number in 0..40 {
        let product = format!("p{number}");
        for (subject, id) in
            [(Subject::Product, &product), (Subject::Customer, &format!("c{number}"))]
        {
            let history = system.history(subject, id).await;
            let versions: Vec<u64> = history.iter().map(|stored| stored.event.version).collect();
            let dense: Vec<u64> = (1..=versions.len() as u64).collect();
            assert_eq!(versions, dense, "{subject} {id}");
        }
        system.stock_is(&product, [5, 0, 0]).await;
    }
    system.stop().await;
}
