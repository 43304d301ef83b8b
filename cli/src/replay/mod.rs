//! `millrace replay`: a shop's catalogue, customers and orders, from CSV files, placed in Millrace.
//! Everything that is sent has an idempotency key made from the files, so a second run, or one
//! after a crash, places no second order.

mod files;
pub(crate) mod http;
mod nats;
mod place;
mod summary;
mod target;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use millrace_shared::access::Principal;
use millrace_shared::config::NatsConfig;

pub use summary::Summary;

use files::ColumnName;
use target::Target;

use crate::token::SignIn;

/// What `millrace replay` is to do.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// CSV file of products: productId, name, brand, category, priceMinor, currency, stock,
    /// discontinued
    #[arg(long, value_name = "FILE")]
    pub products: PathBuf,
    /// CSV file of customers: customerId, name
    #[arg(long, value_name = "FILE")]
    pub customers: PathBuf,
    /// CSV file of orders: orderId, customerId
    #[arg(long, value_name = "FILE")]
    pub orders: PathBuf,
    /// CSV file of the orders' lines: orderId, productId, quantity
    #[arg(long, value_name = "FILE")]
    pub lines: PathBuf,
    /// Another name of a column: `orderId=order_no`, or for one file only `lines.orderId=order_no`.
    /// Can be repeated
    #[arg(long = "column", value_name = "NAME=HEADER", value_parser = files::parse_column)]
    pub columns: Vec<ColumnName>,

    /// The way in
    #[arg(long, value_enum, default_value_t = Via::Http)]
    pub via: Via,
    /// Address of the HTTP API, `http://HOST:PORT`
    #[arg(long, value_name = "URL")]
    pub target: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become part of the help")]
    pub sign_in: SignIn,
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become part of the help")]
    pub nats: NatsConfig,

    /// Orders under way at once; 1 places one after another
    #[arg(long, default_value = "1")]
    pub concurrency: NonZeroUsize,
    /// Orders per second, at the most; without it as many as --concurrency allows
    #[arg(long, value_parser = parse_rate)]
    pub rate: Option<f64>,
    /// Seconds that each order, product or customer may take
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub timeout: u64,

    /// Stock that every new product starts with, instead of the file's
    #[arg(long, value_name = "PIECES")]
    pub stock: Option<u32>,
    /// Sell discontinued products too; without it they are retired, and orders of them rejected
    #[arg(long)]
    pub include_discontinued: bool,
    /// Price that the lines name; without it they name none and the catalogue's holds
    #[arg(long, value_enum)]
    pub price: Option<Price>,
    /// How the orders are paid
    #[arg(long, value_enum, default_value_t = Payment::Card)]
    pub payment: Payment,
    /// Card token for --payment card
    #[arg(long, default_value = "tok_ok")]
    pub token: String,
    /// Credit limit of every customer, in minor units of the products' currency
    #[arg(long, value_name = "MINOR", value_parser = clap::value_parser!(i64).range(0..))]
    pub credit_limit: Option<i64>,
}

/// The way into the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// The HTTP API
    Http,
    /// Commands published on NATS; outcomes are read from the log
    Nats,
}

/// The price that an order's lines name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Price {
    /// The price of the products file
    Catalogue,
    /// The price paid then: column unitPriceThenMinor of the lines file
    Then,
}

/// How the orders are paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Payment {
    /// By card, with --token
    Card,
    /// On the customer's account, within the credit limit
    Account,
}

/// Reads how many are to come in a second.
pub(crate) fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("must be a number from 0.001 to 100000".to_owned()),
    }
}

/// Replays, and prints what became of the orders. Fails if any of them has no outcome.
pub async fn run(args: ReplayArgs) -> anyhow::Result<()> {
    let (summary, stopped) = replay(&args).await?;
    println!("{summary}");
    if let Some(error) = stopped {
        return Err(error.context(
            "the replay stopped before its end; run it again: what is placed already is not \
             placed twice",
        ));
    }
    let problems = summary.problems();
    if !problems.is_empty() {
        bail!("{} orders were not placed or have no outcome:\n{}", problems.len(), list(problems));
    }
    Ok(())
}

/// The first few, one a line.
fn list(problems: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = problems.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join("\n");
    if problems.len() > SHOWN {
        text.push_str("\n…");
    }
    text
}

/// Replays. Beside the summary stands the error that ended the run early, if one did.
pub async fn replay(args: &ReplayArgs) -> anyhow::Result<(Summary, Option<anyhow::Error>)> {
    let shop = files::read(args)?;
    let target = connect(args).await?;
    let pace = place::Pace {
        concurrency: args.concurrency.get(),
        rate: args.rate,
        timeout: Duration::from_secs(args.timeout),
    };
    let set_up = place::set_up(&target, &shop, pace.timeout)
        .await
        .context("products and customers could not be set up; no order was placed")?;
    place::orders(&target, &shop.orders, pace, Summary::new(set_up)).await
}

async fn connect(args: &ReplayArgs) -> anyhow::Result<Target> {
    match (args.via, &args.target) {
        (Via::Http, Some(url)) => Ok(Target::Http(http::Http::new(url, &args.sign_in).await?)),
        (Via::Http, None) => bail!("--via http needs --target"),
        (Via::Nats, url) => {
            ensure!(url.is_none(), "--target is for --via http; NATS is reached by --nats-url");
            let client = args.nats.of(Principal::Operator).connect_now("millrace replay").await?;
            let topology = args.nats.topology()?;
            Ok(Target::Nats(Box::new(nats::Nats::new(client, topology).await?)))
        }
    }
}
