//! One thing after another is broken: exactly the checks that it concerns fail, and name it.

use futures_util::future::join_all;
use millrace_cli::verify::{self, VerifyConfig};
use millrace_shared::message::Subject;
use millrace_shared::views::OrderList;
use millrace_workers::Role;
use serde_json::{Value, json};

use super::{RUNNING, STILL, Traffic, check, fails, is_clean, sql, still};
use crate::harness::{Running, System, card_order};
use crate::rebuild::redis;

/// An order that nobody has placed.
const STRANGER: &str = "018f2d5e-7b3a-7c3e-9c1d-000000000007";

/// What breaks one thing, and what mends it.
type Change = (String, String);

/// Removes rows, and puts them back.
fn removed(table: &str, which: &str) -> Change {
    let remove = format!(
        "create table saved as select * from {table} where {which};
         delete from {table} where {which}"
    );
    (remove, format!("insert into {table} select * from saved; drop table saved"))
}

/// Changes rows, and changes them back.
fn changed(table: &str, which: &str, set: &str, back: &str) -> Change {
    let update = |set: &str| format!("update {table} set {set} where {which}");
    (update(set), update(back))
}

/// Breaks one thing at a time: exactly these checks fail, and the first names the offender.
async fn each(system: &System, cases: Vec<(Change, &[&str], &str)>) {
    is_clean(system, STILL).await;
    for ((corrupt, mend), checks, offender) in cases {
        sql(system, &corrupt).await;
        fails(system, checks, offender).await;
        sql(system, &mend).await;
    }
    is_clean(system, STILL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_changed_in_the_journal_is_found_by_its_own_check() {
    let (system, Traffic { shipped, .. }) = still().await;
    let paid = format!("subject = 'order' and subject_id = '{shipped}' and version = 2");
    let order = format!("order_id = '{shipped}'");
    let charge = |from: &str| format!("state = jsonb_set(state, '{{payment,chargeId}}', {from})");
    let cases: Vec<(Change, &[&str], &str)> = vec![
        (removed("journal.events", &paid), &["histories", "log", "reports"], &shipped),
        (
            changed("journal.events", &paid, &charge("'\"x\"'"), &charge("data->'chargeId'")),
            &["histories", "log"],
            "payment",
        ),
        (
            changed("journal.events", &paid, "type = 'delivered'", "type = 'paid'"),
            &["histories", "log", "reports"],
            "version 2 (delivered)",
        ),
        (
            changed("journal.orders", &order, "carrier = 'Other'", "carrier = 'Post'"),
            &["current"],
            &shipped,
        ),
        (
            changed("journal.order_lines", &order, "quantity = 77", "quantity = 2"),
            &["current"],
            &shipped,
        ),
        (removed("journal.customers", "customer_id = 'ada'"), &["current"], "customer ada"),
    ];
    each(&system, cases).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_changed_in_the_gateways_book_is_found_by_its_own_check() {
    let (system, Traffic { shipped, refunded, paid, .. }) = still().await;
    let charge = format!("idempotency_key = 'charge-{shipped}'");
    let twice = format!("charge-{shipped}-2");
    let cases: Vec<(Change, &[&str], &str)> = vec![
        (
            (
                format!(
                    "insert into sandbox.charges select '{twice}', charge_id || '2', outcome,
                     decline_code, amount, currency from sandbox.charges where {charge}"
                ),
                format!("delete from sandbox.charges where idempotency_key = '{twice}'"),
            ),
            &["money"],
            &twice,
        ),
        (removed("sandbox.charges", &charge), &["money"], &shipped),
        (
            removed("sandbox.refunds", &format!("idempotency_key = 'refund-{refunded}'")),
            &["money"],
            &refunded,
        ),
        (
            changed("sandbox.charges", &charge, "amount = amount + 1", "amount = amount - 1"),
            &["money"],
            "the charge is not its total",
        ),
        (
            (
                format!(
                    "insert into sandbox.refunds values ('refund-{paid}', 're_x', (select charge_id
                     from sandbox.charges where idempotency_key = 'charge-{paid}'), 1250, 'USD')"
                ),
                "delete from sandbox.refunds where refund_id = 're_x'".to_owned(),
            ),
            &["money"],
            &paid,
        ),
    ];
    each(&system, cases).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_changed_in_the_ledger_is_found_by_its_own_check() {
    let (system, Traffic { shipped, open_account, .. }) = still().await;
    let mug = |set: &str, back: &str| changed("ledger.products", "product_id = 'mug'", set, back);
    let of_ada = "subject = 'customer' and subject_id = 'ada'";
    let accepted = format!("{of_ada} and reason is null");
    let cases: Vec<(Change, &[&str], &str)> = vec![
        (
            mug(
                "available = available + 1, received = received + 1",
                "available = available - 1, received = received - 1",
            ),
            &["stock"],
            "product mug",
        ),
        (
            mug(
                "available = available - 1, reserved = reserved + 1",
                "available = available + 1, reserved = reserved - 1",
            ),
            &["stock"],
            "product mug",
        ),
        (
            changed(
                "ledger.customers",
                "customer_id = 'ada'",
                "credit_used = 1",
                "credit_used = 1250",
            ),
            &["credit"],
            "customer ada",
        ),
        (
            changed(
                "ledger.orders",
                &format!("order_id = '{open_account}'"),
                "credit_held = false",
                "credit_held = true",
            ),
            &["reservations", "credit"],
            &open_account,
        ),
        (
            changed(
                "ledger.reservations",
                &format!("order_id = '{shipped}'"),
                "quantity = 3",
                "quantity = 2",
            ),
            &["reservations", "stock"],
            &shipped,
        ),
        (
            (
                format!("insert into ledger.reservations values ('{STRANGER}', 'mug', 1)"),
                format!("delete from ledger.reservations where order_id = '{STRANGER}'"),
            ),
            &["stock"],
            "product mug",
        ),
        (
            (
                format!("insert into ledger.reservations values ('{shipped}', 'nothing', 1)"),
                "delete from ledger.reservations where product_id = 'nothing'".to_owned(),
            ),
            &["reservations"],
            &shipped,
        ),
        (removed("ledger.decisions", &accepted), &["commands"], "it has no decision"),
        (
            (
                format!("update ledger.decisions set reason = 'not_allowed' where {accepted}"),
                format!("update ledger.decisions set reason = null where {of_ada}"),
            ),
            &["commands"],
            "the ledger says not_allowed",
        ),
        (
            (
                "insert into ledger.outbox (subject, subject_id, version, event)
                 values ('product', 'mug', 99, '{}')"
                    .to_owned(),
                "delete from ledger.outbox".to_owned(),
            ),
            &["outbox"],
            "product mug version 99",
        ),
    ];
    each(&system, cases).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_changed_in_redis_is_found_by_its_own_check() {
    let (system, traffic) = still().await;
    let id = traffic.shipped.as_str();
    let placed = system.order(id).await["commandId"].as_str().expect("an id").to_owned();
    let (order, command) = (format!("order:{id}"), format!("command:{placed}"));
    let [list, wrong] =
        ["shipped", "delivered"].map(|status| format!("orders-of:{{bob}}:{status}"));
    let today = system.views.order_days(None, 1).await.expect("Redis")[0];
    let day = format!("orders-on:{{{today}}}:shipped");
    let products = "products";
    let replace = |from: &str, to: &str| {
        format!(
            "redis.call('SET', KEYS[1], (string.gsub(redis.call('GET', KEYS[1]), '{from}', '{to}')))"
        )
    };
    let remove = |member: &str| format!("redis.call('ZREM', KEYS[1], '{member}')");
    let listed = system.views.order_entries(&OrderList::On(today), None, 1_000).await;
    let place = listed.expect("Redis").into_iter().find(|it| it.place.order().to_string() == id);
    let place = place.expect("it is listed").place.to_string();
    let add = format!("redis.call('ZADD', KEYS[1], 0, '{place}')");
    let delete = "redis.call('DEL', KEYS[1])".to_owned();
    let cases: [(&str, String, &[&str], &str); 12] = [
        (&order, replace("Post", "Pest"), &["views"], id),
        (&order, replace("^%d+", "2"), &["views"], "stays at version 2"),
        (&order, replace("^%d+", "9"), &["views"], "which the journal has not"),
        (&order, delete.clone(), &["views"], "it has no view"),
        (&command, replace("accepted", "rejected"), &["outcomes"], &placed),
        (&command, delete.clone(), &["outcomes"], "it has no view"),
        (&list, remove(&place), &["lists"], "the orders of customer bob"),
        (&wrong, add, &["lists"], "the orders of customer bob"),
        (&day, remove(&place), &["lists"], &format!("the orders of {today}")),
        ("order-days", delete.clone(), &["lists"], "the list of days"),
        (products, remove("mug"), &["lists"], "the list of products"),
        (products, delete, &["lists"], "the list of products"),
    ];
    let namespace = system.topology.namespace();
    let generation = system.views.generations().await.expect("Redis").current.expect("views");
    for (key, corrupt, checks, offender) in cases {
        let (key, saved) =
            (format!("{namespace}:{generation}:{key}"), format!("saved:{namespace}"));
        redis(&system, &["COPY", &key, &saved, "REPLACE"]).await;
        redis(&system, &["EVAL", &corrupt, "1", &key]).await;
        fails(&system, checks, offender).await;
        redis(&system, &["DEL", &key]).await;
        redis(&system, &["COPY", &saved, &key]).await;
        redis(&system, &["DEL", &saved]).await;
    }
    is_clean(&system, STILL).await;
    redis(&system, &["DEL", &format!("{namespace}:generation")]).await;
    fails(&system, &["views", "outcomes", "lists", "reports"], "it has no view").await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_changed_in_the_streams_is_found_and_a_missing_journal_row_is_healed() {
    let (system, Traffic { shipped, paid, .. }) = still().await;
    // Rows of the journal are gone, of one order all of them.
    let lost = format!(
        "delete from journal.events
         where subject = 'order' and (subject_id = '{paid}' or (subject_id = '{shipped}' and version = 2));
         delete from journal.orders where order_id = '{paid}';
         delete from journal.order_lines where order_id = '{paid}'"
    );
    sql(&system, &lost).await;
    let broken = check(&system, STILL).await.failed();
    assert!(broken.contains(&"log") && broken.contains(&"commands"), "{broken:?}");
    let config = VerifyConfig::from(&system.config);
    let report = verify::repair(&config, STILL).await.expect("it is repaired");
    assert!(report.is_ok(), "{report}");
    assert_eq!(report.repaired, Some(3), "the lost events, and no others: {report}");
    // A command that nobody decides.
    let sequence = system.publish("order.place", &card_order("bob", "mug", 1, "tok_ok")).await;
    fails(&system, &["commands"], &format!("message {sequence} of COMMANDS")).await;
    let workers = Role::ALL.map(|role| system.run(role));
    is_clean(&system, RUNNING).await;
    system.settle().await;
    join_all(workers.map(Running::stop)).await;
    // Somebody publishes an event of his own, in place of one that is there.
    let stored = system.history(Subject::Order, &shipped).await.pop().expect("an event");
    let mut forked: Value =
        serde_json::from_slice(&stored.event.encode().expect("JSON")).expect("JSON");
    forked["id"] = json!("018f2d5e-7b3a-7c3e-9c1d-0123456789ad");
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let subject = system.topology.event(Subject::Order, &shipped, "shipped");
    let ack = jetstream.publish(subject, forked.to_string().into()).await.expect("it is sent");
    let fork = ack.await.expect("it is stored").sequence;
    fails(&system, &["log"], "is a fork").await;
    let report = verify::repair(&config, STILL).await.expect("it is read");
    assert_eq!((report.repaired, report.failed()), (Some(0), vec!["log"]), "{report}");
    let events = jetstream.get_stream(system.topology.events_stream()).await.expect("EVENTS");
    events.delete_message(fork).await.expect("it is removed");
    is_clean(&system, STILL).await;
    // What is trimmed is not missing; what is removed in the middle is.
    let first = system.history(Subject::Order, &shipped).await.remove(0).sequence;
    events.purge().sequence(first + 1).await.expect("it is trimmed");
    is_clean(&system, STILL).await;
    events.delete_message(stored.sequence).await.expect("it is removed");
    fails(&system, &["log"], &format!("order {shipped} version 3 (shipped)")).await;
    system.stop().await;
}
