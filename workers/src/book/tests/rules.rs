//! Single rules: given, when, then.

use millrace_shared::command::ON_BEHALF_HEADER;

use super::*;

#[test]
fn the_last_piece_goes_to_the_first_order_of_the_batch() {
    let mut world = World::default();
    world.send(&[register("ANA", 0), define("TEA", &usd(5), 1)]);
    let answers = world.send(&[place(0, &[("TEA", 1)], "card"), place(1, &[("TEA", 1)], "card")]);
    assert_eq!(answers, [None, Some(Reason::OutOfStock)]);
    world.check_counts();
}

#[test]
fn an_order_that_is_refused_gives_its_reason() {
    let mut world = World::default();
    let euro = json!({ "amount": 5, "currency": "EUR" });
    world.send(&[register("ANA", 12), define("TEA", &usd(5), 9), define("POT", &euro, 9)]);
    let mut stale = place(1, &[("TEA", 1)], "card");
    stale.1["lines"][0]["unitPrice"] = usd(4);
    let mut stranger = place(6, &[("TEA", 1)], "card");
    stranger.1["customerId"] = json!("EVE");
    let answers = world.send(&[
        place(0, &[("TEA", 1), ("POT", 1)], "card"),
        stale,
        place(2, &[("TEA", 2)], "account"),
        // 2 of 12 are left.
        place(3, &[("TEA", 1)], "account"),
        ("product.retire", json!({ "productId": "TEA" })),
        place(4, &[("TEA", 1)], "card"),
        place(5, &[("CUP", 1)], "card"),
        stranger,
        step("order.cancel", 7),
        step("order.deliver", 2),
    ]);
    let reasons = [
        Some(Reason::MixedCurrencies),
        Some(Reason::PriceChanged),
        None,
        Some(Reason::InsufficientCredit),
        None,
        Some(Reason::ProductInactive),
        Some(Reason::UnknownProduct),
        Some(Reason::UnknownCustomer),
        Some(Reason::UnknownOrder),
        Some(Reason::NotAllowed),
    ];
    assert_eq!(answers, reasons);
    world.check_counts();
}

#[test]
fn an_order_on_account_is_paid_by_the_credit_that_it_reserves() {
    let mut world = World::default();
    world.send(&[register("ANA", 10), define("TEA", &usd(5), 9)]);
    let answers = world.send(&[
        place(0, &[("TEA", 2)], "account"),
        place(1, &[("TEA", 1)], "account"),
        place(2, &[("TEA", 1)], "card"),
    ]);
    assert_eq!(answers, [None, Some(Reason::InsufficientCredit), None]);
    let steps = |number| -> Vec<&str> {
        let of = world.log.iter().filter(|it| it.subject_id == order_id(number).to_string());
        of.map(|event| event.kind.as_str()).collect()
    };
    assert_eq!(steps(0), ["validated", "paid"]);
    assert_eq!(steps(1), ["rejected"]);
    assert_eq!(steps(2), ["validated"], "a card is for the gateway");
    world.tell();
    world.check_log();
}

#[test]
fn an_order_is_placed_once_whatever_comes_under_its_key_or_id() {
    let mut world = World::default();
    world.send(&[register("ANA", 0), define("TEA", &usd(5), 9)]);
    let by_key = place(FREE_ORDERS, &[("TEA", 1)], "card");
    let mut other_command = by_key.clone();
    other_command.1["commandId"] = json!(order_id(9));
    let answers = world.send(&[
        by_key.clone(),
        by_key,
        other_command,
        place(FREE_ORDERS, &[("TEA", 2)], "card"),
        place(0, &[("TEA", 1)], "card"),
        place(0, &[("TEA", 2)], "card"),
    ]);
    let (reused, exists) = (Some(Reason::IdempotencyKeyReused), Some(Reason::AlreadyExists));
    assert_eq!(answers, [None, None, None, reused, None, exists]);
    let stock = world.products.values().next().unwrap().stock;
    assert_eq!(stock, Stock { available: 7, reserved: 2, sold: 0 });
    let repeated = &world.decided[&CommandId(order_id(9).0)];
    assert_eq!(repeated.about.id, order_id(FREE_ORDERS).to_string());
}

#[test]
fn another_body_under_a_used_command_id_is_answered_under_the_streams_id() {
    let mut world = World::default();
    world.send(&[register("ANA", 0), define("TEA", &usd(5), 9)]);
    let named = |number| {
        let mut sent = place(number, &[("TEA", 1)], "card");
        sent.1["commandId"] = json!(order_id(9));
        incoming((number as u64 + 10, &sent))
    };
    let (first, second) = (named(0), named(1));
    let mut book = world.load(&[]);
    assert!(matches!(book.rule(&first, at()).unwrap(), Ruling::Decided(_)));
    let Ruling::Decided(decision) = book.rule(&second, at()).unwrap() else { panic!() };
    assert_eq!(decision.past.command_id, second.received.fallback_id);
    assert_eq!(decision.past.refusal.unwrap().reason, Reason::CommandIdReused);
    let [event] = &decision.events[..] else { panic!("{:?}", decision.events) };
    assert_eq!(event.subject_id, second.received.fallback_id.to_string());
    let fallback = second.received.fallback_id;
    assert!(matches!(book.rule(&second, at()).unwrap(), Ruling::Repeated(id) if id == fallback));
    assert_eq!(book.products.values().next().unwrap().stock.reserved, 1);
}

#[test]
fn what_may_still_come_is_waited_for_and_leaves_no_trace() {
    let limit = json!({ "customerId": "ANA", "creditLimit": usd(5) });
    let commands = [
        (place(0, &[("TEA", 1)], "card"), Reason::UnknownCustomer),
        (("customer.set-credit-limit", limit), Reason::UnknownCustomer),
        (("product.restock", json!({ "productId": "TEA", "quantity": 1 })), Reason::UnknownProduct),
        (("product.retire", json!({ "productId": "TEA" })), Reason::UnknownProduct),
        (step("order.cancel", 0), Reason::UnknownOrder),
    ];
    for (sent, reason) in commands {
        let message = incoming((7, &sent));
        let mut book = Book { early: HashSet::from([7]), ..Book::default() };
        book.orders.extend(message.continues().map(|id| (id, Known::NotYet)));
        assert!(matches!(book.rule(&message, at()).unwrap(), Ruling::NotYet), "{sent:?}");
        assert!(book.decided.is_empty() && book.placed.is_empty(), "{sent:?}");
        book.early.clear();
        book.orders.extend(message.continues().map(|id| (id, Known::Nowhere)));
        let Ruling::Decided(decision) = book.rule(&message, at()).unwrap() else { panic!() };
        assert_eq!(decision.past.refusal.unwrap().reason, reason, "{sent:?}");
    }
}

#[test]
fn what_orders_changed_is_told_before_the_next_event() {
    let mut world = World::default();
    world.send(&[register("ANA", 20), define("TEA", &usd(5), 5)]);
    let limit = json!({ "customerId": "ANA", "creditLimit": usd(30) });
    world.send(&[
        place(0, &[("TEA", 2)], "account"),
        ("product.restock", json!({ "productId": "TEA", "quantity": 3 })),
        ("customer.set-credit-limit", limit),
    ]);
    let told = |subject| -> Vec<&str> {
        let of = world.log.iter().filter(|event| event.subject == subject);
        of.map(|event| event.kind.as_str()).collect()
    };
    assert_eq!(told(Subject::Product), ["defined", "stock-changed", "restocked"]);
    assert_eq!(told(Subject::Customer), ["registered", "credit-changed", "credit-limit-set"]);
    assert!(world.touched_products.is_empty() && world.touched_customers.is_empty());
    world.check_log();
}

/// A command in the name of a customer.
fn named(customer: &'static str, sequence: u64, (kind, body): &Sent) -> Incoming {
    let header = |name: &str| (name == ON_BEHALF_HEADER).then_some(customer);
    let bytes = body.to_string();
    let received = Received::read(kind, bytes.as_bytes(), header, ("COMMANDS", sequence));
    Incoming { received, at: at(), sequence, traceparent: None }
}

#[test]
fn a_customer_calls_off_its_own_orders_and_does_not_learn_of_others() {
    let mut world = World::default();
    world.send(&[register("ANA", 20), register("BOB", 20), define("TEA", &usd(5), 5)]);
    world.send(&[place(0, &[("TEA", 1)], "card")]);
    let cancel = step("order.cancel", 0);
    let refused = |book: &mut Book, message: &Incoming| {
        let Ruling::Decided(decision) = book.rule(message, at()).unwrap() else { panic!() };
        let [event] = &decision.events[..] else { panic!("{:?}", decision.events) };
        assert_eq!(event.subject, Subject::Command);
        let outcome: CommandOutcome = event.state().unwrap();
        assert_eq!(outcome.on_behalf_of, Some("BOB".parse().unwrap()));
        decision.past.refusal.unwrap()
    };
    let theirs = named("BOB", 20, &cancel);
    let mut book = world.load(std::slice::from_ref(&theirs));
    let of_another = refused(&mut book, &theirs);
    let mut none = world.load(&[]);
    none.orders.insert(order_id(0), Known::Nowhere);
    // Word for word what is said of an order that is not there, and after the same wait.
    assert_eq!(of_another, refused(&mut none, &theirs));
    assert_eq!(of_another.reason, Reason::UnknownOrder);
    let early = named("BOB", 21, &cancel);
    book.early.insert(21);
    assert!(matches!(book.rule(&early, at()).unwrap(), Ruling::NotYet));
    let own = named("ANA", 22, &cancel);
    let Ruling::Decided(decision) = book.rule(&own, at()).unwrap() else { panic!() };
    assert_eq!(decision.events[0].kind, "cancelled");
}

#[test]
fn a_key_of_one_customer_is_not_that_of_another() {
    let mut cancel = step("order.cancel", 0);
    cancel.1["idempotencyKey"] = json!("once");
    let id = |customer| named(customer, 1, &cancel).received.command_id;
    assert_eq!(id("ANA"), named("ANA", 2, &cancel).received.command_id);
    assert_ne!(id("ANA"), id("BOB"));
    assert_ne!(id("ANA"), incoming((1, &cancel)).received.command_id);
    // A placement has its customer in its body: in its own name it is the same order.
    let placement = place(FREE_ORDERS, &[("TEA", 1)], "card");
    let own = named("ANA", 1, &placement).received;
    assert_eq!(own.command_id, incoming((1, &placement)).received.command_id);
}

#[test]
fn nothing_else_is_done_in_the_name_of_a_customer() {
    let ship = step("order.ship", 0);
    let limit = json!({ "customerId": "BOB", "creditLimit": usd(1_000) });
    for sent in [
        ship,
        step("order.refund", 0),
        place(0, &[("TEA", 1)], "card"),
        ("customer.set-credit-limit", limit),
        define("TEA", &usd(1), 1),
    ] {
        let message = named("BOB", 1, &sent);
        assert!(message.received.command.is_err(), "{sent:?}");
        let Ruling::Decided(decision) = Book::default().rule(&message, at()).unwrap() else {
            panic!()
        };
        assert_eq!(decision.past.refusal.unwrap().reason, Reason::MalformedCommand);
    }
}
