-- The ledger is validation's: what it needs to decide, and what it has decided.
-- Its constraints hold promise P4 even against a defect in the program.
create schema ledger;
comment on schema ledger is 'What validation needs to decide, and what it has decided';

create table ledger.customers (
    customer_id  text primary key,
    name         text not null,
    credit_limit bigint check (credit_limit >= 0),
    currency     text check (currency ~ '^[A-Z]{3}$'),
    credit_used  bigint not null default 0 check (credit_used >= 0),
    version      bigint not null,
    touched      boolean not null default false,
    constraint a_limit_has_a_currency check ((credit_limit is null) = (currency is null))
);
comment on table ledger.customers is 'Credit limits and the credit in use, in minor units';
comment on column ledger.customers.credit_used is 'Sum of the account orders that have not ended';
comment on column ledger.customers.version is 'Version of the last event';
comment on column ledger.customers.touched is 'Changed since the last event: the relay will tell it';
create index customers_touched on ledger.customers (customer_id) where touched;

create table ledger.products (
    product_id text primary key,
    name       text not null,
    brand      text not null,
    category   text not null,
    price      bigint not null check (price >= 0),
    currency   text not null check (currency ~ '^[A-Z]{3}$'),
    active     boolean not null,
    received   bigint not null check (received >= 0),
    available  bigint not null check (available >= 0),
    reserved   bigint not null check (reserved >= 0),
    sold       bigint not null check (sold >= 0),
    version    bigint not null,
    touched    boolean not null default false,
    constraint every_piece_is_somewhere check (received = available + reserved + sold)
);
comment on table ledger.products is 'The catalogue and its stock, in pieces; prices in minor units';
comment on column ledger.products.received is 'All pieces that ever came in';
comment on column ledger.products.available is 'Free to be sold';
comment on column ledger.products.reserved is 'Held for orders that have not been shipped';
comment on column ledger.products.sold is 'Shipped';
comment on column ledger.products.touched is 'Changed since the last event: the relay will tell it';
create index products_touched on ledger.products (product_id) where touched;

create table ledger.orders (
    order_id    uuid primary key,
    customer_id text not null,
    stock       text not null check (stock in ('none', 'held', 'released', 'sold')),
    credit      bigint not null check (credit >= 0),
    credit_held boolean not null
);
comment on table ledger.orders is 'What each order holds of stock and credit: what is released once';
comment on column ledger.orders.stock is 'none: rejected at once; held; released: given back; sold: shipped';
comment on column ledger.orders.credit is 'Minor units of the customer''s credit; 0 for card orders';

create table ledger.reservations (
    order_id   uuid not null references ledger.orders,
    product_id text not null references ledger.products,
    quantity   bigint not null check (quantity > 0),
    primary key (order_id, product_id)
);
comment on table ledger.reservations is 'Pieces that an order has reserved, for ever: orders.stock tells what became of them';

create table ledger.decisions (
    command_id  uuid primary key,
    key_id      uuid,
    fingerprint uuid not null,
    subject     text not null,
    subject_id  text not null,
    reason      text,
    detail      text,
    decided_at  timestamptz not null
);
comment on table ledger.decisions is 'The one decision about each command';
comment on column ledger.decisions.key_id is 'Derived from the idempotency key, on the first command that used it';
comment on column ledger.decisions.fingerprint is 'Of the body: tells a repeated command from another one';
comment on column ledger.decisions.reason is 'Null if accepted';
create unique index decisions_key on ledger.decisions (key_id) where key_id is not null;

create table ledger.outbox (
    id         bigint generated always as identity primary key,
    command_id uuid,
    subject    text not null,
    subject_id text not null,
    version    bigint not null,
    event      text not null,
    created_at timestamptz not null default now()
);
comment on table ledger.outbox is 'Events that are decided and not yet known to be in the log';
comment on column ledger.outbox.command_id is 'Whose redelivery publishes it again';
create index outbox_subject on ledger.outbox (subject, subject_id);
create index outbox_command on ledger.outbox (command_id);
