//! The two pages in a real browser. What each test checks stands in `tests/browser`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use millrace_api::auth::Role;
use millrace_api::auth::config::AuthConfig;
use millrace_api::{ApiConfig, Server};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio_util::sync::CancellationToken;

use crate::auth::{SECRET, token};
use crate::clients::{installed, there};
use crate::harness::{Running, System};
use crate::parked::shop::Shop;

/// Programs that are Chromium, by the names under which distributions have it.
const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// The library that drives the browser; nothing where there is no browser or no Python.
fn playwright() -> Option<PathBuf> {
    let answers = |name: &&&str| {
        let mut program = Command::new(name);
        let quiet = program.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    };
    let browser = BROWSERS.iter().find(answers).copied().unwrap_or(BROWSERS[0]);
    there(&[&[browser], &["python3"], &["python3", "-m", "pip"]]).then(|| {
        let folder = installed("browser", &["browser.txt"], |folder| {
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
            pip.args(["--require-hashes", "--only-binary", ":all:", "--target"]).arg(folder);
            pip.args(["-r", "browser.txt"]);
            pip
        });
        folder.expect("Playwright is installed")
    })
}

/// An edge with all that it can serve, which can be stopped and started at one address.
pub struct Edge {
    config: ApiConfig,
    /// Where it listens.
    pub address: String,
    running: Option<Running>,
}

impl Edge {
    /// Opens it.
    pub async fn open(system: &System) -> Self {
        let config = |address: &str| {
            let address = address.parse().expect("an address");
            let config = &system.config;
            ApiConfig::new(address, config.nats.clone(), config.redis.clone())
                .with_operator_routes(config.postgres.clone())
                .with_trial()
        };
        Self::with(config).await
    }

    /// One at which callers have to sign in.
    async fn guarded(system: &System) -> Self {
        let config = |address: &str| {
            let address = address.parse().expect("an address");
            let config = &system.config;
            ApiConfig::new(address, config.nats.clone(), config.redis.clone())
                .with_operator_routes(config.postgres.clone())
                .with_auth(AuthConfig::default().with_secret(SECRET))
        };
        Self::with(config).await
    }

    async fn with(config: impl Fn(&str) -> ApiConfig) -> Self {
        let server = Server::bind(config("127.0.0.1:0")).await.expect("the api binds");
        let address = server.local_addr().to_string();
        let running = Some(serve(server));
        Self { config: config(&address), address, running }
    }

    /// Closes it for good.
    pub async fn close(mut self) {
        self.stop().await;
    }

    async fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop().await;
        }
    }

    async fn start(&mut self) {
        let server = Server::bind(self.config.clone()).await.expect("the api binds again");
        self.running = Some(serve(server));
    }
}

fn serve(server: Server) -> Running {
    let stop = CancellationToken::new();
    let serving = server.serve(stop.clone());
    Running::new(stop, tokio::spawn(async { serving.await.expect("the api ends well") }))
}

/// Runs a script of `tests/browser` to its end, and does what it asks for.
async fn run(script: &str, library: &Path, shop: &Shop, mut edge: Edge) {
    let tokens = json!({
        "ann": token("ann", Role::Customer), "ops": token("ops", Role::Operator),
    });
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("browser");
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pages");
    let mut child = tokio::process::Command::new("python3")
        .arg(folder.join(script))
        .arg(format!("http://{}", edge.address))
        .arg(pictures)
        .env("PYTHONPATH", library)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("MILLRACE_TOKENS", tokens.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the script starts");
    let mut answers = child.stdin.take().expect("a pipe");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut output = String::new();
    while let Some(line) = lines.next_line().await.expect("text") {
        let asked: Vec<&str> = line.split(' ').collect();
        match asked[..] {
            ["ask", "stop"] => edge.stop().await,
            ["ask", "start"] => edge.start().await,
            ["ask", "contradict", order] => {
                shop.contradict(order.parse().expect("an order id")).await;
            }
            ["ask", "heal"] => shop.heal().await,
            _ => {
                output.push_str(&line);
                output.push('\n');
                continue;
            }
        }
        answers.write_all(b"done\n").await.expect("the script reads");
    }
    let status = child.wait().await.expect("the script ends");
    edge.close().await;
    // Also where all went well: it tells how long the first paint took.
    writeln!(std::io::stderr(), "{output}").ok();
    assert!(status.success(), "{script} has found something wrong:\n{output}");
}

async fn in_a_browser(script: &str) {
    let library = tokio::task::spawn_blocking(playwright).await.expect("the library is there");
    if let Some(library) = library {
        let shop = Shop { system: System::start().await, running: Vec::new() };
        let edge = Edge::open(&shop.system).await;
        run(script, &library, &shop, edge).await;
        shop.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_signs_in_has_the_pages_and_nobody_else_has() {
    let library = tokio::task::spawn_blocking(playwright).await.expect("the library is there");
    if let Some(library) = library {
        let shop = Shop { system: System::start().await, running: Vec::new() };
        shop.system.define("mug", 900, 1_000).await;
        shop.system.register("ann", Some(100_000)).await;
        let edge = Edge::guarded(&shop.system).await;
        run("sign_in.py", &library, &shop, edge).await;
        shop.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_buys_is_charged_once_and_sees_what_becomes_of_the_order() {
    in_a_browser("shop.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_runs_it_sees_how_it_goes_and_what_is_parked() {
    in_a_browser("console.py").await;
}
