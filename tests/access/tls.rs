//! TLS to all three servers, with certificates of our own making.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fred::interfaces::ClientLike as _;
use millrace_cli::servers::{ServerOptions, Servers, Which};
use millrace_shared::access::Principal;
use millrace_shared::topology::StreamOptions;
use millrace_workers::WorkerConfig;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustix::process::Signal;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::harness::{card_order, eventually, servers_dir, usd};
use crate::process::{Process, folder, settings};

const NAME: &str = "sealed";

/// A certificate and its key, in files.
struct Certificate {
    chain: PathBuf,
    key: PathBuf,
}

/// Who vouches for servers.
fn authority(folder: &Path, name: &str) -> (CertifiedIssuer<'static, KeyPair>, PathBuf) {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
    let file = folder.join(name);
    fs::write(&file, issuer.pem()).expect("a file");
    (issuer, file)
}

/// A server's certificate; its key can be read by the owner of `owned` alone.
fn certificate(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    folder: &Path,
    owned: &Path,
) -> Certificate {
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, issuer).expect("a certificate");
    let of = Certificate { chain: folder.join("server.pem"), key: folder.join("server.key") };
    let owner = fs::metadata(owned).expect("a folder");
    let texts = [(&of.chain, certificate.pem()), (&of.key, key.serialize_pem())];
    for (file, text) in texts {
        let mut options = fs::OpenOptions::new();
        let new = options.write(true).create_new(true).mode(0o600).open(file);
        new.and_then(|mut new| new.write_all(text.as_bytes())).expect("a file");
        chown(file, Some(owner.uid()), Some(owner.gid())).expect("its owner");
    }
    of
}

/// Starts a server again as its configuration is changed to.
fn again(program: &Path, arguments: &[&str], config: &Path, text: &str) -> Child {
    fs::write(config, text).expect("a file");
    let log = fs::File::create(config.with_extension("tls.log")).expect("a log");
    let mut command = Command::new(program);
    command.args(arguments).arg(config).stdin(Stdio::null()).kill_on_drop(true);
    command.stdout(log.try_clone().expect("a log")).stderr(log);
    command.spawn().expect("the server starts")
}

fn program(servers: &Servers, which: Which) -> PathBuf {
    let pid = servers.pid(which).expect("it runs");
    fs::read_link(format!("/proc/{pid}/exe")).expect("a program")
}

/// The three servers, which speak TLS only (PostgreSQL: as well), and who vouches for them.
async fn sealed(folder: &Path) -> (Servers, [Child; 2], WorkerConfig, PathBuf) {
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

    let options = config.postgres.of(Principal::Admin).options().expect("options");
    let mut connection = PgConnection::connect_with(&options).await.expect("a connection");
    let home: String = sqlx::query_scalar("select current_setting('data_directory')")
        .fetch_one(&mut connection)
        .await
        .expect("a folder");
    let of_postgres = certificate(&issuer, Path::new(&home), Path::new(&home));
    for (name, value) in [
        ("ssl_cert_file", of_postgres.chain.display().to_string()),
        ("ssl_key_file", of_postgres.key.display().to_string()),
        ("ssl", "on".to_owned()),
    ] {
        let change = format!("alter system set {name} = '{value}'");
        sqlx::raw_sql(sqlx::AssertSqlSafe(change)).execute(&mut connection).await.expect("set");
    }
    sqlx::raw_sql("select pg_reload_conf()").execute(&mut connection).await.expect("reloaded");
    connection.close().await.expect("closed");

    let Certificate { chain, key } = certificate(&issuer, &data, &data);
    let (chain, key) = (chain.display(), key.display());
    let programs = [Which::Nats, Which::Redis].map(|which| program(&servers, which));
    servers.kill(Which::Nats).await.expect("killed");
    servers.kill(Which::Redis).await.expect("killed");
    let nats = data.join("nats2/nats.conf");
    let text = fs::read_to_string(&nats).expect("its configuration");
    let tls = format!("{text}\ntls {{ cert_file: \"{chain}\", key_file: \"{key}\" }}\n");
    let nats = again(&programs[0], &["--config"], &nats, &tls);
    let redis = data.join("valkey9/server.conf");
    let text = fs::read_to_string(&redis).expect("its configuration");
    let tls = format!(
        "{}\nport 0\ntls-cert-file {chain}\ntls-key-file {key}\ntls-ca-cert-file {}\n\
         tls-auth-clients no\n",
        text.replacen("\nport ", "\ntls-port ", 1),
        ca.display(),
    );
    let redis = again(&programs[1], &[], &redis, &tls);

    let url = &config.nats.nats_url[0];
    config.nats.nats_url = vec![url.replace("nats://", "tls://")];
    config.redis.redis_url = config.redis.redis_url.replace("redis://", "rediss://");
    (servers, [nats, redis], trusting(&config, &ca), ca)
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
    let (servers, tls, config, _ca) = sealed(&folder).await;
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
    drop(tls);
    servers.stop().await.expect("the servers end");
}
