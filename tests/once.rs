//! Exactly-once effects: duplicates, redelivery, reordering, competing orders, several replicas.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use millrace_shared::ids::{CustomerId, OrderId};
use millrace_shared::message::{Cause, Event, Subject, now};
use millrace_shared::order::{self, Order, Stamp};
use millrace_shared::views::{Generations, OrderFilter, Views};
use millrace_workers::Role;
use serde_json::{Value, json};

use crate::harness::{System, account_order, card_order};

#[tokio::test(flavor = "multi_thread")]
async fn one_idempotency_key_makes_one_order_however_often_and_by_whichever_way_it_is_sent() {
    let system = System::with_workers(2).await;
    system.register("zoe", None).await;
    system.define("key", 100, 100).await;
    let order = card_order("zoe", "key", 1, "tok_ok");
    let by_http = join_all((0..20).map(async |_| {
        let request = system.request("POST", "/v1/orders").header("Idempotency-Key", "k1");
        system.send(request.json(&order)).await
    }))
    .await;
    let mut by_nats = order.clone();
    by_nats["idempotencyKey"] = json!("k1");
    let sequence = system.publish("order.place", &by_nats).await;
    let outcome = system.outcome(&sequence.to_string()).await;
    let zoe: CustomerId = "zoe".parse().expect("an id");
    let id = OrderId::from_key(&zoe, "k1").to_string();
    for answer in &by_http {
        assert_eq!((answer.status, answer.text("/orderId")), (202, id.clone()), "{answer:?}");
    }
    assert_eq!(outcome["orderId"], id);
    system.order_in(&id, "paid").await;
    // Another body under the key is refused, and changes nothing.
    let other = card_order("zoe", "key", 2, "tok_ok");
    let request = system.request("POST", "/v1/orders").header("Idempotency-Key", "k1");
    let answer = system.send(request.json(&other)).await;
    assert_eq!((answer.status, answer.text("/reason").as_str()), (422, "idempotency_key_reused"));
    let mut other = other;
    other["idempotencyKey"] = json!("k1");
    let sequence = system.publish("order.place", &other).await;
    let outcome = system.outcome(&sequence.to_string()).await;
    assert_eq!(outcome["reason"], "idempotency_key_reused");
    system.settle().await;
    assert_eq!(system.steps(&id).await, ["validated", "paid"]);
    system.stock_is("key", [99, 1, 0]).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_id_names_one_command_and_its_reuse_is_recorded_under_the_sequence() {
    let system = System::start().await;
    let id = "018f2d5e-7b3a-7c3e-9c1d-0123456789ab";
    let mut first = json!({ "commandId": id, "customerId": "one", "name": "One" });
    system.publish("customer.register", &first).await;
    assert_eq!(system.outcome(id).await["status"], "accepted");
    system.publish("customer.register", &first).await;
    first["customerId"] = json!("two");
    let sequence = system.publish("customer.register", &first).await;
    let outcome = system.outcome(&sequence.to_string()).await;
    assert_eq!(outcome["reason"], "command_id_reused");
    assert_eq!(system.outcome(id).await["status"], "accepted");
    assert_eq!(system.get("/v1/customers/two").await.status, 404);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_compete_for_the_last_pieces_never_oversell() {
    let system = System::with_workers(2).await;
    system.register("a", Some(1_000)).await;
    system.define("rare", 100, 10).await;
    system.define("full", 100, 1_000).await;
    let sequences = join_all((0..60).map(async |n| {
        let order = if n % 2 == 0 {
            card_order("a", "rare", 1, "tok_ok")
        } else {
            account_order("a", "full", 1)
        };
        system.publish("order.place", &order).await
    }))
    .await;
    let mut statuses: BTreeMap<String, usize> = BTreeMap::new();
    for sequence in sequences {
        let outcome = system.outcome(&sequence.to_string()).await;
        let reason = outcome["reason"].as_str().unwrap_or("accepted").to_owned();
        *statuses.entry(reason).or_default() += 1;
    }
    let expected = [("accepted", 20), ("insufficient_credit", 20), ("out_of_stock", 20)];
    assert_eq!(statuses, expected.map(|(reason, count)| (reason.to_owned(), count)).into());
    system.settle().await;
    system.stock_is("rare", [0, 10, 0]).await;
    assert_eq!(system.get("/v1/customers/a").await.body["creditUsed"]["amount"], 1_000);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_delivered_twice_and_out_of_order_gives_the_same_journal_and_views() {
    let system = System::start().await;
    system.register("tom", Some(100_000)).await;
    system.define("nut", 10, 1_000).await;
    for n in 0..12 {
        let placed =
            system.post_and_wait("/v1/orders", &card_order("tom", "nut", n + 1, "tok_ok")).await;
        let id = placed.text("/orderId");
        let step = ["cancel", "ship", "refund"][n as usize % 3];
        let body = if step == "ship" {
            json!({ "carrier": "Post", "trackingNumber": "1" })
        } else {
            json!({})
        };
        let answer = system.post_and_wait(&format!("/v1/orders/{id}/{step}"), &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    system.settle().await;
    let mut events: Vec<Event> = all_events(&system).await;
    let (views, journal) =
        (documents(&system, &system.views, &events).await, journal(&system).await);

    // The views anew, from the events twice and backwards, in another namespace.
    let copy = Views::new(system.admin.redis.client().expect("Redis"), "copy-of-views");
    let empty = copy.replace(Generations::default(), Generations::only(1)).await;
    assert!(empty.expect("Redis answers"), "there was no copy before");
    events.extend(events.clone());
    events.reverse();
    for chunk in events.chunks(7) {
        copy.apply(chunk.iter()).await.expect("the views are written");
    }
    assert_eq!(documents(&system, &copy, &events).await, views);

    // The journal anew, from the log: the worker starts over, twice.
    for table in ["events", "orders", "order_lines", "customers", "products"] {
        let truncate = format!("truncate journal.{table}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(truncate)).execute(&system.pool).await.expect("emptied");
    }
    for _ in 0..2 {
        let jetstream = async_nats::jetstream::new(system.nats.clone());
        let stream = jetstream.get_stream(system.topology.events_stream()).await.expect("EVENTS");
        stream.delete_consumer("persistence").await.expect("the consumer is reset");
        let persistence = system.run(Role::Persistence);
        crate::harness::eventually("the journal is whole again", async || {
            (self::journal(&system).await == journal).then_some(())
        })
        .await;
        system.settle().await;
        persistence.stop().await;
    }
    assert_eq!(self::journal(&system).await, journal);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_has_lost_its_place_is_never_appended_behind_the_one_that_has_it() {
    let system = System::start().await;
    system.register("nadia", None).await;
    system.define("fig", 10, 5).await;
    let placed = system.post_and_wait("/v1/orders", &card_order("nadia", "fig", 1, "tok_ok")).await;
    let id = placed.text("/orderId");
    assert_eq!(system.steps(&id).await, ["validated", "paid"]);
    // As validation leaves it if it dies after it has decided a cancellation that the payment beat.
    let first: Order =
        system.history(Subject::Order, &id).await[0].event.state().expect("an order");
    let event = order::cancel(&first, None).expect("it could be cancelled then");
    let causation = uuid::Uuid::now_v7();
    let stamp = Stamp { version: 2, at: now(), causation };
    let after = Order::apply(Some(&first), first.order_id, stamp, &event).expect("a legal step");
    let cause = Cause { causation, correlation: causation, traceparent: None };
    let lost = Event::order(&event, &after, &cause).expect("an event");
    sqlx::query(
        "insert into ledger.outbox (command_id, subject, subject_id, version, event, created_at)
         values ($1, 'order', $2, 2, $3, now() - interval '1 minute')",
    )
    .bind(causation)
    .bind(&id)
    .bind(String::from_utf8(lost.encode().expect("JSON").to_vec()).expect("text"))
    .execute(&system.pool)
    .await
    .expect("the outbox has it");
    // Many rounds of the relay: what must not come shows nothing that could be waited for.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(system.steps(&id).await, ["validated", "paid"]);
    system.stop().await;
}

async fn all_events(system: &System) -> Vec<Event> {
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let mut stream = jetstream.get_stream(system.topology.events_stream()).await.expect("EVENTS");
    let last = stream.info().await.expect("its state").state.last_sequence;
    let mut events = Vec::new();
    for sequence in 1..=last {
        let message = stream.get_raw_message(sequence).await.expect("nothing is removed");
        events.push(Event::decode(&message.payload).expect("an event"));
    }
    events
}

/// All documents that the events are about, as the views have them.
async fn documents(_: &System, views: &Views, events: &[Event]) -> BTreeMap<String, String> {
    let mut documents = BTreeMap::new();
    for event in events {
        let id = &event.subject_id;
        if event.subject == Subject::Command {
            continue;
        }
        let document = views.document(event.subject, id).await;
        let document = document.expect("Redis answers").expect("a view");
        documents.insert(format!("{}/{id}", event.subject), document.json);
    }
    let tom = "tom".parse().expect("an id");
    let page = views.customer_orders(&tom, &OrderFilter::default(), None, 100).await;
    let page = page.expect("Redis answers");
    assert_eq!((page.items.len(), page.count), (12, Some(12)));
    documents.insert("list".to_owned(), page.items.join("\n"));
    documents
}

/// The whole journal as text.
async fn journal(system: &System) -> BTreeMap<&'static str, Vec<Value>> {
    let tables = [
        (
            "events",
            "select to_jsonb(t) from journal.events t order by subject, subject_id, version",
        ),
        ("orders", "select to_jsonb(t) from journal.orders t order by order_id"),
        ("lines", "select to_jsonb(t) from journal.order_lines t order by order_id, line"),
        ("customers", "select to_jsonb(t) from journal.customers t order by customer_id"),
        ("products", "select to_jsonb(t) from journal.products t order by product_id"),
    ];
    let mut journal = BTreeMap::new();
    for (table, query) in tables {
        let rows = sqlx::query_scalar(query).fetch_all(&system.pool).await.expect("the journal");
        journal.insert(table, rows);
    }
    journal
}
