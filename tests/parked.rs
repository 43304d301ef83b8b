//! What operators do with parked messages: list, show, replay, discard, by the command line and by
//! HTTP; and what is held back by them.

mod again;
mod held;
pub mod shop;

use millrace_workers::Role;
use rustix::process::Signal;
use serde_json::json;

use crate::harness::System;
use crate::parking::{header, number};
use crate::process::{Process, run, settings};
use shop::{Edge, Shop, count};

#[tokio::test(flavor = "multi_thread")]
async fn list_and_show_tell_the_same_by_command_line_and_http() {
    let shop = Shop::open().await;
    let ids = shop.park(2).await;
    let garbage = shop.system.publish_raw("order.place", b"\xff\x00no JSON".to_vec()).await;
    let kept = shop.parked(7).await;
    let edge = Edge::open(&shop.system).await;

    let by_cli = shop.parked_json(&["list"]).await;
    let by_http = edge.get(&shop.system, "/v1/ops/parked").await;
    assert_eq!(by_http.status, 200, "{by_http:?}");
    assert_eq!(by_cli["items"], by_http.body["items"]);
    let items = by_cli["items"].as_array().expect("a list");
    for (item, message) in items.iter().zip(&kept) {
        assert_eq!(item["sequence"], message.sequence);
        assert_eq!(item["worker"], header(message, "Millrace-Worker"));
        assert_eq!(item["stream"], header(message, "Millrace-Stream"));
        assert_eq!(item["originalSequence"], number(message));
        assert_eq!(item["subject"], header(message, "Millrace-Subject"));
        assert_eq!(item["reason"], header(message, "Millrace-Reason"));
        assert_eq!(item["attempts"], 1);
        assert!(item["firstSeen"].as_str() <= item["lastSeen"].as_str(), "{item}");
    }
    let text = shop.parked_cli(&["list"]).await.output;
    assert!(text.contains("waits behind") && text.contains("7 parked"), "{text}");

    // Filters, and pages.
    let one = format!("order/{}", ids[0]);
    for (filter, expected) in [
        (&["--worker", "persistence"][..], 6),
        (&["--worker", "validation"], 1),
        (&["--worker", "payment"], 0),
        (&["--subject", &one], 3),
        (&["--subject", &one, "--worker", "projection"], 0),
        (&["--limit", "4"], 4),
        (&["--cursor", &kept[5].sequence.to_string()], 2),
    ] {
        let listed = shop.parked_json(&[&["list"], filter].concat()).await;
        assert_eq!(listed["items"].as_array().map(Vec::len), Some(expected), "{filter:?}");
    }
    let (mut cursor, mut seen) = (String::from("1"), Vec::new());
    loop {
        let path = format!("/v1/ops/parked?limit=3&cursor={cursor}");
        let page = edge.get(&shop.system, &path).await.body;
        let items = page["items"].as_array().expect("a page");
        seen.extend(items.iter().filter_map(|item| item["sequence"].as_u64()));
        match page["nextCursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    assert_eq!(seen, kept.iter().map(|message| message.sequence).collect::<Vec<_>>());

    let commands = shop.system.topology.commands_stream();
    let is_garbage =
        |message: &&_| header(message, "Millrace-Stream") == commands && number(message) == garbage;
    let of_garbage = kept.iter().find(is_garbage).expect("it is kept");
    let shown = shop.parked_json(&["show", &of_garbage.sequence.to_string()]).await;
    assert_eq!(shown["payloadBase64"], "/wBubyBKU09O");
    let first = kept[0].sequence;
    let by_cli = shop.parked_json(&["show", &first.to_string()]).await;
    let by_http = edge.get(&shop.system, &format!("/v1/ops/parked/{first}")).await;
    assert_eq!(by_cli, by_http.body);
    assert_eq!(by_cli["payload"].as_str().map(str::as_bytes), Some(kept[0].payload.as_ref()));
    let none = shop.parked_cli(&["show", "999"]).await;
    assert_eq!(none.code, Some(1), "{none:?}");
    for (path, status) in
        [("/999", 404), ("/x", 400), ("?limit=0", 400), ("?worker=a.b", 400), ("?subject=x", 400)]
    {
        let answer = edge.get(&shop.system, &format!("/v1/ops/parked{path}")).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
    edge.close().await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_to_the_routes_for_operators_unless_they_were_asked_for() {
    let system = System::without_workers().await;
    let settings = settings(&system.config);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    for (options, status) in [(&[][..], 404), (&["--operator-routes"], 200)] {
        let mut edge =
            Process::start(&[&["api", "--http", "127.0.0.1:0"], options].concat(), &settings);
        let url = format!("{}/v1/ops/parked", edge.http().await);
        let answer = system.send(client.get(url)).await;
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(edge.end(Signal::TERM).await.code, Some(0));
    }
    // Without a place to write down what operators do there are none.
    let without: Vec<_> =
        settings.into_iter().filter(|(name, _)| !name.contains("POSTGRES")).collect();
    let ended = run(&["api", "--http", "127.0.0.1:0", "--operator-routes"], &without).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.errors.contains("--postgres-url"), "{ended:?}");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_discarded_that_is_not_in_the_audit_table() {
    let shop = Shop::open().await;
    let ids = shop.park(1).await;
    let bytes = b"\x00\xffno command".to_vec();
    shop.system.publish_raw("order.place", bytes.clone()).await;
    let kept = shop.parked(4).await;
    let garbage = kept[3].sequence.to_string();
    let refused = shop.parked_cli(&["discard", &garbage, "--why", " "]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    shop.parked(4).await;

    // Without the table nothing is done.
    let away = [("MILLRACE_POSTGRES_URL", "postgres://millrace@127.0.0.1:1/none")];
    for action in [&["discard", garbage.as_str(), "--why", "a test"][..], &["replay", "--all"]] {
        let refused = shop.parked_cli_with(action, &away).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.errors.contains("the audit table cannot be written"), "{refused:?}");
    }
    shop.parked(4).await;

    // Killed between the two, and done again: it is written once.
    let discard = ["discard", garbage.as_str(), "--why", "a test"];
    let point = [("MILLRACE_CRASH_POINT", "discard.written")];
    assert_eq!(shop.parked_cli_with(&discard, &point).await.code, None);
    shop.parked(4).await;
    let ended = shop.parked_cli(&discard).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.output.ends_with(": discarded\n"), "{ended:?}");
    shop.parked(3).await;
    let rows: Vec<(String, String, String, i64, Vec<u8>)> = sqlx::query_as(
        "select actor, why, worker, sequence, payload from journal.audit where action = 'discard'",
    )
    .fetch_all(&shop.system.pool)
    .await
    .expect("the audit table");
    let number = |at: usize| i64::try_from(number(&kept[at])).expect("a sequence");
    let expected = ("eve".to_owned(), "a test".to_owned(), "validation".to_owned());
    assert_eq!(rows, [(expected.0, expected.1, expected.2, number(3), bytes)]);
    let again = shop.parked_cli(&discard).await;
    assert!(again.output.contains("gone"), "{again:?}");

    // What waited behind it stays until it is replayed.
    let edge = Edge::open(&shop.system).await;
    let persistence = shop.system.run(Role::Persistence);
    let path = "/v1/ops/parked/discard";
    let body = json!({ "sequences": [kept[0].sequence], "why": "the journal is right" });
    let answer = edge.post(&shop.system, path, &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(count(&answer.body, "discarded"), 1, "{answer:?}");
    shop.parked(2).await;
    let refund = format!("/v1/orders/{}/refund", ids[0]);
    assert_eq!(shop.system.post_and_wait(&refund, &json!({})).await.status, 200);
    shop.system.settle().await;
    assert_eq!(shop.journal(ids[0]).await, ["validated"], "all that is later waits");
    let report = shop.parked_json(&["replay", &kept[2].sequence.to_string()]).await;
    assert_eq!(count(&report, "stillFailing"), 0, "{report}");
    shop.parked(0).await;
    let steps = shop.journal(ids[0]).await;
    assert_eq!(
        steps[..3],
        ["validated", "shipped", "delivered"],
        "in order, without the discarded"
    );
    let empty = edge.post(&shop.system, path, &json!({ "sequences": [1], "why": "" })).await;
    assert_eq!(empty.status, 400, "{empty:?}");
    persistence.stop().await;
    edge.close().await;
    shop.close().await;
}
