//! What the tests of parked messages stand on.

use async_nats::jetstream::message::StreamMessage;
use millrace_api::{ApiConfig, Server};
use millrace_workers::Role;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{Answer, Running, System, card_order, eventually};
use crate::parking::parked;
use crate::process::{Ended, Process, run, settings};

/// A shop whose orders are decided, charged and shown; persistence is the test's.
pub struct Shop {
    pub system: System,
    pub running: Vec<Running>,
}

impl Shop {
    /// Opens it.
    pub async fn open() -> Self {
        let system = System::without_workers().await;
        let roles = [Role::Validation, Role::Payment, Role::Projection];
        let running = roles.map(|role| system.run(role)).into();
        system.register("ann", None).await;
        system.define("mug", 500, 1000).await;
        Self { system, running }
    }

    /// Closes it.
    pub async fn close(self) {
        for role in self.running {
            role.stop().await;
        }
        self.system.stop().await;
    }

    /// Places an order under this id and waits until it is paid.
    pub async fn sell(&self, id: Uuid) {
        let mut order = card_order("ann", "mug", 1, "tok_ok");
        order["orderId"] = json!(id);
        let answer = self.system.post_and_wait("/v1/orders", &order).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        self.system.order_in(&id.to_string(), "paid").await;
    }

    /// Ships and delivers an order.
    pub async fn deliver(&self, id: Uuid) {
        let ship = json!({ "carrier": "Post", "trackingNumber": "1" });
        for (step, body) in [("ship", ship), ("deliver", json!({}))] {
            let path = format!("/v1/orders/{id}/{step}");
            let answer = self.system.post_and_wait(&path, &body).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }

    /// Makes the journal refuse an order's second event: it says that it has another one.
    pub async fn contradict(&self, id: Uuid) {
        sqlx::query(
            "insert into journal.events (subject, subject_id, version, event_id, type, schema,
                    occurred_at, causation, correlation, sequence, data, state)
             values ('order', $1, 2, $2, 'wrong', 1, now(), $2, $2, 0, '{}', '{}')",
        )
        .bind(id.to_string())
        .bind(Uuid::now_v7())
        .execute(&self.system.pool)
        .await
        .expect("the wrong event is written");
    }

    /// Heals it.
    pub async fn heal(&self) {
        sqlx::query("delete from journal.events where type = 'wrong'")
            .execute(&self.system.pool)
            .await
            .expect("the wrong events are removed");
    }

    /// Orders whose events from the second on are parked by persistence, in one piece each.
    pub async fn park(&self, count: usize) -> Vec<Uuid> {
        let persistence = self.system.run(Role::Persistence);
        let mut ids = Vec::new();
        for _ in 0..count {
            let id = Uuid::now_v7();
            self.contradict(id).await;
            self.sell(id).await;
            ids.push(id);
        }
        self.parked(count).await;
        for id in &ids {
            self.deliver(*id).await;
        }
        self.parked(count * 3).await;
        self.system.settle().await;
        persistence.stop().await;
        ids
    }

    /// Waits until so many messages are parked.
    pub async fn parked(&self, count: usize) -> Vec<StreamMessage> {
        eventually(&format!("{count} messages are parked"), async || {
            let kept = parked(&self.system).await;
            (kept.len() == count).then_some(kept)
        })
        .await
    }

    /// An order's events in the journal, in the order in which they were written there.
    pub async fn journal(&self, id: Uuid) -> Vec<String> {
        sqlx::query_scalar(
            "select type from journal.events where subject_id = $1 and type <> 'wrong'
             order by xmin::text::bigint, version",
        )
        .bind(id.to_string())
        .fetch_all(&self.system.pool)
        .await
        .expect("the journal is read")
    }

    /// Checks that an order is whole: every event once, written in their order.
    pub async fn whole(&self, id: Uuid) {
        let all = ["validated", "paid", "shipped", "delivered"];
        assert_eq!(self.journal(id).await, all);
        let status: String =
            sqlx::query_scalar("select status from journal.orders where order_id = $1")
                .bind(id)
                .fetch_one(&self.system.pool)
                .await
                .expect("the order is in the journal");
        assert_eq!(status, "delivered");
        assert_eq!(self.system.order(&id.to_string()).await["status"], "delivered");
    }

    /// Runs `millrace parked …`.
    pub async fn parked_cli(&self, arguments: &[&str]) -> Ended {
        self.parked_cli_with(arguments, &[]).await
    }

    /// The same, with more settings.
    pub async fn parked_cli_with(&self, arguments: &[&str], more: &[(&str, &str)]) -> Ended {
        let arguments = [&["parked"], arguments, &["--actor", "eve"]].concat();
        let mut settings = settings(&self.system.config);
        settings.extend(more.iter().map(|(name, value)| (leaked(name), (*value).to_owned())));
        run(&arguments, &settings).await
    }

    /// Runs it with `--json`, and reads what it says.
    pub async fn parked_json(&self, arguments: &[&str]) -> Value {
        let ended = self.parked_cli(&[arguments, &["--json"]].concat()).await;
        serde_json::from_str(&ended.output).unwrap_or_else(|_| panic!("{ended:?}"))
    }

    /// What the audit table has: action, worker, original sequence.
    pub async fn audit(&self) -> Vec<(String, String, i64)> {
        sqlx::query_as("select action, worker, sequence from journal.audit order by id")
            .fetch_all(&self.system.pool)
            .await
            .expect("the audit table is read")
    }

    /// A persistence process that dies where it is told to.
    pub fn dying(&self, point: &str) -> Process {
        let mut settings = settings(&self.system.config);
        settings.push(("MILLRACE_CRASH_POINT", point.to_owned()));
        Process::start(&["worker", "persistence"], &settings)
    }
}

/// Names of settings are few, and the tests end.
fn leaked(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}

/// How many of a report's results are of a kind.
pub fn count(report: &Value, result: &str) -> usize {
    let results = report["results"].as_array().expect("results");
    results.iter().filter(|outcome| outcome["result"] == result).count()
}

/// An edge with the routes for operators.
pub struct Edge {
    http: String,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Edge {
    /// Opens it.
    pub async fn open(system: &System) -> Self {
        let address = "127.0.0.1:0".parse().expect("an address");
        let config =
            ApiConfig::new(address, system.config.nats.clone(), system.config.redis.clone());
        let config = config.with_operator_routes(system.config.postgres.clone());
        let server = Server::bind(config).await.expect("the api binds");
        let (http, stop) = (format!("http://{}", server.local_addr()), CancellationToken::new());
        let running = tokio::spawn(server.serve(stop.clone()));
        Self { http, running, stop }
    }

    /// GET
    pub async fn get(&self, system: &System, path: &str) -> Answer {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        system.send(client.get(format!("{}{path}", self.http))).await
    }

    /// POST of JSON
    pub async fn post(&self, system: &System, path: &str, body: &Value) -> Answer {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        system.send(client.post(format!("{}{path}", self.http)).json(body)).await
    }

    /// Closes it.
    pub async fn close(self) {
        self.stop.cancel();
        self.running.await.expect("it runs").expect("it ends well");
    }
}
