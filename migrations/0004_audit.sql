-- What operators did to parked messages. Written before it is done: nothing is discarded that is not here.
create table journal.audit (
    id              bigint generated always as identity primary key,
    at              timestamptz not null default now(),
    actor           text not null,
    action          text not null,
    why             text,
    worker          text not null,
    stream          text not null,
    sequence        bigint not null,
    parked_sequence bigint not null,
    subject         text not null,
    reason          text not null,
    attempts        bigint not null,
    payload         bytea,
    headers         json
);
comment on table journal.audit is 'What operators did to parked messages, written before it is done';
comment on column journal.audit.action is 'replay or discard';
comment on column journal.audit.why is 'What the operator gave as the reason';
comment on column journal.audit.sequence is 'Its place in its own stream';
comment on column journal.audit.parked_sequence is 'Its place in PARKED';
comment on column journal.audit.reason is 'Why it was parked';
comment on column journal.audit.payload is 'Of what was discarded: the message itself';
comment on column journal.audit.headers is 'Of what was discarded: its own headers, by name';
create index audit_at on journal.audit (at desc);
-- A discard that was interrupted and is done again is written once.
create unique index audit_discarded on journal.audit (worker, stream, sequence, parked_sequence)
    where action = 'discard';
