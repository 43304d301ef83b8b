//! Replays: what succeeds, what fails again, and what dies half-way.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use millrace_shared::message::Subject;
use millrace_workers::Role;
use serde_json::json;
use uuid::Uuid;

use super::shop::{Edge, Shop, count};
use crate::harness::eventually;
use crate::parking::{header, number};

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_fails_again_is_counted_and_not_doubled() {
    let shop = Shop::open().await;
    let ids = shop.park(2).await;
    let before = shop.parked(6).await;
    // One is healed, the other is not.
    sqlx::query("delete from journal.events where type = 'wrong' and subject_id = $1")
        .bind(ids[1].to_string())
        .execute(&shop.system.pool)
        .await
        .expect("one is healed");
    let persistence = shop.system.run(Role::Persistence);
    let edge = Edge::open(&shop.system).await;
    let all = json!({ "all": true, "worker": "persistence" });
    let answer = edge.post(&shop.system, "/v1/ops/parked/replay", &all).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(count(&answer.body, "replayed"), 3, "{answer:?}");
    assert_eq!(count(&answer.body, "stillFailing"), 3, "{answer:?}");
    shop.whole(ids[1]).await;
    assert_eq!(shop.journal(ids[0]).await, ["validated"]);
    let after = shop.parked(3).await;
    let cause = before.iter().map(number).min().expect("some");
    let first = before.iter().find(|message| number(message) == cause).expect("the cause");
    let attempts: BTreeMap<u64, &str> = after
        .iter()
        .map(|message| (number(message), header(message, "Millrace-Attempts")))
        .collect();
    assert_eq!(attempts.len(), 3, "each once");
    // Those behind it were not tried.
    let expected = attempts.keys().map(|at| if *at == cause { "2" } else { "1" });
    assert_eq!(attempts.values().copied().collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    let again = answer.body["results"].as_array().expect("results");
    let again = again.iter().find(|of| of["originalSequence"] == cause).expect("the cause");
    assert_eq!(again["attempts"], 2, "{again}");
    let now = after.iter().find(|message| number(message) == cause).expect("the cause");
    assert_eq!(again["parkedAs"], now.sequence);
    assert_eq!(now.payload, first.payload);
    assert_eq!(header(now, "Millrace-First-Seen"), header(first, "Millrace-First-Seen"));

    shop.heal().await;
    let report = shop.parked_json(&["replay", "--all"]).await;
    assert_eq!(count(&report, "replayed"), 3, "{report}");
    shop.whole(ids[0]).await;
    let replays = shop.audit().await.iter().filter(|(action, ..)| action == "replay").count();
    assert_eq!(replays, 9);
    persistence.stop().await;
    edge.close().await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_in_a_replay_loses_nothing_and_does_nothing_twice() {
    let points = ["replay.done", "replay.removed", "persistence.before-commit"];
    join_all(points.map(async |point| {
        let shop = Shop::open().await;
        let ids = shop.park(2).await;
        shop.heal().await;
        let worker = shop.dying(point);
        let ended = shop.parked_cli(&["replay", "--all", "--wait", "2"]).await;
        assert_eq!(ended.code, Some(1), "{point}: {ended:?}");
        assert!(ended.output.contains("waits for a worker"), "{point}: {ended:?}");
        assert_eq!(worker.ended().await.code, None, "{point}: it was killed");
        let persistence = shop.system.run(Role::Persistence);
        // What was asked for is still asked for.
        shop.parked(0).await;
        for id in ids {
            shop.whole(id).await;
        }
        persistence.stop().await;
        shop.close().await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_when_a_replay_has_failed_leaves_each_message_parked_once() {
    let shop = Shop::open().await;
    let ids = shop.park(1).await;
    let before = shop.parked(3).await;
    let worker = shop.dying("replay.parked-again");
    let ended = shop.parked_cli(&["replay", "--all", "--wait", "2"]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(worker.ended().await.code, None, "it was killed");
    let persistence = shop.system.run(Role::Persistence);
    // It is asked for still, and fails once more.
    let cause = eventually("it is tried again", async || {
        let kept = shop.parked(3).await;
        let cause = kept.into_iter().find(|message| number(message) == number(&before[0]))?;
        (header(&cause, "Millrace-Attempts") == "3").then_some(cause)
    })
    .await;
    assert_eq!(cause.payload, before[0].payload);
    shop.heal().await;
    let report = shop.parked_json(&["replay", "--all"]).await;
    assert_eq!(count(&report, "replayed"), 3, "{report}");
    shop.whole(ids[0]).await;
    persistence.stop().await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_who_is_stopped_half_way_goes_on_where_it_ended() {
    let shop = Shop::open().await;
    let ids = shop.park(3).await;
    shop.heal().await;
    let point = [("MILLRACE_CRASH_POINT", "replay.asked")];
    let killed = shop.parked_cli_with(&["replay", "--all"], &point).await;
    assert_eq!(killed.code, None, "{killed:?}");
    let report = shop.parked_json(&["replay", "--all", "--limit", "4", "--wait", "0"]).await;
    assert_eq!(count(&report, "waiting"), 4, "{report}");
    // Two replicas, and still each order's are released one after the other.
    let replicas = [(); 2].map(|()| shop.system.run(Role::Persistence));
    shop.parked(5).await;
    let mut cursor = 1;
    let mut replayed = 0;
    loop {
        let from = cursor.to_string();
        let next = ["replay", "--all", "--limit", "2", "--cursor", &from];
        let report = shop.parked_json(&next).await;
        assert!(report["results"].as_array().expect("results").len() <= 2, "{report}");
        replayed += count(&report, "replayed");
        match report["nextCursor"].as_u64() {
            Some(next) => cursor = next,
            None => break,
        }
    }
    assert_eq!(replayed, 5);
    for id in ids {
        shop.whole(id).await;
    }
    for replica in replicas {
        replica.stop().await;
    }
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_too_large_to_be_copied_is_replayed_from_its_stream() {
    let shop = Shop::open().await;
    let (first, id) = (Uuid::now_v7(), Uuid::now_v7());
    shop.sell(first).await;
    let stored = shop.system.history(Subject::Order, &first.to_string()).await;
    let mut event = serde_json::to_value(&stored[1].event).expect("an event");
    event["id"] = json!(Uuid::now_v7());
    event["subjectId"] = json!(id);
    event["data"]["remark"] = json!("x".repeat(600 * 1024));
    shop.contradict(id).await;
    let persistence = shop.system.run(Role::Persistence);
    let subject = shop.system.topology.event(Subject::Order, &id.to_string(), "paid");
    let payload = event.to_string();
    shop.system.nats.request(subject, payload.clone().into()).await.expect("a publish ack");
    let kept = shop.parked(1).await;
    assert!(kept[0].payload.is_empty());
    let shown = shop.parked_json(&["show", &kept[0].sequence.to_string()]).await;
    assert_eq!(shown["payload"], payload);
    shop.heal().await;
    let report = shop.parked_json(&["replay", "--all"]).await;
    assert_eq!(count(&report, "replayed"), 1, "{report}");
    assert_eq!(shop.journal(id).await, ["paid"]);
    persistence.stop().await;
    shop.close().await;
}
