//! Three nats-servers, streams on all of them: the loss of a stream's leader under load loses
//! nothing, and everything goes on by itself.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures_util::future::join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use millrace_cli::verify::{self, VerifyConfig};
use millrace_workers::WorkerConfig;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::harness::{card_order, eventually, servers, servers_dir, usd};
use crate::process::{Process, folder, run, settings};

/// The namespace, and the name of the database.
pub const NAME: &str = "cluster";
/// How the streams are made.
const PLACED: [&str; 7] = [
    "topology",
    "--stream-replicas",
    "3",
    "--stream-cluster",
    "millrace",
    "--stream-tags",
    "orders",
];
/// How long workers may take to go on after the loss of a leader.
const RESUMED: Duration = Duration::from_secs(30);
/// How long a check may be behind.
const SETTLE: Duration = Duration::from_secs(20);

/// One server of the cluster.
struct Node {
    name: String,
    config: PathBuf,
    child: Option<Child>,
}

impl Node {
    fn start(&mut self) {
        let log = self.config.with_extension("log");
        let log = fs::File::options().create(true).append(true).open(log).expect("a log");
        let mut command = Command::new(nats_server());
        command.arg("--config").arg(&self.config).stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.child = Some(command.spawn().expect("nats-server starts"));
    }

    async fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().await.expect("it is killed");
    }
}

/// The program that the servers of the run use.
pub fn nats_server() -> PathBuf {
    if let Some(named) = std::env::var_os("MILLRACE_NATS_SERVER") {
        return named.into();
    }
    let wheels = fs::read_dir(servers_dir()).expect("the servers' programs").flatten();
    let programs = wheels.map(|wheel| wheel.path().join("bin/nats-server"));
    programs.into_iter().find(|path| path.is_file()).unwrap_or("nats-server".into())
}

/// Three servers that know each other, and their addresses.
fn cluster(folder: &Path) -> (Vec<Node>, Vec<String>) {
    // All are held until all are chosen.
    let held: Vec<TcpListener> = (0..200)
        .filter_map(|_| TcpListener::bind(("127.0.0.1", rand::random_range(15_000..30_000))).ok())
        .take(6)
        .collect();
    let ports: Vec<u16> =
        held.iter().map(|listener| listener.local_addr().expect("an address").port()).collect();
    let (clients, routes) = ports.split_at(3);
    let all: Vec<String> = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
    let nodes = (0..3).map(|at| {
        let name = format!("n{at}");
        let config = folder.join(&name).with_extension("conf");
        let store = folder.join(&name);
        let text = format!(
            "server_name: {name}\nserver_tags: [orders]\nlisten: \"127.0.0.1:{}\"\n\
             jetstream {{ store_dir: \"{}\", sync_interval: always }}\n\
             cluster {{ name: millrace, listen: \"127.0.0.1:{}\", routes: {all:?} }}\n",
            clients[at],
            store.display(),
            routes[at],
        );
        fs::write(&config, text).expect("a file");
        Node { name, config, child: None }
    });
    let urls = clients.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
    (nodes.collect(), urls)
}

/// The settings of a system on these servers, with a database of its own.
async fn config(urls: Vec<String>) -> WorkerConfig {
    let addresses = tokio::task::spawn_blocking(servers).await.expect("the servers have started");
    let mut config = millrace_cli::up::worker_config(addresses, NAME);
    config.nats.nats_url = urls;
    (config.nats.nats_user, config.nats.nats_password_file) = (None, None);
    millrace_cli::up::prepare_database(addresses, NAME).await.expect("a database");
    config
}

/// What the program gets: no user where there is none.
fn environment(config: &WorkerConfig) -> Vec<(&'static str, String)> {
    let all = settings(config).into_iter();
    all.filter(|(_, value)| !value.is_empty()).collect()
}

/// Publishes a command; the stream sequence, if it was acknowledged.
async fn publish(nats: &async_nats::Client, kind: &str, body: &Value) -> Option<u64> {
    let answer = nats.request(format!("{NAME}.cmd.{kind}"), body.to_string().into()).await.ok()?;
    serde_json::from_slice::<Value>(&answer.payload).ok()?["seq"].as_u64()
}

/// Places orders over NATS and HTTP until it is told to stop; notes what was acknowledged, and when.
async fn load(
    nats: async_nats::Client,
    edge: String,
    acknowledged: Arc<Mutex<Vec<(Instant, String)>>>,
    stop: CancellationToken,
) {
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build();
    let client = client.expect("a client");
    let note = |command: String| {
        acknowledged.lock().expect("no panic").push((Instant::now(), command));
    };
    for number in 0_u32.. {
        if stop.is_cancelled() {
            return;
        }
        let order = card_order("ann", "box", 1, "tok_ok");
        if number.is_multiple_of(2) {
            if let Some(sequence) = publish(&nats, "order.place", &order).await {
                note(sequence.to_string());
            }
        } else if let Ok(answer) = client.post(&edge).json(&order).send().await
            && answer.status().as_u16() == 202
            && let Ok(answer) = answer.json::<Value>().await
        {
            note(answer["commandId"].as_str().expect("a command id").to_owned());
        }
        sleep(Duration::from_millis(25)).await;
    }
}

/// Streams and consumers are where they were placed.
async fn everything_is_on_three_servers(nats: &async_nats::Client) {
    let jetstream = jetstream::new(nats.clone());
    for name in ["COMMANDS", "EVENTS"] {
        let stream = jetstream.get_stream(format!("{NAME}_{name}")).await.expect("a stream");
        let placement = stream.cached_info().config.placement.clone().expect("a placement");
        assert_eq!(placement.cluster.as_deref(), Some("millrace"));
        assert_eq!(placement.tags, ["orders"]);
        // A busy server may take longer than the client waits.
        let consumers = eventually("the consumers are told", async || {
            stream.consumers().try_collect::<Vec<_>>().await.ok()
        })
        .await;
        let durable = consumers.into_iter().filter(|info| info.config.durable_name.is_some());
        let followers =
            durable.map(|info| info.cluster.map_or(0, |cluster| cluster.replicas.len()));
        let followers: Vec<usize> = followers.collect();
        assert!(
            followers.contains(&2) && followers.iter().all(|count| *count == 2),
            "{followers:?}"
        );
    }
}

/// The name of the server that leads a stream.
async fn leader(jetstream: &jetstream::Context, stream: &str) -> String {
    eventually(
        &format!("{stream} has a leader and two followers that are up to date"),
        async || {
            let cluster = jetstream.get_stream(stream).await.ok()?.cached_info().cluster.clone()?;
            let followed = cluster.replicas.iter().filter(|replica| replica.current).count() == 2;
            cluster.leader.filter(|_| followed)
        },
    )
    .await
}

/// Kills the leader of a stream, starts it again after a second, and says how long it took until
/// commands were taken and an order was paid again.
#[expect(clippy::print_stderr, reason = "figures for who reads the test")]
async fn lose_leader(
    nodes: &mut [Node],
    nats: &async_nats::Client,
    stream: &str,
    client: &reqwest::Client,
    edge: &str,
) {
    let name = leader(&jetstream::new(nats.clone()), stream).await;
    let node = nodes.iter_mut().find(|node| node.name == name).expect("one of the servers");
    node.kill().await;
    let start = Instant::now();
    let back = async {
        sleep(Duration::from_secs(1)).await;
        node.start();
    };
    let again = async {
        let sequence = eventually("commands are taken again", async || {
            publish(nats, "order.place", &card_order("ann", "box", 1, "tok_ok")).await
        })
        .await;
        let taken = start.elapsed();
        let order = loop {
            let outcome = client.get(format!("{edge}/v1/commands/{sequence}")).send().await;
            if let Ok(outcome) = outcome
                && let Ok(outcome) = outcome.json::<Value>().await
                && outcome["status"] == "accepted"
            {
                break outcome["orderId"].as_str().expect("an order").to_owned();
            }
            assert!(start.elapsed() < RESUMED, "not decided within {RESUMED:?}");
            sleep(Duration::from_millis(20)).await;
        };
        let decided = start.elapsed();
        loop {
            let order = client.get(format!("{edge}/v1/orders/{order}")).send().await;
            if let Ok(order) = order
                && let Ok(order) = order.json::<Value>().await
                && order["status"] == "paid"
            {
                break;
            }
            assert!(start.elapsed() < RESUMED, "not paid within {RESUMED:?}");
            sleep(Duration::from_millis(20)).await;
        }
        eprintln!(
            "{name}, the leader of {stream}, was killed: commands are taken after {taken:.1?}, \
             decided after {decided:.1?}, an order is paid after {:.1?}",
            start.elapsed()
        );
    };
    tokio::join!(back, again);
}

/// Every acknowledged command has its outcome.
async fn all_are_decided(acknowledged: &[(Instant, String)], client: &reqwest::Client, edge: &str) {
    let pending: Vec<&String> = stream::iter(acknowledged.iter().map(|(_, command)| command))
        .map(async |command| {
            let start = Instant::now();
            loop {
                let url = format!("{edge}/v1/commands/{command}");
                if let Ok(answer) = client.get(url).send().await
                    && let Ok(answer) = answer.json::<Value>().await
                    && answer["status"] == "accepted"
                {
                    return None;
                }
                if start.elapsed() > SETTLE {
                    return Some(command);
                }
                sleep(Duration::from_millis(50)).await;
            }
        })
        .buffer_unordered(16)
        .filter_map(async |pending| pending)
        .collect()
        .await;
    assert!(pending.is_empty(), "acknowledged, and not accepted: {pending:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_its_leaders_under_load_loses_nothing_and_goes_on() {
    let folder = folder("cluster");
    let (mut nodes, urls) = cluster(&folder);
    let config = config(urls).await;
    nodes.iter_mut().for_each(Node::start);
    let environment = environment(&config);
    eventually("the cluster makes the streams", async || {
        let made = run(&PLACED, &environment).await;
        (made.code == Some(0)).then_some(())
    })
    .await;
    let mut edge_process = Process::start(&["api", "--http", "127.0.0.1:0"], &environment);
    let all = ["worker", "validation", "payment", "persistence", "projection"];
    let workers = [(); 2].map(|()| Process::start(&all, &environment));
    let edge = edge_process.http().await;
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let nats = config.nats.connect("test").await.expect("NATS answers");
    let product = json!({
        "productId": "box", "name": "Box", "brand": "Acme", "category": "Things",
        "price": usd(100), "initialStock": 100_000,
    });
    for (kind, body) in [
        ("product.define", product),
        ("customer.register", json!({ "customerId": "ann", "name": "Ann" })),
    ] {
        eventually(kind, async || publish(&nats, kind, &body).await).await;
    }

    let (acknowledged, stop) = (Arc::new(Mutex::new(Vec::new())), CancellationToken::new());
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let url = format!("{edge}/v1/orders");
            tokio::spawn(load(nats.clone(), url, Arc::clone(&acknowledged), stop.clone()))
        })
        .collect();
    sleep(Duration::from_secs(1)).await;
    for name in ["EVENTS", "COMMANDS"] {
        lose_leader(&mut nodes, &nats, &format!("{NAME}_{name}"), &client, &edge).await;
        sleep(Duration::from_secs(1)).await;
    }
    stop.cancel();
    join_all(clients).await.into_iter().for_each(|ended| ended.expect("a client ends well"));

    everything_is_on_three_servers(&nats).await;
    let acknowledged = std::mem::take(&mut *acknowledged.lock().expect("no panic"));
    let longest = acknowledged.windows(2).map(|pair| pair[1].0 - pair[0].0).max();
    assert!(acknowledged.len() > 100, "there was load: {}", acknowledged.len());
    all_are_decided(&acknowledged, &client, &edge).await;
    let report = verify::check(&VerifyConfig::from(&config), SETTLE).await.expect("it is read");
    assert!(report.is_ok(), "see {}: {report}", folder.display());
    #[expect(clippy::print_stderr, reason = "figures for who reads the test")]
    {
        eprintln!("{} orders; the longest time without any: {longest:.1?}", acknowledged.len());
    }
    let processes = workers.into_iter().chain([edge_process]);
    for ended in join_all(processes.map(|process| process.end(Signal::TERM))).await {
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}
