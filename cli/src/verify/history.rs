//! Every history is one line of versions 1..n of legal steps, whose states are the fold of what
//! happened.

use std::collections::HashMap;

use anyhow::Result;
use futures_util::TryStreamExt as _;
use millrace_shared::customer::{Customer, CustomerEvent};
use millrace_shared::ids::EventId;
use millrace_shared::message::{Event, Subject, now};
use millrace_shared::order::Order;
use millrace_shared::product::{Product, ProductEvent, Stock};
use serde_json::Value;
use sqlx::Row as _;
use sqlx::types::chrono::{DateTime, Utc};

use super::Data;
use super::engine::{Check, Found};
use super::journal::{self, Owner, difference, ids_of};

/// The check of the journal's histories.
pub struct Histories {
    data: Data,
}

/// What a history has come to so far.
#[derive(Default)]
struct Line {
    version: u64,
    sequence: i64,
    state: State,
    /// What is wrong; then the rest is not looked at.
    problem: Option<String>,
    /// The rest is too young to be complete.
    young: bool,
}

#[derive(Default)]
enum State {
    #[default]
    Nothing,
    Order(Box<Order>),
    Customer(Customer),
    Product(Product),
}

impl Line {
    /// Takes the next event. A gap before an event that is younger than `old` may yet be filled:
    /// replicas write side by side.
    fn take(&mut self, event: &Event, sequence: i64, old: DateTime<Utc>) {
        if self.problem.is_some() || self.young {
            return;
        }
        if event.version != self.version + 1 {
            self.young = event.occurred_at > old;
            if !self.young {
                let (after, version) = (self.version, event.version);
                self.problem = Some(format!("after version {after} comes version {version}"));
            }
            return;
        }
        if let Err(problem) = self.step(event, sequence) {
            let (kind, version) = (&event.kind, event.version);
            self.problem = Some(format!("version {version} ({kind}): {problem}"));
        }
        (self.version, self.sequence) = (event.version, sequence);
    }

    fn step(&mut self, event: &Event, sequence: i64) -> Result<()> {
        let owner = format!("{}/{}", event.subject, event.subject_id);
        let id = EventId::derive(&owner, event.version, event.causation);
        anyhow::ensure!(event.id == id, "its id is {} and not {id}, which is derived", event.id);
        anyhow::ensure!(sequence > self.sequence, "it stands before its predecessor in the log");
        let (state, expected) = self.state.after(event)?;
        if let Some(difference) = difference(&expected, &event.state()?) {
            anyhow::bail!("the state is not what follows from its history: {difference}");
        }
        self.state = state;
        Ok(())
    }
}

impl State {
    /// The state after an event, and as JSON.
    fn after(&self, event: &Event) -> Result<(Self, Value)> {
        Ok(match event.subject {
            Subject::Order => {
                let before = if let Self::Order(order) = self { Some(&**order) } else { None };
                let after = event.fold_order(before, event.subject_id.parse()?)?;
                let json = serde_json::to_value(&after)?;
                (Self::Order(Box::new(after)), json)
            }
            Subject::Customer => {
                let before =
                    if let Self::Customer(customer) = self { Some(customer) } else { None };
                let after = event.fold_customer(before)?;
                spend(before, &after, &event.customer_event()?)?;
                let json = serde_json::to_value(&after)?;
                (Self::Customer(after), json)
            }
            Subject::Product => {
                let before = if let Self::Product(product) = self { Some(product) } else { None };
                let after = event.fold_product(before)?;
                count(before, &after, &event.product_event()?)?;
                let json = serde_json::to_value(&after)?;
                (Self::Product(after), json)
            }
            Subject::Command => {
                anyhow::ensure!(event.version == 1, "a command has one event");
                (Self::Nothing, serde_json::from_str(event.data.get())?)
            }
        })
    }
}

/// The credit in use never grows beyond the limit. A limit may be set below what is in use.
fn spend(before: Option<&Customer>, after: &Customer, event: &CustomerEvent) -> Result<()> {
    let CustomerEvent::CreditChanged { credit_used } = event else { return Ok(()) };
    let used = before.map_or(0, |before| before.credit_used);
    let limit = after.credit_limit.map_or(0, |limit| limit.amount);
    anyhow::ensure!(
        (0..=limit.max(used)).contains(credit_used),
        "{credit_used} of the credit are in use, after {used}, and the limit is {limit}"
    );
    Ok(())
}

/// Orders move pieces; they make none and lose none.
fn count(before: Option<&Product>, after: &Product, event: &ProductEvent) -> Result<()> {
    let Stock { available, reserved, sold } = after.stock;
    anyhow::ensure!(
        available >= 0 && reserved >= 0 && sold >= 0,
        "the stock is {available} available, {reserved} reserved, {sold} sold"
    );
    let (had, has) = (before.map_or(0, |before| pieces(before.stock)), pieces(after.stock));
    let moved = matches!(event, ProductEvent::StockChanged { .. });
    anyhow::ensure!(!moved || had == has, "orders have made {has} pieces out of {had}");
    Ok(())
}

fn pieces(stock: Stock) -> i64 {
    stock.available + stock.reserved + stock.sold
}

impl Histories {
    pub fn new(data: Data) -> Self {
        Self { data }
    }

    async fn look(&self, subject: Subject, ids: Vec<String>) -> Result<Vec<(Owner, String)>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let old = now() - self.data.settle;
        let mut lines: HashMap<String, Line> = HashMap::new();
        let mut rows = sqlx::query(
            "select * from journal.events where subject = $1 and subject_id = any($2)
             order by subject_id, version",
        )
        .bind(subject.as_str())
        .bind(ids)
        .fetch(&self.data.pool);
        while let Some(row) = rows.try_next().await? {
            let event = journal::event(&row)?;
            let line = lines.entry(event.subject_id.clone()).or_default();
            line.take(&event, row.try_get("sequence")?, old);
        }
        let wrong = |(id, line): (String, Line)| Some((Owner { subject, id }, line.problem?));
        Ok(lines.into_iter().filter_map(wrong).collect())
    }
}

impl Check for Histories {
    type Key = Owner;
    const NAME: &'static str = "histories";
    const PROMISE: &'static str =
        "history in the journal is versions 1..n of legal steps, its states their fold";

    async fn scan(&self, found: &mut Found<Owner>) -> Result<()> {
        for subject in [Subject::Order, Subject::Customer, Subject::Product, Subject::Command] {
            let mut after = String::new();
            loop {
                let page = journal::owners(&self.data.pool, subject, &after).await?;
                let Some(last) = page.last() else { break };
                after.clone_from(&last.id);
                let wrong = self.look(subject, ids_of(&page, subject)).await?;
                found.note(page.len(), wrong);
            }
        }
        Ok(())
    }

    async fn examine(&self, keys: &[Owner]) -> Result<Vec<(Owner, String)>> {
        let mut wrong = Vec::new();
        for subject in [Subject::Order, Subject::Customer, Subject::Product, Subject::Command] {
            wrong.extend(self.look(subject, ids_of(keys, subject)).await?);
        }
        Ok(wrong)
    }
}
