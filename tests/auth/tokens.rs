//! Tokens and keys as they come over HTTP; what a token must say is told by the tests of its reader.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::Utc;
use millrace_api::auth::keys::make;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::harness::eventually;
use crate::process::{Process, folder, run, settings};
use crate::sealed::{authority, certificate, seal};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_taken_is_answered_with_the_reason() {
    let system = System::without_workers().await;
    let edge = Guarded::open(&system).await;
    let expected = TokenConfig::default().expected();
    let ended = issue(SECRET.as_bytes(), &expected, "ann", Role::Customer, Duration::ZERO);
    let ended = ended.expect("a token");
    let good = token("ann", Role::Customer);
    let (says, _) = good.rsplit_once('.').expect("three parts");
    let (_, says) = says.split_once('.').expect("three parts");
    let none = format!("{}.{says}.", BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#));
    // Clocks may differ by as much.
    tokio::time::sleep(Duration::ZERO).await;
    let long = format!("{good}{}", "x".repeat(9_000));
    for (token, reason) in [
        (none.as_str(), "cannot be read"),
        ("abc", "cannot be read"),
        (long.as_str(), "longer than"),
        ("millrace_abc", "no such API key"),
        (&format!("{good}x"), "no key that is known"),
    ] {
        // Also where none is needed: who sends one is to know that it is wrong.
        for path in ["/v1/customers/ann", "/v1/products"] {
            let answer = edge.get(path, Some(token)).await;
            assert_eq!(answer.status, 401, "{reason}");
            assert!(answer.text("/detail").contains(reason), "{answer:?}");
            assert_eq!(answer.text("/type"), "/problems/unauthorized");
            assert!(answer.header("www-authenticate").contains("error=\"invalid_token\""));
            assert!(!answer.body.to_string().contains(token), "a token is never told");
        }
    }
    let basic = edge.request("GET", "/v1/customers/ann", None).basic_auth("ann", Some("secret"));
    assert_eq!(system.send(basic).await.status, 401);
    let mut strict = AuthConfig::default().with_secret(SECRET);
    strict.tokens.jwt_skew = 0;
    let strict = Guarded::with(&system, strict).await;
    let answer = strict.get("/v1/customers/ann", Some(&ended)).await;
    assert!(answer.status == 401 && answer.text("/detail").contains("expired"), "{answer:?}");
    strict.close().await;
    edge.close().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn api_keys_come_and_go_with_their_file() {
    let system = System::start().await;
    system.register("ann", None).await;
    let (shop, ops) = (make("shop", Role::Service), make("ops", Role::Operator));
    let (shop, ops) = (shop.expect("a key"), ops.expect("a key"));
    let path = file("keys", &format!("# of the tests\n{}\n", shop.line));
    let edge = Guarded::with(&system, AuthConfig::default().with_keys(path.clone())).await;
    let status = async |path: &str, key: &str| edge.get(path, Some(key)).await.status;
    assert_eq!(status("/v1/customers/ann", &shop.key).await, 200);
    assert_eq!(status("/v1/ops/parked", &shop.key).await, 403);
    assert_eq!(status("/v1/ops/parked", &ops.key).await, 401);
    // Without a secret no other tokens are taken.
    assert_eq!(status("/v1/customers/ann", &token("ann", Role::Operator)).await, 401);
    std::fs::write(&path, format!("{}\n", ops.line)).expect("the file");
    eventually("the new key is known", async || {
        (status("/v1/ops/parked", &ops.key).await == 200).then_some(())
    })
    .await;
    assert_eq!(status("/v1/customers/ann", &shop.key).await, 401);
    // A file that cannot be read takes nobody's key away.
    std::fs::write(&path, "what is this?\n").expect("the file");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(status("/v1/ops/parked", &ops.key).await, 200);
    edge.close().await;
    system.stop().await;
}

/// Who issues tokens: keys that sign, and a server that publishes some of them.
struct Issuer {
    url: String,
    published: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    serving: tokio::task::JoinHandle<()>,
}

impl Issuer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
        let (published, asked) = (Arc::new(Mutex::new(String::new())), Arc::default());
        let serving = tokio::spawn({
            let (published, asked) = (Arc::clone(&published), Arc::clone(&asked));
            async move {
                loop {
                    let (mut stream, _) = listener.accept().await.expect("a connection");
                    let mut request = [0; 4096];
                    let read = stream.read(&mut request).await.expect("a request");
                    if read == 0 {
                        continue;
                    }
                    AtomicUsize::fetch_add(&asked, 1, Ordering::Relaxed);
                    let body = published.lock().expect("the keys").clone();
                    let status = if body.is_empty() { "500 Oops" } else { "200 OK" };
                    let answer = format!(
                        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                        body.len()
                    );
                    stream.write_all(answer.as_bytes()).await.expect("an answer");
                }
            }
        });
        Self { url, published, asked, serving }
    }

    fn publish(&self, keys: &[&Signer]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.public()).collect();
        *self.published.lock().expect("the keys") = json!({ "keys": keys }).to_string();
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

struct Signer {
    name: &'static str,
    pair: Ed25519KeyPair,
}

impl Signer {
    fn new(name: &'static str) -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
        let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).expect("a key");
        Self { name, pair }
    }

    fn public(&self) -> Value {
        let x = BASE64_URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({ "kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": self.name, "x": x })
    }

    fn token(&self) -> String {
        let header = json!({ "alg": "EdDSA", "kid": self.name });
        let says = json!({ "iss": "millrace", "aud": "millrace", "sub": "ops",
            "role": "operator", "exp": Utc::now().timestamp() + 600 });
        let [header, says] =
            [header, says].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string()));
        let message = format!("{header}.{says}");
        let signature = BASE64_URL_SAFE_NO_PAD.encode(self.pair.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn published_keys_are_followed_when_they_change_and_kept_while_they_are_away() {
    let system = System::without_workers().await;
    let issuer = Issuer::start().await;
    let [first, second, third] = ["first", "second", "third"].map(Signer::new);
    let place = issuer.url.parse().expect("an address");
    let edge = Guarded::with(&system, AuthConfig::default().with_jwks(place)).await;
    let answer = async |signer: &Signer| edge.get("/v1/ops/pipeline", Some(&signer.token())).await;
    // Until the keys could be read nothing can be said of a token.
    let away = answer(&first).await;
    assert_eq!(away.status, 503, "{away:?}");
    assert_eq!(away.header("retry-after"), "1");
    issuer.publish(&[&first]);
    eventually("the keys are read", async || (answer(&first).await.status == 200).then_some(()))
        .await;
    assert_eq!(answer(&second).await.status, 401);
    // It was asked for just now, and is not asked for by every token that somebody makes up.
    let asked = issuer.asked();
    issuer.publish(&[&first, &second]);
    for _ in 0..20 {
        assert_eq!(answer(&third).await.status, 401);
    }
    assert!(issuer.asked() <= asked + 1, "{} after {asked}", issuer.asked());
    *issuer.published.lock().expect("the keys") = String::new();
    assert_eq!(answer(&first).await.status, 200, "the keys from before stay");
    edge.close().await;
    // Another edge, which has not been asked yet: a new key is known at once.
    issuer.publish(&[&first]);
    let place = issuer.url.parse().expect("an address");
    let edge = Guarded::with(&system, AuthConfig::default().with_jwks(place)).await;
    let answer =
        async |signer: &Signer| edge.get("/v1/ops/pipeline", Some(&signer.token())).await.status;
    eventually("the keys are read", async || (answer(&first).await == 200).then_some(())).await;
    issuer.publish(&[&second]);
    assert_eq!(answer(&second).await, 200, "for a new key they are read again");
    assert_eq!(
        answer(&first).await,
        401,
        "and what was taken away is not taken, remembered or not"
    );
    issuer.serving.abort();
    edge.close().await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_read_over_tls_from_who_is_vouched_for_alone_and_followed_when_they_change() {
    let system = System::without_workers().await;
    let issuer = Issuer::start().await;
    let [first, second] = ["first", "second"].map(Signer::new);
    issuer.publish(&[&first]);
    let folder = folder("jwks");
    let (vouching, trusted) = authority(&folder, "ca.pem");
    let (_, stranger) = authority(&folder, "stranger.pem");
    let address = issuer.url.strip_prefix("http://").and_then(|it| it.strip_suffix("/keys"));
    let of = certificate(&vouching, &folder);
    let sealed = seal(&of, address.expect("an address"), false).await;
    // A process of its own: which certificates are trusted is a matter of its environment.
    let edge = |trusted: PathBuf| {
        let mut settings = settings(&system.config);
        settings.push(("MILLRACE_JWKS", format!("https://{sealed}/keys")));
        settings.push(("SSL_CERT_FILE", trusted.display().to_string()));
        Process::start(&["api", "--http", "127.0.0.1:0", "--operator-routes"], &settings)
    };
    let client = reqwest::Client::new();
    let status = async |url: &str, signer: &Signer| {
        let request = client.get(format!("{url}/v1/ops/pipeline")).bearer_auth(signer.token());
        system.send(request).await.status
    };

    let mut deceived = edge(stranger);
    let url = deceived.http().await;
    assert_eq!(status(&url, &first).await, 503);
    deceived.says("the keys of tokens cannot be read").await;
    let said = deceived.end(Signal::TERM).await.errors;
    for part in ["invalid peer certificate", "SSL_CERT_FILE", &sealed.to_string()] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(issuer.asked(), 0);

    let mut edge = edge(trusted);
    let url = edge.http().await;
    eventually("the keys are read", async || (status(&url, &first).await == 200).then_some(()))
        .await;
    issuer.publish(&[&second]);
    assert_eq!(status(&url, &second).await, 200, "for a new key they are read again");
    assert_eq!(status(&url, &first).await, 401, "what was taken away is not taken");
    assert_eq!(edge.end(Signal::TERM).await.code, Some(0));
    issuer.serving.abort();
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_command_line_makes_is_taken_and_its_tools_sign_in_with_it() {
    let system = System::start().await;
    let made = run(&["key", "new", "ops", "--role", "operator"], &[]).await;
    let words: Vec<&str> = made.output.split_whitespace().collect();
    let key = words.iter().find(|word| word.starts_with("millrace_")).expect("a key");
    let line = made.output.lines().find(|line| line.trim().starts_with("ops operator "));
    let keys = file("keys", line.expect("its line"));
    let auth = AuthConfig::default().with_secret(SECRET).with_keys(keys);
    let edge = Guarded::with(&system, auth).await;
    assert_eq!(edge.get("/v1/ops/parked", Some(key)).await.status, 200);
    let secret = [("MILLRACE_JWT_SECRET", SECRET.to_owned())];
    let made = run(&["token", "new", "shop", "--role", "service"], &secret).await;
    let service = made.output.trim();
    assert_eq!(edge.get("/v1/customers/ann", Some(service)).await.status, 404, "{made:?}");
    let refused = run(&["token", "new", "shop", "--role", "service"], &[]).await;
    assert!(refused.code != Some(0) && refused.errors.contains("--jwt-secret-file"), "{refused:?}");

    eventually("the edge has read the catalogue", async || {
        (edge.get("/readyz", None).await.text("/status") == "ok").then_some(())
    })
    .await;
    let rows =
        "productId,name,brand,category,price,currency,stock\npen,Pen,Acme,Office,199,USD,9\n";
    let (rows, key) = (file("rows.csv", rows), file("key", key));
    let [rows, key] = [&rows, &key].map(|path| path.to_str().expect("a path").to_owned());
    let import = ["import", &rows, "--target", edge.http()];
    let refused = run(&import, &[]).await;
    assert!(refused.code != Some(0) && refused.errors.contains("--token-file"), "{refused:?}");
    let by_service = [("MILLRACE_TOKEN", service.to_owned())];
    let refused = run(&import, &by_service).await;
    assert!(refused.code != Some(0) && refused.errors.contains("operator"), "{refused:?}");
    let done = run(&[&import[..], &["--token-file", &key]].concat(), &[]).await;
    assert!(done.code == Some(0) && done.output.contains("1 sent"), "{done:?}");
    system.settle().await;
    let actor: Option<String> =
        sqlx::query_scalar("select actor from ledger.decisions where subject_id = 'pen'")
            .fetch_one(&system.pool)
            .await
            .expect("the decision");
    assert_eq!(actor.as_deref(), Some("key:ops"));
    edge.close().await;
    system.stop().await;
}
