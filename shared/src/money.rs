//! Money in integer minor units (cents, yen, …) with its currency; arithmetic is checked.

use std::fmt;

pub use iso_currency::Currency;
use iso_currency::IntoEnumIterator as _;
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, Type};

/// The largest amount that is taken from outside, in minor units. Sums of many such amounts
/// stay far inside `i64` and inside what JSON readers hold exactly (2^53).
pub const MAX_AMOUNT: i64 = 1_000_000_000_000;

/// An amount of one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Money {
    /// Minor units of the currency: 1234 USD is 12.34 dollars.
    #[schema(minimum = 0, maximum = 1_000_000_000_000_i64)]
    pub amount: i64,
    /// ISO 4217 code.
    #[serde(deserialize_with = "currency")]
    #[schema(schema_with = codes)]
    pub currency: Currency,
}

/// All codes, as a schema.
pub fn codes() -> ObjectBuilder {
    let codes = Currency::iter().map(|currency| currency.code());
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(codes))
}

fn currency<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Currency, D::Error> {
    let code = String::deserialize(deserializer)?;
    // Serde's own message would list all codes there are.
    Currency::from_code(&code)
        .ok_or_else(|| de::Error::custom("must be an ISO 4217 code, such as USD"))
}

/// Why two amounts cannot be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// The amounts are of two currencies.
    #[error("amounts of different currencies cannot be added")]
    MixedCurrencies,
    /// The result does not fit.
    #[error("the amount is larger than {MAX_AMOUNT} minor units")]
    TooLarge,
}

impl Money {
    /// An amount in minor units.
    pub fn new(amount: i64, currency: Currency) -> Self {
        Self { amount, currency }
    }

    /// The sum, if both are of one currency and the sum is at most [`MAX_AMOUNT`].
    pub fn checked_add(self, other: Self) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::MixedCurrencies);
        }
        let sum = self.amount.checked_add(other.amount).ok_or(MoneyError::TooLarge)?;
        Self::bounded(sum, self.currency)
    }

    /// The price of `quantity` pieces.
    pub fn checked_mul(self, quantity: u32) -> Result<Self, MoneyError> {
        let product = self.amount.checked_mul(i64::from(quantity)).ok_or(MoneyError::TooLarge)?;
        Self::bounded(product, self.currency)
    }

    fn bounded(amount: i64, currency: Currency) -> Result<Self, MoneyError> {
        if amount > MAX_AMOUNT { Err(MoneyError::TooLarge) } else { Ok(Self { amount, currency }) }
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = usize::from(self.currency.exponent().unwrap_or(0));
        let unit = 10_i64.pow(u32::try_from(digits).unwrap_or(0));
        let (whole, rest) = (self.amount / unit, (self.amount % unit).abs());
        if digits == 0 {
            write!(f, "{whole} {}", self.currency.code())
        } else {
            write!(f, "{whole}.{rest:0digits$} {}", self.currency.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn currencies_do_not_mix() {
        let sum = Money::new(1, Currency::USD).checked_add(Money::new(1, Currency::EUR));
        assert_eq!(sum, Err(MoneyError::MixedCurrencies));
    }

    #[test]
    fn no_arithmetic_overflows() {
        let most = Money::new(MAX_AMOUNT, Currency::USD);
        assert_eq!(most.checked_add(Money::new(1, Currency::USD)), Err(MoneyError::TooLarge));
        assert_eq!(most.checked_mul(u32::MAX), Err(MoneyError::TooLarge));
    }

    #[test]
    fn money_is_shown_in_whole_units() {
        assert_eq!(Money::new(144_906_231, Currency::USD).to_string(), "1449062.31 USD");
        assert_eq!(Money::new(5, Currency::JPY).to_string(), "5 JPY");
    }

    #[test]
    fn money_reads_and_writes_plain_json() {
        let money: Money = serde_json::from_str(r#"{"amount":1234,"currency":"USD"}"#).unwrap();
        assert_eq!(serde_json::to_string(&money).unwrap(), r#"{"amount":1234,"currency":"USD"}"#);
        assert!(serde_json::from_str::<Money>(r#"{"amount":1.5,"currency":"USD"}"#).is_err());
        assert!(serde_json::from_str::<Money>(r#"{"amount":1,"currency":"usd "}"#).is_err());
    }
}
