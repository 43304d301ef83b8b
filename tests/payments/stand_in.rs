//! localstripe, which keeps an account as Stripe does but for idempotency keys, which it does not know:
//! what is right with it rests on no such key. And a line to it that does to requests what networks and
//! Stripe itself sometimes do.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::AbortHandle;

use crate::clients::{installed, not_tested, there};

/// The key at the stand-in: nobody may read it anywhere.
pub const KEY: &str = "sk_test_of_nobody_else";

/// A running localstripe. It is killed when this is dropped.
pub struct LocalStripe {
    _child: Child,
    url: String,
    client: reqwest::Client,
}

impl LocalStripe {
    /// Starts one; nothing where it cannot be had.
    pub async fn start() -> Option<Self> {
        let folder = tokio::task::spawn_blocking(folder).await.expect("no panic")?;
        let mut command = Command::new("python3");
        command.arg(folder.join("stripe.py")).env("PYTHONPATH", &folder).current_dir(&folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.kill_on_drop(true).spawn().expect("python3 starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let port = lines.next_line().await.expect("text").expect("a port");
        let url = format!("http://127.0.0.1:{port}");
        Some(Self { _child: child, url, client: reqwest::Client::new() })
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// All of a kind that it has: `payment_intents`, `charges`, `refunds`, `events`.
    pub async fn all(&self, kind: &str) -> Vec<Value> {
        let path = format!("/v1/{kind}?limit=1000");
        let listed = self.send(self.client.get(format!("{}{path}", self.url))).await;
        assert_eq!(listed["has_more"], false, "{listed}");
        listed["data"].as_array().expect("a list").clone()
    }

    /// A card by its number; its name for an order.
    pub async fn card(&self, number: &str) -> String {
        let card = json!({ "number": number, "exp_month": 12, "exp_year": 2050, "cvc": "123" });
        let request = self.client.post(format!("{}/v1/payment_methods", self.url));
        let request = request.json(&json!({ "type": "card", "card": card }));
        self.send(request).await["id"].as_str().expect("an id").to_owned()
    }

    /// Has it send its webhooks to an address.
    pub async fn send_webhooks_to(&self, url: &str, secret: &str) {
        let body = json!({ "url": url, "secret": secret });
        let request = self.client.post(format!("{}/_config/webhooks/1", self.url)).json(&body);
        let answer = request.send().await.expect("localstripe answers");
        assert!(answer.status().is_success(), "{answer:?}");
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Value {
        let answer = request.bearer_auth(KEY).send().await.expect("localstripe answers");
        assert!(answer.status().is_success(), "{answer:?}");
        answer.json().await.expect("JSON")
    }

    /// Whether each of these orders, and no other, has been charged, once; whether each of those that
    /// are marked has been given back, once and whole, and no other.
    pub async fn has_charged(&self, orders: &[(&str, bool)]) {
        let (intents, charges, refunds) = (
            self.all("payment_intents").await,
            self.all("charges").await,
            self.all("refunds").await,
        );
        let stand: Vec<&Value> =
            charges.iter().filter(|charge| charge["status"] == "succeeded").collect();
        assert_eq!(stand.len(), orders.len(), "{stand:#?}");
        let given_back = orders.iter().filter(|(_, refunded)| *refunded).count();
        assert_eq!(refunds.len(), given_back, "{refunds:#?}");
        for (order, refunded) in orders {
            let key = format!("charge-{order}");
            let of_order = |intent: &&Value| {
                intent["metadata"]["millrace_key"] == *key && intent["status"] == "succeeded"
            };
            let intent: Vec<&Value> = intents.iter().filter(of_order).collect();
            assert_eq!(intent.len(), 1, "{order}: {intents:#?}");
            let id = &intent[0]["id"];
            let charge = stand.iter().filter(|charge| charge["payment_intent"] == *id);
            let charge: Vec<&&Value> = charge.collect();
            assert_eq!(charge.len(), 1, "{order}: {stand:#?}");
            assert_eq!(charge[0]["amount"], intent[0]["amount"]);
            let back = refunds.iter().filter(|refund| refund["charge"] == charge[0]["id"]);
            let back: Vec<&Value> = back.collect();
            assert_eq!(back.len(), usize::from(*refunded), "{order}: {refunds:#?}");
            assert!(back.iter().all(|back| back["amount"] == charge[0]["amount"]), "{back:#?}");
        }
    }
}

/// The folder with localstripe; nothing where it cannot be had.
fn folder() -> Option<PathBuf> {
    if !there(&[&["python3"], &["python3", "-m", "pip"]]) {
        return None;
    }
    let pip = |folder: &Path, list: &str, path: &Path| {
        let mut pip = std::process::Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        pip.args(["--require-hashes", "--only-binary", ":all:", "--no-binary", "localstripe"]);
        pip.args(["--no-build-isolation", "--target"]).arg(folder).args(["-r", list]);
        pip.env("PYTHONPATH", path);
        pip
    };
    // localstripe comes as source alone: what builds it is pinned as well.
    let builder = installed("setuptools", &["setuptools.txt"], |folder| {
        pip(folder, "setuptools.txt", folder)
    });
    let folder = builder.and_then(|builder| {
        let files = ["stripe.py", "stripe.txt"];
        installed("stripe", &files, |folder| pip(folder, "stripe.txt", &builder))
    });
    folder.map_err(|error| not_tested(&error)).ok()
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is not passed on; this is the answer.
    Answer(u16),
    /// It is passed on, and its answer never comes.
    NoAnswer,
    /// It is passed on, and the connection is closed before the answer.
    Cut,
    /// It never arrives, and nobody says so.
    Lost,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method and path: `POST /v1/refunds`.
    pub what: String,
    /// Its idempotency key.
    pub key: Option<String>,
}

struct Rule {
    part: String,
    fault: Fault,
    times: usize,
}

#[derive(Default)]
struct Inner {
    rules: Vec<Rule>,
    seen: Vec<Seen>,
}

/// A line to a server. It ends when this is dropped.
pub struct Unreliable {
    url: String,
    inner: Arc<Mutex<Inner>>,
    task: AbortHandle,
}

impl Drop for Unreliable {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Unreliable {
    /// A line that passes everything on.
    pub async fn to(target: &str) -> Self {
        let inner = Arc::new(Mutex::new(Inner::default()));
        let shared = (Arc::clone(&inner), target.to_owned(), reqwest::Client::new());
        let router = Router::new().fallback(pass).with_state(shared);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, inner, task: serving.abort_handle() }
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Does this to the next requests whose method and path have `part` in them, so often.
    pub fn fail(&self, part: &str, times: usize, fault: Fault) {
        let part = part.to_owned();
        self.inner.lock().expect("no panic").rules.push(Rule { part, fault, times });
    }

    /// Passes everything on again.
    pub fn mend(&self) {
        self.inner.lock().expect("no panic").rules.clear();
    }

    /// The requests that came, with `part` in their method and path.
    pub fn seen(&self, part: &str) -> Vec<Seen> {
        let seen = &self.inner.lock().expect("no panic").seen;
        seen.iter().filter(|seen| seen.what.contains(part)).cloned().collect()
    }
}

type Shared = (Arc<Mutex<Inner>>, String, reqwest::Client);

async fn pass(State((inner, target, client)): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().expect("a path").to_string();
    let what = format!("{} {path}", parts.method);
    let fault = {
        let mut inner = inner.lock().expect("no panic");
        let key = parts.headers.get("idempotency-key");
        let key = key.map(|key| key.to_str().expect("text").to_owned());
        inner.seen.push(Seen { what: what.clone(), key });
        let rule = inner.rules.iter_mut().find(|rule| rule.times > 0 && what.contains(&rule.part));
        rule.map(|rule| {
            rule.times -= 1;
            rule.fault
        })
    };
    match fault {
        Some(Fault::Answer(status)) => {
            let body = json!({ "error": { "type": "api_error", "message": "by the test" } });
            let status = StatusCode::from_u16(status).expect("a status");
            return (status, axum::Json(body)).into_response();
        }
        Some(Fault::Lost) => return never().await,
        _ => {}
    }
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    let answer = forward(&client, &target, (parts.method, &path, &parts.headers), body).await;
    match fault {
        Some(Fault::NoAnswer) => never().await,
        // The length is promised and not kept.
        Some(Fault::Cut) => {
            let nothing = futures_util::stream::once(async { Err::<Bytes, _>("the line is cut") });
            let body = Body::from_stream(nothing);
            ([("content-length", "1000")], body).into_response()
        }
        _ => answer,
    }
}

async fn never() -> Response {
    tokio::time::sleep(Duration::from_mins(10)).await;
    StatusCode::GATEWAY_TIMEOUT.into_response()
}

async fn forward(
    client: &reqwest::Client,
    target: &str,
    (method, path, headers): (Method, &str, &HeaderMap),
    body: Bytes,
) -> Response {
    let mut request = client.request(method, format!("{target}{path}"));
    for name in ["authorization", "content-type"] {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value.as_bytes());
        }
    }
    let answer = request.body(body).send().await.expect("localstripe answers");
    let status = answer.status().as_u16();
    let body = answer.bytes().await.expect("a whole answer");
    let status = StatusCode::from_u16(status).expect("a status");
    (status, [("content-type", "application/json")], body).into_response()
}
