//! The customer aggregate, pure: registration, the credit limit and the credit in use.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::CustomerId;
use crate::money::Money;
use crate::reason::{Reason, Refusal};

/// A customer as it stands. This is the state that events carry and the document that is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Customer {
    /// The customer.
    pub customer_id: CustomerId,
    /// How the shop calls them.
    pub name: String,
    /// The most that open account orders may sum up to; without it there is no account payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credit_limit: Option<Money>,
    /// What open account orders sum up to now, in the limit's currency, in minor units.
    pub credit_used: i64,
    /// The version of the last event.
    pub version: u64,
}

/// What happened to a customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum CustomerEvent {
    /// The customer was registered.
    #[serde(rename_all = "camelCase")]
    Registered {
        /// The name.
        name: String,
        /// The first credit limit.
        #[serde(skip_serializing_if = "Option::is_none")]
        credit_limit: Option<Money>,
    },
    /// The credit limit was changed.
    #[serde(rename_all = "camelCase")]
    CreditLimitSet {
        /// The new limit.
        credit_limit: Money,
    },
    /// Orders have used credit or given it back. Several changes may stand in one event.
    #[serde(rename_all = "camelCase")]
    CreditChanged {
        /// The credit in use after it.
        credit_used: i64,
    },
}

impl CustomerEvent {
    /// The type, as in JSON and in the last token of the subject.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Registered { .. } => "registered",
            Self::CreditLimitSet { .. } => "credit-limit-set",
            Self::CreditChanged { .. } => "credit-changed",
        }
    }
}

impl Customer {
    /// The state after `event`, which becomes the next version; nothing, if the event cannot come
    /// first or cannot come again.
    pub fn apply(before: Option<&Self>, id: &CustomerId, event: &CustomerEvent) -> Option<Self> {
        if let CustomerEvent::Registered { name, credit_limit } = event {
            return before.is_none().then(|| Self {
                customer_id: id.clone(),
                name: name.clone(),
                credit_limit: *credit_limit,
                credit_used: 0,
                version: 1,
            });
        }
        let mut after = before?.clone();
        match event {
            CustomerEvent::CreditLimitSet { credit_limit } => {
                after.credit_limit = Some(*credit_limit);
            }
            CustomerEvent::CreditChanged { credit_used } => after.credit_used = *credit_used,
            CustomerEvent::Registered { .. } => {}
        }
        after.version += 1;
        Some(after)
    }

    /// Whether `total` fits into what is left of the credit limit.
    pub fn can_spend(&self, total: Money) -> Result<(), Refusal> {
        let refuse = |detail: String| Err(Refusal::new(Reason::InsufficientCredit, detail));
        let Some(limit) = self.credit_limit else {
            return refuse(format!("the customer {} has no credit limit", self.customer_id));
        };
        if limit.currency != total.currency {
            let code = limit.currency.code();
            return refuse(format!("the credit limit is in {code}, not {}", total.currency.code()));
        }
        let left = limit.amount.saturating_sub(self.credit_used);
        if total.amount > left {
            let left = Money::new(left.max(0), limit.currency);
            return refuse(format!("{left} of the credit limit are left"));
        }
        Ok(())
    }

    /// Decides a new credit limit. It may be lower than what is in use, which then only shrinks;
    /// but the currency stays while credit is in use.
    pub fn set_credit_limit(&self, limit: Money) -> Result<CustomerEvent, Refusal> {
        if self.credit_used > 0
            && self.credit_limit.is_some_and(|old| old.currency != limit.currency)
        {
            return Err(Refusal::new(
                Reason::CurrencyMismatch,
                "the currency of the credit limit cannot change while credit is in use",
            ));
        }
        Ok(CustomerEvent::CreditLimitSet { credit_limit: limit })
    }
}
