//! What went on about one order is one trace, over all processes; and whatever a collector does, the
//! system goes on.

use std::collections::HashMap;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::time::Instant;

use super::Roles;
use super::collector::{Collector, Entry, Span};
use crate::harness::{System, account_order, card_order, eventually};
use crate::process::Process;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// The settings that export everything to `url`, soon.
fn export(url: &str) -> Vec<(&'static str, String)> {
    vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url.to_owned()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200".to_owned()),
        ("OTEL_BLRP_SCHEDULE_DELAY", "200".to_owned()),
        ("OTEL_METRIC_EXPORT_INTERVAL", "500".to_owned()),
    ]
}

/// Places an order as a part of a trace, waits until it is paid, and returns its id.
async fn place(system: &System, roles: &Roles, order: &Value, traceparent: &str) -> String {
    let request = system.request_to("POST", &roles.url("/v1/orders")).header("Prefer", "wait=20");
    let answer = system.command(request.header("traceparent", traceparent).json(order)).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.text("/orderId")
}

/// The spans of a trace, when all of these names are among them.
async fn spans(collector: &Collector, trace: &str, names: &[&str]) -> Vec<Span> {
    eventually("all spans have come", async || {
        let found: Vec<Span> =
            collector.taken().spans.iter().filter(|span| span.trace == trace).cloned().collect();
        names.iter().all(|name| found.iter().any(|span| span.name == *name)).then_some(found)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_order_is_one_trace_from_the_request_to_the_view_over_all_processes() {
    let collector = Collector::start(Duration::ZERO).await;
    let system = System::without_workers().await;
    let roles = Roles::start(&system, &export(&collector.url)).await;
    system.register("ann", Some(10_000)).await;
    system.define("mug", 500, 20).await;
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let id = place(&system, &roles, &card_order("ann", "mug", 1, "tok_ok"), &parent).await;

    // Each step, and the step that it comes from.
    let expected = [
        ("POST /v1/orders", "", "millrace-api"),
        ("publish order.place", "POST /v1/orders", "millrace-api"),
        ("validation order.place", "publish order.place", "millrace-validation"),
        ("decide", "validation order.place", "millrace-validation"),
        ("commit", "validation order.place", "millrace-validation"),
        ("append", "validation order.place", "millrace-validation"),
        ("payment validated", "validation order.place", "millrace-payment"),
        ("gateway charge", "payment validated", "millrace-payment"),
        ("append", "payment validated", "millrace-payment"),
        ("persistence validated", "validation order.place", "millrace-persistence"),
        ("commit", "persistence validated", "millrace-persistence"),
        ("persistence paid", "payment validated", "millrace-persistence"),
        ("projection validated", "validation order.place", "millrace-projection"),
        ("projection paid", "payment validated", "millrace-projection"),
        ("write views", "projection paid", "millrace-projection"),
    ];
    let names: Vec<&str> = expected.iter().map(|(name, _, _)| *name).collect();
    let spans = spans(&collector, TRACE, &names).await;
    let by_id: HashMap<&str, &Span> = spans.iter().map(|span| (&*span.id, span)).collect();
    assert_eq!(by_id.len(), spans.len(), "no span comes twice");
    for (name, parent, service) in expected {
        let fits = |span: &&Span| {
            let above = by_id.get(&*span.parent).map_or("", |parent| &*parent.name);
            span.name == name && above == parent && span.service == service
        };
        assert!(
            spans.iter().any(|span| fits(&span)),
            "{name} below {parent} in {service}: {spans:#?}"
        );
    }
    for span in &spans {
        assert!(span.start <= span.end && !span.failed, "{span:?}");
        let above = by_id.get(&*span.parent);
        assert!(above.is_some() || span.parent == "00f067aa0ba902b7", "{span:?} hangs in the air");
    }
    // From the trace one gets to the order.
    let publish = spans.iter().find(|span| span.name == "publish order.place").expect("it");
    assert_eq!(publish.text("millrace.subject"), format!("order/{id}"));
    // And every event of the order names its step.
    for stored in system.history(millrace_shared::message::Subject::Order, &id).await {
        let traceparent = stored.event.traceparent.expect("a trace context");
        assert!(traceparent.starts_with(&format!("00-{TRACE}-")), "{traceparent}");
        assert!(by_id.contains_key(&traceparent[36..52]), "{traceparent}");
    }

    // What is not sampled is passed on, and looked at by nobody.
    let quiet = "0af7651916cd43dd8448eb211c80319c";
    let unsampled = format!("00-{quiet}-b7ad6b7169203331-00");
    let order = account_order("ann", "mug", 1);
    let second = place(&system, &roles, &order, &unsampled).await;
    let events = system.history(millrace_shared::message::Subject::Order, &second).await;
    let passed_on = events[0].event.traceparent.as_deref().expect("a trace context");
    assert!(passed_on.starts_with(&format!("00-{quiet}-")) && passed_on.ends_with("-00"));

    // A command straight from NATS begins a trace of its own, or continues one.
    let sequence = system.publish("order.place", &account_order("ann", "mug", 1)).await;
    let outcome = system.outcome(&sequence.to_string()).await;
    let third = outcome["orderId"].as_str().expect("an id");
    let begun = system.history(millrace_shared::message::Subject::Order, third).await;
    let begun = begun[0].event.traceparent.clone().expect("a trace context");
    self::spans(&collector, &begun[3..35], &["validation order.place", "projection paid"]).await;

    eventually("metrics and logs have come", async || {
        let taken = collector.taken();
        let every = ["api", "validation", "payment", "persistence", "projection"];
        let metric = |role: &str| {
            let service = format!("millrace-{role}");
            taken
                .metrics
                .iter()
                .any(|(from, name)| *from == service && name == "millrace.build_info")
        };
        let log = |role: &str| {
            let service = format!("millrace-{role}");
            taken.entries.iter().any(|entry| entry.service == service)
        };
        (every.iter().all(|role| metric(role) && log(role))).then_some(())
    })
    .await;
    assert!(collector.taken().spans.iter().all(|span| span.trace != quiet));
    // What stock and credit say of themselves belongs to no order.
    let noise = |span: &Span| span.name.contains("-changed");
    let found = collector.taken().spans.iter().find(|span| noise(span)).cloned();
    assert!(found.is_none(), "{found:?}");
    // A failure is in the exported log as well, with the trace that it belongs to.
    let subject = system.topology.command("order.place");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("traceparent", parent.as_str());
    let answer = system.nats.request_with_headers(subject, headers, "no JSON".into()).await;
    answer.expect("a publish ack");
    eventually("the failure has come", async || {
        let taken = collector.taken();
        let fits = |it: &&Entry| it.trace == TRACE && it.text.starts_with("parked");
        taken.entries.iter().find(fits).map(|_| ())
    })
    .await;
    system.stop().await;
}

/// So many orders are taken and paid, each of them long before a slow collector answers.
async fn pays(system: &System, roles: &Roles, orders: usize) {
    let order = account_order("ann", "mug", 1);
    for number in 0..orders {
        let parent = format!("00-{number:032x}-00f067aa0ba902b7-01").replacen("00-0", "00-1", 1);
        place(system, roles, &order, &parent).await;
    }
}

/// The memory of all roles, in bytes.
fn resident(roles: &Roles) -> u64 {
    let of = |process: &Process| {
        let statm =
            std::fs::read_to_string(format!("/proc/{}/statm", process.pid())).expect("it runs");
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        pages.expect("a number") * 4096
    };
    roles.processes.iter().map(of).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_or_slow_neither_stops_nor_fails_nor_fills_anything() {
    let slow = Collector::start(Duration::from_mins(1)).await;
    let nobody = "http://127.0.0.1:1".to_owned();
    for url in [nobody, slow.url.clone()] {
        let system = System::without_workers().await;
        let mut settings = export(&url);
        // A small queue overflows soon.
        settings.push(("OTEL_BSP_MAX_QUEUE_SIZE", "20".to_owned()));
        settings.push(("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10".to_owned()));
        let roles = Roles::start(&system, &settings).await;
        system.register("ann", Some(10_000)).await;
        system.define("mug", 5, 1_000).await;
        pays(&system, &roles, 100).await;
        let before = resident(&roles);
        pays(&system, &roles, 400).await;
        let grown = resident(&roles).saturating_sub(before);
        // Each span is some hundred bytes, and 400 orders have 8,000: kept, they would be seen. What
        // else grows (buffers, views of orders) is less than half of this.
        assert!(grown < 40 << 20, "the roles have grown by {} MiB", grown >> 20);
        let told = roles.scrape(&system).await;
        let dropped = told
            .lines()
            .filter(|line| line.starts_with("otel_sdk_processor_span_processed_total{"))
            .filter(|line| line.contains("error_type=\"queue_full\""))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>();
        if url == slow.url {
            assert!(dropped > 100.0, "what is dropped is counted: {told}");
        }
        for process in roles.processes {
            let start = Instant::now();
            let ended = process.end(Signal::TERM).await;
            assert_eq!(ended.code, Some(0), "{ended:?}");
            assert!(!ended.errors.contains("panicked"), "{ended:?}");
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "it does not wait for the collector"
            );
        }
        system.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_of_the_export_that_cannot_be_kept_is_refused_at_the_start() {
    let run = async |name: &'static str, value: &str| {
        let url = "http://127.0.0.1:4318".to_owned();
        let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", url), (name, value.to_owned())];
        crate::process::run(&["parked", "list", "--nats-url", "nats://127.0.0.1:1"], &settings)
            .await
    };
    for (name, value, says) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "set http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector", "must begin with http://"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip", "gzip is not known"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "only otlp and none"),
        ("OTEL_TRACES_SAMPLER", "xray", "is not known"),
        ("OTEL_TRACES_SAMPLER_ARG", "7", "from 0 to 1"),
    ] {
        let ended = run(name, value).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.errors.contains(says) && ended.errors.lines().count() == 1, "{ended:?}");
    }
}
