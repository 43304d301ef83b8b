//! The orders of the list, and the places in them.
//!
//! A place is the sort key of the last item and its id: it means the same whatever is added or
//! removed before it, so pages have neither gaps nor duplicates where products stay as they are.

use millrace_shared::ids::ProductId;
use millrace_shared::money::Currency;

use super::catalogue::{Catalogue, Facts};

/// In which order products are listed. What is equal stands in the order of the ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sort {
    /// What fits the words best first.
    #[default]
    Relevance,
    /// The cheapest first; currency by currency, in the order of their codes.
    PriceUp,
    /// The dearest first; likewise.
    PriceDown,
    /// What was defined last first.
    Newest,
}

/// A place in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The sort key: a currency, or 0, and a number.
    pub key: (u32, i64),
    /// The product.
    pub id: ProductId,
}

impl Sort {
    /// All of them, as they are asked for.
    pub const ALL: [(&'static str, Self); 4] = [
        ("relevance", Self::Relevance),
        ("price", Self::PriceUp),
        ("-price", Self::PriceDown),
        ("newest", Self::Newest),
    ];

    /// The sort key of a product: what is smaller comes first.
    pub fn key(self, catalogue: &Catalogue, facts: &Facts, score: u32) -> (u32, i64) {
        let currency = || {
            let currency = catalogue.currencies.all().get(facts.currency as usize);
            currency.map_or(0, |currency| packed(*currency))
        };
        match self {
            Self::Relevance => (0, -i64::from(score)),
            Self::PriceUp => (currency(), facts.price),
            Self::PriceDown => (currency(), -facts.price),
            Self::Newest => (0, -facts.defined_at),
        }
    }

    fn letter(self) -> &'static str {
        match self {
            Self::Relevance => "r",
            Self::PriceUp => "p",
            Self::PriceDown => "d",
            Self::Newest => "n",
        }
    }

    /// A place as a client carries it.
    pub fn cursor(self, (currency, number): (u32, i64), id: &str) -> String {
        format!("{}.{currency}.{number}.{id}", self.letter())
    }

    /// Reads a place in this order.
    pub fn parse_cursor(self, text: &str) -> Option<Cursor> {
        let mut parts = text.splitn(4, '.');
        if parts.next()? != self.letter() {
            return None;
        }
        let key = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        Some(Cursor { key, id: parts.next()?.parse().ok()? })
    }
}

/// A currency's code as a number that compares as the code does.
fn packed(currency: Currency) -> u32 {
    currency.code().bytes().fold(0, |packed, byte| packed << 8 | u32::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_only_in_its_own_order() {
        for (_, sort) in Sort::ALL {
            let text = sort.cursor((7, -3), "SKU_1-b");
            let cursor = sort.parse_cursor(&text).unwrap();
            assert_eq!((cursor.key, cursor.id.as_str()), ((7, -3), "SKU_1-b"));
            for (_, other) in Sort::ALL.into_iter().filter(|(_, other)| *other != sort) {
                assert_eq!(other.parse_cursor(&text), None);
            }
        }
        for bad in ["", "r", "r.0", "r.0.1", "r.0.x.a", "r.0.1.", "r.0.1.a b", "pen"] {
            assert_eq!(Sort::Relevance.parse_cursor(bad), None, "{bad}");
        }
    }
}
