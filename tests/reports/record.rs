//! The same reports, by SQL over the journal.

use serde_json::Value;

use crate::harness::System;

const SALES: &str = "
with happened as (
    select date_trunc($1, occurred_at at time zone 'utc') as at, type,
           state->'total'->>'currency' as currency, (state->'total'->>'amount')::bigint as amount,
           (select sum((line->>'quantity')::int) from jsonb_array_elements(state->'lines') line)
               as units
    from journal.events event
    where subject = 'order' and occurred_at >= $2::timestamptz and occurred_at < $3::timestamptz
      and (type = 'paid' or (type = 'refunded' and exists (
              select from journal.events paid
              where paid.subject_id = event.subject_id and paid.type = 'paid')))
),
currencies as (
    select distinct currency from happened
    union
    select distinct state->'total'->>'currency' from journal.events
    where subject = 'order' and type = 'rejected' and version > 1
      and occurred_at >= $2::timestamptz and occurred_at < $3::timestamptz
),
buckets as (
    select bucket from generate_series($2::timestamptz at time zone 'utc',
        $3::timestamptz at time zone 'utc' - interval '1 us', ('1 ' || $1)::interval) as bucket
)
select coalesce(jsonb_agg(jsonb_build_object('from', to_char(bucket, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
    'currencies', (
    select coalesce(jsonb_agg(jsonb_build_object('currency', currency,
        'orders', orders, 'units', units, 'gross', jsonb_build_object('amount', gross, 'currency', currency),
        'refunds', refunds, 'refunded', jsonb_build_object('amount', refunded, 'currency', currency),
        'net', jsonb_build_object('amount', gross - refunded, 'currency', currency)
    ) order by currency), '[]')
    from currencies cross join lateral (
        select count(*) filter (where type = 'paid') as orders,
               coalesce(sum(units) filter (where type = 'paid'), 0) as units,
               coalesce(sum(amount) filter (where type = 'paid'), 0) as gross,
               count(*) filter (where type = 'refunded') as refunds,
               coalesce(sum(amount) filter (where type = 'refunded'), 0) as refunded
        from happened where at = bucket and happened.currency = currencies.currency
    ) as sums
)) order by bucket), '[]') from buckets";

const PAYMENTS: &str = "
select jsonb_build_object('paid', paid, 'declined', declined,
    'card', jsonb_build_object('paid', card, 'declined', declined))
from (
    select count(*) filter (where type = 'paid') as paid,
           count(*) filter (where type = 'paid' and state->'payment'->>'method' = 'card') as card,
           count(*) filter (where type = 'rejected' and version > 1) as declined
    from journal.events where subject = 'order'
      and occurred_at >= $1::timestamptz and occurred_at < $2::timestamptz
) as counts";

const STATUS: &str = "
select jsonb_object_agg(standing, orders) from (
    select status || coalesce('/' || reason, '') as standing, count(*) as orders
    from (select distinct on (subject_id) state->>'status' as status,
                 case state->>'status' when 'rejected' then state->>'reason' end as reason
          from journal.events where subject = 'order' order by subject_id, version desc) as last
    group by 1) as counts";

const TOP: &str = "
select coalesce(jsonb_agg(jsonb_build_object('currency', currency, 'items', items) order by currency), '[]')
from (
    select currency, jsonb_agg(jsonb_build_object('key', key, 'units', units,
               'amount', jsonb_build_object('amount', amount, 'currency', currency)) order by place) as items
    from (
        select *, row_number() over (partition by currency order by
            case $4 when 'amount' then amount else units end desc,
            case $4 when 'amount' then units else amount end desc, key collate \"C\") as place
        from (
            select line->'lineTotal'->>'currency' as currency, line->>$3 as key,
                   sum((line->>'quantity')::bigint) as units,
                   sum((line->'lineTotal'->>'amount')::bigint) as amount
            from journal.events cross join jsonb_array_elements(state->'lines') as line
            where subject = 'order' and type = 'paid'
              and occurred_at >= $1::timestamptz and occurred_at < $2::timestamptz
            group by 1, 2) as sums) as places
    where place <= $5 group by currency) as best";

const TIMES: &str = "
select jsonb_build_object('orders', count(*),
    'p50Ms', percentile_disc(0.50) within group (order by took),
    'p95Ms', percentile_disc(0.95) within group (order by took),
    'p99Ms', percentile_disc(0.99) within group (order by took), 'maxMs', max(took))
from (
    select floor(1000 * extract(epoch from occurred_at - (state->>'placedAt')::timestamptz))::bigint as took
    from journal.events where subject = 'order' and type = 'paid'
      and occurred_at >= $1::timestamptz and occurred_at < $2::timestamptz) as paid";

async fn ask(system: &System, query: &'static str, words: &[&str], limit: Option<i64>) -> Value {
    let mut query = sqlx::query_scalar(query);
    for word in words {
        query = query.bind((*word).to_owned());
    }
    if let Some(limit) = limit {
        query = query.bind(limit);
    }
    query.fetch_one(&system.pool).await.expect("the journal is read")
}

/// The buckets of `/v1/reports/sales`.
pub async fn sales(system: &System, by: &str, from: &str, to: &str) -> Value {
    ask(system, SALES, &[by, from, to], None).await
}

/// Paid and declined orders, all and by card.
pub async fn payments(system: &System, from: &str, to: &str) -> Value {
    ask(system, PAYMENTS, &[from, to], None).await
}

/// Orders by status, rejected ones by `rejected/REASON`.
pub async fn status(system: &System) -> Value {
    ask(system, STATUS, &[], None).await
}

/// The best by `amount` or `units`; `key` is `productId` or `brand`.
pub async fn top(
    system: &System,
    (from, to): (&str, &str),
    key: &str,
    by: &str,
    limit: i64,
) -> Value {
    ask(system, TOP, &[from, to, key, by], Some(limit)).await
}

/// How many orders were paid, and within which time.
pub async fn times(system: &System, from: &str, to: &str) -> Value {
    ask(system, TIMES, &[from, to], None).await
}
