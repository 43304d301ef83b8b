//! Who is alive, and what each role has done of late: asked of all replicas as NATS micro services.
//! However many there are, only sums of each role are kept.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt as _;
use millrace_shared::times::{CLASSES, Counts};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::App;

/// The roles that are micro services; `api` is the edge.
const ROLES: [&str; 6] =
    ["api", "validation", "reservations", "payment", "persistence", "projection"];
/// How long answers are waited for, and for how long after the last one.
const PATIENCE: Duration = Duration::from_millis(800);
const QUIET: Duration = Duration::from_millis(150);
/// Percentiles are those of the last so many times that replicas were asked: about a minute.
const RECENT: usize = 10;

/// What is known of the replicas of all roles.
#[derive(Debug, Default)]
pub struct Replicas {
    roles: HashMap<String, Role>,
    /// By replica: what it had counted when it was last asked.
    before: HashMap<String, Counted>,
}

/// The replicas of one role, together.
#[derive(Debug, Clone, Default)]
pub struct Role {
    /// Those that have answered.
    pub alive: usize,
    /// What they have counted since each was started.
    pub counted: Counted,
    /// Times of the last minute.
    recent: VecDeque<Counts>,
}

impl Role {
    /// How long messages took in the last minute.
    pub fn times(&self) -> Counts {
        let mut sum = [0; CLASSES];
        for counts in &self.recent {
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        sum
    }
}

/// What a replica counts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Counted {
    /// Messages that are done with.
    pub processed: u64,
    /// Attempts that have failed.
    pub failed: u64,
    /// Messages that had come before.
    pub redelivered: u64,
    /// Messages that were parked.
    pub parked: u64,
    times: Vec<(usize, u64)>,
}

/// The answer of a replica (NATS ADR-32).
#[derive(Debug, Deserialize)]
struct Stats {
    name: String,
    id: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    #[serde(default)]
    data: Option<Counted>,
}

impl Replicas {
    /// A role as it was when it was last asked.
    pub fn role(&self, name: &str) -> Option<&Role> {
        self.roles.get(name)
    }

    /// Whether every role has answered.
    pub fn all_alive(&self) -> bool {
        ROLES.iter().all(|role| self.role(role).is_some_and(|role| role.alive > 0))
    }

    /// Asks all replicas.
    pub async fn ask(&mut self, app: &App) {
        let answers = match gather(&app.nats, ROLES.map(|role| app.topology.service(role))).await {
            Ok(answers) => answers,
            Err(error) => {
                tracing::debug!("the replicas cannot be asked: {error:#}");
                Vec::new()
            }
        };
        let own =
            |name: &str| ROLES.iter().find(|role| app.topology.service(role) == name).copied();
        let answers = answers.into_iter().filter_map(|it| Some((own(&it.name)?, it))).collect();
        self.take(answers);
    }

    fn take(&mut self, answers: Vec<(&'static str, Stats)>) {
        let mut recent: HashMap<&str, Counts> = HashMap::new();
        let mut before = HashMap::new();
        for role in self.roles.values_mut() {
            (role.alive, role.counted) = (0, Counted::default());
        }
        for (name, Stats { id, endpoints, .. }) in answers {
            let counted = endpoints.into_iter().find_map(|it| it.data).unwrap_or_default();
            let role = self.roles.entry(name.to_owned()).or_default();
            role.alive += 1;
            role.counted.processed += counted.processed;
            role.counted.failed += counted.failed;
            role.counted.redelivered += counted.redelivered;
            role.counted.parked += counted.parked;
            // Who is seen for the first time may have counted for days.
            if let Some(had) = self.before.get(&id) {
                let sum = recent.entry(name).or_insert([0; CLASSES]);
                let had: HashMap<usize, u64> = had.times.iter().copied().collect();
                for (class, count) in counted.times.iter().filter(|(class, _)| *class < CLASSES) {
                    sum[*class] += count.saturating_sub(had.get(class).copied().unwrap_or(0));
                }
            }
            before.insert(id, counted);
        }
        for (name, role) in &mut self.roles {
            role.recent.push_back(recent.remove(name.as_str()).unwrap_or([0; CLASSES]));
            if role.recent.len() > RECENT {
                role.recent.pop_front();
            }
        }
        self.before = before;
    }
}

/// Asks all replicas of some services, and takes the answers that come in time.
async fn gather<const N: usize>(
    nats: &Client,
    services: [String; N],
) -> anyhow::Result<Vec<Stats>> {
    let inbox = nats.new_inbox();
    let mut answers = nats.subscribe(inbox.clone()).await?;
    for service in services {
        let subject = format!("$SRV.STATS.{service}");
        nats.publish_with_reply(subject, inbox.clone(), "".into()).await?;
    }
    let end = Instant::now() + PATIENCE;
    let mut quiet = end;
    let mut found = Vec::new();
    while let Ok(Some(message)) = timeout_at(quiet.min(end), answers.next()).await {
        // A service without replicas is answered for by the server, with nothing.
        if let Ok(stats) = serde_json::from_slice(&message.payload) {
            found.push(stats);
            quiet = Instant::now() + QUIET;
        }
    }
    answers.unsubscribe().await?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(id: &str, processed: u64, times: Vec<(usize, u64)>) -> (&'static str, Stats) {
        let data = Some(Counted { processed, times, ..Counted::default() });
        let endpoints = vec![Endpoint { data }];
        ("payment", Stats { name: String::new(), id: id.to_owned(), endpoints })
    }

    #[test]
    fn replicas_are_added_up_and_only_what_is_new_counts_as_recent() {
        let mut replicas = Replicas::default();
        replicas.take(vec![stats("a", 10, vec![(3, 10)]), stats("b", 5, vec![(4, 5)])]);
        let role = replicas.role("payment").unwrap();
        assert_eq!((role.alive, role.counted.processed), (2, 15));
        assert_eq!(role.times().iter().sum::<u64>(), 0);
        // One has gone, one has done more, one is new.
        replicas.take(vec![stats("a", 12, vec![(3, 11), (7, 1)]), stats("c", 9, vec![(4, 9)])]);
        let role = replicas.role("payment").unwrap();
        assert_eq!((role.alive, role.counted.processed), (2, 21));
        assert_eq!((role.times()[3], role.times()[7], role.times()[4]), (1, 1, 0));
        for _ in 0..RECENT {
            replicas.take(Vec::new());
        }
        let role = replicas.role("payment").unwrap();
        assert_eq!((role.alive, role.times().iter().sum::<u64>()), (0, 0));
    }
}
