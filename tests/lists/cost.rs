//! What a page of a list costs.

use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use millrace_shared::ids::CustomerId;
use millrace_shared::message::Event;
use millrace_shared::order::OrderStatus;
use millrace_shared::views::{OrderFilter, Views};

use super::{begin, history, later, page};
use crate::harness::System;

/// The median time of a page of 20, in microseconds.
async fn time_of(
    views: &Views,
    customer: Option<&CustomerId>,
    filter: &OrderFilter,
    deep: bool,
) -> u128 {
    let mut after = None;
    if deep {
        let all = page(views, customer, filter, None, 90_000).await;
        after = all.next;
    }
    let mut times = Vec::new();
    for _ in 0..300 {
        let start = Instant::now();
        page(views, customer, filter, after.as_ref(), 20).await;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2].as_micros()
}

/// `cargo test -p millrace-tests -- --ignored --nocapture lists::cost`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, of a minute"]
async fn a_hundred_thousand_orders_of_one_customer_page_as_fast_as_ten() {
    let system = System::without_workers().await;
    let views = begin(&system).await;
    let [few, many]: [CustomerId; 2] = ["few", "many"].map(|id| id.parse().expect("an id"));
    let start: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().expect("a time");
    let steps = later();
    let of = |number: u32| match number % 10 {
        0 => &steps[10..],
        1 => &steps[..1],
        2..5 => &steps[1..2],
        _ => &steps[1..6],
    };
    let before = memory(&system).await;
    let write = async |customer: &CustomerId, count: u32| {
        for first in (0..count).step_by(500) {
            let events: Vec<Event> = (first..count.min(first + 500))
                .filter_map(|number| {
                    let placed_at = start + TimeDelta::minutes(i64::from(number));
                    // Only the last: the state tells all.
                    history(customer, placed_at, of(number)).pop()
                })
                .collect();
            views.apply(events.iter()).await.expect("Redis answers");
        }
    };
    write(&few, 10).await;
    write(&many, 100_000).await;
    println!(
        "memory of an order, with its lists: {} B",
        (memory(&system).await - before) / 100_010
    );
    let none = OrderFilter::default();
    let one = OrderFilter { statuses: [OrderStatus::PaymentUnknown].into(), ..none.clone() };
    let month =
        OrderFilter { from: Some(start), to: Some(start + TimeDelta::days(30)), ..one.clone() };
    let empty = OrderFilter { statuses: [OrderStatus::Refunding].into(), ..none.clone() };
    for (name, filter) in [
        ("all", &none),
        ("one status", &one),
        ("one status, a month", &month),
        ("none fits", &empty),
    ] {
        let ten = time_of(&views, Some(&few), filter, false).await;
        let first = time_of(&views, Some(&many), filter, false).await;
        let deep = time_of(&views, Some(&many), filter, true).await;
        let everybody = time_of(&views, None, filter, false).await;
        println!(
            "{name}: of 10: {ten} µs, of 100,000: {first} µs, after 90,000: {deep} µs, of all customers: {everybody} µs"
        );
        assert!(first < ten * 4 + 500 && deep < ten * 4 + 500, "{name}");
    }
    views.close().await.expect("it closes");
    system.stop().await;
}

async fn memory(system: &System) -> u64 {
    let info = crate::rebuild::redis(system, &["INFO", "memory"]).await;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
    used.and_then(|bytes| bytes.trim().parse().ok()).expect("a number")
}
