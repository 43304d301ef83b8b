-- Who has signed in at the edge to give a command: the audit of what operators do to orders,
-- customers and products. Written with the decision, in its transaction.
alter table ledger.decisions add column actor text;
comment on column ledger.decisions.actor is
    'Who gave the command over HTTP, signed in; null where nobody had to, and for NATS clients';
