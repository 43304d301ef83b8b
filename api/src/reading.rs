//! Answers from the views: documents with their versions, and pages.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use millrace_shared::command::FieldError;
use millrace_shared::customer::Customer;
use millrace_shared::ids::CustomerId;
use millrace_shared::message::Subject;
use millrace_shared::money::Money;
use millrace_shared::views::{Document, Page, ViewError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};

use crate::App;
use crate::auth::Caller;
use crate::error::Problem;
use crate::request::{MAX_WAIT, preferred_wait};
use crate::wait::Waiter;

/// How long a read waits for the asked version, if it is not said.
const USUAL_WAIT: Duration = Duration::from_secs(5);
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The items of a page, if it is not said.
pub const USUAL_LIMIT: usize = 20;
/// The most items of a page.
pub const MAX_LIMIT: usize = 100;

/// Which version of a document is asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Freshness {
    /// Wait for this version, or a later one.
    min_version: Option<u64>,
    /// For how many milliseconds at the most (30,000 if it is more); then what there is, is
    /// answered, and that it is older.
    wait_ms: Option<u64>,
}

impl Freshness {
    /// With the wait of `Prefer: wait=SECONDS`, unless the query says another.
    #[must_use]
    pub fn or_preferred(mut self, headers: &HeaderMap) -> Self {
        let preferred = || preferred_wait(headers).map(|wait| wait.as_secs() * 1_000);
        self.wait_ms = self.wait_ms.or_else(preferred);
        self
    }

    /// How long is to be waited for what has no versions: not at all, if it is not said.
    pub fn wait(&self) -> Option<Duration> {
        self.wait_ms.map(|wait| Duration::from_millis(wait).min(MAX_WAIT))
    }

    /// Any version, as soon as there is one within the time.
    pub fn exists(within: Duration) -> Self {
        let wait = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        Self { min_version: Some(0), wait_ms: Some(wait) }
    }
}

/// What a read has found.
#[derive(Debug)]
pub struct Found {
    /// The document.
    pub document: Document,
    /// Whether it is still older than the version that was asked for.
    pub not_yet: bool,
}

impl From<ViewError> for Problem {
    fn from(error: ViewError) -> Self {
        match &error {
            ViewError::Redis(error) => {
                tracing::warn!(%error, "a view cannot be read");
                return Self::unavailable("the views cannot be read now");
            }
            // What is not there for the moment must not pass for unknown.
            ViewError::Absent => {
                return Self::unavailable(
                    "the views are being made; they come from a projection worker: are the \
                     workers running?",
                );
            }
            ViewError::Event(_) | ViewError::Damaged(_) => {}
        }
        tracing::error!(%error, "a view cannot be read");
        Self::internal()
    }
}

impl App {
    /// Reads go nowhere without Redis: this is told at once and not after a time-out.
    pub fn check_views(&self) -> Result<(), Problem> {
        if self.can_read() { Ok(()) } else { Err(Problem::unavailable("Redis cannot be reached")) }
    }

    /// A document as fresh as it was asked for, or as it becomes in the given time. What is not the
    /// caller's is not there, however long it waits.
    pub async fn read(
        &self,
        caller: &Caller,
        subject: Subject,
        id: &str,
        fresh: &Freshness,
    ) -> Result<Found, Problem> {
        self.check_views()?;
        let unknown = || Problem::not_found(format!("there is no {subject} {id}"));
        let look = async || {
            let found = self.views.document(subject, id).await?;
            Ok::<_, Problem>(found.filter(|found| may_read(caller, subject, id, found)))
        };
        let mut found = look().await?;
        let version = fresh.min_version.unwrap_or(0);
        let there =
            |found: &Option<Document>| found.as_ref().is_some_and(|it| it.version >= version);
        if fresh.min_version.is_some() && !there(&found) {
            let wait = fresh.wait_ms.map_or(USUAL_WAIT, Duration::from_millis).min(MAX_WAIT);
            let deadline = Instant::now() + wait;
            let waiter = self.wait_for(vec![format!("{subject}/{id}")])?;
            let mut in_time = true;
            loop {
                found = look().await?;
                if there(&found) || !in_time {
                    break;
                }
                // Whatever ends the waiting, there is a last look.
                in_time = waiter.changed(deadline).await;
            }
        }
        let document = found.ok_or_else(unknown)?;
        Ok(Found { not_yet: document.version < version, document })
    }

    /// Begins to listen for changes of `keys`.
    pub fn wait_for(&self, keys: Vec<String>) -> Result<Waiter, Problem> {
        let waiter = self.waiters.register(keys);
        waiter.ok_or_else(|| Problem::overloaded("too many requests wait for a change"))
    }
}

/// Whether a document is the caller's to read; products are everybody's.
fn may_read(caller: &Caller, subject: Subject, id: &str, document: &Document) -> bool {
    /// The part of an order that tells whose it is.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Owned<'d> {
        customer_id: Cow<'d, str>,
    }
    match subject {
        Subject::Product => true,
        _ if caller.on_behalf_of().is_none() => true,
        Subject::Customer => caller.sees(id),
        Subject::Order => serde_json::from_str(&document.json)
            .is_ok_and(|Owned { customer_id }| caller.sees(&customer_id)),
        Subject::Command => false,
    }
}

/// What was found as an answer: 202 if it is not what was asked for yet. Its version is its `ETag`
/// in any case.
pub fn found(headers: &HeaderMap, found: Found) -> Response {
    if !found.not_yet {
        return document(headers, found.document);
    }
    let mut response = document(&HeaderMap::new(), found.document);
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

/// A document as an answer: its version is its `ETag`. 304 if the client has it already.
pub fn document(headers: &HeaderMap, document: Document) -> Response {
    let tag = format!("\"{}\"", document.version);
    let has = |value: &HeaderValue| {
        value.to_str().is_ok_and(|text| {
            // Compared weakly (RFC 9110, 13.1.2).
            let known = text.split(',').map(|known| known.trim().trim_start_matches("W/"));
            known.into_iter().any(|known| known == tag || known == "*")
        })
    };
    let mut response = if headers.get_all(IF_NONE_MATCH).iter().any(has) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(CONTENT_TYPE, JSON)], document.json).into_response()
    };
    // A number in quotes is always a header's value.
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// A customer as it is shown: with the credit in use and what is left, in the limit's currency.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CustomerView {
    customer_id: CustomerId,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    credit_limit: Option<Money>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credit_used: Option<Money>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credit_available: Option<Money>,
    version: u64,
}

/// Shows a customer's credit as money.
pub fn with_credit(document: &Document) -> Result<Document, Problem> {
    let damaged = |error: serde_json::Error| {
        tracing::error!(%error, "the view of a customer is damaged");
        Problem::internal()
    };
    let customer: Customer = serde_json::from_str(&document.json).map_err(damaged)?;
    let money = |amount: i64| customer.credit_limit.map(|l| Money::new(amount, l.currency));
    // A limit may be set below what is in use.
    let left = |limit: Money| (limit.amount - customer.credit_used).max(0);
    let shown = CustomerView {
        credit_limit: customer.credit_limit,
        credit_used: money(customer.credit_used),
        credit_available: customer.credit_limit.map(left).and_then(money),
        version: customer.version,
        customer_id: customer.customer_id,
        name: customer.name,
    };
    let json = serde_json::to_string(&shown).map_err(damaged)?;
    Ok(Document { json, version: document.version })
}

/// A page of a list as an answer.
pub fn page(page: Page) -> Response {
    items(&page.items, page.next_cursor, None)
}

/// Documents as the items of an answer, what comes after them, and how many there are in all, if that is
/// told. They are taken as they are, as a single one is: reading them would cost more than all else here.
pub fn items(documents: &[String], next: Option<String>, count: Option<u64>) -> Response {
    let documents = documents.join(",");
    let next = Value::from(next);
    let count = count.map(|count| format!(",\"count\":{count}")).unwrap_or_default();
    let json = format!("{{\"items\":[{documents}],\"nextCursor\":{next}{count}}}");
    ([(CONTENT_TYPE, JSON)], json).into_response()
}

/// The number of items that a page may have.
pub fn limit(asked: Option<usize>) -> Result<usize, Problem> {
    let limit = asked.unwrap_or(USUAL_LIMIT);
    if (1..=MAX_LIMIT).contains(&limit) {
        return Ok(limit);
    }
    let detail = format!("must be from 1 to {MAX_LIMIT}");
    Err(Problem::field(FieldError::new("limit", "out_of_range", detail)))
}
