-- What an order costs the journal besides its rows.

-- Who looks for a command's event looks for events that a command caused itself.
drop index journal.events_correlation;
create index events_correlation on journal.events (correlation) where causation = correlation;

-- By their status those are looked for that are under way; nearly all orders are not.
drop index journal.orders_status;
create index orders_under_way on journal.orders (status, placed_at)
    where status in ('validated', 'payment_unknown', 'refunding');
