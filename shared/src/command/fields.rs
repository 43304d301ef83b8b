//! The checks of a command's fields.

use std::collections::HashSet;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{FieldError, MAX_LINES, MAX_QUANTITY, Malformed, PaymentMethod, PlaceOrder};
use crate::money::{MAX_AMOUNT, Money};

pub(super) fn typed<T: DeserializeOwned>(body: Map<String, Value>) -> Result<T, Malformed> {
    for (name, value) in &body {
        check_lists(name, value)?;
    }
    serde_path_to_error::deserialize(Value::Object(body)).map_err(|error| {
        let (path, inner) = (error.path().to_string(), error.into_inner().to_string());
        let named = |start: &str| inner.strip_prefix(start)?.split('`').next();
        // The path ends with the name of an unknown field; the name of one that is missing, or that
        // another field forbids, stands in the sentence only.
        let (code, name) = if inner.starts_with("unknown field `") {
            ("unknown_field", None)
        } else if let Some(name) = named("superfluous field `") {
            ("unknown_field", Some(name))
        } else if let Some(name) = named("missing field `") {
            ("missing", Some(name))
        } else {
            ("invalid", None)
        };
        let field = match (path.as_str(), name) {
            (".", Some(name)) => name.to_owned(),
            (_, Some(name)) => format!("{path}.{name}"),
            ("" | ".", None) => "body".to_owned(),
            (_, None) => path,
        };
        FieldError::new(field, code, inner).into()
    })
}

/// The only list in a command is `lines`, of objects. Serde would read a list as an object too, its
/// fields in their order.
fn check_lists(path: &str, value: &Value) -> Result<(), FieldError> {
    match value {
        Value::Array(lines) if path == "lines" => {
            for (index, line) in lines.iter().enumerate() {
                check_lists(&format!("lines[{index}]"), line)?;
            }
            Ok(())
        }
        Value::Array(_) => Err(FieldError::new(path, "invalid", "must not be a list")),
        Value::Object(fields) => fields
            .iter()
            .try_for_each(|(name, value)| check_lists(&format!("{path}.{name}"), value)),
        _ => Ok(()),
    }
}

pub(super) fn check_placement(order: &PlaceOrder, errors: &mut Vec<FieldError>) {
    if order.lines.is_empty() {
        errors.push(FieldError::new("lines", "out_of_range", "must have at least one line"));
    }
    if order.lines.len() > MAX_LINES {
        let detail = format!("must have at most {MAX_LINES} lines");
        errors.push(FieldError::new("lines", "out_of_range", detail));
        return;
    }
    let mut seen = HashSet::new();
    for (index, line) in order.lines.iter().enumerate() {
        check_quantity(&format!("lines[{index}].quantity"), line.quantity, errors);
        if let Some(price) = line.unit_price {
            check_money(&format!("lines[{index}].unitPrice"), price, errors);
        }
        if !seen.insert(&line.product_id) {
            let detail = "a product may stand in one line only: add the quantities up";
            errors.push(FieldError::new(format!("lines[{index}].productId"), "duplicate", detail));
        }
    }
    if let PaymentMethod::Card { token } = &order.payment
        && (token.is_empty() || token.len() > 200 || !token.bytes().all(|b| b.is_ascii_graphic()))
    {
        let detail = "must be 1 to 200 visible ASCII characters";
        errors.push(FieldError::new("payment.token", "invalid", detail));
    }
}

pub(super) fn check_quantity(field: &str, quantity: u32, errors: &mut Vec<FieldError>) {
    if !(1..=MAX_QUANTITY).contains(&quantity) {
        let detail = format!("must be from 1 to {MAX_QUANTITY}");
        errors.push(FieldError::new(field, "out_of_range", detail));
    }
}

pub(super) fn check_money(field: &str, money: Money, errors: &mut Vec<FieldError>) {
    if !(0..=MAX_AMOUNT).contains(&money.amount) {
        let detail = format!("must be from 0 to {MAX_AMOUNT}");
        errors.push(FieldError::new(format!("{field}.amount"), "out_of_range", detail));
    }
}

/// Checks a text for people: 1 to `most` characters, not only blanks, none of them a control one.
pub fn check_text(field: &str, text: &str, most: usize, errors: &mut Vec<FieldError>) {
    if text.trim().is_empty() || text.chars().count() > most {
        let detail = format!("must be 1 to {most} characters, not only blanks");
        errors.push(FieldError::new(field, "out_of_range", detail));
    } else if text.chars().any(char::is_control) {
        errors.push(FieldError::new(field, "invalid", "must not have control characters"));
    }
}
