//! `millrace up`, as somebody starts it who sees it for the first time.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use millrace_shared::access::Principal;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{card_order, eventually, servers, servers_dir, usd};
use crate::process::{Process, folder, processes_of, run};

/// How long the servers may live on after the program was killed.
const ORPHANS: Duration = Duration::from_secs(10);

/// A running `millrace up`.
struct Up {
    process: Process,
    data: PathBuf,
    http: String,
    client: reqwest::Client,
}

fn arguments(data: &Path, more: &[&str]) -> Vec<String> {
    let data = data.to_str().expect("a path in UTF-8").to_owned();
    let programs = servers_dir().to_str().expect("a path in UTF-8").to_owned();
    let mut words = ["up", "--http", "127.0.0.1:0", "--servers-dir"].map(str::to_owned).to_vec();
    words.extend([programs, "--data-dir".to_owned(), data]);
    words.extend(more.iter().map(|word| (*word).to_owned()));
    words
}

impl Up {
    async fn start(data: &Path, more: &[&str]) -> Self {
        // By then the servers' programs are on this machine.
        tokio::task::spawn_blocking(servers).await.expect("the servers have started");
        let mut process = Process::start(&arguments(data, more), &[]);
        process.says("Ctrl-C stops everything.").await;
        let output = process.output();
        let http = output.split_whitespace().find(|word| word.starts_with("http://127.0.0.1:"));
        let http = http.expect("the address is printed").to_owned();
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self { process, data: data.to_owned(), http, client }
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.client.get(format!("{}{path}", self.http)).send().await;
        answer.expect("an answer").json().await.expect("JSON")
    }

    /// Sends JSON and waits for the outcome.
    async fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let method = method.parse().expect("a method");
        let request = self.client.request(method, format!("{}{path}", self.http));
        let answer = request.header("Prefer", "wait=20").json(body).send().await;
        let answer = answer.expect("an answer").error_for_status().expect("a good answer");
        answer.json().await.expect("JSON")
    }

    async fn order_is_paid(&self, id: &str) -> Value {
        eventually(&format!("order {id} is paid"), async || {
            let order = self.get(&format!("/v1/orders/{id}")).await;
            (order["status"] == "paid").then_some(order)
        })
        .await
    }

    /// The whole catalogue.
    async fn products(&self) -> Vec<Value> {
        let mut products = Vec::new();
        let mut page = self.get("/v1/products?limit=100").await;
        loop {
            products.extend(page["items"].as_array().expect("items").iter().cloned());
            let Some(cursor) = page["nextCursor"].as_str() else { return products };
            page = self.get(&format!("/v1/products?limit=100&cursor={cursor}")).await;
        }
    }

    /// The command that is printed after a prefix, to be pasted into a shell.
    fn printed(&self, start: &str) -> String {
        let output = self.process.output();
        let from = output.find(start).unwrap_or_else(|| panic!("no {start:?} in: {output}"));
        let mut command = String::new();
        for line in output[from..].lines() {
            command += line;
            if !line.ends_with('\\') {
                break;
            }
            command.push('\n');
        }
        command
    }

    /// Runs a command in a shell that has read the printed environment file.
    async fn shell(&self, command: &str) -> String {
        let mut shell = tokio::process::Command::new("sh");
        shell.arg("-c").arg(format!(". \"$0\"; {command}")).arg(self.data.join("env"));
        let output = shell.env("no_proxy", "127.0.0.1").output().await.expect("a shell");
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// A NATS client with the printed credentials.
    async fn nats(&self) -> async_nats::Client {
        let text = self.shell("printf '%s %s %s' \"$NATS_URL\" \"$NATS_USER\" \"$NATS_PASSWORD\"");
        let text = text.await;
        let [url, user, password] = text.split(' ').collect::<Vec<_>>()[..] else {
            panic!("three words are expected")
        };
        let options =
            async_nats::ConnectOptions::with_user_and_password(user.into(), password.into());
        options.connect(url).await.expect("NATS takes the printed credentials")
    }

    /// How many commands were ever given to the system.
    async fn commands(&self) -> u64 {
        let jetstream = jetstream::new(self.nats().await);
        let stream = jetstream.get_stream("millrace_COMMANDS").await.expect("the stream");
        stream.cached_info().state.last_sequence
    }
}

/// Sends what a printed curl line says, with curl if it is there.
async fn curl(up: &Up) -> Value {
    let line = up.printed("curl ");
    assert!(line.contains(&up.http), "{line}");
    let there = std::process::Command::new("curl").arg("--version").output().is_ok();
    if there {
        let answer = up.shell(&line).await;
        return serde_json::from_str(&answer).unwrap_or_else(|_| panic!("no JSON: {answer}"));
    }
    let body = line.split('\'').rfind(|word| word.starts_with('{')).expect("a body");
    let key = ("Idempotency-Key", "first-order");
    let request = up.client.post(format!("{}/v1/orders", up.http)).header(key.0, key.1);
    let request = request.header("Content-Type", "application/json").header("Prefer", "wait=5");
    request.body(body.to_owned()).send().await.expect("an answer").json().await.expect("JSON")
}

/// Publishes what the printed line for the NATS CLI says; the stream sequence.
async fn nats_req(up: &Up) -> u64 {
    let line = up.printed("nats req ");
    let words: Vec<&str> = line.splitn(4, ' ').collect();
    let (subject, body) = (words[2].to_owned(), words[3].trim_matches('\'').to_owned());
    let answer = up.nats().await.request(subject, body.into()).await.expect("a publish ack");
    let ack: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    ack["seq"].as_u64().unwrap_or_else(|| panic!("no ack: {ack}"))
}

/// All files below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // A link is not followed, and what has gone meanwhile is passed over.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files(&entry.path(), found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

/// Only nats-server's timers are slack.
fn nats_server_is_woken_seldom(up: &Up) {
    for process in processes_of(&up.data) {
        let (pid, line) = process.split_once(": ").expect("a process");
        let is_nats = line.contains("nats-server") && line.contains("--config");
        // The processes of PostgreSQL come and go.
        if let Ok(slack) = fs::read_to_string(format!("/proc/{pid}/timerslack_ns")) {
            assert_eq!(slack.trim() == "10000000", is_nats, "{process}: {slack}");
        }
    }
}

/// Checks that only the owner can read the passwords, and that no log and no command line has them.
fn secrets_are_kept(up: &Up) {
    let run = fs::read(up.data.join("run.json")).expect("the run file");
    let run: Value = serde_json::from_slice(&run).expect("JSON");
    let of_all = run
        .as_object()
        .expect("an object")
        .iter()
        .filter(|(name, _)| name.to_lowercase().contains("password"))
        .filter_map(|(_, value)| value.as_str().map(str::to_owned));
    let credentials = up.data.join("credentials");
    let of_each = Principal::ALL.map(|principal| {
        fs::read_to_string(credentials.join(principal.name())).expect("a file for each")
    });
    let passwords: HashSet<String> = of_all.chain(of_each).collect();
    assert_eq!(passwords.len(), 3 + Principal::ALL.len());
    let has_one = |text: &[u8]| {
        passwords.iter().any(|secret| text.windows(secret.len()).any(|at| at == secret.as_bytes()))
    };
    let mode = |path: &Path| fs::metadata(path).map_or(0, |data| data.permissions().mode() & 0o777);
    assert_eq!(mode(&up.data), 0o700, "the data folder is private");
    let mut all = Vec::new();
    files(&up.data, &mut all);
    all.retain(|path| {
        fs::metadata(path).is_ok_and(|data| data.len() < 1 << 20)
            && fs::read(path).is_ok_and(|text| has_one(&text))
    });
    for name in ["run.json", "env"] {
        assert!(all.contains(&up.data.join(name)), "{name} has the passwords: {all:?}");
    }
    // A file of it that is mounted into a container is read by another user.
    assert_eq!(mode(&credentials), 0o700, "nobody else enters the folder");
    for path in &all {
        assert!(mode(path) == 0o600 || path.starts_with(&credentials), "{}", path.display());
        assert!(!path.starts_with(up.data.join("log")), "a password in {}", path.display());
    }
    assert!(!has_one(up.process.output().as_bytes()), "a password is printed");
    assert!(!has_one(up.process.errors().as_bytes()), "a password is logged");
    let processes = processes_of(&up.data);
    assert!(processes.len() >= 4, "the program and three servers run: {processes:?}");
    for line in processes {
        assert!(!has_one(line.as_bytes()), "a password on a command line");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_up_prints_places_orders_and_the_next_start_has_them() {
    let data = folder("up").join("data");
    let up = Up::start(&data, &[]).await;

    let order = curl(&up).await;
    let id = order["orderId"].as_str().unwrap_or_else(|| panic!("no order: {order}")).to_owned();
    up.order_is_paid(&id).await;
    let again = curl(&up).await;
    assert_eq!(again["orderId"], id, "pasted twice, it is one order still");

    let sequence = nats_req(&up).await;
    let by_nats = eventually("the order from NATS is accepted", async || {
        let command = up.get(&format!("/v1/commands/{sequence}")).await;
        (command["status"] == "accepted").then(|| command["orderId"].clone())
    })
    .await;
    let by_nats = by_nats.as_str().expect("an order id").to_owned();
    up.order_is_paid(&by_nats).await;

    let catalogue =
        eventually("the sample catalogue is there, and both orders hold stock", async || {
            let products = up.products().await;
            let reserved =
                products.iter().filter_map(|product| product["stock"]["reserved"].as_i64());
            let told = reserved.sum::<i64>() == 4;
            (told && products.len() == millrace_cli::sample::PRODUCTS).then_some(products)
        })
        .await;
    let commands = up.commands().await;
    secrets_are_kept(&up);
    nats_server_is_woken_seldom(&up);

    let second = run(&arguments(&data, &[]), &[]).await;
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.errors.contains("uses the data folder"), "{}", second.errors);
    assert!(second.errors.contains(data.to_str().expect("UTF-8")), "{}", second.errors);
    up.order_is_paid(&id).await;

    let ended = up.process.end(Signal::TERM).await;
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(processes_of(&data), <[String; 0]>::default(), "no server is left");

    let start = Instant::now();
    let up = Up::start(&data, &[]).await;
    println!("the second start took {:?}", start.elapsed());
    up.order_is_paid(&id).await;
    up.order_is_paid(&by_nats).await;
    assert_eq!(up.products().await, catalogue);
    assert_eq!(up.commands().await, commands, "the sample is not given a second time");

    let ended = up.process.end(Signal::INT).await;
    assert_eq!((ended.code, ended.errors.as_str()), (Some(0), ""), "{ended:?}");
    assert_eq!(processes_of(&data), <[String; 0]>::default(), "no server is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_up_leaves_no_orphans_and_the_next_start_goes_on() {
    let data = folder("killed").join("data");
    let up = Up::start(&data, &["--no-sample"]).await;
    up.send("POST", "/v1/customers", &json!({ "customerId": "ann", "name": "Ann" })).await;
    let product = json!({ "name": "Book", "brand": "Acme", "category": "Books",
        "price": usd(1_500), "initialStock": 10 });
    up.send("PUT", "/v1/products/book", &product).await;
    let first = up.send("POST", "/v1/orders", &card_order("ann", "book", 1, "tok_ok")).await;
    // Accepted, and for the most part not yet decided, when the end comes.
    let orders = format!("{}/v1/orders", up.http);
    let mut accepted = vec![first["orderId"].clone()];
    for _ in 0..5 {
        let body = card_order("ann", "book", 1, "tok_ok");
        let answer = up.client.post(&orders).json(&body).send().await.expect("an answer");
        assert_eq!(answer.status(), 202);
        accepted.push(answer.json::<Value>().await.expect("JSON")["orderId"].clone());
    }
    let ended = up.process.end(Signal::KILL).await;
    assert_eq!(ended.code, None, "{ended:?}");
    let killed = Instant::now();
    eventually("no process is left", async || processes_of(&data).is_empty().then_some(())).await;
    assert!(killed.elapsed() < ORPHANS, "it took {:?}", killed.elapsed());

    let up = Up::start(&data, &["--no-sample"]).await;
    for id in accepted {
        up.order_is_paid(id.as_str().expect("an order id")).await;
    }
    eventually("six books are taken, none twice", async || {
        let book = up.get("/v1/products/book").await;
        (book["stock"] == json!({ "available": 4, "reserved": 6, "sold": 0 })).then_some(())
    })
    .await;
    assert_eq!(up.process.end(Signal::TERM).await.code, Some(0));
}
