//! The outbox: events that are decided and not known to be in the log.

use std::collections::HashMap;

use anyhow::Result;
use millrace_shared::crash;
use millrace_shared::ids::CommandId;
use millrace_shared::message::Event;
use sqlx::{Connection as _, PgConnection, PgPool};
use uuid::Uuid;

use super::{Outbox, Turn, load, store};
use crate::book::Book;

/// The advisory lock of the one relay of a database ("millrace" in ASCII).
const LOCK: i64 = 0x6d69_6c6c_7261_6365;

/// The outbox in PostgreSQL, under an advisory lock. The lock belongs to this connection and ends
/// with it.
#[derive(Debug)]
pub struct PostgresOutbox {
    connection: PgConnection,
}

impl PostgresOutbox {
    /// Takes the lock, if it is free.
    pub(super) async fn lock(pool: &PgPool) -> Result<Option<Self>> {
        let mut connection = pool.acquire().await?.detach();
        let ours: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut connection)
            .await?;
        Ok(ours.then_some(Self { connection }))
    }
}

impl Outbox for PostgresOutbox {
    async fn tell(
        &mut self,
        turn: &mut Turn,
        most: i64,
        tell: impl FnOnce(&mut Book) -> Result<Vec<Event>> + Send,
    ) -> Result<bool> {
        // Nothing comes after what is null.
        let products: Vec<String> = sqlx::query_scalar(
            "select product_id from ledger.products where touched and product_id > $1
             order by product_id limit $2",
        )
        .bind(&turn.products)
        .bind(most)
        .fetch_all(&mut self.connection)
        .await?;
        let customers: Vec<String> = sqlx::query_scalar(
            "select customer_id from ledger.customers where touched and customer_id > $1
             order by customer_id limit $2",
        )
        .bind(&turn.customers)
        .bind(most)
        .fetch_all(&mut self.connection)
        .await?;
        *turn = Turn {
            products: Turn::after(&products, most),
            customers: Turn::after(&customers, most),
        };
        if products.is_empty() && customers.is_empty() {
            return Ok(false);
        }
        let mut tx = self.connection.begin().await?;
        let mut book = load::lock(&mut tx, products, customers).await?;
        let events = tell(&mut book)?;
        store::book(&mut tx, &book).await?;
        store::events(&mut tx, &events).await?;
        tx.commit().await?;
        crash::point("relay.told");
        Ok(true)
    }

    async fn waiting(&mut self, most: i64) -> Result<Vec<(i64, Event)>> {
        let rows: Vec<(i64, String)> = sqlx::query_as(
            "select id, event from ledger.outbox
             where subject in ('product', 'customer')
                or created_at < now() - interval '5 seconds'
             order by id limit $1",
        )
        .bind(most)
        .fetch_all(&mut self.connection)
        .await?;
        rows.into_iter().map(|(id, text)| Ok((id, Event::decode(text.as_bytes())?))).collect()
    }

    async fn remove(&mut self, places: &[i64]) -> Result<()> {
        sqlx::query("delete from ledger.outbox where id = any($1)")
            .bind(places)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }
}

/// See [`super::Ledger::unpublished`].
pub(super) async fn of_commands(
    pool: &PgPool,
    commands: &[CommandId],
) -> Result<HashMap<CommandId, Vec<Event>>> {
    let rows: Vec<(Uuid, String)> = sqlx::query_as(
        "select command_id, event from ledger.outbox
         where command_id = any($1) and subject in ('order', 'command') order by id",
    )
    .bind(uuids(commands))
    .fetch_all(pool)
    .await?;
    let mut events: HashMap<CommandId, Vec<Event>> = HashMap::new();
    for (command, text) in rows {
        events.entry(CommandId(command)).or_default().push(Event::decode(text.as_bytes())?);
    }
    Ok(events)
}

/// See [`super::Ledger::published`].
pub(super) async fn clear(pool: &PgPool, commands: &[CommandId]) -> Result<()> {
    // The setting holds for this statement, which is its own transaction.
    sqlx::query(
        "delete from ledger.outbox using set_config('synchronous_commit', 'off', true)
         where command_id = any($1) and subject in ('order', 'command')",
    )
    .bind(uuids(commands))
    .execute(pool)
    .await?;
    Ok(())
}

fn uuids(commands: &[CommandId]) -> Vec<Uuid> {
    commands.iter().map(|command| command.0).collect()
}
