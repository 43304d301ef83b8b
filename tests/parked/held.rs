//! What is held back by a parked message, and what is not.

use millrace_shared::message::Subject;
use millrace_shared::topology::StreamOptions;
use millrace_workers::Role;
use rustix::process::Signal;
use serde_json::{Value, json};
use uuid::Uuid;

use super::shop::{Shop, count};
use crate::harness::{System, eventually};
use crate::parking::{header, number};
use crate::process::{Process, settings};

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_event_holds_back_later_ones_of_its_order_in_that_worker_and_nothing_else() {
    let shop = Shop::open().await;
    let persistence = shop.system.run(Role::Persistence);
    let (held, free) = (Uuid::now_v7(), Uuid::now_v7());
    shop.contradict(held).await;
    shop.sell(held).await;
    let cause = shop.parked(1).await.remove(0);
    assert!(header(&cause, "Millrace-Reason").contains("another event"), "{cause:?}");
    shop.sell(free).await;
    shop.deliver(held).await;
    shop.deliver(free).await;
    let kept = shop.parked(3).await;
    for later in &kept[1..] {
        let reason = header(later, "Millrace-Reason");
        let behind = format!("waits behind parked message {}", cause.sequence);
        assert!(reason.starts_with(&behind), "{reason}");
        assert!(number(later) > number(&cause));
    }
    for message in &kept {
        assert_eq!(header(message, "Millrace-Worker"), "persistence");
        let of_it = shop.system.topology.history(Subject::Order, &held.to_string());
        let of_it = of_it.trim_end_matches('*');
        assert!(header(message, "Millrace-Subject").starts_with(of_it));
    }
    assert_eq!(shop.journal(held).await, ["validated"]);
    shop.system.settle().await;
    shop.whole(free).await;
    // Other workers have not noticed.
    assert_eq!(shop.system.order(&held.to_string()).await["status"], "delivered");

    // Whichever of them is asked for, all are released, the oldest first.
    shop.heal().await;
    let last = kept[2].sequence.to_string();
    let ended = shop.parked_cli(&["replay", &last]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines: Vec<&str> = ended.output.lines().collect();
    assert_eq!(lines.len(), 4, "{ended:?}");
    for (line, message) in lines.iter().zip(&kept) {
        assert!(line.starts_with(&format!("{} ", message.sequence)), "{ended:?}");
        assert!(line.ends_with(": replayed"), "{ended:?}");
    }
    assert_eq!(lines[3], "3 replayed, 0 still failing, 0 waiting, 0 gone");
    shop.whole(held).await;
    shop.parked(0).await;
    // What comes afterwards is held back no longer.
    let refund = format!("/v1/orders/{held}/refund");
    assert_eq!(shop.system.post_and_wait(&refund, &json!({})).await.status, 200);
    shop.system.settle().await;
    assert!(shop.journal(held).await.len() > 4, "{:?}", shop.journal(held).await);
    persistence.stop().await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_knows_what_is_parked_before_it_consumes() {
    let shop = Shop::open().await;
    let persistence = shop.system.run(Role::Persistence);
    let id = Uuid::now_v7();
    shop.contradict(id).await;
    shop.sell(id).await;
    shop.parked(1).await;
    persistence.stop().await;
    shop.deliver(id).await;
    // It finds the later events at once.
    let replicas = [(); 2].map(|()| shop.system.run(Role::Persistence));
    shop.parked(3).await;
    shop.system.settle().await;
    assert_eq!(shop.journal(id).await, ["validated"]);
    for replica in replicas {
        replica.stop().await;
    }
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn later_events_of_an_order_wait_while_an_earlier_one_is_tried_again() {
    let shop = Shop::open().await;
    // On a machine with much else to do the next try may come so late that nothing is held back any
    // more: the first order for which it was in time will do.
    let (ids, free) = ([(); 5].map(|()| Uuid::now_v7()), Uuid::now_v7());
    let refuse = format!(
        "create function refuse() returns trigger language plpgsql as $$
             begin raise exception 'not now'; end $$;
         create trigger refuse before insert on journal.events for each row
             when (new.subject_id <> '{free}' and new.type = 'paid') execute function refuse()"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(refuse)).execute(&shop.system.pool).await.expect("a trigger");
    let persistence = shop.system.run(Role::Persistence);
    let mut held = Vec::new();
    for id in ids {
        shop.sell(id).await;
        shop.deliver(id).await;
        if held.is_empty() {
            shop.sell(free).await;
            shop.deliver(free).await;
        }
        eventually("others are in the journal", async || {
            (shop.journal(free).await.len() == 4).then_some(())
        })
        .await;
        held.push((id, shop.journal(id).await));
        if held.last().is_some_and(|(_, steps)| steps == &["validated"]) {
            break;
        }
    }
    assert!(held.last().is_some_and(|(_, steps)| steps == &["validated"]), "{held:?}");
    sqlx::raw_sql("drop trigger refuse on journal.events")
        .execute(&shop.system.pool)
        .await
        .expect("it is healed");
    shop.system.settle().await;
    let (id, _) = held.pop().expect("the last one");
    let steps = shop.journal(id).await;
    assert_eq!((steps.len(), &steps[..2]), (4, &["validated".to_owned(), "paid".to_owned()][..]));
    shop.parked(0).await;
    persistence.stop().await;
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_command_holds_back_nothing_and_has_its_outcome_after_its_replay() {
    let system = System::start().await;
    let shop = Shop { system, running: Vec::new() };
    shop.system.register("ann", None).await;
    shop.system.define("mug", 500, 100).await;
    let first = Uuid::now_v7();
    shop.sell(first).await;
    // The log has an event that no program can read: a command on its order cannot be decided.
    let stored = shop.system.history(Subject::Order, &first.to_string()).await;
    let mut event = serde_json::to_value(&stored[0].event).expect("an event");
    let id = Uuid::now_v7();
    event["subjectId"] = json!(id);
    event["state"] = json!({ "orderId": id });
    let subject = shop.system.topology.event(Subject::Order, &id.to_string(), "validated");
    let ack = shop.system.nats.request(subject, event.to_string().into()).await.expect("an ack");
    let ack: Value = serde_json::from_slice(&ack.payload).expect("JSON");
    let cancel = shop.system.publish("order.cancel", &json!({ "orderId": id })).await;
    let cli = ["list", "--worker", "validation"];
    let kept = eventually("the command is parked", async || {
        shop.parked_json(&cli).await["items"].as_array().and_then(|items| items.first().cloned())
    })
    .await;
    assert_eq!(kept["originalSequence"], cancel);
    shop.sell(Uuid::now_v7()).await;

    let jetstream = async_nats::jetstream::new(shop.system.nats.clone());
    let stream = jetstream.get_stream(shop.system.topology.events_stream()).await.expect("EVENTS");
    let bad = ack["seq"].as_u64().expect("a sequence");
    stream.delete_message(bad).await.expect("it is healed");
    let report = shop.parked_json(&["replay", &kept["sequence"].to_string()]).await;
    assert_eq!(count(&report, "replayed"), 1, "{report}");
    let outcome = shop.system.outcome(&cancel.to_string()).await;
    assert_eq!(outcome["reason"], "unknown_order", "{outcome}");
    shop.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_cannot_see_what_is_parked_does_not_begin() {
    let shop = Shop::open().await;
    let id = Uuid::now_v7();
    shop.sell(id).await;
    let system = &shop.system;
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    jetstream.delete_stream(system.topology.parked_stream()).await.expect("it was there");
    let worker = Process::start(&["worker", "persistence"], &settings(&system.config));
    eventually("it has tried for seconds", async || {
        let tries = worker.errors().matches("what is parked cannot be read").count();
        (tries > 2).then_some(())
    })
    .await;
    assert!(shop.journal(id).await.is_empty());
    let options = StreamOptions::default();
    system.topology.create(&jetstream, &options).await.expect("the stream is made again");
    eventually("it has begun", async || (shop.journal(id).await.len() == 2).then_some(())).await;
    assert_eq!(worker.end(Signal::TERM).await.code, Some(0));
    shop.close().await;
}
