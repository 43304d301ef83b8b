//! The sums of the reports in Redis are what SQL over the journal gives, bucket by bucket.
//!
//! Views and journal are never at quite the same place in a running system. So each sum is held
//! against two: at least what is older than the settling time must be in it, and nothing that the
//! journal does not have at the next look. In a bucket that is over, and in a system that stands
//! still, the two are the same.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Result;
use futures_util::future::try_join_all;
use millrace_shared::message::now;
use millrace_shared::views::{By, Range, ViewError};
use sqlx::types::chrono::{DateTime, Utc};

use super::Data;
use super::engine::{Check, Found};

/// What happened to orders in a day: in which minute, hour and day, currency and measure.
const SALES: &str = "
with happened as (
    select type, occurred_at, occurred_at < $3 as settled, state,
           state->'total'->>'currency' as currency,
           (state->'total'->>'amount')::bigint as amount,
           state->'payment'->>'method' = 'card' as card
    from journal.events as event
    where subject = 'order' and occurred_at >= $1 and occurred_at < $2
      and (type = 'paid'
           or (type = 'rejected' and version > 1)
           or (type = 'refunded' and exists (
                  select from journal.events as paid
                  where paid.subject = 'order' and paid.subject_id = event.subject_id
                    and paid.type = 'paid')))
)
select concat_ws(' ', span, to_char(date_trunc(span, occurred_at at time zone 'utc'),
                                    'YYYY-MM-DD\"T\"HH24:MI'), currency, measure),
       coalesce(sum(count) filter (where settled), 0)::bigint, sum(count)::bigint
from happened
cross join unnest(array['minute', 'hour', 'day']) as span
cross join lateral (
    values ('orders', (type = 'paid')::integer::bigint),
           ('orders by card', (type = 'paid' and card)::integer::bigint),
           ('units', case type when 'paid' then (
                select sum((line->>'quantity')::bigint)::bigint
                from jsonb_array_elements(state->'lines') as line) end),
           ('gross', case type when 'paid' then amount end),
           ('refunds', (type = 'refunded')::integer::bigint),
           ('refunded', case type when 'refunded' then amount end),
           ('declined', (type = 'rejected')::integer::bigint)
) as measures (measure, count)
where count <> 0
group by 1";

/// The lines that were paid in a day, and how long it took.
const PAID: &str = "
with paid as (
    select occurred_at, occurred_at < $3 as settled, state,
           to_char(date_trunc(span, occurred_at at time zone 'utc'), 'YYYY-MM-DD\"T\"HH24:MI') as at,
           span
    from journal.events cross join unnest(array['hour', 'day']) as span
    where subject = 'order' and type = 'paid' and occurred_at >= $1 and occurred_at < $2
),
counted as (
    select settled, (line->>'quantity')::bigint as count,
           concat_ws(' ', span, at, 'units of', line->>'productId',
                     line->'unitPrice'->>'currency', line->'unitPrice'->>'amount',
                     coalesce(line->>'brand', '')) as label
    from paid cross join jsonb_array_elements(state->'lines') as line
    union all
    select settled, 1,
           concat_ws(' ', span, at, 'paid within', greatest(0, floor(1000 * extract(
                     epoch from occurred_at - (state->>'placedAt')::timestamptz)))::bigint, 'ms')
    from paid
)
select label, coalesce(sum(count) filter (where settled), 0)::bigint, sum(count)::bigint
from counted group by 1";

/// Orders by status. One that has just changed may be counted in any.
const STATUS: &str = "
select status || coalesce('/' || reason, ''), count(*) filter (where updated_at < $1),
       count(*) filter (where updated_at >= $1)
from journal.orders group by 1";

type Sums = BTreeMap<String, i64>;

/// What is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sheet {
    Status,
    /// By the time at which it begins.
    Day(DateTime<Utc>),
}

/// Sums as they were at a time.
#[derive(Debug, Clone)]
pub struct Seen {
    sheet: Sheet,
    at: DateTime<Utc>,
    /// Or why they cannot be read.
    sums: Result<Sums, String>,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sheet {
            Sheet::Status => f.write_str("the report of orders by status"),
            Sheet::Day(at) => write!(f, "the reports of {}", at.format("%Y-%m-%d")),
        }
    }
}

/// What each sum is at least and at most.
#[derive(Debug, Default)]
struct Bounds {
    sums: BTreeMap<String, (i64, i64)>,
    /// What a sum that is not among them may be.
    unknown: i64,
}

impl Bounds {
    /// The first sum that is not within them.
    fn broken(&self, seen: &Sums) -> Option<String> {
        let labels = self.sums.keys().chain(seen.keys());
        labels.into_iter().find_map(|label| {
            let (least, most) = self.sums.get(label).copied().unwrap_or((0, self.unknown));
            let sum = seen.get(label).copied().unwrap_or_default();
            let expected =
                if least == most { least.to_string() } else { format!("{least} to {most}") };
            (!(least..=most).contains(&sum))
                .then(|| format!("{label} is {sum} instead of {expected}"))
        })
    }
}

/// The check of the reports.
pub struct Reports {
    data: Data,
}

impl Reports {
    pub fn new(data: Data) -> Self {
        Self { data }
    }

    async fn see(&self, sheet: Sheet) -> Result<Seen> {
        let at = now();
        let read = match sheet {
            Sheet::Status => self.data.views.orders_by_status().await,
            Sheet::Day(day) => Box::pin(self.day(day)).await.map(|sums| sums.into_iter().collect()),
        };
        let sums = match read {
            Ok(sums) => Ok(sums.into_iter().filter(|(_, sum)| *sum != 0).collect()),
            Err(ViewError::Absent) => Ok(Sums::new()),
            Err(ViewError::Damaged(key)) => Err(format!("the view {key} cannot be read")),
            Err(error) => return Err(error.into()),
        };
        Ok(Seen { sheet, at, sums })
    }

    /// All that a day has, under the labels that SQL gives it.
    async fn day(&self, day: DateTime<Utc>) -> Result<Vec<(String, i64)>, ViewError> {
        let views = &self.data.views;
        let whole = |by: By| Range { by, from: day, to: day + By::Day.length() };
        let mut sums = Vec::new();
        for (by, span) in [(By::Minute, "minute"), (By::Hour, "hour"), (By::Day, "day")] {
            for ((at, currency), sales) in views.sales(whole(by)).await? {
                let (at, currency) = (at.format("%Y-%m-%dT%H:%M"), currency.code());
                let label = |measure: &str| format!("{span} {at} {currency} {measure}");
                sums.extend([
                    (label("orders"), sales.orders),
                    (label("orders by card"), sales.by_card),
                    (label("units"), sales.units),
                    (label("gross"), sales.gross),
                    (label("refunds"), sales.refunds),
                    (label("refunded"), sales.refunded),
                    (label("declined"), sales.declined),
                ]);
            }
        }
        let hours = whole(By::Hour).starts().map(|from| Range {
            by: By::Hour,
            from,
            to: from + By::Hour.length(),
        });
        let spans = hours.map(|hour| ("hour", hour)).chain([("day", whole(By::Hour))]);
        let found = try_join_all(spans.map(async |(span, range)| {
            let found = tokio::try_join!(views.sold(range), views.times_to_paid(range))?;
            Ok::<_, ViewError>((span, range.from, found))
        }));
        for (span, at, (sold, times)) in found.await? {
            let at = at.format("%Y-%m-%dT%H:%M");
            sums.extend(sold.into_iter().map(|it| {
                let (product, currency) = (it.product_id, it.currency.code());
                let (price, brand) = (it.unit_price, it.brand);
                let label = format!("{span} {at} units of {product} {currency} {price} {brand}");
                (label, it.units)
            }));
            let label = |took: u64| format!("{span} {at} paid within {took} ms");
            sums.extend(times.into_iter().map(|(took, count)| (label(took), count)));
        }
        Ok(sums)
    }

    /// What the journal says of sums that were seen.
    async fn bounds(&self, seen: &Seen) -> Result<Bounds> {
        let settled = seen.at - self.data.settle;
        let mut bounds = Bounds::default();
        match seen.sheet {
            Sheet::Status => {
                let rows: Vec<(String, i64, i64)> =
                    sqlx::query_as(STATUS).bind(settled).fetch_all(&self.data.pool).await?;
                let recent = rows.iter().map(|row| row.2).sum();
                bounds.unknown = recent;
                bounds.sums =
                    rows.into_iter().map(|(label, it, _)| (label, (it, it + recent))).collect();
            }
            Sheet::Day(day) => {
                for query in [SALES, PAID] {
                    let rows: Vec<(String, i64, i64)> = sqlx::query_as(query)
                        .bind(day)
                        .bind(day + By::Day.length())
                        .bind(settled)
                        .fetch_all(&self.data.pool)
                        .await?;
                    bounds.sums.extend(rows.into_iter().map(|row| (row.0, (row.1, row.2))));
                }
            }
        }
        Ok(bounds)
    }

    /// How many sums there are, and what is wrong with them.
    async fn judge(&self, seen: &Seen) -> Result<(usize, Option<String>)> {
        let bounds = self.bounds(seen).await?;
        let problem = match &seen.sums {
            Ok(sums) => bounds.broken(sums),
            Err(problem) => Some(problem.clone()),
        };
        Ok((bounds.sums.len(), problem))
    }
}

impl Check for Reports {
    type Key = Seen;
    const NAME: &'static str = "reports";
    const PROMISE: &'static str = "sum of the reports in Redis is what the journal gives";

    async fn scan(&self, found: &mut Found<Seen>) -> Result<()> {
        let first: Option<DateTime<Utc>> =
            sqlx::query_scalar("select min(occurred_at) from journal.events")
                .fetch_one(&self.data.pool)
                .await?;
        let today = now();
        let days = Range::covering(By::Day, first.unwrap_or(today).min(today), today);
        let sheets = days.starts().map(Sheet::Day).chain([Sheet::Status]);
        for sheet in sheets {
            let seen = self.see(sheet).await?;
            let (checked, problem) = self.judge(&seen).await?;
            found.note(checked, problem.map(|problem| (seen, problem)).into_iter().collect());
        }
        Ok(())
    }

    /// Judges what was seen at the last look, and what is wrong then is seen anew for the next.
    async fn examine(&self, keys: &[Seen]) -> Result<Vec<(Seen, String)>> {
        let mut wrong = Vec::new();
        for seen in keys {
            if let (_, Some(problem)) = self.judge(seen).await? {
                wrong.push((self.see(seen.sheet).await?, problem));
            }
        }
        Ok(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(sums: &[(&str, i64)]) -> Sums {
        sums.iter().map(|(label, sum)| ((*label).to_owned(), *sum)).collect()
    }

    #[test]
    fn a_sum_that_is_missing_too_small_too_large_or_unknown_is_named() {
        let known = [("a".to_owned(), (2, 5)), ("b".to_owned(), (0, 3))];
        let bounds = Bounds { sums: known.into(), unknown: 1 };
        let good: [&[(&str, i64)]; 3] = [&[("a", 2)], &[("a", 5), ("b", 3)], &[("a", 4), ("c", 1)]];
        for good in good {
            assert_eq!(bounds.broken(&sums(good)), None);
        }
        let broken = |bad: &[(&str, i64)]| bounds.broken(&sums(bad)).unwrap();
        assert_eq!(broken(&[]), "a is 0 instead of 2 to 5");
        assert_eq!(broken(&[("a", 6)]), "a is 6 instead of 2 to 5");
        assert_eq!(broken(&[("a", 2), ("b", -1)]), "b is -1 instead of 0 to 3");
        assert_eq!(broken(&[("a", 2), ("c", 2)]), "c is 2 instead of 0 to 1");
    }
}
