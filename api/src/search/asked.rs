//! What a client asks of the catalogue, read from the query of the request.

use std::str::FromStr;

use millrace_shared::command::{FieldError, Malformed};
use millrace_shared::ids::ProductId;
use millrace_shared::money::{Currency, MAX_AMOUNT};

use super::cursor::Sort;
use super::find::Criteria;
use super::text::words;
use crate::reading::{MAX_LIMIT, USUAL_LIMIT};

/// The longest text that is looked for.
const LONGEST_TEXT: usize = 200;
/// Categories, or brands, that one search may name.
const MOST_NAMES: usize = 50;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// All products, in the order of their ids.
    List {
        /// What comes after this product.
        after: Option<ProductId>,
        /// The most items of the page.
        limit: usize,
    },
    /// Those that fit.
    Search {
        /// Words that must all occur.
        words: Vec<String>,
        /// The rest.
        criteria: Criteria,
    },
}

/// The parameters as they came.
#[derive(Default)]
struct Given<'q> {
    text: Option<&'q str>,
    cursor: Option<&'q str>,
    limit: Option<usize>,
    criteria: Criteria,
    /// Whether there is more than a place in the plain list.
    searches: bool,
    errors: Vec<FieldError>,
}

impl Asked {
    /// Reads the query of a request, still encoded. All that is wrong with it is told at once.
    pub fn parse(query: &str) -> Result<Self, Malformed> {
        let pairs: Vec<(String, String)> =
            form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let mut given = Given::default();
        for (at, (name, value)) in pairs.iter().enumerate() {
            let again = pairs[..at].iter().any(|(earlier, _)| earlier == name);
            given.take(name, value, again);
        }
        given.check()
    }
}

impl<'q> Given<'q> {
    fn take(&mut self, name: &str, value: &'q str, again: bool) {
        if again && !["category", "brand"].contains(&name) {
            return self.wrong(name, "duplicate", "is there more than once");
        }
        self.searches |= !["cursor", "limit"].contains(&name);
        match name {
            "q" => self.text = Some(value),
            "category" => self.criteria.categories.push(value.to_owned()),
            "brand" => self.criteria.brands.push(value.to_owned()),
            "currency" => match Currency::from_code(value) {
                Some(currency) => self.criteria.currency = Some(currency),
                None => self.wrong(name, "invalid", "must be an ISO 4217 code, such as USD"),
            },
            "minPrice" => self.criteria.min_price = self.amount(name, value),
            "maxPrice" => self.criteria.max_price = self.amount(name, value),
            "inStock" => self.criteria.in_stock = self.read(name, value, "must be true or false"),
            "active" => self.criteria.active = self.read(name, value, "must be true or false"),
            "sort" => self.sort(value),
            "limit" => {
                self.limit = self.read(name, value, "must be a number");
                if self.limit.is_some_and(|limit| !(1..=MAX_LIMIT).contains(&limit)) {
                    let detail = format!("must be from 1 to {MAX_LIMIT}");
                    self.wrong(name, "out_of_range", &detail);
                }
            }
            "cursor" => self.cursor = Some(value),
            _ => self.wrong(
                name,
                "unknown_field",
                "unknown parameter; known are q, category, brand, currency, minPrice, maxPrice, \
                 inStock, active, sort, limit, cursor",
            ),
        }
    }

    fn wrong(&mut self, field: &str, code: &str, detail: &str) {
        self.errors.push(FieldError::new(field, code, detail));
    }

    fn read<T: FromStr>(&mut self, name: &str, value: &str, detail: &str) -> Option<T> {
        let read = value.parse().ok();
        if read.is_none() {
            self.wrong(name, "invalid", detail);
        }
        read
    }

    fn amount(&mut self, name: &str, value: &str) -> Option<i64> {
        let amount = self.read(name, value, "must be a number of minor units, such as cents")?;
        if !(0..=MAX_AMOUNT).contains(&amount) {
            self.wrong(name, "out_of_range", &format!("must be from 0 to {MAX_AMOUNT}"));
        }
        Some(amount)
    }

    fn sort(&mut self, value: &str) {
        if let Some((_, sort)) = Sort::ALL.iter().find(|(known, _)| *known == value) {
            self.criteria.sort = *sort;
        } else {
            let known = Sort::ALL.map(|(name, _)| name).join(", ");
            self.wrong("sort", "invalid", &format!("must be one of {known}"));
        }
    }

    fn check(mut self) -> Result<Asked, Malformed> {
        let Criteria { min_price, max_price, .. } = self.criteria;
        if (min_price.is_some() || max_price.is_some()) && self.criteria.currency.is_none() {
            let detail = "a price is of a currency: name it";
            self.wrong("currency", "missing", detail);
        }
        if min_price.zip(max_price).is_some_and(|(min, max)| min > max) {
            self.wrong("maxPrice", "out_of_range", "is less than minPrice");
        }
        for (name, most) in
            [("category", self.criteria.categories.len()), ("brand", self.criteria.brands.len())]
        {
            if most > MOST_NAMES {
                self.wrong(name, "out_of_range", &format!("at most {MOST_NAMES} can be named"));
            }
        }
        let text = self.text.unwrap_or("");
        if text.chars().count() > LONGEST_TEXT {
            let detail = format!("must not be longer than {LONGEST_TEXT} characters");
            self.wrong("q", "out_of_range", &detail);
        }
        let limit = self.limit.unwrap_or(USUAL_LIMIT);
        let detail = "is not a nextCursor of this list";
        let asked = if self.searches {
            let after = self.cursor.map(|cursor| self.criteria.sort.parse_cursor(cursor));
            if after == Some(None) {
                self.wrong("cursor", "invalid", detail);
            }
            let criteria = Criteria { after: after.flatten(), limit, ..self.criteria };
            Asked::Search { words: words(text), criteria }
        } else {
            let after = self.cursor.map(str::parse);
            if matches!(after, Some(Err(_))) {
                self.wrong("cursor", "invalid", detail);
            }
            Asked::List { after: after.and_then(Result::ok), limit }
        };
        if self.errors.is_empty() { Ok(asked) } else { Err(Malformed(self.errors)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(query: &str) -> Vec<(String, String)> {
        let errors = Asked::parse(query).unwrap_err().0;
        errors.into_iter().map(|error| (error.field, error.code)).collect()
    }

    #[test]
    fn a_place_in_the_list_alone_asks_for_the_plain_list() {
        let plain = |query| matches!(Asked::parse(query), Ok(Asked::List { .. }));
        assert!(plain("") && plain("limit=5") && plain("cursor=pen&limit=5"));
        assert!(!plain("q=") && !plain("sort=newest") && !plain("active=true"));
    }

    #[test]
    fn every_error_is_told_with_its_parameter() {
        for (query, field, code) in [
            ("page=2", "page", "unknown_field"),
            ("limit=-1", "limit", "invalid"),
            ("limit=0", "limit", "out_of_range"),
            ("limit=101&q=a", "limit", "out_of_range"),
            ("cursor=a.b", "cursor", "invalid"),
            ("q=a&cursor=pen", "cursor", "invalid"),
            ("q=a&q=b", "q", "duplicate"),
            ("inStock=yes", "inStock", "invalid"),
            ("minPrice=1", "currency", "missing"),
            ("minPrice=1.5&currency=USD", "minPrice", "invalid"),
            ("maxPrice=-1&currency=USD", "maxPrice", "out_of_range"),
            ("minPrice=2&maxPrice=1&currency=USD", "maxPrice", "out_of_range"),
            ("currency=dollar", "currency", "invalid"),
            ("sort=best", "sort", "invalid"),
        ] {
            assert_eq!(wrong(query), [(field.to_owned(), code.to_owned())], "{query}");
        }
        assert_eq!(wrong("sort=best&limit=x").len(), 2);
    }

    #[test]
    fn categories_and_brands_may_be_named_more_than_once() {
        let query = "q=Cr%C3%A8me%20br&category=A%26B&category=C&brand=D";
        let Ok(Asked::Search { words, criteria }) = Asked::parse(query) else { panic!("{query}") };
        assert_eq!(words, ["creme", "br"]);
        assert_eq!(
            (criteria.categories, criteria.brands.len()),
            (vec!["A&B".into(), "C".into()], 1)
        );
    }
}
