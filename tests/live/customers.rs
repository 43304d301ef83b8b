//! Streams of customers: every order that has changed, for whoever comes back to any replica.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use millrace_api::live::LiveConfig;
use millrace_shared::message::Event;
use millrace_workers::rebuild::Rebuild;
use serde_json::json;
use uuid::Uuid;

use super::{Edge, Follower, Message, event};
use crate::harness::{System, account_order, card_order};

/// What a customer's stream has told: the versions of each order, and the customer's.
#[derive(Debug, Default, PartialEq)]
struct Told {
    orders: BTreeMap<String, Vec<u64>>,
    customer: Vec<u64>,
    resets: u32,
}

impl Told {
    fn take(&mut self, message: &Message) {
        if let Some(order) = message.data["order"].as_object() {
            let id = order["orderId"].as_str().expect("an id").to_owned();
            self.orders.entry(id).or_default().push(order["version"].as_u64().expect("a version"));
        }
        if let Some(version) = message.data["customer"]["version"].as_u64() {
            self.customer.push(version);
        }
        self.resets += u32::from(message.data["reset"] == true);
    }

    /// Checks that nothing was told twice or backwards.
    fn is_in_order(&self) {
        for versions in self.orders.values().chain([&self.customer]) {
            assert!(versions.is_sorted_by(|a, b| a < b), "{self:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customer_s_stream_tells_every_order_to_whoever_comes_back_to_any_replica() {
    let system = System::with_workers(2).await;
    let other = Edge::start(&system, LiveConfig::default()).await;
    let edges = [&system.http, &other.http];
    system.register("ann", Some(1_000_000)).await;
    system.register("bob", Some(1_000_000)).await;
    system.define("pen", 100, 500).await;
    let path = "/v1/customers/ann/stream";
    let begin = Follower::open(edges[0], path, None).await.message().await;
    assert_eq!(begin.data["customer"]["customerId"], "ann");
    let orders = 40;
    let complete = |told: &Told| {
        told.orders.len() == orders && told.orders.values().all(|versions| versions.ends_with(&[2]))
    };
    // One leaves after each message, one stays.
    let restless = async {
        let (mut told, mut last) = (Told::default(), begin.id.clone());
        for turn in 0.. {
            if complete(&told) {
                break;
            }
            let mut follower = Follower::open(edges[turn % 2], path, Some(&last)).await;
            let message = follower.message().await;
            if let Some(id) = message.data["order"]["orderId"].as_str() {
                let read = system.order(id).await;
                assert!(read["version"].as_u64() >= message.data["order"]["version"].as_u64());
            }
            told.take(&message);
            last = message.id;
        }
        told
    };
    let faithful = async {
        let mut told = Told::default();
        let mut follower = Follower::open(edges[1], path, Some(&begin.id)).await;
        while !complete(&told) {
            told.take(&follower.message().await);
        }
        told
    };
    let place = join_all((0..orders * 2).map(async |number| {
        let customer = ["ann", "bob"][number % 2];
        let order = account_order(customer, "pen", 1);
        let placed = system.post("/v1/orders", &order).await;
        assert_eq!(placed.status, 202, "{placed:?}");
    }));
    let (restless, faithful, _) = tokio::join!(restless, faithful, place);
    for told in [&restless, &faithful] {
        told.is_in_order();
        assert_eq!(told.resets, 0);
    }
    // All that happened since is told to who had only seen the beginning.
    system.settle().await;
    let mut late = Told::default();
    let mut follower = Follower::open(edges[0], path, Some(&begin.id)).await;
    let customer = system.get("/v1/customers/ann").await.body;
    while !(complete(&late) && late.customer.last() == customer["version"].as_u64().as_ref()) {
        late.take(&follower.message().await);
    }
    assert!(late.orders.values().all(|versions| versions == &[2]), "{late:?}");
    assert_eq!(customer["creditUsed"]["amount"], 4_000);
    drop(follower);
    other.stop().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_place_is_not_known_any_more_is_told_to_begin_anew() {
    let system = System::start().await;
    system.register("ann", None).await;
    system.settle().await;
    let path = "/v1/customers/ann/stream";
    let begin = Follower::open(&system.http, path, None).await.message().await;
    let ids: Vec<String> = (0..150).map(|_| Uuid::now_v7().to_string()).collect();
    let events: Vec<Event> = ids.iter().map(|id| event(id, "ann", 1, 10)).collect();
    system.views.apply(events.iter()).await.expect("Redis answers");

    let mut late = Follower::open(&system.http, path, Some(&begin.id)).await;
    let reset = late.message().await;
    assert_eq!(reset.data["reset"], true, "{reset:?}");
    assert_eq!(reset.data["customer"]["customerId"], "ann");
    // What is delivered again tells nothing new; what is new is told.
    system.views.apply(events[60..].iter()).await.expect("Redis answers");
    let next = event(&ids[0], "ann", 2, 10);
    system.views.apply([&next].into_iter()).await.expect("Redis answers");
    let message = late.message().await;
    let told = &message.data["order"];
    assert_eq!((&told["orderId"], &told["version"]), (&json!(ids[0]), &json!(2)));

    // Views that are made anew know nothing of places in the old ones. (They are made from the
    // journal and the log, which know nothing of these orders.)
    let anew = Rebuild::new(
        system.pool.clone(),
        system.views.clone(),
        &system.nats,
        system.topology.clone(),
    );
    let rebuilt = anew.run(|_| {}).await.expect("the views are made anew").expect("by us");
    assert_eq!(late.message().await.data["reset"], true);
    let mut back = Follower::open(&system.http, path, Some(&message.id)).await;
    let reset = back.message().await;
    assert_eq!(reset.data["reset"], true, "{reset:?}");
    assert!(reset.id.starts_with(&rebuilt.generation.to_string()), "{reset:?}");
    system.define("pen", 100, 5).await;
    let placed = system.post_and_wait("/v1/orders", &card_order("ann", "pen", 1, "tok_ok")).await;
    for follower in [&mut late, &mut back] {
        let message = follower.message().await;
        assert_eq!(message.data["order"]["orderId"], json!(placed.text("/orderId")));
    }
    drop((late, back));
    system.stop().await;
}
