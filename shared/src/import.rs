//! Importing a catalogue: rows of CSV or NDJSON become commands that define products.
//!
//! An import may be repeated, whole or after it was interrupted: a row that says what is known
//! already is left out, and the id of a row's command is derived from what the row says and from the
//! version that it changes. So the same row on the same version is one command, however often it is
//! sent, and the same row after another change is a new one.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::io::{self, BufRead as _, BufReader, Read};

use async_nats::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::command::{
    COMMAND_ID_HEADER, Command, DefineProduct, FieldError, MAX_BYTES, Malformed, read_object,
};
use crate::ids::{CommandId, fingerprint};
use crate::log::Entry;
use crate::product::Product;
use crate::table::{Bounded, ProductColumns, Table};
use crate::topology::Topology;

/// The columns of CSV; `stock` may be missing.
pub const COLUMNS: [&str; 7] =
    ["productId", "name", "brand", "category", "price", "currency", "stock"];
/// Another header of the column `price`, in shops' files.
const PRICE_MINOR: &str = "priceMinor";
/// The errors that a report lists.
pub const MOST_ERRORS: usize = 100;
/// Bytes of a row, as it is written.
const MAX_ROW: usize = 2 * MAX_BYTES;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated values with a header.
    Csv,
    /// A JSON object on each line.
    Ndjson,
}

/// Rows that are read one by one, in bounded memory but for the ids that were seen.
#[derive(Debug)]
pub struct Rows<R> {
    source: Source<R>,
    hasher: RandomState,
    /// Hashes of the products' ids.
    seen: HashSet<u64>,
}

#[derive(Debug)]
enum Source<R> {
    Csv(Box<Table<Bounded<R>>>, ProductColumns),
    Ndjson(BufReader<R>, u64),
}

/// A row.
#[derive(Debug)]
pub struct Row {
    /// Where it begins, from 1.
    pub line: u64,
    /// The product, or what is wrong.
    pub product: Result<DefineProduct, Malformed>,
}

/// Why nothing more can be read.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// The header is not what it must be.
    #[error("the header: {0}")]
    Header(Malformed),
    /// The source ended, or is no text of that format.
    #[error("line {line}: {source}")]
    Source {
        /// The line, as far as it is known.
        line: u64,
        /// Why.
        source: io::Error,
    },
}

impl<R: Read> Rows<R> {
    /// Reads `source`. `header` may give another header for a column.
    pub fn new<'h>(
        source: R,
        format: Format,
        header: impl Fn(&str) -> Option<&'h str>,
    ) -> Result<Self, RowsError> {
        let source = match format {
            Format::Csv => csv(source, header)?,
            Format::Ndjson => Source::Ndjson(BufReader::new(source), 0),
        };
        Ok(Self { source, hasher: RandomState::new(), seen: HashSet::new() })
    }

    /// The next row.
    pub fn read_row(&mut self) -> Result<Option<Row>, RowsError> {
        let row = match &mut self.source {
            Source::Csv(table, columns) => next_record(table, columns),
            Source::Ndjson(reader, line) => next_line(reader, line),
        }?;
        Ok(row.map(|row| self.once(row)))
    }

    /// Two rows of one product would be carried out in any order.
    fn once(&mut self, mut row: Row) -> Row {
        if let Ok(product) = &row.product
            && !self.seen.insert(self.hasher.hash_one(product.product_id.as_str()))
        {
            let detail = "this product stands in an earlier row";
            row.product = Err(FieldError::new("productId", "duplicate", detail).into());
        }
        row
    }
}

fn csv<'h, R: Read>(
    source: R,
    header: impl Fn(&str) -> Option<&'h str>,
) -> Result<Source<R>, RowsError> {
    let table = Table::new(Bounded::new(source, MAX_ROW)).map_err(|error| damaged(error, 1))?;
    let mut errors = Vec::new();
    let mut column = |name: &'static str| {
        let own = if name == "price" && !table.has(name) { PRICE_MINOR } else { name };
        let header = header(name).unwrap_or(own);
        table.column(name, header).map_err(|error| errors.push(error)).ok()
    };
    let [id, name, brand, category, price, currency, stock] = COLUMNS;
    let found = [id, name, brand, category, price, currency].map(&mut column);
    let stock = if table.has(header(stock).unwrap_or(stock)) { column(stock) } else { None };
    let [Some(id), Some(name), Some(brand), Some(category), Some(price), Some(currency)] = found
    else {
        return Err(RowsError::Header(Malformed(errors)));
    };
    let texts = [name, brand, category];
    Ok(Source::Csv(Box::new(table), ProductColumns { id, texts, price, currency, stock }))
}

fn next_record<R: Read>(
    table: &mut Table<Bounded<R>>,
    columns: &ProductColumns,
) -> Result<Option<Row>, RowsError> {
    table.source_mut().begin();
    match table.read_row() {
        Ok(None) => Ok(None),
        Ok(Some(row)) => Ok(Some(Row { line: row.line, product: columns.read(&row) })),
        Err(error) => {
            let line = error.position().map_or(0, csv::Position::line);
            let detail = match error.kind() {
                csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                    format!("has {len} fields, the header has {expected_len}")
                }
                csv::ErrorKind::Utf8 { .. } => "is not UTF-8".to_owned(),
                _ => return Err(damaged(error, line)),
            };
            let error = FieldError::new("row", "invalid", detail);
            Ok(Some(Row { line, product: Err(error.into()) }))
        }
    }
}

fn damaged(error: csv::Error, line: u64) -> RowsError {
    let source = match error.into_kind() {
        csv::ErrorKind::Io(source) => source,
        other => io::Error::other(format!("{other:?}")),
    };
    RowsError::Source { line, source }
}

fn next_line<R: Read>(reader: &mut BufReader<R>, line: &mut u64) -> Result<Option<Row>, RowsError> {
    loop {
        *line += 1;
        let mut text = Vec::new();
        let failed = |source| RowsError::Source { line: *line, source };
        let limit = u64::try_from(MAX_ROW).unwrap_or(u64::MAX);
        reader.by_ref().take(limit).read_until(b'\n', &mut text).map_err(failed)?;
        if text.len() >= MAX_ROW {
            let detail = format!("a row is larger than {MAX_ROW} bytes");
            return Err(failed(io::Error::other(detail)));
        }
        if text.is_empty() {
            return Ok(None);
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        return Ok(Some(Row { line: *line, product: define(&text) }));
    }
}

fn define(text: &[u8]) -> Result<DefineProduct, Malformed> {
    match Command::read("product.define", read_object(text)?)? {
        Command::DefineProduct(define) => Ok(define),
        other => {
            Err(FieldError::new("row", "invalid", format!("is no product: {}", other.kind()))
                .into())
        }
    }
}

/// What is known of a product before a row.
#[derive(Debug, Clone, Copy)]
pub enum Before<'a> {
    /// This.
    Known(&'a Product),
    /// Nothing, in a log that begins at this place.
    Unknown(u64),
}

/// The id of the command of a row; nothing, if the row says what is known already. Stock does not
/// count: a definition does not change it on a product that is there.
pub fn command_id(row: &DefineProduct, before: Before<'_>) -> Option<CommandId> {
    let version = match before {
        Before::Known(known) => {
            let same = known.active
                && known.name == row.name
                && known.brand == row.brand
                && known.category == row.category
                && known.price == row.price;
            if same {
                return None;
            }
            format!("version {}", known.version)
        }
        Before::Unknown(first) => format!("unknown from {first}"),
    };
    let body = serde_json::to_vec(row).unwrap_or_default();
    let scope = format!("import {}", row.product_id);
    Some(CommandId::from_key(&scope, &version, fingerprint("product.define", &body)))
}

/// The message of a row's command.
pub fn entry(
    topology: &Topology,
    row: &DefineProduct,
    id: CommandId,
) -> Result<Entry, serde_json::Error> {
    let mut headers = HeaderMap::new();
    headers.insert(COMMAND_ID_HEADER, id.to_string().as_str());
    Ok(Entry {
        subject: topology.command("product.define"),
        payload: serde_json::to_vec(row)?.into(),
        headers,
        expect: None,
    })
}

/// What became of the rows.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ImportReport)]
pub struct Report {
    /// Rows that were read.
    pub rows: u64,
    /// Rows whose commands are stored; they are decided after that.
    pub published: u64,
    /// Rows that say what is known already.
    pub unchanged: u64,
    /// Rows that are wrong; nothing was done about them.
    pub failed: u64,
    /// What is wrong with them: the first [`MOST_ERRORS`].
    pub errors: Vec<RowError>,
}

/// What is wrong with one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RowError {
    /// The row.
    pub line: u64,
    /// What is wrong.
    #[serde(flatten)]
    pub error: FieldError,
}

impl Report {
    /// Counts a row that is wrong.
    pub fn fails(&mut self, line: u64, malformed: Malformed) {
        self.failed += 1;
        let room = MOST_ERRORS.saturating_sub(self.errors.len());
        self.errors
            .extend(malformed.0.into_iter().take(room).map(|error| RowError { line, error }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::Money;
    use crate::product::Stock;

    fn read(text: &str, format: Format) -> Vec<(u64, Result<String, String>)> {
        let mut rows = Rows::new(text.as_bytes(), format, |_| None).unwrap();
        let mut read = Vec::new();
        while let Some(row) = rows.read_row().unwrap() {
            let product = row.product.map(|product| product.product_id.to_string());
            read.push((row.line, product.map_err(|error| error.0[0].field.clone())));
        }
        read
    }

    #[test]
    fn a_damaged_row_is_told_by_its_line_and_those_around_it_are_read() {
        let csv = "productId,name,brand,category,price,currency,stock\n\
                   z,\"A, or\nB\",x,y,1,USD,3\na,A,x,y,1,USD,3\nb,B,x,y,1.5,USD,3\nc,C\nd,D,x,y,1,USD,\n\
                   a,A,x,y,1,USD,1\ne,,x,y,1,USD,1\nf,F,x,y,1,Dollar,1\n";
        let ok = |id: &str| Ok(id.to_owned());
        let wrong = |field: &str| Err(field.to_owned());
        let expected = [
            (2, wrong("name")),
            (4, ok("a")),
            (5, wrong("price")),
            (6, wrong("row")),
            (7, ok("d")),
            (8, wrong("productId")),
            (9, wrong("name")),
            (10, wrong("currency")),
        ];
        assert_eq!(read(csv, Format::Csv), expected);
        let json = "{\"productId\":\"a\",\"name\":\"A\",\"brand\":\"x\",\"category\":\"y\",\
                    \"price\":{\"amount\":1,\"currency\":\"USD\"}}";
        let ndjson = format!("{json}\n\n{json}\nno json\n{}", json.replace("\"a\"", "\"b\""));
        assert_eq!(
            read(&ndjson, Format::Ndjson),
            [(1, ok("a")), (3, wrong("productId")), (4, wrong("body")), (5, ok("b")),]
        );
    }

    #[test]
    fn a_header_without_what_is_needed_and_an_endless_row_are_refused() {
        let header = |text: &'static str| Rows::new(text.as_bytes(), Format::Csv, |_| None);
        let Err(RowsError::Header(missing)) = header("productId,name,brand\n") else { panic!() };
        assert_eq!(missing.0.len(), 3);
        assert!(header("productId,name,brand,category,priceMinor,currency\n").is_ok());
        for (format, start) in [
            (Format::Csv, "productId,name,brand,category,price,currency\n\""),
            (Format::Ndjson, ""),
        ] {
            let endless = start.as_bytes().chain(io::repeat(b'x'));
            let mut rows = Rows::new(endless, format, |_| None).unwrap();
            assert!(matches!(rows.read_row(), Err(RowsError::Source { .. })));
        }
    }

    #[test]
    fn the_same_row_on_the_same_version_is_one_command_and_on_another_it_is_another() {
        let json = "{\"productId\":\"a\",\"name\":\"A\",\"brand\":\"x\",\"category\":\"y\",\
                    \"price\":{\"amount\":1,\"currency\":\"USD\"}}";
        let row = define(json.as_bytes()).unwrap();
        let known = |version, amount| Product {
            product_id: row.product_id.clone(),
            name: row.name.clone(),
            brand: row.brand.clone(),
            category: row.category.clone(),
            price: Money { amount, ..row.price },
            active: true,
            stock: Stock::default(),
            version,
        };
        let id = |product: &Product| command_id(&row, Before::Known(product));
        assert_eq!(id(&known(3, 1)), None);
        assert!(id(&Product { active: false, ..known(3, 1) }).is_some());
        assert_eq!(id(&known(3, 2)), id(&known(3, 2)));
        assert_ne!(id(&known(3, 2)), id(&known(5, 2)));
        let unknown = command_id(&row, Before::Unknown(1));
        assert!(unknown.is_some() && unknown != id(&known(3, 2)));
    }
}
