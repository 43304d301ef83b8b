-- What an order costs besides its rows.

-- The rows that these looked up are locked, and written, by the very transaction that adds a
-- reservation; neither orders nor products are ever removed. `millrace verify` compares both sides.
alter table ledger.reservations drop constraint reservations_order_id_fkey;
alter table ledger.reservations drop constraint reservations_product_id_fkey;

-- Nothing looks into the outbox by subject.
drop index ledger.outbox_subject;

-- Events come nearly in the order of their time: a few bytes for each megabyte of the table say as much.
drop index journal.events_occurred_at;
create index events_occurred_at on journal.events using brin (occurred_at) with (autosummarize = on);
