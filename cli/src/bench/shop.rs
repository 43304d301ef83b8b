//! The shop that is ordered from, and its orders: all of it follows from a seed.

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use millrace_shared::command::{
    Command, DefineProduct, KEY_HEADER, PaymentMethod, PlaceOrder, RegisterCustomer, RequestedLine,
};
use millrace_shared::ids::{self, CustomerId, OrderId, ProductId};
use millrace_shared::money::{Currency, Money};
use millrace_shared::topology::Topology;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::sample;

/// Pieces of each product: more than any run can sell.
const STOCK: u32 = 1_000_000_000;
/// The credit of each customer, in cents: more than any run can use.
const CREDIT: i64 = 1_000_000_000_000;
/// Commands under way at once while the shop is set up.
const CONCURRENCY: usize = 64;
/// The lines of an order.
pub const LINES: usize = 2;

/// A seed's shop.
#[derive(Debug)]
pub struct Shop {
    run: String,
    products: Vec<DefineProduct>,
    customers: Vec<RegisterCustomer>,
    orders: ChaCha8Rng,
}

/// An order to be placed.
#[derive(Debug)]
pub struct Placing {
    /// The id that the system will give it.
    pub id: OrderId,
    /// Its idempotency key.
    pub key: String,
    /// The order, without id.
    pub order: PlaceOrder,
}

impl Shop {
    /// The shop of a seed. `run` makes its customers and keys differ from those of other runs.
    pub fn new(seed: u64, run: &str, products: usize, customers: usize) -> Result<Self> {
        let product = |(number, product): (usize, DefineProduct)| {
            Ok(DefineProduct {
                product_id: format!("bench-{number}").parse()?,
                initial_stock: Some(STOCK),
                ..product
            })
        };
        let customer = |(number, customer): (usize, RegisterCustomer)| {
            Ok(RegisterCustomer {
                customer_id: Some(format!("bench-{run}-{number}").parse()?),
                credit_limit: Some(Money::new(CREDIT, Currency::USD)),
                ..customer
            })
        };
        let products = sample::products(seed, products).into_iter().enumerate().map(product);
        let customers = sample::customers(seed, customers).into_iter().enumerate().map(customer);
        Ok(Self {
            run: run.to_owned(),
            products: products.collect::<Result<_>>()?,
            customers: customers.collect::<Result<_>>()?,
            orders: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    /// What the ids of this run's customers begin with.
    pub fn customers_prefix(&self) -> String {
        format!("bench-{}-", self.run)
    }

    /// How many products and customers there are.
    pub fn size(&self) -> (usize, usize) {
        (self.products.len(), self.customers.len())
    }

    /// A customer.
    pub fn customer(&self, number: usize) -> Option<&CustomerId> {
        self.customers.get(number % self.customers.len().max(1))?.customer_id.as_ref()
    }

    /// Words to search for: of the products' names.
    pub fn words(&self) -> Vec<String> {
        let words = self.products.iter().filter_map(|product| product.name.split(' ').next_back());
        let mut words: Vec<String> = words.map(str::to_lowercase).collect();
        words.sort_unstable();
        words.dedup();
        words
    }

    /// The order with this number: always the same.
    pub fn order(&self, number: u64) -> Result<Placing> {
        let mut rng = self.orders.clone();
        rng.set_stream(number + 1);
        let customer = self.customer(rng.random_range(0..self.customers.len()));
        let customer_id = customer.context("a shop without customers")?.clone();
        let first = self.popular(&mut rng);
        let mut second = self.popular(&mut rng);
        if second == first {
            second = (first + 1) % self.products.len();
        }
        let mut line = |product: usize| RequestedLine {
            product_id: ProductId::clone(&self.products[product].product_id),
            quantity: rng.random_range(1..=3),
            unit_price: None,
        };
        let lines = vec![line(first), line(second)];
        let payment = if rng.random_bool(0.5) {
            PaymentMethod::Card { token: "tok_ok".to_owned() }
        } else {
            PaymentMethod::Account {}
        };
        let key = format!("bench-{}-{number}", self.run);
        Ok(Placing {
            id: OrderId::from_key(&customer_id, &key),
            key,
            order: PlaceOrder { order_id: None, customer_id, lines, payment },
        })
    }

    /// A product; some are bought more often than others.
    fn popular(&self, rng: &mut ChaCha8Rng) -> usize {
        let place: f64 = rng.random();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a small number that is not negative"
        )]
        let number = (place * place * self.products.len() as f64) as usize;
        number.min(self.products.len() - 1)
    }

    /// Defines the products and registers the customers, as any NATS client does.
    pub async fn set_up(
        &self,
        jetstream: &async_nats::jetstream::Context,
        topology: &Topology,
    ) -> Result<()> {
        let products = self.products.iter().cloned().map(Command::DefineProduct);
        let customers = self.customers.iter().cloned().map(Command::RegisterCustomer);
        futures_util::stream::iter(products.chain(customers))
            .map(|command| async move {
                let body = serde_json::to_vec(&command)?;
                let mut headers = async_nats::HeaderMap::new();
                let key = format!("bench-{}", ids::fingerprint(command.kind(), &body));
                headers.insert(KEY_HEADER, key);
                let subject = topology.command(command.kind());
                jetstream.publish_with_headers(subject, headers, body.into()).await?.await?;
                anyhow::Ok(())
            })
            .buffer_unordered(CONCURRENCY)
            .try_collect::<()>()
            .await
            .context("the benchmark's shop cannot be set up")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_orders_every_time_and_every_order_two_products() {
        let shop = || Shop::new(7, "r", 20, 5).unwrap();
        for number in 0..200 {
            let order = shop().order(number).unwrap();
            assert_eq!(order.order, shop().order(number).unwrap().order);
            assert_eq!(order.order.lines.len(), LINES);
            assert_ne!(order.order.lines[0].product_id, order.order.lines[1].product_id);
        }
        let other = Shop::new(8, "r", 20, 5).unwrap();
        let differ =
            |number| other.order(number).unwrap().order != shop().order(number).unwrap().order;
        assert!((0..20).any(differ));
    }
}
