//! Who may what over HTTP: without a token nothing that is anybody's, with a customer's only its own,
//! and what is somebody else's cannot be told from what is not there.

use std::path::PathBuf;
use std::time::Duration;

use millrace_api::auth::Role;
use millrace_api::auth::config::{AuthConfig, TokenConfig};
use millrace_api::auth::token::issue;
use millrace_api::{ApiConfig, Server};
use reqwest::header::{AUTHORIZATION, HOST};
use serde_json::Value;

use crate::harness::{Answer, System, card_order};
use crate::past::Beside;

mod limits;
mod others;
mod routes;
mod tokens;

/// The secret of the tests' tokens.
pub const SECRET: &str = "a secret of the tests, which is long enough";

/// A token that is good for an hour.
pub fn token(subject: &str, role: Role) -> String {
    let (expected, hour) = (TokenConfig::default().expected(), Duration::from_hours(1));
    issue(SECRET.as_bytes(), &expected, subject, role, hour).expect("a token")
}

/// An edge at which callers have to sign in.
pub struct Guarded<'s> {
    system: &'s System,
    edge: Beside,
    client: reqwest::Client,
}

impl<'s> Guarded<'s> {
    /// One that takes the tokens of [`token`].
    pub async fn open(system: &'s System) -> Self {
        Self::with(system, AuthConfig::default().with_secret(SECRET)).await
    }

    /// One with these settings.
    pub async fn with(system: &'s System, auth: AuthConfig) -> Self {
        let config = &system.config;
        let edge =
            ApiConfig::new(([127, 0, 0, 1], 0).into(), config.nats.clone(), config.redis.clone())
                .with_operator_routes(config.postgres.clone())
                .with_auth(auth);
        Self { system, edge: Beside::open(edge).await, client: reqwest::Client::new() }
    }

    /// Its address.
    pub fn http(&self) -> &str {
        &self.edge.http
    }

    fn request(&self, method: &str, path: &str, token: Option<&str>) -> reqwest::RequestBuilder {
        let method = method.to_uppercase().parse().expect("a method");
        let request = self.client.request(method, format!("{}{path}", self.edge.http));
        match token {
            Some(token) => request.header(AUTHORIZATION, format!("Bearer {token}")),
            None => request,
        }
    }

    /// GET
    pub async fn get(&self, path: &str, token: Option<&str>) -> Answer {
        self.system.send(self.request("GET", path, token)).await
    }

    async fn post(&self, path: &str, token: Option<&str>, body: &Value) -> Answer {
        let request = self.request("POST", path, token).header("Prefer", "wait=20");
        self.system.send(request.json(body)).await
    }

    /// The head of an answer, however long its body goes on.
    async fn status(&self, method: &str, path: &str, token: Option<&str>) -> u16 {
        let mut request = self.request(method, path, token);
        if method != "get" {
            request = request.json(&serde_json::json!({}));
        }
        request.send().await.expect("an answer").status().as_u16()
    }

    /// Ends it.
    pub async fn close(self) {
        self.edge.close().await;
    }
}

/// How many commands were stored so far.
async fn commands(system: &System) -> u64 {
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let stream = jetstream.get_stream(system.topology.commands_stream()).await;
    stream.expect("the stream").cached_info().state.last_sequence
}

/// A file of this run.
fn file(name: &str, text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "{}-{}-{name}",
        std::process::id(),
        uuid::Uuid::now_v7()
    ));
    std::fs::write(&path, text).expect("a file");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_signs_in_only_this_machine_is_listened_to() {
    let system = System::without_workers().await;
    let config = |at: &str| {
        let (nats, redis) = (system.config.nats.clone(), system.config.redis.clone());
        ApiConfig::new(at.parse().expect("an address"), nats, redis)
    };
    for open in ["0.0.0.0:0", "[::]:0"] {
        let refused = Server::bind(config(open)).await.expect_err("everybody would be let in");
        let said = format!("{refused:#}");
        for way in ["--jwt-secret-file", "--jwks", "--api-keys", "127.0.0.1"] {
            assert!(said.contains(way), "{said}");
        }
    }
    let auth = AuthConfig::default().with_secret(SECRET);
    assert!(Server::bind(config("0.0.0.0:0").with_auth(auth.clone())).await.is_ok());
    let trial = config("127.0.0.1:0")
        .with_auth(auth)
        .with_operator_routes(system.config.postgres.clone())
        .with_trial();
    let refused = Server::bind(trial).await.expect_err("a contradiction");
    assert!(format!("{refused:#}").contains("--trial"), "{refused:#}");
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_signs_in_a_page_whose_name_leads_to_this_machine_gets_and_does_nothing() {
    let system = System::without_workers().await;
    let client = reqwest::Client::new();
    let order = async |http: &str, host: &str| {
        let request = client.post(format!("{http}/v1/orders")).header(HOST, host);
        system.send(request.json(&card_order("ann", "box", 1, "tok_ok"))).await
    };
    let before = commands(&system).await;
    let refused = order(&system.http, "rebound.example:8080").await;
    assert_eq!(refused.status, 421, "{refused:?}");
    assert_eq!(refused.text("/type"), "/problems/misdirected-request");
    assert!(refused.text("/detail").contains("http://localhost"), "{refused:?}");
    for path in ["/v1/products", "/livez", "/metrics", "/openapi.json", "/docs/", "/"] {
        let request = client.get(format!("{}{path}", system.http)).header(HOST, "rebound.example");
        assert_eq!(system.send(request).await.status, 421, "{path}");
    }
    assert_eq!(commands(&system).await, before);
    assert_eq!(order(&system.http, "localhost:8080").await.status, 202);
    // With sign-in the api has whatever name its shop gives it.
    let edge = Guarded::open(&system).await;
    assert_eq!(order(edge.http(), "shop.example").await.status, 401);
    edge.close().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_says_how_browsers_are_to_take_it() {
    let system = System::start().await;
    let edge = Guarded::open(&system).await;
    for path in ["/v1/products", "/v1/orders", "/nothing", "/", "/livez", "/openapi.json", "/docs/"]
    {
        let answer = edge.get(path, None).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("referrer-policy"), "no-referrer", "{path}");
        let policy = answer.header("content-security-policy");
        assert!(policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
        assert_eq!(answer.header("strict-transport-security"), "", "{path}: no TLS is spoken");
    }
    edge.close().await;
    system.stop().await;
}
