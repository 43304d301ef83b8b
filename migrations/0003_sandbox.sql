-- The book of the sandbox gateway: what a real gateway keeps on its side. It is durable, so that a
-- restart shows that nothing is charged twice.
create schema sandbox;
comment on schema sandbox is 'The book of the sandbox payment gateway; not used with a real one';

create table sandbox.charges (
    idempotency_key text primary key,
    charge_id       text not null unique,
    outcome         text not null check (outcome in ('pending', 'succeeded', 'declined', 'voided')),
    decline_code    text,
    amount          bigint not null check (amount >= 0),
    currency        text not null,
    calls           integer not null default 1,
    created_at      timestamptz not null default now()
);
comment on table sandbox.charges is 'One row for each idempotency key, whatever often it was called';
comment on column sandbox.charges.outcome is 'pending: the call failed before the charge; voided: no charge may follow';
comment on column sandbox.charges.calls is 'How often the key was presented';

create table sandbox.refunds (
    idempotency_key text primary key,
    refund_id       text not null unique,
    charge_id       text not null unique references sandbox.charges (charge_id),
    amount          bigint not null check (amount >= 0),
    currency        text not null,
    created_at      timestamptz not null default now()
);
comment on table sandbox.refunds is 'One refund for each charge at the most';
