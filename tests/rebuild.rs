//! Views that are made anew: beside those in use, under load, after a kill, and from nothing.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use millrace_shared::config::RedisConfig;
use millrace_shared::ids::{CommandId, CustomerId};
use millrace_shared::message::{Subject, now};
use millrace_shared::views::{CommandView, Generations, Mark, OrderFilter, OrderList, Views};
use millrace_workers::Role;
use millrace_workers::rebuild::{Rebuild, Rebuilt};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::harness::{Answer, System, account_order, card_order, eventually};
use crate::process::{Process, settings};

/// Views with a connection of their own, as another process has them.
fn views(system: &System) -> Views {
    Views::new(system.admin.redis.client().expect("Redis"), system.topology.namespace())
}

fn rebuild(system: &System) -> Rebuild {
    Rebuild::new(system.pool.clone(), views(system), &system.nats, system.topology.clone())
}

pub async fn rebuilt(system: &System) -> Rebuilt {
    let rebuilt = Box::pin(rebuild(system).run(|_| {})).await.expect("the views are made anew");
    rebuilt.expect("no other rebuild is under way")
}

/// A shop with two customers, two products and `orders` orders in several states.
async fn shop(system: &System, orders: usize) -> Vec<String> {
    system.register("ann", Some(1_000_000)).await;
    system.register("bob", None).await;
    system.define("pen", 100, 10_000).await;
    system.define("pot", 700, 10_000).await;
    let placed = join_all((0..orders).map(async |number| {
        let order = match number % 4 {
            0 => account_order("ann", "pen", 1),
            1 => card_order("bob", "pot", 2, "tok_ok"),
            2 => card_order("bob", "pen", 1, "tok_declined"),
            _ => card_order("ann", "none", 1, "tok_ok"),
        };
        let answer = system.post("/v1/orders", &order).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.text("/orderId")
    }))
    .await;
    system.settle().await;
    let steps = placed.iter().enumerate().filter(|(number, _)| number % 4 < 2);
    join_all(steps.map(async |(number, id)| {
        let step = ["cancel", "ship"][number / 4 % 2];
        let body = json!({ "carrier": "Post", "trackingNumber": "1" });
        let body = if step == "ship" { body } else { json!({}) };
        let answer = system.post_and_wait(&format!("/v1/orders/{id}/{step}"), &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }))
    .await;
    system.settle().await;
    placed
}

/// Everything that the views show, letter by letter.
async fn all(system: &System) -> BTreeMap<String, String> {
    let subjects: Vec<(String, String)> = sqlx::query_as(
        "select distinct subject, subject_id from journal.events where subject <> 'command'",
    )
    .fetch_all(&system.pool)
    .await
    .expect("the journal");
    let commands: Vec<Uuid> =
        sqlx::query_scalar("select distinct command_id from ledger.decisions")
            .fetch_all(&system.pool)
            .await
            .expect("the ledger");
    let views = views(system);
    let mut all = BTreeMap::new();
    for (subject, id) in subjects {
        let kind: Subject = serde_json::from_value(json!(subject)).expect("a subject");
        let document = views.document(kind, &id).await.expect("Redis answers");
        let document = document.unwrap_or_else(|| panic!("no view of {subject} {id}"));
        all.insert(format!("{subject} {id}"), format!("{} {}", document.version, document.json));
    }
    for id in commands {
        let outcome = views.command(CommandId(id)).await.expect("Redis answers");
        all.insert(format!("command {id}"), format!("{outcome:?}"));
    }
    for customer in ["ann", "bob"] {
        let customer = customer.parse().expect("an id");
        let everything = OrderFilter::default();
        let page = views.customer_orders(&customer, &everything, None, 1_000).await;
        let page = page.expect("a list");
        all.insert(format!("orders of {customer}"), page.items.join("\n"));
        let list = OrderList::Of(customer);
        let entries = views.order_entries(&list, None, 1_000).await.expect("a list");
        all.insert(format!("{list:?}"), format!("{entries:?}"));
    }
    for day in views.order_days(None, 10).await.expect("a list") {
        let entries = views.order_entries(&OrderList::On(day), None, 1_000).await;
        all.insert(format!("orders on {day}"), format!("{:?}", entries.expect("a list")));
    }
    let page = views.products(None, 1_000).await.expect("a list");
    all.insert("products".to_owned(), page.items.join("\n"));
    all
}

/// Sends one command to Redis, as whoever may do everything, and returns the raw answer.
pub async fn redis(system: &System, words: &[&str]) -> String {
    let answer = redis_as(&system.admin.redis, words).await;
    assert!(!answer.contains("\r\n-"), "{answer}");
    answer
}

/// Sends one command to Redis, as whoever a configuration says, and returns the raw answer.
pub async fn redis_as(config: &RedisConfig, words: &[&str]) -> String {
    let command = |words: &[&str]| -> String {
        let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
        words.collect()
    };
    let settings = config.client_config().expect("Redis settings");
    let user = settings.username.expect("a user");
    let password = settings.password.expect("a password");
    let request = format!(
        "*3\r\n{}*{}\r\n{}*1\r\n{}",
        command(&["AUTH", &user, &password]),
        words.len(),
        command(words),
        command(&["QUIT"]),
    );
    let address = config.redis_url.rsplit('@').next().expect("an address").to_owned();
    let ask = move || {
        let mut stream = TcpStream::connect(address).expect("Redis");
        stream.write_all(request.as_bytes()).expect("it takes the command");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    tokio::task::spawn_blocking(ask).await.expect("an answer")
}

/// What FLUSHALL does, for this test's system alone: in one step.
async fn empty(system: &System) {
    let script = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end";
    redis(system, &["EVAL", script, "0", &format!("{}:*", system.topology.namespace())]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn views_that_are_made_anew_are_the_same_letter_by_letter() {
    let system = System::start().await;
    shop(&system, 40).await;
    let before = all(&system).await;
    let old = system.views.generations().await.expect("Redis answers");
    let done = rebuilt(&system).await;
    let now = system.views.generations().await.expect("Redis answers");
    assert_eq!(now, Generations::only(done.generation));
    assert!(Some(done.generation) > old.current, "{done:?} {old:?}");
    assert_eq!(done.documents, 44, "{done:?}");
    assert_eq!(done.left_behind, 0, "{done:?}");
    assert!(done.removed > 100, "the old keys are gone: {done:?}");
    assert_eq!(all(&system).await, before);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_no_reader_sees_an_older_version_or_nothing_while_the_views_are_made_anew() {
    let system = System::with_workers(2).await;
    let first = shop(&system, 20).await;
    let seen: Mutex<BTreeMap<String, u64>> =
        Mutex::new(first.into_iter().map(|id| (id, 1)).collect());
    let over = AtomicBool::new(false);
    let load = async || {
        let mut number = 0;
        while !over.load(Ordering::Relaxed) {
            number += 1;
            let order = card_order(["ann", "bob"][number % 2], "pen", 1, "tok_ok");
            let answer = system.post("/v1/orders", &order).await;
            assert_eq!(answer.status, 202, "{answer:?}");
            let id = answer.text("/orderId");
            // The edge's own mark is a courtesy, which it gives up when Redis is slow: an order is
            // held to be known from its first reading on.
            if system.get(&format!("/v1/orders/{id}")).await.status == 200 {
                seen.lock().expect("no panic").insert(id, 0);
            }
        }
    };
    let read = async |reader: usize| {
        let mut reads = 0;
        while !over.load(Ordering::Relaxed) {
            let orders: Vec<String> =
                seen.lock().expect("no panic").keys().skip(reader).step_by(4).cloned().collect();
            for id in orders {
                let known = seen.lock().expect("no panic")[&id];
                let answer = system.get(&format!("/v1/orders/{id}")).await;
                assert_eq!(answer.status, 200, "{id} {answer:?}");
                let version = answer.body["version"].as_u64().expect("a version");
                assert!(version >= known, "{id} was seen as {known} and then {}", answer.body);
                seen.lock().expect("no panic").insert(id, version);
                reads += 1;
            }
        }
        reads
    };
    // Marks of pending orders, which no journal knows; made without the edge, which gives up after
    // a moment. Read by another connection: what was marked is there from then on.
    let mark = async || {
        let (writer, reader) = (views(&system), views(&system));
        let bob: CustomerId = "bob".parse().expect("an id");
        let mut marked: Vec<String> = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let id = Uuid::now_v7().to_string();
            let pending = CommandView::pending(CommandId(Uuid::now_v7()));
            let pending = pending.about(Subject::Order, id.clone());
            let mark = Mark { command: pending, placed: Some((bob.clone(), now())) };
            writer.mark_pending(&[mark]).await.expect("it is marked");
            marked.push(id);
            let step = marked.len() / 20 + 1;
            for id in marked.iter().rev().step_by(step) {
                let view = reader.document(Subject::Order, id).await.expect("Redis answers");
                assert!(view.is_some(), "the mark of {id} is lost");
            }
        }
        marked.len()
    };
    let work = async {
        let done = [rebuilt(&system).await, rebuilt(&system).await];
        over.store(true, Ordering::Relaxed);
        done
    };
    let ((), (), marks, reads, done) =
        tokio::join!(load(), load(), mark(), join_all((0..4).map(read)), work);
    assert!(marks > 100, "{marks}");
    assert!(reads.iter().sum::<usize>() > 500, "{reads:?}");
    assert!(done[1].documents > done[0].documents, "orders came in meanwhile: {done:?}");
    system.settle().await;
    let views = all(&system).await;
    rebuilt(&system).await;
    assert_eq!(all(&system).await, views);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_rebuilds_at_once_the_second_refuses() {
    let system = System::start().await;
    shop(&system, 4).await;
    let before = all(&system).await;
    let first = Process::start(&["rebuild"], &settings(&system.config));
    eventually("it is at work", async || {
        let now = system.views.generations().await.expect("Redis answers");
        now.building.is_some().then_some(())
    })
    .await;
    let second = Process::start(&["rebuild"], &settings(&system.config)).ended().await;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.errors.contains("another rebuild of this system is under way"), "{second:?}");
    let first = first.ended().await;
    assert_eq!(first.code, Some(0), "{first:?}");
    assert!(first.output.contains("done: generation"), "{first:?}");
    assert_eq!(all(&system).await, before);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_was_killed_leaves_the_views_in_use_and_can_be_started_again() {
    let system = System::start().await;
    shop(&system, 8).await;
    let before = all(&system).await;
    let old = system.views.generations().await.expect("Redis answers");
    let killed = async || {
        let process = Process::start(&["rebuild"], &settings(&system.config));
        eventually("it is at work", async || {
            let now = system.views.generations().await.expect("Redis answers");
            now.building.is_some().then_some(())
        })
        .await;
        process.end(Signal::KILL).await;
        assert_eq!(all(&system).await, before);
    };
    // What is written meanwhile goes into both, and is in the next one, too.
    killed().await;
    let placed = system.post_and_wait("/v1/orders", &card_order("ann", "pen", 1, "tok_ok")).await;
    assert_eq!(placed.status, 201, "{placed:?}");
    system.settle().await;
    let before = all(&system).await;
    let again = Process::start(&["rebuild"], &settings(&system.config)).ended().await;
    assert_eq!(again.code, Some(0), "{again:?}");
    assert_eq!(all(&system).await, before);
    let now = system.views.generations().await.expect("Redis answers");
    assert!(now.current > old.current && now.building.is_none(), "{now:?}");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_rebuild_has_left_is_removed_by_itself() {
    let system = System::start().await;
    shop(&system, 4).await;
    let before = all(&system).await;
    let old = system.views.generations().await.expect("Redis answers");
    // As a rebuild leaves it that dies in the middle.
    let left = Generations { building: Some(old.current.unwrap_or(0) + 1), ..old };
    assert!(system.views.replace(old, left).await.expect("Redis answers"));
    system.define("cup", 100, 1).await;
    let pattern = format!("{}:{}:*", system.topology.namespace(), left.building.unwrap_or(0));
    assert!(redis(&system, &["KEYS", &pattern]).await.contains(":product:cup"));
    eventually("the marker is as before", async || {
        (system.views.generations().await.expect("Redis answers") == old).then_some(())
    })
    .await;
    assert!(!redis(&system, &["KEYS", &pattern]).await.contains(":product:cup"));
    let mut now = all(&system).await;
    now.retain(|key, _| before.contains_key(key) && key != "products");
    assert!(now.iter().all(|(key, text)| before[key] == *text), "{now:?}");
    system.stop().await;
}

fn is_told_to_come_back(answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.header("retry-after").parse::<u32>().is_ok(), "{answer:?}");
    assert_eq!(answer.text("/type"), "/problems/unavailable", "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_redis_is_never_taken_for_an_empty_shop_and_fills_itself_again() {
    let system = System::without_workers().await;
    let mut workers = [Role::Validation, Role::Payment, Role::Persistence]
        .map(|role| system.run(role))
        .into_iter();
    let projection = system.run(Role::Projection);
    let orders = shop(&system, 8).await;
    let before = all(&system).await;
    // A command that waits for its decision is known too.
    workers.next().expect("validation").stop().await;
    let placed = system.post("/v1/orders", &card_order("ann", "pen", 1, "tok_ok")).await;
    let (pending, command) = (placed.text("/orderId"), placed.text("/commandId"));
    let by_nats = system.publish("order.place", &account_order("ann", "pen", 1)).await;
    projection.stop().await;

    empty(&system).await;
    let known = [
        format!("/v1/orders/{}", orders[0]),
        format!("/v1/orders/{pending}"),
        format!("/v1/commands/{command}"),
        format!("/v1/commands/{by_nats}"),
        "/v1/customers/ann".to_owned(),
        "/v1/customers/ann/orders".to_owned(),
        "/v1/products/pen".to_owned(),
        "/v1/products".to_owned(),
        "/v1/orders/00000000-0000-4000-8000-000000000000".to_owned(),
    ];
    for path in &known {
        is_told_to_come_back(&system.get(path).await);
    }
    // Commands are taken all the same, and who waits is told as much as is known.
    let request = system.request("POST", "/v1/orders").header("Prefer", "wait=1");
    let waited = system.send(request.json(&card_order("bob", "pen", 1, "tok_ok"))).await;
    assert_eq!(waited.status, 202, "{waited:?}");

    let projection = system.run(Role::Projection);
    eventually("the views are there again", async || {
        let answer = system.get(&known[0]).await;
        if answer.status != 200 {
            is_told_to_come_back(&answer);
        }
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(all(&system).await, before);
    for id in [&pending, &waited.text("/orderId")] {
        assert_eq!(system.order(id).await["status"], "pending");
    }
    assert_eq!(system.get(&known[2]).await.text("/status"), "pending");
    assert_eq!(system.get(&known[8]).await.status, 404);

    let validation = system.run(Role::Validation);
    system.order_in(&pending, "paid").await;
    system.order_in(&waited.text("/orderId"), "paid").await;
    system.outcome(&by_nats.to_string()).await;
    // And once more, with everything running.
    system.settle().await;
    let before = all(&system).await;
    empty(&system).await;
    eventually("the views are there again", async || {
        let answer = system.get(&known[0]).await;
        assert!([200, 503].contains(&answer.status), "{answer:?}");
        (answer.status == 200).then_some(())
    })
    .await;
    assert_eq!(all(&system).await, before);
    for worker in workers.chain([validation, projection]) {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_is_ahead_of_projection_does_not_hold_up_a_rebuild() {
    let system = System::without_workers().await;
    let [projection, others @ ..] =
        [Role::Projection, Role::Validation, Role::Payment, Role::Persistence]
            .map(|role| system.run(role));
    shop(&system, 4).await;
    projection.stop().await;
    // In the very moment between reading the journal and comparing with it.
    let arrives = async || {
        let restock = json!({ "productId": "pen", "quantity": 1 });
        system.publish("product.restock", &restock).await;
        eventually("the journal has it", async || {
            let query = "select count(*) from journal.events where type = 'restocked'";
            let count: i64 = sqlx::query_scalar(query).fetch_one(&system.pool).await.ok()?;
            (count == 1).then_some(())
        })
        .await;
    };
    let told = |step: &str| {
        if step.contains("compared with the journal") {
            tokio::task::block_in_place(|| Handle::current().block_on(arrives()));
        }
    };
    rebuild(&system).run(told).await.expect("it ends well").expect("no other is under way");
    let projection = system.run(Role::Projection);
    system.stock_is("pen", [10_001, 0, 0]).await;
    for worker in others.into_iter().chain([projection]) {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_views_are_healed_by_making_them_anew() {
    let system = System::start().await;
    let orders = shop(&system, 12).await;
    let before = all(&system).await;
    let current = system.views.generations().await.expect("Redis answers").current;
    let prefix = format!("{}:{}", system.topology.namespace(), current.expect("there are views"));
    redis(&system, &["SET", &format!("{prefix}:order:{}", orders[0]), "no view"]).await;
    let future = json!({ "orderId": orders[1], "status": "paid", "version": 99 });
    let key = format!("{prefix}:order:{}", orders[1]);
    redis(&system, &["SET", &key, &format!("99 {future}")]).await;
    redis(&system, &["DEL", &format!("{prefix}:customer:bob")]).await;
    redis(&system, &["DEL", &format!("{prefix}:products")]).await;
    assert_eq!(system.get(&format!("/v1/orders/{}", orders[0])).await.status, 500);
    assert_eq!(system.get("/v1/customers/bob").await.status, 404);
    let done = rebuilt(&system).await;
    assert_eq!(done.left_behind, 1, "{done:?}");
    assert_eq!(all(&system).await, before);
    let list: Value = system.get("/v1/products").await.body;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(2));
    tokio::time::timeout(Duration::from_secs(5), system.stop()).await.expect("it stops");
}
