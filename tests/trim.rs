//! Streams whose beginning was removed: what is needed stays, and what went is missed by nobody.

use std::collections::BTreeSet;

use async_nats::jetstream;
use chrono::TimeDelta;
use millrace_shared::message::Subject;
use millrace_workers::Role;
use millrace_workers::trim::{Keep, Trim, Trimmed};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{System, account_order, card_order};
use crate::process::{Process, settings};

const NOTHING: Keep = Keep { age: TimeDelta::zero(), messages: 0 };

async fn run(system: &System, keep: Keep, only_tell: bool) -> [Trimmed; 2] {
    let trim = Trim::new(system.pool.clone(), &system.nats, system.topology.clone());
    let trimmed = trim.run(keep, only_tell).await.expect("the streams are trimmed");
    trimmed.expect("no other trim is under way")
}

/// First and last place, and number of messages, of COMMANDS and EVENTS.
async fn streams(system: &System) -> [(u64, u64, u64); 2] {
    let jetstream = jetstream::new(system.nats.clone());
    let state = async |name: String| {
        let stream = jetstream.get_stream(name).await.expect("the stream");
        let state = &stream.cached_info().state;
        (state.first_sequence, state.last_sequence, state.messages)
    };
    [state(system.topology.commands_stream()).await, state(system.topology.events_stream()).await]
}

async fn step(system: &System, id: &str, step: &str) {
    let body = match step {
        "ship" => json!({ "carrier": "Post", "trackingNumber": "1" }),
        _ => json!({}),
    };
    let answer = system.post_and_wait(&format!("/v1/orders/{id}/{step}"), &body).await;
    assert_eq!(answer.status, 200, "{step} {answer:?}");
}

/// The types of an order's events in the journal, checked to be versions 1..n with ids of their own.
async fn journal(system: &System, id: &str) -> Vec<String> {
    let rows: Vec<(i64, Uuid, String)> = sqlx::query_as(
        "select version, event_id, type from journal.events
         where subject = 'order' and subject_id = $1 order by version",
    )
    .bind(id)
    .fetch_all(&system.pool)
    .await
    .expect("the journal");
    let ids: BTreeSet<Uuid> = rows.iter().map(|(_, id, _)| *id).collect();
    assert_eq!(ids.len(), rows.len(), "{rows:?}");
    let versions: Vec<i64> = rows.iter().map(|(version, ..)| *version).collect();
    assert_eq!(versions, (1..).take(rows.len()).collect::<Vec<i64>>());
    rows.into_iter().map(|(.., kind)| kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_whose_events_are_gone_from_the_log_go_on_from_the_journal() {
    let system = System::start().await;
    system.register("ann", Some(100_000)).await;
    system.define("pen", 100, 100).await;
    let mut orders = Vec::new();
    for order in [
        card_order("ann", "pen", 1, "tok_ok"),
        card_order("ann", "pen", 2, "tok_ok"),
        account_order("ann", "pen", 3),
        card_order("ann", "pen", 4, "tok_ok"),
    ] {
        let placed = system.post_and_wait("/v1/orders", &order).await;
        assert_eq!(placed.status, 201, "{placed:?}");
        orders.push((placed.text("/orderId"), placed.text("/commandId")));
    }
    let [cancelled, shipped, refunded, delivered] =
        [0, 1, 2, 3].map(|number: usize| orders[number].0.clone());
    step(&system, &refunded, "ship").await;
    step(&system, &delivered, "ship").await;
    let restock = json!({ "productId": "pen", "quantity": 5 });
    let by_nats = system.publish("product.restock", &restock).await.to_string();
    system.outcome(&by_nats).await;
    system.settle().await;
    let (before, told) = (streams(&system).await, run(&system, NOTHING, true).await);
    assert_eq!(streams(&system).await, before, "it was only told");
    assert_eq!(run(&system, NOTHING, false).await, told);
    for ((_, last, _), after) in before.into_iter().zip(streams(&system).await) {
        assert_eq!(after, (last + 1, last, 0), "{told:?}");
    }
    assert!(system.history(Subject::Order, &cancelled).await.is_empty());

    step(&system, &cancelled, "cancel").await;
    step(&system, &shipped, "ship").await;
    step(&system, &refunded, "refund").await;
    step(&system, &delivered, "deliver").await;
    // What is no longer allowed is refused as ever, and what was placed is not placed again.
    let again = system.post_and_wait(&format!("/v1/orders/{shipped}/cancel"), &json!({})).await;
    assert_eq!(again.status, 409, "{again:?}");
    system.order_in(&cancelled, "refunded").await;
    system.order_in(&refunded, "refunded").await;
    system.settle().await;
    for (id, steps) in [
        (&cancelled, &["validated", "paid", "cancelled", "refunded"][..]),
        (&shipped, &["validated", "paid", "shipped"]),
        (&refunded, &["validated", "paid", "shipped", "refund-requested", "refunded"]),
        (&delivered, &["validated", "paid", "shipped", "delivered"]),
    ] {
        assert_eq!(journal(&system, id).await, steps);
        let view = system.order(id).await;
        assert_eq!(view["version"], steps.len(), "{view}");
        assert_eq!(view["timeline"].as_array().map(Vec::len), Some(steps.len()), "{view}");
    }
    system.stock_is("pen", [96, 0, 9]).await;
    // Outcomes can be asked for as before, by either name.
    assert_eq!(system.outcome(&orders[0].1).await["status"], "accepted");
    assert_eq!(system.outcome(&by_nats).await["status"], "accepted");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn products_and_customers_go_on_after_their_events_are_gone_even_with_a_new_relay() {
    let system = System::without_workers().await;
    let workers = Role::ALL.map(|role| system.run(role));
    system.register("ann", Some(100_000)).await;
    system.define("pen", 100, 100).await;
    let placed = system.post_and_wait("/v1/orders", &account_order("ann", "pen", 1)).await;
    assert_eq!(placed.status, 201, "{placed:?}");
    system.settle().await;
    run(&system, NOTHING, false).await;
    assert!(system.history(Subject::Product, "pen").await.is_empty());
    for worker in workers {
        worker.stop().await;
    }
    let workers = Role::ALL.map(|role| system.run(role));
    let answer = system.post_and_wait("/v1/products/pen/restock", &json!({ "quantity": 7 })).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    step(&system, &placed.text("/orderId"), "cancel").await;
    system.stock_is("pen", [107, 0, 0]).await;
    system.settle().await;
    let credit: Value = system.get("/v1/customers/ann").await.body["creditUsed"]["amount"].clone();
    assert_eq!(credit, 0);
    let gaps: Vec<(String, String)> = sqlx::query_as(
        "select subject, subject_id from journal.events group by subject, subject_id
         having min(version) <> 1 or max(version) <> count(*)",
    )
    .fetch_all(&system.pool)
    .await
    .expect("the journal");
    assert_eq!(gaps, []);
    for worker in workers {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_goes_that_is_young_undecided_unsettled_or_not_in_the_journal() {
    let system = System::without_workers().await;
    let [validation, payment, persistence, projection] = Role::ALL.map(|role| system.run(role));
    system.register("ann", None).await;
    system.define("pen", 100, 100).await;
    let placed = system.post_and_wait("/v1/orders", &card_order("ann", "pen", 1, "tok_ok")).await;
    assert_eq!(placed.status, 201, "{placed:?}");
    system.settle().await;
    let before = streams(&system).await;

    // Young, or so many.
    for kept in [Keep::hours(1), Keep { messages: 1_000, ..NOTHING }] {
        run(&system, kept, false).await;
        assert_eq!(streams(&system).await, before);
    }
    let [commands, events] = run(&system, Keep { messages: 1, ..NOTHING }, true).await;
    assert_eq!((commands.through, events.through), (before[0].1 - 1, before[1].1 - 1));

    // An order that waits for its payment: unsettled, and by the journal.
    payment.stop().await;
    let waiting = system.post("/v1/orders", &card_order("ann", "pen", 1, "tok_ok")).await;
    let waiting = waiting.text("/orderId");
    system.order_in(&waiting, "validated").await;
    let first = system.history(Subject::Order, &waiting).await[0].sequence;
    // A command that nobody has decided.
    validation.stop().await;
    let undecided = system.publish("order.cancel", &json!({ "orderId": waiting })).await;
    let stays = async |keep: Keep| {
        let [commands, events] = run(&system, keep, true).await;
        assert!(commands.through < undecided, "{commands}");
        assert!(events.through < first, "{events}");
        (commands, events)
    };
    crate::harness::eventually("the journal has it", async || {
        (!journal(&system, &waiting).await.is_empty()).then_some(())
    })
    .await;
    stays(NOTHING).await;

    // What the journal has lost stays in the log.
    let lost = system.history(Subject::Product, "pen").await[0].sequence;
    let delete = "delete from journal.events where subject_id = 'pen' and version = 1";
    sqlx::query(delete).execute(&system.pool).await.expect("gone");
    let (_, events) = stays(NOTHING).await;
    assert_eq!(events.through, lost - 1, "{events}");
    assert!(events.held_by.contains("is not in the journal"), "{events}");
    run(&system, NOTHING, false).await;
    assert_eq!(streams(&system).await[1].0, lost);
    assert_eq!(streams(&system).await[0].0, undecided);

    let told = Process::start(&["trim", "--dry-run"], &settings(&system.config)).ended().await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.output.contains("EVENTS") && told.output.contains("a dry run"), "{told:?}");
    for worker in [persistence, projection] {
        worker.stop().await;
    }
    system.stop().await;
}
