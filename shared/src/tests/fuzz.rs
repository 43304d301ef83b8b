//! What comes from outside: commands, events, files of products, headers, ids.

use std::path::Path;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::RawMessage;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use crate::command::{Command, KINDS, Received, read_object};
use crate::fuzzing::fuzz;
use crate::ids::{CommandId, CustomerId, OrderId, ProductId};
use crate::import::{Format, Rows};
use crate::message::{Event, is_traceparent};
use crate::order::Order;
use crate::parking::Parked;
use crate::quarantine::unreceivable;

/// All golden files below a folder.
fn golden(folder: &str) -> Vec<Vec<u8>> {
    fn files(folder: &Path, found: &mut Vec<Vec<u8>>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                files(&entry.path(), found);
            } else {
                found.push(std::fs::read(entry.path()).unwrap());
            }
        }
    }
    let mut found = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(folder), &mut found);
    assert!(!found.is_empty(), "there is something to begin with");
    found
}

#[test]
fn a_damaged_command_is_refused_or_read_as_it_would_be_written() {
    fuzz("commands", &golden("v1"), |bytes| {
        let Ok(body) = read_object(bytes) else { return };
        for kind in KINDS {
            let Ok(command) = Command::read(kind, body.clone()) else { continue };
            assert!(command.check().is_empty(), "what is read is checked");
            let written = serde_json::to_vec(&command).unwrap();
            assert_eq!(Command::read(kind, read_object(&written).unwrap()).unwrap(), command);
        }
    });
}

#[test]
fn a_damaged_event_is_refused_or_read_as_it_would_be_written() {
    fuzz("events", &golden("v1"), |bytes| {
        let Ok(event) = Event::decode(bytes) else { return };
        let written = event.encode().unwrap();
        assert_eq!(Event::decode(&written).unwrap().encode().unwrap(), written);
        // These may fail, each for its own reason.
        drop((event.order_event(), event.customer_event(), event.product_event()));
        drop(event.state::<Order>());
    });
}

#[test]
fn a_damaged_file_of_products_has_an_end() {
    let csv = b"productId,name,brand,category,price,currency,stock\npen,Pen,Acme,\"a \"\"b\"\"\",199,USD,10\n";
    let json = br#"{"productId":"pen","name":"Pen","brand":"Acme","category":"Office","price":{"amount":199,"currency":"USD"},"initialStock":3}"#;
    let corpus = [csv.to_vec(), json.to_vec(), [&json[..], b"\n", json].concat()];
    fuzz("files of products", &corpus, |bytes| {
        for format in [Format::Csv, Format::Ndjson] {
            let Ok(mut rows) = Rows::new(bytes, format, |_| None) else { continue };
            // Each row takes at least a byte.
            let read = (0..=bytes.len()).take_while(|_| matches!(rows.read_row(), Ok(Some(_))));
            assert!(read.count() <= bytes.len());
        }
    });
}

#[test]
fn damaged_headers_and_ids_are_refused_or_read_as_they_would_be_written() {
    let corpus = [
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "01a1ffc5-4f31-72d7-8ffd-3a7d0375c941",
        "NATS/1.0\r\nMillrace-Worker: payment\r\nNats-Rollup: sub\r\n\r\n",
        "2026-01-02T03:04:05Z",
    ];
    let corpus = corpus.map(|text| text.as_bytes().to_vec());
    fuzz("headers and ids", &corpus, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        assert!(!is_traceparent(&text) || text.is_ascii());
        if let Ok(id) = text.parse::<OrderId>() {
            assert_eq!(id.to_string().parse::<OrderId>().unwrap(), id);
        }
        if let Ok(id) = text.parse::<CommandId>() {
            assert_eq!(id.to_string().parse::<CommandId>().unwrap(), id);
        }
        if let Ok(id) = text.parse::<CustomerId>() {
            assert_eq!(id.as_str(), text);
        }
        if let Ok(id) = text.parse::<ProductId>() {
            assert_eq!(id.as_str(), text);
        }
        let raw: RawMessage = serde_json::from_value(json!({
            "subject": "shop.parked.payment.event.order.o.1", "seq": 1,
            "data": BASE64_STANDARD.encode(bytes), "hdrs": BASE64_STANDARD.encode(bytes),
            "time": "2026-01-02T03:04:05Z",
        }))
        .unwrap();
        drop(unreceivable(&raw));
        if let Ok(message) = StreamMessage::try_from(raw) {
            Parked::read(&message);
        }
        drop(Received::read("order.place", bytes, |_| Some(&text), ("COMMANDS", 1)));
    });
}
