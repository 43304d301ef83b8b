//! CSV with a header, row by row. What is wrong with a row is told by its column.

use std::fmt::Display;
use std::io::{self, Read};
use std::str::FromStr;

use csv::StringRecord;

use crate::command::{Command, DefineProduct, FieldError, Malformed};
use crate::money::{Currency, Money};

/// A file or a body that is read as CSV.
#[derive(Debug)]
pub struct Table<R> {
    reader: csv::Reader<R>,
    headers: StringRecord,
}

/// A column's place, and the name that it has in messages.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    index: usize,
    name: &'static str,
}

/// A row.
#[derive(Debug)]
pub struct Row {
    /// Where it begins, from 1.
    pub line: u64,
    record: StringRecord,
}

impl<R: Read> Table<R> {
    /// Reads the header.
    pub fn new(source: R) -> csv::Result<Self> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(source);
        let headers = reader.headers()?.clone();
        Ok(Self { reader, headers })
    }

    /// Whether there is a column with this header.
    pub fn has(&self, header: &str) -> bool {
        self.headers.iter().any(|found| found == header)
    }

    /// Finds the column `name` by its header.
    pub fn column(&self, name: &'static str, header: &str) -> Result<Column, FieldError> {
        let mut found = self.headers.iter().enumerate().filter(|(_, text)| *text == header);
        match (found.next(), found.next()) {
            (Some((index, _)), None) => Ok(Column { index, name }),
            (Some(_), Some(_)) => {
                let detail = format!("there are two columns {header:?}");
                Err(FieldError::new(name, "duplicate", detail))
            }
            (None, _) => {
                let known: Vec<String> =
                    self.headers.iter().map(|text| format!("{text:?}")).collect();
                let detail = format!("there is no column {header:?}, only {}", known.join(", "));
                Err(FieldError::new(name, "missing", detail))
            }
        }
    }

    /// The next row.
    pub fn read_row(&mut self) -> csv::Result<Option<Row>> {
        let mut record = StringRecord::new();
        let found = self.reader.read_record(&mut record)?;
        let line = record.position().map_or(0, csv::Position::line);
        Ok(found.then_some(Row { line, record }))
    }

    /// What is read from.
    pub fn source_mut(&mut self) -> &mut R {
        self.reader.get_mut()
    }
}

impl Row {
    /// What stands in a column.
    pub fn text(&self, column: Column) -> &str {
        self.record.get(column.index).unwrap_or_default()
    }

    /// Something is wrong in a column.
    pub fn wrong(&self, column: Column, what: impl Display) -> FieldError {
        FieldError::new(column.name, "invalid", format!("{what}: {:?}", self.text(column)))
    }

    /// Reads what stands in a column.
    pub fn parse<T: FromStr<Err: Display>>(&self, column: Column) -> Result<T, FieldError> {
        self.text(column).parse().map_err(|error| self.wrong(column, error))
    }

    fn currency(&self, column: Column) -> Result<Currency, FieldError> {
        Currency::from_code(self.text(column))
            .ok_or_else(|| self.wrong(column, "not an ISO 4217 currency code"))
    }
}

/// Where a product's fields stand.
#[derive(Debug, Clone, Copy)]
pub struct ProductColumns {
    /// The product's id.
    pub id: Column,
    /// Its name, brand and category.
    pub texts: [Column; 3],
    /// Its price in minor units.
    pub price: Column,
    /// The price's currency.
    pub currency: Column,
    /// The stock that it starts with, if that is in the table.
    pub stock: Option<Column>,
}

impl ProductColumns {
    /// The product in a row, or all that is wrong with it.
    pub fn read(&self, row: &Row) -> Result<DefineProduct, Malformed> {
        let mut errors = Vec::new();
        let id = row.parse(self.id).map_err(|error| errors.push(error));
        let price = row.parse(self.price).map_err(|error| errors.push(error));
        let currency = row.currency(self.currency).map_err(|error| errors.push(error));
        let stock = self.stock.filter(|stock| !row.text(*stock).is_empty());
        let stock = stock.map(|stock| row.parse(stock)).transpose();
        let stock = stock.map_err(|error| errors.push(error));
        let (Ok(id), Ok(price), Ok(currency), Ok(stock)) = (id, price, currency, stock) else {
            return Err(Malformed(errors));
        };
        let [name, brand, category] = self.texts.map(|column| row.text(column).to_owned());
        let define = DefineProduct {
            product_id: id,
            name,
            brand,
            category,
            price: Money::new(price, currency),
            initial_stock: stock,
        };
        let command = Command::DefineProduct(define.clone());
        let errors = command.check();
        if errors.is_empty() { Ok(define) } else { Err(Malformed(errors)) }
    }
}

/// A source of which no row may be larger than so many bytes.
#[derive(Debug)]
pub struct Bounded<R> {
    source: R,
    left: usize,
    most: usize,
}

impl<R> Bounded<R> {
    /// Bounds the rows of `source`.
    pub fn new(source: R, most: usize) -> Self {
        Self { source, left: most, most }
    }

    /// A new row begins.
    pub fn begin(&mut self) {
        self.left = self.most;
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let most = self.most;
            return Err(io::Error::other(format!("a row is larger than {most} bytes")));
        }
        let most = buffer.len().min(self.left);
        let read = self.source.read(buffer.get_mut(..most).unwrap_or_default())?;
        self.left -= read;
        Ok(read)
    }
}
