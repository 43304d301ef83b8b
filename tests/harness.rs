//! What the tests stand on: the servers of the run, a system of its own for each test, clients and
//! bounded waits.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use millrace_api::{ApiConfig, Server};
use millrace_cli::servers::{Addresses, ServerOptions, Servers};
use millrace_shared::access::Principal;
use millrace_shared::log::{Log, Stored};
use millrace_shared::message::Subject;
use millrace_shared::topology::{StreamOptions, Topology};
use millrace_shared::views::Views;
use millrace_workers::{Role, WorkerConfig};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Systems that one run may have, and others that tests name: the servers know their users from the
/// start.
const SYSTEMS: u32 = 400;
const OTHERS: [&str; 1] = [crate::cluster::NAME];
/// The database that each test's database is a copy of.
const TEMPLATE: &str = "template";

/// The servers of this run. They live in a thread of their own and end with the process.
pub fn servers() -> &'static Addresses {
    static SERVERS: OnceLock<Addresses> = OnceLock::new();
    SERVERS.get_or_init(|| {
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async move {
                let servers = Box::pin(Servers::start(&ServerOptions {
                    data_dir: run_dir(),
                    servers_dir: servers_dir(),
                    durable: true,
                    namespaces: (0..SYSTEMS)
                        .map(namespace)
                        .chain(OTHERS.map(str::to_owned))
                        .collect(),
                }))
                .await
                .expect("the servers start");
                let addresses = servers.addresses();
                millrace_cli::up::prepare_database(addresses, TEMPLATE).await.expect("a database");
                send.send(servers.addresses().clone()).expect("the tests wait for it");
                std::future::pending::<()>().await;
            });
        });
        receive.recv().expect("the servers have started")
    })
}

/// Where the servers' programs are kept between runs.
pub fn servers_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("servers")
}

/// A data folder of this run. Those of runs that have ended are removed.
fn run_dir() -> PathBuf {
    let runs = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("runs");
    for old in std::fs::read_dir(&runs).into_iter().flatten().flatten() {
        let pid = old.file_name().to_string_lossy().parse().ok();
        let alive = pid
            .and_then(rustix::process::Pid::from_raw)
            .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok());
        if !alive {
            std::fs::remove_dir_all(old.path()).ok();
        }
    }
    runs.join(std::process::id().to_string())
}

fn namespace(number: u32) -> String {
    format!("t{number}")
}

/// A system of one test.
pub struct System {
    /// Its settings; each role connects with rights of its own.
    pub config: WorkerConfig,
    /// The same for the test itself, which may do everything.
    pub admin: WorkerConfig,
    /// Its names.
    pub topology: Topology,
    /// Its HTTP address: `http://127.0.0.1:PORT`.
    pub http: String,
    /// Its database.
    pub pool: PgPool,
    /// Its NATS connection.
    pub nats: async_nats::Client,
    /// Its views.
    pub views: Views,
    client: reqwest::Client,
    running: Vec<Running>,
    /// The roles that were started: whoever waits for them waits for their consumers too.
    started: Mutex<Vec<Role>>,
}

/// A role that runs in this process.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// A role that was started elsewhere, and ends when it is told to `stop`.
    pub fn new(stop: CancellationToken, task: JoinHandle<()>) -> Self {
        Self { stop, task }
    }

    /// Asks it to drain, and waits until it has.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("the role ended well");
    }
}

/// An answer of the api.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body; null if it is no JSON.
    pub body: Value,
}

impl Answer {
    /// A header's text, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// A text in the body, by JSON pointer.
    pub fn text(&self, pointer: &str) -> String {
        self.body.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned()
    }
}

impl System {
    /// Api and one of each worker.
    pub async fn start() -> Self {
        Self::with_workers(1).await
    }

    /// Api and `replicas` of each worker.
    pub async fn with_workers(replicas: usize) -> Self {
        let mut system = Self::without_workers().await;
        for _ in 0..replicas {
            for role in Role::ALL {
                let running = system.run(role);
                system.running.push(running);
            }
        }
        eventually("the first views are there", async || {
            (system.get("/v1/products").await.status == 200).then_some(())
        })
        .await;
        system
    }

    /// Streams, database and api; start workers with [`System::run`].
    pub async fn without_workers() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let namespace = namespace(COUNT.fetch_add(1, Ordering::Relaxed));
        // Not in an async context's own thread: the first test starts the servers.
        let addresses =
            tokio::task::spawn_blocking(servers).await.expect("the servers have started");
        let mut config = millrace_cli::up::worker_config(addresses, &namespace);
        create_database(addresses, &namespace).await;
        // A copy of the template knows the roles of the template.
        let (ours, theirs) = (format!("{namespace}_"), format!("{TEMPLATE}_"));
        config.postgres.postgres_url = config.postgres.postgres_url.replace(&ours, &theirs);
        let admin = config.of(Principal::Admin);
        let nats = admin.nats.connect("test").await.expect("NATS answers");
        let topology = config.nats.topology().expect("a namespace");
        topology
            .create(&async_nats::jetstream::new(nats.clone()), &StreamOptions::default())
            .await
            .expect("the streams are made");
        let edge = ApiConfig::new(
            "127.0.0.1:0".parse().expect("an address"),
            config.nats.clone(),
            config.redis.clone(),
        )
        .with_journal(config.postgres.clone());
        let server = Server::bind(edge).await.expect("the api binds");
        let http = format!("http://{}", server.local_addr());
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { server.serve(stop).await.expect("the api ends well") }
        });
        let redis = admin.redis.client().expect("Redis settings");
        Self {
            views: Views::new(redis, topology.namespace()),
            pool: admin.postgres.pool("test").expect("PostgreSQL settings"),
            client: reqwest::Client::new(),
            running: vec![Running { stop, task }],
            started: Mutex::default(),
            config,
            admin,
            topology,
            http,
            nats,
        }
    }

    /// Runs one replica of a role.
    pub fn run(&self, role: Role) -> Running {
        self.started.lock().expect("no test has panicked").push(role);
        let stop = CancellationToken::new();
        let (config, shutdown) = (self.config.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let work = Box::pin(millrace_workers::run(role, &config, shutdown));
            work.await.expect("the role ends well");
        });
        Running { stop, task }
    }

    /// Drains all that runs.
    pub async fn stop(self) {
        for running in self.running {
            running.stop().await;
        }
        let jetstream = async_nats::jetstream::new(self.nats.clone());
        for name in [
            self.topology.commands_stream(),
            self.topology.events_stream(),
            self.topology.parked_stream(),
        ] {
            jetstream.delete_stream(name).await.expect("a test's stream is removed");
        }
    }

    /// A request to the api.
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().expect("a method");
        self.client.request(method, format!("{}{path}", self.http))
    }

    /// A request to another address.
    pub fn request_to(&self, method: &str, url: &str) -> reqwest::RequestBuilder {
        self.client.request(method.parse().expect("a method"), url)
    }

    /// Sends a request.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.expect("the api answers");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let bytes = response.bytes().await.expect("a whole answer");
        Answer { status, headers, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
    }

    /// GET
    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request("GET", path)).await
    }

    /// Sends a command with a key of its own, and again with the same key for as long as the api does not
    /// know whether it has stored it: what a client does while the disk is slow.
    pub async fn command(&self, request: reqwest::RequestBuilder) -> Answer {
        let key = uuid::Uuid::now_v7().to_string();
        let request = request.header("Idempotency-Key", key);
        let start = Instant::now();
        loop {
            let again = request.try_clone().expect("a body that is there as a whole");
            let answer = self.send(again).await;
            if answer.text("/type") != "/problems/outcome-unknown" {
                return answer;
            }
            assert!(start.elapsed() < PATIENCE, "not stored within {PATIENCE:?}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// POST of JSON
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.to_be_sent(self.request("POST", path), body).await
    }

    /// POST of JSON that waits for the outcome
    pub async fn post_and_wait(&self, path: &str, body: &Value) -> Answer {
        self.to_be_sent(self.request("POST", path).header("Prefer", "wait=20"), body).await
    }

    /// PUT of JSON that waits for the outcome
    pub async fn put_and_wait(&self, path: &str, body: &Value) -> Answer {
        self.to_be_sent(self.request("PUT", path).header("Prefer", "wait=20"), body).await
    }

    /// A command that brings its own id or key is sent as it is.
    async fn to_be_sent(&self, request: reqwest::RequestBuilder, body: &Value) -> Answer {
        let request = request.json(body);
        if ["commandId", "idempotencyKey", "orderId"].iter().any(|it| body.get(it).is_some()) {
            return self.send(request).await;
        }
        self.command(request).await
    }

    /// Defines a product in dollars.
    pub async fn define(&self, id: &str, price: i64, stock: u32) {
        let body = json!({
            "name": format!("Product {id}"), "brand": "Acme", "category": "Things",
            "price": usd(price), "initialStock": stock,
        });
        let answer = self.put_and_wait(&format!("/v1/products/{id}"), &body).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
    }

    /// Registers a customer with a credit limit in dollars.
    pub async fn register(&self, id: &str, credit_limit: Option<i64>) {
        let mut body = json!({ "customerId": id, "name": format!("Customer {id}") });
        if let Some(limit) = credit_limit {
            body["creditLimit"] = usd(limit);
        }
        let answer = self.post_and_wait("/v1/customers", &body).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
    }

    /// An order as the api shows it.
    pub async fn order(&self, id: &str) -> Value {
        self.get(&format!("/v1/orders/{id}")).await.body
    }

    /// Waits until an order has a status, and returns it.
    pub async fn order_in(&self, id: &str, status: &str) -> Value {
        eventually(&format!("order {id} is {status}"), async || {
            let order = self.order(id).await;
            (order["status"] == status).then_some(order)
        })
        .await
    }

    /// Waits until a command has an outcome, and returns it.
    pub async fn outcome(&self, id: &str) -> Value {
        eventually(&format!("command {id} has an outcome"), async || {
            let answer = self.get(&format!("/v1/commands/{id}")).await;
            let decided = ["accepted", "rejected"].contains(&answer.text("/status").as_str());
            decided.then_some(answer.body)
        })
        .await
    }

    /// The stock of a product as the api shows it: available, reserved, sold.
    pub async fn stock(&self, id: &str) -> [i64; 3] {
        let product = self.get(&format!("/v1/products/{id}")).await.body;
        ["available", "reserved", "sold"].map(|part| product["stock"][part].as_i64().unwrap_or(-1))
    }

    /// Waits until a product has this stock: available, reserved, sold.
    pub async fn stock_is(&self, id: &str, expected: [i64; 3]) {
        eventually(&format!("the stock of {id} is {expected:?}"), async || {
            (self.stock(id).await == expected).then_some(())
        })
        .await;
    }

    /// Publishes a command as any NATS client does; returns its stream sequence.
    pub async fn publish(&self, kind: &str, body: &Value) -> u64 {
        self.publish_raw(kind, body.to_string().into_bytes()).await
    }

    /// Publishes bytes as a command; returns their stream sequence.
    pub async fn publish_raw(&self, kind: &str, payload: Vec<u8>) -> u64 {
        let answer = self
            .nats
            .request(self.topology.command(kind), payload.into())
            .await
            .expect("a publish ack");
        let ack: Value = serde_json::from_slice(&answer.payload).expect("an ack in JSON");
        ack["seq"].as_u64().unwrap_or_else(|| panic!("no ack: {ack}"))
    }

    /// The history of a subject as the log has it.
    pub async fn history(&self, subject: Subject, id: &str) -> Vec<Stored> {
        let log = Log::new(self.nats.clone(), self.topology.events_stream());
        log.history(&self.topology.history(subject, id)).await.expect("the log is read")
    }

    /// The types of an order's events, checked to be versions 1..n whose states are the fold of
    /// their data.
    pub async fn steps(&self, order_id: &str) -> Vec<String> {
        let mut before = None;
        let mut steps = Vec::new();
        for stored in self.history(Subject::Order, order_id).await {
            let event = stored.event;
            assert_eq!(event.version, steps.len() as u64 + 1, "the history has no gap");
            let id = order_id.parse().expect("an order id");
            let folded = event.fold_order(before.as_ref(), id).expect("a legal step");
            assert_eq!(folded, event.state().expect("a state"), "the state is the fold");
            before = Some(folded);
            steps.push(event.kind);
        }
        steps
    }

    /// Waits until persistence and projection have everything that is in the log now.
    pub async fn settle(&self) {
        eventually("every worker has seen everything", async || {
            let jetstream = async_nats::jetstream::new(self.nats.clone());
            let roles = self.started.lock().expect("no test has panicked").clone();
            let workers = roles.iter().filter_map(|role| role.name().strip_prefix("millrace-"));
            let consumers = workers.flat_map(|worker| self.topology.consumers(worker));
            let mut not_there: Vec<String> = consumers.map(|(consumer, _)| consumer).collect();
            let names = [self.topology.commands_stream(), self.topology.events_stream()];
            let ends = async || {
                let streams = names.each_ref().map(|name| jetstream.get_stream(name));
                let streams = try_join_all(streams).await.ok()?;
                let ends = streams.iter().map(|it| it.cached_info().state.last_sequence);
                Some((ends.collect::<Vec<u64>>(), streams))
            };
            let (before, streams) = ends().await?;
            for stream in streams {
                let mut consumers = std::pin::pin!(stream.consumers());
                while let Some(consumer) = futures_util::StreamExt::next(&mut consumers).await {
                    let info = consumer.ok()?;
                    // Readers of the log come and go; only workers count.
                    let Some(worker) = &info.config.durable_name else { continue };
                    not_there.retain(|consumer| consumer != worker);
                    if info.num_pending > 0 || info.num_ack_pending > 0 {
                        return None;
                    }
                }
            }
            if !not_there.is_empty() {
                return None;
            }
            let waiting: i64 = sqlx::query_scalar(
                "select (select count(*) from ledger.outbox)
                      + (select count(*) from ledger.products where touched)
                      + (select count(*) from ledger.customers where touched)",
            )
            .fetch_one(&self.pool)
            .await
            .ok()?;
            // What left the outbox meanwhile has been seen by nobody yet.
            (waiting == 0 && ends().await?.0 == before).then_some(())
        })
        .await;
    }
}

async fn create_database(addresses: &Addresses, name: &str) {
    let config = millrace_cli::up::worker_config(addresses, TEMPLATE).of(Principal::Admin);
    let options = config.postgres.options().expect("options").database("postgres");
    let mut connection = PgConnection::connect_with(&options).await.expect("a connection");
    let create = format!("create database \"{name}\" template \"{TEMPLATE}\"");
    sqlx::raw_sql(sqlx::AssertSqlSafe(create))
        .execute(&mut connection)
        .await
        .expect("a database of the test's own");
}

/// Waits, for a bounded time, until `condition` gives something.
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
}

/// Dollars in cents.
pub fn usd(amount: i64) -> Value {
    json!({ "amount": amount, "currency": "USD" })
}

/// An order of one product, paid by card.
pub fn card_order(customer: &str, product: &str, quantity: u32, token: &str) -> Value {
    json!({
        "customerId": customer,
        "lines": [{ "productId": product, "quantity": quantity }],
        "payment": { "method": "card", "token": token },
    })
}

/// An order of one product, on account.
pub fn account_order(customer: &str, product: &str, quantity: u32) -> Value {
    json!({
        "customerId": customer,
        "lines": [{ "productId": product, "quantity": quantity }],
        "payment": { "method": "account" },
    })
}
