//! Projection: keeps the Redis views. A view never goes back to an older version, so events may come
//! twice and in any order.

use chrono::{DateTime, Utc};
use millrace_shared::consumer::{Delivery, Raw, Verdict, Worker, decode_event};
use millrace_shared::crash;
use millrace_shared::message::{Event, Subject, now};
use millrace_shared::metrics::metrics;
use millrace_shared::topology::Topology;
use millrace_shared::trace::step;
use millrace_shared::views::Views;
use serde::Deserialize;

/// The worker that keeps the views.
#[derive(Debug)]
pub struct Projection {
    views: Views,
}

impl Projection {
    /// A projection into `views`.
    pub fn new(views: Views) -> Self {
        Self { views }
    }
}

/// How long it took, if it was an order's first event, until the order could be read.
fn tell_visible(delivery: &Delivery<Event>) {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Placed {
        placed_at: DateTime<Utc>,
    }
    let event = &delivery.message;
    if event.subject != Subject::Order || event.version != 1 || delivery.attempt != 1 {
        return;
    }
    if let Ok(Placed { placed_at }) = event.state()
        && let Ok(time) = (now() - placed_at).to_std()
    {
        metrics().visible.record(time.as_secs_f64(), &[]);
    }
}

impl Worker for Projection {
    type Message = Event;
    const NAME: &'static str = "projection";
    const BATCH: usize = 500;
    const BATCHES: usize = 2;

    fn stream(&self, topology: &Topology) -> String {
        topology.events_stream()
    }

    fn wants(&self, topology: &Topology, subject: &str) -> bool {
        topology.is_event(subject)
    }

    fn decode(&self, raw: &Raw<'_>) -> Result<Event, String> {
        decode_event(raw)
    }

    async fn handle(&self, batch: &[Delivery<Event>]) -> Vec<Verdict> {
        let events = batch.iter().map(|delivery| &delivery.message);
        let verdict = match step("write views", self.views.apply(events)).await {
            Ok(()) => {
                crash::point("projection.written");
                batch.iter().for_each(tell_visible);
                Verdict::Done
            }
            Err(error) => Verdict::of(&error.into()),
        };
        vec![verdict; batch.len()]
    }
}
