//! The pure functions that every order passes: reading and deciding commands, writing and reading
//! events. `cargo bench -p millrace-workers`

#![allow(
    clippy::expect_used,
    missing_docs,
    reason = "a measurement that cannot be made has failed"
)]

use std::hint::black_box;
use std::time::Duration;

use chrono::{DateTime, Utc};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use millrace_shared::command::Received;
use millrace_shared::message::{Cause, Event};
use millrace_shared::order::{self, AfterCharge, Order, Stamp};
use millrace_shared::service::Counters;
use millrace_shared::telemetry::{LogConfig, LogFormat};
use millrace_shared::trace::Trace;
use millrace_workers::book::{Book, Incoming, Ruling};
use serde_json::{Value, json};
use uuid::Uuid;

/// Commands in a batch, as validation takes them.
const BATCH: u64 = 256;
/// Products, and as many customers.
const PRODUCTS: u64 = 100;

fn at() -> DateTime<Utc> {
    DateTime::from_timestamp(1_790_000_000, 0).expect("a time")
}

fn read(kind: &str, body: &[u8], sequence: u64) -> Incoming {
    let received = Received::read(kind, body, |_| None, ("COMMANDS", sequence));
    Incoming { received, at: at(), sequence, traceparent: None }
}

fn usd(amount: u64) -> Value {
    json!({ "amount": amount, "currency": "USD" })
}

/// An order of two products, every second one by card.
fn order(number: u64) -> Vec<u8> {
    let payment = match number % 2 {
        0 => json!({ "method": "account" }),
        _ => json!({ "method": "card", "token": "tok_ok" }),
    };
    let product = |number: u64| format!("product-{}", number % PRODUCTS);
    json!({
        "customerId": format!("customer-{}", number % PRODUCTS), "payment": payment,
        "idempotencyKey": format!("key-{number}"),
        "lines": [
            { "productId": product(number), "quantity": 2 },
            { "productId": product(number * 7 + 1), "quantity": 1 },
        ],
    })
    .to_string()
    .into_bytes()
}

/// A book in which all that the orders name exists.
fn full() -> Book {
    let mut book = Book::default();
    for number in 0..PRODUCTS {
        let product = json!({
            "productId": format!("product-{number}"), "name": "Ridgeline 40 L Backpack",
            "brand": "Fellhaven", "category": "Outdoor", "price": usd(7_995),
            "initialStock": 1_000_000,
        });
        let customer = json!({
            "customerId": format!("customer-{number}"), "name": "Ansa Ambervale",
            "creditLimit": usd(1_000_000_000),
        });
        // Ids follow from the sequence: no two messages have the same.
        let kinds = [("product.define", product), ("customer.register", customer)];
        for ((kind, body), sequence) in kinds.into_iter().zip(2 * number + 1..) {
            let command = read(kind, body.to_string().as_bytes(), sequence);
            book.rule(&command, at()).expect("a ruling");
        }
    }
    book
}

/// The book of a batch that is about to be decided.
fn fresh(full: &Book) -> Book {
    Book { customers: full.customers.clone(), products: full.products.clone(), ..Book::default() }
}

fn decide(book: &mut Book, command: &Incoming) -> Vec<Event> {
    match book.rule(command, at()).expect("a ruling") {
        Ruling::Decided(decision) => decision.events,
        other => panic!("not decided: {other:?}"),
    }
}

fn commands(criterion: &mut Criterion) {
    let bodies: Vec<Vec<u8>> = (0..BATCH).map(order).collect();
    let read_all = |bodies: &[Vec<u8>]| -> Vec<Incoming> {
        bodies.iter().zip(1_000..).map(|(body, at)| read("order.place", body, at)).collect()
    };
    let incoming = read_all(&bodies);
    let full = full();
    let mut group = criterion.benchmark_group("commands");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("read", |bench| bench.iter(|| read_all(black_box(&bodies))));
    group.bench_function("decide", |bench| {
        bench.iter_batched_ref(
            || fresh(&full),
            |book| incoming.iter().map(|it| decide(book, it).len()).sum::<usize>(),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn events(criterion: &mut Criterion) {
    let mut book = fresh(&full());
    let command = read("order.place", &order(1), 1_000);
    let event = decide(&mut book, &command).pop().expect("an event");
    let bytes = event.encode().expect("JSON");
    let state: Order = event.state().expect("an order");
    let AfterCharge::Append(charged) = order::charged(&state, Some("ch_1")) else {
        panic!("a validated order can be charged");
    };
    let cause = Cause { causation: Uuid::nil(), correlation: Uuid::nil(), traceparent: None };
    let stamp = Stamp { version: 2, at: at(), causation: cause.causation };
    let pay = || {
        let after = Order::apply(Some(&state), state.order_id, stamp, &charged).expect("a step");
        Event::order(&charged, &after, &cause).expect("an event")
    };
    assert_eq!(pay().kind, "paid");
    let mut group = criterion.benchmark_group("events");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode", |bench| bench.iter(|| black_box(&event).encode()));
    group.bench_function("decode", |bench| bench.iter(|| Event::decode(black_box(&bytes))));
    group.bench_function("state", |bench| bench.iter(|| black_box(&event).state::<Order>()));
    group.bench_function("pay", |bench| bench.iter(pay));
    group.finish();
}

/// What it costs to watch a batch: counting it and each of its messages, and their places in traces,
/// where nothing is exported. With `OTEL_EXPORTER_OTLP_ENDPOINT` set, what it costs then.
fn watched(criterion: &mut Criterion) {
    let log = LogConfig { log: None, log_format: LogFormat::Pretty };
    let telemetry = log.start("warn,opentelemetry=off", "bench").expect("telemetry");
    let counters = Counters::new("bench");
    let size = usize::try_from(BATCH).expect("a size");
    let mut group = criterion.benchmark_group("watched");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("counted", |bench| {
        bench.iter(|| {
            let under_way = counters.batch(size);
            (0..BATCH).for_each(|_| counters.processed(Duration::from_millis(7)));
            drop(under_way);
        });
    });
    // Spans are made only where `OTEL_EXPORTER_OTLP_ENDPOINT` says that they are exported.
    let of_flag = |flag| format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flag}");
    for (name, parent) in [("unsampled", of_flag("00")), ("sampled", of_flag("01"))] {
        group.bench_function(name, |bench| {
            bench.iter(|| {
                for _ in 0..BATCH {
                    black_box(Trace::follow(Some(&parent), || "bench order.place".into()))
                        .end(None);
                }
            });
        });
    }
    group.finish();
    telemetry.stop();
}

criterion_group!(benches, commands, events, watched);
criterion_main!(benches);
