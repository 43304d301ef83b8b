//! A process dies exactly at a named place, and starts again: the promises hold. Every place of
//! [`millrace_shared::crash::POINTS`] is covered.

use futures_util::future::join_all;
use millrace_shared::crash::POINTS;
use millrace_workers::Role;
use serde_json::{Value, json};

use crate::harness::{Running, System, account_order, card_order, eventually};
use crate::parking::{header, parked};
use crate::process::{Process, settings};
use crate::rebuild::redis;

/// The process that passes a point, and its arguments.
fn process_of(point: &str) -> (Option<Role>, Vec<&'static str>) {
    match point.split('.').next() {
        Some("api") => (None, vec!["api", "--http", "127.0.0.1:0"]),
        Some("payment") => (Some(Role::Payment), vec!["worker", "payment"]),
        Some("persistence") => (Some(Role::Persistence), vec!["worker", "persistence"]),
        Some("projection" | "parking" | "catch-up") => {
            (Some(Role::Projection), vec!["worker", "projection"])
        }
        _ => (Some(Role::Validation), vec!["worker", "validation"]),
    }
}

/// Starts the process of a point, to die there.
fn start(system: &System, point: &str) -> Process {
    let mut settings = settings(&system.config);
    settings.push(("MILLRACE_CRASH_POINT", point.to_owned()));
    Process::start(&process_of(point).1, &settings)
}

/// Waits until the process has died at its point.
async fn dies(process: Process, point: &str) {
    let ended = process.ended().await;
    assert_eq!(ended.code, None, "{point}: a signal ends it: {ended:?}");
    assert!(ended.errors.contains(point), "{point}: it died elsewhere: {ended:?}");
}

/// A shop whose workers are all in this process, but for the one of the point.
async fn shop(point: &str) -> (System, Vec<Running>) {
    let mut system = System::without_workers().await;
    if point.starts_with("expiry") {
        system.config.payment_timeout = 2;
    }
    let own = process_of(point).0;
    let mut running = Vec::new();
    let mut set_up = Vec::new();
    for role in Role::ALL {
        let worker = system.run(role);
        if Some(role) == own { set_up.push(worker) } else { running.push(worker) }
    }
    system.register("ann", Some(10_000)).await;
    system.define("box", 1_000, 50).await;
    for worker in set_up {
        worker.stop().await;
    }
    (system, running)
}

async fn place(system: &System, order: &Value) -> String {
    let answer = system.post("/v1/orders", order).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.text("/orderId")
}

/// Orders on every way through the saga, told to go on as soon as they can.
async fn trade(system: &System) -> [(String, Vec<&'static str>); 4] {
    let [shipped, cancelled, refunded, unknown] = [
        card_order("ann", "box", 1, "tok_ok"),
        card_order("ann", "box", 2, "tok_ok"),
        account_order("ann", "box", 3),
        card_order("ann", "box", 4, "tok_lost"),
    ];
    let [shipped, cancelled, refunded, unknown] = [
        place(system, &shipped).await,
        place(system, &cancelled).await,
        place(system, &refunded).await,
        place(system, &unknown).await,
    ];
    for (id, status, step, body) in [
        (&shipped, "paid", "ship", json!({ "carrier": "Post", "trackingNumber": "1" })),
        (&cancelled, "paid", "cancel", json!({})),
        (&refunded, "paid", "refund", json!({})),
        (&unknown, "payment_unknown", "cancel", json!({})),
    ] {
        system.order_in(id, status).await;
        let answer = system.post(&format!("/v1/orders/{id}/{step}"), &body).await;
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    [
        (shipped, vec!["validated", "paid", "shipped"]),
        (cancelled, vec!["validated", "paid", "cancelled", "refunded"]),
        (refunded, vec!["validated", "paid", "refund-requested", "refunded"]),
        (unknown, vec!["validated", "payment-unknown", "cancelled"]),
    ]
}

/// A process dies at `point` while orders go through, and another takes over.
async fn dies_in_the_middle_of_trade(point: &str) {
    let (system, running) = shop(point).await;
    let (traded, successor) = tokio::join!(trade(&system), async {
        dies(start(&system, point), point).await;
        let (role, _) = process_of(point);
        role.map(|role| system.run(role))
    });
    for (id, steps) in &traded {
        let last = match *steps.last().expect("a step") {
            "shipped" => "shipped",
            "cancelled" => "cancelled",
            _ => "refunded",
        };
        system.order_in(id, last).await;
        assert_eq!(system.steps(id).await, *steps, "{point}");
    }
    system.settle().await;
    let book: (i64, i64) = sqlx::query_as(
        "select (select count(*) from sandbox.charges where outcome = 'succeeded'),
                (select count(*) from sandbox.refunds)",
    )
    .fetch_one(&system.pool)
    .await
    .expect("the book is read");
    assert_eq!(book, (2, 1), "{point}: two card charges, one given back");
    system.stock_is("box", [49, 0, 1]).await;
    assert_eq!(system.get("/v1/customers/ann").await.body["creditUsed"]["amount"], 0, "{point}");
    let journal: i64 =
        sqlx::query_scalar("select count(*) from journal.events where subject = 'order'")
            .fetch_one(&system.pool)
            .await
            .expect("the journal is read");
    assert_eq!(journal, 3 + 4 + 4 + 3, "{point}: the journal has every event once");
    for worker in running.into_iter().chain(successor) {
        worker.stop().await;
    }
    system.stop().await;
}

/// All points whose names begin so, side by side.
async fn at_points_of(prefix: &str) {
    let points = POINTS.iter().map(|(name, _)| *name).filter(|name| name.starts_with(prefix));
    join_all(points.map(dies_in_the_middle_of_trade)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn validation_that_dies_anywhere_decides_every_command_once() {
    at_points_of("validation.").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn validation_that_dies_between_two_events_of_an_order_appends_the_other() {
    at_points_of("log.").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_dies_anywhere_tells_stock_and_credit_in_one_line_of_versions() {
    at_points_of("relay.").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dies_while_it_releases_a_reservation_releases_it_once() {
    at_points_of("reservations.").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_that_dies_anywhere_charges_once_and_refunds_once() {
    at_points_of("payment.").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn persistence_that_dies_anywhere_writes_every_event_once() {
    at_points_of("persistence.").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_that_dies_leaves_the_views_whole() {
    at_points_of("projection.").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dies_while_it_writes_again_what_redis_lost_begins_anew() {
    let point = "catch-up.written";
    let (system, running) = shop(point).await;
    let projection = system.run(Role::Projection);
    let id = place(&system, &card_order("ann", "box", 1, "tok_ok")).await;
    system.order_in(&id, "paid").await;
    system.settle().await;
    projection.stop().await;
    // As after a crash: another server noted how far the views were, and a view is gone.
    let prefix = system.topology.namespace();
    let noted = async || redis(&system, &["GET", &format!("{prefix}:through")]).await;
    redis(&system, &["SET", &format!("{prefix}:through"), "dead 1"]).await;
    let views = redis(&system, &["KEYS", &format!("{prefix}:*:order:{id}")]).await;
    let view = views.split_whitespace().find(|word| word.starts_with(prefix));
    let view = view.expect("a view").to_owned();
    redis(&system, &["DEL", &view]).await;
    dies(start(&system, point), point).await;
    // The whole note: a server's name is random, and may have these letters in it.
    let other = "\r\ndead 1\r\n";
    let note = noted().await;
    assert!(note.contains(other), "it is not noted by who died: {note}");
    redis(&system, &["DEL", &view]).await;
    let successor = system.run(Role::Projection);
    system.order_in(&id, "paid").await;
    eventually("the catch-up is noted", async || (!noted().await.contains(other)).then_some(()))
        .await;
    for worker in running.into_iter().chain([successor]) {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_that_dies_ends_the_order_once() {
    let point = "expiry.appended";
    let (system, running) = shop(point).await;
    let id = place(&system, &card_order("ann", "box", 5, "tok_lost")).await;
    dies(start(&system, point), point).await;
    let successor = system.run(Role::Validation);
    system.order_in(&id, "expired").await;
    system.settle().await;
    assert_eq!(system.steps(&id).await.iter().filter(|step| *step == "expired").count(), 1);
    system.stock_is("box", [50, 0, 0]).await;
    for worker in running.into_iter().chain([successor]) {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_dies_before_its_answer_has_stored_the_order_once() {
    tokio::join!(an_edge_dies("api.stored"), an_edge_dies("api.marked"));
}

async fn an_edge_dies(point: &str) {
    let (system, running) = shop(point).await;
    let mut edge = start(&system, point);
    let http = edge.http().await;
    let order = card_order("ann", "box", 1, "tok_ok");
    let client = reqwest::Client::new();
    let request = client.post(format!("{http}/v1/orders")).header("Idempotency-Key", "once");
    request.json(&order).send().await.expect_err("the edge dies before it answers");
    dies(edge, point).await;
    // The client tries again, at another edge.
    let request = system.request("POST", "/v1/orders").header("Idempotency-Key", "once");
    let answer = system.send(request.header("Prefer", "wait=20").json(&order)).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    system.settle().await;
    system.stock_is("box", [49, 1, 0]).await;
    for worker in running {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dies_while_it_parks_a_message_parks_it_and_goes_on() {
    let point = "parking.parked";
    let (system, running) = shop(point).await;
    let subject = system.topology.event(
        millrace_shared::message::Subject::Order,
        "018f2d5e-7b3a-7c3e-9c1d-000000000009",
        "paid",
    );
    let ack = system.nats.request(subject, "no event".into()).await.expect("a publish ack");
    assert!(String::from_utf8_lossy(&ack.payload).contains("seq"));
    dies(start(&system, point), point).await;
    let successor = system.run(Role::Projection);
    let id = place(&system, &card_order("ann", "box", 1, "tok_ok")).await;
    system.order_in(&id, "paid").await;
    system.settle().await;
    let by_projection = parked(&system)
        .await
        .iter()
        .filter(|m| header(m, "Millrace-Worker") == "projection")
        .count();
    assert_eq!(by_projection, 1, "it is parked once");
    for worker in running.into_iter().chain([successor]) {
        worker.stop().await;
    }
    system.stop().await;
}

#[test]
fn every_point_belongs_to_a_process_that_a_test_lets_die() {
    let covered = [
        "api",
        "validation",
        "log",
        "relay",
        "reservations",
        "payment",
        "persistence",
        "projection",
        "expiry",
        "parking",
        "catch-up",
        // In tests/parked.
        "replay",
        "discard",
        // In tests/payments.
        "stripe",
    ];
    for (name, _) in POINTS {
        let owner = name.split('.').next().unwrap_or_default();
        assert!(covered.contains(&owner), "{name}");
    }
}
