//! Finding: which products fit, how many of each kind, and which of them are on the page. Pure; one
//! pass over the facts.

use std::collections::BinaryHeap;

use millrace_shared::money::{Currency, codes};
use millrace_shared::product::Product;
use serde::Serialize;
use utoipa::ToSchema;

use super::catalogue::{BAND_COUNT, Catalogue, Facts, Names, Slot, band_limits, id_start};
use super::cursor::{Cursor, Sort};

/// The most values of one facet that are told.
const MOST_VALUES: usize = 100;

/// What is looked for, beside the words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Criteria {
    /// One of these categories; any, if it is empty.
    pub categories: Vec<String>,
    /// One of these brands; any, if it is empty.
    pub brands: Vec<String>,
    /// Prices of this currency only.
    pub currency: Option<Currency>,
    /// This price or more, in minor units.
    pub min_price: Option<i64>,
    /// This price or less, in minor units.
    pub max_price: Option<i64>,
    /// Only what can be bought now, or only what cannot.
    pub in_stock: Option<bool>,
    /// Only what is sold, or only what is no longer sold.
    pub active: Option<bool>,
    /// In which order.
    pub sort: Sort,
    /// Only what comes after this place in the order.
    pub after: Option<Cursor>,
    /// The most items of the page.
    pub limit: usize,
}

/// A page, and what is known of all that fits.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// The page.
    pub items: Vec<Product>,
    /// Give this to get the next page; absent at the end.
    pub next_cursor: Option<String>,
    /// How many products fit, on all pages.
    pub total: usize,
    /// How many of each kind fit.
    pub facets: Facets,
}

/// Counts by category, brand and price. Each is counted as if its own filter were not set: so a
/// shop's user sees what another choice would give.
#[derive(Debug, Serialize, ToSchema)]
pub struct Facets {
    categories: Values,
    brands: Values,
    prices: Vec<Prices>,
}

/// The values of a facet, the most frequent first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FacetValues)]
struct Values {
    values: Vec<Count>,
    /// How many values there are, those that are not told included.
    distinct: usize,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FacetCount)]
struct Count {
    value: String,
    count: u32,
}

/// The prices of one currency: those of different currencies are never put together.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FacetPrices)]
struct Prices {
    #[schema(schema_with = codes)]
    currency: Currency,
    count: u32,
    bands: Vec<Band>,
}

/// Prices from `min` to `max`, both included, in minor units.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PriceBand)]
struct Band {
    min: i64,
    max: i64,
    count: u32,
}

/// The filters with names replaced by numbers; nothing where all fit.
struct Filter<'a> {
    categories: Option<Vec<u32>>,
    brands: Option<Vec<u32>>,
    currencies: Option<Vec<u32>>,
    criteria: &'a Criteria,
}

impl<'a> Filter<'a> {
    fn new(catalogue: &Catalogue, criteria: &'a Criteria) -> Self {
        let numbers = |names: &Names<String>, asked: &[String]| {
            (!asked.is_empty()).then(|| asked.iter().filter_map(|name| names.find(name)).collect())
        };
        Self {
            categories: numbers(&catalogue.categories, &criteria.categories),
            brands: numbers(&catalogue.brands, &criteria.brands),
            currencies: criteria
                .currency
                .map(|currency| catalogue.currencies.find(&currency).into_iter().collect()),
            criteria,
        }
    }

    /// What has no facet.
    fn admits(&self, facts: &Facts) -> bool {
        self.criteria.in_stock.is_none_or(|asked| asked == facts.in_stock)
            && self.criteria.active.is_none_or(|asked| asked == facts.active)
    }

    fn price(&self, facts: &Facts) -> bool {
        chosen(self.currencies.as_ref(), facts.currency)
            && self.criteria.min_price.is_none_or(|min| facts.price >= min)
            && self.criteria.max_price.is_none_or(|max| facts.price <= max)
    }
}

fn chosen(filter: Option<&Vec<u32>>, number: u32) -> bool {
    filter.is_none_or(|numbers| numbers.contains(&number))
}

/// The counts while they are taken.
struct Tally {
    categories: Vec<u32>,
    brands: Vec<u32>,
    prices: Vec<[u32; BAND_COUNT]>,
}

impl Tally {
    fn new(catalogue: &Catalogue) -> Self {
        Self {
            categories: vec![0; catalogue.categories.all().len()],
            brands: vec![0; catalogue.brands.all().len()],
            prices: vec![[0; BAND_COUNT]; catalogue.currencies.all().len()],
        }
    }

    fn facets(self, catalogue: &Catalogue) -> Facets {
        let prices = catalogue.currencies.all().iter().zip(self.prices);
        let mut prices: Vec<Prices> = prices
            .map(|(currency, counts)| Prices {
                currency: *currency,
                count: counts.iter().sum(),
                bands: bands(&counts),
            })
            .filter(|prices| prices.count > 0)
            .collect();
        prices.sort_by_key(|prices| prices.currency.code());
        Facets {
            categories: values(&catalogue.categories, &self.categories),
            brands: values(&catalogue.brands, &self.brands),
            prices,
        }
    }
}

fn values(names: &Names<String>, counts: &[u32]) -> Values {
    let counted = names.all().iter().zip(counts).filter(|(_, count)| **count > 0);
    let mut counted: Vec<(&String, u32)> = counted.map(|(name, count)| (name, *count)).collect();
    let distinct = counted.len();
    counted.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    counted.truncate(MOST_VALUES);
    let count = |(value, count): (&String, u32)| Count { value: value.clone(), count };
    Values { values: counted.into_iter().map(count).collect(), distinct }
}

fn bands(counts: &[u32; BAND_COUNT]) -> Vec<Band> {
    let counted = counts.iter().enumerate().filter(|(_, count)| **count > 0);
    counted
        .map(|(band, count)| {
            let (min, max) = band_limits(band);
            Band { min, max, count: *count }
        })
        .collect()
}

/// A product that may be on the page. Ordered as the list is.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate<'a> {
    key: (u32, i64),
    id_start: u128,
    id: &'a str,
    slot: Slot,
}

/// Finds among `matches`: the slots of products that the words fit, with how well they do.
pub fn find(
    catalogue: &Catalogue,
    matches: impl Iterator<Item = (Slot, u32)>,
    criteria: &Criteria,
) -> Found {
    let filter = Filter::new(catalogue, criteria);
    let mut tally = Tally::new(catalogue);
    let after = criteria.after.as_ref().map(|c| (c.key, id_start(c.id.as_str()), c.id.as_str()));
    let wanted = criteria.limit + 1;
    let mut page: BinaryHeap<Candidate<'_>> = BinaryHeap::with_capacity(wanted + 1);
    let mut total = 0;
    for (slot, score) in matches {
        let Some(facts) = catalogue.facts().get(slot as usize) else { continue };
        if !filter.admits(facts) {
            continue;
        }
        let category = chosen(filter.categories.as_ref(), facts.category);
        let brand = chosen(filter.brands.as_ref(), facts.brand);
        let price = filter.price(facts);
        if brand && price {
            tally.categories[facts.category as usize] += 1;
        }
        if category && price {
            tally.brands[facts.brand as usize] += 1;
        }
        if category && brand {
            tally.prices[facts.currency as usize][usize::from(facts.band)] += 1;
        }
        if !(category && brand && price) {
            continue;
        }
        total += 1;
        let key = criteria.sort.key(catalogue, facts, score);
        let start = (key, facts.id_start);
        let full = page.len() == wanted;
        if full && page.peek().is_some_and(|last| start > (last.key, last.id_start)) {
            continue;
        }
        if after.is_some_and(|(key, id_start, _)| start < (key, id_start)) {
            continue;
        }
        let Some(product) = catalogue.product(slot) else { continue };
        let id = product.product_id.as_str();
        if after.is_some_and(|after| (key, facts.id_start, id) <= after) {
            continue;
        }
        page.push(Candidate { key, id_start: facts.id_start, id, slot });
        if full {
            page.pop();
        }
    }
    let mut page = page.into_sorted_vec();
    let more = page.len() == wanted;
    page.truncate(criteria.limit);
    let last = page.last().filter(|_| more);
    let next_cursor = last.map(|last| criteria.sort.cursor(last.key, last.id));
    let items = page.iter().filter_map(|found| catalogue.product(found.slot).cloned()).collect();
    Found { items, next_cursor, total, facets: tally.facets(catalogue) }
}
