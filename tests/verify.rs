//! `millrace verify`: a healthy system is clean, also while it runs; whatever is broken is found by the
//! check it concerns, and by no other.

mod broken;

use std::time::Duration;

use futures_util::future::join_all;
use millrace_cli::verify::{self, Report, VerifyConfig};
use millrace_workers::Role;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::harness::{Running, System, account_order, card_order, usd};
use crate::process::{run, settings};

/// Where nothing goes on: what is wrong stays wrong.
const STILL: Duration = Duration::from_millis(200);
/// Where workers run on a busy machine.
pub const RUNNING: Duration = Duration::from_secs(20);

async fn check(system: &System, settle: Duration) -> Report {
    verify::check(&VerifyConfig::from(&system.config), settle).await.expect("the data are read")
}

pub async fn is_clean(system: &System, settle: Duration) -> Report {
    let report = check(system, settle).await;
    assert!(report.is_ok(), "{report}");
    report
}

/// Asserts that exactly these checks fail, and that the first one names the offender.
async fn fails(system: &System, checks: &[&str], offender: &str) {
    let report = check(system, STILL).await;
    assert_eq!(report.failed(), checks, "{offender}: {report}");
    let row = report.checks.iter().find(|row| row.check == checks[0]).expect("a row");
    let named = |name: &str| {
        row.offenders.iter().any(|o| format!("{}: {}", o.id, o.problem).contains(name))
    };
    assert!(named(offender), "{offender:?} is not named: {report}");
}

async fn sql(system: &System, text: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(text.to_owned())).execute(&system.pool).await;
    done.unwrap_or_else(|error| panic!("{text}: {error}"));
}

/// Orders that have gone every way there is.
struct Traffic {
    shipped: String,
    open_account: String,
    refunded: String,
    paid: String,
}

async fn traffic(system: &System) -> Traffic {
    system.register("ada", Some(100_000)).await;
    system.register("bob", None).await;
    system.define("mug", 1_250, 500).await;
    system.define("pen", 300, 5).await;
    let ship = json!({ "carrier": "Post", "trackingNumber": "1" });
    let place = async |order: Value| {
        let placed = system.post_and_wait("/v1/orders", &order).await;
        assert!([201, 202, 422].contains(&placed.status), "{placed:?}");
        placed.text("/orderId")
    };
    let step = async |id: &str, step: &str, body: &Value| {
        let answer = system.post_and_wait(&format!("/v1/orders/{id}/{step}"), body).await;
        assert!([200, 409].contains(&answer.status), "{answer:?}");
    };
    let [paid, shipped, refunded, returned] =
        join_all((1..=4).map(|n| place(card_order("bob", "mug", n, "tok_ok"))))
            .await
            .try_into()
            .expect("four orders");
    let [open_account, cancelled, ended] =
        join_all((1..=3).map(|n| place(account_order("ada", "mug", n))))
            .await
            .try_into()
            .expect("three orders");
    for (customer, product, quantity, token) in [
        ("bob", "pen", 9, "tok_ok"),
        ("nobody", "mug", 1, "tok_ok"),
        ("bob", "nothing", 1, "tok_ok"),
        ("bob", "mug", 1, "tok_declined"),
        ("bob", "mug", 1, "tok_timeout"),
        ("bob", "mug", 1, "tok_flaky"),
    ] {
        place(card_order(customer, product, quantity, token)).await;
    }
    place(account_order("bob", "mug", 1)).await;
    step(&shipped, "ship", &ship).await;
    step(&returned, "ship", &ship).await;
    step(&returned, "deliver", &json!({})).await;
    step(&returned, "refund", &json!({})).await;
    step(&refunded, "cancel", &json!({ "reason": "no" })).await;
    step(&cancelled, "cancel", &json!({})).await;
    step(&ended, "refund", &json!({})).await;
    step(&shipped, "cancel", &json!({})).await;
    let limit = json!({ "creditLimit": usd(1_000) });
    system.put_and_wait("/v1/customers/ada/credit-limit", &limit).await;
    system.post_and_wait("/v1/products/pen/restock", &json!({ "quantity": 7 })).await;
    system.post_and_wait("/v1/products/pen/retire", &json!({})).await;
    system.define("mug", 1_300, 9).await;
    // What clients send that is not right: each has an outcome, too.
    let id = "018f2d5e-7b3a-7c3e-9c1d-0123456789ac";
    for name in ["one", "one", "two"] {
        let body = json!({ "commandId": id, "customerId": name, "name": name });
        system.publish("customer.register", &body).await;
    }
    for quantity in [1, 1, 2] {
        let mut order = card_order("bob", "mug", quantity, "tok_ok");
        order["idempotencyKey"] = json!("key");
        system.publish("order.place", &order).await;
    }
    system.publish_raw("order.place", b"no json".to_vec()).await;
    system.publish("order.fly", &json!({})).await;
    system.settle().await;
    Traffic { shipped, open_account, refunded, paid }
}

/// A system that has worked and now stands still: its servers and its api are there.
async fn still() -> (System, Traffic) {
    let system = System::without_workers().await;
    let workers = Role::ALL.map(|role| system.run(role));
    let traffic = traffic(&system).await;
    join_all(workers.map(Running::stop)).await;
    (system, traffic)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_with_all_kinds_of_orders_is_clean_and_everything_was_looked_at() {
    let (system, _) = still().await;
    let report = is_clean(&system, STILL).await;
    for row in &report.checks {
        assert!(row.checked > 0 || row.check == "outbox", "{} has looked at nothing", row.check);
    }
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let commands = jetstream.get_stream(system.topology.commands_stream()).await.expect("COMMANDS");
    let stored = commands.cached_info().state.messages;
    assert_eq!(report.checks[0].checked, stored, "every command was looked at: {report}");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_system_is_not_accused_of_what_is_under_way() {
    let system = System::with_workers(2).await;
    system.register("kim", Some(1_000_000)).await;
    system.define("hot", 100, 1_000_000).await;
    let checked = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        for _ in 0..3 {
            is_clean(&system, RUNNING).await;
        }
    };
    let load = async {
        for n in 0_u32.. {
            let order = match n % 2 {
                0 => account_order("kim", "hot", 1),
                _ => card_order("kim", "hot", 1, "tok_ok"),
            };
            let sequence = system.publish("order.place", &order).await;
            if n % 5 == 0 {
                let id = system.outcome(&sequence.to_string()).await["orderId"].clone();
                system.publish("order.cancel", &json!({ "orderId": id })).await;
            }
        }
    };
    tokio::select! {
        () = checked => {}
        () = load => {}
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_says_what_it_found_and_its_exit_code_too() {
    let (system, Traffic { shipped, .. }) = still().await;
    let settings = settings(&system.config);
    let clean = run(&["verify", "--settle", "0"], &settings).await;
    assert_eq!(clean.code, Some(0), "{clean:?}");
    assert!(clean.output.ends_with("Every promise holds.\n"), "{clean:?}");
    sql(&system, &format!("update ledger.orders set stock = 'held' where order_id = '{shipped}'"))
        .await;
    let broken = run(&["verify", "--settle", "0", "--json"], &settings).await;
    assert_eq!(broken.code, Some(1), "{broken:?}");
    assert!(broken.errors.contains("promises are broken: reservations, stock"), "{broken:?}");
    let report: Value = serde_json::from_str(&broken.output).expect("JSON");
    let row = report["checks"]
        .as_array()
        .and_then(|rows| rows.iter().find(|row| row["check"] == "reservations"));
    let row = row.expect("a row");
    assert_eq!(
        (&row["failed"], &row["offenders"][0]["id"]),
        (&json!(1), &json!(format!("order {shipped}")))
    );
    system.stop().await;
}
