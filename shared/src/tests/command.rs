//! Bad messages: whatever the bytes are, reading them gives a command or says what is wrong, and
//! never panics.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::example;
use crate::command::{COMMAND_ID_HEADER, KEY_HEADER, KINDS, MAX_BYTES, Received, check_key};

const PLACE: &str = "order.place";

fn read(kind: &str, payload: &[u8]) -> Received {
    Received::read(kind, payload, |_| None, ("millrace_COMMANDS", 7))
}

/// Field and code of the one error, and whether the message is garbage.
fn error(payload: &[u8]) -> (String, String, bool) {
    let received = read(PLACE, payload);
    let errors = received.command.unwrap_err().0;
    assert_eq!(errors.len(), 1, "{errors:?}");
    (errors[0].field.clone(), errors[0].code.clone(), received.garbage)
}

#[test]
fn what_is_no_json_object_is_garbage() {
    let place = example(PLACE).to_string();
    let mut invalid_utf8 = place.clone().into_bytes();
    let name = place.find("ALFKI").unwrap();
    invalid_utf8[name] = 0xff;
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", b"".to_vec()),
        ("blanks", b" \n ".to_vec()),
        ("text", b"hello".to_vec()),
        ("a list", b"[]".to_vec()),
        ("null", b"null".to_vec()),
        ("a number", b"1".to_vec()),
        ("half of it", place.as_bytes()[..place.len() / 2].to_vec()),
        ("two objects", format!("{place}{place}").into_bytes()),
        ("a comma too many", b"{\"a\":1,}".to_vec()),
        ("a comment", b"{} // ok".to_vec()),
        ("a byte order mark", b"\xef\xbb\xbf{}".to_vec()),
        ("UTF-16", "{}".encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("invalid UTF-8", invalid_utf8),
        ("a NUL after it", format!("{place}\0").into_bytes()),
        ("a raw control character", b"{\"customerId\":\"AL\x01FKI\"}".to_vec()),
        ("half a surrogate pair", br#"{"customerId":"\ud800"}"#.to_vec()),
        ("a number out of range", br#"{"lines":1e400}"#.to_vec()),
        ("NaN", br#"{"lines":NaN}"#.to_vec()),
        ("100,000 lists", vec![b'['; 60_000]),
        ("nested lists in a field", format!("{{\"a\":{}", "[".repeat(60_000)).into_bytes()),
        ("nested objects", "{\"a\":".repeat(10_000).into_bytes()),
        ("5 MB", vec![b' '; 5_000_000]),
        ("a good command of 5 MB", format!("{place}{}", " ".repeat(5_000_000)).into_bytes()),
        ("100,000 lists above the limit", vec![b'['; 100_000]),
    ];
    for (what, payload) in cases {
        assert_eq!(error(&payload), ("body".to_owned(), "invalid".to_owned(), true), "{what}");
    }
}

#[test]
fn a_deep_value_in_a_field_is_refused() {
    // serde_json reads 127 levels; a tree of that depth is refused as any other list is.
    let (open, close) = ("[".repeat(120), "]".repeat(120));
    let (field, ..) = error(format!("{{\"customerId\":{open}{close}}}").as_bytes());
    assert_eq!(field, "customerId");
}

#[test]
fn a_command_may_be_as_large_as_the_limit() {
    let mut payload = example(PLACE).to_string().into_bytes();
    payload.resize(MAX_BYTES, b' ');
    assert!(read(PLACE, &payload).command.is_ok());
    payload.push(b' ');
    assert_eq!(error(&payload), ("body".to_owned(), "invalid".to_owned(), true));
}

#[test]
fn of_a_field_that_is_there_twice_the_last_one_counts() {
    // As in most JSON readers (RFC 8259 leaves it open); the edge reads with the same code.
    let body = r#"{"productId":"TEA","quantity":1,"quantity":2}"#;
    let twice = read("product.restock", body.as_bytes());
    let once = read("product.restock", br#"{"productId":"TEA","quantity":2}"#);
    assert_eq!(twice, once);
    assert!(once.command.is_ok());
}

#[test]
fn an_unknown_kind_is_garbage_and_its_error_names_the_subject() {
    for kind in ["", "order", "order.place.now", "order.teleport", "shop.cmd.order.place"] {
        let received = read(kind, b"{}");
        assert!(received.garbage, "{kind:?}");
        assert_eq!(received.command.unwrap_err().0[0].field, "subject");
    }
}

#[test]
fn an_object_with_a_bad_field_is_no_garbage() {
    let received = read(PLACE, b"{}");
    assert!(!received.garbage);
    assert_eq!(received.command_id, received.fallback_id);
}

#[test]
fn the_sentence_of_a_malformed_command_names_every_field() {
    let body = json!({ "productId": "TEA", "quantity": 0, "foo": 1 });
    let malformed = read("product.restock", body.to_string().as_bytes()).command.unwrap_err();
    assert!(malformed.to_string().starts_with("foo: unknown field `foo`"), "{malformed}");
}

#[test]
fn a_key_is_1_to_255_visible_ascii_characters() {
    for good in ["a", "cart-1", "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", &"x".repeat(255)] {
        assert_eq!(check_key(good), Ok(()));
    }
    for bad in ["", " ", "a b", "a\n", "a\0", "ä", "\u{7f}", &"x".repeat(256)] {
        let error = check_key(bad).unwrap_err();
        assert_eq!((error.field.as_str(), error.code.as_str()), ("idempotencyKey", "invalid"));
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(json!("TEA")),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let name =
            prop_oneof![Just("lines".to_owned()), Just("payment".to_owned()), any::<String>()];
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((name, inner), 0..6).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_make_reading_panic(
        kind in 0..11_usize, payload in vec(any::<u8>(), 0..300),
        id in option::of(any::<String>()), key in option::of(any::<String>()), sequence in any::<u64>()
    ) {
        let header = |name: &str| match name {
            COMMAND_ID_HEADER => id.as_deref(),
            KEY_HEADER => key.as_deref(),
            _ => None,
        };
        let kind = KINDS.get(kind).copied().unwrap_or("nonsense");
        let received = Received::read(kind, &payload, header, ("millrace_COMMANDS", sequence));
        let again = Received::read(kind, &payload, header, ("millrace_COMMANDS", sequence));
        prop_assert_eq!(received, again);
    }

    #[test]
    fn no_damage_to_a_good_command_makes_reading_panic(
        kind in 0..10_usize, damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in option::weighted(0.2, any::<prop::sample::Index>())
    ) {
        let mut payload = example(KINDS[kind]).to_string().into_bytes();
        for (place, byte) in damage {
            let place = place.index(payload.len());
            payload[place] = byte;
        }
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len()));
        }
        let received = read(KINDS[kind], &payload);
        prop_assert!(received.command.map_or_else(|wrong| !wrong.0.is_empty(), |_| true));
    }

    #[test]
    fn no_json_makes_reading_panic_and_what_is_read_is_a_fixed_point(
        kind in 0..10_usize, field in any::<prop::sample::Index>(), value in any_json()
    ) {
        let mut body = example(KINDS[kind]);
        let names: Vec<String> = body.as_object().unwrap().keys().cloned().collect();
        body[&names[field.index(names.len())]] = value;
        if let Ok(command) = read(KINDS[kind], body.to_string().as_bytes()).command {
            let written = serde_json::to_vec(&command.command).unwrap();
            prop_assert_eq!(read(KINDS[kind], &written).command.unwrap().command, command.command);
        }
    }
}
