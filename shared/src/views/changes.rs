//! Changes of the views, told as they happen.

use std::time::Duration;

use fred::interfaces::{ClientLike as _, EventInterface as _, PubsubInterface as _};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::config::RedisConfig;

/// What is told about changes of the views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change<'a> {
    /// Lines of `SUBJECT/ID VERSION`.
    Views(&'a str),
    /// Changes may have been missed.
    Missed,
}

/// Told on the channel when another generation of the views is read: anything may have changed.
pub(super) const ANEW: &str = "generation";

/// How often the subscription to the changes is made anew: harmless, and it shows whether the
/// connection lives. If not, another is made.
const SUBSCRIBE_EVERY: Duration = Duration::from_secs(5);

/// Tells the changes of the views below `namespace`, as they happen, until the `stop`.
pub async fn watch_changes(
    config: &RedisConfig,
    namespace: &str,
    stop: &CancellationToken,
    mut told: impl FnMut(Change<'_>),
) -> anyhow::Result<()> {
    let mut builder = config.builder()?;
    // Messages that wait while a subscription is made.
    builder.with_performance_config(|performance| performance.broadcast_channel_capacity = 4096);
    let client = builder.build_subscriber_client()?;
    let channel = format!("{namespace}:changes");
    let (mut messages, mut connections) = (client.message_rx(), client.reconnect_rx());
    // The task ends with the client's `quit`; until then it reconnects.
    drop(client.connect());
    let mut again = interval(SUBSCRIBE_EVERY);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missed = false;
    loop {
        tokio::select! {
            message = messages.recv() => {
                match message.as_ref().map(|message| message.value.as_bytes()) {
                    Ok(Some(bytes)) if bytes == ANEW.as_bytes() => told(Change::Missed),
                    Ok(Some(bytes)) => told(Change::Views(&String::from_utf8_lossy(bytes))),
                    Ok(None) => {}
                    Err(_) => told(Change::Missed),
                }
                continue;
            }
            _ = connections.recv() => missed = true,
            _ = again.tick() => {}
            () = stop.cancelled() => break,
        }
        if !client.is_connected() {
            continue;
        }
        match client.subscribe(channel.as_str()).await {
            Ok(()) => {
                if std::mem::take(&mut missed) {
                    told(Change::Missed);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the changes of the views cannot be subscribed to");
                missed = true;
                let forced = client.force_reconnection();
                // The client goes on trying, and tells when it is connected.
                if let Ok(Err(error)) = tokio::time::timeout(SUBSCRIBE_EVERY, forced).await {
                    tracing::debug!(%error, "no new connection for the changes yet");
                }
            }
        }
    }
    // Whoever stops does not care how the connection ends.
    client.quit().await.ok();
    Ok(())
}
