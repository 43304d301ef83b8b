//! A Redis that was killed may have lost the last second of what it had acknowledged. Projection has
//! acked these events and never sees them again, so they are read from the log and written once more.

use std::time::Duration;

use anyhow::Result;
use async_nats::jetstream;
use millrace_shared::consumer::Worker as _;
use millrace_shared::crash;
use millrace_shared::message::Event;
use millrace_shared::topology::Topology;
use millrace_shared::views::Views;
use tokio_util::sync::CancellationToken;

use crate::projection::Projection;
use crate::stretch::{Stretch, event};

/// How often it is noted how far the views are, and looked whether Redis was started anew.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What brings the views up to where projection has been.
#[derive(Debug, Clone)]
pub struct CatchUp {
    views: Views,
    topology: Topology,
    events: Stretch,
}

impl CatchUp {
    /// For `views`, from EVENTS.
    pub fn new(views: Views, client: &async_nats::Client, topology: Topology) -> Self {
        let events = Stretch::new(jetstream::new(client.clone()), topology.events_stream());
        Self { views, topology, events }
    }

    /// Looks again and again, until the shutdown.
    pub async fn keep(&self, shutdown: CancellationToken) {
        let mut failing = false;
        loop {
            let looked = tokio::select! {
                looked = self.look() => looked,
                () = shutdown.cancelled() => return,
            };
            // Told once: it is tried again every second, for as long as a server is away.
            match &looked {
                Err(error) if !failing => tracing::warn!(
                    "it cannot be seen how far the views are; what a crash of Redis took from them \
                     stays out until it can: {error:#}"
                ),
                Ok(()) if failing => tracing::info!("it is seen again how far the views are"),
                _ => {}
            }
            failing = looked.is_err();
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    async fn look(&self) -> Result<()> {
        if !self.views.is_connected() {
            return Ok(());
        }
        let state = self.events.state().await?;
        let settled = self.events.settled(Projection::NAME, state.last_sequence).await?;
        let Some(settled) = settled else { return Ok(()) };
        let Some(lost) = self.views.note(settled, None).await? else { return Ok(()) };
        // Asked only now: what is lost had been delivered before.
        let delivered = self.events.delivered(Projection::NAME).await?;
        let from = lost.through.max(state.first_sequence.saturating_sub(1)) + 1;
        let mut left = (from <= delivered).then_some(from..=delivered);
        let mut count = 0;
        while let Some(places) = left {
            let (messages, rest) = self.events.page(places).await?;
            let events: Vec<Event> =
                messages.iter().filter_map(|message| event(&self.topology, message)).collect();
            self.views.apply(events.iter()).await?;
            crash::point("catch-up.written");
            count += events.len();
            left = rest;
        }
        self.views.note(settled, Some(&lost.run)).await?;
        tracing::info!(count, from, "Redis was started anew; its last events are written again");
        Ok(())
    }
}
