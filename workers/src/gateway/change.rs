//! A change of the gateway: the new one knows nothing of charges that are open at the old one.

use std::time::Duration;

use anyhow::bail;
use millrace_shared::health;
use sqlx::PgPool;

/// How soon PostgreSQL is asked again while it does not answer.
const AGAIN: Duration = Duration::from_secs(1);

/// Fails while charges are open at Stripe: without it nobody would learn whether they took money, and
/// give it back. Waits for PostgreSQL, which is to tell. The sandbox takes none: leaving it is safe.
pub async fn from_stripe(pool: &PgPool) -> anyhow::Result<()> {
    loop {
        let open = sqlx::query_scalar("select count(*) from payment.intents where outcome is null");
        match open.fetch_one(pool).await {
            Ok(0_i64) => return Ok(()),
            Ok(open) => bail!(
                "charges are open at Stripe ({open}), of which the sandbox knows nothing: run payment \
                 with --gateway stripe until they have ended; `millrace verify` and `millrace parked \
                 list` tell of those that do not (see docs/payments.md)"
            ),
            Err(error) => {
                health::consuming("payment", false);
                tracing::warn!("PostgreSQL does not tell yet what is open at Stripe: {error}");
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
