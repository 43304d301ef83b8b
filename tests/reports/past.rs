//! A shop's past, from a seed: orders that have gone every way there is, over days and in several
//! currencies.

use chrono::{DateTime, TimeDelta, Utc};
use millrace_shared::command::PaymentMethod;
use millrace_shared::ids::OrderId;
use millrace_shared::message::{Cause, Event, now};
use millrace_shared::money::{Currency, Money};
use millrace_shared::order::{Order, OrderEvent, OrderLine, Placement, Shipment, Stamp};
use millrace_shared::reason::{Reason, Refusal};
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use uuid::Uuid;

const CURRENCIES: [Currency; 3] = [Currency::USD, Currency::EUR, Currency::JPY];
const BRANDS: [&str; 4] = ["Acme & Co", "Best", "Bær", "a b  c"];
const PATHS: [&str; 12] = [
    "paid",
    "paid",
    "paid shipped",
    "paid shipped delivered",
    "unknown paid",
    "paid refunding refunded",
    "paid shipped delivered refunding refunded",
    "paid cancelled refunded",
    "declined",
    "unknown declined",
    "expired",
    // A charge that came too late.
    "cancelled refunded",
];

/// The events of so many orders of the last days, each history in its order.
pub fn past(seed: u64, orders: u32, days: i64) -> Vec<Vec<Event>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..orders).map(|number| history(&mut random, seed, number, days)).collect()
}

fn history(random: &mut ChaCha8Rng, seed: u64, number: u32, days: i64) -> Vec<Event> {
    let id = OrderId(Uuid::new_v5(&Uuid::from_u128(seed.into()), &number.to_be_bytes()));
    let placed_at = now() - TimeDelta::seconds(random.random_range(0..days * 86_400));
    let refused = random.random_ratio(1, 10);
    let first = if refused {
        let reasons = [Reason::OutOfStock, Reason::UnknownCustomer, Reason::InsufficientCredit];
        let reason = *reasons.choose(random).expect("there are some");
        let refusal = Refusal::new(reason, "no");
        OrderEvent::Rejected { refusal, placement: Some(placement(random, placed_at)) }
    } else {
        OrderEvent::Validated(placement(random, placed_at))
    };
    let mut steps = vec![first];
    if !refused && random.random_ratio(19, 20) {
        steps.extend(PATHS.choose(random).expect("there are some").split(' ').map(step));
    }
    let mut order: Option<Order> = None;
    let mut at = placed_at;
    let events = (1..).zip(steps).map(|(version, event)| {
        let longest = if random.random_ratio(1, 20) { 90_000_000_000 } else { 40_000 };
        at += TimeDelta::microseconds(random.random_range(0..longest));
        let causation = Uuid::from_u128(random.random());
        let stamp = Stamp { version, at, causation };
        let after = Order::apply(order.as_ref(), id, stamp, &event).expect("a legal step");
        let cause = Cause { causation, correlation: Uuid::nil(), traceparent: None };
        let told = Event::order(&event, &after, &cause).expect("an event");
        order = Some(after);
        told
    });
    events.collect()
}

fn placement(random: &mut ChaCha8Rng, placed_at: DateTime<Utc>) -> Placement {
    let currency = *CURRENCIES.choose(random).expect("there are some");
    let count = random.random_range(1..=4);
    let lines: Vec<OrderLine> = (0..count).map(|_| line(random, currency)).collect();
    let total = lines.iter().filter_map(|line| line.line_total).map(|total| total.amount).sum();
    let payment = if random.random_ratio(1, 4) {
        PaymentMethod::Account {}
    } else {
        PaymentMethod::Card { token: "tok_ok".to_owned() }
    };
    let customer_id = format!("customer-{}", random.random_range(0..5)).parse().expect("an id");
    Placement { customer_id, lines, total: Some(Money::new(total, currency)), payment, placed_at }
}

fn line(random: &mut ChaCha8Rng, currency: Currency) -> OrderLine {
    let number: usize = random.random_range(0..30);
    let quantity = random.random_range(1..=9);
    // Prices and brands change now and then.
    let changed: usize = random.random_range(0..2);
    let price = 100 + i64::try_from(number * 37 + changed * 5).expect("a price");
    let unit_price = Money::new(price, currency);
    OrderLine {
        product_id: format!("product-{number}").parse().expect("an id"),
        name: Some(format!("Product {number}")),
        brand: Some(BRANDS[(number + changed) % BRANDS.len()].to_owned()),
        quantity,
        unit_price: Some(unit_price),
        line_total: unit_price.checked_mul(quantity).ok(),
    }
}

fn step(name: &str) -> OrderEvent {
    let charge_id = Some("ch_1".to_owned());
    match name {
        "unknown" => OrderEvent::PaymentUnknown { detail: "no answer".to_owned() },
        "paid" => OrderEvent::Paid { charge_id },
        "declined" => {
            let refusal = Refusal::new(Reason::PaymentDeclined, "no");
            OrderEvent::Rejected { refusal, placement: None }
        }
        "shipped" => {
            let (carrier, tracking_number) = ("Post".to_owned(), "1".to_owned());
            OrderEvent::Shipped(Shipment { carrier, tracking_number })
        }
        "delivered" => OrderEvent::Delivered {},
        "cancelled" => OrderEvent::Cancelled { reason: None },
        "expired" => OrderEvent::Expired {},
        "refunding" => OrderEvent::RefundRequested { reason: None },
        _ => OrderEvent::Refunded { charge_id, refund_id: Some("re_1".to_owned()) },
    }
}
