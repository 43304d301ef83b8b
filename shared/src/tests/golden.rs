//! Golden files: the JSON of every event and command, frozen. What is stored must stay readable,
//! and what is written must stay what others read.
//!
//! `MILLRACE_BLESS=1 cargo test -p millrace-shared golden` writes the files anew. A file that has
//! been released is never changed: a new schema version gets a folder of its own, and the old files
//! stay, to be read.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::{
    at, customer, every_event, example, history, order_id, placement, product, stamp, usd,
};
use crate::command::{
    Command, DefineProduct, DeliverOrder, KINDS, OrderStep, PlaceOrder, RegisterCustomer,
    RequestedLine, RestockProduct, RetireProduct, SetCreditLimit, ShipOrder, read_object,
};
use crate::customer::{Customer, CustomerEvent};
use crate::ids::CommandId;
use crate::message::{About, Cause, CommandOutcome, Event, Subject};
use crate::order::{Order, OrderEvent};
use crate::product::{Product, ProductEvent, Stock};
use crate::reason::{Reason, Refusal};

/// Holds `written` against the file; returns the file's text.
fn golden(name: &str, written: &[u8]) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/v1");
    let file = folder.join(format!("{name}.json"));
    if std::env::var_os("MILLRACE_BLESS").is_some_and(|bless| bless == "1") {
        fs::create_dir_all(&folder).unwrap();
        fs::write(&file, [written, b"\n"].concat()).unwrap();
    }
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
    let text = text.strip_suffix('\n').unwrap_or(&text).to_owned();
    assert_eq!(text, String::from_utf8_lossy(written), "{name} is written otherwise");
    text
}

fn cause() -> Cause {
    Cause {
        causation: stamp(1).causation,
        correlation: Uuid::from_u128(0xc0),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
    }
}

/// Checks both ways: the value is written as the file has it, and the file is read as the value.
fn check<E, S>(name: &str, message: &Event, event: &E, state: &S, read: impl Fn(&Event) -> E)
where
    E: PartialEq + std::fmt::Debug,
    S: PartialEq + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let text = golden(name, &message.encode().unwrap());
    let stored = Event::decode(text.as_bytes()).unwrap();
    assert_eq!(&read(&stored), event, "{name}");
    assert_eq!(&stored.state::<S>().unwrap(), state, "{name}");
    let envelope = |event: &Event| {
        (
            (event.id, event.subject, event.subject_id.clone(), event.version, event.kind.clone()),
            (event.schema, event.occurred_at, event.causation, event.correlation),
            event.traceparent.clone(),
        )
    };
    assert_eq!(envelope(&stored), envelope(message), "{name}");
    assert_eq!(stored.encode().unwrap(), text, "{name} is not written as it was read");
}

fn check_order(name: &str, events: &[OrderEvent]) {
    let states = history(events);
    let (event, state) = (events.last().unwrap(), states.last().unwrap());
    let cause = Cause { causation: stamp(state.version).causation, ..cause() };
    let message = Event::order(event, state, &cause).unwrap();
    check::<_, Order>(name, &message, event, state, |stored| stored.order_event().unwrap());
    let before = states.len().checked_sub(2).map(|index| &states[index]);
    assert_eq!(&message.fold_order(before, order_id()).unwrap(), state, "{name}");
}

#[test]
fn golden_order_events() {
    let [
        validated,
        rejected,
        declined,
        paid,
        shipped,
        delivered,
        cancelled,
        expired,
        asked,
        refunded,
        unknown,
    ] = every_event();
    let bought = [validated.clone(), paid.clone()];
    let and = |more: &[&OrderEvent]| -> Vec<OrderEvent> {
        bought.iter().chain(more.iter().copied()).cloned().collect()
    };
    check_order("order-validated", &bought[..1]);
    check_order("order-rejected", &[rejected]);
    check_order("order-rejected-payment", &[validated.clone(), declined]);
    check_order("order-payment-unknown", &[validated.clone(), unknown]);
    check_order("order-paid", &bought);
    check_order("order-shipped", &and(&[&shipped]));
    check_order("order-delivered", &and(&[&shipped, &delivered]));
    check_order("order-cancelled", &[validated.clone(), cancelled]);
    check_order("order-expired", &[validated, expired]);
    check_order("order-refund-requested", &and(&[&shipped, &asked]));
    check_order("order-refunded", &and(&[&asked, &refunded]));
}

#[test]
fn golden_customer_events() {
    let check = |name: &str, event: &CustomerEvent, state: &Customer| {
        let message = Event::customer(event, state, at(3), &cause()).unwrap();
        check(name, &message, event, state, |stored| stored.customer_event().unwrap());
    };
    let (name, limit) = ("Alfreds Futterkiste".to_owned(), Some(usd(100_000)));
    let state = customer(limit, 0);
    check("customer-registered", &CustomerEvent::Registered { name, credit_limit: limit }, &state);
    let state = Customer { version: 2, ..customer(Some(usd(50_000)), 0) };
    let event = CustomerEvent::CreditLimitSet { credit_limit: usd(50_000) };
    check("customer-credit-limit-set", &event, &state);
    let state = Customer { version: 3, ..customer(Some(usd(50_000)), 998) };
    check("customer-credit-changed", &CustomerEvent::CreditChanged { credit_used: 998 }, &state);
}

#[test]
fn golden_product_events() {
    let check = |name: &str, event: &ProductEvent, state: &Product| {
        let message = Event::product(event, state, at(3), &cause()).unwrap();
        check(name, &message, event, state, |stored| stored.product_event().unwrap());
    };
    let state = product("TEA", usd(499), 10);
    let event = ProductEvent::Defined {
        name: state.name.clone(),
        brand: state.brand.clone(),
        category: state.category.clone(),
        price: state.price,
        initial_stock: 10,
    };
    check("product-defined", &event, &state);
    let state = Product { version: 2, ..product("TEA", usd(499), 15) };
    check("product-restocked", &ProductEvent::Restocked { quantity: 5 }, &state);
    let stock = Stock { available: 12, reserved: 2, sold: 1 };
    let state = Product { version: 3, stock, ..state };
    check("product-stock-changed", &ProductEvent::StockChanged { stock }, &state);
    let state = Product { version: 4, active: false, ..state };
    check("product-retired", &ProductEvent::Retired {}, &state);
}

#[test]
fn golden_command_events() {
    let about = Some(About { subject: Subject::Order, id: order_id().to_string() });
    let refusal = Refusal::new(Reason::NotAllowed, "an order that is shipped cannot be cancelled");
    let outcomes = [
        (
            "command-accepted",
            CommandOutcome { refusal: None, about: about.clone(), on_behalf_of: None },
        ),
        ("command-rejected", CommandOutcome { refusal: Some(refusal), about, on_behalf_of: None }),
    ];
    for (name, outcome) in outcomes {
        let command = CommandId(cause().causation);
        let message = Event::command(command, &outcome, at(3), &cause()).unwrap();
        assert_eq!(format!("command-{}", message.kind), name);
        check(name, &message, &outcome, &outcome, |stored| {
            serde_json::from_str(stored.data.get()).unwrap()
        });
    }
}

/// The typed value of each command's example.
fn typed_examples() -> [Command; 10] {
    let order_id = order_id();
    let customer_id = "ALFKI".parse().unwrap();
    let product_id = "TEA".parse().unwrap();
    let price = usd(1234);
    let line = |id: &str, quantity: u32| RequestedLine {
        product_id: id.parse().unwrap(),
        quantity,
        unit_price: Some(price),
    };
    let step = |reason: &str| OrderStep { order_id, reason: Some(reason.to_owned()) };
    let customer = customer(Some(price), 0);
    [
        Command::PlaceOrder(PlaceOrder {
            order_id: Some(order_id),
            customer_id,
            lines: vec![line("TEA", 2), line("CUP", 1)],
            payment: placement().payment,
        }),
        Command::CancelOrder(step("changed my mind")),
        Command::ShipOrder(ShipOrder {
            order_id,
            carrier: "Speedy Express".to_owned(),
            tracking_number: "SE-1".to_owned(),
        }),
        Command::DeliverOrder(DeliverOrder { order_id }),
        Command::RefundOrder(step("arrived broken")),
        Command::RegisterCustomer(RegisterCustomer {
            customer_id: Some(customer.customer_id.clone()),
            name: customer.name,
            credit_limit: Some(price),
        }),
        Command::SetCreditLimit(SetCreditLimit {
            customer_id: customer.customer_id,
            credit_limit: price,
        }),
        Command::DefineProduct(DefineProduct {
            product_id,
            name: "Assam".to_owned(),
            brand: "Millrace".to_owned(),
            category: "Tea".to_owned(),
            price,
            initial_stock: Some(10),
        }),
        Command::RestockProduct(RestockProduct { product_id: "TEA".parse().unwrap(), quantity: 5 }),
        Command::RetireProduct(RetireProduct { product_id: "TEA".parse().unwrap() }),
    ]
}

#[test]
fn golden_commands() {
    // The written form is also what fingerprints, and so derived command ids, are made of.
    for (kind, command) in KINDS.into_iter().zip(typed_examples()) {
        let name = format!("cmd-{}", kind.replace('.', "-"));
        let text = golden(&name, &serde_json::to_vec(&command).unwrap());
        let body = read_object(text.as_bytes()).unwrap();
        assert_eq!(serde_json::Value::Object(body.clone()), example(kind));
        assert_eq!(Command::read(kind, body), Ok(command), "{kind}");
    }
}

#[test]
fn every_golden_file_is_checked() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/v1");
    let count = |start: &str| {
        let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with(start)).count()
    };
    if std::env::var_os("MILLRACE_BLESS").is_none() {
        let counts = ["order-", "customer-", "product-", "command-", "cmd-", ""].map(count);
        assert_eq!(counts, [11, 3, 4, 2, 10, 30]);
    }
}
