//! The ledger's rows, their locks and constraints.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

use anyhow::Result;
use millrace_shared::customer::Customer;
use millrace_shared::ids::{CommandId, CustomerId, OrderId, ProductId};
use millrace_shared::message::{Event, Subject};
use millrace_shared::product::Product;
use sqlx::error::{DatabaseError, ErrorKind};
use uuid::Uuid;

use super::fate::{Fate, Flaw};
use crate::book::{Book, Past, Placed};
use crate::ledger::{Needs, Turn};
use crate::reservations::{Holding, Settlement};

/// What can be locked: rows, and keys that must be unique.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lock {
    Creating,
    Product(ProductId),
    Customer(CustomerId),
    Order(OrderId),
    Decision(CommandId),
    Key(Uuid),
}

/// What an order holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderRow {
    pub order_id: OrderId,
    pub customer_id: CustomerId,
    pub pieces: BTreeMap<ProductId, i64>,
    pub stock: Pieces,
    pub credit: i64,
    pub credit_held: bool,
}

/// What has become of an order's pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pieces {
    None,
    Held,
    Released,
    Sold,
}

impl OrderRow {
    pub fn new(placed: Placed) -> Self {
        Self {
            order_id: placed.order_id,
            customer_id: placed.customer_id,
            stock: if placed.pieces.is_empty() { Pieces::None } else { Pieces::Held },
            pieces: placed.pieces.into_iter().map(|(id, count)| (id, count.into())).collect(),
            credit: placed.credit,
            credit_held: placed.credit > 0,
        }
    }
}

/// An event in the outbox.
#[derive(Debug, Clone)]
pub struct Row {
    pub command: Option<CommandId>,
    pub event: Event,
    /// It has lain for some seconds.
    pub old: bool,
}

impl Row {
    /// Whether it is validation's to append.
    pub fn is_own(&self) -> bool {
        matches!(self.event.subject, Subject::Order | Subject::Command)
    }
}

/// What a transaction will have written.
#[derive(Debug, Default)]
pub struct Writes {
    products: Vec<(Product, bool)>,
    customers: Vec<(Customer, bool)>,
    pub withdrawn: Vec<CommandId>,
    pub removed: Vec<i64>,
    pub decisions: Vec<(Past, Option<Uuid>)>,
    pub orders: Vec<OrderRow>,
    pub outbox: Vec<(i64, Row)>,
    pub settlement: Settlement,
}

impl Writes {
    /// The products and customers that a book has changed, if the constraints allow them.
    pub fn take_book(&mut self, book: &Book) -> Result<()> {
        for product in book.changed_products.iter().filter_map(|id| book.products.get(id)) {
            let stock = product.stock;
            if stock.available < 0 || stock.reserved < 0 || stock.sold < 0 {
                return Err(Failure::Check.error());
            }
            let touched = book.touched_products.contains(&product.product_id);
            self.products.push((product.clone(), touched));
        }
        for customer in book.changed_customers.iter().filter_map(|id| book.customers.get(id)) {
            if customer.credit_used < 0 {
                return Err(Failure::Check.error());
            }
            let touched = book.touched_customers.contains(&customer.customer_id);
            self.customers.push((customer.clone(), touched));
        }
        Ok(())
    }
}

impl fmt::Display for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.withdrawn.iter().map(|id| format!("withdraws command {id}")));
        parts.extend(self.decisions.iter().map(|(past, _)| {
            let reason =
                past.refusal.as_ref().map_or("accepted", |refusal| refusal.reason.as_str());
            format!("command {} {reason}", past.command_id)
        }));
        parts.extend(self.outbox.iter().map(|(place, row)| {
            let Event { subject, subject_id, version, kind, .. } = &row.event;
            format!("outbox {place}: {subject} {subject_id} v{version} {kind}")
        }));
        let Settlement { released, sold, freed, .. } = &self.settlement;
        parts.extend(released.iter().map(|id| format!("releases the stock of {id}")));
        parts.extend(sold.iter().map(|id| format!("sells the stock of {id}")));
        parts.extend(freed.iter().map(|id| format!("frees the credit of {id}")));
        f.write_str(&parts.join("; "))
    }
}

/// Why PostgreSQL refuses or fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Connection,
    Deadlock,
    Unique,
    Check,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Failure {}

impl DatabaseError for Failure {
    fn message(&self) -> &'static str {
        "in memory"
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::Connection => "08006",
            Self::Deadlock => "40P01",
            Self::Unique => "23505",
            Self::Check => "23514",
        }))
    }

    fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

impl Failure {
    /// The error as PostgreSQL's client gives it.
    pub fn error(self) -> anyhow::Error {
        sqlx::Error::Database(Box::new(self)).into()
    }
}

/// All rows that are committed, and who holds and awaits which lock.
#[derive(Debug, Default)]
pub struct Tables {
    pub products: BTreeMap<ProductId, (Product, bool)>,
    pub customers: BTreeMap<CustomerId, (Customer, bool)>,
    pub orders: BTreeMap<OrderId, OrderRow>,
    pub decisions: BTreeMap<CommandId, (Past, Option<Uuid>)>,
    pub outbox: BTreeMap<i64, Row>,
    /// Orders whose time to pay is over.
    pub overdue: BTreeSet<OrderId>,
    /// Who holds the outbox.
    pub relay: Option<u64>,
    /// How often the server was started.
    pub run: u64,
    /// Cleared, but not durably so.
    volatile: Vec<(i64, Row)>,
    locks: BTreeMap<Lock, u64>,
    awaited: BTreeMap<u64, Lock>,
    transactions: u64,
    places: i64,
}

impl Tables {
    pub fn next_transaction(&mut self) -> u64 {
        self.transactions += 1;
        self.transactions
    }

    pub fn next_place(&mut self) -> i64 {
        self.places += 1;
        self.places
    }

    pub fn release(&mut self, transaction: u64) {
        self.locks.retain(|_, holder| *holder != transaction);
        self.awaited.remove(&transaction);
    }

    /// Takes a lock, unless another has it; then the transaction waits for it.
    pub fn try_lock(
        &mut self,
        fate: &Fate,
        (transaction, run): (u64, u64),
        what: &Lock,
    ) -> Result<bool> {
        if run != self.run {
            return Err(Failure::Connection.error());
        }
        let mut holder = self.locks.get(what).copied();
        let free = holder.is_none_or(|holder| holder == transaction);
        if free || fate.has(Flaw::SharesLocks) {
            self.awaited.remove(&transaction);
            self.locks.insert(what.clone(), transaction);
            return Ok(true);
        }
        self.awaited.insert(transaction, what.clone());
        while let Some(other) = holder {
            if other == transaction {
                return Err(Failure::Deadlock.error());
            }
            holder = self.awaited.get(&other).and_then(|next| self.locks.get(next)).copied();
        }
        Ok(false)
    }

    pub fn has(&self, row: &Lock) -> bool {
        match row {
            Lock::Creating => true,
            Lock::Product(id) => self.products.contains_key(id),
            Lock::Customer(id) => self.customers.contains_key(id),
            Lock::Order(id) => self.orders.contains_key(id),
            Lock::Decision(id) => self.decisions.contains_key(id),
            Lock::Key(id) => self.decisions.values().any(|(_, key)| *key == Some(*id)),
        }
    }

    /// Whether a key that must be unique is there already, for a transaction with these writes.
    pub fn is_taken(&self, key: &Lock, writes: &Writes) -> bool {
        let withdrawn = |id: &CommandId| writes.withdrawn.contains(id);
        let inserted = &writes.decisions;
        match key {
            Lock::Decision(id) => {
                (self.decisions.contains_key(id) && !withdrawn(id))
                    || inserted.iter().any(|(past, _)| past.command_id == *id)
            }
            Lock::Key(id) => {
                let standing = self.decisions.iter().filter(|(command, _)| !withdrawn(command));
                standing.map(|(_, row)| row).chain(inserted).any(|(_, key)| *key == Some(*id))
            }
            Lock::Order(id) => {
                self.orders.contains_key(id) || writes.orders.iter().any(|row| row.order_id == *id)
            }
            other => self.has(other),
        }
    }

    /// Enters those of the rows into the book that the transaction has locked.
    pub fn read_locked(&self, transaction: u64, rows: &[Lock], book: &mut Book) {
        for row in rows.iter().filter(|row| self.locks.get(*row) == Some(&transaction)) {
            match row {
                Lock::Product(id) => {
                    let Some((product, touched)) = self.products.get(id) else { continue };
                    book.products.insert(id.clone(), product.clone());
                    book.touched_products.extend(touched.then(|| id.clone()));
                }
                Lock::Customer(id) => {
                    let Some((customer, touched)) = self.customers.get(id) else { continue };
                    book.customers.insert(id.clone(), customer.clone());
                    book.touched_customers.extend(touched.then(|| id.clone()));
                }
                _ => {}
            }
        }
    }

    pub fn read_decisions(&self, needs: &Needs, own: &Writes, book: &mut Book) {
        let commands: HashSet<CommandId> = needs.commands.iter().copied().collect();
        let keys: HashSet<Uuid> = needs.keys.iter().copied().collect();
        for (id, (past, key_id)) in &self.decisions {
            let wanted = commands.contains(id) || key_id.is_some_and(|key| keys.contains(&key));
            if wanted && !own.withdrawn.contains(id) {
                book.keys.extend(key_id.map(|key| (key, past.clone())));
                book.decided.insert(*id, past.clone());
            }
        }
    }

    pub fn read_placed(&self, needs: &Needs, book: &mut Book) {
        let placed = needs.orders.iter().filter(|id| self.orders.contains_key(id));
        book.placed = placed.copied().collect();
    }

    /// What the orders hold that the transaction has locked.
    pub fn holdings(&self, transaction: u64, orders: &[OrderId]) -> Vec<Holding> {
        let locked = |id: &&OrderId| self.locks.get(&Lock::Order(**id)) == Some(&transaction);
        let rows = orders.iter().filter(locked).filter_map(|id| self.orders.get(id));
        rows.map(|row| Holding {
            order_id: row.order_id,
            customer_id: row.customer_id.clone(),
            pieces: if row.stock == Pieces::Held { row.pieces.clone() } else { BTreeMap::new() },
            credit: if row.credit_held { row.credit } else { 0 },
        })
        .collect()
    }

    pub fn rows_of(&self, command: CommandId) -> Vec<(i64, Row)> {
        let own = self.outbox.iter().filter(|(_, row)| row.command == Some(command));
        own.map(|(place, row)| (*place, row.clone())).collect()
    }

    /// Products and customers with changes that no event has told.
    pub fn touched(&self, turn: &Turn, most: usize) -> (Vec<String>, Vec<String>) {
        fn next<T: ToString, R>(
            rows: &BTreeMap<T, (R, bool)>,
            after: Option<&String>,
            most: usize,
        ) -> Vec<String> {
            let touched = rows.iter().filter(|(_, (_, touched))| *touched);
            let ids = touched.map(|(id, _)| id.to_string());
            ids.filter(|id| after.is_some_and(|after| id > after)).take(most).collect()
        }
        (
            next(&self.products, turn.products.as_ref(), most),
            next(&self.customers, turn.customers.as_ref(), most),
        )
    }

    /// Each look may be the one at which an event has lain long enough.
    pub fn waiting(&mut self, fate: &Fate, most: usize) -> Vec<(i64, Event)> {
        let mut waiting = Vec::new();
        for (place, row) in &mut self.outbox {
            row.old |= fate.one_in(6);
            if row.old || !row.is_own() {
                waiting.push((*place, row.event.clone()));
            }
        }
        waiting.truncate(most);
        waiting
    }

    pub fn remove(&mut self, places: &[i64]) {
        self.outbox.retain(|place, _| !places.contains(place));
    }

    /// Forgets the own events of commands. What follows may be lost with it.
    pub fn clear(&mut self, commands: &[CommandId]) {
        let (gone, kept) =
            std::mem::take(&mut self.outbox).into_iter().partition::<BTreeMap<_, _>, _>(
                |(_, row)| row.is_own() && row.command.is_some_and(|id| commands.contains(&id)),
            );
        self.outbox = kept;
        self.volatile.extend(gone);
    }

    /// Dies and is started again: open transactions are gone, and what was not durable is undone.
    pub fn restart(&mut self) {
        self.run += 1;
        self.locks.clear();
        self.awaited.clear();
        self.relay = None;
        self.outbox.extend(self.volatile.drain(..));
    }

    pub fn commit(&mut self, run: u64, writes: Writes) -> Result<()> {
        if run != self.run {
            return Err(Failure::Connection.error());
        }
        // A commit that waits for the disk makes durable what was before it.
        self.volatile.clear();
        for (product, touched) in writes.products {
            let id = product.product_id.clone();
            if self.products.get(&id).is_none_or(|(old, _)| old.version <= product.version) {
                self.products.insert(id, (product, touched));
            }
        }
        for (customer, touched) in writes.customers {
            self.customers.insert(customer.customer_id.clone(), (customer, touched));
        }
        self.decisions.retain(|id, _| !writes.withdrawn.contains(id));
        self.remove(&writes.removed);
        self.decisions.extend(writes.decisions.into_iter().map(|row| (row.0.command_id, row)));
        self.orders.extend(writes.orders.into_iter().map(|row| (row.order_id, row)));
        self.outbox.extend(writes.outbox);
        let Settlement { released, sold, freed, .. } = writes.settlement;
        for (ids, stock) in [(released, Pieces::Released), (sold, Pieces::Sold)] {
            for id in ids {
                self.orders.entry(id).and_modify(|row| row.stock = stock);
            }
        }
        for id in freed {
            self.orders.entry(id).and_modify(|row| row.credit_held = false);
        }
        Ok(())
    }
}
