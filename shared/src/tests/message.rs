//! The envelope: what is read, what is refused, and how causes are handed on.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{at, every_event, history, order_id, stamp};
use crate::ids::{CommandId, EventId};
use crate::message::{Cause, CommandOutcome, Event, EventError, SCHEMA, is_traceparent, now};
use crate::order::Order;

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn paid() -> Event {
    let [validated, _, _, paid, ..] = every_event();
    let order = history(&[validated, paid.clone()]).pop().unwrap();
    let cause = Cause {
        causation: stamp(2).causation,
        correlation: stamp(1).causation,
        traceparent: Some(TRACE.to_owned()),
    };
    Event::order(&paid, &order, &cause).unwrap()
}

fn json(event: &Event) -> Value {
    serde_json::from_slice(&event.encode().unwrap()).unwrap()
}

fn decode(value: &Value) -> Result<Event, EventError> {
    Event::decode(value.to_string().as_bytes())
}

#[test]
fn what_is_wrong_with_an_event_is_told_without_the_texts_in_it() {
    for text in ["Zebedee", "a \"quoted\", expected Zebedee"] {
        let json = serde_json::json!({ "id": text }).to_string();
        let error = anyhow::Error::new(Event::decode(json.as_bytes()).unwrap_err());
        let said = format!("{error:#}");
        assert!(!said.contains("Zebedee") && said.contains("line 1"), "{said}");
    }
    let error = anyhow::Error::new(Event::decode(b"{}").unwrap_err());
    assert!(format!("{error:#}").contains("missing field `id`"), "{error:#}");
}

#[test]
fn an_event_of_a_newer_schema_is_refused_and_its_version_told() {
    let mut newer = json(&paid());
    newer["schema"] = json!(SCHEMA + 1);
    let error = decode(&newer).unwrap_err();
    assert!(matches!(error, EventError::Newer(version) if version == SCHEMA + 1), "{error:?}");
}

#[test]
fn a_newer_schema_is_told_also_where_the_envelope_has_become_another() {
    for newer in [json!({ "schema": 9 }), json!({ "schema": 9, "subject": "shipment", "id": [] })] {
        let error = decode(&newer).unwrap_err();
        assert!(matches!(error, EventError::Newer(9)), "{error:?}");
    }
}

#[test]
fn what_is_no_event_is_malformed() {
    let good = json(&paid());
    let mut cases = vec![json!({}), json!([]), json!(null), json!("paid"), json!({ "schema": 1 })];
    for name in ["id", "subject", "subjectId", "version", "type", "schema", "data", "state"] {
        let mut without = good.clone();
        without.as_object_mut().unwrap().remove(name);
        cases.push(without);
    }
    for (name, wrong) in [("version", json!(-1)), ("subject", json!("moon")), ("id", json!("7"))] {
        let mut changed = good.clone();
        changed[name] = wrong;
        cases.push(changed);
    }
    for case in cases {
        assert!(matches!(decode(&case), Err(EventError::Malformed(_))), "{case}");
    }
    assert!(matches!(Event::decode(b"\xff\x00"), Err(EventError::Malformed(_))));
}

#[test]
fn fields_that_a_later_program_may_add_are_passed_over() {
    let mut event = json(&paid());
    for path in ["", "/data", "/state", "/state/payment"] {
        event.pointer_mut(path).unwrap()["later"] = json!({ "a": 1 });
    }
    let event = decode(&event).unwrap();
    assert!(event.order_event().is_ok());
    assert!(event.state::<Order>().is_ok());
}

#[test]
fn an_unknown_type_is_no_event_of_its_subject() {
    let mut event = json(&paid());
    event["type"] = json!("teleported");
    assert!(decode(&event).unwrap().order_event().is_err());
    event["type"] = json!("paid\",\"data\":{},\"x\":\"");
    assert!(decode(&event).unwrap().order_event().is_err());
}

#[test]
fn an_event_that_does_not_fit_its_history_cannot_be_folded() {
    let [validated, ..] = every_event();
    let states = history(&[validated]);
    let event = paid();
    assert!(event.fold_order(Some(&states[0]), order_id()).is_ok());
    assert!(event.fold_order(None, order_id()).is_err());
    assert!(event.fold_customer(None).is_err());
    assert!(event.fold_product(None).is_err());
}

#[test]
fn the_id_follows_from_subject_version_and_cause() {
    let event = paid();
    let subject = format!("order/{}", order_id());
    assert_eq!(event.id, EventId::derive(&subject, 2, stamp(2).causation));
    assert_eq!(event.id, paid().id);
    assert_ne!(event.id, EventId::derive(&subject, 3, stamp(2).causation));
    assert_ne!(event.id, EventId::derive(&subject, 2, stamp(3).causation));
}

#[test]
fn what_follows_from_an_event_keeps_its_correlation_and_trace() {
    let event = paid();
    let cause = event.as_cause();
    assert_eq!((cause.causation, cause.correlation), (event.id.0, stamp(1).causation));
    assert_eq!(cause.traceparent.as_deref(), Some(TRACE));
}

#[test]
fn an_outcome_with_a_reason_that_is_not_known_is_never_taken_for_an_acceptance() {
    for unknown in [json!({ "reason": "moon_phase", "detail": "" }), json!({ "reason": 7 })] {
        assert!(serde_json::from_value::<CommandOutcome>(unknown).is_err());
    }
}

#[test]
fn a_command_that_touched_nothing_has_one_event() {
    let id = CommandId(Uuid::from_u128(5));
    let cause = Cause { causation: id.0, correlation: id.0, traceparent: None };
    let outcome = CommandOutcome { refusal: None, about: None, on_behalf_of: None };
    let event = Event::command(id, &outcome, at(0), &cause).unwrap();
    assert_eq!((event.version, event.subject_id.as_str()), (1, id.to_string().as_str()));
    assert_eq!((event.data.get(), event.state.get()), ("{}", "{}"));
}

#[test]
fn moments_have_microseconds() {
    assert_eq!(now().timestamp_subsec_nanos() % 1000, 0);
}

#[test]
fn only_a_w3c_trace_context_is_passed_on() {
    assert!(is_traceparent(TRACE));
    let other = TRACE.to_uppercase();
    for bad in
        ["", "-", "00-0-0-01", &TRACE[1..], &format!("{TRACE}-x"), &format!("{TRACE}\n"), &other]
    {
        assert!(!is_traceparent(bad), "{bad:?}");
    }
    // Ids of nothing but zeros, and the version that is none.
    for (part, bad) in [(3..35, "0".repeat(32)), (36..52, "0".repeat(16)), (0..2, "ff".to_owned())]
    {
        let mut text = TRACE.to_owned();
        text.replace_range(part, &bad);
        assert!(!is_traceparent(&text), "{text}");
    }
}
