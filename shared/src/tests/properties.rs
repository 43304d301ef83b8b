//! What holds for any history: only legal steps, versions without a gap, and a state that is the
//! fold of what happened.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use uuid::Uuid;

use super::{
    at, catalogue, customer, every_event, legal, order_for, order_id, product, shipment, stamp, usd,
};
use crate::command::{MAX_QUANTITY, PaymentMethod, PlaceOrder};
use crate::customer::{Customer, CustomerEvent};
use crate::message::{Cause, Event};
use crate::money::{Currency, MAX_AMOUNT, Money};
use crate::order::{self, AfterCharge, Order, OrderEvent, Stamp};
use crate::product::{Product, ProductEvent};
use crate::reason::Reason;

fn cause(number: u128) -> Cause {
    let id = Uuid::from_u128(number);
    Cause { causation: id, correlation: id, traceparent: None }
}

/// The event as the log would give it back.
fn stored(event: &Event) -> Event {
    Event::decode(&event.encode().unwrap()).unwrap()
}

/// What may be tried on an order.
#[derive(Debug, Clone)]
enum Try {
    Cancel(Option<String>),
    Ship,
    Deliver,
    Refund(Option<String>),
    Charged(Option<String>),
    Declined(String),
    Refunded(Option<String>),
    Expire,
    Unanswered(String),
}

impl Try {
    fn decide(&self, order: &Order) -> Option<OrderEvent> {
        match self {
            Self::Cancel(reason) => order::cancel(order, reason.as_deref()).ok(),
            Self::Ship => order::ship(order, &shipment()).ok(),
            Self::Deliver => order::deliver(order).ok(),
            Self::Refund(reason) => order::refund(order, reason.as_deref()).ok(),
            Self::Charged(charge) => match order::charged(order, charge.as_deref()) {
                AfterCharge::Append(event) => Some(event),
                AfterCharge::GiveBack | AfterCharge::Known => None,
            },
            Self::Declined(why) => order::declined(order, why),
            Self::Refunded(refund) => order::refunded(order, Some("ch"), refund.as_deref()),
            Self::Expire => order::expire(order),
            Self::Unanswered(detail) => order::unanswered(order, detail),
        }
    }
}

fn tries() -> impl Strategy<Value = Vec<Try>> {
    let text = || option::of(any::<String>());
    let one = prop_oneof![
        1 => text().prop_map(Try::Cancel),
        3 => Just(Try::Ship),
        3 => Just(Try::Deliver),
        2 => text().prop_map(Try::Refund),
        4 => text().prop_map(Try::Charged),
        1 => any::<String>().prop_map(Try::Declined),
        2 => text().prop_map(Try::Refunded),
        1 => Just(Try::Expire),
        2 => any::<String>().prop_map(Try::Unanswered),
    ];
    vec(one, 0..12)
}

fn placements() -> impl Strategy<Value = PlaceOrder> {
    // TEA and CUP are sold, POT has another currency, OLD is retired, NIL is not there.
    let products = proptest::sample::subsequence(vec!["TEA", "CUP", "POT", "OLD", "NIL"], 1..=3);
    (products, vec(1..6_u32, 3), any::<bool>(), option::weighted(0.2, 400..600_i64)).prop_map(
        |(products, quantities, account, price)| {
            let lines: Vec<_> = products.into_iter().zip(quantities).collect();
            let card = PaymentMethod::Card { token: "tok_ok".to_owned() };
            let payment = if account { PaymentMethod::Account {} } else { card };
            let mut order = order_for(&lines, payment);
            order.lines[0].unit_price = price.map(usd);
            order
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn only_the_legal_table_is_reachable_and_versions_grow_by_one(
        steps in vec((0..11_usize, prop_oneof![8 => Just(1_u64), 1 => 0..4_u64, 1 => any::<u64>()]), 1..40)
    ) {
        let events = every_event();
        let mut before: Option<Order> = None;
        for (index, ahead) in steps {
            let event = &events[index];
            let last = before.as_ref().map_or(0, |order| order.version);
            let stamp = Stamp { version: last.wrapping_add(ahead), ..stamp(1) };
            let reached = legal(before.as_ref(), event).filter(|_| stamp.version == last + 1);
            if let Ok(after) = Order::apply(before.as_ref(), order_id(), stamp, event) {
                prop_assert_eq!(Some(after.status.as_str()), reached);
                prop_assert_eq!(after.version, last + 1);
                prop_assert_eq!(after.timeline.len() as u64, after.version);
                before = Some(after);
            } else {
                prop_assert_eq!(reached, None);
            }
        }
        // The lists of orders rest on this.
        let statuses: Vec<_> = before.iter().flat_map(|order| &order.timeline).map(|step| step.status).collect();
        let distinct: std::collections::BTreeSet<_> = statuses.iter().collect();
        prop_assert_eq!(distinct.len(), statuses.len(), "a status comes again: {:?}", statuses);
    }

    #[test]
    fn the_state_that_an_order_event_carries_is_the_fold_of_data(
        command in placements(), limit in option::of(0..60_00_i64), tries in tries(),
        nanos in 0..1_000_000_000_i64
    ) {
        let products = catalogue([
            product("TEA", usd(500), 4),
            product("CUP", usd(1250), 3),
            product("POT", Money::new(2000, Currency::EUR), 9),
            Product { active: false, ..product("OLD", usd(100), 9) },
        ]);
        let customer = customer(limit.map(usd), 0);
        let mut event = Some(order::place(&command, at(0), Some(&customer), &products));
        let (mut live, mut folded): (Option<Order>, Option<Order>) = (None, None);
        let mut tries = tries.iter();
        while let Some(happened) = event {
            let version = live.as_ref().map_or(1, |order| order.version + 1);
            let at = at(0) + chrono::Duration::nanoseconds(nanos);
            let stamp = Stamp { version, at, causation: Uuid::from_u128(7) };
            let after = Order::apply(live.as_ref(), order_id(), stamp, &happened).unwrap();
            let message = stored(&Event::order(&happened, &after, &cause(7)).unwrap());
            prop_assert_eq!(message.order_event().unwrap(), happened);
            let fold = message.fold_order(folded.as_ref(), order_id()).unwrap();
            prop_assert_eq!(&fold, &message.state::<Order>().unwrap());
            prop_assert_eq!(&fold, &after);
            event = tries.find_map(|tried| tried.decide(&after));
            (live, folded) = (Some(after), Some(fold));
        }
    }

    #[test]
    fn the_state_that_a_customer_event_carries_is_the_fold_of_data(
        name in any::<String>(), first in option::of(0..=MAX_AMOUNT),
        steps in vec((any::<bool>(), any::<bool>(), 0..=MAX_AMOUNT), 0..12)
    ) {
        let id = "ALFKI".parse().unwrap();
        let credit_limit = first.map(usd);
        let mut event = Some(CustomerEvent::Registered { name, credit_limit });
        let (mut live, mut folded): (Option<Customer>, Option<Customer>) = (None, None);
        let mut steps = steps.into_iter();
        while let Some(happened) = event {
            let after = Customer::apply(live.as_ref(), &id, &happened).unwrap();
            let message = Event::customer(&happened, &after, at(0), &cause(1)).unwrap();
            let fold = stored(&message).fold_customer(folded.as_ref()).unwrap();
            prop_assert_eq!(&fold, &stored(&message).state::<Customer>().unwrap());
            prop_assert_eq!(&fold, &after);
            prop_assert_eq!(after.version, live.map_or(0, |before| before.version) + 1);
            event = steps.find_map(|(limit, euros, amount)| {
                let currency = if euros { Currency::EUR } else { Currency::USD };
                if limit {
                    after.set_credit_limit(Money::new(amount, currency)).ok()
                } else {
                    Some(CustomerEvent::CreditChanged { credit_used: amount })
                }
            });
            (live, folded) = (Some(after), Some(fold));
        }
    }

    #[test]
    fn the_state_that_a_product_event_carries_is_the_fold_of_data(
        initial in any::<u32>(), steps in vec((0..4_u8, any::<u32>(), any::<String>()), 0..12)
    ) {
        let id = "TEA".parse().unwrap();
        let defined = |name: String, price: u32, initial_stock: u32| ProductEvent::Defined {
            brand: name.clone(), category: name.clone(), name, price: usd(price.into()), initial_stock,
        };
        let mut event = Some(defined("Assam".to_owned(), 499, initial));
        let (mut live, mut folded): (Option<Product>, Option<Product>) = (None, None);
        let mut steps = steps.into_iter();
        while let Some(happened) = event {
            let after = Product::apply(live.as_ref(), &id, &happened).unwrap();
            let message = Event::product(&happened, &after, at(0), &cause(1)).unwrap();
            let fold = stored(&message).fold_product(folded.as_ref()).unwrap();
            prop_assert_eq!(&fold, &stored(&message).state::<Product>().unwrap());
            prop_assert_eq!(&fold, &after);
            prop_assert_eq!(after.version, live.map_or(0, |before| before.version) + 1);
            event = steps.find_map(|(kind, number, text)| match kind {
                0 => Some(defined(text, number, 0)),
                1 => after.restock(number).ok(),
                2 => Some(ProductEvent::Retired {}),
                _ => {
                    let mut sold = after.clone();
                    sold.reserve(number);
                    Some(ProductEvent::StockChanged { stock: sold.stock })
                }
            });
            (live, folded) = (Some(after), Some(fold));
        }
    }

    #[test]
    fn a_total_is_exact_or_the_order_is_refused(
        lines in vec(
            (
                prop_oneof![0..=MAX_AMOUNT, 0..=1_000_000_i64, Just(MAX_AMOUNT)],
                prop_oneof![1..=MAX_QUANTITY, 1..=100_u32, Just(MAX_QUANTITY)],
            ),
            1..200,
        ),
        few in 1..200_usize,
    ) {
        let lines: Vec<_> = lines.into_iter().take(few).enumerate().collect();
        let names: Vec<_> = lines.iter().map(|(index, _)| format!("P{index}")).collect();
        let products = catalogue(lines.iter().map(|&(index, (price, _))| {
            product(&names[index], usd(price), MAX_QUANTITY.into())
        }));
        let ordered: Vec<_> =
            lines.iter().map(|&(index, (_, quantity))| (names[index].as_str(), quantity)).collect();
        let command = order_for(&ordered, super::card());
        let exact: i128 = lines
            .iter()
            .map(|(_, (price, quantity))| i128::from(*price) * i128::from(*quantity))
            .sum();
        match order::place(&command, at(0), Some(&customer(None, 0)), &products) {
            OrderEvent::Validated(placement) => {
                prop_assert_eq!(i128::from(placement.total.unwrap().amount), exact);
                prop_assert!(exact <= i128::from(MAX_AMOUNT));
            }
            OrderEvent::Rejected { refusal, .. } => {
                prop_assert_eq!(refusal.reason, Reason::AmountTooLarge);
                prop_assert!(exact > i128::from(MAX_AMOUNT));
            }
            event => prop_assert!(false, "{:?}", event),
        }
    }

    #[test]
    fn sums_of_money_are_exact_or_refused(a in 0..=MAX_AMOUNT, b in 0..=MAX_AMOUNT, n in any::<u32>()) {
        let fits = |exact: i128| exact <= i128::from(MAX_AMOUNT);
        let sum = i128::from(a) + i128::from(b);
        let product = i128::from(a) * i128::from(n);
        prop_assert_eq!(
            usd(a).checked_add(usd(b)).ok().map(|m| i128::from(m.amount)),
            fits(sum).then_some(sum)
        );
        prop_assert_eq!(
            usd(a).checked_mul(n).ok().map(|m| i128::from(m.amount)),
            fits(product).then_some(product)
        );
    }
}
