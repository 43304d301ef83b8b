//! The shop's files: read, joined and checked before anything is sent.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context as _, anyhow, bail, ensure};
use millrace_shared::command::{
    Command, DefineProduct, FieldError, MAX_QUANTITY, PaymentMethod, PlaceOrder, RegisterCustomer,
    RequestedLine, check_key,
};
use millrace_shared::ids::{CustomerId, ProductId};
use millrace_shared::money::{Currency, Money};
use millrace_shared::table::{Column, ProductColumns, Row, Table};
use serde_json::Value;

use super::{Payment, Price, ReplayArgs};

/// The files and the columns that are read from them; other columns are ignored.
const FILES: [(&str, &[&str]); 4] = [
    (
        PRODUCTS,
        &[
            "productId",
            "name",
            "brand",
            "category",
            "priceMinor",
            "currency",
            "stock",
            "discontinued",
        ],
    ),
    (CUSTOMERS, &["customerId", "name"]),
    (ORDERS, &["orderId", "customerId"]),
    (LINES, &["orderId", "productId", "quantity", "unitPriceThenMinor"]),
];
const PRODUCTS: &str = "products";
const CUSTOMERS: &str = "customers";
const ORDERS: &str = "orders";
const LINES: &str = "lines";

/// Another name of a column, in one file or in all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnName {
    file: Option<String>,
    column: String,
    header: String,
}

/// Reads `orderId=order_no` or `lines.orderId=order_no`.
pub fn parse_column(text: &str) -> Result<ColumnName, String> {
    let (name, header) = text.split_once('=').ok_or("must be NAME=HEADER")?;
    let (file, column) = match name.split_once('.') {
        Some((file, column)) => (Some(file), column),
        None => (None, name),
    };
    let mut known: Vec<&str> = FILES
        .iter()
        .filter(|(name, _)| file.is_none_or(|file| file == *name))
        .flat_map(|(_, columns)| columns.iter().copied())
        .collect();
    known.sort_unstable();
    known.dedup();
    if known.is_empty() {
        return Err("the part before the dot must be products, customers, orders or lines".into());
    }
    if !known.contains(&column) {
        return Err(format!("{column:?} is not one of the columns {}", known.join(", ")));
    }
    Ok(ColumnName {
        file: file.map(str::to_owned),
        column: column.to_owned(),
        header: header.trim().to_owned(),
    })
}

/// All that is to be set up and placed.
#[derive(Debug)]
pub struct Shop {
    pub products: Vec<ShopProduct>,
    pub customers: Vec<RegisterCustomer>,
    pub orders: Vec<ShopOrder>,
}

#[derive(Debug)]
pub struct ShopProduct {
    pub define: DefineProduct,
    /// Whether it is to be taken out of sale.
    pub retired: bool,
}

#[derive(Debug)]
pub struct ShopOrder {
    /// The order's id in the file.
    pub name: String,
    /// The idempotency key that it is placed under.
    pub key: String,
    pub place: PlaceOrder,
}

/// Reads the files that the arguments name.
pub fn read(args: &ReplayArgs) -> anyhow::Result<Shop> {
    let table = |file, path: &Path| {
        let opened = fs::File::open(path)
            .with_context(|| format!("the file {} cannot be read", path.display()))?;
        File::new(file, path.display().to_string(), opened, &args.columns)
    };
    join(
        args,
        table(PRODUCTS, &args.products)?,
        table(CUSTOMERS, &args.customers)?,
        table(ORDERS, &args.orders)?,
        table(LINES, &args.lines)?,
    )
}

fn join<R: Read>(
    args: &ReplayArgs,
    products: File<R>,
    customers: File<R>,
    orders: File<R>,
    lines: File<R>,
) -> anyhow::Result<Shop> {
    let products = read_products(products, args)?;
    let limit = args.credit_limit.map(|amount| credit_limit(amount, &products)).transpose()?;
    let customers = read_customers(customers, limit)?;
    let prices = products.iter().map(|p| (p.define.product_id.clone(), p.define.price)).collect();
    let known = customers.iter().filter_map(|customer| customer.customer_id.clone()).collect();
    let orders = read_orders(orders, lines, &known, &prices, args)?;
    Ok(Shop { products, customers, orders })
}

fn read_products<R: Read>(
    mut table: File<R>,
    args: &ReplayArgs,
) -> anyhow::Result<Vec<ShopProduct>> {
    let id = table.column("productId")?;
    let columns = ProductColumns {
        id,
        texts: [table.column("name")?, table.column("brand")?, table.column("category")?],
        price: table.column("priceMinor")?,
        currency: table.column("currency")?,
        // What an option stands in for need not be in the file.
        stock: if args.stock.is_none() { Some(table.column("stock")?) } else { None },
    };
    let discontinued =
        if args.include_discontinued { None } else { Some(table.column("discontinued")?) };
    let mut seen = HashSet::new();
    let mut products = Vec::new();
    while let Some(row) = table.next()? {
        let read = columns.read(&row.row);
        let mut define = read.with_context(|| format!("{}:{}", row.path, row.row.line))?;
        if let (Some(stock), None) = (columns.stock, define.initial_stock) {
            return Err(row.wrong(stock, "must be a number"));
        }
        define.initial_stock = args.stock.or(define.initial_stock);
        ensure!(
            seen.insert(define.product_id.clone()),
            row.wrong(id, "this product stands in an earlier row")
        );
        let retired = discontinued.map_or(Ok(false), |column| row.flag(column))?;
        products.push(ShopProduct { define, retired });
    }
    Ok(products)
}

/// The limit in the one currency of the products.
fn credit_limit(amount: i64, products: &[ShopProduct]) -> anyhow::Result<Money> {
    let currencies: HashSet<Currency> = products.iter().map(|p| p.define.price.currency).collect();
    match currencies.into_iter().collect::<Vec<_>>().as_slice() {
        [currency] => Ok(Money::new(amount, *currency)),
        _ => bail!("--credit-limit needs products that are all of one currency"),
    }
}

fn read_customers<R: Read>(
    mut table: File<R>,
    credit_limit: Option<Money>,
) -> anyhow::Result<Vec<RegisterCustomer>> {
    let [id, name] = [table.column("customerId")?, table.column("name")?];
    let mut seen = HashSet::new();
    let mut customers = Vec::new();
    while let Some(row) = table.next()? {
        let customer_id: CustomerId = row.parse(id)?;
        ensure!(
            seen.insert(customer_id.clone()),
            row.wrong(id, "this customer stands in an earlier row")
        );
        let name = row.text(name).to_owned();
        let customer = RegisterCustomer { customer_id: Some(customer_id), name, credit_limit };
        row.check(&Command::RegisterCustomer(customer.clone()))?;
        customers.push(customer);
    }
    Ok(customers)
}

fn read_orders<R: Read>(
    mut orders: File<R>,
    lines: File<R>,
    customers: &HashSet<CustomerId>,
    prices: &HashMap<ProductId, Money>,
    args: &ReplayArgs,
) -> anyhow::Result<Vec<ShopOrder>> {
    let [id, customer] = [orders.column("orderId")?, orders.column("customerId")?];
    let lines_file = lines.path.clone();
    let mut lines = read_lines(lines, prices, args.price)?;
    let payment = match args.payment {
        Payment::Card => PaymentMethod::Card { token: args.token.clone() },
        Payment::Account => PaymentMethod::Account {},
    };
    let mut seen = HashSet::new();
    let mut placed = Vec::new();
    while let Some(row) = orders.next()? {
        let name = row.text(id).to_owned();
        ensure!(seen.insert(name.clone()), row.wrong(id, "this order stands in an earlier row"));
        let key = format!("replay-{name}");
        check_key(&key).map_err(|error| row.wrong(id, error.detail))?;
        let (_, own) = lines.remove(&name).ok_or_else(|| {
            row.wrong(id, format!("the order {name} has no lines in {lines_file}"))
        })?;
        let customer_id: CustomerId = row.parse(customer)?;
        ensure!(
            customers.contains(&customer_id),
            row.wrong(customer, "this customer is not in the customers file")
        );
        let place =
            PlaceOrder { order_id: None, customer_id, lines: own, payment: payment.clone() };
        row.check(&Command::PlaceOrder(place.clone()))?;
        placed.push(ShopOrder { name, key, place });
    }
    // The earliest of the lines that are left over.
    if let Some((name, (line, _))) = lines.into_iter().min_by_key(|(_, (line, _))| *line) {
        bail!("{lines_file}:{line}: orderId: the order {name} is not in {}", orders.path);
    }
    Ok(placed)
}

/// The lines of each order, with the row of its first one.
fn read_lines<R: Read>(
    mut table: File<R>,
    prices: &HashMap<ProductId, Money>,
    price: Option<Price>,
) -> anyhow::Result<HashMap<String, (u64, Vec<RequestedLine>)>> {
    let [order, product] = [table.column("orderId")?, table.column("productId")?];
    let quantity = table.column("quantity")?;
    let then = match price {
        Some(Price::Then) => Some(table.column("unitPriceThenMinor")?),
        Some(Price::Catalogue) | None => None,
    };
    let mut orders: HashMap<String, (u64, Vec<RequestedLine>)> = HashMap::new();
    while let Some(row) = table.next()? {
        let product_id: ProductId = row.parse(product)?;
        let catalogue = *prices
            .get(&product_id)
            .ok_or_else(|| row.wrong(product, "this product is not in the products file"))?;
        let unit_price = match (price, then) {
            (None, _) => None,
            (Some(_), None) => Some(catalogue),
            (Some(_), Some(then)) => Some(Money::new(row.parse(then)?, catalogue.currency)),
        };
        let (_, lines) =
            orders.entry(row.text(order).to_owned()).or_insert_with(|| (row.row.line, Vec::new()));
        ensure!(
            lines.iter().all(|line| line.product_id != product_id),
            row.wrong(product, "the order has an earlier line of this product; add them up")
        );
        let pieces: u32 = row.parse(quantity)?;
        ensure!(
            (1..=MAX_QUANTITY).contains(&pieces),
            row.wrong(quantity, format!("must be from 1 to {MAX_QUANTITY}"))
        );
        lines.push(RequestedLine { product_id, quantity: pieces, unit_price });
    }
    Ok(orders)
}

/// One of the files.
struct File<'a, R> {
    name: &'static str,
    path: String,
    table: Table<R>,
    columns: &'a [ColumnName],
}

/// A row, with the file that it is told with.
struct FileRow<'a> {
    path: &'a str,
    row: Row,
}

impl<'a, R: Read> File<'a, R> {
    fn new(
        name: &'static str,
        path: String,
        source: R,
        columns: &'a [ColumnName],
    ) -> anyhow::Result<Self> {
        let table =
            Table::new(source).with_context(|| format!("{path}: the header is unreadable"))?;
        Ok(Self { name, path, table, columns })
    }

    /// Finds a column by its name or by the header that the user gave it; a name given for this
    /// file goes before one given for all.
    fn column(&self, name: &'static str) -> anyhow::Result<Column> {
        let given = |file: Option<&str>| {
            self.columns.iter().find(|n| n.column == name && n.file.as_deref() == file)
        };
        let header =
            given(Some(self.name)).or_else(|| given(None)).map_or(name, |n| n.header.as_str());
        self.table.column(name, header).map_err(|error| {
            anyhow!(
                "{}: {}; name another one for it with --column {}.{name}=HEADER",
                self.path,
                error.detail,
                self.name,
            )
        })
    }

    fn next(&mut self) -> anyhow::Result<Option<FileRow<'_>>> {
        let row = self.table.read_row().with_context(|| self.path.clone())?;
        Ok(row.map(|row| FileRow { path: &self.path, row }))
    }
}

impl FileRow<'_> {
    fn text(&self, column: Column) -> &str {
        self.row.text(column)
    }

    fn placed(&self, FieldError { field, detail, .. }: FieldError) -> anyhow::Error {
        anyhow!("{}:{}: {field}: {detail}", self.path, self.row.line)
    }

    fn wrong(&self, column: Column, what: impl Display) -> anyhow::Error {
        self.placed(self.row.wrong(column, what))
    }

    fn parse<T: FromStr<Err: Display>>(&self, column: Column) -> anyhow::Result<T> {
        self.row.parse(column).map_err(|error| self.placed(error))
    }

    fn flag(&self, column: Column) -> anyhow::Result<bool> {
        match self.text(column).to_ascii_lowercase().as_str() {
            "1" | "true" | "yes" => Ok(true),
            "0" | "false" | "no" => Ok(false),
            _ => Err(self.wrong(column, "must be 1 or 0, true or false, yes or no")),
        }
    }

    /// Refuses at once what the system would refuse as malformed.
    fn check(&self, command: &Command) -> anyhow::Result<()> {
        let Value::Object(body) = serde_json::to_value(command)? else {
            bail!("a command must be a JSON object");
        };
        Command::read(command.kind(), body)
            .with_context(|| format!("{}:{}", self.path, self.row.line))
            .map(drop)
    }
}

#[cfg(test)]
mod tests;
