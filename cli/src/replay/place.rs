//! Sets the shop up and places its orders.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures_util::stream::{self, StreamExt as _};
use millrace_shared::command::{
    Command, DefineProduct, RegisterCustomer, RetireProduct, SetCreditLimit,
};
use millrace_shared::ids::{self, CommandId, OrderId, ProductId};
use millrace_shared::message::Subject;
use millrace_shared::money::Money;
use serde::Deserialize;
use tokio::time::{Instant, interval};

use super::files::{Shop, ShopOrder, ShopProduct};
use super::summary::{NO_OUTCOME, Outcome, SetUp, Summary};
use super::target::{Fit, Request, Settled, Target};
use crate::progress;

/// Products and customers under way at once.
const SET_UP_CONCURRENCY: usize = 32;

/// How fast the orders are placed.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub concurrency: usize,
    pub rate: Option<f64>,
    pub timeout: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProductView {
    name: String,
    brand: String,
    category: String,
    price: Money,
    active: bool,
    version: u64,
}

impl ProductView {
    fn is(&self, define: &DefineProduct) -> bool {
        self.name == define.name
            && self.brand == define.brand
            && self.category == define.category
            && self.price == define.price
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CustomerView {
    credit_limit: Option<Money>,
    version: u64,
}

/// An order as both ways show it; while it is pending, hardly anything of it is known.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderView {
    status: String,
    command_id: Option<CommandId>,
    #[serde(default)]
    lines: Vec<LineView>,
    total: Option<Money>,
    reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct LineView {
    quantity: u32,
}

impl OrderView {
    /// Whether this command's order is paid, or has ended otherwise.
    fn fit(&self, command: CommandId) -> Fit {
        match self.command_id {
            Some(other) if other != command => Fit::Other,
            Some(_)
                if !matches!(self.status.as_str(), "pending" | "validated" | "payment_unknown") =>
            {
                Fit::Reached
            }
            _ => Fit::NotYet,
        }
    }
}

/// Brings products and customers to what the files say. What is so already is left alone, and so
/// is the stock of a product that is there.
pub async fn set_up(target: &Target, shop: &Shop, timeout: Duration) -> anyhow::Result<SetUp> {
    let mut done = SetUp::default();
    let bar =
        progress::things(shop.products.len() + shop.customers.len(), "products and customers")?;
    let mut products = stream::iter(&shop.products)
        .map(|product| set_up_product(target, product, timeout))
        .buffer_unordered(SET_UP_CONCURRENCY);
    while let Some(is_new) = products.next().await {
        done.products.count(is_new?);
        bar.inc(1);
    }
    let mut customers = stream::iter(&shop.customers)
        .map(|customer| set_up_customer(target, customer, timeout))
        .buffer_unordered(SET_UP_CONCURRENCY);
    while let Some(is_new) = customers.next().await {
        done.customers.count(is_new?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(done)
}

/// Tells whether the product is new.
async fn set_up_product(
    target: &Target,
    product: &ShopProduct,
    timeout: Duration,
) -> anyhow::Result<bool> {
    let deadline = Instant::now() + timeout;
    let define = &product.define;
    let subject = (Subject::Product, define.product_id.as_str());
    let look = target.look::<ProductView>(subject, deadline).await;
    let mut seen = look.with_context(|| format!("product {}", define.product_id))?;
    let is_new = seen.is_none();
    if !seen.as_ref().is_some_and(|seen| seen.is(define) && (seen.active || product.retired)) {
        let request = request_at(Command::DefineProduct(define.clone()), version(seen.as_ref()))?;
        let reached = |now: &ProductView| now.is(define) && now.active;
        seen = Some(reach(target, &request, subject, deadline, reached).await?);
    }
    if let Some(seen) = seen.filter(|seen| product.retired && seen.active) {
        let retire = RetireProduct { product_id: ProductId::clone(&define.product_id) };
        let request = request_at(Command::RetireProduct(retire), seen.version)?;
        reach(target, &request, subject, deadline, |now: &ProductView| !now.active).await?;
    }
    Ok(is_new)
}

fn version(seen: Option<&ProductView>) -> u64 {
    seen.map_or(0, |seen| seen.version)
}

/// Tells whether the customer is new.
async fn set_up_customer(
    target: &Target,
    customer: &RegisterCustomer,
    timeout: Duration,
) -> anyhow::Result<bool> {
    let deadline = Instant::now() + timeout;
    let Some(id) = &customer.customer_id else { bail!("a customer without an id") };
    let subject = (Subject::Customer, id.as_str());
    let look = target.look::<CustomerView>(subject, deadline).await;
    let Some(seen) = look.with_context(|| format!("customer {id}"))? else {
        let request = request_at(Command::RegisterCustomer(customer.clone()), 0)?;
        reach(target, &request, subject, deadline, |_: &CustomerView| true).await?;
        return Ok(true);
    };
    if let Some(credit_limit) = customer.credit_limit
        && seen.credit_limit != Some(credit_limit)
    {
        let set = SetCreditLimit { customer_id: id.clone(), credit_limit };
        let request = request_at(Command::SetCreditLimit(set), seen.version)?;
        let reached = |now: &CustomerView| now.credit_limit == Some(credit_limit);
        reach(target, &request, subject, deadline, reached).await?;
    }
    Ok(false)
}

/// A command that is to change what was seen at a version. The version is part of the key, so the
/// same command can come again after something else was done in between.
fn request_at(command: Command, version: u64) -> anyhow::Result<Request> {
    let fingerprint = ids::fingerprint(command.kind(), &serde_json::to_vec(&command)?);
    Request::new(command, format!("replay-{fingerprint}-{version}"))
}

/// Sends a command that must have its effect.
async fn reach<T: serde::de::DeserializeOwned>(
    target: &Target,
    request: &Request,
    subject: (Subject, &str),
    deadline: Instant,
    reached: impl Fn(&T) -> bool,
) -> anyhow::Result<T> {
    let what = || format!("{} of {} {}", request.command.kind(), subject.0, subject.1);
    let fit = |now: &T| if reached(now) { Fit::Reached } else { Fit::NotYet };
    match target.settle(request, subject, deadline, fit).await.with_context(what)? {
        Settled::Reached(state) => Ok(state),
        Settled::Refused(why) => bail!("{} is refused: {}: {}", what(), why.reason, why.detail),
        Settled::Open => bail!(
            "{} has no outcome yet (command {}): are the workers running?",
            what(),
            request.id
        ),
    }
}

/// So many orders without an outcome, one after another, end the replay: nobody is deciding.
const STUCK: usize = 5;

/// Places the orders at a pace, in their order. A request that fails for good ends it early;
/// what was done until then is in the summary.
pub async fn orders(
    target: &Target,
    orders: &[ShopOrder],
    pace: Pace,
    mut summary: Summary,
) -> anyhow::Result<(Summary, Option<anyhow::Error>)> {
    let bar = progress::things(orders.len(), "orders")?;
    let start = Instant::now();
    let tick = pace.rate.map(|rate| interval(Duration::from_secs_f64(1.0 / rate)));
    let on_time = stream::unfold((orders.iter(), tick), |(mut orders, mut tick)| async move {
        let order = orders.next()?;
        if let Some(tick) = &mut tick {
            tick.tick().await;
        }
        Some((order, (orders, tick)))
    });
    let placed =
        on_time.map(|order| place(target, order, pace.timeout)).buffer_unordered(pace.concurrency);
    let mut placed = std::pin::pin!(placed);
    let (mut stopped, mut stuck) = (None, 0);
    while let Some(outcome) = placed.next().await {
        match outcome {
            Ok(outcome) => {
                stuck = if outcome.status == NO_OUTCOME { stuck + 1 } else { 0 };
                summary.add(outcome);
                if stuck == STUCK {
                    let what = "orders in a row have no outcome: are all the workers running?";
                    stopped = Some(anyhow!("{STUCK} {what}"));
                    break;
                }
            }
            Err(error) => {
                stopped = Some(error);
                break;
            }
        }
        bar.inc(1);
    }
    summary.took(start.elapsed());
    bar.finish_and_clear();
    Ok((summary, stopped))
}

async fn place(target: &Target, order: &ShopOrder, timeout: Duration) -> anyhow::Result<Outcome> {
    let deadline = Instant::now() + timeout;
    let id = OrderId::from_key(&order.place.customer_id, &order.key).to_string();
    let subject = (Subject::Order, id.as_str());
    let request = Request::new(Command::PlaceOrder(order.place.clone()), order.key.clone())?;
    // Sent in any case: it is the system, not this program, that makes no second order of it.
    let settled = async {
        let before = target.look::<OrderView>(subject, deadline).await?;
        let settled = target
            .settle(&request, subject, deadline, |now| OrderView::fit(now, request.id))
            .await?;
        anyhow::Ok((before.is_none(), settled))
    };
    let (is_new, settled) = settled.await.with_context(|| format!("order {}", order.name))?;
    let asked = &order.place.lines;
    let mut outcome = Outcome {
        is_new,
        lines: asked.len(),
        units: asked.iter().map(|line| u64::from(line.quantity)).sum(),
        ..Outcome::default()
    };
    match settled {
        Settled::Reached(now) => {
            outcome.status = now.status;
            outcome.reason = now.reason.unwrap_or_default();
            // As recorded, not as asked for.
            outcome.lines = now.lines.len();
            outcome.units = now.lines.iter().map(|line| u64::from(line.quantity)).sum();
            outcome.total = now.total;
        }
        Settled::Refused(why) => {
            outcome.problem = Some(format!("order {}: {}", order.name, why.detail));
            "refused".clone_into(&mut outcome.status);
            outcome.reason = why.reason;
        }
        Settled::Open => {
            let id = request.id;
            outcome.problem = Some(format!("order {}: no outcome yet (command {id})", order.name));
            NO_OUTCOME.clone_into(&mut outcome.status);
        }
    }
    Ok(outcome)
}
