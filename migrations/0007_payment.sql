-- What payment remembers of a gateway that keeps its book elsewhere: which of its payments belongs to
-- which order. It is written before anything is asked that may cost somebody money, so that whatever
-- dies, the gateway is asked about that very payment and no other is begun.
create schema payment;
comment on schema payment is 'What payment remembers of a gateway whose book is elsewhere; not used with the sandbox';

create table payment.intents (
    key            text primary key,
    nonce          uuid not null default gen_random_uuid(),
    intent_id      text unique,
    amount         bigint check (amount >= 0),
    currency       text check (currency ~ '^[A-Z]{3}$'),
    outcome        text check (outcome in ('succeeded', 'declined', 'voided')),
    decline_code   text,
    refund_id      text unique,
    refund_claimed timestamptz,
    calls          integer not null default 1,
    created_at     timestamptz not null default now(),
    updated_at     timestamptz not null default now(),
    constraint a_charge_has_its_intent check (outcome <> 'succeeded' or intent_id is not null),
    constraint only_a_charge_is_refunded check (refund_id is null or outcome = 'succeeded')
);
comment on table payment.intents is 'One row for each order that is paid by card, from before the gateway is asked';
comment on column payment.intents.key is 'Of the charge: charge-ORDER';
comment on column payment.intents.nonce is 'Part of the idempotency keys at the gateway: another system on the same account has others';
comment on column payment.intents.intent_id is 'The gateway''s name of the payment (Stripe: pi_…); null until it has been begun there';
comment on column payment.intents.amount is 'Minor units of the currency; null where the payment was called off before it was begun';
comment on column payment.intents.outcome is 'As the gateway has said; null until it has';
comment on column payment.intents.refund_claimed is 'When a replica began to give it back: for a while no other does';
comment on column payment.intents.calls is 'How often a charge was asked for';
create index intents_open on payment.intents (created_at) where outcome is null;

do $$
declare
    db text := current_database();
    who text;
    rights text;
begin
    for who, rights in values
        -- Nothing is ever removed from it.
        ('payment',  'select, insert, update'),
        -- Checks, and explains orders.
        ('operator', 'select'),
        ('api',      'select')
    loop
        execute format('grant usage on schema payment to %I', db || '_' || who);
        execute format('grant %s on payment.intents to %I', rights, db || '_' || who);
    end loop;
end
$$;
