//! Messages that cannot be processed are parked, once for each worker that wanted them, and are in
//! nobody's way.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use millrace_shared::message::Subject;
use millrace_workers::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{System, card_order, eventually};
use crate::verify::{RUNNING, is_clean};

/// All parked messages, in their order.
pub async fn parked(system: &System) -> Vec<StreamMessage> {
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let mut stream = jetstream.get_stream(system.topology.parked_stream()).await.expect("PARKED");
    let last = stream.info().await.expect("its state").state.last_sequence;
    let mut messages = Vec::new();
    for sequence in 1..=last {
        // Some are replaced, replayed or discarded.
        messages.extend(stream.get_raw_message(sequence).await);
    }
    let requests = format!("{}.replay.", system.topology.namespace());
    messages.retain(|message| !message.subject.starts_with(&requests));
    messages
}

/// A header of a parked message.
pub fn header<'a>(message: &'a StreamMessage, name: &str) -> &'a str {
    message.headers.get(name).map_or("", |value| value.as_str())
}

/// The stream sequence of the original of a parked message.
pub fn number(message: &StreamMessage) -> u64 {
    header(message, "Millrace-Sequence").parse().expect("a sequence")
}

/// Publishes bytes as an event; returns their stream sequence.
async fn publish_event(system: &System, id: &str, kind: &str, payload: Vec<u8>) -> u64 {
    let mut headers = HeaderMap::new();
    headers.insert("X-Origin", "a stranger");
    let subject = system.topology.event(Subject::Order, id, kind);
    let answer = system.nats.request_with_headers(subject, headers, payload.into()).await;
    let ack: Value =
        serde_json::from_slice(&answer.expect("a publish ack").payload).expect("an ack in JSON");
    ack["seq"].as_u64().unwrap_or_else(|| panic!("no ack: {ack}"))
}

/// Places an order and waits until it is paid.
async fn sells(system: &System) -> String {
    let sequence = system.publish("order.place", &card_order("ann", "mug", 1, "tok_ok")).await;
    let outcome = system.outcome(&sequence.to_string()).await;
    let id = outcome["orderId"].as_str().unwrap_or_else(|| panic!("{outcome}")).to_owned();
    system.order_in(&id, "paid").await;
    id
}

async fn stock_shop(system: &System) {
    system.register("ann", None).await;
    system.define("mug", 500, 100).await;
}

/// The first event of an order, as a stranger might make it up: a copy with another order's id.
async fn forged(system: &System, order_id: &str) -> (String, Value) {
    let stored = system.history(Subject::Order, order_id).await;
    let mut event = serde_json::to_value(&stored[0].event).expect("an event");
    let id = Uuid::now_v7().to_string();
    event["id"] = json!(Uuid::now_v7());
    event["subjectId"] = json!(id);
    (id, event)
}

/// Publishes an event whose envelope can be read and whose state cannot, of an order that is not
/// there; returns the order's id and the event's stream sequence.
async fn publish_damaged(system: &System, like: &str, kind: &str) -> (String, u64) {
    let (id, mut event) = forged(system, like).await;
    event["type"] = json!(kind);
    event["state"] = json!({ "orderId": id, "status": "a status of the future" });
    let sequence = publish_event(system, &id, kind, event.to_string().into_bytes()).await;
    (id, sequence)
}

/// Places orders without waiting for their outcomes; returns their stream sequences.
async fn place(system: &System, count: usize, token: &str) -> Vec<u64> {
    let mut sequences = Vec::new();
    for _ in 0..count {
        let order = card_order("ann", "mug", 1, token);
        sequences.push(system.publish("order.place", &order).await);
    }
    sequences
}

/// Waits until so many calls of the gateway have been booked.
async fn booked(system: &System, count: i64) {
    eventually(&format!("{count} calls of the gateway are booked"), async || {
        let booked: i64 = sqlx::query_scalar("select count(*) from sandbox.charges")
            .fetch_one(&system.pool)
            .await
            .ok()?;
        (booked == count).then_some(())
    })
    .await;
}

/// Checks that of all messages only the one with this sequence is parked, by these workers.
async fn only_parked(system: &System, workers: &[&str], sequence: u64) {
    let kept = parked(system).await;
    let mut places: Vec<(&str, u64)> =
        kept.iter().map(|message| (header(message, "Millrace-Worker"), number(message))).collect();
    places.sort_unstable();
    let expected: Vec<(&str, u64)> = workers.iter().map(|worker| (*worker, sequence)).collect();
    assert_eq!(places, expected, "only the bad one is parked");
}

/// How many events the journal has, and how many messages the log.
async fn journal_and_log(system: &System) -> (u64, u64) {
    let events: i64 = sqlx::query_scalar("select count(*) from journal.events")
        .fetch_one(&system.pool)
        .await
        .expect("the journal");
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let mut stream = jetstream.get_stream(system.topology.events_stream()).await.expect("EVENTS");
    let messages = stream.info().await.expect("its state").state.messages;
    (events.unsigned_abs(), messages)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_in_the_log_is_parked_by_nobody_and_in_nobodys_way() {
    let system = System::start().await;
    stock_shop(&system).await;
    let subject = format!("{}.evt.clock.1", system.topology.namespace());
    let ack = system.nats.request(subject, "tick".into()).await.expect("a publish ack");
    assert!(String::from_utf8_lossy(&ack.payload).contains("seq"));
    sells(&system).await;
    system.settle().await;
    assert_eq!(parked(&system).await.len(), 0);
    is_clean(&system, RUNNING).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_read_is_parked_once_by_each_worker_that_wanted_it() {
    let system = System::start().await;
    stock_shop(&system).await;
    let first = sells(&system).await;
    let (id, mut newer) = forged(&system, &first).await;
    newer["schema"] = json!(999);
    let newer = newer.to_string().into_bytes();

    let everybody = ["persistence", "projection"];
    let mut expected = Vec::new();
    for (payload, reason) in [
        (b"\x00\xffno event".to_vec(), "the event cannot be read"),
        (b"".to_vec(), "the event cannot be read"),
        (b"{\"id\":7}".to_vec(), "the event cannot be read"),
        (newer, "schema version 999"),
        (b"{\"schema\":1000,\"body\":\"of another shape\"}".to_vec(), "schema version 1000"),
    ] {
        for (kind, more) in [
            ("paid", &[][..]),
            ("validated", &["payment"]),
            ("cancelled", &["payment", "reservations"]),
        ] {
            let sequence = publish_event(&system, &id, kind, payload.clone()).await;
            for worker in everybody.iter().chain(more) {
                expected.push((*worker, sequence, kind, payload.clone(), reason));
            }
        }
    }
    // Others are served, before and after the bad ones are out of the way.
    sells(&system).await;
    system.settle().await;
    sells(&system).await;

    let kept = parked(&system).await;
    let mut found = BTreeMap::new();
    for message in &kept {
        let place = (header(message, "Millrace-Worker"), number(message));
        assert!(found.insert(place, message).is_none(), "{place:?} is parked once");
    }
    assert_eq!(found.len(), expected.len());
    for (worker, sequence, kind, payload, reason) in expected {
        let message = found
            .get(&(worker, sequence))
            .unwrap_or_else(|| panic!("{worker} has not parked {kind} {sequence}"));
        let place = format!("{}.order.{id}.{sequence}", system.topology.parked(worker, "event"));
        assert_eq!(message.subject.as_str(), place);
        assert_eq!(message.payload, payload);
        let event = system.topology.event(Subject::Order, &id, kind);
        assert_eq!(header(message, "Millrace-Subject"), event);
        assert_eq!(header(message, "Millrace-Stream"), system.topology.events_stream());
        assert!(header(message, "Millrace-Reason").contains(reason), "{:?}", message.headers);
        assert_eq!(header(message, "Millrace-Attempts"), "1");
        assert!(header(message, "Millrace-First-Seen").starts_with("20"));
        assert_eq!(header(message, "X-Origin"), "a stranger", "the original's headers are kept");
    }
    assert_eq!(system.get(&format!("/v1/orders/{id}")).await.status, 404);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_event_takes_no_other_event_out_of_the_journal_or_the_views() {
    let system = System::without_workers().await;
    let working = [Role::Validation, Role::Payment].map(|role| system.run(role));
    let projection = system.run(Role::Projection);
    stock_shop(&system).await;
    let first = sells(&system).await;
    projection.stop().await;
    let (_, bad) = publish_damaged(&system, &first, "paid").await;
    let sequences = place(&system, 5, "tok_ok").await;
    booked(&system, 6).await;
    // Both find the good and the bad in one batch.
    let writing = [Role::Persistence, Role::Projection].map(|role| system.run(role));
    system.settle().await;
    for sequence in sequences {
        let outcome = system.outcome(&sequence.to_string()).await;
        system.order_in(outcome["orderId"].as_str().expect("an order"), "paid").await;
    }
    only_parked(&system, &["persistence", "projection"], bad).await;
    let (journal, log) = journal_and_log(&system).await;
    assert_eq!(journal, log - 1, "all others are in the journal");
    for worker in working.into_iter().chain(writing) {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_on_a_damaged_order_takes_no_other_command_with_it() {
    let system = System::without_workers().await;
    let others = [Role::Payment, Role::Projection].map(|role| system.run(role));
    let validation = system.run(Role::Validation);
    stock_shop(&system).await;
    let first = sells(&system).await;
    system.settle().await;
    validation.stop().await;
    let (id, _) = publish_damaged(&system, &first, "expired").await;
    let cancel = system.publish("order.cancel", &json!({ "orderId": id })).await;
    let sequences = place(&system, 5, "tok_ok").await;
    // It finds all commands in one batch.
    let validation = system.run(Role::Validation);
    for sequence in sequences {
        let outcome = system.outcome(&sequence.to_string()).await;
        system.order_in(outcome["orderId"].as_str().expect("an order"), "paid").await;
    }
    system.settle().await;
    let kept = parked(&system).await;
    let commands = kept.iter().filter(|m| header(m, "Millrace-Worker") == "validation");
    assert_eq!(commands.map(number).collect::<Vec<_>>(), [cancel]);
    for worker in others.into_iter().chain([validation]) {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_end_of_an_order_keeps_no_other_orders_stock_reserved() {
    let system = System::without_workers().await;
    let projection = system.run(Role::Projection);
    let validation = system.run(Role::Validation);
    stock_shop(&system).await;
    let sequences = place(&system, 6, "tok_declined").await;
    system.stock_is("mug", [94, 6, 0]).await;
    let outcome = system.outcome(&sequences[0].to_string()).await;
    validation.stop().await;
    let first = outcome["orderId"].as_str().expect("an order");
    publish_damaged(&system, first, "rejected").await;
    let payment = system.run(Role::Payment);
    booked(&system, 6).await;
    payment.stop().await;
    // The bad end and the six good ones are found in one batch.
    let validation = system.run(Role::Validation);
    system.stock_is("mug", [100, 0, 0]).await;
    for worker in [projection, validation] {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_postgresql_refuses_is_parked_in_the_end_and_holds_nobody_up() {
    let system = System::start().await;
    stock_shop(&system).await;
    let first = sells(&system).await;
    let (id, mut event) = forged(&system, &first).await;
    // JSON can name a character that PostgreSQL cannot keep.
    event["data"]["remark"] = json!("\u{0}");
    publish_event(&system, &id, "paid", event.to_string().into_bytes()).await;
    for _ in 0..3 {
        sells(&system).await;
    }
    eventually("all others are in the journal", async || {
        let (journal, log) = journal_and_log(&system).await;
        (journal == log - 1).then_some(())
    })
    .await;
    system.settle().await;
    let kept = parked(&system).await;
    let workers: Vec<&str> =
        kept.iter().map(|message| header(message, "Millrace-Worker")).collect();
    assert_eq!(workers, ["persistence"]);
    assert_eq!(header(&kept[0], "Millrace-Attempts"), "8");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_as_large_as_nats_takes_is_parked_as_well() {
    let system = System::start().await;
    stock_shop(&system).await;
    let most = system.nats.server_info().max_payload;
    let sequence = system.publish_raw("order.place", vec![b'x'; most]).await;
    let outcome = system.outcome(&sequence.to_string()).await;
    assert_eq!(outcome["reason"], "malformed_command", "{outcome}");
    sells(&system).await;
    system.settle().await;
    let kept = parked(&system).await;
    assert_eq!(kept.len(), 1);
    assert_eq!(number(&kept[0]), sequence);
    system.stop().await;
}
