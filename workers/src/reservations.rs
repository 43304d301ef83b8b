//! Reservations: the part of validation that listens to the log. When an order ends unpaid, is
//! cancelled or refunded, its stock and credit are given back; when it is shipped, what was reserved
//! is sold. Each happens once: the order's row in the ledger tells what it still holds.

use std::collections::BTreeMap;

use anyhow::Result;
use millrace_shared::consumer::{Delivery, Raw, Verdict, Worker, decode_event};
use millrace_shared::crash;
use millrace_shared::ids::{CustomerId, OrderId, ProductId};
use millrace_shared::message::Event;
use millrace_shared::order::Order;
use millrace_shared::topology::Topology;

use crate::book::Book;
use crate::ledger::Ledger;

/// The worker on the events that end a reservation.
#[derive(Debug)]
pub struct Reservations<D> {
    ledger: D,
}

/// What an order holds of stock and credit.
#[derive(Debug)]
pub struct Holding {
    /// The order.
    pub order_id: OrderId,
    /// Whose it is.
    pub customer_id: CustomerId,
    /// Reserved pieces; empty once they are sold or released.
    pub pieces: BTreeMap<ProductId, i64>,
    /// Minor units of the customer's credit; 0 once they are free again.
    pub credit: i64,
}

/// What becomes of what some orders hold.
#[derive(Debug, Default)]
pub struct Settlement {
    /// Orders whose stock is given back.
    pub released: Vec<OrderId>,
    /// Orders whose stock is sold.
    pub sold: Vec<OrderId>,
    /// Orders whose credit is free again.
    pub freed: Vec<OrderId>,
    /// Pieces that are no longer reserved.
    pub pieces: BTreeMap<ProductId, Pieces>,
    /// Minor units that are no longer in use.
    pub credit: BTreeMap<CustomerId, i64>,
}

/// Pieces of a product that were reserved.
#[derive(Debug, Default)]
pub struct Pieces {
    /// So many are free to be sold again.
    pub released: i64,
    /// So many have left.
    pub sold: i64,
}

/// What events say of an order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct End {
    /// Its goods have left: they are sold, and else given back.
    left: bool,
    /// It uses no credit any more.
    frees_credit: bool,
}

impl End {
    /// A refund of a shipped order may be seen before its shipment: the state tells.
    fn and(self, event: &Event) -> Result<Self> {
        let order: Order = event.state()?;
        Ok(Self {
            left: self.left || order.shipment.is_some(),
            frees_credit: self.frees_credit || event.kind != "shipped",
        })
    }
}

impl Settlement {
    fn new(holdings: &[Holding], ends: &BTreeMap<OrderId, End>) -> Self {
        let mut settlement = Self::default();
        for holding in holdings {
            let Some(end) = ends.get(&holding.order_id) else { continue };
            if !holding.pieces.is_empty() {
                let orders = if end.left { &mut settlement.sold } else { &mut settlement.released };
                orders.push(holding.order_id);
            }
            for (product, count) in &holding.pieces {
                let pieces = settlement.pieces.entry(product.clone()).or_default();
                *(if end.left { &mut pieces.sold } else { &mut pieces.released }) += count;
            }
            if end.frees_credit && holding.credit > 0 {
                settlement.freed.push(holding.order_id);
                let customer = holding.customer_id.clone();
                *settlement.credit.entry(customer).or_default() += holding.credit;
            }
        }
        settlement
    }

    /// Enters it into the book, which has the products and customers.
    pub fn apply(&self, book: &mut Book) {
        for (id, pieces) in &self.pieces {
            let Some(product) = book.products.get_mut(id) else { continue };
            product.stock.available += pieces.released;
            product.stock.sold += pieces.sold;
            product.stock.reserved -= pieces.released + pieces.sold;
            book.touched_products.insert(id.clone());
            book.changed_products.insert(id.clone());
        }
        for (id, credit) in &self.credit {
            let Some(customer) = book.customers.get_mut(id) else { continue };
            customer.credit_used -= credit;
            book.touched_customers.insert(id.clone());
            book.changed_customers.insert(id.clone());
        }
    }
}

impl<D: Ledger> Reservations<D> {
    /// Reservations in `ledger`.
    pub fn new(ledger: D) -> Self {
        Self { ledger }
    }

    async fn settle(&self, batch: &[Delivery<Event>]) -> Result<()> {
        let mut ends: BTreeMap<OrderId, End> = BTreeMap::new();
        for Delivery { message: event, .. } in batch {
            let end = ends.entry(event.subject_id.parse()?).or_default();
            *end = end.and(event)?;
        }
        let orders: Vec<OrderId> = ends.keys().copied().collect();
        self.ledger.settle(&orders, |holdings| Settlement::new(holdings, &ends)).await?;
        crash::point("reservations.committed");
        Ok(())
    }
}

impl<D: Ledger> Worker for Reservations<D> {
    type Message = Event;
    const NAME: &'static str = "reservations";
    const BATCH: usize = 256;
    const BATCHES: usize = 1;

    fn stream(&self, topology: &Topology) -> String {
        topology.events_stream()
    }

    fn decode(&self, raw: &Raw<'_>) -> Result<Event, String> {
        decode_event(raw)
    }

    async fn handle(&self, batch: &[Delivery<Event>]) -> Vec<Verdict> {
        let verdict = match self.settle(batch).await {
            Ok(()) => Verdict::Done,
            Err(error) => Verdict::of(&error),
        };
        vec![verdict; batch.len()]
    }
}
