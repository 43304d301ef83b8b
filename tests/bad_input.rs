//! Bad input, by HTTP and by NATS: every piece of it gets an answer that names what is wrong, has no
//! effect, and is in nobody's way.

use serde_json::{Value, json};

use crate::harness::{Answer, System, card_order};
use crate::parking::{header, number, parked};

/// An order that does not exist.
const NOWHERE: &str = "018f2d5e-7b3a-7c3e-9c1d-000000000001";

/// A command with one thing wrong: its kind, its body without the id that HTTP has in the path, the
/// field that is wrong, and in which way.
type Bad = (&'static str, Value, &'static str, &'static str);

/// An order with `value` at `pointer` (RFC 6901); without the field if the value is `absent`.
fn order_with(pointer: &str, value: Value) -> Value {
    let mut order = card_order("ann", "mug", 1, "tok_ok");
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    let parent = order.pointer_mut(parent).and_then(Value::as_object_mut).expect("an object");
    if value == "absent" {
        parent.remove(name);
    } else {
        parent.insert(name.to_owned(), value);
    }
    order
}

fn lines(count: usize) -> Value {
    (0..count).map(|n| json!({ "productId": format!("P{n}"), "quantity": 1 })).collect()
}

fn bad_orders() -> Vec<Bad> {
    let quantity = "/lines/0/quantity";
    let price = "/lines/0/unitPrice";
    let twice =
        json!([{ "productId": "mug", "quantity": 1 }, { "productId": "mug", "quantity": 2 }]);
    let money = |amount: Value, currency: &str| json!({ "amount": amount, "currency": currency });
    let cases = vec![
        ("/coupon", json!("X"), "coupon", "unknown_field"),
        ("/customerID", json!("ann"), "customerID", "unknown_field"),
        ("/lines/0/discount", json!(1), "lines[0].discount", "unknown_field"),
        ("/payment/cvc", json!("123"), "payment.cvc", "unknown_field"),
        (quantity, json!("2"), "lines[0].quantity", "invalid"),
        (quantity, json!(1.5), "lines[0].quantity", "invalid"),
        (quantity, json!(1e30), "lines[0].quantity", "invalid"),
        (quantity, json!(-1), "lines[0].quantity", "invalid"),
        (quantity, json!(4_294_967_297_u64), "lines[0].quantity", "invalid"),
        (quantity, json!(true), "lines[0].quantity", "invalid"),
        (quantity, json!(null), "lines[0].quantity", "invalid"),
        (quantity, json!([1]), "lines[0].quantity", "invalid"),
        (quantity, json!("absent"), "lines[0].quantity", "missing"),
        (quantity, json!(0), "lines[0].quantity", "out_of_range"),
        (quantity, json!(1_000_001), "lines[0].quantity", "out_of_range"),
        ("/lines", json!([]), "lines", "out_of_range"),
        ("/lines", lines(201), "lines", "out_of_range"),
        ("/lines", json!({}), "lines", "invalid"),
        ("/lines", json!(null), "lines", "invalid"),
        ("/lines", json!("absent"), "lines", "missing"),
        ("/lines", json!([["mug", 1]]), "lines[0]", "invalid"),
        ("/lines", twice, "lines[1].productId", "duplicate"),
        ("/lines/0/productId", json!("a.b"), "lines[0].productId", "invalid"),
        ("/lines/0/productId", json!("m\u{0}g"), "lines[0].productId", "invalid"),
        ("/customerId", json!(""), "customerId", "invalid"),
        ("/customerId", json!("ann "), "customerId", "invalid"),
        ("/customerId", json!("../ann"), "customerId", "invalid"),
        ("/customerId", json!("äöü"), "customerId", "invalid"),
        ("/customerId", json!("a".repeat(65)), "customerId", "invalid"),
        ("/customerId", json!(7), "customerId", "invalid"),
        ("/customerId", json!(null), "customerId", "invalid"),
        ("/customerId", json!("absent"), "customerId", "missing"),
        ("/orderId", json!("7"), "orderId", "invalid"),
        (price, json!(500), "lines[0].unitPrice", "invalid"),
        (price, json!({ "amount": 500 }), "lines[0].unitPrice.currency", "missing"),
        (price, money(json!(500), "usd"), "lines[0].unitPrice.currency", "invalid"),
        (price, money(json!(500), "XXXX"), "lines[0].unitPrice.currency", "invalid"),
        (price, money(json!(5.0), "USD"), "lines[0].unitPrice.amount", "invalid"),
        (price, money(json!("5"), "USD"), "lines[0].unitPrice.amount", "invalid"),
        (price, money(json!(u64::MAX), "USD"), "lines[0].unitPrice.amount", "invalid"),
        (price, money(json!(i64::MAX), "USD"), "lines[0].unitPrice.amount", "out_of_range"),
        (price, money(json!(-1), "USD"), "lines[0].unitPrice.amount", "out_of_range"),
        ("/payment", json!("card"), "payment", "invalid"),
        ("/payment/method", json!("cash"), "payment.method", "invalid"),
        ("/payment/method", json!("account"), "payment.token", "unknown_field"),
        ("/payment/token", json!("absent"), "payment.token", "missing"),
        ("/payment/token", json!(""), "payment.token", "invalid"),
        ("/payment/token", json!("tok\nok"), "payment.token", "invalid"),
    ];
    let order =
        |(pointer, value, field, code)| ("order.place", order_with(pointer, value), field, code);
    cases.into_iter().map(order).collect()
}

fn bad_others() -> Vec<Bad> {
    let product = |field: &str, value: Value| {
        let mut product = json!({ "name": "Mug", "brand": "B", "category": "C",
            "price": { "amount": 1, "currency": "USD" } });
        product[field] = value;
        product
    };
    let shipment = json!({ "carrier": "Post\u{7}", "trackingNumber": "1" });
    let limit = json!({ "creditLimit": { "amount": 1_000_000_000_001_i64, "currency": "USD" } });
    let define = "product.define";
    vec![
        ("customer.register", json!({ "name": "Bell\u{7}" }), "name", "invalid"),
        ("customer.register", json!({ "name": "Nul\u{0}" }), "name", "invalid"),
        ("customer.register", json!({ "name": " \t " }), "name", "out_of_range"),
        ("customer.register", json!({ "name": "n".repeat(201) }), "name", "out_of_range"),
        ("customer.set-credit-limit", json!({}), "creditLimit", "missing"),
        ("customer.set-credit-limit", limit, "creditLimit.amount", "out_of_range"),
        (define, product("brand", json!("\u{1b}[31m")), "brand", "invalid"),
        (define, product("category", json!("a\r\nb")), "category", "invalid"),
        (
            define,
            product("price", json!({ "amount": 1, "currency": "xxx" })),
            "price.currency",
            "invalid",
        ),
        (define, product("initialStock", json!(-1)), "initialStock", "invalid"),
        ("product.restock", json!({ "quantity": 0 }), "quantity", "out_of_range"),
        ("product.retire", json!({ "quantity": 0 }), "quantity", "unknown_field"),
        ("order.ship", shipment, "carrier", "invalid"),
        ("order.ship", json!({ "carrier": "Post" }), "trackingNumber", "missing"),
        ("order.cancel", json!({ "reason": 5 }), "reason", "invalid"),
        ("order.refund", json!({ "reason": "r".repeat(501) }), "reason", "out_of_range"),
        ("order.deliver", json!({ "when": "now" }), "when", "unknown_field"),
    ]
}

/// Where a kind of command goes by HTTP, and the field that the path stands for.
fn route(kind: &str) -> (&'static str, String, Option<(&'static str, &'static str)>) {
    let (subject, step) = kind.split_once('.').expect("a kind");
    match subject {
        "order" if step == "place" => ("POST", "/v1/orders".to_owned(), None),
        "order" => ("POST", format!("/v1/orders/{NOWHERE}/{step}"), Some(("orderId", NOWHERE))),
        "customer" if step == "register" => ("POST", "/v1/customers".to_owned(), None),
        "customer" => {
            ("PUT", "/v1/customers/ann/credit-limit".to_owned(), Some(("customerId", "ann")))
        }
        _ if step == "define" => ("PUT", "/v1/products/mug".to_owned(), Some(("productId", "mug"))),
        _ => ("POST", format!("/v1/products/mug/{step}"), Some(("productId", "mug"))),
    }
}

/// Bytes that are no JSON object.
fn no_objects() -> Vec<Vec<u8>> {
    let noise = (0..500_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
    let mut bodies =
        vec![noise, b"{\"customerId\":\"\xff\xfe\"}".to_vec(), "[".repeat(60_000).into()];
    let deep = format!("{{\"a\":{}", "{\"a\":".repeat(10_000));
    let texts =
        ["{\"customerId\": ", "[]", "null", "\"order\"", "5", "{}}", "{'a': 1}", "NaN", &deep];
    bodies.extend(texts.map(|text| text.as_bytes().to_vec()));
    bodies
}

/// Bodies that are larger than a command may be.
fn too_large() -> [Vec<u8>; 2] {
    [order_with("/lines", lines(10_000)).to_string().into(), "[".repeat(100_000).into()]
}

/// Checks what every refusal by HTTP has in common.
fn problem(answer: &Answer, status: u16, what: &str) {
    assert_eq!(answer.status, status, "{what}: {answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json", "{what}");
    assert_eq!(answer.body["status"], status, "{what}: {answer:?}");
    assert!(answer.text("/type").starts_with("/problems/"), "{what}: {answer:?}");
    assert!(!answer.text("/title").is_empty() && !answer.text("/detail").is_empty(), "{what}");
}

/// Checks a refusal that names a field.
fn names(answer: &Answer, field: &str, code: &str, what: &str) {
    problem(answer, 400, what);
    assert_eq!(answer.text("/type"), "/problems/validation", "{what}");
    let errors = answer.body["errors"].as_array().map_or(&[][..], Vec::as_slice);
    let named = errors.iter().any(|error| error["field"] == field && error["code"] == code);
    assert!(named, "{what}: {field} {code}: {answer:?}");
}

/// A shop with a customer and a product.
async fn shop() -> System {
    let system = System::start().await;
    system.register("ann", None).await;
    system.define("mug", 500, 10).await;
    system
}

async fn last_command(system: &System) -> u64 {
    let jetstream = async_nats::jetstream::new(system.nats.clone());
    let mut stream =
        jetstream.get_stream(system.topology.commands_stream()).await.expect("COMMANDS");
    stream.info().await.expect("its state").state.last_sequence
}

/// Checks that orders still go through and nothing is left undone.
async fn still_sells(system: &System) {
    let order = card_order("ann", "mug", 1, "tok_ok");
    let sequence = system.publish("order.place", &order).await;
    let outcome = system.outcome(&sequence.to_string()).await;
    system.order_in(outcome["orderId"].as_str().expect("an order"), "paid").await;
    system.settle().await;
    system.stock_is("mug", [9, 1, 0]).await;
    let mug = system.get("/v1/products/mug").await.body;
    assert_eq!((&mug["name"], &mug["active"]), (&json!("Product mug"), &json!(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_commands_over_http_are_refused_by_field_and_never_stored() {
    let system = shop().await;
    let before = last_command(&system).await;
    for (kind, body, field, code) in bad_orders().into_iter().chain(bad_others()) {
        let (method, path, _) = route(kind);
        let answer = system.send(system.request(method, &path).json(&body)).await;
        names(&answer, field, code, &format!("{method} {path} {body}"));
    }
    let post = |body: Vec<u8>| {
        let request = system.request("POST", "/v1/orders");
        system.send(request.header("Content-Type", "application/json").body(body))
    };
    for body in no_objects() {
        let what = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        names(&post(body).await, "body", "invalid", &what);
    }
    names(&post(Vec::new()).await, "customerId", "missing", "an empty body");
    for body in too_large().into_iter().chain([vec![b' '; 5 << 20]]) {
        let what = format!("{} bytes", body.len());
        problem(&post(body).await, 413, &what);
    }
    // What the path names must not stand in the body as well.
    for (kind, mut body, ..) in bad_others() {
        let (method, path, Some((id, value))) = route(kind) else { continue };
        body[id] = json!(value);
        let answer = system.send(system.request(method, &path).json(&body)).await;
        names(&answer, id, "unknown_field", &format!("{method} {path} {body}"));
    }
    assert_eq!(last_command(&system).await, before, "none of these was stored");
    still_sells(&system).await;
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_as_http_has_it() {
    let system = shop().await;
    let before = last_command(&system).await;
    let order = card_order("ann", "mug", 1, "tok_ok").to_string();
    for kind in ["text/plain", "application/xml", "application/x-www-form-urlencoded", "json", ""] {
        let request = system.request("POST", "/v1/orders").header("Content-Type", kind);
        problem(&system.send(request.body(order.clone())).await, 415, kind);
    }
    let request = system.request("POST", "/v1/orders").body(order.clone());
    problem(&system.send(request).await, 415, "no content type");
    let request = system.request("POST", "/v1/orders").header("Content-Encoding", "gzip");
    let request = request.header("Content-Type", "application/json").body(order.clone());
    problem(&system.send(request).await, 415, "compressed");

    let place = || {
        let request = system.request("POST", "/v1/orders").body(order.clone());
        request.header("Content-Type", "application/json")
    };
    let long = "k".repeat(256);
    for key in [&b""[..], b"a b", b"a\tb", "schlüssel".as_bytes(), long.as_bytes()] {
        let answer = system.send(place().header("Idempotency-Key", key)).await;
        names(&answer, "Idempotency-Key", "invalid", &String::from_utf8_lossy(key));
    }
    let twice = place().header("Idempotency-Key", "a").header("Idempotency-Key", "b");
    names(&system.send(twice).await, "Idempotency-Key", "duplicate", "two keys");

    let bad = [
        ("POST", "/v1/orders/7/cancel", "orderId"),
        ("GET", "/v1/orders/7", "orderId"),
        ("GET", "/v1/orders/018f2d5e-7b3a-7c3e-9c1d-00000000000z", "orderId"),
        ("GET", "/v1/commands/seven", "commandId"),
        ("GET", "/v1/commands/-1", "commandId"),
        ("GET", "/v1/commands/99999999999999999999999", "commandId"),
        ("GET", "/v1/customers/a.b", "customerId"),
        ("GET", "/v1/customers/a%20b/orders", "customerId"),
        ("GET", "/v1/customers/ann/orders?limit=0", "limit"),
        ("GET", "/v1/customers/ann/orders?limit=1000000", "limit"),
        ("GET", "/v1/customers/ann/orders?cursor=x", "cursor"),
        ("GET", "/v1/customers/ann/orders?status=lost", "status"),
        ("GET", "/v1/products/%2e%2e%2fmug", "productId"),
        ("GET", "/v1/products?limit=-1", "limit"),
        ("GET", "/v1/products?page=2", "page"),
        ("GET", "/v1/products?cursor=a.b", "cursor"),
        ("POST", "/v1/products/a*/retire", "productId"),
    ];
    for (method, path, field) in bad {
        let answer = system.send(system.request(method, path)).await;
        let code = match path.rsplit('?').next() {
            Some("limit=0" | "limit=1000000") => "out_of_range",
            Some("page=2") => "unknown_field",
            _ => "invalid",
        };
        names(&answer, field, code, path);
    }
    problem(&system.get("/v1/products/%ff").await, 400, "a path that is no text");
    let order = format!("/v1/orders/{NOWHERE}");
    let command = format!("/v1/commands/{NOWHERE}");
    let unknown = ["/v1/customers/nobody", "/v1/products/none", "/v1/commands/999999999"];
    let nothing = ["/v1", "/v1/nothing", "/v1/orders/", "/v2/orders", &order, &command];
    for path in unknown.into_iter().chain(nothing) {
        let answer = system.get(path).await;
        problem(&answer, 404, path);
        assert_eq!(answer.text("/type"), "/problems/not-found", "{path}");
    }
    for (method, path, allowed) in [
        ("DELETE", "/v1/orders", "POST"),
        ("PATCH", order.as_str(), "GET"),
        ("GET", "/v1/products/mug/retire", "POST"),
        ("POST", "/v1/products/mug", "PUT"),
    ] {
        let answer = system.send(system.request(method, path)).await;
        problem(&answer, 405, path);
        assert!(answer.header("allow").contains(allowed), "{method} {path}: {answer:?}");
    }
    assert_eq!(last_command(&system).await, before, "none of these was stored");

    // Preferences that are not understood are ignored (RFC 7240, section 2).
    for prefer in ["wait=soon", "wait=-1", "respond-async", ";;,=", "wait=99999999999999999999"] {
        let answer = system.send(place().header("Prefer", prefer)).await;
        assert_eq!(answer.status, 202, "{prefer}: {answer:?}");
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_commands_over_nats_are_rejected_by_name_and_unreadable_ones_are_kept_as_well() {
    let system = shop().await;
    let mut rejected = Vec::new();
    for (kind, mut body, field, _) in bad_orders().into_iter().chain(bad_others()) {
        if let (_, _, Some((id, value))) = route(kind) {
            body[id] = json!(value);
        }
        rejected.push((system.publish(kind, &body).await, field));
    }
    for (field, value) in [
        ("commandId", json!("seven")),
        ("commandId", json!(7)),
        ("idempotencyKey", json!("")),
        ("idempotencyKey", json!("a b")),
        ("idempotencyKey", json!("k".repeat(256))),
    ] {
        let body = order_with(&format!("/{field}"), value);
        rejected.push((system.publish("order.place", &body).await, field));
    }
    let mut garbage = Vec::new();
    for body in no_objects().into_iter().chain(too_large()).chain([Vec::new()]) {
        let sequence = system.publish_raw("order.place", body.clone()).await;
        garbage.push((sequence, "order.place", body));
        rejected.push((sequence, "body"));
    }
    let order = card_order("ann", "mug", 1, "tok_ok").to_string().into_bytes();
    for kind in ["order.fly", "order", "order.place.now", "customer.place", "Order.Place"] {
        let sequence = system.publish_raw(kind, order.clone()).await;
        garbage.push((sequence, kind, order.clone()));
        rejected.push((sequence, "subject"));
    }
    for (sequence, field) in rejected {
        let outcome = system.outcome(&sequence.to_string()).await;
        assert_eq!(outcome["status"], "rejected", "{field}: {outcome}");
        assert_eq!(outcome["reason"], "malformed_command", "{field}: {outcome}");
        let detail = outcome["detail"].as_str().unwrap_or("");
        assert!(detail.starts_with(&format!("{field}: ")), "{field}: {outcome}");
    }
    still_sells(&system).await;

    // What could not even be read is kept for the operator, byte for byte; the rest is not.
    let kept = parked(&system).await;
    assert_eq!(kept.len(), garbage.len());
    for (sequence, kind, body) in garbage {
        let message = kept
            .iter()
            .find(|message| number(message) == sequence)
            .unwrap_or_else(|| panic!("{kind} {sequence} is not parked"));
        assert_eq!(message.payload, body);
        let place = format!("{}.{sequence}", system.topology.parked("validation", "command"));
        assert_eq!(message.subject.as_str(), place);
        assert_eq!(header(message, "Millrace-Subject"), system.topology.command(kind));
        assert_eq!(header(message, "Millrace-Stream"), system.topology.commands_stream());
        assert!(!header(message, "Millrace-Reason").is_empty());
    }
    system.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_command_with_an_id_of_its_own_is_rejected_under_it() {
    let system = shop().await;
    let mut body = order_with("/lines", json!([]));
    body["commandId"] = json!(NOWHERE);
    let sequence = system.publish("order.place", &body).await;
    for id in [NOWHERE, &sequence.to_string()] {
        let outcome = system.outcome(id).await;
        assert_eq!(outcome["commandId"], NOWHERE);
        assert_eq!(outcome["reason"], "malformed_command", "{outcome}");
    }
    still_sells(&system).await;
    system.stop().await;
}
