//! The catalogue in memory: each product as it is shown, and beside it, densely, what is filtered,
//! counted and sorted by. Stock, prices and the rest change here at once; only texts are indexed.

use std::collections::HashMap;

use millrace_shared::ids::ProductId;
use millrace_shared::money::{Currency, MAX_AMOUNT};
use millrace_shared::product::Product;

/// A product's number: its place in the catalogue, for as long as the process lives.
pub type Slot = u32;

/// The lower ends of the price bands, in minor units: 1, 2, 5, 10, 20, 50, … of a hundred. They do
/// not depend on what is sold, so a band is the same on every page and after every change.
const BANDS: [i64; 31] = bands();

const fn bands() -> [i64; 31] {
    let mut bands = [0; 31];
    let (mut at, mut unit) = (1, 100);
    while at < bands.len() {
        bands[at] = unit;
        bands[at + 1] = 2 * unit;
        bands[at + 2] = 5 * unit;
        at += 3;
        unit *= 10;
    }
    bands
}

/// How many price bands there are.
pub const BAND_COUNT: usize = BANDS.len();

/// The band of a price in minor units.
pub fn band_of(amount: i64) -> usize {
    BANDS.partition_point(|from| *from <= amount).saturating_sub(1)
}

/// The lowest and the highest price of a band.
pub fn band_limits(band: usize) -> (i64, i64) {
    let to = BANDS.get(band + 1).map_or(MAX_AMOUNT, |next| next - 1);
    (BANDS.get(band).copied().unwrap_or(0), to)
}

/// What is filtered, counted and sorted by.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// The beginning of the product's id: decides most comparisons of ids.
    pub id_start: u128,
    /// In minor units.
    pub price: i64,
    /// When the product was last defined, in microseconds; 0 if that is no longer known.
    pub defined_at: i64,
    /// Number of its category.
    pub category: u32,
    /// Number of its brand.
    pub brand: u32,
    /// Number of its price's currency.
    pub currency: u32,
    /// Band of its price.
    pub band: u8,
    /// Whether it is sold.
    pub active: bool,
    /// Whether a piece is free to be sold.
    pub in_stock: bool,
}

/// The first 16 bytes of an id, comparable as the id is.
pub fn id_start(id: &str) -> u128 {
    let mut start = [0; 16];
    for (to, from) in start.iter_mut().zip(id.bytes()) {
        *to = from;
    }
    u128::from_be_bytes(start)
}

/// Values with a number each.
#[derive(Debug)]
pub struct Names<T> {
    numbers: HashMap<T, u32>,
    names: Vec<T>,
}

impl<T> Default for Names<T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), names: Vec::new() }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Names<T> {
    fn number(&mut self, name: &T) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.numbers.insert(name.clone(), number);
        self.names.push(name.clone());
        number
    }

    /// The number of a name that is known.
    pub fn find(&self, name: &T) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// All names, in the order of their numbers.
    pub fn all(&self) -> &[T] {
        &self.names
    }
}

/// All products.
#[derive(Debug, Default)]
pub struct Catalogue {
    slots: HashMap<ProductId, Slot>,
    products: Vec<Product>,
    facts: Vec<Facts>,
    /// The categories that there are or were.
    pub categories: Names<String>,
    /// The brands that there are or were.
    pub brands: Names<String>,
    /// The currencies that there are or were.
    pub currencies: Names<Currency>,
}

impl Catalogue {
    /// How many products there are.
    pub fn len(&self) -> usize {
        self.products.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.products.is_empty()
    }

    /// All facts, in the order of their slots.
    pub fn facts(&self) -> &[Facts] {
        &self.facts
    }

    /// A product as it is known.
    pub fn find(&self, id: &ProductId) -> Option<&Product> {
        self.product(*self.slots.get(id)?)
    }

    /// The product in a slot.
    pub fn product(&self, slot: Slot) -> Option<&Product> {
        self.products.get(slot as usize)
    }

    /// Takes a product as it stands, unless a newer version is known. Returns its slot where its
    /// texts are new. `defined_at` is the time of the event, if that has defined the product.
    pub fn put(&mut self, product: Product, defined_at: Option<i64>) -> Option<Slot> {
        let mut facts = Facts {
            id_start: id_start(product.product_id.as_str()),
            price: product.price.amount,
            defined_at: defined_at.unwrap_or(0),
            category: self.categories.number(&product.category),
            brand: self.brands.number(&product.brand),
            currency: self.currencies.number(&product.price.currency),
            band: u8::try_from(band_of(product.price.amount)).unwrap_or(u8::MAX),
            active: product.active,
            in_stock: product.stock.available > 0,
        };
        let Some(&slot) = self.slots.get(&product.product_id) else {
            let slot = Slot::try_from(self.products.len()).ok()?;
            self.slots.insert(product.product_id.clone(), slot);
            self.products.push(product);
            self.facts.push(facts);
            return Some(slot);
        };
        let at = slot as usize;
        let (known, old) = (self.products.get_mut(at)?, self.facts.get_mut(at)?);
        // The event that has defined it may come after a later one, from which its time is missing.
        facts.defined_at = facts.defined_at.max(old.defined_at);
        old.defined_at = facts.defined_at;
        if product.version <= known.version {
            return None;
        }
        let texts = |p: &Product| (p.name.clone(), p.brand.clone(), p.category.clone());
        let retold = texts(known) != texts(&product);
        *known = product;
        *old = facts;
        retold.then_some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_price_is_in_one_band_whose_limits_enclose_it() {
        for amount in [0, 99, 100, 199, 200, 499, 500, 999, 1_000, 123_456, MAX_AMOUNT] {
            let (from, to) = band_limits(band_of(amount));
            assert!((from..=to).contains(&amount), "{amount} {from} {to}");
        }
        for band in 1..BAND_COUNT {
            assert_eq!(band_limits(band - 1).1 + 1, band_limits(band).0);
        }
        assert_eq!(band_limits(band_of(1_500)), (1_000, 1_999));
    }

    #[test]
    fn ids_compare_as_their_starts_do() {
        assert!(id_start("a") < id_start("a-1") && id_start("a-1") < id_start("b"));
        assert_eq!(id_start("0123456789abcdefX"), id_start("0123456789abcdefY"));
    }
}
