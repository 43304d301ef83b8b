//! Every report over HTTP, held against the same by SQL.

use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use millrace_shared::message::now;
use serde_json::{Map, Value, json};

use super::record;
use crate::harness::System;
use crate::parked::shop::Edge;

fn text(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn trunc(at: DateTime<Utc>, by: TimeDelta) -> DateTime<Utc> {
    at.duration_trunc(by).expect("a time of today")
}

/// The answer of a report.
pub async fn report(system: &System, edge: &Edge, path: &str) -> Value {
    let answer = edge.get(system, &format!("/v1/reports/{path}")).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    assert_eq!(answer.header("cache-control"), "no-cache");
    answer.body
}

/// Asserts that every report, over several times, is what SQL over the journal says.
pub async fn reports_equal_sql(system: &System, edge: &Edge, days: i64) {
    let (minute, hour, day) = (TimeDelta::minutes(1), TimeDelta::hours(1), TimeDelta::days(1));
    let end = trunc(now() + day, day);
    let noon = end - day * 3 - hour * 12;
    let spans = [
        ("day", end - day * i32::try_from(days).expect("some days"), end),
        ("day", end - day * 2, end - day),
        ("hour", noon - day, noon + hour * 5),
        ("hour", end - day * 9, end),
        ("minute", noon - minute * 90, noon + minute * 30),
        ("minute", end - minute * 1_440, end),
    ];
    for (by, from, to) in spans {
        let (from, to) = (text(from), text(to));
        let range = format!("from={from}&to={to}");
        let sales = report(system, edge, &format!("sales?by={by}&{range}")).await;
        let expected = record::sales(system, by, &from, &to).await;
        let (found, expected) = (rows(&sales["buckets"]), rows(&expected));
        assert_eq!(found.len(), expected.len(), "by {by} from {from} to {to}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "by {by}");
        }
        assert_eq!(sales["total"]["currencies"], sum_of(&sales["buckets"]), "by {by}, {range}");
        let payments = report(system, edge, &format!("payments?by={by}&{range}")).await;
        payments_equal(&payments["total"], &record::payments(system, &from, &to).await);
        let counts = |at: &str| {
            rows(&payments["buckets"]).iter().filter_map(|bucket| bucket[at].as_i64()).sum::<i64>()
        };
        assert_eq!(json!(counts("paid")), payments["total"]["paid"]);
        assert_eq!(json!(counts("declined")), payments["total"]["declined"]);
        if by == "minute" {
            continue;
        }
        for (path, key) in [("top-products", "productId"), ("top-brands", "brand")] {
            for (rank, limit) in [("amount", 3), ("units", 100)] {
                let path = format!("{path}?by={rank}&limit={limit}&{range}");
                let mut top = report(system, edge, &path).await["currencies"].take();
                for item in top.as_array_mut().into_iter().flatten() {
                    for item in item["items"].as_array_mut().into_iter().flatten() {
                        let item = item.as_object_mut().expect("an object");
                        let value = item.remove(key).expect("a key");
                        item.retain(|name, _| name != "name" && name != "brand");
                        item.insert("key".to_owned(), value);
                    }
                }
                let expected = record::top(system, (&from, &to), key, rank, limit).await;
                assert_eq!(top, expected, "{path}");
            }
        }
        let mut times = report(system, edge, &format!("time-to-paid?{range}")).await;
        let times = times.as_object_mut().expect("an object");
        assert_eq!(
            [times.remove("from"), times.remove("to")],
            [&from, &to].map(|at| Some(json!(at)))
        );
        assert_eq!(json!(times), record::times(system, &from, &to).await, "{range}");
    }
    status_equals(&report(system, edge, "status").await, &record::status(system).await);
}

/// A list.
pub fn rows(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_else(|| panic!("no list: {value}"))
}

/// The currencies of all buckets added up.
fn sum_of(buckets: &Value) -> Value {
    let mut total: Vec<Value> = Vec::new();
    for bucket in rows(buckets) {
        for (place, more) in rows(&bucket["currencies"]).into_iter().enumerate() {
            let Some(sum) = total.get_mut(place) else {
                total.push(more);
                continue;
            };
            assert_eq!(sum["currency"], more["currency"]);
            for path in [
                "/orders",
                "/units",
                "/gross/amount",
                "/refunds",
                "/refunded/amount",
                "/net/amount",
            ] {
                let part = |value: &Value| value.pointer(path).and_then(Value::as_i64).expect(path);
                let both = part(sum) + part(&more);
                *sum.pointer_mut(path).expect(path) = json!(both);
            }
        }
    }
    json!(total)
}

fn payments_equal(found: &Value, expected: &Value) {
    let mut found = found.clone();
    for payments in ["", "/card"] {
        let payments =
            found.pointer_mut(payments).and_then(Value::as_object_mut).expect("payments");
        let rate = payments.remove("successRate").expect("a rate");
        let [paid, declined] =
            ["paid", "declined"].map(|it| payments[it].as_f64().expect("a count"));
        let expected = (paid + declined > 0.0).then(|| paid / (paid + declined));
        assert_eq!(rate, json!(expected));
    }
    assert_eq!(&found, expected);
}

fn status_equals(found: &Value, expected: &Value) {
    let mut flat = Map::new();
    let mut all = 0;
    for row in rows(&found["statuses"]) {
        let status = row["status"].as_str().expect("a status");
        let orders = row["orders"].as_i64().expect("a count");
        all += orders;
        let reasons = row["reasons"].as_array().cloned().unwrap_or_default();
        if reasons.is_empty() && orders > 0 {
            flat.insert(status.to_owned(), json!(orders));
        }
        for reason in reasons {
            let name = format!("{status}/{}", reason["reason"].as_str().expect("a reason"));
            flat.insert(name, reason["orders"].clone());
        }
    }
    assert_eq!((&json!(flat), &found["orders"]), (expected, &json!(all)));
}
