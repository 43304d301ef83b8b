//! `millrace bench`, so short that it only shows that it works.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{servers, servers_dir};
use crate::process::{Process, folder, processes_of, run};

fn arguments(more: &[&str]) -> Vec<String> {
    let programs = servers_dir().to_str().expect("a path in UTF-8").to_owned();
    let mut words = ["bench", "--quick", "--servers-dir"].map(str::to_owned).to_vec();
    words.push(programs);
    words.extend(more.iter().map(|word| (*word).to_owned()));
    words
}

async fn bench(more: &[&str]) -> (Value, String) {
    // By then the servers' programs are on this machine.
    tokio::task::spawn_blocking(servers).await.expect("the servers have started");
    let file = folder("bench").join("report.json");
    let path = file.to_str().expect("a path in UTF-8");
    let ended = run(&arguments(&[more, &["--json", path]].concat()), &[]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let report = std::fs::read(&file).expect("the report is written");
    (serde_json::from_slice(&report).expect("JSON"), ended.output)
}

/// A figure that must be there and make sense.
fn positive(report: &Value, pointer: &str) -> f64 {
    let value = report.pointer(pointer).and_then(Value::as_f64);
    let value = value.unwrap_or_else(|| panic!("{pointer} is no number in {report:#}"));
    assert!(value.is_finite() && value > 0.0, "{pointer} is {value}");
    value
}

/// What was accepted is what was seen, and what the journal has.
fn totals_agree(report: &Value) {
    let count = |name: &str| report["check"][name].as_u64().unwrap_or_else(|| panic!("{name}"));
    let accepted = count("accepted");
    assert!(accepted > 0);
    for name in ["seenPaid", "journalOrders", "journalPaid", "decisions"] {
        assert_eq!(count(name), accepted, "{name}");
    }
    assert_eq!(count("journalEvents"), 2 * accepted);
    assert!(count("readAtOnce") > 0, "no order was read as soon as it was told to be paid");
    assert_eq!(count("notYetReadable"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_benchmark_has_every_figure_and_its_totals_agree() {
    let (report, output) = bench(&[]).await;
    for pointer in [
        "/processedPerSecond",
        "/acceptedPerSecond",
        "/bareLoopPerSecond",
        "/ratioToBareLoop",
        "/coldStartSeconds",
        "/cpuPerOrder/millrace",
        "/cpuPerOrder/nats",
        "/cpuPerOrder/postgres",
        "/cpuPerOrder/redis",
        "/cpuPerOrder/total",
        "/batches/append COMMANDS",
        "/batches/append EVENTS",
        "/batches/validation",
        "/bareLoopCpuPerOrder/postgres",
        "/rss/idle/millrace",
        "/rss/load/postgres",
        "/rss/generator",
        "/bytesPerOrder/nats",
        "/bytesPerOrder/postgres",
        "/bytesPerOrder/redis",
        "/latency/0/accepted/p50Ms",
        "/latency/1/paid/p999Ms",
        "/latency/1/bareLoop/p99Ms",
        "/reads/0/perSecond",
        "/machine/cpus",
    ] {
        positive(&report, pointer);
    }
    // The bare loop makes a part of the writes, and nothing else.
    assert!(positive(&report, "/ratioToBareLoop") < 1.0);
    assert_eq!(report["reads"].as_array().map(Vec::len), Some(6));
    assert_eq!(report["latency"][0]["rate"], 10.0);
    let latency = |name: &str| positive(&report, &format!("/latency/0/{name}/p50Ms"));
    assert!(latency("accepted") < latency("paid"), "an order is accepted before it is paid");
    totals_agree(&report);
    assert!(output.contains("ratio to bare loop"), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_in_processes_of_their_own_are_told_apart_by_either_way_in() {
    let (report, _) = bench(&["--apart", "--entry", "mixed", "--only", "capacity"]).await;
    for name in ["api", "validation", "payment", "persistence", "projection"] {
        positive(&report, &format!("/rss/load/{name}"));
        positive(&report, &format!("/cpuPerOrder/{name}"));
    }
    assert_eq!(report["ratioToBareLoop"], Value::Null);
    totals_agree(&report);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_benchmark_leaves_no_process() {
    tokio::task::spawn_blocking(servers).await.expect("the servers have started");
    let data = folder("bench");
    let path = data.to_str().expect("a path in UTF-8");
    let process = Process::start(&arguments(&["--data", path]), &[]);
    crate::harness::eventually("its servers run", async || {
        (processes_of(&data).len() > 3).then_some(())
    })
    .await;
    let ended = process.end(Signal::INT).await;
    assert_ne!(ended.code, Some(0), "{ended:?}");
    crate::harness::eventually("its processes have ended", async || {
        processes_of(&data).is_empty().then_some(())
    })
    .await;
}
