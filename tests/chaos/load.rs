//! The load: clients over HTTP and NATS that do what customers and shops do, from a seed, and
//! remember what was acknowledged.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use millrace_shared::access::Principal;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::world::World;
use crate::harness::{eventually, usd};

/// Customers; each second one has a credit limit that it comes near.
const CUSTOMERS: u32 = 6;
/// Products; the first are hot and scarce.
const PRODUCTS: u32 = 6;
const HOT: u32 = 2;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
const TOKENS: [(&str, u32); 8] = [
    ("tok_ok", 50),
    ("tok_declined", 6),
    ("tok_insufficient_funds", 3),
    ("tok_slow", 5),
    ("tok_flaky", 8),
    ("tok_timeout", 10),
    ("tok_lost", 3),
    ("account", 25),
];

/// What all clients know together.
#[derive(Default)]
pub struct Known {
    /// What was acknowledged.
    pub acknowledged: Vec<Acknowledged>,
    /// Orders whose command was refused "without any effect", and not sent again.
    pub refused: Vec<String>,
    orders: Vec<String>,
    keyed: Vec<(String, Value)>,
}

/// A command whose storage was confirmed to a client.
pub struct Acknowledged {
    /// By what its outcome is asked for: command id or stream sequence.
    pub command: String,
    pub kind: &'static str,
    /// The order's id, as the answer says.
    pub order: Option<String>,
    /// Customer and idempotency key.
    pub key: Option<(String, String)>,
    /// The outcome, where the answer told it.
    pub accepted: Option<bool>,
    /// When, from the start of the load.
    pub at: Duration,
}

impl fmt::Display for Acknowledged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, kind, order, key, accepted, at } = self;
        let at = at.as_secs_f64();
        write!(f, "{kind} {command} at {at:.3} s: {order:?}, key {key:?}, accepted {accepted:?}")
    }
}

/// One client.
pub struct Client {
    rng: ChaCha8Rng,
    http: reqwest::Client,
    edges: Vec<String>,
    /// Nothing for one that speaks HTTP.
    nats: Option<async_nats::Client>,
    known: Arc<Mutex<Known>>,
    start: Instant,
}

/// What is sent.
struct Request {
    kind: &'static str,
    method: reqwest::Method,
    path: String,
    body: Value,
    key: Option<String>,
    wait: bool,
}

impl Client {
    /// The clients of a world: `count`, of which every third speaks NATS.
    pub async fn all(world: &World, seed: u64, count: u64) -> (Vec<Self>, Arc<Mutex<Known>>) {
        let known = Arc::new(Mutex::new(Known::default()));
        let nats = world
            .of_clients()
            .nats
            .of(Principal::Service)
            .connect("clients")
            .await
            .expect("a connection");
        let client = |number: u64| Self {
            rng: ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(number)),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(PATIENCE)
                .build()
                .expect("a client"),
            edges: world.edges(),
            nats: number.is_multiple_of(3).then(|| nats.clone()),
            known: Arc::clone(&known),
            start: Instant::now(),
        };
        ((0..count).map(client).collect(), known)
    }

    /// Registers the customers and defines the products; they are there when it returns.
    pub async fn open_shop(&mut self) {
        for number in 0..CUSTOMERS {
            let mut body = json!({ "customerId": format!("c{number}"), "name": "Somebody" });
            if number.is_multiple_of(2) {
                body["creditLimit"] = usd(5_000);
            }
            let register = request("customer.register", "/v1/customers", body);
            while !self.send(&register).await {}
            self.is_there(&format!("/v1/customers/c{number}")).await;
        }
        for number in 0..PRODUCTS {
            let stock = if number < HOT { 25 } else { 100_000 };
            while !self.define(number, 250, stock).await {}
            self.is_there(&format!("/v1/products/p{number}")).await;
        }
    }

    async fn is_there(&self, path: &str) {
        eventually(path, async || {
            let answer = self.http.get(format!("{}{path}", self.edges[0])).send().await.ok()?;
            (answer.status() == 200).then_some(())
        })
        .await;
    }

    /// Acts until the time has come.
    pub async fn act_until(mut self, end: Instant) {
        while Instant::now() < end {
            self.act().await;
            sleep(Duration::from_millis(self.rng.random_range(0..120))).await;
        }
    }

    async fn act(&mut self) {
        match self.rng.random_range(0..100) {
            0..50 => self.place().await,
            50..61 => self.step("order.cancel", "cancel", json!({})).await,
            61..73 => {
                let shipment = json!({ "carrier": "Post", "trackingNumber": "1" });
                self.step("order.ship", "ship", shipment).await;
            }
            73..79 => self.step("order.deliver", "deliver", json!({})).await,
            79..86 => self.step("order.refund", "refund", json!({})).await,
            86..93 => {
                let product = format!("p{}", self.rng.random_range(0..HOT));
                let body = json!({ "productId": product, "quantity": self.rng.random_range(1..9) });
                let path = format!("/v1/products/{product}/restock");
                self.send(&request("product.restock", path, body)).await;
            }
            93..97 => {
                let customer = format!("c{}", self.rng.random_range(0..CUSTOMERS / 2) * 2);
                let limit = usd(self.rng.random_range(3_000..9_000));
                let body = json!({ "customerId": customer, "creditLimit": limit });
                let path = format!("/v1/customers/{customer}/credit-limit");
                let mut request = request("customer.set-credit-limit", path, body);
                request.method = reqwest::Method::PUT;
                self.send(&request).await;
            }
            _ => {
                let (number, price) =
                    (self.rng.random_range(0..PRODUCTS), self.rng.random_range(200..300));
                self.define(number, price, 0).await;
            }
        }
    }

    async fn define(&mut self, number: u32, price: i64, stock: u32) -> bool {
        let product = format!("p{number}");
        let body = json!({
            "productId": product, "name": "Thing", "brand": "Acme", "category": "Things",
            "price": usd(price), "initialStock": stock,
        });
        let mut request = request("product.define", format!("/v1/products/{product}"), body);
        request.method = reqwest::Method::PUT;
        self.send(&request).await
    }

    fn order(&mut self) -> Value {
        let rng = &mut self.rng;
        let customer = format!("c{}", rng.random_range(0..CUSTOMERS));
        let mut products: Vec<u32> = (0..PRODUCTS).collect();
        let lines: Vec<Value> = (0..rng.random_range(1..4))
            .map(|_| {
                let product = products.swap_remove(rng.random_range(0..products.len()));
                let id = format!("p{product}");
                json!({ "productId": id, "quantity": rng.random_range(1..4) })
            })
            .collect();
        let (token, _) = TOKENS.choose_weighted(rng, |(_, weight)| *weight).expect("a token");
        let payment = match *token {
            "account" => json!({ "method": "account" }),
            token => json!({ "method": "card", "token": token }),
        };
        json!({ "customerId": customer, "lines": lines, "payment": payment })
    }

    async fn place(&mut self) {
        let mut body = self.order();
        let mut key = None;
        if self.rng.random_bool(0.4) {
            let again = self.rng.random_bool(0.5);
            let used = self.known.lock().expect("no panic").keyed.choose(&mut self.rng).cloned();
            key = Some(format!("k{:016x}", self.rng.random::<u64>()));
            if let Some((old, sent)) = used.filter(|_| again) {
                // The same once more; at times with something else in it.
                key = Some(old);
                if self.rng.random_bool(0.8) {
                    body = sent;
                } else {
                    body["customerId"] = sent["customerId"].clone();
                }
            }
        } else {
            let id = uuid::Builder::from_random_bytes(self.rng.random()).into_uuid();
            body["orderId"] = json!(id);
        }
        if let Some(key) = &key {
            self.known.lock().expect("no panic").keyed.push((key.clone(), body.clone()));
        }
        let mut request = request("order.place", "/v1/orders", body);
        (request.key, request.wait) = (key, self.rng.random_bool(0.1));
        self.send(&request).await;
    }

    async fn step(&mut self, kind: &'static str, step: &str, mut body: Value) {
        let order = {
            let known = self.known.lock().expect("no panic");
            // Mostly one of the last.
            let from = known.orders.len().saturating_sub(40);
            known.orders[from..].choose(&mut self.rng).cloned()
        };
        let Some(order) = order else { return };
        let path = format!("/v1/orders/{order}/{step}");
        body["orderId"] = json!(order);
        self.send(&request(kind, path, body)).await;
    }

    /// Sends; what has a key is sent again until it is acknowledged, three times at the most.
    async fn send(&mut self, request: &Request) -> bool {
        let tries = if request.key.is_some() { 3 } else { 1 };
        for _ in 0..tries {
            let sent = if let Some(nats) = &self.nats {
                self.publish(&nats.clone(), request).await
            } else {
                self.post(request).await
            };
            if sent {
                return true;
            }
            sleep(Duration::from_millis(self.rng.random_range(50..500))).await;
        }
        false
    }

    async fn post(&mut self, request: &Request) -> bool {
        let edge = self.edges.choose(&mut self.rng).expect("an edge");
        let mut body = request.body.clone();
        if request.path != "/v1/orders" && request.path != "/v1/customers" {
            // The path names it.
            for name in ["orderId", "productId", "customerId"] {
                body.as_object_mut().expect("an object").remove(name);
            }
        }
        let mut sent = self.http.request(request.method.clone(), format!("{edge}{}", request.path));
        if let Some(key) = &request.key {
            sent = sent.header("Idempotency-Key", key);
        }
        if request.wait {
            sent = sent.header("Prefer", "wait=3");
        }
        let Ok(answer) = sent.json(&body).send().await else { return false };
        let status = answer.status().as_u16();
        let Ok(answer) = answer.json::<Value>().await else { return false };
        let accepted = match (status, answer["reason"].as_str()) {
            (202, _) => None,
            (200 | 201, _) => Some(true),
            // The refusal of a key is no command's outcome; that of a card comes after it.
            (422, Some("idempotency_key_reused" | "payment_declined")) => return true,
            (422, Some(_)) => Some(false),
            (503, _) if answer["type"] != "/problems/outcome-unknown" => {
                if let (Some(id), None) = (request.body["orderId"].as_str(), &request.key)
                    && request.kind == "order.place"
                {
                    self.known.lock().expect("no panic").refused.push(id.to_owned());
                }
                return false;
            }
            (400 | 500, _) => panic!("{} {}: {answer}", request.path, request.body),
            _ => return status < 500,
        };
        let text = |name: &str| answer[name].as_str().map(str::to_owned);
        if let Some(command) = text("commandId") {
            self.acknowledged(request, command, text("orderId"), accepted);
        }
        true
    }

    async fn publish(&self, nats: &async_nats::Client, request: &Request) -> bool {
        let subject = format!("chaos.cmd.{}", request.kind);
        let mut headers = HeaderMap::new();
        if let Some(key) = &request.key {
            headers.insert("Idempotency-Key", key.as_str());
        }
        let payload = request.body.to_string().into();
        let Ok(answer) = nats.request_with_headers(subject, headers, payload).await else {
            return false;
        };
        let ack: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
        let Some(sequence) = ack["seq"].as_u64() else { return false };
        let order = request.body["orderId"].as_str().map(str::to_owned);
        self.acknowledged(request, sequence.to_string(), order, None);
        true
    }

    fn acknowledged(
        &self,
        request: &Request,
        command: String,
        order: Option<String>,
        accepted: Option<bool>,
    ) {
        let customer = request.body["customerId"].as_str().unwrap_or_default().to_owned();
        let mut known = self.known.lock().expect("no panic");
        if request.kind == "order.place" {
            known.orders.extend(order.clone());
        }
        known.acknowledged.push(Acknowledged {
            command,
            kind: request.kind,
            order,
            key: request.key.clone().map(|key| (customer, key)),
            accepted,
            at: self.start.elapsed(),
        });
    }
}

fn request(kind: &'static str, path: impl Into<String>, body: Value) -> Request {
    let (path, method) = (path.into(), reqwest::Method::POST);
    Request { kind, method, path, body, key: None, wait: false }
}
