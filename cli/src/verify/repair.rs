//! What is in the log and not in the journal is written into the journal, as persistence does it.

use std::time::Duration;

use anyhow::Result;
use millrace_shared::consumer::Delivery;
use millrace_shared::trace::Trace;
use millrace_workers::persistence::Persistence;

use super::Data;
use super::engine::PAGE;
use super::log::Log;

/// Writes the missing events that stay missing for the settling time; returns how many. A fork is
/// not written: the journal has another event in its place.
pub async fn repair(data: &Data, settle: Duration) -> Result<u64> {
    let log = Log::new(data.clone());
    let (mut next, last) = log.range().await?;
    let mut missing = Vec::new();
    while next <= last {
        let end = last.min(next + u64::from(PAGE) - 1);
        let events = log.events(next..=end).await?;
        missing
            .extend(log.compare(&events).await?.iter().filter(|w| w.missing).map(|w| w.sequence));
        next = end + 1;
    }
    if missing.is_empty() {
        return Ok(0);
    }
    tokio::time::sleep(settle).await;
    let persistence = Persistence::new(data.pool.clone());
    let mut written = 0;
    for page in missing.chunks(PAGE as usize) {
        let events = log.events(page.iter().copied()).await?;
        let wrong = log.compare(&events).await?;
        let batch: Vec<Delivery<_>> = events
            .into_iter()
            .filter(|logged| wrong.iter().any(|w| w.missing && w.sequence == logged.sequence))
            .map(|logged| Delivery {
                message: logged.event,
                sequence: logged.sequence,
                attempt: 1,
                trace: Trace::default(),
            })
            .collect();
        let forks = persistence.write(&batch).await?;
        written += (batch.len() - forks.len()) as u64;
    }
    Ok(written)
}
