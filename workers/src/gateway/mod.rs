//! Payment gateways.

pub mod breaker;
pub mod change;
pub mod config;
pub mod guard;
pub mod measured;
pub mod sandbox;
pub mod stripe;

use std::future::Future;

use millrace_shared::money::Money;

/// A payment gateway. Every call is idempotent by its key: called again it gives the first answer.
pub trait Gateway: Send + Sync + 'static {
    /// Charges a card.
    fn charge(
        &self,
        key: &str,
        amount: Money,
        token: &str,
    ) -> impl Future<Output = Result<Charge, ChargeError>> + Send;

    /// What has become of the charge of a key; nothing if the gateway has never booked one.
    fn find(
        &self,
        key: &str,
    ) -> impl Future<Output = Result<Option<Result<Charge, ChargeError>>, GatewayError>> + Send;

    /// Makes sure that no charge of this key comes to stand from now on. If one stands already it is
    /// returned, and is the caller's to refund.
    fn void(&self, key: &str) -> impl Future<Output = Result<Option<Charge>, GatewayError>> + Send;

    /// Gives a charge back in full; there is one refund for a charge.
    fn refund(
        &self,
        key: &str,
        charge_id: &str,
        amount: Money,
    ) -> impl Future<Output = Result<Refund, GatewayError>> + Send;
}

/// A charge that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// The gateway's name of it.
    pub charge_id: String,
}

/// A refund that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refund {
    /// The gateway's name of it.
    pub refund_id: String,
}

/// Why there is no charge, or why it is not known whether there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChargeError {
    /// Declined for good.
    #[error("the payment was declined: {0}")]
    Declined(String),
    /// The key was voided before.
    #[error("the payment was called off")]
    Voided,
    /// No answer in time: there may be a charge. Ask with [`Gateway::find`].
    #[error("the gateway gave no answer in time: {0}")]
    Unknown(String),
    /// The gateway could not be used; there is no charge.
    #[error("the gateway is not available: {0}")]
    Unavailable(String),
    /// The gateway does not take the request, and not because of the card; there is no charge.
    #[error("the gateway refuses to be asked so: {0}")]
    Refused(String),
}

/// Why a question, a void or a refund has no answer. All of them may be repeated.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// What is written down of the gateway's payments cannot be used.
    #[error("the book of payments cannot be used")]
    Book(#[from] sqlx::Error),
    /// The gateway does not answer, or cannot do it now.
    #[error("the gateway did not do it: {0}")]
    Unavailable(String),
    /// The gateway does not do it: somebody has to look at it.
    #[error("the gateway refuses: {0}")]
    Refused(String),
}
