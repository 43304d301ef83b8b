//! One charge for each order that was paid by card, one refund for each that was refunded, and
//! nothing else in the sandbox gateway's book, or in what is remembered of Stripe's answers.

use std::fmt;

use anyhow::Result;
use sqlx::FromRow;
use uuid::Uuid;

use super::Data;
use super::engine::{Check, Found, PAGE};

/// An order, or an entry of the gateway's book.
#[derive(Debug, Clone)]
pub enum Entry {
    Order(Uuid),
    Charge(String),
    Refund(String),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Order(id) => write!(f, "order {id}"),
            Self::Charge(key) => write!(f, "charge {key}"),
            Self::Refund(key) => write!(f, "refund {key}"),
        }
    }
}

/// The check of the gateway's book: the sandbox's, and what payment remembers of Stripe.
pub struct MoneyCheck {
    data: Data,
}

/// An order with what the book says of it.
#[derive(Debug, Default, FromRow)]
struct Paid {
    order_id: Uuid,
    status: String,
    payment_method: String,
    payment_status: String,
    total: Option<i64>,
    currency: Option<String>,
    charge_id: Option<String>,
    refund_id: Option<String>,
    charged: Option<String>,
    charge_amount: Option<i64>,
    charge_currency: Option<String>,
    refunded: Option<String>,
    refund_amount: Option<i64>,
    refund_currency: Option<String>,
    /// Whether it stands in both books.
    twice: bool,
    /// Whether Stripe has not said yet what became of it.
    open: bool,
}

impl Paid {
    /// What is wrong with the order's money. What is under way is wrong as well: it is looked at
    /// again.
    fn problem(&self) -> Option<String> {
        let status = &self.status;
        if self.twice {
            return Some("it was charged through two gateways".to_owned());
        }
        if self.open && !matches!(status.as_str(), "validated" | "payment_unknown") {
            return Some(format!("it is {status}, but nobody knows what became of its payment"));
        }
        if self.payment_method != "card" {
            return self
                .charged
                .as_ref()
                .map(|id| format!("it is on account and was charged: {id}"));
        }
        let captured = matches!(self.payment_status.as_str(), "captured" | "refunded");
        match (&self.charged, captured) {
            (None, false) => return None,
            (None, true) => return Some(format!("it is {status}, but was never charged")),
            (Some(id), false) if self.refunded.is_none() => {
                return Some(format!("it is {status}, but was charged: {id}"));
            }
            (Some(id), false) => return Some(format!("it is {status}, but {id} was refunded")),
            (Some(_), true) => {}
        }
        let total = (self.total, self.currency.as_deref());
        if self.charged != self.charge_id {
            return Some("the charge in the book is another one than in the history".to_owned());
        }
        if (self.charge_amount, self.charge_currency.as_deref()) != total {
            return Some("the charge is not its total".to_owned());
        }
        let ended = matches!(status.as_str(), "cancelled" | "expired" | "refunding");
        match &self.refunded {
            _ if ended => Some(format!("it is {status} after its charge, but not refunded")),
            None if status == "refunded" => Some("the book has no refund of it".to_owned()),
            Some(id) if status != "refunded" => {
                Some(format!("it is {status}, but was refunded: {id}"))
            }
            Some(_) if self.refunded != self.refund_id => {
                Some("the refund in the book is another one than in the history".to_owned())
            }
            Some(_) if (self.refund_amount, self.refund_currency.as_deref()) != total => {
                Some("the refund is not its total".to_owned())
            }
            None | Some(_) => None,
        }
    }
}

impl MoneyCheck {
    pub fn new(data: Data) -> Self {
        Self { data }
    }

    async fn orders(&self, ids: &[Uuid]) -> Result<Vec<(Entry, String)>> {
        let rows: Vec<Paid> = sqlx::query_as(
            "select o.order_id, o.status, o.payment_method, o.payment_status, o.total, o.currency,
                    o.charge_id, o.refund_id,
                    coalesce(c.charge_id, s.intent_id) as charged,
                    coalesce(c.amount, s.amount) as charge_amount,
                    coalesce(c.currency, s.currency) as charge_currency,
                    coalesce(r.refund_id, s.refund_id) as refunded,
                    coalesce(r.amount, s.amount) as refund_amount,
                    coalesce(r.currency, s.currency) as refund_currency,
                    c.charge_id is not null and s.intent_id is not null as twice,
                    i.key is not null and i.outcome is null as open
             from journal.orders o
             left join sandbox.charges c
                    on c.idempotency_key = 'charge-' || o.order_id::text and c.outcome = 'succeeded'
             left join sandbox.refunds r on r.charge_id = c.charge_id
             left join payment.intents i on i.key = 'charge-' || o.order_id::text
             left join payment.intents s on s.key = i.key and s.outcome = 'succeeded'
             where o.order_id = any($1)",
        )
        .bind(ids)
        .fetch_all(&self.data.pool)
        .await?;
        Ok(rows
            .into_iter()
            .filter_map(|paid| paid.problem().map(|problem| (Entry::Order(paid.order_id), problem)))
            .collect())
    }

    /// Charges that belong to no order, and refunds that are not of their order's charge; of these
    /// keys, if there are any.
    async fn strangers(&self, keys: Option<&[String]>) -> Result<Vec<(Entry, String)>> {
        let charges: Vec<String> = sqlx::query_scalar(
            "select c.idempotency_key from sandbox.charges c
             left join journal.orders o on c.idempotency_key = 'charge-' || o.order_id::text
             where o.order_id is null and c.outcome = 'succeeded'
               and ($1::text[] is null or c.idempotency_key = any($1))
             union all
             select i.key from payment.intents i
             left join journal.orders o on i.key = 'charge-' || o.order_id::text
             where o.order_id is null and i.outcome = 'succeeded'
               and ($1::text[] is null or i.key = any($1))
             order by 1 limit 10000",
        )
        .bind(keys)
        .fetch_all(&self.data.pool)
        .await?;
        let refunds: Vec<String> = sqlx::query_scalar(
            "select r.idempotency_key from sandbox.refunds r join sandbox.charges c using (charge_id)
             where (c.outcome <> 'succeeded'
                    or 'charge-' || substr(r.idempotency_key, 8) <> c.idempotency_key)
               and ($1::text[] is null or r.idempotency_key = any($1))
             order by 1 limit 10000",
        )
        .bind(keys)
        .fetch_all(&self.data.pool)
        .await?;
        let charges = charges
            .into_iter()
            .map(|key| (Entry::Charge(key), "no order of the journal was charged so".to_owned()));
        let refunds = refunds.into_iter().map(|key| {
            (Entry::Refund(key), "it is of another order's charge, or of none".to_owned())
        });
        Ok(charges.chain(refunds).collect())
    }
}

impl Check for MoneyCheck {
    type Key = Entry;
    const NAME: &'static str = "money";
    const PROMISE: &'static str =
        "order paid by card has one charge, every refunded one a refund, and no other has any";

    async fn scan(&self, found: &mut Found<Entry>) -> Result<()> {
        let mut after = Uuid::nil();
        loop {
            let ids: Vec<Uuid> = sqlx::query_scalar(
                "select order_id from journal.orders where order_id > $1 order by order_id limit $2",
            )
            .bind(after)
            .bind(i64::from(PAGE))
            .fetch_all(&self.data.pool)
            .await?;
            let Some(last) = ids.last() else { break };
            after = *last;
            found.note(ids.len(), self.orders(&ids).await?);
        }
        let strangers = self.strangers(None).await?;
        found.note(strangers.len(), strangers);
        Ok(())
    }

    async fn examine(&self, keys: &[Entry]) -> Result<Vec<(Entry, String)>> {
        let (mut orders, mut others) = (Vec::new(), Vec::new());
        for key in keys {
            match key {
                Entry::Order(id) => orders.push(*id),
                Entry::Charge(key) | Entry::Refund(key) => others.push(key.clone()),
            }
        }
        let mut wrong = self.orders(&orders).await?;
        if !others.is_empty() {
            wrong.extend(self.strangers(Some(&others)).await?);
        }
        Ok(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(status: &str, payment: &str, charged: bool, refunded: bool) -> Paid {
        let some = |there: bool, id: &str| there.then(|| id.to_owned());
        let booked = matches!(payment, "captured" | "refunded");
        Paid {
            status: status.to_owned(),
            payment_method: "card".to_owned(),
            payment_status: payment.to_owned(),
            total: Some(100),
            currency: Some("USD".to_owned()),
            charge_id: some(booked, "ch"),
            refund_id: some(payment == "refunded", "re"),
            charged: some(charged, "ch"),
            charge_amount: charged.then_some(100),
            charge_currency: some(charged, "USD"),
            refunded: some(refunded, "re"),
            refund_amount: refunded.then_some(100),
            refund_currency: some(refunded, "USD"),
            ..Paid::default()
        }
    }

    #[test]
    fn an_order_is_charged_and_refunded_exactly_as_its_history_says() {
        for (status, payment, charged, refunded) in [
            ("validated", "none", false, false),
            ("payment_unknown", "unknown", false, false),
            ("rejected", "declined", false, false),
            ("cancelled", "none", false, false),
            ("paid", "captured", true, false),
            ("shipped", "captured", true, false),
            ("delivered", "captured", true, false),
            ("refunded", "refunded", true, true),
        ] {
            assert_eq!(order(status, payment, charged, refunded).problem(), None, "{status}");
        }
        for (status, payment, charged, refunded) in [
            ("paid", "captured", false, false),
            ("paid", "captured", true, true),
            ("cancelled", "none", true, false),
            ("cancelled", "none", true, true),
            ("cancelled", "captured", true, false),
            ("refunding", "captured", true, false),
            ("rejected", "declined", true, false),
            ("refunded", "refunded", true, false),
            ("refunded", "refunded", false, false),
        ] {
            assert!(order(status, payment, charged, refunded).problem().is_some(), "{status}");
        }
        for status in ["paid", "cancelled", "expired", "rejected"] {
            assert!(Paid { open: true, ..order(status, "none", false, false) }.problem().is_some());
        }
        let twice = Paid { twice: true, ..order("paid", "captured", true, false) };
        assert!(twice.problem().is_some());
        let account =
            Paid { payment_method: "account".to_owned(), ..order("paid", "captured", true, false) };
        assert!(account.problem().is_some());
        for wrong in [
            Paid { charge_amount: Some(99), ..order("paid", "captured", true, false) },
            Paid { charge_id: None, ..order("paid", "captured", true, false) },
            Paid { refund_amount: Some(99), ..order("refunded", "refunded", true, true) },
            Paid { refund_currency: None, ..order("refunded", "refunded", true, true) },
        ] {
            assert!(wrong.problem().is_some(), "{wrong:?}");
        }
    }
}
