//! Bad fields: each error names the right field and tells in which way it is bad.

use serde_json::{Map, Value, json};

use super::example;
use crate::command::{Command, FieldError, KINDS, MAX_LINES, MAX_QUANTITY};
use crate::money::MAX_AMOUNT;

fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        value => panic!("{value} is no object"),
    }
}

fn errors(kind: &str, body: Value) -> Vec<FieldError> {
    Command::read(kind, fields(body)).err().map(|malformed| malformed.0).unwrap_or_default()
}

/// The example with `value` at `pointer` (RFC 6901).
fn with(kind: &str, pointer: &str, value: Value) -> Value {
    let mut body = example(kind);
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match body.pointer_mut(parent).unwrap() {
        Value::Object(fields) => drop(fields.insert(name.to_owned(), value)),
        Value::Array(lines) => lines[name.parse::<usize>().unwrap()] = value,
        _ => panic!("nothing to set at {pointer}"),
    }
    body
}

/// All pointers into a value, without the root.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(list) => {
            list.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    for (name, value) in inner {
        let pointer = format!("{at}/{name}");
        pointers(value, &pointer, found);
        found.push(pointer);
    }
}

fn every_pointer() -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    for kind in KINDS {
        let mut found = Vec::new();
        pointers(&example(kind), "", &mut found);
        all.extend(found.into_iter().map(|pointer| (kind, pointer)));
    }
    all
}

/// `/lines/0/quantity` as errors name it: `lines[0].quantity`.
fn path(pointer: &str) -> String {
    let mut path = String::new();
    for segment in pointer.split('/').skip(1) {
        if segment.bytes().all(|b| b.is_ascii_digit()) {
            path.extend(["[", segment, "]"]);
        } else {
            path.push_str(if path.is_empty() { "" } else { "." });
            path.push_str(segment);
        }
    }
    path
}

fn nth(index: usize) -> String {
    format!("P{index}")
}

fn lines(count: usize) -> Value {
    (0..count).map(|index| json!({ "productId": nth(index), "quantity": 1 })).collect()
}

#[test]
fn every_example_is_good() {
    for kind in KINDS {
        assert_eq!(errors(kind, example(kind)), [], "{kind}");
        assert_eq!(Command::read(kind, fields(example(kind))).unwrap().kind(), kind);
    }
}

#[test]
fn bad_values_are_refused_with_field_and_code() {
    let long = |length: usize| json!("x".repeat(length));
    let place = "order.place";
    let cases = [
        (place, "/customerId", json!("a.b"), "customerId", "invalid"),
        (place, "/customerId", json!(""), "customerId", "invalid"),
        (place, "/customerId", json!("ALFKI\u{0}"), "customerId", "invalid"),
        (place, "/customerId", long(65), "customerId", "invalid"),
        (place, "/customerId", json!(7), "customerId", "invalid"),
        (place, "/orderId", json!("7"), "orderId", "invalid"),
        (place, "/lines", json!([]), "lines", "out_of_range"),
        (place, "/lines", lines(MAX_LINES + 1), "lines", "out_of_range"),
        (place, "/lines", json!({}), "lines", "invalid"),
        (place, "/lines/0", json!(5), "lines[0]", "invalid"),
        (place, "/lines/1/productId", json!("*"), "lines[1].productId", "invalid"),
        (place, "/lines/1/productId", json!("TEA"), "lines[1].productId", "duplicate"),
        (place, "/lines/0/quantity", json!(0), "lines[0].quantity", "out_of_range"),
        (place, "/lines/0/quantity", json!(MAX_QUANTITY + 1), "lines[0].quantity", "out_of_range"),
        (place, "/lines/0/quantity", json!(-1), "lines[0].quantity", "invalid"),
        (place, "/lines/0/quantity", json!(4_294_967_297_u64), "lines[0].quantity", "invalid"),
        (place, "/lines/0/quantity", json!(u64::MAX), "lines[0].quantity", "invalid"),
        (place, "/lines/0/quantity", json!(1.5), "lines[0].quantity", "invalid"),
        (place, "/lines/0/quantity", json!(1e300), "lines[0].quantity", "invalid"),
        (place, "/lines/0/quantity", json!("1"), "lines[0].quantity", "invalid"),
        (place, "/lines/0/unitPrice", json!(499), "lines[0].unitPrice", "invalid"),
        (place, "/lines/0/unitPrice", json!([499, "USD"]), "lines[0].unitPrice", "invalid"),
        (
            place,
            "/lines/1/unitPrice/amount",
            json!(-1),
            "lines[1].unitPrice.amount",
            "out_of_range",
        ),
        (place, "/lines/1/unitPrice/amount", json!(4.99), "lines[1].unitPrice.amount", "invalid"),
        (place, "/payment", json!("card"), "payment", "invalid"),
        (place, "/payment/method", json!("paypal"), "payment.method", "invalid"),
        (place, "/payment/method", json!("account"), "payment.token", "unknown_field"),
        (place, "/payment/token", json!(null), "payment.token", "missing"),
        (place, "/payment/token", json!(5), "payment.token", "invalid"),
        (place, "/payment/token", json!(""), "payment.token", "invalid"),
        (place, "/payment/token", json!("tok ok"), "payment.token", "invalid"),
        (place, "/payment/token", long(201), "payment.token", "invalid"),
        ("order.cancel", "/orderId", json!(1), "orderId", "invalid"),
        ("order.cancel", "/orderId", json!("ALFKI"), "orderId", "invalid"),
        ("order.cancel", "/reason", json!(""), "reason", "out_of_range"),
        ("order.cancel", "/reason", long(501), "reason", "out_of_range"),
        ("order.refund", "/reason", json!("a\u{0}b"), "reason", "invalid"),
        ("order.refund", "/reason", json!("a\u{85}b"), "reason", "invalid"),
        ("order.ship", "/carrier", json!(" \t "), "carrier", "out_of_range"),
        ("order.ship", "/trackingNumber", json!("1\n2"), "trackingNumber", "invalid"),
        ("customer.register", "/name", json!("\u{1b}[2J"), "name", "invalid"),
        ("customer.register", "/name", long(201), "name", "out_of_range"),
        ("customer.register", "/customerId", json!("ä"), "customerId", "invalid"),
        (
            "customer.register",
            "/creditLimit/amount",
            json!(-1),
            "creditLimit.amount",
            "out_of_range",
        ),
        (
            "customer.register",
            "/creditLimit/currency",
            json!("EURO"),
            "creditLimit.currency",
            "invalid",
        ),
        ("customer.set-credit-limit", "/creditLimit", json!(null), "creditLimit", "invalid"),
        ("product.define", "/price/amount", json!(MAX_AMOUNT + 1), "price.amount", "out_of_range"),
        ("product.define", "/price/amount", json!(i64::MIN), "price.amount", "out_of_range"),
        ("product.define", "/price/amount", json!(u64::MAX), "price.amount", "invalid"),
        ("product.define", "/price/currency", json!("usd"), "price.currency", "invalid"),
        ("product.define", "/price/currency", json!({ "USD": null }), "price.currency", "invalid"),
        ("product.define", "/price/currency", json!(""), "price.currency", "invalid"),
        ("product.define", "/initialStock", json!(-5), "initialStock", "invalid"),
        ("product.define", "/initialStock", json!(1_u64 << 32), "initialStock", "invalid"),
        ("product.define", "/brand", json!(""), "brand", "out_of_range"),
        ("product.define", "/category", long(101), "category", "out_of_range"),
        ("product.restock", "/quantity", json!(0), "quantity", "out_of_range"),
        ("product.restock", "/quantity", json!(MAX_QUANTITY + 1), "quantity", "out_of_range"),
        ("product.retire", "/productId", json!("a b"), "productId", "invalid"),
    ];
    for (kind, pointer, value, field, code) in cases {
        let found = errors(kind, with(kind, pointer, value.clone()));
        let found: Vec<_> = found.iter().map(|e| (e.field.as_str(), e.code.as_str())).collect();
        assert_eq!(found, [(field, code)], "{kind} {pointer} = {value}");
    }
}

#[test]
fn the_largest_values_are_good() {
    let text = |length: usize| json!("ä".repeat(length));
    let cases = [
        ("order.place", "/lines", lines(MAX_LINES)),
        ("order.place", "/lines/0/quantity", json!(MAX_QUANTITY)),
        ("order.place", "/lines/0/unitPrice/amount", json!(MAX_AMOUNT)),
        ("order.place", "/lines/0/unitPrice", json!(null)),
        ("order.place", "/payment", json!({ "method": "account" })),
        ("order.place", "/customerId", json!("x".repeat(64))),
        ("order.cancel", "/reason", text(500)),
        ("order.cancel", "/reason", json!(null)),
        ("customer.register", "/name", text(200)),
        ("customer.register", "/creditLimit/amount", json!(0)),
        ("product.define", "/price/amount", json!(0)),
        ("product.define", "/initialStock", json!(u32::MAX)),
        ("product.restock", "/quantity", json!(MAX_QUANTITY)),
    ];
    for (kind, pointer, value) in cases {
        assert_eq!(errors(kind, with(kind, pointer, value.clone())), [], "{kind} {pointer}");
    }
}

#[test]
fn an_unknown_field_is_refused_by_name_wherever_it_stands() {
    // Names that are the parent's, or that could be taken for the end of the sentence or path.
    let names = ["foo", "payment", "quantity", "token", "a`b", "a.b", "método"];
    let mut objects: Vec<_> = KINDS.map(|kind| (kind, String::new())).into();
    objects.extend(
        every_pointer()
            .into_iter()
            .filter(|(kind, pointer)| example(kind).pointer(pointer).is_some_and(Value::is_object)),
    );
    for (kind, object) in objects {
        for name in names {
            let pointer = format!("{object}/{name}");
            if example(kind).pointer(&pointer).is_some() {
                continue;
            }
            let found = errors(kind, with(kind, &pointer, json!(1)));
            assert_eq!(found.len(), 1, "{kind} {pointer}");
            assert_eq!(
                (&found[0].field, found[0].code.as_str()),
                (&path(&pointer), "unknown_field")
            );
        }
    }
}

#[test]
fn a_field_without_a_name_is_refused() {
    let found = errors("order.deliver", with("order.deliver", "/", json!(1)));
    assert_eq!((found[0].field.as_str(), found[0].code.as_str()), ("body", "unknown_field"));
}

#[test]
fn a_missing_field_is_named_with_its_whole_path() {
    let optional = ["orderId", "unitPrice", "reason", "customerId", "creditLimit", "initialStock"];
    for (kind, pointer) in every_pointer() {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let mut body = example(kind);
        let Some(Value::Object(fields)) = body.pointer_mut(parent) else { continue };
        fields.remove(name).unwrap();
        let found = errors(kind, body);
        if found.is_empty() {
            assert!(optional.contains(&name), "{kind} {pointer}");
        } else {
            assert_eq!(found.len(), 1, "{kind} {pointer}");
            assert_eq!((&found[0].field, found[0].code.as_str()), (&path(&pointer), "missing"));
        }
    }
}

#[test]
fn a_value_of_another_type_is_an_error_at_its_place() {
    for (kind, pointer) in every_pointer() {
        for wrong in [json!(true), json!(1.5), json!([]), json!({}), json!([1, "USD"])] {
            let found = errors(kind, with(kind, &pointer, wrong.clone()));
            assert!(!found.is_empty(), "{kind} {pointer} = {wrong}");
            for error in found {
                // For `{}` it is the first of the object's fields, which is missing.
                assert!(error.field.starts_with(&path(&pointer)), "{pointer} = {wrong}: {error:?}");
            }
        }
    }
}

#[test]
fn all_that_is_out_of_range_is_told_at_once() {
    let body = json!({
        "customerId": "ALFKI", "payment": { "method": "card", "token": "" },
        "lines": [{ "productId": "TEA", "quantity": 0 }, { "productId": "TEA", "quantity": 1,
                    "unitPrice": { "amount": -1, "currency": "USD" } }]
    });
    let found = errors("order.place", body);
    let fields: Vec<_> = found.iter().map(|error| error.field.as_str()).collect();
    let expected =
        ["lines[0].quantity", "lines[1].unitPrice.amount", "lines[1].productId", "payment.token"];
    assert_eq!(fields, expected);
}

#[test]
fn ten_thousand_lines_are_refused_with_one_error() {
    let found = errors("order.place", with("order.place", "/lines", lines(10_000)));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].field, "lines");
}

#[test]
fn what_a_client_sent_is_quoted_shortly_and_printably() {
    let long = "\u{0}\n".repeat(10_000);
    for body in [
        with("order.place", &format!("/{long}"), json!(1)),
        with("order.place", "/payment/method", json!(long)),
        with("order.place", "/lines/0/quantity", json!(long)),
        with("order.place", "/customerId", json!(long)),
    ] {
        let [error] = &errors("order.place", body)[..] else { panic!("one error") };
        assert!(error.field.chars().count() <= 101 && error.detail.chars().count() <= 301);
        assert!(!format!("{}{}", error.field, error.detail).contains(char::is_control));
    }
}
