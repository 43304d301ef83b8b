//! Reports equal SQL over the journal, in every bucket and to the cent, in whatever order and
//! however often events are projected, also after the views were made anew.

mod cost;
mod past;
mod record;
mod same;

use chrono::TimeDelta;
use futures_util::future::join_all;
use millrace_cli::verify::{self, VerifyConfig};
use millrace_shared::message::{Event, now};
use millrace_shared::views::Views;
use millrace_workers::Role;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::harness::{Running, System, account_order, card_order, eventually, usd};
use crate::parked::shop::Edge;
use crate::rebuild::redis;
use same::{report, reports_equal_sql, rows};

/// What `verify` finds wrong with the reports.
async fn verified(system: &System) -> Vec<String> {
    let settle = std::time::Duration::from_millis(200);
    let report = verify::check(&VerifyConfig::from(&system.config), settle).await;
    let report = report.expect("the data are read");
    let row = report.checks.into_iter().find(|row| row.check == "reports").expect("a row");
    assert!(row.checked > 0);
    row.offenders.into_iter().map(|it| format!("{}: {}", it.id, it.problem)).collect()
}

/// Publishes the events as workers do: each history in its order, all of them mixed.
async fn publish(system: &System, histories: &[Vec<Event>], random: &mut ChaCha8Rng) {
    let mut turns: Vec<usize> =
        histories.iter().enumerate().flat_map(|(n, it)| vec![n; it.len()]).collect();
    turns.shuffle(random);
    let mut left: Vec<_> = histories.iter().map(|history| history.iter()).collect();
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let mut acks = Vec::new();
    for turn in turns {
        let event = left[turn].next().expect("one for each turn");
        let subject = system.topology.event(event.subject, &event.subject_id, &event.kind);
        let payload = event.encode().expect("JSON");
        acks.push(jetstream.publish(subject, payload).await.expect("it is sent").into_future());
    }
    for ack in join_all(acks).await {
        ack.expect("it is stored");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_report_equals_sql_however_events_are_projected_and_after_views_are_made_anew() {
    let system = System::without_workers().await;
    let edge = Edge::open(&system).await;
    let workers =
        [Role::Persistence, Role::Projection, Role::Projection].map(|role| system.run(role));
    eventually("the first views are there", async || {
        (system.get("/v1/products").await.status == 200).then_some(())
    })
    .await;
    let mut random = ChaCha8Rng::seed_from_u64(20_261_121);
    let histories = past::past(20_261_121, 500, 12);
    publish(&system, &histories, &mut random).await;
    system.settle().await;
    reports_equal_sql(&system, &edge, 20).await;
    assert_eq!(verified(&system).await, [""; 0]);

    // Every event twice more, in any order, in batches of any size, by several writers at once.
    let views =
        |_| Views::new(system.admin.redis.client().expect("Redis"), system.topology.namespace());
    let events: Vec<Event> = histories.into_iter().flatten().collect();
    let deliver = async |views: Views, seed: u64| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut events = events.clone();
        events.extend(events.clone());
        events.shuffle(&mut random);
        let mut left = events.as_slice();
        while !left.is_empty() {
            let (batch, rest) = left.split_at(random.random_range(1..=left.len().min(600)));
            views.apply(batch.iter()).await.expect("the views are written");
            left = rest;
        }
    };
    let writers = [1, 2, 3].map(|seed| deliver(views(seed), seed));
    join_all(writers).await;
    reports_equal_sql(&system, &edge, 20).await;

    // Into views where nothing is counted yet, by the same writers: the log is not asked.
    let empty = |key: &str| {
        let script =
            "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end";
        let pattern = format!("{}:{key}", system.topology.namespace());
        let (system, script) = (&system, script.to_owned());
        async move { redis(system, &["EVAL", &script, "0", &pattern]).await }
    };
    empty("*:reports:*").await;
    assert_ne!(verified(&system).await, [""; 0]);
    let writers = [4, 5, 6].map(|seed| deliver(views(seed), seed));
    join_all(writers).await;
    reports_equal_sql(&system, &edge, 20).await;

    // Made anew from the journal, and from nothing.
    crate::rebuild::rebuilt(&system).await;
    reports_equal_sql(&system, &edge, 20).await;
    empty("*").await;
    eventually("the views are there again", async || {
        (system.get("/v1/products").await.status == 200).then_some(())
    })
    .await;
    reports_equal_sql(&system, &edge, 20).await;
    assert_eq!(verified(&system).await, [""; 0]);
    join_all(workers.map(Running::stop)).await;
    edge.close().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_customers_do_is_in_the_reports() {
    let system = System::with_workers(2).await;
    let edge = Edge::open(&system).await;
    system.register("ada", Some(100_000)).await;
    system.define("mug", 1_250, 500).await;
    system.define("pen", 300, 5).await;
    let body = json!({ "name": "Kop", "brand": "Best", "category": "Things",
        "price": { "amount": 900, "currency": "EUR" }, "initialStock": 9 });
    assert_eq!(system.put_and_wait("/v1/products/kop", &body).await.status, 200);
    let place = async |order: Value| {
        let placed = system.post_and_wait("/v1/orders", &order).await;
        assert!([201, 422].contains(&placed.status), "{placed:?}");
        placed.text("/orderId")
    };
    let refunded = place(card_order("ada", "mug", 3, "tok_ok")).await;
    for order in [
        card_order("ada", "mug", 2, "tok_ok"),
        account_order("ada", "mug", 1),
        account_order("ada", "kop", 4),
        card_order("ada", "kop", 1, "tok_ok"),
        card_order("ada", "pen", 1, "tok_timeout"),
        card_order("ada", "mug", 1, "tok_declined"),
        card_order("ada", "pen", 50, "tok_ok"),
        card_order("nobody", "pen", 1, "tok_ok"),
    ] {
        place(order).await;
    }
    let cancel = format!("/v1/orders/{refunded}/cancel");
    assert_eq!(system.post_and_wait(&cancel, &json!({})).await.status, 200);
    system.order_in(&refunded, "refunded").await;
    system.settle().await;
    let sales = report(&system, &edge, "sales?by=hour").await;
    let buckets = rows(&sales["buckets"]);
    assert_eq!((buckets.len(), sales["by"].as_str()), (30, Some("hour")));
    let eur = |amount: i64| json!({ "amount": amount, "currency": "EUR" });
    // The order on account in EUR is beyond a limit in USD: one of kop is left.
    let expected = json!([
        { "currency": "EUR", "orders": 1, "units": 1, "gross": eur(900), "refunds": 0,
          "refunded": eur(0), "net": eur(900) },
        { "currency": "USD", "orders": 4, "units": 7, "gross": usd(7_800), "refunds": 1,
          "refunded": usd(3_750), "net": usd(4_050) },
    ]);
    assert_eq!(sales["total"]["currencies"], expected);
    let payments = report(&system, &edge, "payments").await;
    let card = json!({ "paid": 4, "declined": 1, "successRate": 0.8 });
    assert_eq!(payments["total"]["card"], card);
    assert_eq!(
        (&payments["total"]["paid"], &payments["total"]["declined"]),
        (&json!(5), &json!(1))
    );
    let top = report(&system, &edge, "top-products?limit=1").await;
    let mug = json!({ "productId": "mug", "name": "Product mug", "brand": "Acme", "units": 6,
        "amount": usd(7_500) });
    assert_eq!(top["currencies"][1], json!({ "currency": "USD", "items": [mug] }));
    let brands = report(&system, &edge, "top-brands?by=units").await;
    let acme = json!({ "brand": "Acme", "units": 7, "amount": usd(7_800) });
    assert_eq!(brands["currencies"][1]["items"], json!([acme]));
    reports_equal_sql(&system, &edge, 10).await;
    assert_eq!(verified(&system).await, [""; 0]);
    // Reports are not for customers.
    assert_eq!(system.get("/v1/reports/sales").await.status, 404);
    edge.close().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_the_bucket_that_is_damaged() {
    let system = System::without_workers().await;
    let workers = [Role::Persistence, Role::Projection].map(|role| system.run(role));
    eventually("the first views are there", async || {
        (system.get("/v1/products").await.status == 200).then_some(())
    })
    .await;
    let mut random = ChaCha8Rng::seed_from_u64(7);
    publish(&system, &past::past(7, 60, 3), &mut random).await;
    system.settle().await;
    join_all(workers.map(Running::stop)).await;
    assert_eq!(verified(&system).await, [""; 0]);
    let generation = system.views.generations().await.expect("Redis").current.expect("views");
    let prefix = format!("{}:{generation}:reports:{{0}}:", system.topology.namespace());
    let day = now() - TimeDelta::days(1);
    let [date, month] = ["%Y-%m-%d", "%Y-%m"].map(|form| day.format(form).to_string());
    let add = |key: String, field: &str, by: &str| {
        let words =
            ["HINCRBY".to_owned(), format!("{prefix}{key}"), field.to_owned(), by.to_owned()];
        let system = &system;
        async move { redis(system, &words.each_ref().map(String::as_str)).await }
    };
    let days = format!("{} USD a", day.format("%d"));
    for (key, field, named) in [
        (
            format!("sales:minutes:{date}T13"),
            "07 JPY a",
            format!("minute {date}T13:07 JPY gross is "),
        ),
        (format!("sales:hours:{date}"), "23 EUR r", format!("hour {date}T23:00 EUR refunds is ")),
        (format!("sales:days:{month}"), &days, format!("day {date}T00:00 USD gross is ")),
        (
            format!("lines:{date}"),
            "x USD 5 Y Z",
            format!("day {date}T00:00 units of x USD 5 Y Z is 1 instead of 0"),
        ),
        (
            format!("times:{date}T05"),
            "123456",
            format!("hour {date}T05:00 paid within 123456 ms is 1 instead of 0"),
        ),
        ("status".to_owned(), "shipped", "shipped is ".to_owned()),
    ] {
        add(key.clone(), field, "1").await;
        let found = verified(&system).await;
        assert!(found.len() == 1 && found[0].contains(&named), "{named}: {found:?}");
        add(key, field, "-1").await;
    }
    assert_eq!(verified(&system).await, [""; 0]);
    // What is damaged stays so, and holds nothing else up.
    redis(&system, &["HSET", &format!("{prefix}sales:days:{month}"), &days, "x"]).await;
    assert!(verified(&system).await[0].contains("cannot be read"));
    let late = past::past(8, 40, 3);
    system.views.apply(late.iter().flatten()).await.expect("the views are written");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_cannot_be_reported_on_are_refused_with_the_field() {
    let system = System::start().await;
    let edge = Edge::open(&system).await;
    let long = "from=2026-01-01T00:00:00Z&to=2026-12-31T00:00:00Z";
    for (path, status, field, code) in [
        ("sales?by=week", 400, "by", "invalid"),
        ("sales?from=yesterday", 400, "from", "invalid"),
        ("sales?form=2026-01-01T00:00:00Z", 400, "form", "unknown_field"),
        ("payments?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", 400, "from", "invalid"),
        ("sales?from=0001-01-01T00:00:00Z", 400, "from", "out_of_range"),
        ("time-to-paid?to=9999-01-01T00:00:00Z", 400, "to", "out_of_range"),
        (&format!("sales?by=hour&{long}"), 422, "from", "out_of_range"),
        ("payments?by=day&from=1980-01-01T00:00:00Z", 422, "from", "out_of_range"),
        ("top-products?from=2020-01-01T00:00:00Z", 422, "from", "out_of_range"),
        ("top-brands?limit=101", 400, "limit", "out_of_range"),
        ("top-products?by=name", 400, "by", "invalid"),
    ] {
        let answer = edge.get(&system, &format!("/v1/reports/{path}")).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        let error = &answer.body["errors"][0];
        assert_eq!(
            (&error["field"], &error["code"]),
            (&json!(field), &json!(code)),
            "{path}: {error}"
        );
    }
    let most = "sales?by=minute&from=2026-01-01T00:00:00.5Z&to=2026-01-02T00:59:00.5Z";
    let most = report(&system, &edge, most).await;
    assert_eq!(rows(&most["buckets"]).len(), 1_500);
    assert_eq!(most["to"], "2026-01-02T01:00:00Z");
    assert_eq!(most["total"]["currencies"], json!([]));
    edge.close().await;
    system.stop().await;
}
