//! The ids of commands: given in the body or in headers, or derived so that a retry derives the
//! same.

use serde_json::{Value, json};

use super::example;
use crate::command::{COMMAND_ID_HEADER, Command, KEY_HEADER, KINDS, Received};
use crate::ids::{CommandId, OrderId};

const STREAM: &str = "millrace_COMMANDS";
const ID: &str = "0193b7a2-0000-7000-8000-00000000000a";
const OTHER_ID: &str = "0193b7a2-0000-7000-8000-00000000000b";

/// A message with headers, at a place in the stream.
fn receive(kind: &str, body: &Value, headers: &[(&str, &'static str)], sequence: u64) -> Received {
    let header =
        |name: &str| headers.iter().find(|(header, _)| *header == name).map(|(_, value)| *value);
    Received::read(kind, body.to_string().as_bytes(), header, (STREAM, sequence))
}

fn place(more: &Value) -> Value {
    let mut body = example("order.place");
    body.as_object_mut().unwrap().remove("orderId");
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn order_of(received: &Received) -> OrderId {
    match &received.command.as_ref().unwrap().command {
        Command::PlaceOrder(order) => order.order_id.unwrap(),
        command => panic!("{command:?}"),
    }
}

fn field(received: &Received) -> &str {
    &received.command.as_ref().unwrap_err().0[0].field
}

fn id(text: &str) -> CommandId {
    text.parse().unwrap()
}

#[test]
fn a_redelivery_gets_the_same_ids_and_another_message_others() {
    let body = place(&json!({}));
    let first = receive("order.place", &body, &[], 41);
    assert_eq!(first, receive("order.place", &body, &[], 41));
    assert_eq!(first.command_id, CommandId::from_sequence(STREAM, 41));
    assert_eq!(order_of(&first), OrderId::from_sequence(STREAM, 41));

    let second = receive("order.place", &body, &[], 42);
    assert_ne!(first.command_id, second.command_id);
    assert_ne!(order_of(&first), order_of(&second));
    assert_eq!(first.fingerprint, second.fingerprint, "the body is the same");
}

#[test]
fn the_same_key_is_the_same_command_and_order_wherever_it_is_in_the_stream() {
    let body = place(&json!({ "idempotencyKey": "cart-1" }));
    let first = receive("order.place", &body, &[], 1);
    let second = receive("order.place", &place(&json!({})), &[(KEY_HEADER, "cart-1")], 2);
    assert_eq!(first.command, second.command);
    assert_eq!(order_of(&first), OrderId::from_key(&"ALFKI".parse().unwrap(), "cart-1"));
}

#[test]
fn the_same_key_with_another_body_is_another_command_on_the_same_order() {
    let key = [(KEY_HEADER, "cart-1")];
    let first = receive("order.place", &place(&json!({})), &key, 1);
    let other = json!({ "payment": { "method": "account" } });
    let second = receive("order.place", &place(&other), &key, 2);
    assert_ne!(first.command_id, second.command_id);
    assert_ne!(first.fingerprint, second.fingerprint);
    assert_eq!(order_of(&first), order_of(&second));
    let key_id = |received: &Received| received.command.as_ref().unwrap().key_id;
    assert!(key_id(&first).is_some());
    assert_eq!(key_id(&first), key_id(&second));
}

#[test]
fn a_key_is_one_customers_own() {
    let key = [(KEY_HEADER, "cart-1")];
    let first = receive("order.place", &place(&json!({})), &key, 1);
    let other = receive("order.place", &place(&json!({ "customerId": "ANATR" })), &key, 1);
    assert_ne!(order_of(&first), order_of(&other));
    assert_ne!(first.command.unwrap().key_id, other.command.unwrap().key_id);
}

#[test]
fn a_key_is_one_kinds_own() {
    let key = [(KEY_HEADER, "k")];
    let mut seen = std::collections::HashSet::new();
    for kind in KINDS {
        let body = if kind == "order.place" { place(&json!({})) } else { example(kind) };
        let command = receive(kind, &body, &key, 1).command.unwrap();
        assert!(seen.insert(command.command_id.0), "{kind}");
        assert!(seen.insert(command.key_id.unwrap()), "{kind}");
    }
}

#[test]
fn a_body_is_the_same_however_it_is_written() {
    let compact = r#"{"productId":"TEA","quantity":5}"#;
    let spaced = "{ \"quantity\": 5,\n \"productId\": \"T\\u0045A\" }";
    let read =
        |text: &str| Received::read("product.restock", text.as_bytes(), |_| None, (STREAM, 1));
    assert_eq!(read(compact), read(spaced));
}

#[test]
fn a_client_may_choose_the_command_id_in_the_body_or_in_a_header() {
    let in_body = place(&json!({ "commandId": ID }));
    let header = [(COMMAND_ID_HEADER, ID)];
    for received in [
        receive("order.place", &in_body, &[], 9),
        receive("order.place", &place(&json!({})), &header, 9),
        receive("order.place", &in_body, &header, 9),
    ] {
        assert_eq!(received.command_id, id(ID));
        assert_eq!(received.fallback_id, CommandId::from_sequence(STREAM, 9));
        assert_eq!(received.command.unwrap().command_id, id(ID));
    }
}

#[test]
fn the_ids_are_no_part_of_the_body_that_the_fingerprint_tells() {
    let plain = receive("order.deliver", &example("order.deliver"), &[], 1);
    let mut body = example("order.deliver");
    body["commandId"] = json!(ID);
    assert_eq!(receive("order.deliver", &body, &[], 2).fingerprint, plain.fingerprint);
}

#[test]
fn ids_that_differ_in_header_and_body_are_refused() {
    let body = place(&json!({ "commandId": ID }));
    let received = receive("order.place", &body, &[(COMMAND_ID_HEADER, OTHER_ID)], 5);
    assert_eq!(field(&received), "commandId");
    assert_eq!(received.command_id, received.fallback_id, "neither of the two can be believed");

    let body = place(&json!({ "idempotencyKey": "a" }));
    assert_eq!(field(&receive("order.place", &body, &[(KEY_HEADER, "b")], 5)), "idempotencyKey");
}

#[test]
fn a_bad_id_or_key_is_refused_by_name() {
    for bad in [json!("7"), json!(7), json!({}), json!(""), json!("\u{0}")] {
        let received = receive("order.place", &place(&json!({ "commandId": bad })), &[], 5);
        assert_eq!(field(&received), "commandId");
        assert_eq!(received.command_id, received.fallback_id);
    }
    for bad in [json!(""), json!(7), json!("a b"), json!("ä"), json!("x".repeat(256)), json!([])] {
        let received = receive("order.place", &place(&json!({ "idempotencyKey": bad })), &[], 5);
        assert_eq!(field(&received), "idempotencyKey");
    }
    let received = receive("order.place", &place(&json!({})), &[(KEY_HEADER, "a b")], 5);
    assert_eq!(field(&received), "idempotencyKey");
}

#[test]
fn whatever_else_is_wrong_the_outcome_is_kept_under_the_clients_command_id() {
    for wrong in
        [json!({ "idempotencyKey": 7 }), json!({ "idempotencyKey": "" }), json!({ "foo": 1 })]
    {
        let mut body = place(&wrong);
        body["commandId"] = json!(ID);
        let received = receive("order.place", &body, &[], 5);
        assert!(received.command.is_err());
        assert_eq!(received.command_id, id(ID), "{wrong}");
        assert!(!received.garbage);
    }
}

#[test]
fn null_ids_are_no_ids() {
    let body = place(&json!({ "commandId": null, "idempotencyKey": null, "orderId": null }));
    let received = receive("order.place", &body, &[], 5);
    assert_eq!(received, receive("order.place", &place(&json!({})), &[], 5));
}

#[test]
fn an_order_id_beside_a_key_must_be_the_keys() {
    let own = OrderId::from_key(&"ALFKI".parse().unwrap(), "cart-1");
    let key = [(KEY_HEADER, "cart-1")];
    let with = receive("order.place", &place(&json!({ "orderId": own })), &key, 1);
    let without = receive("order.place", &place(&json!({})), &key, 1);
    assert_eq!(with.command, without.command);
    let wrong = receive("order.place", &place(&json!({ "orderId": ID })), &key, 1);
    assert_eq!(field(&wrong), "orderId");
}

#[test]
fn a_customer_registered_without_an_id_gets_the_commands() {
    let body = json!({ "name": "Alfreds Futterkiste" });
    let received = receive("customer.register", &body, &[(KEY_HEADER, "k")], 1);
    let again = receive("customer.register", &body, &[(KEY_HEADER, "k")], 2);
    assert_eq!(received.command, again.command);
    match received.command.unwrap().command {
        Command::RegisterCustomer(customer) => {
            assert_eq!(customer.customer_id.unwrap().as_str(), received.command_id.to_string());
        }
        command => panic!("{command:?}"),
    }
}

#[test]
fn a_message_that_cannot_be_read_is_told_from_another_one() {
    let read = |kind: &str, text: &[u8]| Received::read(kind, text, |_| None, (STREAM, 1));
    assert_eq!(read("order.place", b"x"), read("order.place", b"x"));
    assert_ne!(read("order.place", b"x").fingerprint, read("order.place", b"y").fingerprint);
    assert_ne!(read("order.place", b"x").fingerprint, read("order.ship", b"x").fingerprint);
}
