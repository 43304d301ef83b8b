-- One role for each part of the system, with the rights that its work needs and no others. They are
-- named after the database (millrace_validation), since roles belong to the whole cluster. They
-- cannot log in before `millrace migrate --credentials` gives them passwords.
--
-- A migration that makes a table also grants what these roles need of it.
do $$
declare
    db text := current_database();
    who text;
    rights text;
begin
    foreach who in array array['api', 'desk', 'validation', 'payment', 'persistence', 'trim',
                               'projection', 'operator', 'reports'] loop
        begin
            execute format('create role %I nologin', db || '_' || who);
        exception when duplicate_object or unique_violation then
            null; -- It is left from an earlier database of this name, or made at this moment.
        end;
        execute format('grant connect on database %I to %I', db, db || '_' || who);
    end loop;
    execute format('revoke all on database %I from public', db);

    for who, rights in values
        -- Decides: the ledger. Orders that were trimmed from the log go on from the journal.
        ('validation',  'usage on schema ledger, journal'),
        ('validation',  'select, insert, update, delete on all tables in schema ledger'),
        ('validation',  'select on journal.events'),
        -- Charges: the sandbox gateway's book. Nothing is ever removed from it.
        ('payment',     'usage on schema sandbox'),
        ('payment',     'select, insert, update on all tables in schema sandbox'),
        -- Writes the journal. Nothing is ever removed from it, and the audit is not its own.
        ('persistence', 'usage on schema journal'),
        ('persistence', 'select, insert, update on journal.events, journal.orders,
                         journal.order_lines, journal.customers, journal.products'),
        -- Removes from the streams what the journal has.
        ('trim',        'usage on schema journal, ledger'),
        ('trim',        'select on journal.events, journal.orders, ledger.outbox'),
        -- Makes the views anew.
        ('projection',  'usage on schema journal, ledger'),
        ('projection',  'select on journal.events, journal.orders, ledger.outbox'),
        -- Shows the past of orders, and explains them.
        ('api',         'usage on schema journal, ledger, sandbox'),
        ('api',         'select on journal.events, journal.audit, ledger.decisions, ledger.orders,
                         ledger.reservations, sandbox.charges, sandbox.refunds'),
        -- Replays and discards for operators, and writes down that it does.
        ('desk',        'usage on schema journal'),
        ('desk',        'select, insert on journal.audit'),
        -- Checks everything, and puts what the journal lacks into it.
        ('operator',    'usage on schema journal, ledger, sandbox'),
        ('operator',    'select on all tables in schema journal, ledger, sandbox'),
        ('operator',    'insert, update on journal.events, journal.orders, journal.order_lines,
                         journal.customers, journal.products'),
        ('operator',    'insert on journal.audit'),
        -- Evaluates.
        ('reports',     'usage on schema journal'),
        ('reports',     'select on journal.events, journal.orders, journal.order_lines,
                         journal.customers, journal.products')
    loop
        execute format('grant %s to %I', rights, db || '_' || who);
    end loop;
end
$$;
