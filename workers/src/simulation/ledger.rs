//! The ledger's transactions in memory, honest about what PostgreSQL does (read committed): what a
//! transaction reads is committed, row by row locked and then as it stands after the wait; what it
//! writes is there at its commit, at once; unique keys and row locks are waited for; deadlocks end
//! one of the two; a commit may arrive after who sent it has died.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Result;
use chrono::{DateTime, Utc};
use millrace_shared::ids::{CommandId, OrderId};
use millrace_shared::message::{Event, Subject};
use millrace_shared::order::{Order, OrderStatus};

use super::fate::{Fate, lock};
use super::tables::{Failure, Lock, OrderRow, Row, Tables, Writes};
use crate::book::{Book, Decision, Incoming};
use crate::ledger::{Ledger, Needs, Outbox, Raced, Turn, Waiting};
use crate::reservations::{Holding, Settlement};

/// The ledger. Clones share the tables.
#[derive(Clone)]
pub struct MemoryLedger {
    fate: Fate,
    tables: Arc<Mutex<Tables>>,
}

/// An open transaction. Dropped before its commit it has changed nothing.
struct Transaction {
    ledger: MemoryLedger,
    id: u64,
    /// Of which run of the server it is.
    run: u64,
    writes: Writes,
}

impl Drop for Transaction {
    fn drop(&mut self) {
        self.ledger.tables().release(self.id);
    }
}

impl MemoryLedger {
    pub fn new(fate: Fate) -> Self {
        Self { fate, tables: Arc::default() }
    }

    pub fn tables(&self) -> MutexGuard<'_, Tables> {
        lock(&self.tables)
    }

    /// One statement's way to the server.
    async fn statement(&self) -> Result<()> {
        self.fate.turn().await;
        if self.fate.strikes(self.fate.rates().away) {
            return Err(Failure::Connection.error());
        }
        Ok(())
    }

    async fn begin(&self) -> Result<Transaction> {
        self.statement().await?;
        let mut tables = self.tables();
        let (id, run) = (tables.next_transaction(), tables.run);
        Ok(Transaction { ledger: self.clone(), id, run, writes: Writes::default() })
    }
}

impl Transaction {
    /// Waits for a lock and holds it until the end.
    async fn lock(&self, what: Lock) -> Result<()> {
        loop {
            let this = (self.id, self.run);
            if self.ledger.tables().try_lock(&self.ledger.fate, this, &what)? {
                return Ok(());
            }
            self.ledger.fate.turn().await;
        }
    }

    /// `for update`, of rows that are there when the statement begins.
    async fn lock_rows(&self, rows: impl IntoIterator<Item = Lock>) -> Result<()> {
        self.ledger.statement().await?;
        let rows: Vec<Lock> = {
            let tables = self.ledger.tables();
            rows.into_iter().filter(|row| tables.has(row)).collect()
        };
        for row in rows {
            self.lock(row).await?;
        }
        Ok(())
    }

    /// Locks products and customers that are there, and enters them into a book.
    async fn book<'a>(
        &self,
        products: impl IntoIterator<Item = Lock> + 'a,
        customers: impl IntoIterator<Item = Lock> + 'a,
    ) -> Result<Book> {
        let mut book = Book::default();
        for rows in [products.into_iter().collect::<Vec<_>>(), customers.into_iter().collect()] {
            self.lock_rows(rows.clone()).await?;
            self.ledger.tables().read_locked(self.id, &rows, &mut book);
        }
        Ok(book)
    }

    async fn rule(
        mut self,
        batch: &[&Incoming],
        rule: impl FnOnce(&mut Book) -> Result<Vec<Decision>> + Send,
    ) -> Result<()> {
        let needs = Needs::of(batch);
        if needs.creates {
            self.lock(Lock::Creating).await?;
        }
        let products = needs.products.iter().cloned().map(Lock::Product);
        let mut book =
            self.book(products, needs.customers.iter().cloned().map(Lock::Customer)).await?;
        self.ledger.statement().await?;
        self.ledger.tables().read_decisions(&needs, &self.writes, &mut book);
        self.ledger.statement().await?;
        self.ledger.tables().read_placed(&needs, &mut book);
        let decisions = rule(&mut book)?;
        self.store_book(&book).await?;
        self.insert(decisions).await?;
        self.commit("decisions").await
    }

    /// Inserts or updates the products and customers that have changed.
    async fn store_book(&mut self, book: &Book) -> Result<()> {
        self.ledger.statement().await?;
        for id in &book.changed_products {
            self.lock(Lock::Product(id.clone())).await?;
        }
        for id in &book.changed_customers {
            self.lock(Lock::Customer(id.clone())).await?;
        }
        self.writes.take_book(book)
    }

    async fn insert(&mut self, decisions: Vec<Decision>) -> Result<()> {
        self.ledger.statement().await?;
        for decision in decisions {
            let command = decision.past.command_id;
            let mut unique = vec![Lock::Decision(command)];
            unique.extend(decision.key_id.map(Lock::Key));
            unique.extend(decision.placed.as_ref().map(|placed| Lock::Order(placed.order_id)));
            for key in unique {
                self.lock(key.clone()).await?;
                let taken = self.ledger.tables().is_taken(&key, &self.writes);
                if taken && matches!(key, Lock::Order(_)) {
                    return Err(Failure::Unique.error());
                }
                if taken {
                    return Err(Raced.into());
                }
            }
            self.writes.orders.extend(decision.placed.map(OrderRow::new));
            self.writes.decisions.push((decision.past, decision.key_id));
            self.put_events(Some(command), decision.events);
        }
        Ok(())
    }

    fn put_events(&mut self, command: Option<CommandId>, events: Vec<Event>) {
        for event in events {
            // Places are given out before the commit, as a sequence gives out numbers.
            let place = self.ledger.tables().next_place();
            self.writes.outbox.push((place, Row { command, event, old: false }));
        }
    }

    async fn commit(self, what: &'static str) -> Result<()> {
        let fate = self.ledger.fate.clone();
        let tables = Arc::clone(&self.ledger.tables);
        let line = fate.clone();
        let commit = move || {
            let mut this = self;
            let writes = std::mem::take(&mut this.writes);
            line.tell(|| format!("PostgreSQL commits {what}: {writes}"));
            lock(&tables).commit(this.run, writes)
        };
        match fate.request(move || format!("commit {what}"), commit).await {
            Some(committed) => committed,
            None => Err(Failure::Connection.error()),
        }
    }
}

impl Ledger for MemoryLedger {
    type Outbox = MemoryOutbox;

    async fn decide(
        &self,
        batch: &[&Incoming],
        rule: impl FnOnce(&mut Book) -> Result<Vec<Decision>> + Send,
    ) -> Result<()> {
        self.begin().await?.rule(batch, rule).await
    }

    async fn decide_again(
        &self,
        refused: &[(&Incoming, &Event)],
        rule: impl FnOnce(&mut Book) -> Result<Vec<Decision>> + Send,
    ) -> Result<Vec<Vec<Event>>> {
        let mut transaction = self.begin().await?;
        let mut standing = Vec::new();
        for (incoming, event) in refused {
            let command = incoming.received.command_id;
            transaction.lock_rows([Lock::Decision(command)]).await?;
            self.statement().await?;
            let rows = self.tables().rows_of(command);
            if rows.iter().any(|(_, row)| row.event.id == event.id) {
                transaction.writes.withdrawn.push(command);
                transaction.writes.removed.extend(rows.into_iter().map(|(place, _)| place));
                standing.push(Vec::new());
            } else {
                standing.push(rows.into_iter().map(|(_, row)| row.event).collect());
            }
        }
        let batch: Vec<&Incoming> = refused.iter().map(|(incoming, _)| *incoming).collect();
        transaction.rule(&batch, rule).await?;
        Ok(standing)
    }

    async fn unpublished(&self, commands: &[CommandId]) -> Result<HashMap<CommandId, Vec<Event>>> {
        self.statement().await?;
        let mut events = HashMap::new();
        for command in commands {
            let rows = self.tables().rows_of(*command).into_iter();
            let own = rows.filter(|(_, row)| row.is_own()).map(|(_, row)| row.event).collect();
            events.insert(*command, own);
        }
        self.fate.turn().await;
        Ok(events)
    }

    async fn published(&self, commands: &[CommandId]) -> Result<()> {
        let (tables, commands) = (Arc::clone(&self.tables), commands.to_vec());
        let clear = move || lock(&tables).clear(&commands);
        let cleared = self.fate.request(|| "clear the outbox".to_owned(), clear).await;
        cleared.ok_or_else(|| Failure::Connection.error())
    }

    async fn settle(
        &self,
        orders: &[OrderId],
        settle: impl FnOnce(&[Holding]) -> Settlement + Send,
    ) -> Result<()> {
        let mut transaction = self.begin().await?;
        transaction.lock_rows(orders.iter().copied().map(Lock::Order)).await?;
        let holdings = self.tables().holdings(transaction.id, orders);
        let settlement = settle(&holdings);
        let products = settlement.pieces.keys().cloned().map(Lock::Product);
        let customers = settlement.credit.keys().cloned().map(Lock::Customer);
        let mut book = transaction.book(products, customers).await?;
        settlement.apply(&mut book);
        transaction.store_book(&book).await?;
        transaction.writes.settlement = settlement;
        transaction.commit("a settlement").await
    }

    async fn journal_orders(&self, _: &[OrderId]) -> Result<HashMap<OrderId, Order>> {
        self.statement().await?;
        Ok(HashMap::new())
    }

    async fn overdue(&self, asked: &Waiting, most: usize) -> Result<Vec<(DateTime<Utc>, OrderId)>> {
        self.statement().await?;
        // The journal may be far behind: it also shows orders that have ended since.
        let overdue: Vec<OrderId> = match asked.status {
            OrderStatus::Validated => self.tables().overdue.iter().copied().collect(),
            _ => Vec::new(),
        };
        self.fate.turn().await;
        let after = asked.after.map(|(_, order)| order);
        let rest = overdue.into_iter().filter(|order| after.is_none_or(|after| *order > after));
        Ok(rest.take(most).map(|order| (DateTime::UNIX_EPOCH, order)).collect())
    }

    async fn journal_version(&self, _: Subject, _: &str) -> Result<u64> {
        self.statement().await?;
        Ok(0)
    }

    async fn outbox(&self) -> Result<Option<MemoryOutbox>> {
        self.statement().await?;
        let mut tables = self.tables();
        if tables.relay.is_some() {
            return Ok(None);
        }
        let id = tables.next_transaction();
        tables.relay = Some(id);
        drop(tables);
        self.fate.tell(|| "has the outbox".to_owned());
        Ok(Some(MemoryOutbox { ledger: self.clone(), id }))
    }
}

/// The outbox in the hands of one relay, as long as its connection stands.
pub struct MemoryOutbox {
    ledger: MemoryLedger,
    id: u64,
}

impl MemoryOutbox {
    async fn statement(&self) -> Result<()> {
        self.ledger.statement().await?;
        if self.ledger.tables().relay == Some(self.id) {
            return Ok(());
        }
        Err(Failure::Connection.error())
    }
}

impl Drop for MemoryOutbox {
    fn drop(&mut self) {
        let mut tables = self.ledger.tables();
        if tables.relay == Some(self.id) {
            tables.relay = None;
        }
    }
}

impl Outbox for MemoryOutbox {
    async fn tell(
        &mut self,
        turn: &mut Turn,
        most: i64,
        tell: impl FnOnce(&mut Book) -> Result<Vec<Event>> + Send,
    ) -> Result<bool> {
        self.statement().await?;
        let (products, customers) = self.ledger.tables().touched(turn, usize::try_from(most)?);
        *turn = Turn {
            products: Turn::after(&products, most),
            customers: Turn::after(&customers, most),
        };
        if products.is_empty() && customers.is_empty() {
            return Ok(false);
        }
        let mut transaction = self.ledger.begin().await?;
        let products = products.iter().map(|id| id.parse().map(Lock::Product));
        let customers = customers.iter().map(|id| id.parse().map(Lock::Customer));
        let (products, customers): (Vec<_>, Vec<_>) =
            (products.collect::<Result<_, _>>()?, customers.collect::<Result<_, _>>()?);
        let mut book = transaction.book(products, customers).await?;
        let events = tell(&mut book)?;
        transaction.store_book(&book).await?;
        transaction.put_events(None, events);
        self.statement().await?;
        transaction.commit("what has changed").await?;
        Ok(true)
    }

    async fn waiting(&mut self, most: i64) -> Result<Vec<(i64, Event)>> {
        self.statement().await?;
        let waiting = self.ledger.tables().waiting(&self.ledger.fate, usize::try_from(most)?);
        self.ledger.fate.turn().await;
        Ok(waiting)
    }

    async fn remove(&mut self, places: &[i64]) -> Result<()> {
        self.statement().await?;
        let (tables, places) = (Arc::clone(&self.ledger.tables), places.to_vec());
        let remove = move || lock(&tables).remove(&places);
        let removed =
            self.ledger.fate.request(|| "remove from the outbox".to_owned(), remove).await;
        removed.ok_or_else(|| Failure::Connection.error())
    }
}
