//! What holds for any sequence of commands.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;

/// What may happen, in a batch of commands or around it.
#[derive(Debug, Clone)]
enum Happening {
    Sent(Sent),
    /// A redelivery of one of the messages so far.
    Again(usize),
    Charged(usize),
    Declined(usize),
    Refunded(usize),
    Expired(usize),
    Settled,
    Told,
}

fn commands() -> impl Strategy<Value = Sent> {
    const PRODUCTS: [&str; 3] = ["TEA", "CUP", "POT"];
    const STEPS: [&str; 5] =
        ["order.cancel", "order.ship", "order.ship", "order.deliver", "order.refund"];
    let (product, customer) = (|| select(&PRODUCTS[..]), || select(&CUSTOMERS[..]));
    let money = |amounts: std::ops::Range<i64>| {
        let currency = prop_oneof![19 => Just("USD"), 1 => Just("EUR")];
        (amounts, currency)
            .prop_map(|(amount, currency)| json!({ "amount": amount, "currency": currency }))
    };
    let lines = (subsequence(PRODUCTS.to_vec(), 1..=2), vec(1..3_u32, 2));
    let price = option::weighted(0.05, money(4..7));
    let placement = (0..ORDERS, lines, any::<bool>(), price).prop_map(
        |(number, (products, quantities), account, price)| {
            let lines: Vec<_> = products.into_iter().zip(quantities).collect();
            let mut sent = place(number, &lines, if account { "account" } else { "card" });
            sent.1["lines"][0]["unitPrice"] = json!(price);
            sent
        },
    );
    prop_oneof![
        8 => placement,
        12 => (select(&STEPS[..]), 0..ORDERS).prop_map(|(kind, number)| step(kind, number)),
        2 => (product(), 1..5).prop_map(|(id, pieces)| {
            ("product.restock", json!({ "productId": id, "quantity": pieces }))
        }),
        2 => (product(), money(4..7), 0..3_u32).prop_map(|(id, price, stock)| {
            define(id, &price, stock)
        }),
        1 => product().prop_map(|id| ("product.retire", json!({ "productId": id }))),
        1 => (customer(), money(0..40)).prop_map(|(id, limit)| {
            ("customer.set-credit-limit", json!({ "customerId": id, "creditLimit": limit }))
        }),
        1 => (customer(), 0..40_i64).prop_map(|(id, limit)| register(id, limit)),
    ]
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        16 => commands().prop_map(Happening::Sent),
        1 => any::<usize>().prop_map(Happening::Again),
        12 => (0..ORDERS).prop_map(Happening::Charged),
        1 => (0..ORDERS).prop_map(Happening::Declined),
        3 => (0..ORDERS).prop_map(Happening::Refunded),
        1 => (0..ORDERS).prop_map(Happening::Expired),
        2 => Just(Happening::Settled),
        2 => Just(Happening::Told),
    ];
    vec(one, 0..200)
}

/// Lets it all happen, with at most `most` commands in a batch; whatever must hold is checked on the
/// way. Returns the messages too.
fn run(happenings: &[Happening], most: usize) -> (World, Vec<Incoming>) {
    let mut world = World::default();
    let start = [define("TEA", &usd(5), 6), define("CUP", &usd(6), 3), define("POT", &usd(4), 2)];
    world.send(&start);
    world.send(&[register("ANA", 25)]);
    let (mut messages, mut batch): (Vec<Incoming>, Vec<Incoming>) = (Vec::new(), Vec::new());
    for happening in happenings {
        match happening {
            Happening::Sent(sent) => {
                let message = incoming((messages.len() as u64 + 10, sent));
                messages.push(message.clone());
                batch.push(message);
            }
            Happening::Again(index) if !messages.is_empty() => {
                batch.push(messages[index % messages.len()].clone());
            }
            _ => {
                world.decide(&std::mem::take(&mut batch));
                happen(&mut world, happening);
            }
        }
        if batch.len() >= most {
            world.decide(&std::mem::take(&mut batch));
        }
        world.check_counts();
    }
    world.decide(&batch);
    world.settle();
    world.check_counts();
    world.tell();
    world.check_log();
    (world, messages)
}

fn happen(world: &mut World, happening: &Happening) {
    match happening {
        Happening::Charged(number) => {
            world.pay(order_id(*number), |order| match order::charged(order, Some("ch_1")) {
                AfterCharge::Append(event) => Some(event),
                AfterCharge::GiveBack => order::refunded(order, Some("ch_1"), Some("re_1")),
                AfterCharge::Known => None,
            });
        }
        Happening::Declined(number) => {
            world.pay(order_id(*number), |order| order::declined(order, "no"));
        }
        Happening::Refunded(number) => {
            world.pay(order_id(*number), |order| order::refunded(order, None, None));
        }
        Happening::Expired(number) => world.pay(order_id(*number), order::expire),
        Happening::Settled => world.settle(),
        Happening::Told => world.tell(),
        Happening::Sent(_) | Happening::Again(_) => {}
    }
}

/// The log as text, with the world after it as far as the log does not tell it.
fn outcome(world: &World) -> (Vec<String>, &HashMap<CommandId, Past>, &HashMap<Uuid, Past>) {
    let log = world.log.iter().map(|event| serde_json::to_string(event).unwrap());
    (log.collect(), &world.decided, &world.keys)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_piece_and_no_credit_is_lost_or_given_twice(happenings in happenings()) {
        // Checked on the way.
        run(&happenings, usize::MAX);
    }

    #[test]
    fn batches_decide_as_single_commands_do(happenings in happenings(), most in 1..6_usize) {
        let (at_once, _) = run(&happenings, usize::MAX);
        let (split, _) = run(&happenings, most);
        prop_assert_eq!(outcome(&at_once), outcome(&split));
    }

    #[test]
    fn the_same_commands_have_the_same_outcome(happenings in happenings()) {
        let (first, _) = run(&happenings, 7);
        let (second, _) = run(&happenings, 7);
        prop_assert_eq!(outcome(&first), outcome(&second));
    }

    #[test]
    fn commands_that_come_again_change_nothing(happenings in happenings()) {
        let (mut world, mut messages) = run(&happenings, 7);
        let answers: Vec<_> = messages
            .iter()
            .map(|message| {
                let past = &world.decided[&message.received.command_id];
                past.refusal.as_ref().map(|refusal| refusal.reason)
            })
            .rev()
            .collect();
        let before = format!("{:?}", outcome(&world));
        messages.reverse();
        prop_assert_eq!(world.decide(&messages), answers);
        prop_assert_eq!(format!("{:?}", outcome(&world)), before);
        world.check_counts();
        world.check_log();
        prop_assert!(world.touched_products.is_empty() && world.touched_customers.is_empty());
    }
}
