-- Until when an order is to be paid: expiry looks for those that still wait after that. Which orders wait
-- it reads from the journal.
alter table ledger.orders add column pay_by timestamptz;
comment on column ledger.orders.pay_by is
    'Until when it is to be paid; null where nothing was to be paid, and where an earlier version placed it';

do $$
begin
    execute format('grant select on journal.orders to %I', current_database() || '_validation');
end
$$;
