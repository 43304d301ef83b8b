//! Why something was refused: one list for rejected orders and refused commands.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A stable, machine-readable reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The customer is not registered.
    UnknownCustomer,
    /// A product does not exist.
    UnknownProduct,
    /// The order does not exist.
    UnknownOrder,
    /// A product is retired.
    ProductInactive,
    /// There is less on stock than was ordered.
    OutOfStock,
    /// The order is more than what is left of the customer's credit limit.
    InsufficientCredit,
    /// The client's price is not the catalogue's.
    PriceChanged,
    /// The products of one order are priced in different currencies.
    MixedCurrencies,
    /// An amount or quantity is too large to be kept.
    AmountTooLarge,
    /// The payment was declined for good.
    PaymentDeclined,
    /// The order's status does not allow this step.
    NotAllowed,
    /// The idempotency key was used with another body.
    IdempotencyKeyReused,
    /// The command id was used with another body.
    CommandIdReused,
    /// The order, or the customer, exists already.
    AlreadyExists,
    /// The credit limit's currency is not that of the credit in use.
    CurrencyMismatch,
    /// The message is not a command that can be read.
    MalformedCommand,
}

impl Reason {
    /// The reason as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownCustomer => "unknown_customer",
            Self::UnknownProduct => "unknown_product",
            Self::UnknownOrder => "unknown_order",
            Self::ProductInactive => "product_inactive",
            Self::OutOfStock => "out_of_stock",
            Self::InsufficientCredit => "insufficient_credit",
            Self::PriceChanged => "price_changed",
            Self::MixedCurrencies => "mixed_currencies",
            Self::AmountTooLarge => "amount_too_large",
            Self::PaymentDeclined => "payment_declined",
            Self::NotAllowed => "not_allowed",
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::CommandIdReused => "command_id_reused",
            Self::AlreadyExists => "already_exists",
            Self::CurrencyMismatch => "currency_mismatch",
            Self::MalformedCommand => "malformed_command",
        }
    }
}

/// A refusal: the reason, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// For programs.
    pub reason: Reason,
    /// For people.
    pub detail: String,
}

impl Refusal {
    /// A refusal with its sentence.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_agree() {
        let json = serde_json::to_string(&Reason::IdempotencyKeyReused).unwrap();
        assert_eq!(json, format!("\"{}\"", Reason::IdempotencyKeyReused.as_str()));
    }
}
