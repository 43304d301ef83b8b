//! Every role tells what it does at `/metrics`, in names that are documented.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use millrace_shared::metrics::{ALL, Described};
use millrace_shared::topology::StreamOptions;

use super::{Roles, deployed, publish_refused, text};
use crate::harness::{System, account_order, card_order, eventually};
use crate::process::Process;

/// The names of the metrics in Prometheus' text: `x` for a histogram `x`, too.
fn names(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// The number that a line tells, if there is one that begins so.
fn value(text: &str, start: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(start))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_documented_drawn_and_alerted_on_is_what_the_running_roles_tell() {
    let system = System::without_workers().await;
    let roles = Roles::start(&system, &[]).await;
    for url in &roles.metrics[1..] {
        eventually("the worker is ready", async || {
            let ready = system.request_to("GET", &format!("{url}/readyz")).send().await.ok()?;
            (ready.status() == 200).then_some(())
        })
        .await;
    }
    system.register("ann", Some(1_000)).await;
    system.define("mug", 500, 20).await;
    let (orders, client) = (roles.url("/v1/orders"), reqwest::Client::new());
    let placed = async |order| {
        let request = client.post(&orders).header("Prefer", "wait=20").json(&order);
        let answer = request.send().await.expect("the api answers");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    };
    let (status, paid) = placed(card_order("ann", "mug", 1, "tok_ok")).await;
    assert_eq!(status, 201, "{paid}");
    assert_eq!(placed(card_order("ann", "mug", 1, "tok_declined")).await.0, 422);
    assert_eq!(placed(card_order("ann", "mug", 99, "tok_ok")).await.0, 422);
    assert_eq!(placed(account_order("ann", "mug", 1)).await.0, 201);
    assert_eq!(placed(account_order("ann", "mug", 2)).await.0, 422);
    assert_eq!(placed(card_order("ann", "mug", 1, "tok_timeout")).await.0, 201);
    let paid: serde_json::Value = serde_json::from_str(&paid).expect("JSON");
    let id = paid["orderId"].as_str().expect("an id");
    let stream = client.get(roles.url(&format!("/v1/orders/{id}/stream"))).send().await;
    let stream = stream.expect("a stream");
    assert_eq!(client.get(roles.url("/nowhere")).send().await.expect("an answer").status(), 404);
    publish_refused(&system, id).await;

    let told = eventually("everything has been counted", async || {
        let told = roles.scrape(&system).await;
        let parked = value(&told, "millrace_messages_parked_total{worker=\"persistence\"");
        let pending = value(&told, "millrace_consumer_pending{worker=\"projection\"");
        (parked == Some(1.0) && pending == Some(0.0)).then_some(told)
    })
    .await;
    drop(stream);

    let documented: BTreeSet<String> = ALL.iter().map(Described::prometheus).collect();
    let named = names(&told);
    assert_eq!(documented.difference(&named).collect::<Vec<_>>(), [""; 0], "not told: {told}");
    assert_eq!(named.difference(&documented).collect::<Vec<_>>(), [""; 0], "not documented");
    let samples: BTreeSet<String> =
        told.lines().filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect();
    for (file, expression) in deployed::expressions() {
        for name in deployed::metrics_in(&expression) {
            let made_elsewhere = name == "up" || name.starts_with("otel_sdk_");
            assert!(made_elsewhere || samples.contains(&name), "{file}: nobody tells {name}");
        }
    }

    // Numbers, and labels that stay few.
    let is = |start: &str, expected: f64| {
        let found = value(&told, start);
        assert_eq!(found.map(f64::to_bits), Some(expected.to_bits()), "{start}: {told}");
    };
    let decided = "millrace_commands_decided_total{kind=\"order.place\",outcome=";
    is(&format!("{decided}\"accepted\",reason=\"\"}}"), 4.0);
    is(&format!("{decided}\"rejected\",reason=\"out_of_stock\"}}"), 1.0);
    is(&format!("{decided}\"rejected\",reason=\"insufficient_credit\"}}"), 1.0);
    is("millrace_commands_received_total{kind=\"order.place\",outcome=\"stored\"}", 6.0);
    is("millrace_gateway_duration_seconds_count{call=\"charge\",outcome=\"declined\"}", 1.0);
    is("millrace_gateway_duration_seconds_count{call=\"charge\",outcome=\"unknown\"}", 1.0);
    // The event that PostgreSQL refuses is an order's first, too.
    is("millrace_order_visible_seconds_count", 7.0);
    is("millrace_messages_failed_total{worker=\"persistence\"}", 8.0);
    is("millrace_live_streams", 1.0);
    is("millrace_catalogue_products", 1.0);
    assert!(told.contains("route=\"/v1/orders/{id}/stream\",status=\"200\""), "{told}");
    assert!(told.contains("route=\"unmatched\",status=\"404\""), "{told}");
    assert!(!told.contains(id) && !told.contains("ann\""), "an id is no label");
    // The edge tells the same at its own address as at the one for operators.
    assert_eq!(names(&text(&system, &roles.url("/metrics")).await).len(), {
        names(&text(&system, &format!("{}/metrics", roles.metrics[0])).await).len()
    });
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_is_ready_only_while_it_pulls_and_is_alive_all_the_same() {
    let system = System::without_workers().await;
    let mut settings = crate::process::settings(&system.config);
    settings.push(("MILLRACE_METRICS", "127.0.0.1:0".to_owned()));
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    jetstream.delete_stream(system.topology.events_stream()).await.expect("it is removed");
    let mut worker = Process::start(&["worker", "payment", "projection"], &settings);
    let url = worker.address("metrics are served").await;
    worker.says("is not there; `millrace topology` makes it").await;
    let ready = system.send(system.request_to("GET", &format!("{url}/readyz"))).await;
    assert_eq!(ready.status, 503, "{ready:?}");
    assert_eq!(ready.body["workers"]["payment"], "down");
    let live = system.send(system.request_to("GET", &format!("{url}/livez"))).await;
    assert_eq!(live.status, 200);
    let told = text(&system, &format!("{url}/metrics")).await;
    assert_eq!(value(&told, "millrace_worker_consuming{worker=\"payment\"}"), Some(0.0));
    system.topology.create(&jetstream, &StreamOptions::default()).await.expect("it is made again");
    system.stop().await;
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/observability.md")
}

/// `MILLRACE_BLESS=1` writes the table anew.
#[test]
fn the_table_of_metrics_in_the_documentation_is_that_of_the_code() {
    let mut table = "| name | type | labels | tells |\n|---|---|---|---|\n".to_owned();
    for it in ALL {
        let labels: Vec<String> = it.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, labels) = (it.prometheus(), labels.join(", "));
        writeln!(table, "| `{name}` | {} | {labels} | {} |", it.kind, it.help).expect("a text");
    }
    let text = fs::read_to_string(page()).expect("the page");
    let (start, end) = ("<!-- metrics: made from the code -->\n", "<!-- end of metrics -->");
    let (before, rest) = text.split_once(start).expect("the beginning of the table");
    let (_, after) = rest.split_once(end).expect("the end of the table");
    let wanted = format!("{before}{start}{table}{end}{after}");
    if std::env::var_os("MILLRACE_BLESS").is_some_and(|bless| bless == "1") {
        fs::write(page(), &wanted).expect("the page is written");
    } else {
        assert!(text == wanted, "the table in docs/observability.md is old: bless it");
    }
}
