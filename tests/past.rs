//! An order's past: its history, however far the journal is behind and the log is trimmed; its state
//! at any moment; and its story.

use chrono::TimeDelta;
use millrace_api::{ApiConfig, Server};
use millrace_shared::message::Subject;
use millrace_workers::Role;
use millrace_workers::trim::{Keep, Trim};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{Answer, System, account_order, card_order, eventually};
use crate::parked::shop::Shop;
use crate::process::{run, settings};

async fn step(system: &System, id: &str, step: &str) {
    let body = match step {
        "ship" => json!({ "carrier": "Post", "trackingNumber": "1" }),
        _ => json!({}),
    };
    let answer = system.post_and_wait(&format!("/v1/orders/{id}/{step}"), &body).await;
    assert_eq!(answer.status, 200, "{step} {answer:?}");
}

/// Waits until so many of an order's events are in the journal, and all others are settled.
async fn recorded(system: &System, id: &str, count: i64) {
    eventually("the journal has it", async || {
        let query = "select count(*) from journal.events where subject_id = $1";
        let found = sqlx::query_scalar::<_, i64>(query).bind(id).fetch_one(&system.pool).await;
        (found.ok()? == count).then_some(())
    })
    .await;
    system.settle().await;
}

/// Trims all that may go.
async fn trim(system: &System) {
    let trim = Trim::new(system.pool.clone(), &system.nats, system.topology.clone());
    let everything = Keep { age: TimeDelta::zero(), messages: 0 };
    trim.run(everything, false).await.expect("it is trimmed").expect("no other trim");
}

/// The history as the api tells it, page by page, checked to be dense.
async fn told(system: &System, id: &str) -> Vec<String> {
    let (mut kinds, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = system.get(&format!("/v1/orders/{id}/history?limit=2{cursor}")).await;
        assert_eq!(page.status, 200, "{page:?}");
        assert!(!page.body.to_string().contains("tok_"), "a token is told: {}", page.body);
        for item in page.body["items"].as_array().expect("items") {
            assert_eq!(item["version"], kinds.len() + 1, "{item}");
            kinds.push(item["type"].as_str().expect("a type").to_owned());
        }
        match page.body["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return kinds,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_has_no_gap_however_far_the_journal_is_behind_and_the_log_is_trimmed() {
    let system = System::without_workers().await;
    let workers = [Role::Validation, Role::Payment, Role::Projection].map(|it| system.run(it));
    system.register("ann", None).await;
    system.define("pen", 100, 100).await;
    // Persistence has never run: the log alone.
    let placed = system.post_and_wait("/v1/orders", &card_order("ann", "pen", 1, "tok_ok")).await;
    assert_eq!(placed.status, 201, "{placed:?}");
    let id = placed.text("/orderId");
    assert_eq!(told(&system, &id).await, ["validated", "paid"]);
    let whole = system.get(&format!("/v1/orders/{id}/history")).await.body;
    for (item, stored) in whole["items"]
        .as_array()
        .expect("items")
        .iter()
        .zip(system.history(Subject::Order, &id).await)
    {
        let event = stored.event;
        assert_eq!(item["eventId"], event.id.to_string());
        assert_eq!(item["occurredAt"], json!(event.occurred_at));
        assert_eq!(item["causation"], json!(event.causation));
        assert_eq!(item["correlation"], json!(event.correlation));
    }
    let persistence = system.run(Role::Persistence);
    recorded(&system, &id, 2).await;
    assert_eq!(told(&system, &id).await, ["validated", "paid"]);
    // The beginning is in the journal alone, the end in the log alone.
    trim(&system).await;
    assert!(system.history(Subject::Order, &id).await.is_empty());
    assert_eq!(told(&system, &id).await, ["validated", "paid"]);
    persistence.stop().await;
    step(&system, &id, "ship").await;
    assert_eq!(system.history(Subject::Order, &id).await.len(), 1);
    assert_eq!(told(&system, &id).await, ["validated", "paid", "shipped"]);
    let trimmed = system.get(&format!("/v1/orders/{id}/history")).await.body;
    assert_eq!(
        trimmed["items"].as_array().map(|it| &it[..2]),
        whole["items"].as_array().map(|it| &it[..2]),
        "the journal tells the same as the log did"
    );
    // Read all the time while persistence catches up and everything is trimmed again.
    let persistence = system.run(Role::Persistence);
    let catch_up = async {
        step(&system, &id, "deliver").await;
        recorded(&system, &id, 4).await;
        trim(&system).await;
    };
    let read = async {
        let mut longest = 3;
        while longest < 4 || !system.history(Subject::Order, &id).await.is_empty() {
            let kinds = told(&system, &id).await;
            assert!(kinds.len() >= longest, "{kinds:?}");
            longest = kinds.len();
        }
    };
    tokio::join!(catch_up, read);
    assert_eq!(told(&system, &id).await, ["validated", "paid", "shipped", "delivered"]);
    for worker in workers.into_iter().chain([persistence]) {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_shown_as_it_was_at_any_moment_and_in_any_version() {
    let system = System::start().await;
    system.register("ann", Some(10_000)).await;
    system.define("pen", 100, 100).await;
    let placed = system.post_and_wait("/v1/orders", &card_order("ann", "pen", 1, "tok_ok")).await;
    let id = placed.text("/orderId");
    step(&system, &id, "ship").await;
    let history = system.history(Subject::Order, &id).await;
    // What was decided together happened at one moment: then there is only what came of it.
    let account = system.post_and_wait("/v1/orders", &account_order("ann", "pen", 1)).await;
    let account = account.text("/orderId");
    let [at, paid_at] = [1, 2].map(async |version: u64| {
        let path = format!("/v1/orders/{account}?version={version}");
        system.get(&path).await.text("/updatedAt")
    });
    let (at, paid_at) = tokio::join!(at, paid_at);
    assert_eq!(at, paid_at);
    let then = system.get(&format!("/v1/orders/{account}?asOf={at}")).await;
    assert_eq!(then.body["status"], "paid", "{then:?}");
    for trimmed in [false, true] {
        if trimmed {
            system.settle().await;
            trim(&system).await;
        }
        for (number, stored) in history.iter().enumerate() {
            let (event, state) = (&stored.event, stored.event.state.get());
            let state: Value = serde_json::from_str(state).expect("a state");
            let at = event.occurred_at;
            let between = history.get(number + 1).map_or(at + TimeDelta::days(1), |next| {
                next.event.occurred_at - TimeDelta::microseconds(1)
            });
            for query in [
                format!("version={}", event.version),
                format!("asOf={}", at.to_rfc3339().replace('+', "%2B")),
                format!("asOf={}", between.to_rfc3339().replace('+', "%2B")),
            ] {
                let answer = system.get(&format!("/v1/orders/{id}?{query}")).await;
                assert_eq!((answer.status, &answer.body), (200, &state), "{query}");
                assert_eq!(answer.header("etag"), format!("\"{}\"", event.version));
            }
        }
        let first = history[0].event.occurred_at - TimeDelta::microseconds(1);
        let first = first.to_rfc3339().replace('+', "%2B");
        for (query, status) in [
            (format!("asOf={first}"), 404),
            ("version=4".to_owned(), 404),
            ("version=0".to_owned(), 404),
            (format!("version=1&asOf={first}"), 404),
            ("version=-1".to_owned(), 400),
            ("asOf=once".to_owned(), 400),
            ("version=1&minVersion=1".to_owned(), 400),
        ] {
            let answer = system.get(&format!("/v1/orders/{id}?{query}")).await;
            assert_eq!(answer.status, status, "{query} {answer:?}");
        }
    }
    let nobody = Uuid::now_v7();
    for path in ["?version=1", "/history", "/explain"] {
        let answer = system.get(&format!("/v1/orders/{nobody}{path}")).await;
        assert_eq!(answer.status, 404, "{path} {answer:?}");
    }
    system.stop().await;
}

/// An edge beside the system's own.
pub struct Beside {
    /// Its address.
    pub http: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Beside {
    /// One with these settings.
    pub async fn open(config: ApiConfig) -> Self {
        let server = Server::bind(config).await.expect("the api binds");
        let http = format!("http://{}", server.local_addr());
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { server.serve(stop).await.expect("the api ends well") }
        });
        Self { http, stop, task }
    }

    /// One with the routes for operators.
    pub async fn for_operators(system: &System) -> Self {
        let (nats, redis) = (system.config.nats.clone(), system.config.redis.clone());
        let config = ApiConfig::new(([127, 0, 0, 1], 0).into(), nats, redis);
        Self::open(config.with_operator_routes(system.config.postgres.clone())).await
    }

    /// GET
    pub async fn get(&self, system: &System, path: &str) -> Answer {
        system.send(reqwest::Client::new().get(format!("{}{path}", self.http))).await
    }

    /// Asks it to end, and waits until it has.
    pub async fn close(self) {
        self.stop.cancel();
        self.task.await.expect("it ended");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_postgresql_the_log_tells_what_it_has_whole_and_nothing_else_is_affected() {
    let system = System::start().await;
    system.register("ann", None).await;
    system.define("pen", 100, 100).await;
    let order = card_order("ann", "pen", 1, "tok_ok");
    let old = system.post_and_wait("/v1/orders", &order).await.text("/orderId");
    system.settle().await;
    let config = &system.config;
    let address = || "127.0.0.1:0".parse().expect("an address");
    let edge = || ApiConfig::new(address(), config.nats.clone(), config.redis.clone());
    let mut away = config.postgres.clone();
    away.postgres_url = "postgres://millrace@127.0.0.1:1/nothing".to_owned();
    let edges = [Beside::open(edge()).await, Beside::open(edge().with_journal(away)).await];
    for edge in &edges {
        let unknown = format!("/v1/orders/{}/history", Uuid::now_v7());
        assert_eq!(edge.get(&system, &unknown).await.status, 404, "nothing was ever trimmed");
    }
    trim(&system).await;
    let new = system.post_and_wait("/v1/orders", &order).await.text("/orderId");
    for edge in &edges {
        let whole = edge.get(&system, &format!("/v1/orders/{new}/history")).await;
        assert_eq!(whole.status, 200, "{whole:?}");
        assert_eq!(whole.body["items"].as_array().map(Vec::len), Some(2));
        let story = edge.get(&system, &format!("/v1/orders/{new}/explain")).await;
        assert_eq!(story.status, 200, "{story:?}");
        assert!(story.body["missing"][0].as_str().is_some_and(|it| it.contains("PostgreSQL")));
        for path in ["/history", "?version=1", "/explain"] {
            let answer = edge.get(&system, &format!("/v1/orders/{old}{path}")).await;
            assert_eq!(answer.status, 503, "{path} {answer:?}");
            assert!(answer.text("/detail").contains("journal"), "{answer:?}");
            assert!(!answer.header("retry-after").is_empty());
        }
        let shown = edge.get(&system, &format!("/v1/orders/{old}")).await;
        assert_eq!(shown.text("/status"), "paid", "{shown:?}");
        assert_eq!(edge.get(&system, "/v1/customers/ann/orders").await.body["count"], 2);
    }
    for edge in edges {
        edge.close().await;
    }
    system.stop().await;
}

/// The story of an order, by HTTP; the command line tells the same.
async fn story(system: &System, id: &str) -> Value {
    let (by_http, by_cli) = stories(system, id).await;
    assert_eq!(by_cli, by_http);
    by_http
}

/// The story of an order as anybody is told it, and as operators are.
async fn stories(system: &System, id: &str) -> (Value, Value) {
    let answer = system.get(&format!("/v1/orders/{id}/explain")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(!answer.body.to_string().contains("tok_"), "a token is told: {}", answer.body);
    let json = run(&["explain", id, "--json"], &settings(&system.config)).await;
    assert_eq!(json.code, Some(0), "{json:?}");
    let by_cli: Value = serde_json::from_str(&json.output).expect("JSON");
    let text = run(&["explain", id], &settings(&system.config)).await;
    println!("{}", text.output);
    for moment in by_cli["timeline"].as_array().expect("a timeline") {
        let detail = moment["detail"].as_str().expect("a detail");
        assert!(text.output.contains(detail), "{detail:?} is not in:\n{}", text.output);
    }
    (answer.body, by_cli)
}

fn names(story: &Value) -> Vec<String> {
    let moments = story["timeline"].as_array().expect("a timeline");
    let mut names: Vec<String> = moments
        .iter()
        .map(|it| {
            format!("{} {}", it["kind"].as_str().unwrap_or(""), it["what"].as_str().unwrap_or(""))
        })
        .collect();
    names.sort();
    names
}

fn says(story: &Value, text: &str) {
    assert!(story["timeline"].to_string().contains(text), "{text:?} is not in {story:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_story_of_every_kind_of_order_tells_commands_causes_charges_and_what_is_held() {
    let mut system = System::without_workers().await;
    system.config.payment_timeout = 3;
    let workers = Role::ALL.map(|role| system.run(role));
    system.register("ann", Some(10_000)).await;
    system.define("pen", 100, 100).await;
    let place = async |order: Value| system.post("/v1/orders", &order).await.text("/orderId");
    let expired = place(card_order("ann", "pen", 1, "tok_lost")).await;
    let paid = place(card_order("ann", "pen", 2, "tok_ok")).await;
    let declined = place(card_order("ann", "pen", 1, "tok_insufficient_funds")).await;
    let called_off = place(card_order("ann", "pen", 1, "tok_ok")).await;
    let unknown = place(card_order("ann", "pen", 1, "tok_timeout")).await;
    let account = place(account_order("ann", "pen", 1)).await;
    for (id, status) in [
        (&paid, "paid"),
        (&declined, "rejected"),
        (&called_off, "paid"),
        (&unknown, "paid"),
        (&account, "paid"),
    ] {
        system.order_in(id, status).await;
    }
    let waiting = story(&system, &expired).await;
    assert!(waiting["holds"]["expiresAt"].is_string(), "{waiting:#}");
    step(&system, &called_off, "cancel").await;
    system.order_in(&called_off, "refunded").await;
    let refused = system.post_and_wait(&format!("/v1/orders/{paid}/deliver"), &json!({})).await;
    assert_eq!(refused.status, 409, "{refused:?}");
    system.order_in(&expired, "expired").await;
    system.settle().await;

    let told = story(&system, &paid).await;
    let expected =
        ["command place", "command refused", "event paid", "event validated", "gateway charge"];
    assert_eq!(names(&told), expected);
    says(&told, "not_allowed: an order that is paid cannot be");
    says(&told, "1 call in the gateway's book");
    let validated = &told["timeline"][1];
    assert_eq!(validated["what"], "validated");
    let command = told["timeline"][0]["id"].as_str().expect("the command");
    assert_eq!(validated["cause"], format!("command {command}"));
    assert_eq!(told["holds"]["stock"], "held");
    assert_eq!(told["holds"]["pieces"], json!([{ "productId": "pen", "quantity": 2 }]));
    assert_eq!(told["holds"]["expiresAt"], Value::Null);
    let steps = told["steps"].as_array().expect("steps");
    let statuses: Vec<_> = steps.iter().map(|it| it["status"].as_str().unwrap_or("")).collect();
    assert_eq!(statuses, ["pending", "validated", "paid"]);
    assert!(steps[1]["milliseconds"].is_i64() && steps[2].get("milliseconds").is_none());

    let told = story(&system, &declined).await;
    assert_eq!(
        names(&told),
        ["command place", "event rejected", "event validated", "gateway charge"]
    );
    says(&told, "payment_declined: insufficient_funds");
    says(&told, "declined: insufficient_funds");
    assert_eq!(told["holds"]["stock"], "released");

    let told = story(&system, &called_off).await;
    let expected = [
        "command place",
        "event cancelled",
        "event paid",
        "event refunded",
        "event validated",
        "gateway charge",
        "gateway refund",
    ];
    assert_eq!(names(&told), expected);
    let moments = told["timeline"].as_array().expect("a timeline");
    let refunded = moments.iter().find(|it| it["what"] == "refunded").expect("it is refunded");
    assert_eq!(refunded["cause"], "event 3");

    let told = story(&system, &expired).await;
    assert_eq!(
        names(&told)[..4],
        ["command place", "event expired", "event payment-unknown", "event validated"]
    );
    says(&told, "the request was lost");
    assert_eq!(
        (&told["holds"]["stock"], &told["holds"]["expiresAt"]),
        (&json!("released"), &Value::Null)
    );

    let told = story(&system, &unknown).await;
    says(&told, "the connection was lost");
    assert_eq!(told["status"], "paid");

    let told = story(&system, &account).await;
    says(&told, "booked on the customer's account");
    assert_eq!(told["holds"]["credit"], 100);
    for worker in workers {
        worker.stop().await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_story_tells_what_was_parked_and_who_replayed_it() {
    let shop = Shop::open().await;
    let id = shop.park(1).await[0];
    let told = story(&shop.system, &id.to_string()).await;
    assert_eq!(names(&told).iter().filter(|it| *it == "parked parked").count(), 3, "{told:#}");
    says(&told, "persistence has parked paid after 1 deliveries");
    says(&told, "waits behind parked message");
    shop.heal().await;
    let persistence = shop.system.run(Role::Persistence);
    let replay = [&["parked", "replay", "--all", "--actor", "mallory"][..]].concat();
    let done = run(&replay, &settings(&shop.system.config)).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    let (public, told) = eventually("the parked events are in the journal", async || {
        let (public, told) = stories(&shop.system, &id.to_string()).await;
        (!names(&told).contains(&"parked parked".to_owned())).then_some((public, told))
    })
    .await;
    assert_eq!(names(&told).iter().filter(|it| *it == "parked replay").count(), 3, "{told:#}");
    says(&told, "by mallory");
    assert_eq!(names(&public), names(&told));
    says(&public, "persistence had parked paid after");
    assert!(!public.to_string().contains("mallory"), "an operator is named: {public:#}");
    let operators = Beside::for_operators(&shop.system).await;
    let answer = operators.get(&shop.system, &format!("/v1/orders/{id}/explain")).await;
    assert_eq!(answer.body, told);
    operators.close().await;
    persistence.stop().await;
    shop.close().await;
}
