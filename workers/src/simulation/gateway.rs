//! A payment gateway with a book in memory; the tokens are those of the sandbox.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use millrace_shared::money::Money;

use super::fate::{Fate, Flaw, lock};
use crate::gateway::{Charge, ChargeError, Gateway, GatewayError, Refund};

/// What was booked under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Booked {
    Charged(Money),
    Declined,
    Voided,
    /// The calls so far have failed before the charge.
    Failing(u32),
}

#[derive(Debug, Default)]
pub struct Accounts {
    charges: BTreeMap<String, Booked>,
    /// Every time that money was taken, with the key.
    pub taken: Vec<(String, Money)>,
    /// The charge and the amount of each refund, by the refund's key.
    pub refunds: BTreeMap<String, (String, Money)>,
}

/// The gateway. Clones share the book.
#[derive(Clone)]
pub struct MemoryGateway {
    fate: Fate,
    book: Arc<Mutex<Accounts>>,
}

fn charge(key: &str) -> Charge {
    Charge { charge_id: format!("ch-{key}") }
}

fn result(key: &str, booked: &Booked) -> Result<Charge, ChargeError> {
    match booked {
        Booked::Charged(_) => Ok(charge(key)),
        Booked::Declined => Err(ChargeError::Declined("declined".to_owned())),
        Booked::Voided => Err(ChargeError::Voided),
        Booked::Failing(_) => Err(ChargeError::Unavailable("try again".to_owned())),
    }
}

impl MemoryGateway {
    pub fn new(fate: Fate) -> Self {
        Self { fate, book: Arc::default() }
    }

    pub fn book(&self) -> MutexGuard<'_, Accounts> {
        lock(&self.book)
    }

    async fn ask<T: Send + 'static>(
        &self,
        what: String,
        effect: impl FnOnce(&mut Accounts) -> T + Send + 'static,
    ) -> Result<T, GatewayError> {
        let (book, fate, line) = (Arc::clone(&self.book), self.fate.clone(), what.clone());
        let answer = self.fate.request(
            move || what.clone(),
            move || {
                fate.tell(|| format!("the gateway: {line}"));
                effect(&mut lock(&book))
            },
        );
        answer.await.ok_or_else(|| GatewayError::Unavailable("no answer".to_owned()))
    }
}

impl Gateway for MemoryGateway {
    async fn charge(&self, key: &str, amount: Money, token: &str) -> Result<Charge, ChargeError> {
        if self.fate.strikes(self.fate.rates().away) {
            return Err(ChargeError::Unavailable("not reached".to_owned()));
        }
        if token == "tok_lost" {
            return Err(ChargeError::Unknown("the request was lost".to_owned()));
        }
        let first = match token {
            "tok_declined" => Booked::Declined,
            "tok_flaky" => Booked::Failing(1),
            _ => Booked::Charged(amount),
        };
        let (named, again) = (key.to_owned(), self.fate.has(Flaw::ChargesAgain));
        let book = move |book: &mut Accounts| {
            let known = book.charges.get(&named).filter(|_| !again).copied();
            let new = !matches!(known, Some(Booked::Charged(_)));
            let booked = match known {
                None => first,
                Some(Booked::Failing(calls)) if calls < 2 => Booked::Failing(calls + 1),
                Some(Booked::Failing(_)) => Booked::Charged(amount),
                Some(booked) => booked,
            };
            if new && booked == Booked::Charged(amount) {
                book.taken.push((named.clone(), amount));
            }
            book.charges.insert(named, booked);
            booked
        };
        match self.ask(format!("charge {key} with {token}"), book).await {
            Ok(_) if token == "tok_timeout" && self.fate.one_in(2) => {
                Err(ChargeError::Unknown("the connection was lost".to_owned()))
            }
            Ok(booked) => result(key, &booked),
            Err(error) => Err(ChargeError::Unknown(error.to_string())),
        }
    }

    async fn find(&self, key: &str) -> Result<Option<Result<Charge, ChargeError>>, GatewayError> {
        let named = key.to_owned();
        let booked = self.ask(format!("find {key}"), move |book| book.charges.get(&named).copied());
        let booked = booked.await?.filter(|booked| !matches!(booked, Booked::Failing(_)));
        Ok(booked.map(|booked| result(key, &booked)))
    }

    async fn void(&self, key: &str) -> Result<Option<Charge>, GatewayError> {
        let named = key.to_owned();
        let void = move |book: &mut Accounts| {
            let booked = book.charges.entry(named).or_insert(Booked::Voided);
            if let Booked::Failing(_) = booked {
                *booked = Booked::Voided;
            }
            *booked
        };
        let booked = self.ask(format!("void {key}"), void).await?;
        Ok(matches!(booked, Booked::Charged(_)).then(|| charge(key)))
    }

    async fn refund(
        &self,
        key: &str,
        charge_id: &str,
        amount: Money,
    ) -> Result<Refund, GatewayError> {
        let (named, charge_id) = (key.to_owned(), charge_id.to_owned());
        let refund = move |book: &mut Accounts| {
            book.refunds.entry(named).or_insert((charge_id, amount));
        };
        self.ask(format!("refund {key}"), refund).await?;
        Ok(Refund { refund_id: format!("re-{key}") })
    }
}
