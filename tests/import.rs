//! Imports of a catalogue: what is right is defined once, however often the file is sent; what is
//! wrong is told by line; an interrupted import goes on by being repeated.

use std::collections::BTreeMap;
use std::fs;

use futures_util::TryStreamExt as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Answer, System, eventually};
use crate::process::{Process, folder, run, settings};

const HEADER: &str = "productId,name,brand,category,price,currency,stock\n";

/// A seeded file; every `damaged`-th row is wrong. Returns the number of rows that are right, too.
fn csv(seed: u64, rows: usize, damaged: usize) -> (String, usize) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut text = HEADER.to_owned();
    let mut right = 0;
    for row in 0..rows {
        let (price, stock) = (random.random_range(1..100_000), random.random_range(0..50));
        let good =
            format!("I-{row:05},\"Thing, {row}\",Brand {},Kind,{price},USD,{stock}", row % 9);
        if row % damaged != damaged - 1 {
            right += 1;
            text += &(good + "\n");
            continue;
        }
        let bad = match random.random_range(0..5) {
            0 => format!("I {row},Thing,Brand,Kind,{price},USD,{stock}\n"),
            1 => format!("I-{row},Thing,Brand,Kind,{price}.5,USD,{stock}\n"),
            2 => format!("I-{row},,Brand,Kind,{price},USD,{stock}\n"),
            3 => format!("I-{row},Thing,Brand\n"),
            _ => "I-00000,Thing,Brand,Kind,1,USD,1\n".to_owned(),
        };
        text += &bad;
    }
    (text, right)
}

async fn import(system: &System, kind: &str, body: String) -> Answer {
    let request = system.request("POST", "/v1/products:import").header("content-type", kind);
    system.send(request.body(body)).await
}

fn counts(report: &Value) -> [u64; 4] {
    ["rows", "published", "unchanged", "failed"]
        .map(|name| report[name].as_u64().unwrap_or(u64::MAX))
}

/// How often each product was defined, as the log tells.
async fn defined(system: &System) -> BTreeMap<String, usize> {
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let stream = jetstream.get_stream(system.topology.events_stream()).await.expect("the log");
    let subjects = stream.info_with_subjects(system.topology.all_events()[2].clone()).await;
    subjects.expect("its subjects").try_collect().await.expect("all of them")
}

async fn are_searchable(system: &System, count: usize) {
    eventually(&format!("{count} products are in the catalogue"), async || {
        (system.get("/v1/products?q=&limit=1").await.body["total"] == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_rows_are_imported_once_and_damaged_ones_are_told_by_line() {
    let system = System::start().await;
    are_searchable(&system, 0).await;
    let (text, right) = csv(5, 10_000, 40);
    let answer = import(&system, "text/csv; charset=utf-8", text.clone()).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let right = u64::try_from(right).expect("a count");
    assert_eq!(counts(&answer.body), [10_000, right, 0, 10_000 - right]);
    let errors = answer.body["errors"].as_array().expect("errors");
    assert_eq!(errors.len(), 100, "as many as are listed");
    // Row 40 stands on line 41: the header is the first.
    assert_eq!(errors[0]["line"], 41);
    for error in errors {
        for part in ["field", "code", "detail"] {
            assert!(error[part].is_string(), "{error}");
        }
    }
    are_searchable(&system, usize::try_from(right).expect("a count")).await;
    system.settle().await;
    let once = defined(&system).await;
    assert!(
        once.len() == usize::try_from(right).expect("a count") && once.values().all(|n| *n == 1)
    );

    // The same again, and in the other format: nothing happens.
    let answer = import(&system, "text/csv", text).await;
    assert_eq!((answer.status, counts(&answer.body)), (200, [10_000, 0, right, 10_000 - right]));
    let product = system.get("/v1/products/I-00007").await.body;
    let mut row = json!({ "productId": "I-00007" });
    for field in ["name", "brand", "category", "price"] {
        row[field] = product[field].clone();
    }
    let same = format!("{row}\n\n{row}\n");
    let answer = import(&system, "application/x-ndjson", same).await;
    assert_eq!(counts(&answer.body), [2, 0, 1, 1]);
    assert_eq!(answer.body["errors"][0]["code"], "duplicate");
    system.settle().await;
    assert_eq!(defined(&system).await, once);

    // There and back again: what was imported once can be imported after another change.
    for amount in [1, 2, 1] {
        row["price"]["amount"] = json!(amount);
        let answer = import(&system, "application/x-ndjson", row.to_string()).await;
        assert_eq!(counts(&answer.body), [1, 1, 0, 0]);
        eventually("the price is known", async || {
            let found = system.get("/v1/products?q=I-00007&limit=1").await.body;
            (found["items"][0]["price"]["amount"] == amount).then_some(())
        })
        .await;
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_sent_many_times_at_once_defines_everything_once() {
    let system = System::start().await;
    are_searchable(&system, 0).await;
    let (text, right) = csv(6, 1_000, 1_001);
    let sent = (0..2).map(|_| import(&system, "text/csv", text.clone()));
    for answer in futures_util::future::join_all(sent).await {
        assert!([200, 202].contains(&answer.status), "{answer:?}");
    }
    are_searchable(&system, right).await;
    system.settle().await;
    let defined = defined(&system).await;
    assert!(defined.len() == right && defined.values().all(|n| *n == 1), "{defined:?}");
    system.stop().await;
}

/// Sends a body without its length; the whole answer as text.
async fn chunked(url: &str, body: &str) -> String {
    let address = url.trim_start_matches("http://").split('/').next().expect("an address");
    let mut connection = TcpStream::connect(address).await.expect("the edge listens");
    let mut request = format!(
        "POST /v1/products:import HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-type: text/csv\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    for chunk in body.as_bytes().chunks(5_000) {
        let chunk = std::str::from_utf8(chunk).expect("ASCII");
        let length = format!("{:x}\r\n", chunk.len());
        request = [&request, &length, chunk, "\r\n"].concat();
    }
    request += "0\r\n\r\n";
    connection.write_all(request.as_bytes()).await.expect("it is sent");
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_import_is_refused_and_what_is_too_large_is_cut_off() {
    let system = System::start().await;
    are_searchable(&system, 0).await;
    for (kind, body, status, problem) in [
        ("application/json", "{}", 415, "unsupported-media-type"),
        ("text/csv", "productId,name\na,b\n", 400, "validation"),
        ("text/csv", "", 400, "validation"),
    ] {
        let answer = import(&system, kind, body.to_owned()).await;
        assert_eq!((answer.status, answer.text("/type")), (status, format!("/problems/{problem}")));
    }
    let answer = import(&system, "text/csv", "productId,name\na,b\n".to_owned()).await;
    let errors = answer.body["errors"].as_array().expect("errors").iter();
    let fields: Vec<&str> = errors.filter_map(|error| error["field"].as_str()).collect();
    assert_eq!(fields, ["brand", "category", "price", "currency"]);
    assert_eq!(counts(&import(&system, "application/x-ndjson", String::new()).await.body), [0; 4]);

    let mut small = settings(&system.config);
    small.push(("MILLRACE_IMPORT_MAX_BYTES", "20000".to_owned()));
    let mut edge = Process::start(&["api", "--http", "127.0.0.1:0"], &small);
    let http = edge.http().await;
    let url = format!("{http}/v1/products:import");
    let (text, _) = csv(8, 1_000, 1_001);
    let client = reqwest::Client::new();
    let post = || client.post(&url).header("content-type", "text/csv");
    eventually("the edge has read the catalogue", async || {
        let ready = system.send(client.get(format!("{http}/readyz"))).await;
        (ready.body["status"] == "ok").then_some(())
    })
    .await;
    let answer = system.send(post().body(text.clone())).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    // One that does not say its length is cut off where it grows too large.
    let answer = chunked(&url, &text).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let body: Value = serde_json::from_str(body).expect("JSON");
    let rows = body["report"]["rows"].as_u64().expect("a report");
    assert!((1..1_000).contains(&rows), "{body}");
    edge.end(Signal::TERM).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_killed_half_way_goes_on_when_it_is_repeated() {
    let system = System::start().await;
    are_searchable(&system, 0).await;
    let file = folder("import").join("catalogue.csv");
    let (text, right) = csv(9, 6_000, 100);
    // Shops call their columns as they like.
    fs::write(&file, text.replacen("productId", "sku", 1)).expect("a file");
    let path = file.to_str().expect("a path").to_owned();
    let arguments: Vec<&str> = ["import", &path, "--column", "productId=sku"].into();
    let over_http = [arguments.as_slice(), &["--target", &system.http]].concat();
    let over_nats = [arguments.as_slice(), &["--via", "nats"]].concat();

    for ways in [&over_http, &over_nats] {
        let before = system.get("/v1/products?q=&limit=1").await.body["total"].as_u64();
        let importing = Process::start(ways, &settings(&system.config));
        eventually("a part is there", async || {
            let total = system.get("/v1/products?q=&limit=1").await.body["total"].as_u64();
            (total > before).then_some(())
        })
        .await;
        importing.end(Signal::KILL).await;
    }
    let wrong = 6_000 - right;
    for ways in [&over_nats, &over_http] {
        let ended = run(ways, &settings(&system.config)).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.output.contains(&format!("{wrong} wrong")), "{ended:?}");
        let report = fs::read_to_string(format!("{path}.errors.ndjson")).expect("a report");
        let lines: Vec<Value> =
            report.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let mut rows: Vec<u64> = lines.iter().filter_map(|error| error["line"].as_u64()).collect();
        rows.dedup();
        assert_eq!(rows.len(), wrong);
        assert_eq!(rows[..2], [101, 201]);
    }
    are_searchable(&system, right).await;
    system.settle().await;
    let defined = defined(&system).await;
    assert!(defined.len() == right && defined.values().all(|n| *n == 1), "{}", defined.len());

    // A file without errors ends well, and leaves no report behind.
    fs::write(&file, csv(9, 99, 100).0.replacen("productId", "sku", 1)).expect("a file");
    let ended = run(&over_http, &settings(&system.config)).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.output.contains("99 unchanged"), "{ended:?}");
    assert!(!file.with_extension("csv.errors.ndjson").exists());
    system.stop().await;
}
