//! Clients that know nothing of Millrace, in other languages and without any library: whatever can
//! publish JSON to NATS can order.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use millrace_shared::access::Principal;
use millrace_shared::config::NatsConfig;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{System, card_order, eventually};
use crate::parking::{header, number, parked};

/// A client program: an interpreter and its script, in a folder with the library.
struct Client {
    interpreter: &'static str,
    script: PathBuf,
    folder: PathBuf,
}

/// Runs a command to its end; its standard output, or what it says of its failure.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().expect("the program starts");
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).expect("text"));
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} failed: {error}", command.get_program().display()))
}

/// Whether all tools of a client are on this machine. One that is missing is told past the test
/// harness, which shows nothing of tests that pass; in CI nothing may be missing.
pub fn there(tools: &[&[&str]]) -> bool {
    for tool in tools {
        let answers = Command::new(tool[0])
            .args(&tool[1..])
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success());
        if !answers {
            not_tested(&format!("{} is not on this machine", tool.join(" ")));
            return false;
        }
    }
    true
}

/// Tells what is missing for a test.
pub fn not_tested(missing: &str) {
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    writeln!(std::io::stderr(), "\n*** a client was NOT tested: {missing} ***\n").ok();
}

/// A folder with a client and its library, made once and again when a file has changed. Tests and
/// test processes that need it wait for each other.
pub fn installed(
    name: &str,
    files: &[&str],
    install: impl FnOnce(&Path) -> Command,
) -> Result<PathBuf, String> {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("clients");
    let clients = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("clients");
    fs::create_dir_all(&clients).expect("a folder");
    let lock = File::create(clients.join(format!("{name}.lock"))).expect("a lock file");
    lock.lock().expect("the lock");
    let folder = clients.join(name);
    let wanted: String = files
        .iter()
        .map(|file| fs::read_to_string(source.join(file)).expect("a client's file"))
        .collect();
    let done = folder.join("done");
    if fs::read_to_string(&done).ok().as_ref() != Some(&wanted) {
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(&folder).expect("a folder");
        for file in files {
            fs::copy(source.join(file), folder.join(file)).expect("a copy");
        }
        run(install(&folder).current_dir(&folder))?;
        fs::write(done, wanted).expect("the mark");
    }
    Ok(folder)
}

fn python(script: &str) -> Option<Client> {
    there(&[&["python3"], &["python3", "-m", "pip"]]).then(|| {
        let folder = installed("python", &["place.py", "query.py", "requirements.txt"], |folder| {
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
            pip.args(["--require-hashes", "--only-binary", ":all:", "--target"]).arg(folder);
            pip.args(["-r", "requirements.txt"]);
            pip
        });
        let folder = folder.expect("nats-py is installed");
        Client { interpreter: "python3", script: folder.join(script), folder }
    })
}

fn node() -> Option<Client> {
    there(&[&["node"], &["npm"]]).then(|| {
        let files = ["place.mjs", "package.json", "package-lock.json"];
        let folder = installed("node", &files, |_| {
            let mut npm = Command::new("npm");
            npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]);
            npm
        });
        let folder = folder.expect("nats.js is installed");
        Client { interpreter: "node", script: folder.join("place.mjs"), folder }
    })
}

impl Client {
    /// Publishes a command; the stream sequence that the client printed.
    async fn place(&self, system: &System, body: &Value, headers: &[String]) -> String {
        let args = [system.topology.command("order.place"), body.to_string()];
        self.run(system, &[&args, headers].concat()).await
    }

    /// Runs the client; what it printed.
    async fn run(&self, system: &System, args: &[String]) -> String {
        let nats = &system.config.nats.of(Principal::Service);
        let mut command = Command::new(self.interpreter);
        command
            .arg(&self.script)
            .args(args)
            // Not in the arguments, which everybody on the machine can read.
            .env("NATS_URL", &nats.nats_url[0])
            .env("NATS_USER", user(nats))
            .env("NATS_PASSWORD", password(nats))
            .env("PYTHONPATH", &self.folder);
        let printed = tokio::task::spawn_blocking(move || run(&mut command)).await;
        printed.expect("no panic").expect("the client ends well").trim().to_owned()
    }
}

fn user(nats: &NatsConfig) -> &str {
    nats.nats_user.as_deref().expect("the servers ask for a user")
}

fn password(nats: &NatsConfig) -> String {
    nats.password().expect("a file").expect("the servers ask for a password")
}

/// A system with a customer and ten books.
async fn bookshop() -> System {
    let system = System::start().await;
    system.register("ann", None).await;
    system.define("book", 1_500, 10).await;
    system
}

/// Checks that the command under `id` was accepted and its order gets paid; the order's id.
async fn paid(system: &System, id: &str) -> String {
    let outcome = system.outcome(id).await;
    assert_eq!(outcome["status"], "accepted", "{outcome}");
    let order_id = outcome["orderId"].as_str().expect("an order").to_owned();
    system.order_in(&order_id, "paid").await;
    order_id
}

/// A client orders with nothing but JSON, with a command id, and with an idempotency key.
async fn orders_in_every_way(client: Client) {
    let system = bookshop().await;
    let order = card_order("ann", "book", 1, "tok_ok");
    let with = |field: &str, value: &str| {
        let mut order = order.clone();
        order[field] = json!(value);
        order
    };
    paid(&system, &client.place(&system, &order, &[]).await).await;

    let id = Uuid::now_v7().to_string();
    let sequence = client.place(&system, &with("commandId", &id), &[]).await;
    let by_id = paid(&system, &id).await;
    assert_eq!(paid(&system, &sequence).await, by_id);
    assert_eq!(system.order(&by_id).await["commandId"], id);

    let id = Uuid::now_v7().to_string();
    client.place(&system, &order, &[format!("Millrace-Command-Id={id}")]).await;
    paid(&system, &id).await;

    let first = client.place(&system, &with("idempotencyKey", "cart-7"), &[]).await;
    let second = client.place(&system, &with("idempotencyKey", "cart-7"), &[]).await;
    let third = client.place(&system, &order, &["Idempotency-Key=cart-7".to_owned()]).await;
    assert!(first != second && second != third);
    let of_key = paid(&system, &first).await;
    assert_eq!(paid(&system, &second).await, of_key);
    assert_eq!(paid(&system, &third).await, of_key);

    system.settle().await;
    system.stock_is("book", [6, 4, 0]).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_orders_with_nothing_but_json_or_with_ids_of_its_own() {
    let client = tokio::task::spawn_blocking(|| python("place.py")).await;
    if let Some(client) = client.expect("nats-py is there") {
        Box::pin(orders_in_every_way(client)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_reads_over_nats_and_discovers_every_role() {
    let client = tokio::task::spawn_blocking(|| python("query.py")).await;
    let Some(client) = client.expect("nats-py is there") else { return };
    let system = bookshop().await;
    let placed = system.post_and_wait("/v1/orders", &card_order("ann", "book", 1, "tok_ok")).await;
    let (order, command) = (placed.text("/orderId"), placed.text("/commandId"));
    let nobody = Uuid::now_v7().to_string();
    system.settle().await;
    let asked = [
        ("order", order.as_str(), 200),
        ("command", command.as_str(), 200),
        ("customer", "ann", 200),
        ("order", nobody.as_str(), 404),
    ];
    let subjects = asked.map(|(about, id, _)| system.topology.query(about, id));
    let printed = client.run(&system, &subjects).await;
    let printed: Value = serde_json::from_str(&printed).expect("JSON");
    for ((about, id, status), subject) in asked.iter().zip(&subjects) {
        let (answer, http) =
            (&printed["answers"][subject], system.get(&format!("/v1/{about}s/{id}")).await);
        assert_eq!(http.status, *status, "{http:?}");
        assert_eq!(answer["body"], http.body, "{about} {id}");
        let header = if *status == 200 { "Millrace-Status" } else { "Nats-Service-Error-Code" };
        assert_eq!(answer["headers"][header], status.to_string(), "{answer}");
    }
    for (verb, kind) in [("INFO", "info"), ("STATS", "stats")] {
        for role in ["api", "payment", "persistence", "projection", "reservations", "validation"] {
            let name = system.topology.service(role);
            let services = printed[verb].as_array().expect("services");
            let service = services.iter().find(|service| service["name"] == name);
            let service = service.unwrap_or_else(|| panic!("no {name} in {services:?}"));
            // What `nats micro ls` and `nats micro stats` read.
            assert_eq!(service["type"], format!("io.nats.micro.v1.{kind}_response"));
            assert_eq!(service["version"], env!("CARGO_PKG_VERSION"));
            let described = service["description"].is_string() && service["metadata"].is_object();
            assert!(service["id"].is_string() && (verb == "STATS" || described), "{service}");
            let endpoints = service["endpoints"].as_array().expect("endpoints");
            assert!(!endpoints.is_empty(), "{service}");
            for endpoint in endpoints {
                assert!(endpoint["name"].is_string() && endpoint["subject"].is_string());
                assert!(endpoint["queue_group"].is_string(), "{endpoint}");
                let counted = endpoint["num_requests"].is_u64() && endpoint["num_errors"].is_u64();
                assert!(verb == "INFO" || counted, "{endpoint}");
            }
        }
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_client_orders_with_nothing_but_json_or_with_ids_of_its_own() {
    let client = tokio::task::spawn_blocking(node).await.expect("nats.js is there");
    if let Some(client) = client {
        Box::pin(orders_in_every_way(client)).await;
    }
}

/// A TCP connection on which the NATS protocol is spoken by hand.
struct Wire {
    stream: BufReader<TcpStream>,
}

impl Wire {
    fn connect(nats: &NatsConfig) -> Self {
        let address = nats.nats_url[0].strip_prefix("nats://").expect("an address");
        let stream = TcpStream::connect(address).expect("NATS listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        let mut wire = Self { stream: BufReader::new(stream) };
        assert!(wire.line().starts_with("INFO {"));
        let who = json!({ "verbose": false, "pedantic": true, "headers": true, "lang": "by hand",
            "version": "0", "user": user(nats), "pass": password(nats) });
        wire.say(format!("CONNECT {who}\r\n"));
        wire
    }

    fn say(&mut self, text: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(text.as_ref()).expect("NATS reads");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("NATS answers");
        assert!(!line.starts_with("-ERR") && !line.is_empty(), "{line:?}");
        line.trim_end().to_owned()
    }

    /// Waits until the server has dealt with all that was said.
    fn flush(&mut self) {
        self.say("PING\r\n");
        assert_eq!(self.line(), "PONG");
    }

    /// The payload of the next message.
    fn message(&mut self) -> Value {
        let line = self.line();
        assert!(line.starts_with("MSG "), "{line}");
        let length = line.rsplit(' ').next().and_then(|length| length.parse().ok());
        let mut payload = vec![0; length.expect("a length")];
        self.stream.read_exact(&mut payload).expect("a payload");
        assert_eq!(self.line(), "");
        serde_json::from_slice(&payload).expect("JSON")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_typed_into_a_tcp_connection_is_carried_out() {
    let system = bookshop().await;
    let subject = system.topology.command("order.place");
    let nats = system.config.nats.of(Principal::Service);
    let (in_body, in_header) = (Uuid::now_v7().to_string(), Uuid::now_v7().to_string());
    let order = card_order("ann", "book", 1, "tok_ok");
    let mut named = order.clone();
    named["commandId"] = json!(in_body);
    let header = format!("NATS/1.0\r\nMillrace-Command-Id: {in_header}\r\n\r\n");

    let typing = tokio::task::spawn_blocking(move || {
        let (order, named) = (order.to_string(), named.to_string());
        let mut wire = Wire::connect(&nats);
        // Nobody waits for the publish ack of these two.
        wire.say(format!("PUB {subject} {}\r\n{named}\r\n", named.len()));
        let (most, all) = (header.len(), header.len() + order.len());
        wire.say(format!("HPUB {subject} {most} {all}\r\n{header}{order}\r\n"));
        wire.flush();
        wire.say("SUB _INBOX.by-hand 1\r\n");
        wire.say(format!("PUB {subject} _INBOX.by-hand {}\r\n{order}\r\n", order.len()));
        wire.message()
    });
    let ack = typing.await.expect("the conversation goes well");
    assert_eq!(ack["stream"], system.topology.commands_stream());
    for id in [in_body, in_header, ack["seq"].to_string()] {
        paid(&system, &id).await;
    }
    system.settle().await;
    system.stock_is("book", [7, 3, 0]).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_client_library_can_receive_is_parked_and_holds_nobody_up() {
    let system = bookshop().await;
    let subject = system.topology.command("order.place").into_bytes();
    let nats = system.config.nats.of(Principal::Service);
    let order = card_order("ann", "book", 1, "tok_ok").to_string();
    let payload = order.clone();
    let typing = tokio::task::spawn_blocking(move || {
        let mut wire = Wire::connect(&nats);
        // The server stores what it takes for headers and subjects as bytes.
        let unreadable = [
            (subject.clone(), &b"X-Name: \xff\xfe"[..]),
            (subject.clone(), b"no colon"),
            (subject.clone(), b"\xc3\x28: x"),
            (subject.clone(), b"A B: x"),
            ([&subject[..], b"\xff"].concat(), b"X-Name: x"),
        ];
        wire.say("SUB _INBOX.by-hand 1\r\n");
        unreadable.map(|(subject, header)| {
            let header = [b"NATS/1.0\r\n", header, b"\r\n\r\n"].concat();
            let (most, all) = (header.len(), header.len() + order.len());
            let sizes = format!(" _INBOX.by-hand {most} {all}\r\n");
            wire.say([b"HPUB ", &subject[..], sizes.as_bytes(), &header].concat());
            wire.say(format!("{order}\r\n"));
            wire.message()["seq"].as_u64().expect("an ack")
        })
    });
    let unreadable = typing.await.expect("the conversation goes well");
    let order = card_order("ann", "book", 1, "tok_ok");
    let sequence = system.publish("order.place", &order).await;
    let kept = eventually("all of it is parked", async || {
        let kept = parked(&system).await;
        (kept.len() >= unreadable.len()).then_some(kept)
    })
    .await;
    // It came to the worker along with them, and is delivered again.
    paid(&system, &sequence.to_string()).await;
    system.settle().await;
    let mut numbers: Vec<u64> = kept.iter().map(number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, unreadable);
    for sequence in unreadable {
        let outcome = system.outcome(&sequence.to_string()).await;
        assert_eq!(outcome["reason"], "malformed_command", "{outcome}");
    }
    for message in &kept {
        assert_eq!(header(message, "Millrace-Worker"), "validation");
        assert_eq!(message.payload, payload);
    }
    system.stock_is("book", [9, 1, 0]).await;
    system.stop().await;
}
