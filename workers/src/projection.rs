//! Projection: keeps the Redis views. A view never goes back to an older version, so events may come
//! twice and in any order.

use millrace_shared::consumer::{Delivery, Raw, Verdict, Worker, decode_event};
use millrace_shared::crash;
use millrace_shared::message::Event;
use millrace_shared::topology::Topology;
use millrace_shared::views::Views;

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

impl Worker for Projection {
    type Message = Event;
    const NAME: &'static str = "projection";
    const BATCH: usize = 500;
    const BATCHES: usize = 2;

    fn stream(&self, topology: &Topology) -> String {
        topology.events_stream()
    }

    fn subjects(&self, topology: &Topology) -> Vec<String> {
        topology.all_events()
    }

    fn decode(&self, raw: &Raw<'_>) -> Result<Event, String> {
        decode_event(raw)
    }

    async fn handle(&self, batch: &[Delivery<Event>]) -> Vec<Verdict> {
        let verdict = match self.views.apply(batch.iter().map(|delivery| &delivery.message)).await {
            Ok(()) => {
                crash::point("projection.written");
                Verdict::Done
            }
            Err(error) => Verdict::of(&error.into()),
        };
        vec![verdict; batch.len()]
    }
}
