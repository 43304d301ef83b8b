//! Decisions about orders, and the order's life cycle: given a state, when something is asked for,
//! then an event follows or a refusal.

use std::collections::HashMap;

use super::{
    EVERY_STATUS, at, card, catalogue, customer, every_event, history, legal, order_for, order_id,
    order_in, product, shipment, stamp, usd,
};
use crate::command::{PaymentMethod, PlaceOrder};
use crate::customer::Customer;
use crate::ids::{CommandId, ProductId};
use crate::money::{Currency, MAX_AMOUNT, Money};
use crate::order::{
    self, AfterCharge, Order, OrderEvent, OrderStatus, PaymentStatus, Placement, Stamp,
};
use crate::product::Product;
use crate::reason::{Reason, Refusal};

const ACCOUNT: PaymentMethod = PaymentMethod::Account {};

struct Shop {
    customer: Option<Customer>,
    products: HashMap<ProductId, Product>,
}

/// Tea at 5.00 and cups at 12.50, for a customer with a credit limit of 100.00.
fn shop() -> Shop {
    Shop {
        customer: Some(customer(Some(usd(10_000)), 0)),
        products: catalogue([product("TEA", usd(500), 10), product("CUP", usd(1250), 3)]),
    }
}

impl Shop {
    fn with(mut self, product: Product) -> Self {
        self.products.insert(product.product_id.clone(), product);
        self
    }

    fn with_credit(mut self, limit: Option<Money>, used: i64) -> Self {
        self.customer = Some(customer(limit, used));
        self
    }

    fn place(&self, command: &PlaceOrder) -> OrderEvent {
        order::place(command, at(0), self.customer.as_ref(), &self.products)
    }

    fn accepts(&self, command: &PlaceOrder) -> Placement {
        match self.place(command) {
            OrderEvent::Validated(placement) => placement,
            event => panic!("{event:?}"),
        }
    }

    fn refuses(&self, command: &PlaceOrder) -> (Refusal, Placement) {
        match self.place(command) {
            OrderEvent::Rejected { refusal, placement: Some(placement) } => (refusal, placement),
            event => panic!("{event:?}"),
        }
    }

    fn reason(&self, command: &PlaceOrder) -> Reason {
        self.refuses(command).0.reason
    }
}

#[test]
fn an_order_keeps_its_lines_as_they_were_bought() {
    let placement = shop().accepts(&order_for(&[("TEA", 2), ("CUP", 3)], card()));
    let line = &placement.lines[1];
    assert_eq!(line.name.as_deref(), Some("CUP, the product"));
    assert_eq!(line.brand.as_deref(), Some("Millrace"));
    assert_eq!((line.unit_price, line.line_total), (Some(usd(1250)), Some(usd(3750))));
    assert_eq!(placement.total, Some(usd(4750)));
    assert_eq!((placement.payment, placement.placed_at), (card(), at(0)));
}

#[test]
fn the_last_piece_can_be_bought_and_not_one_more() {
    assert_eq!(shop().accepts(&order_for(&[("CUP", 3)], card())).total, Some(usd(3750)));
    let (refusal, _) = shop().refuses(&order_for(&[("CUP", 4)], card()));
    assert_eq!(refusal, Refusal::new(Reason::OutOfStock, "3 of CUP are left"));
}

#[test]
fn an_order_of_an_unknown_customer_is_refused_with_its_lines() {
    let shop = Shop { customer: None, ..shop() };
    let (refusal, placement) = shop.refuses(&order_for(&[("TEA", 1)], card()));
    assert_eq!(refusal.reason, Reason::UnknownCustomer);
    assert_eq!(placement.total, Some(usd(500)));
}

#[test]
fn an_order_of_an_unknown_product_is_refused_and_has_no_total() {
    let (refusal, placement) = shop().refuses(&order_for(&[("TEA", 1), ("POT", 1)], card()));
    assert_eq!(refusal, Refusal::new(Reason::UnknownProduct, "there is no product POT"));
    let unknown = &placement.lines[1];
    assert_eq!((&unknown.name, unknown.unit_price, unknown.line_total), (&None, None, None));
    assert_eq!(placement.total, None);
}

#[test]
fn a_retired_product_is_not_sold() {
    let shop = shop().with(Product { active: false, ..product("TEA", usd(500), 10) });
    assert_eq!(shop.reason(&order_for(&[("TEA", 1)], card())), Reason::ProductInactive);
}

#[test]
fn the_price_that_a_client_sends_must_be_the_catalogues() {
    let mut order = order_for(&[("TEA", 2)], card());
    order.lines[0].unit_price = Some(usd(500));
    assert_eq!(shop().accepts(&order).total, Some(usd(1000)));
    for wrong in [usd(499), usd(501), usd(0), Money::new(500, Currency::EUR)] {
        order.lines[0].unit_price = Some(wrong);
        let (refusal, placement) = shop().refuses(&order);
        assert_eq!(refusal, Refusal::new(Reason::PriceChanged, "the price of TEA is 5.00 USD"));
        assert_eq!(placement.lines[0].unit_price, Some(usd(500)), "the catalogue's price");
    }
}

#[test]
fn one_order_has_one_currency() {
    let shop = shop().with(product("POT", Money::new(2000, Currency::EUR), 1));
    let mixed = order_for(&[("TEA", 1), ("POT", 1)], card());
    let (refusal, placement) = shop.refuses(&mixed);
    assert_eq!((refusal.reason, placement.total), (Reason::MixedCurrencies, None));
    let total = shop.accepts(&order_for(&[("POT", 1)], card())).total;
    assert_eq!(total, Some(Money::new(2000, Currency::EUR)));
}

#[test]
fn a_total_is_at_most_the_largest_amount() {
    let shop = shop().with(product("OIL", usd(MAX_AMOUNT / 2), 10));
    assert_eq!(shop.accepts(&order_for(&[("OIL", 2)], card())).total, Some(usd(MAX_AMOUNT)));
    // One line that is too large, and lines that are so together.
    for lines in [&[("OIL", 3)][..], &[("OIL", 2), ("TEA", 1)]] {
        let (refusal, placement) = shop.refuses(&order_for(lines, card()));
        assert_eq!((refusal.reason, placement.total), (Reason::AmountTooLarge, None));
    }
}

#[test]
fn an_account_order_may_use_the_credit_up_and_no_more() {
    let order = order_for(&[("TEA", 4)], ACCOUNT);
    shop().with_credit(Some(usd(2000)), 0).accepts(&order);
    shop().with_credit(Some(usd(10_000)), 8000).accepts(&order);
    for (limit, used) in [(1999, 0), (10_000, 8001), (0, 0), (5000, 6000)] {
        let (refusal, _) = shop().with_credit(Some(usd(limit)), used).refuses(&order);
        assert_eq!(refusal.reason, Reason::InsufficientCredit, "{used} of {limit}");
    }
}

#[test]
fn what_is_left_of_a_limit_that_was_lowered_is_shown_as_nothing() {
    let shop = shop().with_credit(Some(usd(5000)), 6000);
    let (refusal, _) = shop.refuses(&order_for(&[("TEA", 1)], ACCOUNT));
    assert_eq!(refusal.detail, "0.00 USD of the credit limit are left");
}

#[test]
fn without_a_limit_of_the_same_currency_nothing_is_bought_on_account() {
    let order = order_for(&[("TEA", 1)], ACCOUNT);
    let euros = Money::new(10_000, Currency::EUR);
    assert_eq!(shop().with_credit(None, 0).reason(&order), Reason::InsufficientCredit);
    assert_eq!(shop().with_credit(Some(euros), 0).reason(&order), Reason::InsufficientCredit);
}

#[test]
fn a_card_order_asks_for_no_credit() {
    shop().with_credit(None, 0).accepts(&order_for(&[("TEA", 1)], card()));
}

#[test]
fn reasons_are_checked_in_a_fixed_order() {
    // Everything is wrong at first; then one thing after another is put right.
    let mut shop = Shop {
        customer: None,
        products: catalogue([
            Product { active: false, ..product("TEA", usd(500), 1) },
            product("POT", Money::new(2000, Currency::EUR), 1),
            product("OIL", usd(MAX_AMOUNT), 1),
        ]),
    };
    let mut order = order_for(&[("CUP", 1), ("TEA", 2), ("POT", 1), ("OIL", 2)], ACCOUNT);
    order.lines[1].unit_price = Some(usd(400));
    let product_of = |id: &str| id.parse::<ProductId>().unwrap();

    assert_eq!(shop.reason(&order), Reason::UnknownCustomer);
    shop.customer = Some(customer(Some(usd(100)), 0));
    assert_eq!(shop.reason(&order), Reason::UnknownProduct);
    shop = shop.with(product("CUP", usd(1250), 1));
    assert_eq!(shop.reason(&order), Reason::ProductInactive);
    shop.products.get_mut(&product_of("TEA")).unwrap().active = true;
    assert_eq!(shop.reason(&order), Reason::PriceChanged);
    order.lines[1].unit_price = Some(usd(500));
    assert_eq!(shop.reason(&order), Reason::MixedCurrencies);
    shop = shop.with(product("POT", usd(2000), 1));
    assert_eq!(shop.reason(&order), Reason::AmountTooLarge);
    order.lines[3].quantity = 1;
    shop = shop.with(product("OIL", usd(3000), 1));
    assert_eq!(shop.reason(&order), Reason::OutOfStock);
    order.lines[1].quantity = 1;
    assert_eq!(shop.reason(&order), Reason::InsufficientCredit);
    shop.customer = Some(customer(Some(usd(10_000)), 0));
    assert_eq!(shop.accepts(&order).total, Some(usd(6750)));
}

/// In which statuses a step is possible; everywhere else its refusal names the status.
fn possible_in(
    statuses: &[OrderStatus],
    kind: &str,
    step: impl Fn(&Order) -> Result<OrderEvent, Refusal>,
) {
    for status in EVERY_STATUS {
        match step(&order_in(status)) {
            Ok(event) => {
                assert!(statuses.contains(&status), "{kind} in {status:?}");
                assert_eq!(event.kind(), kind);
            }
            Err(refusal) => {
                assert!(!statuses.contains(&status), "no {kind} in {status:?}");
                assert_eq!(refusal.reason, Reason::NotAllowed);
                assert!(refusal.detail.contains(status.as_str()), "{}", refusal.detail);
            }
        }
    }
}

#[test]
fn an_order_can_be_cancelled_until_it_is_shipped() {
    let statuses = [OrderStatus::Validated, OrderStatus::PaymentUnknown, OrderStatus::Paid];
    possible_in(&statuses, "cancelled", |order| order::cancel(order, Some("changed my mind")));
}

#[test]
fn only_what_is_paid_is_shipped_and_only_what_is_shipped_is_delivered() {
    possible_in(&[OrderStatus::Paid], "shipped", |order| order::ship(order, &shipment()));
    possible_in(&[OrderStatus::Shipped], "delivered", order::deliver);
}

#[test]
fn an_order_can_be_refunded_once_it_is_paid() {
    let statuses = [OrderStatus::Paid, OrderStatus::Shipped, OrderStatus::Delivered];
    possible_in(&statuses, "refund-requested", |order| order::refund(order, None));
}

#[test]
fn a_charge_is_recorded_given_back_or_known_already() {
    for status in EVERY_STATUS {
        let then = order::charged(&order_in(status), Some("ch_1"));
        match status {
            OrderStatus::Validated | OrderStatus::PaymentUnknown => {
                let paid = OrderEvent::Paid { charge_id: Some("ch_1".to_owned()) };
                assert_eq!(then, AfterCharge::Append(paid));
            }
            OrderStatus::Cancelled | OrderStatus::Expired => {
                assert_eq!(then, AfterCharge::GiveBack);
            }
            _ => assert_eq!(then, AfterCharge::Known, "{status:?}"),
        }
    }
}

#[test]
fn a_declined_charge_rejects_only_an_order_that_waits_for_it() {
    for status in EVERY_STATUS {
        let then = order::declined(&order_in(status), "the card was declined");
        let refusal = Refusal::new(Reason::PaymentDeclined, "the card was declined");
        let rejected = OrderEvent::Rejected { refusal, placement: None };
        assert_eq!(then, status.awaits_payment().then_some(rejected), "{status:?}");
    }
}

#[test]
fn only_an_order_that_waits_for_its_payment_expires_and_only_once_it_says_that_it_is_unknown() {
    for status in EVERY_STATUS {
        let order = order_in(status);
        let waits = [OrderStatus::Validated, OrderStatus::PaymentUnknown].contains(&status);
        assert_eq!(order::expire(&order), waits.then_some(OrderEvent::Expired {}), "{status:?}");
        let said = order::unanswered(&order, "no answer").is_some();
        assert_eq!(said, status == OrderStatus::Validated, "{status:?}");
    }
}

#[test]
fn a_refund_is_recorded_once_and_only_where_money_goes_back() {
    let waiting = [OrderStatus::Refunding, OrderStatus::Cancelled, OrderStatus::Expired];
    for status in EVERY_STATUS {
        let then = order::refunded(&order_in(status), Some("ch_1"), Some("re_1"));
        assert_eq!(then.is_some(), waiting.contains(&status), "{status:?}");
    }
}

#[test]
fn every_event_fits_where_the_table_says_and_nowhere_else() {
    let mut before: Vec<Option<Order>> = EVERY_STATUS.map(|s| Some(order_in(s))).into();
    before.push(None);
    for before in before {
        let version = before.as_ref().map_or(1, |order| order.version + 1);
        for event in every_event() {
            let after = Order::apply(before.as_ref(), order_id(), stamp(version), &event);
            let reached = after.as_ref().ok().map(|order| order.status.as_str());
            assert_eq!(reached, legal(before.as_ref(), &event), "{before:?} {event:?}");
        }
    }
}

#[test]
fn an_event_of_another_version_never_fits() {
    let order = order_in(OrderStatus::Validated);
    let [_, _, _, paid, ..] = every_event();
    for version in [0, 1, 3, u64::MAX] {
        let stamp = Stamp { version, ..stamp(2) };
        let error = Order::apply(Some(&order), order_id(), stamp, &paid).unwrap_err();
        let expected =
            format!("the event paid (version {version}) cannot follow validated (version 1)");
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn the_first_event_makes_the_order_and_its_cause_is_the_command() {
    let order = order_in(OrderStatus::Validated);
    assert_eq!(order.command_id, CommandId(stamp(1).causation));
    assert_eq!((order.version, order.placed_at, order.updated_at), (1, at(0), at(1)));
    assert_eq!(order.payment.status, PaymentStatus::None);
}

#[test]
fn a_delivered_and_refunded_order_has_its_whole_timeline() {
    let [validated, _, _, paid, shipped, delivered, _, _, asked, refunded, _] = every_event();
    let states = history(&[validated, paid, shipped, delivered, asked, refunded]);
    let order = states.last().unwrap();
    let timeline: Vec<_> =
        order.timeline.iter().map(|step| (step.status.as_str(), step.version)).collect();
    let statuses = ["validated", "paid", "shipped", "delivered", "refunding", "refunded"];
    assert_eq!(timeline, statuses.into_iter().zip(1..).collect::<Vec<_>>());
    assert_eq!(order.shipment, Some(shipment()));
    assert_eq!(order.payment.status, PaymentStatus::Refunded);
    assert_eq!(order.payment.charge_id.as_deref(), Some("ch_1"));
    assert_eq!(order.payment.refund_id.as_deref(), Some("re_1"));
}

#[test]
fn a_declined_order_tells_why() {
    let [validated, _, declined, ..] = every_event();
    let order = history(&[validated, declined]).pop().unwrap();
    assert_eq!(order.reason, Some(Reason::PaymentDeclined));
    assert_eq!(order.detail.as_deref(), Some("the card was declined"));
    assert_eq!(order.payment.status, PaymentStatus::Declined);
}
