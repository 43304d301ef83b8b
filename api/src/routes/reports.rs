//! Reports of the shop, from the views. Only there with `--operator-routes`.

pub mod sales;
pub mod top;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderValue;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Datelike as _, Utc};
use millrace_shared::command::FieldError;
use millrace_shared::message::now;
use millrace_shared::order::OrderStatus;
use millrace_shared::views::{By, Range};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, IntoResponses, ToSchema};

use crate::App;
use crate::error::{Body, Problem};
use crate::request::parameters;

/// Buckets of one answer.
const MOST_BUCKETS: u64 = 1_500;
/// Days that products, brands and times may be asked for at once.
const MOST_DAYS: u64 = 366;
/// The hours that a report is about if neither end is said.
const USUAL_HOURS: i32 = 24;
/// The buckets that a report has if its beginning is not said.
const USUAL_BUCKETS: i32 = 30;

/// The time that a report is about, and the length of its buckets.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct BucketsQuery {
    /// The length of a bucket; `day` if it is not said.
    #[param(inline)]
    by: Option<By>,
    /// Widened to a whole bucket. 30 buckets before the end if it is not said.
    from: Option<DateTime<Utc>>,
    /// Widened likewise, and not in the range; now if it is not said.
    to: Option<DateTime<Utc>>,
}

/// The time that a report is about.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RangeQuery {
    /// Widened to a whole hour. 24 hours before the end if it is not said.
    from: Option<DateTime<Utc>>,
    /// Widened likewise, and not in the range; now if it is not said.
    to: Option<DateTime<Utc>>,
}

/// The answer to who asks for too much at once.
#[derive(IntoResponses)]
#[response(
    status = UNPROCESSABLE_ENTITY, content_type = "application/problem+json",
    description = "More is asked for than one answer may hold"
)]
#[expect(dead_code, reason = "only its schema is used")]
struct TooMuch(#[to_schema] Body);

/// Orders in each status.
#[derive(Debug, Serialize, ToSchema)]
struct Statuses {
    orders: i64,
    statuses: Vec<InStatus>,
}

#[derive(Debug, Serialize, ToSchema)]
struct InStatus {
    status: OrderStatus,
    orders: i64,
    /// Only of those that were rejected.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<ForReason>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ForReason {
    reason: String,
    orders: i64,
}

/// How many orders are in each status now, and why those that were rejected are.
#[utoipa::path(
    get, path = "/v1/reports/status", tag = "operators",
    responses((status = OK, description = "The report", body = Statuses))
)]
pub async fn status(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    app.check_views()?;
    let found = app.views.orders_by_status().await?;
    let found: BTreeMap<String, i64> = found.into_iter().filter(|(_, it)| *it != 0).collect();
    let statuses = OrderStatus::ALL.map(|status| {
        let reasons = found.iter().filter_map(|(standing, orders)| {
            let (of, reason) = standing.split_once('/')?;
            let reason = ForReason { reason: reason.to_owned(), orders: *orders };
            (of == status.as_str()).then_some(reason)
        });
        let reasons: Vec<ForReason> = reasons.collect();
        let plain = found.get(status.as_str()).copied().unwrap_or_default();
        let orders = plain + reasons.iter().map(|it| it.orders).sum::<i64>();
        InStatus { status, orders, reasons }
    });
    let orders = statuses.iter().map(|it| it.orders).sum();
    Ok(answer(Statuses { orders, statuses: statuses.into() }))
}

/// How long it took from the placing of an order to its payment.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Times {
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    orders: i64,
    #[schema(required)]
    p50_ms: Option<u64>,
    #[schema(required)]
    p95_ms: Option<u64>,
    #[schema(required)]
    p99_ms: Option<u64>,
    #[schema(required)]
    max_ms: Option<u64>,
}

/// How long it took from the placing of orders to their payment, for those paid in a time.
#[utoipa::path(
    get, path = "/v1/reports/time-to-paid", tag = "operators", params(RangeQuery),
    responses((status = OK, description = "The report", body = Times), TooMuch)
)]
pub async fn time_to_paid(
    State(app): State<Arc<App>>,
    query: Result<Query<RangeQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let RangeQuery { from, to } = parameters(query)?;
    let range = hours(from, to)?;
    app.check_views()?;
    let times = app.views.times_to_paid(range).await?;
    let orders = times.values().sum();
    Ok(answer(Times {
        from: range.from,
        to: range.to,
        orders,
        p50_ms: percentile(&times, orders, 50),
        p95_ms: percentile(&times, orders, 95),
        p99_ms: percentile(&times, orders, 99),
        max_ms: percentile(&times, orders, 100),
    }))
}

/// The shortest time within which so many of a hundred orders were paid.
fn percentile(times: &BTreeMap<u64, i64>, orders: i64, percent: i64) -> Option<u64> {
    let mut within = 0;
    times.iter().find_map(|(time, count)| {
        within += count;
        (*count > 0 && within * 100 >= orders * percent).then_some(*time)
    })
}

/// A report goes on changing as long as orders do.
fn answer<T: Serialize>(report: T) -> Response {
    let no_cache = HeaderValue::from_static("no-cache");
    ([(CACHE_CONTROL, no_cache)], Json(report)).into_response()
}

fn buckets(query: &BucketsQuery) -> Result<Range, Problem> {
    let by = query.by.unwrap_or_default();
    let range = range(by, query.from, query.to, by.length() * USUAL_BUCKETS)?;
    if range.buckets() <= MOST_BUCKETS {
        return Ok(range);
    }
    let (count, coarser) = (range.buckets(), "ask for less time, or by=hour or by=day");
    let detail = format!("{count} buckets are more than {MOST_BUCKETS}: {coarser}");
    Err(Problem::too_much(FieldError::new("from", "out_of_range", detail)))
}

fn hours(from: Option<DateTime<Utc>>, to: Option<DateTime<Utc>>) -> Result<Range, Problem> {
    let range = range(By::Hour, from, to, By::Hour.length() * USUAL_HOURS)?;
    if range.buckets() <= MOST_DAYS * 24 {
        return Ok(range);
    }
    let detail = format!("the time must not be longer than {MOST_DAYS} days");
    Err(Problem::too_much(FieldError::new("from", "out_of_range", detail)))
}

/// Whole buckets from `from` to `to`, or to now; without a beginning, `usual` before the end.
fn range(
    by: By,
    from: Option<DateTime<Utc>>,
    to: Option<DateTime<Utc>>,
    usual: chrono::TimeDelta,
) -> Result<Range, Problem> {
    for (field, time) in [("from", from), ("to", to)] {
        if time.is_some_and(|time| !(1970..=9998).contains(&time.year())) {
            let detail = "must be in the years from 1970 to 9998";
            return Err(Problem::field(FieldError::new(field, "out_of_range", detail)));
        }
    }
    let to = by.ceiling(to.unwrap_or_else(now));
    let from = from.unwrap_or(to - usual);
    if from >= to {
        let detail = "must be before the end of the time asked for";
        return Err(Problem::field(FieldError::new("from", "invalid", detail)));
    }
    Ok(Range::covering(by, from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_occurred() {
        let times: BTreeMap<u64, i64> = [(5, 50), (6, 0), (9, 45), (70, 4), (900, 1)].into();
        let of = |percent| percentile(&times, 100, percent);
        assert_eq!([50, 51, 95, 99, 100].map(of), [5, 9, 9, 70, 900].map(Some));
        assert_eq!(percentile(&BTreeMap::new(), 0, 50), None);
        assert_eq!(percentile(&[(7, 1)].into(), 1, 50), Some(7));
    }

    #[test]
    fn the_time_that_is_not_said_ends_now_and_never_before_it_begins() {
        let query = BucketsQuery { by: Some(By::Minute), from: None, to: None };
        let range = buckets(&query).unwrap();
        assert_eq!(range.buckets(), 30);
        assert!(range.to >= now() && range.from < now());
        let later = Some(now() + By::Day.length());
        assert!(hours(later, None).is_err());
        assert!(hours(None, "1970-01-01T00:00:00Z".parse().ok()).is_ok());
    }
}
