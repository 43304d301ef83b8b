//! The lists of orders: pages under any filter are what a model says, whatever is written meanwhile,
//! in whatever order, and however often.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use millrace_api::ApiConfig;
use millrace_api::Server;
use millrace_shared::command::PaymentMethod;
use millrace_shared::ids::{CustomerId, OrderId};
use millrace_shared::message::{Cause, Event};
use millrace_shared::money::{Currency, Money};
use millrace_shared::order::{
    Order, OrderEvent, OrderLine, OrderStatus, Placement, Shipment, Stamp,
};
use millrace_shared::reason::{Reason, Refusal};
use millrace_shared::views::{Generations, OrderFilter, OrderPage, Place, Views};
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{System, account_order, card_order, usd};

mod cost;

/// Any event that an order may have after its first.
fn later() -> Vec<OrderEvent> {
    let shipment = Shipment { carrier: "Post".to_owned(), tracking_number: "1".to_owned() };
    let refusal = Refusal::new(Reason::PaymentDeclined, "declined");
    vec![
        OrderEvent::PaymentUnknown { detail: "no answer".to_owned() },
        OrderEvent::Paid { charge_id: None },
        OrderEvent::Paid { charge_id: None },
        OrderEvent::Shipped(shipment.clone()),
        OrderEvent::Shipped(shipment),
        OrderEvent::Delivered {},
        OrderEvent::Cancelled { reason: None },
        OrderEvent::Expired {},
        OrderEvent::RefundRequested { reason: None },
        OrderEvent::Refunded { charge_id: None, refund_id: None },
        OrderEvent::Rejected { refusal, placement: None },
    ]
}

/// The events of one order with two lines: as many steps as fit of those that are tried.
fn history(customer: &CustomerId, placed_at: DateTime<Utc>, tries: &[OrderEvent]) -> Vec<Event> {
    let price = Money::new(1_999, Currency::from_code("USD").expect("a currency"));
    let line = |product: &str| OrderLine {
        product_id: product.parse().expect("an id"),
        name: Some(format!("Product {product}, large, blue")),
        brand: Some("Acme".to_owned()),
        quantity: 2,
        unit_price: Some(price),
        line_total: Some(price),
    };
    let first = OrderEvent::Validated(Placement {
        customer_id: customer.clone(),
        lines: vec![line("bottle-half-litre"), line("trekking-poles")],
        total: Some(price),
        payment: PaymentMethod::Account {},
        placed_at,
    });
    let (order, cause) = (OrderId(Uuid::now_v7()), Uuid::now_v7());
    let cause = Cause { causation: cause, correlation: cause, traceparent: None };
    let (mut before, mut events): (Option<Order>, Vec<Event>) = (None, Vec::new());
    for event in std::iter::once(&first).chain(tries) {
        let version = events.len() as u64 + 1;
        let stamp = Stamp { version, at: placed_at, causation: cause.causation };
        if let Ok(after) = Order::apply(before.as_ref(), order, stamp, event) {
            events.push(Event::order(event, &after, &cause).expect("an event"));
            before = Some(after);
        }
    }
    events
}

/// Views of a system that has none yet.
async fn begin(system: &System) -> Views {
    let redis = system.admin.redis.client().expect("Redis");
    let views = Views::new(redis, system.topology.namespace());
    let begun = views.replace(Generations::default(), Generations::only(1)).await;
    assert!(begun.expect("Redis answers"));
    views
}

/// What the lists should have: customer and status by place.
type Model = BTreeMap<Place, (CustomerId, OrderStatus)>;

fn learn(model: &mut Model, history: &[Event]) {
    let last: Order = history.last().expect("an event").state().expect("an order");
    let place = Place::new(last.placed_at, last.order_id);
    model.insert(place, (last.customer_id, last.status));
}

fn wanted(model: &Model, customer: Option<&CustomerId>, filter: &OrderFilter) -> Vec<Place> {
    let fits = |place: &Place, of: &CustomerId, status: OrderStatus| {
        customer.is_none_or(|customer| customer == of)
            && (filter.statuses.is_empty() || filter.statuses.contains(&status))
            && filter.from.is_none_or(|from| place.placed_at() >= from)
            && filter.to.is_none_or(|to| place.placed_at() < to)
    };
    let all = model.iter().rev();
    all.filter(|(place, (of, status))| fits(place, of, *status)).map(|(p, _)| p.clone()).collect()
}

fn place_of(item: &str) -> Place {
    let order: Order = serde_json::from_str(item).expect("an order");
    Place::new(order.placed_at, order.order_id)
}

async fn page(
    views: &Views,
    customer: Option<&CustomerId>,
    filter: &OrderFilter,
    after: Option<&Place>,
    limit: usize,
) -> OrderPage {
    let page = match customer {
        Some(customer) => views.customer_orders(customer, filter, after, limit).await,
        None => views.all_orders(filter, after, limit).await,
    };
    page.expect("Redis answers")
}

/// All pages, one after another.
async fn pages(
    views: &Views,
    customer: Option<&CustomerId>,
    filter: &OrderFilter,
    limit: usize,
) -> (Vec<Place>, Option<u64>) {
    let (mut found, mut after, mut counted) = (Vec::new(), None, None);
    loop {
        let page = page(views, customer, filter, after.as_ref(), limit).await;
        assert!(page.items.len() <= limit, "{page:?}");
        found.extend(page.items.iter().map(|item| place_of(item)));
        counted = counted.or(page.count);
        after = page.next;
        if after.is_none() {
            return (found, counted);
        }
    }
}

fn customers() -> Vec<CustomerId> {
    ["ann", "bob", "2026-11-21"].map(|id| id.parse().expect("an id")).to_vec()
}

fn any_filter(random: &mut ChaCha8Rng, times: &[DateTime<Utc>]) -> OrderFilter {
    let count = random.random_range(0..4);
    let statuses: BTreeSet<_> = OrderStatus::ALL.sample(random, count).copied().collect();
    let mut time = || random.random_bool(0.5).then(|| *times.choose(random).expect("a time"));
    OrderFilter { statuses, from: time(), to: time() }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_under_any_filter_are_what_the_model_says_in_whatever_order_events_came() {
    let system = System::without_workers().await;
    let views = begin(&system).await;
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // Around midnight, a month apart, and many in the same microsecond.
    let midnight: DateTime<Utc> = "2026-11-21T00:00:00Z".parse().expect("a time");
    let times: Vec<DateTime<Utc>> = (-3..3)
        .map(TimeDelta::microseconds)
        .chain([-40, -9, 30].map(TimeDelta::days))
        .map(|away| midnight + away)
        .collect();
    let (mut model, mut events) = (Model::new(), Vec::new());
    for _ in 0..400 {
        let customer = customers().choose(&mut random).expect("a customer").clone();
        let placed_at = *times.choose(&mut random).expect("a time");
        let mut tries = later();
        tries.shuffle(&mut random);
        let history = history(&customer, placed_at, &tries[..random.random_range(0..tries.len())]);
        learn(&mut model, &history);
        for event in history {
            // Every event once, some more often.
            let copies = 1 + random.random_range(0..4_usize) / 3;
            events.extend(std::iter::repeat_n(event, copies));
        }
    }
    events.shuffle(&mut random);
    let batches: Vec<&[Event]> = events.chunks(50).collect();
    for written in join_all(batches.iter().map(|batch| views.apply(batch.iter()))).await {
        written.expect("Redis answers");
    }
    for round in 0..150 {
        let filter = any_filter(&mut random, &times);
        let customer = customers().choose(&mut random).cloned().filter(|_| round % 3 > 0);
        let limit = *[1, 2, 7, 100].choose(&mut random).expect("a limit");
        let expected = wanted(&model, customer.as_ref(), &filter);
        let (found, count) = pages(&views, customer.as_ref(), &filter, limit).await;
        assert_eq!(found, expected, "{customer:?} {filter:?} {limit}");
        assert_eq!(count, customer.map(|_| expected.len() as u64), "{filter:?}");
    }
    views.close().await.expect("it closes");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_neither_skip_nor_repeat_an_order_while_others_come_and_move() {
    let system = System::without_workers().await;
    let views = begin(&system).await;
    let ann: CustomerId = "ann".parse().expect("an id");
    let start: DateTime<Utc> = "2026-11-20T23:59:59.999Z".parse().expect("a time");
    let at = |number: i64| start + TimeDelta::microseconds(number * 10);
    let paid = [OrderEvent::Paid { charge_id: None }];
    // Of those that are there before, every second is paid and stays so.
    let mut still = Vec::new();
    for number in 0..300 {
        let tries = if number % 2 == 0 { &paid[..] } else { &[] };
        let history = history(&ann, at(number), tries);
        views.apply(history.iter()).await.expect("Redis answers");
        still.push(history);
    }
    let mut model = Model::new();
    still.iter().step_by(2).for_each(|history| learn(&mut model, history));
    let paid_only = OrderFilter { statuses: [OrderStatus::Paid].into(), ..OrderFilter::default() };
    let expected = wanted(&model, None, &paid_only);
    let over = AtomicBool::new(false);
    let moved = Mutex::new(0_u32);
    // New ones come before and between; the others that were there are called off.
    let write = async {
        let mut number = 0;
        while !over.load(Ordering::Relaxed) && number < 1_000 {
            let new = history(&ann, at(number % 300) + TimeDelta::microseconds(5), &paid);
            views.apply(new.iter()).await.expect("Redis answers");
            let first = usize::try_from(number).expect("small") * 2 + 1;
            if let Some([validated]) = still.get(first).map(Vec::as_slice) {
                let order: Order = validated.state().expect("an order");
                let stamp = Stamp { version: 2, at: order.placed_at, causation: Uuid::now_v7() };
                let event = OrderEvent::Expired {};
                let after = Order::apply(Some(&order), order.order_id, stamp, &event);
                let event = Event::order(&event, &after.expect("legal"), &validated.as_cause());
                views.apply([event.expect("an event")].iter()).await.expect("Redis answers");
                *moved.lock().expect("no panic") += 1;
            }
            number += 1;
        }
    };
    let read = async {
        for round in 0..12 {
            let customer = Some(&ann).filter(|_| round % 2 == 0);
            for filter in [&paid_only, &OrderFilter::default()] {
                let (found, _) = pages(&views, customer, filter, 5 + 3 * round).await;
                assert!(found.is_sorted_by(|a, b| a > b), "newest first, and none twice");
                let known: Vec<Place> =
                    found.into_iter().filter(|place| expected.contains(place)).collect();
                assert_eq!(known, expected, "what was there and stayed is on exactly one page");
            }
        }
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(write, read);
    assert!(*moved.lock().expect("no panic") > 20);
    views.close().await.expect("it closes");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customers_orders_are_listed_by_status_and_time_with_their_lines_as_they_were_bought() {
    let system = System::start().await;
    system.register("ann", Some(100_000)).await;
    system.define("pen", 100, 1_000).await;
    let mut ids = Vec::new();
    for order in [
        account_order("ann", "pen", 1),
        card_order("ann", "pen", 2, "tok_declined"),
        account_order("ann", "pen", 3),
        card_order("ann", "none", 4, "tok_ok"),
    ] {
        ids.push(system.post_and_wait("/v1/orders", &order).await.body["orderId"].clone());
    }
    // Problems name their order elsewhere: take them from the list.
    let all = system.get("/v1/customers/ann/orders").await.body;
    assert_eq!(all["count"], 4, "{all}");
    assert_eq!(all["nextCursor"], Value::Null);
    let of = |list: &Value, field: &str| -> Vec<String> {
        let items = list["items"].as_array().expect("items");
        items
            .iter()
            .map(|it| it.pointer(field).and_then(Value::as_str).unwrap_or("").to_owned())
            .collect()
    };
    assert_eq!(of(&all, "/status"), ["rejected", "paid", "rejected", "paid"]);
    let listed = of(&all, "/orderId");
    // The product is another one by now.
    system.define("pen", 250, 0).await;
    let paid = system.get("/v1/customers/ann/orders?status=paid&limit=1").await.body;
    assert_eq!((&paid["count"], of(&paid, "/orderId")), (&json!(2), vec![listed[1].clone()]));
    let bought = paid["items"][0]["lines"][0].clone();
    assert_eq!(bought["unitPrice"], usd(100));
    assert_eq!((&bought["lineTotal"], &paid["items"][0]["total"]), (&usd(300), &usd(300)));
    assert_eq!((&bought["name"], &bought["brand"]), (&json!("Product pen"), &json!("Acme")));
    let cursor = paid["nextCursor"].as_str().expect("there is more");
    let next = format!("/v1/customers/ann/orders?status=paid&limit=1&cursor={cursor}");
    let next = system.get(&next).await.body;
    assert_eq!(
        (of(&next, "/orderId"), &next["nextCursor"]),
        (vec![listed[3].clone()], &Value::Null)
    );
    // Half-open: from the third newest up to, and without, the newest.
    let placed = of(&all, "/placedAt");
    let range = format!("from={}&to={}", placed[2], placed[0]);
    let some = system.get(&format!("/v1/customers/ann/orders?{range}")).await.body;
    assert_eq!(of(&some, "/orderId"), listed[1..=2]);
    let some =
        system.get(&format!("/v1/customers/ann/orders?{range}&status=rejected,shipped")).await;
    assert_eq!(
        (of(&some.body, "/orderId"), &some.body["count"]),
        (vec![listed[2].clone()], &json!(1))
    );
    for (query, field) in [
        ("status=pending", "status"),
        ("status=", "status"),
        ("status=paid,lost", "status"),
        ("from=yesterday", "from"),
        ("from=2026-11-21T00:00:00Z&to=2026-11-21T00:00:00Z", "to"),
        ("cursor=1_2", "cursor"),
        ("limit=0", "limit"),
        ("page=2", "page"),
    ] {
        let answer = system.get(&format!("/v1/customers/ann/orders?{query}")).await;
        assert_eq!(answer.status, 400, "{query} {answer:?}");
        assert_eq!(answer.text("/errors/0/field"), field, "{answer:?}");
    }
    // The same over everybody's orders is not for everybody.
    assert_eq!(system.get("/v1/orders").await.status, 405);
    let edge = ApiConfig::new(
        "127.0.0.1:0".parse().expect("an address"),
        system.config.nats.clone(),
        system.config.redis.clone(),
    );
    let edge = edge.with_operator_routes(system.config.postgres.clone());
    let server = Server::bind(edge).await.expect("the api binds");
    let (http, stop) = (server.local_addr(), CancellationToken::new());
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move { server.serve(stop).await.expect("the api ends well") }
    });
    system.register("bob", None).await;
    let bobs = system.post_and_wait("/v1/orders", &card_order("bob", "pen", 1, "tok_ok")).await;
    let all = reqwest::get(format!("http://{http}/v1/orders?limit=3")).await.expect("an answer");
    let all: Value = serde_json::from_str(&all.text().await.expect("text")).expect("JSON");
    assert_eq!(of(&all, "/orderId"), [bobs.text("/orderId"), listed[0].clone(), listed[1].clone()]);
    assert!(all["nextCursor"].is_string() && all.get("count").is_none(), "{all}");
    stop.cancel();
    serving.await.expect("it ended");
    system.stop().await;
}
