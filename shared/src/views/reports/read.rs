//! Reading the sums: whole hashes, of all slots.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use fred::interfaces::HashesInterface as _;
use futures_util::future::try_join_all;

use super::span::Page;
use super::tally::{Sheet, sales_field};
use super::{Range, SLOTS, Sales};
use crate::money::Currency;
use crate::views::{ViewError, Views};

/// Sheets that are added up at a time.
const SHEETS: usize = 64;

/// What was sold of a product at one price: where the brand or the price has changed there are
/// several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sold {
    /// The product.
    pub product_id: String,
    /// Its brand as it was bought.
    pub brand: String,
    /// The currency of the price.
    pub currency: Currency,
    /// The price of one piece.
    pub unit_price: i64,
    /// How many were paid.
    pub units: i64,
}

impl Views {
    /// What was sold and given back, in each bucket of a range that has something, and currency.
    pub async fn sales(
        &self,
        range: Range,
    ) -> Result<BTreeMap<(DateTime<Utc>, Currency), Sales>, ViewError> {
        let mut pages: Vec<Page> = range.starts().map(|at| range.by.page(at)).collect();
        pages.dedup();
        let sheets: Vec<Sheet> = pages.iter().map(|page| Sheet::Sales(range.by, *page)).collect();
        let buckets: HashMap<(Sheet, u32), DateTime<Utc>> = range
            .starts()
            .map(|at| ((Sheet::Sales(range.by, range.by.page(at)), range.by.place(at)), at))
            .collect();
        let found =
            self.read(|generation| self.and_marker(self.sheets(generation, &sheets))).await?;
        let mut sales: BTreeMap<(DateTime<Utc>, Currency), Sales> = BTreeMap::new();
        for (sheet, fields) in found {
            for (field, sum) in fields {
                let (place, currency, measure) =
                    parse_sales(&field).ok_or_else(|| damaged(sheet, &field))?;
                let Some(at) = buckets.get(&(sheet, place)) else { continue };
                let sales = sales.entry((*at, currency)).or_default();
                for (letter, count) in sales.measures() {
                    if letter == measure {
                        *count = sum;
                    }
                }
            }
        }
        Ok(sales)
    }

    /// What was paid for between the hours of a range.
    pub async fn sold(&self, range: Range) -> Result<Vec<Sold>, ViewError> {
        let sheets: Vec<Sheet> = range.hours_and_days().into_iter().map(Sheet::Lines).collect();
        let fields = self.read(|generation| self.and_marker(self.sum(generation, &sheets))).await?;
        fields
            .into_iter()
            .map(|(field, units)| {
                parse_sold(&field, units).ok_or_else(|| damaged(sheets[0], &field))
            })
            .collect()
    }

    /// How many orders were paid between the hours of a range, by the milliseconds that it took.
    pub async fn times_to_paid(&self, range: Range) -> Result<BTreeMap<u64, i64>, ViewError> {
        let sheets: Vec<Sheet> = range.hours_and_days().into_iter().map(Sheet::Times).collect();
        let fields = self.read(|generation| self.and_marker(self.sum(generation, &sheets))).await?;
        fields
            .into_iter()
            .map(|(field, count)| {
                let took = field.parse().map_err(|_| damaged(sheets[0], &field))?;
                Ok((took, count))
            })
            .collect()
    }

    /// How many orders are in each status now; rejected ones by their reason, as
    /// `rejected/REASON`.
    pub async fn orders_by_status(&self) -> Result<HashMap<String, i64>, ViewError> {
        self.read(|generation| self.and_marker(self.sum(generation, &[Sheet::Status]))).await
    }

    /// The sums of all sheets together.
    async fn sum(
        &self,
        generation: u64,
        sheets: &[Sheet],
    ) -> Result<HashMap<String, i64>, ViewError> {
        let mut sums = HashMap::new();
        for sheets in sheets.chunks(SHEETS) {
            for (sheet, fields) in self.sheets(generation, sheets).await? {
                for (field, sum) in fields {
                    add(&mut sums, sheet, field, sum)?;
                }
            }
        }
        Ok(sums)
    }

    /// The sums of each sheet, over all slots.
    async fn sheets(
        &self,
        generation: u64,
        sheets: &[Sheet],
    ) -> Result<Vec<(Sheet, HashMap<String, i64>)>, ViewError> {
        try_join_all(sheets.iter().map(|sheet| self.sheet(generation, *sheet))).await
    }

    async fn sheet(
        &self,
        generation: u64,
        sheet: Sheet,
    ) -> Result<(Sheet, HashMap<String, i64>), ViewError> {
        let parts = (0..SLOTS).map(async |slot| {
            let key = format!("{}{sheet}", self.reports_prefix(generation, slot));
            let part: HashMap<String, String> = self.redis.hgetall(key).await?;
            Ok::<_, ViewError>(part)
        });
        let mut sums = HashMap::new();
        for (field, text) in try_join_all(parts).await?.into_iter().flatten() {
            let sum = text.parse().map_err(|_| damaged(sheet, &field))?;
            add(&mut sums, sheet, field, sum)?;
        }
        Ok((sheet, sums))
    }
}

fn add(
    sums: &mut HashMap<String, i64>,
    sheet: Sheet,
    field: String,
    more: i64,
) -> Result<(), ViewError> {
    let too_large = damaged(sheet, &field);
    let sum = sums.entry(field).or_default();
    *sum = sum.checked_add(more).ok_or(too_large)?;
    Ok(())
}

fn damaged(sheet: Sheet, field: &str) -> ViewError {
    ViewError::Damaged(format!("reports:{sheet} {field}"))
}

fn parse_sales(field: &str) -> Option<(u32, Currency, char)> {
    let mut words = field.split(' ');
    let (place, currency, measure) = (words.next()?, words.next()?, words.next()?);
    let parsed =
        (place.parse().ok()?, Currency::from_code(currency)?, measure.parse::<char>().ok()?);
    (words.next().is_none() && sales_field(parsed.0, parsed.1, parsed.2) == field).then_some(parsed)
}

fn parse_sold(field: &str, units: i64) -> Option<Sold> {
    let mut words = field.splitn(4, ' ');
    let (product, currency, price) = (words.next()?, words.next()?, words.next()?);
    Some(Sold {
        product_id: product.to_owned(),
        currency: Currency::from_code(currency)?,
        unit_price: price.parse().ok()?,
        brand: words.next()?.to_owned(),
        units,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_they_are_written_and_nothing_else_is() {
        let field = sales_field(7, Currency::EUR, 'o');
        assert_eq!(parse_sales(&field), Some((7, Currency::EUR, 'o')));
        for bad in ["", "7 EUR o", "07 EUR", "07 XXZ o", "07 EUR o ", "07 EUR oo", "x EUR o"] {
            assert_eq!(parse_sales(bad), None, "{bad:?}");
        }
        let sold = parse_sold("mug EUR 1250 Acme & Co", 3).unwrap();
        assert_eq!((sold.brand.as_str(), sold.unit_price, sold.units), ("Acme & Co", 1_250, 3));
        assert_eq!(parse_sold("mug EUR 1250 ", 3).unwrap().brand, "");
        for bad in ["mug", "mug EUR", "mug EUR 1250", "mug EUR x Acme", "mug XXZ 1 Acme"] {
            assert_eq!(parse_sold(bad, 3), None, "{bad:?}");
        }
    }
}
