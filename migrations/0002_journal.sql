-- The journal is persistence's: every event, and the state after the last one in plain columns.
create schema journal;
comment on schema journal is 'The record: every event, and the current state to query with SQL';

create table journal.events (
    subject     text not null check (subject in ('order', 'customer', 'product', 'command')),
    subject_id  text not null,
    version     bigint not null check (version > 0),
    event_id    uuid not null,
    type        text not null,
    schema      integer not null,
    occurred_at timestamptz not null,
    causation   uuid not null,
    correlation uuid not null,
    sequence    bigint not null,
    data        jsonb not null,
    state       jsonb not null,
    primary key (subject, subject_id, version)
);
comment on table journal.events is 'Every event, for ever; versions of a subject run from 1 without a gap';
comment on column journal.events.causation is 'The command or event that caused it';
comment on column journal.events.correlation is 'The command at the beginning of the chain of causes';
comment on column journal.events.sequence is 'Its place in the EVENTS stream';
comment on column journal.events.data is 'What happened';
comment on column journal.events.state is 'The subject after it';
create index events_correlation on journal.events (correlation);
create index events_occurred_at on journal.events (occurred_at);

create table journal.orders (
    order_id        uuid primary key,
    customer_id     text not null,
    status          text not null,
    version         bigint not null,
    total           bigint,
    currency        text,
    payment_method  text not null,
    payment_status  text not null,
    charge_id       text,
    refund_id       text,
    carrier         text,
    tracking_number text,
    reason          text,
    detail          text,
    command_id      uuid not null,
    placed_at       timestamptz not null,
    updated_at      timestamptz not null
);
comment on table journal.orders is 'Every order as it now is; amounts in minor units of the currency';
comment on column journal.orders.reason is 'Why it was rejected';
comment on column journal.orders.placed_at is 'When the command was stored';
create index orders_customer on journal.orders (customer_id, placed_at desc);
create index orders_status on journal.orders (status, placed_at desc);
create index orders_placed_at on journal.orders (placed_at desc);

create table journal.order_lines (
    order_id   uuid not null,
    line       integer not null check (line > 0),
    product_id text not null,
    name       text,
    brand      text,
    quantity   bigint not null check (quantity > 0),
    unit_price bigint,
    line_total bigint,
    currency   text,
    primary key (order_id, line)
);
comment on table journal.order_lines is 'The lines of every order, as bought';
create index order_lines_product on journal.order_lines (product_id);

create table journal.customers (
    customer_id  text primary key,
    name         text not null,
    credit_limit bigint,
    currency     text,
    credit_used  bigint not null,
    version      bigint not null,
    updated_at   timestamptz not null
);
comment on table journal.customers is 'Every customer as it now is; amounts in minor units';

create table journal.products (
    product_id text primary key,
    name       text not null,
    brand      text not null,
    category   text not null,
    price      bigint not null,
    currency   text not null,
    active     boolean not null,
    available  bigint not null,
    reserved   bigint not null,
    sold       bigint not null,
    version    bigint not null,
    updated_at timestamptz not null
);
comment on table journal.products is 'Every product as it now is; prices in minor units, stock in pieces';
create index products_category on journal.products (category, brand);
