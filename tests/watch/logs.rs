//! What is logged: one line for a failure, with all that caused it and its trace, and nothing about
//! persons.

use serde_json::{Value, json};

use super::{Roles, publish_refused};
use crate::harness::{System, eventually};
use crate::process::Process;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_one_line_with_its_whole_cause_and_trace_and_nothing_about_persons() {
    let system = System::without_workers().await;
    // All that can be said, not only what is said usually.
    let more = [("MILLRACE_LOG", "debug,hyper=info,async_nats=info,sqlx=info".to_owned())];
    let roles = Roles::start(&system, &more).await;
    let (name, token) = ("Zebedee Quillfeather", "tok_secret_4242");
    let customer = json!({ "customerId": "zq", "name": format!("{name} <zq@example.org>") });
    let answer = system.post_and_wait("/v1/customers", &customer).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    system.define("mug", 500, 20).await;
    let order = json!({
        "customerId": "zq",
        "lines": [{ "productId": "mug", "quantity": 1 }],
        "payment": { "method": "card", "token": token },
    });
    let url = roles.url("/v1/orders");
    let traced = system.request_to("POST", &url).header("Prefer", "wait=20");
    let traced = traced.header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"));
    // Declined: the sandbox does not know the token.
    let refused = system.send(traced.json(&order)).await;
    assert_eq!(refused.status, 422, "{refused:?}");
    // A command with a name in it that no rule lets through, and an event that PostgreSQL refuses.
    let mut wrong = order.clone();
    wrong["payment"]["holder"] = json!(name);
    system.publish("order.place", &wrong).await;
    for field in ["customerId", "lines", "payment"] {
        let mut wrong = order.clone();
        wrong[field] = json!(name);
        system.publish("order.place", &wrong).await;
    }
    system.publish_raw("customer.register", format!("{name}: {token}").into_bytes()).await;
    publish_refused(&system, &refused.text("/orderId")).await;

    let parked = eventually("it is parked", async || {
        let said = roles.said();
        let mut parked = said.lines().filter(|line| line.contains("\"parked\""));
        parked.find(|line| line.contains("\"persistence\"")).map(str::to_owned)
    })
    .await;
    let said = roles.said();
    let lines: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect();
    let parked: Value = serde_json::from_str(&parked).expect("JSON");
    assert_eq!(parked["level"], "ERROR");
    assert_eq!(parked["worker"], "persistence");
    let reason = parked["reason"].as_str().expect("a reason");
    // From what failed down to what PostgreSQL said.
    assert!(reason.contains("unsupported Unicode escape sequence"), "{parked}");
    let failed: Vec<&Value> =
        lines.iter().filter(|line| line["message"] == "failed, to be tried again").collect();
    assert_eq!(failed.len(), 7, "one line for each attempt: {failed:#?}");
    for secret in [name, "Zebedee", "example.org", token, "secret_4242"] {
        let line = said.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret} is in the log: {line:?}");
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_about_a_request_names_its_trace() {
    let system = System::without_workers().await;
    let mut settings = crate::process::settings(&system.config);
    // Nobody is there to take the command.
    settings.retain(|(name, _)| *name != "MILLRACE_NATS_URL");
    settings.push(("MILLRACE_NATS_URL", system.config.nats.nats_url[0].clone()));
    settings.push(("MILLRACE_NAMESPACE", "nothing-there".to_owned()));
    for (format, wanted) in
        [("json", format!("\"trace_id\":\"{TRACE}\"")), ("pretty", TRACE.to_owned())]
    {
        let mut settings = settings.clone();
        settings.push(("MILLRACE_LOG_FORMAT", format.to_owned()));
        let mut edge = Process::start(&["api", "--http", "127.0.0.1:0"], &settings);
        let url = format!("{}/v1/orders", edge.http().await);
        let order = crate::harness::account_order("ann", "mug", 1);
        let request = system.request_to("POST", &url).json(&order);
        let traced = request.header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-00"));
        let answer = system.send(traced).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        edge.says("a command was not confirmed in time").await;
        let said = edge.errors();
        let line = said.lines().find(|line| line.contains("not confirmed")).expect("the line");
        assert!(line.contains(&wanted), "{line}");
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_about_a_message_names_its_trace() {
    let system = System::without_workers().await;
    let roles = Roles::start(&system, &[]).await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"));
    let subject = system.topology.command("order.place");
    let answer = system.nats.request_with_headers(subject, headers, "no JSON".into()).await;
    answer.expect("a publish ack");
    eventually("it is parked, with its trace", async || {
        let said = roles.said();
        let lines = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"] == "parked").find_map(|line| {
            (line["trace_id"] == TRACE && line["worker"] == "validation").then_some(())
        })
    })
    .await;
    system.stop().await;
}
