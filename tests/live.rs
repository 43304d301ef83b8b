//! Live streams: what is pushed can be read, nothing is missed or told twice however often a client
//! comes back and wherever, and no client takes more than its share.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use millrace_api::live::LiveConfig;
use millrace_api::{ApiConfig, Server};
use millrace_shared::config::RedisConfig;
use millrace_shared::message::Event;
use millrace_workers::Role;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{System, card_order, eventually};
use crate::proxy::{Line, Mode};

mod customers;
mod load;

/// How long a test waits for a message that must come.
const PATIENCE: Duration = Duration::from_secs(40);

/// One more api of a system.
pub struct Edge {
    pub http: String,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Edge {
    pub async fn start(system: &System, live: LiveConfig) -> Self {
        Self::with_redis(system, live, system.config.redis.clone()).await
    }

    async fn with_redis(system: &System, live: LiveConfig, redis: RedisConfig) -> Self {
        let http = "127.0.0.1:0".parse().expect("an address");
        let config = ApiConfig::new(http, system.config.nats.clone(), redis).with_live(live);
        let server = Server::bind(config).await.expect("the api binds");
        let http = format!("http://{}", server.local_addr());
        let stop = CancellationToken::new();
        let serve = server.serve(stop.clone());
        let serving = tokio::spawn(async move { serve.await.expect("the api ends well") });
        Self { http, stop, serving }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.serving.await.expect("the api ends");
    }
}

/// A message of a stream.
#[derive(Debug, Clone)]
struct Message {
    id: String,
    data: Value,
}

impl Message {
    fn version(&self) -> u64 {
        self.id.parse().expect("a version")
    }
}

/// A client of a stream.
struct Follower {
    response: reqwest::Response,
    text: String,
    heartbeats: u32,
}

impl Follower {
    /// Opens a stream; `last` is the id of the last message that the client has.
    async fn open(http: &str, path: &str, last: Option<&str>) -> Self {
        let response = Self::ask(http, path, last).await;
        assert_eq!(response.status(), 200);
        let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
        assert_eq!(header("content-type"), "text/event-stream");
        assert_eq!(header("cache-control"), "no-store");
        assert_eq!(header("x-accel-buffering"), "no");
        Self { response, text: String::new(), heartbeats: 0 }
    }

    async fn ask(http: &str, path: &str, last: Option<&str>) -> reqwest::Response {
        let request = reqwest::Client::new().get(format!("{http}{path}"));
        let request = match last {
            Some(last) => request.header("Last-Event-ID", last),
            None => request,
        };
        request.send().await.expect("the api answers")
    }

    /// The next message; nothing, if the stream has ended.
    async fn next(&mut self) -> Option<Message> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let (mut id, mut data, rest) = (None, Vec::new(), rest.to_owned());
                for line in block.lines() {
                    match line.split_once(": ") {
                        Some(("id", value)) => id = Some(value.to_owned()),
                        Some(("data", value)) => data.push(value),
                        Some(("retry", value)) => assert!(value.parse::<u32>().is_ok()),
                        _ if line == ":" => self.heartbeats += 1,
                        other => panic!("{other:?} in {block:?}"),
                    }
                }
                let message = (!data.is_empty()).then(|| Message {
                    id: id.expect("an id"),
                    data: serde_json::from_str(&data.join("\n")).expect("JSON"),
                });
                self.text = rest;
                if message.is_some() {
                    return message;
                }
            }
            let chunk = timeout_at(deadline, self.response.chunk()).await.expect("in time");
            let chunk = chunk.expect("a whole answer")?;
            self.text += std::str::from_utf8(&chunk).expect("text");
        }
    }

    async fn message(&mut self) -> Message {
        self.next().await.expect("a message before the end")
    }
}

/// An event of an order as projection sees it; `filler` makes its document large.
fn event(order: &str, customer: &str, version: u64, filler: usize) -> Event {
    let now = "2026-01-01T00:00:00Z";
    let timeline: Vec<Value> = (1..=version)
        .map(|version| json!({ "status": "paid", "version": version, "at": now }))
        .collect();
    let state = json!({ "orderId": order, "customerId": customer, "status": "paid",
        "version": version, "lines": [], "payment": { "method": "card", "status": "captured" },
        "placedAt": now, "updatedAt": now, "timeline": timeline,
        "detail": "x".repeat(filler) });
    let event = json!({ "id": Uuid::now_v7(), "subject": "order", "subjectId": order,
        "version": version, "type": "paid", "schema": 1, "occurredAt": now,
        "causation": Uuid::now_v7(), "correlation": Uuid::now_v7(), "data": {}, "state": state });
    serde_json::from_value(event).expect("an event")
}

/// Brings an order through all its steps.
async fn bring_to_its_end(system: &System, id: &str) {
    for (step, body) in [
        ("ship", json!({ "carrier": "Post", "trackingNumber": "1" })),
        ("deliver", json!({})),
        ("refund", json!({})),
    ] {
        let answer = system.post_and_wait(&format!("/v1/orders/{id}/{step}"), &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    system.order_in(id, "refunded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_followed_from_pending_to_its_end_and_what_is_told_can_be_read() {
    let system = System::without_workers().await;
    let projection = system.run(Role::Projection);
    let validation = system.run(Role::Validation);
    system.register("ann", None).await;
    system.define("pen", 100, 5).await;
    validation.stop().await;
    let placed = system.post("/v1/orders", &card_order("ann", "pen", 1, "tok_ok")).await;
    let id = placed.text("/orderId");
    let path = format!("/v1/orders/{id}/stream");
    let mut follower = Follower::open(&system.http, &path, None).await;
    let first = follower.message().await;
    assert_eq!((first.version(), &first.data["status"]), (0, &json!("pending")));

    let workers = [Role::Validation, Role::Payment].map(|role| system.run(role));
    let follow = async {
        let mut told = Vec::new();
        while let Some(message) = follower.next().await {
            // Read right now, it is as new as what was told.
            let read = system.order(&id).await;
            assert!(read["version"].as_u64() >= Some(message.version()), "{message:?} {read}");
            if read["version"] == message.version() && message.data.get("lines").is_some() {
                assert_eq!(read, message.data);
            }
            told.push((message.version(), message.data["status"].clone()));
        }
        told
    };
    let end = async {
        system.order_in(&id, "paid").await;
        bring_to_its_end(&system, &id).await;
    };
    let (told, ()) = tokio::join!(follow, end);
    let steps = ["validated", "paid", "shipped", "delivered", "refunding", "refunded"];
    let expected: Vec<(u64, Value)> = (1..).zip(steps.map(Value::from)).collect();
    assert_eq!(told, expected);
    // An EventSource comes back when a stream ends; this tells it that there is nothing more.
    let over = Follower::ask(&system.http, &path, Some("6")).await;
    assert_eq!(over.status(), 204);
    for worker in workers.into_iter().chain([projection]) {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_to_another_replica_after_every_message_misses_none() {
    let system = System::start().await;
    let other = Edge::start(&system, LiveConfig::default()).await;
    let edges = [&system.http, &other.http];
    system.register("ann", None).await;
    system.define("pen", 100, 50).await;
    let ids = join_all((0..4).map(async |_| {
        let placed = system.post("/v1/orders", &card_order("ann", "pen", 1, "tok_slow")).await;
        placed.text("/orderId")
    }))
    .await;
    let follow = async |number: usize, id: &String| {
        let path = format!("/v1/orders/{id}/stream");
        let mut had: Vec<u64> = vec![0];
        for turn in number.. {
            let last = had.last().map(ToString::to_string);
            let edge = edges[turn % 2];
            let ask = Follower::ask(edge, &path, last.as_deref()).await;
            if ask.status() == 204 {
                break;
            }
            let mut follower = Follower::open(edge, &path, last.as_deref()).await;
            // One message is taken, and all that came with it is thrown away.
            had.push(follower.message().await.version());
        }
        had
    };
    let follow = join_all(ids.iter().enumerate().map(|(number, id)| follow(number, id)));
    let end = join_all(ids.iter().map(async |id| {
        system.order_in(id, "paid").await;
        bring_to_its_end(&system, id).await;
    }));
    let (followed, _) = tokio::join!(follow, end);
    for had in followed {
        assert_eq!(had, [0, 1, 2, 3, 4, 5, 6]);
    }
    // From every version, on either replica, by header and by query.
    let path = format!("/v1/orders/{}/stream", ids[0]);
    for last in 0..6_u64 {
        let by_header = Follower::open(edges[0], &path, Some(&last.to_string())).await;
        let by_query = Follower::open(edges[1], &format!("{path}?lastEventId={last}"), None).await;
        for mut follower in [by_header, by_query] {
            let mut told = Vec::new();
            while let Some(message) = follower.next().await {
                assert_eq!(message.data["version"], message.version());
                assert_eq!(message.data["orderId"], json!(ids[0]));
                told.push(message.version());
            }
            assert_eq!(told, (last + 1..=6).collect::<Vec<_>>());
        }
    }
    let unknown = format!("/v1/orders/{}/stream", Uuid::now_v7());
    assert_eq!(Follower::ask(edges[0], &unknown, None).await.status(), 404);
    other.stop().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_client_is_cut_off_and_its_place_is_free_again() {
    let system = System::without_workers().await;
    let projection = system.run(Role::Projection);
    let validation = system.run(Role::Validation);
    system.register("ann", None).await;
    validation.stop().await;
    let live = LiveConfig { streams: 1, stalled: 2, heartbeat: 1 };
    let edge = Edge::start(&system, live).await;
    let address = edge.http.trim_start_matches("http://").parse().expect("an address");
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4 * 1024).expect("a small buffer");
    let mut slow = socket.connect(address).await.expect("a connection");
    let path = "/v1/customers/ann/stream";
    slow.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes())
        .await
        .expect("a request");
    let mut begin = [0; 12];
    slow.read_exact(&mut begin).await.expect("an answer");
    assert_eq!(&begin, b"HTTP/1.1 200");

    let refused = Follower::ask(&edge.http, path, None).await;
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers()["retry-after"], "1");
    // It reads no more. What is told meanwhile is more than any buffer takes.
    let orders: Vec<String> = (0..60).map(|_| Uuid::now_v7().to_string()).collect();
    for order in &orders {
        let event = event(order, "ann", 1, 50_000);
        system.views.apply([&event].into_iter()).await.expect("Redis answers");
    }
    let mut text = Vec::new();
    // When it reads again it gets what was on its way, and then the end.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let read = timeout(PATIENCE, slow.read_to_end(&mut text)).await;
    read.expect("it was cut off").ok();
    let text = String::from_utf8_lossy(&text);
    let ids: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert!((2..orders.len()).contains(&ids.len()), "{}", ids.len());
    // The last one may not have come whole.
    let last = ids[ids.len() - 2];
    let mut follower = eventually("its place is free", async || {
        let response = Follower::ask(&edge.http, path, Some(last)).await;
        let follower = Follower { response, text: String::new(), heartbeats: 0 };
        (follower.response.status() == 200).then_some(follower)
    })
    .await;
    let had = ids.len() - 2;
    for order in &orders[had..] {
        assert_eq!(follower.message().await.data["order"]["orderId"], json!(order));
    }
    edge.stop().await;
    projection.stop().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_kept_alive_and_end_at_once_when_the_api_stops() {
    let system = System::start().await;
    system.register("ann", None).await;
    let live = LiveConfig { heartbeat: 1, ..LiveConfig::default() };
    let edge = Edge::start(&system, live).await;
    let path = "/v1/customers/ann/stream";
    let mut followers = join_all((0..20).map(|_| Follower::open(&edge.http, path, None))).await;
    let mut last = String::new();
    for follower in &mut followers {
        let message = follower.message().await;
        assert_eq!(message.data["customer"]["customerId"], "ann");
        last = message.id;
    }
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let stopping = Instant::now();
    edge.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(10), "{:?}", stopping.elapsed());
    for mut follower in followers {
        assert!(follower.next().await.is_none());
        assert!(follower.heartbeats >= 2, "{}", follower.heartbeats);
    }
    // What happens until the client is elsewhere is told there.
    system.define("pen", 100, 5).await;
    let placed = system.post_and_wait("/v1/orders", &card_order("ann", "pen", 1, "tok_ok")).await;
    let mut follower = Follower::open(&system.http, path, Some(&last)).await;
    let message = follower.message().await;
    assert_eq!(message.data["order"]["orderId"], json!(placed.text("/orderId")));
    drop(follower);
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_on_without_a_gap_when_redis_was_away() {
    let system = System::start().await;
    let mut redis = system.config.redis.clone();
    let address = redis.redis_url.rsplit('@').next().expect("an address").to_owned();
    let line = Line::to(address.parse().expect("an address")).await;
    redis.redis_url = redis.redis_url.replace(&address, &line.address().to_string());
    let edge = Edge::with_redis(&system, LiveConfig::default(), redis).await;
    system.register("ann", None).await;
    system.define("pen", 100, 50).await;
    let placed = system.post_and_wait("/v1/orders", &card_order("ann", "pen", 1, "tok_ok")).await;
    let id = placed.text("/orderId");
    system.settle().await;
    let path = format!("/v1/orders/{id}/stream");
    let mut order = eventually("the edge reads", async || {
        let response = Follower::ask(&edge.http, &path, None).await;
        let follower = Follower { response, text: String::new(), heartbeats: 0 };
        (follower.response.status() == 200).then_some(follower)
    })
    .await;
    assert_eq!(order.message().await.version(), 2);
    let mut customer = Follower::open(&edge.http, "/v1/customers/ann/stream", None).await;
    customer.message().await;

    for (away, step) in [("refused", "ship"), ("silent", "deliver")] {
        if away == "refused" {
            line.set(Mode::Refused);
            line.cut();
        } else {
            // Both connections stay, and nothing comes through them any more.
            line.silence();
        }
        let body = json!({ "carrier": "Post", "trackingNumber": "1" });
        let body = if step == "ship" { body } else { json!({}) };
        let answer = system.post_and_wait(&format!("/v1/orders/{id}/{step}"), &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        system.settle().await;
        line.set(Mode::Open);
        let version = answer.body["version"].as_u64().expect("a version");
        assert_eq!(order.message().await.version(), version, "{away}");
        assert_eq!(customer.message().await.data["order"]["version"], version, "{away}");
    }
    drop((order, customer));
    edge.stop().await;
    system.stop().await;
}
