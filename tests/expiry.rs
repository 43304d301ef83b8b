//! Orders that are not paid in time, and payments whose outcome is not known.

use std::time::Duration;

use futures_util::future::join_all;
use millrace_workers::Role;
use serde_json::json;

use crate::harness::{Running, System, account_order, card_order, eventually};

/// Charges that stand and refunds, by the gateway's book.
async fn booked(system: &System) -> (i64, i64) {
    sqlx::query_as(
        "select (select count(*) from sandbox.charges where outcome = 'succeeded'),
                (select count(*) from sandbox.refunds)",
    )
    .fetch_one(&system.pool)
    .await
    .expect("the book is read")
}

/// A system whose orders have this many seconds to be paid.
async fn with_time_to_pay(seconds: u32) -> System {
    let mut system = System::without_workers().await;
    system.config.payment_timeout = seconds;
    system
}

fn without_payment(system: &System) -> Vec<Running> {
    [Role::Validation, Role::Persistence, Role::Projection].map(|role| system.run(role)).into()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_not_paid_in_time_expires_and_gives_everything_back() {
    let system = with_time_to_pay(1).await;
    let mut workers = without_payment(&system);
    system.register("ida", Some(10_000)).await;
    system.define("rug", 1_000, 9).await;
    let mut ids = Vec::new();
    for pieces in [2, 3] {
        let order = card_order("ida", "rug", pieces, "tok_ok");
        ids.push(system.post("/v1/orders", &order).await.text("/orderId"));
    }
    let account = system.post("/v1/orders", &account_order("ida", "rug", 4)).await.text("/orderId");
    for id in &ids {
        system.order_in(id, "expired").await;
        assert_eq!(system.steps(id).await, ["validated", "expired"]);
    }
    assert_eq!(system.steps(&account).await, ["validated", "paid"], "it needs no payment worker");
    system.stock_is("rug", [5, 4, 0]).await;
    workers.push(system.run(Role::Payment));
    system.settle().await;
    assert_eq!(booked(&system).await, (0, 0), "what has expired is not charged");
    assert_eq!(system.steps(&account).await, ["validated", "paid"], "nor is it paid twice");
    assert_eq!(system.get("/v1/customers/ida").await.body["creditUsed"]["amount"], 4_000);
    for worker in workers {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paid_order_stays_paid_also_where_the_journal_does_not_know_that_it_is() {
    let system = with_time_to_pay(2).await;
    let mut workers = without_payment(&system);
    system.register("eli", None).await;
    system.define("ink", 100, 9).await;
    let id = system.post("/v1/orders", &card_order("eli", "ink", 1, "tok_ok")).await;
    let id = id.text("/orderId");
    eventually("the journal shows that it waits", async || {
        let waits = "select count(*) from journal.orders where order_id = $1::uuid and status = 'validated'";
        let waits = sqlx::query_scalar::<_, i64>(waits).bind(&id).fetch_one(&system.pool).await;
        (waits.expect("a count") == 1).then_some(())
    })
    .await;
    // Persistence is away: from now on the journal shows what was.
    workers.remove(1).stop().await;
    workers.push(system.run(Role::Payment));
    let steps = eventually("it has ended", async || {
        let steps = system.steps(&id).await;
        (steps.len() > 1).then_some(steps)
    })
    .await;
    // Longer than it had: there is nothing to wait for that would show that nothing comes.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(system.steps(&id).await, steps);
    workers.push(system.run(Role::Persistence));
    system.settle().await;
    assert_eq!(system.steps(&id).await, steps);
    let paid = i64::from(steps == ["validated", "paid"]);
    assert_eq!(booked(&system).await, (paid, 0));
    for worker in workers {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_became_overdue_while_nobody_looked_expire_all_of_them() {
    let system = with_time_to_pay(1).await;
    let mut workers = without_payment(&system);
    system.register("uma", None).await;
    system.define("pen", 100, 1_000).await;
    // More than are looked at together.
    let ids = join_all((0..300).map(async |_| {
        system.post("/v1/orders", &card_order("uma", "pen", 1, "tok_ok")).await.text("/orderId")
    }))
    .await;
    for id in &ids {
        system.order_in(id, "expired").await;
    }
    system.settle().await;
    for id in &ids {
        assert_eq!(system.steps(id).await, ["validated", "expired"]);
    }
    system.stock_is("pen", [1_000, 0, 0]).await;
    workers.push(system.run(Role::Payment));
    system.settle().await;
    assert_eq!(booked(&system).await, (0, 0));
    for worker in workers {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_without_an_answer_is_unknown_until_the_gateway_says_what_became_of_it() {
    let system = System::start().await;
    system.register("kai", None).await;
    system.define("oil", 100, 9).await;
    let placed =
        system.post_and_wait("/v1/orders", &card_order("kai", "oil", 1, "tok_timeout")).await;
    assert_eq!((placed.status, placed.text("/status").as_str()), (201, "paid"), "{placed:?}");
    assert_eq!(placed.text("/timeline/1/status"), "payment_unknown");
    let id = placed.text("/orderId");
    assert_eq!(system.steps(&id).await, ["validated", "payment-unknown", "paid"]);
    assert_eq!(booked(&system).await, (1, 0));
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_payment_is_never_charged_again_and_can_be_called_off_or_expires() {
    let system = with_time_to_pay(3).await;
    let workers = Role::ALL.map(|role| system.run(role));
    system.register("lou", None).await;
    system.define("jar", 100, 9).await;
    let lost = card_order("lou", "jar", 1, "tok_lost");
    let called_off = system.post("/v1/orders", &lost).await.text("/orderId");
    let order = system.order_in(&called_off, "payment_unknown").await;
    assert_eq!(order["payment"]["status"], "unknown");
    let cancel = format!("/v1/orders/{called_off}/cancel");
    let answer = system.post_and_wait(&cancel, &json!({})).await;
    assert_eq!(answer.text("/status"), "cancelled", "{answer:?}");
    let expired = system.post("/v1/orders", &lost).await.text("/orderId");
    system.order_in(&expired, "expired").await;
    system.settle().await;
    assert_eq!(system.steps(&called_off).await, ["validated", "payment-unknown", "cancelled"]);
    assert_eq!(system.steps(&expired).await, ["validated", "payment-unknown", "expired"]);
    assert_eq!(booked(&system).await, (0, 0));
    system.stock_is("jar", [9, 0, 0]).await;
    for worker in workers {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_out_that_races_the_payment_ends_paid_or_refunded_and_never_charged_for_nothing() {
    let system = with_time_to_pay(2).await;
    let workers = Role::ALL.map(|role| system.run(role));
    system.register("rex", None).await;
    system.define("gem", 100, 100).await;
    // The gateway takes two seconds, as long as the order has.
    let ids = join_all((0..30).map(async |_| {
        system.post("/v1/orders", &card_order("rex", "gem", 1, "tok_slow")).await.text("/orderId")
    }))
    .await;
    let mut paid = 0;
    for id in &ids {
        let status = eventually("the race is over", async || {
            let status = system.order(id).await["status"].as_str().map(str::to_owned)?;
            ["paid", "refunded", "expired"].contains(&status.as_str()).then_some(status)
        })
        .await;
        paid += i64::from(status == "paid");
    }
    system.settle().await;
    let (charges, refunds) = booked(&system).await;
    assert_eq!(charges - refunds, paid, "money stays only for orders that are paid");
    for id in &ids {
        let last = system.steps(id).await.pop();
        assert!(["paid", "refunded", "expired"].map(Some).contains(&last.as_deref()), "{last:?}");
    }
    system.stock_is("gem", [100 - paid, paid, 0]).await;
    for worker in workers {
        worker.stop().await;
    }
    system.stop().await;
}
