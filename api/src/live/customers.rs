//! The stream of one customer: its own document whenever it changes, and each of its orders whenever
//! that changes, whole.
//!
//! The id of a message is `GENERATION-SEQUENCE-VERSION`: the generation of the views, the place
//! among the changes of the customer's orders, the version of the customer's own document. A client
//! that comes back is given all orders that have changed since, each as it is now. Where that is not
//! known, because its place lies too far back or in views that are no longer read, it is told so.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Bytes;
use millrace_shared::ids::CustomerId;
use millrace_shared::views::{Changes, CustomerChanges, Document, ViewError, Views};

use super::topics::Watched;
use super::{Feed, Step, Then, data};
use crate::reading::with_credit;

/// The last changes that are kept for all who watch a customer. Who is further behind reads alone.
const KEPT: u32 = 8;
/// The changes that one client reads at a time.
const PAGE: u32 = 16;

/// A place in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    generation: u64,
    sequence: u64,
    version: u64,
}

impl Place {
    /// Reads the id of a message.
    pub fn parse(id: &str) -> Option<Self> {
        let mut numbers = id.split('-').map(|number| number.parse().ok());
        let [generation, sequence, version] =
            [numbers.next()??, numbers.next()??, numbers.next()??];
        numbers.next().is_none().then_some(Self { generation, sequence, version })
    }

    fn message(self, text: &str) -> Bytes {
        let Self { generation, sequence, version } = self;
        let mut message = String::with_capacity(text.len() + 64);
        // Writing into a string does not fail.
        let _ = write!(message, "id: {generation}-{sequence}-{version}\n{text}");
        message.into()
    }
}

/// An order that has changed.
#[derive(Debug, Clone)]
struct Changed {
    sequence: u64,
    order_id: String,
    version: u64,
    /// The message without its id; absent where the order has changed again.
    text: Option<Arc<str>>,
}

/// A customer as it is, and the last changes of its orders.
#[derive(Debug)]
pub struct CustomerNews {
    generation: u64,
    version: u64,
    /// The customer as JSON.
    customer: String,
    orders: Vec<Changed>,
    /// All changes after this place are in `orders`.
    complete_after: u64,
}

impl CustomerNews {
    fn of(found: CustomerChanges, known: &[Changed]) -> Result<Option<Self>, ViewError> {
        let Some(customer) = found.customer else { return Ok(None) };
        let (version, customer) = shown(&customer)?;
        let orders = found.orders.into_iter().map(|order| {
            let text = order.document.map(|json| data(&format!("{{\"order\":{json}}}")).into());
            let known = || {
                let same =
                    |it: &&Changed| it.order_id == order.order_id && it.version == order.version;
                known.iter().find(same).and_then(|known| known.text.clone())
            };
            let text = text.or_else(known);
            Changed {
                sequence: order.sequence,
                version: order.version,
                text,
                order_id: order.order_id,
            }
        });
        Ok(Some(Self {
            generation: found.generation,
            version,
            customer,
            orders: orders.collect(),
            complete_after: found.complete_after,
        }))
    }

    fn last(&self) -> u64 {
        self.orders.last().map_or(0, |order| order.sequence)
    }
}

fn shown(customer: &Document) -> Result<(u64, String), ViewError> {
    let shown = with_credit(customer);
    let shown = shown.map_err(|_| ViewError::Damaged("of a customer".to_owned()))?;
    Ok((shown.version, shown.json))
}

impl Watched for CustomerNews {
    fn keys(id: &str) -> Vec<String> {
        vec![format!("customer/{id}"), format!("customer-orders/{id}")]
    }

    async fn look(
        views: &Views,
        id: &str,
        before: Option<Arc<Self>>,
    ) -> Result<Option<Self>, ViewError> {
        // It was an id when it began to be watched.
        let Ok(customer) = id.parse::<CustomerId>() else { return Ok(None) };
        let known = before.as_ref().map_or(&[][..], |before| &before.orders);
        let has = |order: &str, version: u64| {
            known
                .iter()
                .any(|it| it.order_id == order && it.version == version && it.text.is_some())
        };
        let found = views.customer_changes(&customer, Changes::Last(KEPT), has).await?;
        let news = Self::of(found, known)?;
        let place = |news: &Self| (news.generation, news.last(), news.version);
        Ok(news.filter(|news| before.is_none_or(|before| place(&before) != place(news))))
    }
}

/// How far a client is.
#[derive(Debug)]
pub struct CustomerFeed {
    views: Views,
    customer: CustomerId,
    place: Option<Place>,
}

impl CustomerFeed {
    /// After the message whose id the client has; without one, from the customer as it is.
    pub fn after(views: Views, customer: CustomerId, place: Option<Place>) -> Self {
        Self { views, customer, place }
    }

    /// The messages that the client has not had; nothing, if these news do not reach back to it.
    fn take(&mut self, news: &CustomerNews) -> Option<Step> {
        let had = self.place.filter(|place| place.generation == news.generation)?;
        if news.complete_after > had.sequence {
            return None;
        }
        let (mut place, mut messages) = (had, Vec::new());
        for order in news.orders.iter().filter(|order| order.sequence > had.sequence) {
            place.sequence = order.sequence;
            messages.extend(order.text.as_ref().map(|text| place.message(text)));
        }
        if news.version > place.version {
            place.version = news.version;
            messages.push(place.message(&data(&format!("{{\"customer\":{}}}", news.customer))));
        }
        self.place = Some(place);
        Some(Step { messages, then: Then::Wait })
    }

    /// As [`CustomerFeed::take`], after a look of its own.
    async fn catch_up(&mut self) -> Result<Step, ViewError> {
        if let Some(place) = self.place {
            let Some(news) = self.look(Changes::After(place.sequence, PAGE)).await? else {
                return Ok(Step { messages: Vec::new(), then: Then::End });
            };
            if let Some(mut step) = self.take(&news) {
                if news.orders.len() >= PAGE as usize {
                    step.then = Then::More;
                }
                return Ok(step);
            }
        }
        let Some(news) = self.look(Changes::Last(1)).await? else {
            return Ok(Step { messages: Vec::new(), then: Then::End });
        };
        // It begins, or begins anew: what has changed in between is not known.
        let reset = if self.place.is_some() { "\"reset\":true," } else { "" };
        let (generation, sequence) = (news.generation, news.last());
        let place = Place { generation, sequence, version: news.version };
        self.place = Some(place);
        let text = data(&format!("{{{reset}\"customer\":{}}}", news.customer));
        Ok(Step { messages: vec![place.message(&text)], then: Then::Wait })
    }

    async fn look(&self, changes: Changes) -> Result<Option<CustomerNews>, ViewError> {
        let found = self.views.customer_changes(&self.customer, changes, |_, _| false).await?;
        CustomerNews::of(found, &[])
    }
}

impl Feed for CustomerFeed {
    type News = CustomerNews;

    async fn step(&mut self, news: Option<&CustomerNews>) -> Result<Step, ViewError> {
        match news.and_then(|news| self.take(news)) {
            Some(step) => Ok(step),
            None => self.catch_up().await,
        }
    }
}
