//! TLS to all three servers, with certificates of our own making.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use fred::interfaces::ClientLike as _;
use millrace_cli::servers::{ServerOptions, Servers, Which};
use millrace_shared::access::Principal;
use millrace_shared::topology::StreamOptions;
use millrace_workers::WorkerConfig;
use rustix::process::Signal;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::harness::{card_order, eventually, servers_dir, usd};
use crate::process::{Process, folder, settings};
use crate::sealed::{authority, certificate, seal};

const NAME: &str = "sealed";

/// The three servers, which speak TLS only, and who vouches for them.
async fn sealed(folder: &Path) -> (Servers, Child, WorkerConfig) {
    let data = folder.join("data");
    let options = ServerOptions {
        data_dir: data.clone(),
        servers_dir: servers_dir(),
        durable: true,
        namespaces: vec![NAME.to_owned()],
    };
    let mut servers = Box::pin(Servers::start(&options)).await.expect("servers of its own");
    millrace_cli::up::prepare_database(servers.addresses(), NAME).await.expect("a database");
    let mut config = millrace_cli::up::worker_config(servers.addresses(), NAME);
    let (issuer, ca) = authority(&data, "ca.pem");

    let of = certificate(&issuer, &data);
    let addresses = servers.addresses().clone();
    let sealing = async |url: &str, which| {
        let (_, address) = url.split_once("://").expect("an address");
        // Their pinned builds speak none of their own.
        let sealed = seal(&of, address, which == Which::Postgres).await;
        (address.to_owned(), sealed.to_string())
    };
    let (open, sealed) = sealing(&addresses.postgres_url, Which::Postgres).await;
    config.postgres.postgres_url = config.postgres.postgres_url.replace(&open, &sealed);
    let (open, sealed) = sealing(&addresses.redis_url, Which::Redis).await;
    let url = config.redis.redis_url.replace(&open, &sealed);
    config.redis.redis_url = url.replace("redis://", "rediss://");

    let program = servers.pid(Which::Nats).map(|pid| format!("/proc/{pid}/exe"));
    let program = fs::read_link(program.expect("it runs")).expect("a program");
    servers.kill(Which::Nats).await.expect("killed");
    let file = data.join("nats2/nats.conf");
    let text = fs::read_to_string(&file).expect("its configuration");
    let (chain, key) = (of.chain.display(), of.key.display());
    let tls = format!("{text}\ntls {{ cert_file: \"{chain}\", key_file: \"{key}\" }}\n");
    fs::write(&file, tls).expect("a file");
    let mut nats = Command::new(program);
    nats.arg("--config").arg(&file).stdin(Stdio::null()).stderr(Stdio::null());
    let nats = nats.kill_on_drop(true).spawn().expect("nats-server starts");
    let url = &config.nats.nats_url[0];
    config.nats.nats_url = vec![url.replace("nats://", "tls://")];
    (servers, nats, trusting(&config, &ca))
}

fn trusting(config: &WorkerConfig, ca: &Path) -> WorkerConfig {
    let mut config = config.clone();
    let ca = Some(ca.to_owned());
    (config.nats.nats_ca_file, config.redis.redis_ca_file) = (ca.clone(), ca.clone());
    config.postgres.postgres_ca_file = ca;
    config
}

/// Which of the servers are taken for what they say they are.
async fn trusted(config: &WorkerConfig) -> [bool; 3] {
    let admin = config.of(Principal::Admin);
    let nats = admin.nats.connect_now("test").await.is_ok();
    let options = admin.postgres.options().expect("options");
    let postgres = PgConnection::connect_with(&options).await.is_ok();
    let redis = admin.redis.client().expect("a client");
    let pong = timeout(Duration::from_secs(3), redis.ping::<String>(None)).await;
    redis.quit().await.ok();
    [nats, postgres, matches!(pong, Ok(Ok(_)))]
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_orders_are_paid_and_a_server_that_nobody_vouches_for_is_refused() {
    let folder = folder(NAME);
    let (servers, nats, config) = sealed(&folder).await;
    eventually("all three speak TLS", async || (trusted(&config).await == [true; 3]).then_some(()))
        .await;
    let (_, stranger) = authority(&folder, "stranger.pem");
    assert_eq!(trusted(&trusting(&config, &stranger)).await, [false; 3], "who is not vouched for");

    millrace_cli::topology(&config.nats.of(Principal::Admin), &StreamOptions::default())
        .await
        .expect("streams");
    let settings = settings(&config);
    let mut edge = Process::start(&["api", "--http", "127.0.0.1:0"], &settings);
    let all = ["worker", "validation", "payment", "persistence", "projection"];
    let workers = Process::start(&all, &settings);
    let url = edge.http().await;
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let send = async |method: reqwest::Method, path: &str, body: &serde_json::Value| {
        let request = client.request(method, format!("{url}{path}")).header("Prefer", "wait=20");
        let answer = request.json(body).send().await.expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    };
    eventually("the first views are there", async || {
        let answer = client.get(format!("{url}/v1/products")).send().await.ok()?;
        answer.status().is_success().then_some(())
    })
    .await;
    let customer = json!({ "customerId": "ann", "name": "Ann" });
    let registered = send(reqwest::Method::POST, "/v1/customers", &customer).await;
    assert_eq!(registered.0, 200, "{registered:?}");
    let product = json!({
        "name": "Box", "brand": "Acme", "category": "Things", "price": usd(100), "initialStock": 5,
    });
    let defined = send(reqwest::Method::PUT, "/v1/products/box", &product).await;
    assert_eq!(defined.0, 200, "{defined:?}");
    let order = card_order("ann", "box", 1, "tok_ok");
    let placed = send(reqwest::Method::POST, "/v1/orders", &order).await;
    assert_eq!(placed.0, 201, "{placed:?}");
    for process in [edge, workers] {
        assert_eq!(process.end(Signal::TERM).await.code, Some(0));
    }
    drop(nats);
    servers.stop().await.expect("the servers end");
}
