//! What clients send: queries, cursors, headers.

use axum::extract::Query;
use axum::http::{HeaderMap, HeaderValue, Uri};
use millrace_shared::fuzzing::fuzz;

use crate::lists::OrdersQuery;
use crate::live::customers::Place;
use crate::request::{idempotency_key, preferred_wait, traceparent};
use crate::search::asked::Asked;

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

#[test]
fn a_damaged_search_is_refused_or_understood() {
    let corpus = texts(&[
        "q=trail+sho&category=Shoes&brand=Acme&brand=Bora&currency=USD&minPrice=100&maxPrice=9000",
        "inStock=true&active=false&sort=-price&limit=20&cursor=r.1.2.pen",
        "sort=newest&cursor=n.0.17.pen&q=%C3%A9",
    ]);
    fuzz("searches", &corpus, |bytes| drop(Asked::parse(&String::from_utf8_lossy(bytes))));
}

#[test]
fn damaged_parameters_of_a_list_are_refused_or_understood() {
    let corpus = texts(&[
        "/?status=paid,shipped&from=2026-01-02T03:04:05Z&to=2026-02-03T04:05:06.7Z&limit=10",
        "/?cursor=1767322800000000_01a1ffc5-4f31-72d7-8ffd-3a7d0375c941",
    ]);
    fuzz("lists", &corpus, |bytes| {
        let Ok(uri) = Uri::try_from(bytes) else { return };
        let Ok(Query(asked)) = Query::<OrdersQuery>::try_from_uri(&uri) else { return };
        drop((asked.filter(), asked.after()));
    });
}

#[test]
fn damaged_headers_are_refused_or_understood() {
    let corpus = texts(&[
        "respond-async, wait=5; foo=bar",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "7-1767322800000000-12",
    ]);
    fuzz("headers", &corpus, |bytes| {
        let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
        let mut headers = HeaderMap::new();
        for name in ["prefer", "idempotency-key", "traceparent"] {
            headers.insert(name, value.clone());
        }
        let waits = preferred_wait(&headers);
        assert!(waits.is_none_or(|it| it <= crate::request::MAX_WAIT), "{waits:?}");
        drop(idempotency_key(&headers));
        assert!(traceparent(&headers).is_none_or(str::is_ascii));
        drop(value.to_str().map(Place::parse));
    });
}
