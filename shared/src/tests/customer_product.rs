//! Customers and products: what is decided, and what follows from an event.

use super::{customer, product, usd};
use crate::customer::{Customer, CustomerEvent};
use crate::money::{Currency, MAX_AMOUNT, Money};
use crate::product::{MAX_STOCK, Product, ProductEvent, Stock};
use crate::reason::Reason;

fn registered(credit_limit: Option<Money>) -> CustomerEvent {
    CustomerEvent::Registered { name: "Alfreds Futterkiste".to_owned(), credit_limit }
}

fn defined(name: &str, initial_stock: u32) -> ProductEvent {
    ProductEvent::Defined {
        name: name.to_owned(),
        brand: "Millrace".to_owned(),
        category: "Tea".to_owned(),
        price: usd(499),
        initial_stock,
    }
}

#[test]
fn a_customer_is_registered_once() {
    let id = "ALFKI".parse().unwrap();
    let first = Customer::apply(None, &id, &registered(Some(usd(100)))).unwrap();
    assert_eq!(first, customer(Some(usd(100)), 0));
    assert_eq!(Customer::apply(Some(&first), &id, &registered(None)), None);
}

#[test]
fn nothing_happens_to_a_customer_who_is_not_registered() {
    let id = "ALFKI".parse().unwrap();
    let limit = CustomerEvent::CreditLimitSet { credit_limit: usd(1) };
    for event in [limit, CustomerEvent::CreditChanged { credit_used: 1 }] {
        assert_eq!(Customer::apply(None, &id, &event), None);
    }
}

#[test]
fn a_limit_may_be_set_below_what_is_in_use() {
    let before = customer(Some(usd(100)), 80);
    let event = before.set_credit_limit(usd(50)).unwrap();
    let after = Customer::apply(Some(&before), &before.customer_id, &event).unwrap();
    assert_eq!((after.credit_limit, after.credit_used, after.version), (Some(usd(50)), 80, 2));
    assert_eq!(after.can_spend(usd(0)).unwrap_err().reason, Reason::InsufficientCredit);
}

#[test]
fn the_currency_of_a_limit_changes_only_while_no_credit_is_in_use() {
    let euros = Money::new(50, Currency::EUR);
    assert!(customer(Some(usd(100)), 0).set_credit_limit(euros).is_ok());
    assert!(customer(None, 0).set_credit_limit(euros).is_ok());
    let refusal = customer(Some(usd(100)), 1).set_credit_limit(euros).unwrap_err();
    assert_eq!(refusal.reason, Reason::CurrencyMismatch);
}

#[test]
fn the_whole_limit_can_be_spent() {
    let customer = customer(Some(usd(MAX_AMOUNT)), 0);
    assert!(customer.can_spend(usd(MAX_AMOUNT)).is_ok());
    assert!(customer.can_spend(usd(0)).is_ok());
}

#[test]
fn a_new_product_starts_with_its_stock_and_is_sold() {
    let id = "TEA".parse().unwrap();
    let tea = Product::apply(None, &id, &defined("Assam", 7)).unwrap();
    assert_eq!(tea.stock, Stock { available: 7, ..Stock::default() });
    assert!(tea.active);
    assert_eq!(tea.version, 1);
}

#[test]
fn defining_a_product_again_keeps_its_stock_and_brings_it_back() {
    let before = Product { active: false, ..product("TEA", usd(1), 3) };
    let event = defined("Darjeeling", 0);
    let after = Product::apply(Some(&before), &before.product_id, &event).unwrap();
    assert_eq!((after.name.as_str(), after.price), ("Darjeeling", usd(499)));
    assert_eq!((after.stock, after.active, after.version), (before.stock, true, 2));
}

#[test]
fn nothing_happens_to_a_product_that_is_not_defined() {
    let id = "TEA".parse().unwrap();
    let stock = Stock::default();
    let events = [
        ProductEvent::Restocked { quantity: 1 },
        ProductEvent::Retired {},
        ProductEvent::StockChanged { stock },
    ];
    for event in events {
        assert_eq!(Product::apply(None, &id, &event), None);
    }
}

#[test]
fn restocked_goods_are_free_to_be_sold() {
    let mut before = product("TEA", usd(1), 3);
    before.reserve(2);
    let event = before.restock(5).unwrap();
    let after = Product::apply(Some(&before), &before.product_id, &event).unwrap();
    assert_eq!(after.stock, Stock { available: 6, reserved: 2, sold: 0 });
}

#[test]
fn stock_has_an_upper_bound_that_counts_every_piece() {
    let stock = Stock { available: MAX_STOCK - 10, reserved: 4, sold: 5 };
    let full = Product { stock, ..product("TEA", usd(1), 0) };
    assert!(full.restock(1).is_ok());
    assert_eq!(full.restock(2).unwrap_err().reason, Reason::AmountTooLarge);
}

#[test]
fn a_retired_product_keeps_its_stock() {
    let before = product("TEA", usd(1), 3);
    let after = Product::apply(Some(&before), &before.product_id, &ProductEvent::Retired {});
    assert_eq!(after, Some(Product { active: false, version: 2, ..before }));
}
