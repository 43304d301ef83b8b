//! Several replicas of every worker, and workers that die at their work.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use millrace_workers::Role;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::harness::{System, card_order, eventually, usd};

const PRODUCTS: [&str; 3] = ["ash", "elm", "oak"];

/// Numbers that look random and are the same in every run (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: usize) -> usize {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % most
    }
}

/// Waits until an order is paid or rejected, and returns it.
async fn ended(system: &System, id: &str) -> Value {
    eventually(&format!("order {id} is paid or rejected"), async || {
        let order = system.order(id).await;
        ["paid", "rejected"].iter().any(|end| order["status"] == *end).then_some(order)
    })
    .await
}

/// The pieces of each product in orders with a status.
fn pieces(orders: &[Value], status: &str) -> BTreeMap<String, i64> {
    let mut pieces: BTreeMap<String, i64> = PRODUCTS.map(|id| (id.to_owned(), 0)).into();
    for line in orders
        .iter()
        .filter(|order| order["status"] == status)
        .flat_map(|order| order["lines"].as_array().expect("lines"))
    {
        let product = line["productId"].as_str().expect("an id").to_owned();
        *pieces.entry(product).or_default() += line["quantity"].as_i64().expect("a number");
    }
    pieces
}

/// Checks that the journal has no gaps, and shows what the views show.
async fn journal_agrees(system: &System, orders: &[Value]) {
    let broken: Vec<(String, String)> = sqlx::query_as(
        "select subject, subject_id from journal.events group by subject, subject_id
         having min(version) <> 1 or max(version) <> count(*)",
    )
    .fetch_all(&system.pool)
    .await
    .expect("the journal");
    assert_eq!(broken, [], "versions run from 1 without a gap");
    for order in orders {
        let id = order["orderId"].as_str().expect("an id");
        let view = system.order(id).await;
        let row: Value = sqlx::query_scalar(
            "select json_build_object('status', status, 'version', version, 'total', total,
                    'payment', payment_status, 'charge', charge_id, 'reason', reason)
             from journal.orders where order_id = $1::uuid",
        )
        .bind(id)
        .fetch_one(&system.pool)
        .await
        .expect("the journal has the order");
        let shown = json!({
            "status": view["status"], "version": view["version"],
            "total": view["total"]["amount"], "payment": view["payment"]["status"],
            "charge": view["payment"]["chargeId"], "reason": view["reason"],
        });
        assert_eq!(row, shown);
    }
    for id in PRODUCTS {
        let view = system.get(&format!("/v1/products/{id}")).await.body;
        let row: Value = sqlx::query_scalar(
            "select json_build_object('available', available, 'reserved', reserved, 'sold', sold,
                    'version', version)
             from journal.products where product_id = $1",
        )
        .bind(id)
        .fetch_one(&system.pool)
        .await
        .expect("the journal has the product");
        let stock = |part: &str| view["stock"][part].clone();
        let shown = json!({ "available": stock("available"), "reserved": stock("reserved"),
            "sold": stock("sold"), "version": view["version"] });
        assert_eq!(row, shown, "{id}");
    }
}

/// Checks that each paid card order was charged once and no other order at all.
async fn charged_once(system: &System, orders: &[Value]) {
    let mut booked: Vec<(String, i64)> = sqlx::query_as(
        "select idempotency_key, count(*) from sandbox.charges where outcome = 'succeeded'
         group by idempotency_key order by idempotency_key",
    )
    .fetch_all(&system.pool)
    .await
    .expect("the book");
    let mut expected: Vec<(String, i64)> = orders
        .iter()
        .filter(|order| order["status"] == "paid" && order["payment"]["method"] == "card")
        .map(|order| (format!("charge-{}", order["orderId"].as_str().expect("an id")), 1))
        .collect();
    booked.sort();
    expected.sort();
    assert_eq!(booked, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_of_everything_sell_no_piece_twice_and_lose_none() {
    let system = System::with_workers(2).await;
    for id in PRODUCTS {
        system.define(id, 100, 15).await;
    }
    for id in ["ann", "bob"] {
        system.register(id, Some(1_500)).await;
    }
    let mut numbers = Numbers(20_260_101);
    let orders: Vec<Value> = (0..60)
        .map(|n| {
            let at = numbers.below(3);
            let line = |at: usize, numbers: &mut Numbers| {
                json!({ "productId": PRODUCTS[at % 3], "quantity": numbers.below(3) + 1 })
            };
            let mut lines = vec![line(at, &mut numbers)];
            if numbers.below(2) == 0 {
                lines.push(line(at + 1 + numbers.below(2), &mut numbers));
            }
            let payment = match n % 2 {
                0 => json!({ "method": "card", "token": "tok_ok" }),
                _ => json!({ "method": "account" }),
            };
            let customer = ["ann", "bob"][numbers.below(2)];
            json!({ "customerId": customer, "lines": lines, "payment": payment })
        })
        .collect();
    let placed = join_all(orders.iter().map(|order| system.post("/v1/orders", order))).await;
    let mut ends = Vec::new();
    for answer in placed {
        assert_eq!(answer.status, 202, "{answer:?}");
        ends.push(ended(&system, &answer.text("/orderId")).await);
    }
    system.settle().await;
    let paid = pieces(&ends, "paid");
    assert!(ends.iter().any(|order| order["reason"] == "out_of_stock"), "the stock was too little");
    for (id, held) in &paid {
        assert!((0..=15).contains(held), "{id}: {held}");
        system.stock_is(id, [15 - held, *held, 0]).await;
    }
    for id in ["ann", "bob"] {
        let used: i64 = ends
            .iter()
            .filter(|order| order["status"] == "paid" && order["customerId"] == id)
            .filter(|order| order["payment"]["method"] == "account")
            .map(|order| order["total"]["amount"].as_i64().expect("a total"))
            .sum();
        let customer = system.get(&format!("/v1/customers/{id}")).await.body;
        assert!(used <= 1_500);
        assert_eq!((&customer["creditUsed"], &customer["creditLimit"]), (&usd(used), &usd(1_500)));
    }
    charged_once(&system, &ends).await;

    // All that is paid leaves the house.
    let shipment = json!({ "carrier": "Post", "trackingNumber": "1" });
    join_all(ends.iter().filter(|order| order["status"] == "paid").map(async |order| {
        let path = format!("/v1/orders/{}/ship", order["orderId"].as_str().expect("an id"));
        let answer = system.post_and_wait(&path, &shipment).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }))
    .await;
    system.settle().await;
    for (id, sold) in &paid {
        system.stock_is(id, [15 - sold, 0, *sold]).await;
    }
    journal_agrees(&system, &ends).await;
    system.stop().await;
}

/// A worker in a runtime of its own, which can end in the middle of anything.
struct Doomed {
    runtime: Runtime,
}

impl Doomed {
    fn start(system: &System, role: Role) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let config = system.config.clone();
        runtime.spawn(async move {
            Box::pin(millrace_workers::run(role, &config, CancellationToken::new())).await
        });
        Self { runtime }
    }

    /// Every task of the worker ends where it is; connections break.
    fn die(self) {
        self.runtime.shutdown_background();
    }
}

/// What the dead have taken along is delivered again after this time, and not only after the usual
/// half a minute.
async fn hurry(system: &System) {
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    for name in [system.topology.commands_stream(), system.topology.events_stream()] {
        let stream = jetstream.get_stream(&name).await.expect("a stream");
        let mut consumers = std::pin::pin!(stream.consumers());
        while let Some(info) = futures_util::StreamExt::next(&mut consumers).await {
            let mut config = info.expect("a consumer").config;
            if config.durable_name.is_none() {
                continue;
            }
            config.ack_wait = std::time::Duration::from_secs(2);
            stream.update_consumer(config).await.expect("the consumer is changed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_die_at_their_work_lose_no_order_and_charge_none_twice() {
    let system = System::without_workers().await;
    let mut workers = Role::ALL.map(|role| (role, Doomed::start(&system, role)));
    for id in PRODUCTS {
        system.define(id, 100, 25).await;
    }
    system.register("ann", None).await;
    let mut numbers = Numbers(7);
    let mut sequences = Vec::new();
    // Two deaths of each worker, each while twelve orders are under way.
    for (role, worker) in &mut workers {
        for _ in 0..2 {
            let orders: Vec<Value> = (0..12)
                .map(|_| {
                    let token = ["tok_ok", "tok_ok", "tok_timeout", "tok_flaky"][numbers.below(4)];
                    let product = PRODUCTS[numbers.below(3)];
                    card_order("ann", product, 1, token)
                })
                .collect();
            let placed = orders.iter().map(|order| system.publish("order.place", order));
            sequences.extend(join_all(placed).await);
            std::mem::replace(worker, Doomed::start(&system, *role)).die();
        }
    }
    hurry(&system).await;
    let mut ends = Vec::new();
    for sequence in &sequences {
        let outcome = system.outcome(&sequence.to_string()).await;
        let id = outcome["orderId"].as_str().unwrap_or_else(|| panic!("{outcome}")).to_owned();
        ends.push(ended(&system, &id).await);
    }
    system.settle().await;
    let paid = pieces(&ends, "paid");
    assert!(paid.values().sum::<i64>() > 60, "{paid:?}");
    for (id, held) in &paid {
        system.stock_is(id, [25 - held, *held, 0]).await;
    }
    charged_once(&system, &ends).await;
    journal_agrees(&system, &ends).await;
    for order in &ends {
        system.steps(order["orderId"].as_str().expect("an id")).await;
    }
    for (_, worker) in workers {
        worker.die();
    }
    system.stop().await;
}
