//! Load beyond capacity, for long: no process grows, what is refused has no effect, what is
//! acknowledged is done.

use std::fmt::Write as _;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use chrono::TimeDelta;
use futures_util::future::join_all;
use millrace_cli::servers::{ServerOptions, Servers, Which};
use millrace_cli::verify::{self, VerifyConfig};
use millrace_shared::access::Principal;
use millrace_shared::topology::{StreamOptions, Topology};
use millrace_workers::WorkerConfig;
use millrace_workers::trim::{Keep, Trim};
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::harness::{servers_dir, usd};
use crate::process::{Process, folder, settings};

/// The namespace, and the name of the database.
const NAME: &str = "memory";
/// Clients at a time over HTTP, and over NATS.
const CLIENTS: [u32; 2] = [300, 100];
/// What COMMANDS holds: when so much waits, no more is taken.
const COMMANDS: i64 = 8 << 20;
/// What is kept of the streams when they are trimmed, and how often they are.
const KEEP: Keep = Keep { age: TimeDelta::seconds(15), messages: 0 };
const TRIM: Duration = Duration::from_secs(10);
/// No process of ours may take more: debug build or not.
const MOST: u64 = 256 << 10;
/// In its second half the load may not need so much more than in its first.
const GROWTH: u64 = 32 << 10;
const PRODUCTS: u32 = 100;
const CUSTOMERS: u32 = 50;

/// What became of the orders that were sent.
#[derive(Default)]
struct Sent {
    acknowledged: Vec<Uuid>,
    refused: Vec<Uuid>,
    unknown: u64,
}

/// What was told about one order.
enum Told {
    Acknowledged,
    /// "Nothing was stored."
    Refused,
    /// No answer, or one that says that nobody knows.
    Unknown,
}

fn order() -> (Uuid, Value) {
    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    let product = |from: u32| {
        let product = rand::random_range(from..from + PRODUCTS / 2);
        json!({ "productId": format!("p{product}"), "quantity": 1 })
    };
    let order = json!({
        "orderId": id,
        "customerId": format!("c{}", rand::random_range(0..CUSTOMERS)),
        "lines": [product(0), product(PRODUCTS / 2)],
        "payment": { "method": "card", "token": "tok_ok" },
    });
    (id, order)
}

async fn post(client: &reqwest::Client, url: &str, order: &Value) -> Told {
    let Ok(answer) = client.post(url).json(order).send().await else { return Told::Unknown };
    let (status, retry) = (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
    let answer = answer.json::<Value>().await.unwrap_or_default();
    match (status, retry) {
        (202, _) => Told::Acknowledged,
        (503, true) if answer["type"] == "/problems/outcome-unknown" => Told::Unknown,
        (503 | 429, true) => Told::Refused,
        _ => panic!("{status}: {answer}"),
    }
}

async fn publish(nats: &async_nats::Client, order: &Value) -> Told {
    let subject = format!("{NAME}.cmd.order.place");
    let Ok(answer) = nats.request(subject, order.to_string().into()).await else {
        return Told::Unknown;
    };
    let ack: Value = serde_json::from_slice(&answer.payload).expect("an ack in JSON");
    if ack["seq"].as_u64().is_some_and(|sequence| sequence > 0) {
        return Told::Acknowledged;
    }
    // The maximum of bytes is reached.
    assert_eq!(ack["error"]["err_code"], 10077, "{ack}");
    Told::Refused
}

/// Sends orders without a pause, but a short one after a refusal.
async fn load(
    nats: Option<async_nats::Client>,
    client: reqwest::Client,
    url: String,
    sent: Arc<Mutex<Sent>>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let (id, order) = order();
        let told = match &nats {
            Some(nats) => publish(nats, &order).await,
            None => post(&client, &url, &order).await,
        };
        let refused = !matches!(told, Told::Acknowledged);
        {
            let mut sent = sent.lock().expect("no panic");
            match told {
                Told::Acknowledged => sent.acknowledged.push(id),
                Told::Refused => sent.refused.push(id),
                Told::Unknown => sent.unknown += 1,
            }
        }
        if refused {
            sleep(Duration::from_millis(rand::random_range(50..250))).await;
        }
    }
}

/// The memory of processes in KiB, as often as it was looked at.
struct Memory {
    names: Vec<(String, u32)>,
    samples: Vec<Vec<u64>>,
}

impl Memory {
    fn sample(&mut self) {
        let resident = |pid: u32| -> Option<u64> {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        let sample = self
            .names
            .iter()
            .map(|(name, pid)| resident(*pid).unwrap_or_else(|| panic!("{name} has ended")));
        self.samples.push(sample.collect());
    }

    /// For each process the most in the first half, in the second half, and at the end.
    fn peaks(&self) -> Vec<(&str, [u64; 3])> {
        let (first, second) = self.samples.split_at(self.samples.len() / 2);
        let most = |samples: &[Vec<u64>], at: usize| {
            samples.iter().map(|sample| sample[at]).max().unwrap_or_default()
        };
        let last = self.samples.last().expect("a sample");
        let names = self.names.iter().enumerate();
        names
            .map(|(at, (name, _))| (&**name, [most(first, at), most(second, at), last[at]]))
            .collect()
    }
}

/// Registers the customers and defines the products.
async fn open_shop(nats: &async_nats::Client) {
    let publish = async |kind: &str, body: Value| {
        let subject = format!("{NAME}.cmd.{kind}");
        nats.request(subject, body.to_string().into()).await.expect("it is stored");
    };
    for number in 0..CUSTOMERS {
        let customer = json!({ "customerId": format!("c{number}"), "name": "Somebody" });
        publish("customer.register", customer).await;
    }
    for number in 0..PRODUCTS {
        let product = json!({
            "productId": format!("p{number}"), "name": "Thing", "brand": "Acme",
            "category": "Things", "price": usd(250), "initialStock": 100_000_000,
        });
        publish("product.define", product).await;
    }
}

/// Waits until every worker has settled everything; it may take as long as it gets on.
async fn drained(nats: &async_nats::Client, topology: &Topology) -> Duration {
    let (start, jetstream) = (Instant::now(), jetstream::new(nats.clone()));
    let (mut least, mut progress) = (u64::MAX, Instant::now());
    loop {
        let mut open = 0;
        for name in [topology.commands_stream(), topology.events_stream()] {
            let stream = jetstream.get_stream(name).await.expect("the stream");
            let mut consumers = std::pin::pin!(stream.consumers());
            while let Some(info) = futures_util::StreamExt::next(&mut consumers).await {
                let info = info.expect("a consumer");
                if info.config.durable_name.is_some() {
                    open += info.num_pending + info.num_ack_pending as u64;
                }
            }
        }
        if open == 0 {
            return start.elapsed();
        }
        if open < least {
            (least, progress) = (open, Instant::now());
        }
        assert!(progress.elapsed() < Duration::from_mins(1), "{open} messages are left");
        sleep(Duration::from_secs(1)).await;
    }
}

/// How many of these orders the journal knows.
async fn known(pool: &PgPool, orders: &[Uuid]) -> usize {
    let count = "select count(*) from journal.orders where order_id = any($1)";
    let count: i64 =
        sqlx::query_scalar(count).bind(orders).fetch_one(pool).await.expect("the journal");
    usize::try_from(count).expect("a count")
}

fn start(config: &WorkerConfig, servers: &Servers) -> (Vec<(&'static str, Process)>, Memory) {
    let settings = settings(config);
    let roles = ["validation", "payment", "persistence", "projection"];
    let mut processes = vec![("api", Process::start(&["api", "--http", "127.0.0.1:0"], &settings))];
    processes.extend(roles.map(|role| (role, Process::start(&["worker", role], &settings))));
    let ours = processes.iter().map(|(name, process)| ((*name).to_owned(), process.pid()));
    let servers = [("nats-server", Which::Nats), ("valkey", Which::Redis)]
        .map(|(name, which)| (name.to_owned(), servers.pid(which).expect("it runs")));
    let names = ours.chain(servers).collect();
    (processes, Memory { names, samples: Vec::new() })
}

/// `MILLRACE_OVERLOAD_SECONDS=600 cargo test -p millrace-tests overload::memory -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes ten minutes, or as long as it is asked to, and both cores"]
#[expect(clippy::print_stderr, reason = "figures for who reads the test")]
async fn memory_stays_bounded_under_load_beyond_capacity() {
    let seconds = std::env::var("MILLRACE_OVERLOAD_SECONDS").ok();
    let lasts = Duration::from_secs(seconds.map_or(600, |text| text.parse().expect("seconds")));
    let options = ServerOptions {
        data_dir: folder("memory"),
        servers_dir: servers_dir(),
        durable: true,
        namespaces: vec![NAME.to_owned()],
    };
    let servers = Box::pin(Servers::start(&options)).await.expect("servers of its own");
    let mut config = millrace_cli::up::worker_config(servers.addresses(), NAME);
    // What waits behind others is to be paid, not to expire.
    config.payment_timeout = 24 * 3600;
    millrace_cli::up::prepare_database(servers.addresses(), NAME).await.expect("a database");
    let admin = config.of(Principal::Admin);
    let small = StreamOptions { stream_max_bytes: Some(COMMANDS), ..StreamOptions::default() };
    millrace_cli::topology(&admin.nats, &small).await.expect("streams");
    let (mut processes, mut memory) = start(&config, &servers);
    let url = format!("{}/v1/orders", processes[0].1.http().await);
    let nats = admin.nats.connect("test").await.expect("NATS answers");
    let topology = config.nats.topology().expect("a namespace");
    let pool = admin.postgres.pool("test").expect("PostgreSQL settings");
    open_shop(&nats).await;

    let (sent, stop) = (Arc::new(Mutex::new(Sent::default())), CancellationToken::new());
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build();
    let client = client.expect("a client");
    let over = [None, Some(nats.clone())];
    let clients: Vec<_> = std::iter::zip(over, CLIENTS)
        .flat_map(|(nats, count)| (0..count).map(move |_| nats.clone()))
        .map(|nats| {
            tokio::spawn(load(nats, client.clone(), url.clone(), sent.clone(), stop.clone()))
        })
        .collect();
    let trim = Trim::new(pool.clone(), &nats, topology.clone());
    let start = Instant::now();
    let mut trimmed = start;
    while start.elapsed() < lasts {
        sleep(Duration::from_secs(1)).await;
        memory.sample();
        if trimmed.elapsed() > TRIM {
            trim.run(KEEP, false).await.expect("the streams are trimmed");
            trimmed = Instant::now();
        }
    }
    stop.cancel();
    join_all(clients).await.into_iter().for_each(|ended| ended.expect("a client ends well"));
    let drain = drained(&nats, &topology).await;
    memory.sample();

    let sent = std::mem::take(&mut *sent.lock().expect("no panic"));
    let (acknowledged, refused) = (sent.acknowledged.len(), sent.refused.len());
    let mut figures = format!(
        "{acknowledged} orders were taken in {lasts:?}, {refused} refused, {} got no sure answer; \
         all was done {drain:.0?} later\n",
        sent.unknown
    );
    for (name, peaks) in memory.peaks() {
        let [first, second, last] = peaks.map(|kib| kib / 1024);
        writeln!(figures, "{name:12} {first:5} {second:5} {last:5} MiB").expect("text");
    }
    eprintln!("{figures}");
    assert!(refused > acknowledged / 100, "it was beyond capacity: {figures}");
    assert_eq!(known(&pool, &sent.acknowledged).await, acknowledged, "what was taken is there");
    assert_eq!(known(&pool, &sent.refused).await, 0, "what was refused is not there");
    let report = verify::check(&VerifyConfig::from(&config), Duration::from_mins(1)).await;
    let report = report.expect("it is read");
    assert!(report.is_ok(), "{report}");
    for (name, [first, second, _]) in &memory.peaks()[..processes.len()] {
        assert!(*first.max(second) < MOST, "{name} is too large: {figures}");
        assert!(*second < first + GROWTH, "{name} grows: {figures}");
    }
    let ended = processes.into_iter().map(|(_, process)| process.end(Signal::TERM));
    for ended in join_all(ended).await {
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    servers.stop().await.expect("the servers end");
}
