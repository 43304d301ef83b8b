//! What must hold when the chaos is over.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use futures_util::StreamExt as _;
use futures_util::stream;
use millrace_cli::verify::{self, VerifyConfig};
use millrace_shared::access::Principal;
use serde_json::Value;
use tokio::time::sleep;

use super::load::{Acknowledged, Known};
use super::world::World;
use crate::harness::card_order;

/// How long the system may take to work off what the chaos has left: seconds, but other tests run
/// beside it.
const SETTLED: Duration = Duration::from_mins(3);
/// How long an outcome, or a view, may be behind after that.
const SEEN: Duration = Duration::from_secs(30);

/// Finds out what does not hold.
pub struct Check<'a> {
    world: &'a World,
    client: reqwest::Client,
    edges: Vec<String>,
    /// What was found.
    pub problems: Vec<String>,
    /// What it looked at, for the reader.
    pub report: String,
}

impl<'a> Check<'a> {
    /// Checks all there is to check.
    pub async fn all(world: &'a World, known: &Known) -> Self {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build();
        let mut check = Self {
            world,
            client: client.expect("a client"),
            edges: world.edges(),
            problems: world.faults().await,
            report: String::new(),
        };
        check.works().await;
        check.settles().await;
        check.outcomes(known).await;
        check.refusals(known).await;
        check.promises().await;
        check.nothing_is_parked().await;
        check
    }

    fn tell(&mut self, line: &str) {
        self.report.push_str(line);
    }

    fn problem(&mut self, what: String) {
        self.world.fault(what.clone());
        self.problems.push(what);
    }

    /// Asks one of the edges, until it answers well.
    async fn get(&self, path: &str) -> Option<Value> {
        let start = Instant::now();
        for edge in self.edges.iter().cycle() {
            let answer = self.client.get(format!("{edge}{path}")).send().await;
            if let Ok(answer) = answer
                && answer.status().as_u16() != 503
            {
                return answer.json().await.ok();
            }
            if start.elapsed() > SEEN {
                return None;
            }
            sleep(Duration::from_millis(200)).await;
        }
        None
    }

    /// The whole line works again: a new order is paid.
    async fn works(&mut self) {
        let start = Instant::now();
        let order = card_order("c1", "p5", 1, "tok_ok");
        let edge = self.edges[0].clone();
        while start.elapsed() < SETTLED {
            let request = self.client.post(format!("{edge}/v1/orders")).header("Prefer", "wait=5");
            if let Ok(answer) = request.json(&order).send().await
                && answer.status().as_u16() == 201
            {
                self.tell(&format!("a new order is paid {:.1?} after\n", start.elapsed()));
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
        self.problem(format!("no new order is paid within {SETTLED:?}"));
    }

    /// Every worker gets through everything.
    async fn settles(&mut self) {
        let start = Instant::now();
        let mut open = "nothing is known".to_owned();
        while start.elapsed() < SETTLED {
            match self.open().await {
                Ok(None) => {
                    self.tell(&format!("all is settled {:.1?} later\n", start.elapsed()));
                    return;
                }
                Ok(Some(left)) => open = left,
                Err(error) => open = format!("{error:#}"),
            }
            sleep(Duration::from_millis(200)).await;
        }
        self.problem(format!("it is not settled after {SETTLED:?}: {open}"));
    }

    async fn jetstream(&self) -> anyhow::Result<jetstream::Context> {
        let client = self.world.config.nats.of(Principal::Admin).connect_now("check").await?;
        Ok(jetstream::new(client))
    }

    /// What is not done yet.
    async fn open(&self) -> anyhow::Result<Option<String>> {
        let jetstream = self.jetstream().await?;
        let topology = self.world.config.nats.topology()?;
        let pool = self.world.config.postgres.of(Principal::Admin).pool("check")?;
        let count = "select (select count(*) from ledger.outbox),
                    (select count(*) from journal.orders where status = 'payment_unknown')";
        let counted: Result<(i64, i64), _> = sqlx::query_as(count).fetch_one(&pool).await;
        pool.close().await;
        let (outbox, unknown) = counted?;
        if outbox > 0 {
            return Ok(Some(format!("{outbox} events are in the outbox")));
        }
        let unknown = usize::try_from(unknown)?;
        for name in [topology.commands_stream(), topology.events_stream()] {
            let stream = jetstream.get_stream(&name).await?;
            let mut consumers = std::pin::pin!(stream.consumers());
            while let Some(info) = consumers.next().await.transpose()? {
                // An order whose payment is not known is asked for again and again.
                let waits = if info.name == "payment-payment-unknown" { unknown } else { 0 };
                if info.config.durable_name.is_some()
                    && (info.num_pending > 0 || info.num_ack_pending > waits)
                {
                    let (pending, acks) = (info.num_pending, info.num_ack_pending);
                    let (name, floor) = (info.name, info.ack_floor.stream_sequence);
                    return Ok(Some(format!(
                        "{name} has {pending} messages to get and {acks} to ack, from {floor}"
                    )));
                }
            }
        }
        Ok(None)
    }

    /// Every acknowledged command has its outcome, and the one that its client was told; a key has
    /// one order.
    async fn outcomes(&mut self, known: &Known) {
        let asked: BTreeSet<&str> =
            known.acknowledged.iter().map(|ack| ack.command.as_str()).collect();
        let this = &*self;
        let outcomes: BTreeMap<String, Value> = stream::iter(asked)
            .map(|command| async move { (command.to_owned(), this.outcome(command).await) })
            .buffer_unordered(16)
            .collect()
            .await;
        let mut problems = Vec::new();
        let mut keys: BTreeMap<&(String, String), HashSet<(String, String)>> = BTreeMap::new();
        let mut accepted = 0;
        for ack in &known.acknowledged {
            let outcome = &outcomes[&ack.command];
            if let Some(wrong) = wrong(ack, outcome) {
                problems.push(format!("{wrong}: {ack}, but it is {outcome}"));
            }
            let was_accepted = outcome["status"] == "accepted";
            accepted += u32::from(was_accepted);
            if let (Some(key), true) = (&ack.key, was_accepted) {
                let text = |name: &str| outcome[name].as_str().unwrap_or_default().to_owned();
                keys.entry(key).or_default().insert((text("commandId"), text("orderId")));
            }
        }
        for (key, placed) in &keys {
            if placed.len() > 1 {
                problems.push(format!("the key {key:?} has {} orders: {placed:?}", placed.len()));
            }
        }
        self.tell(&format!(
            "{} acknowledgements of {} commands, {accepted} of them accepted; {} keys\n",
            known.acknowledged.len(),
            outcomes.len(),
            keys.len(),
        ));
        for problem in problems {
            self.problem(problem);
        }
    }

    async fn outcome(&self, command: &str) -> Value {
        let start = Instant::now();
        loop {
            let outcome = self.get(&format!("/v1/commands/{command}")).await.unwrap_or_default();
            let known =
                ["accepted", "rejected"].contains(&outcome["status"].as_str().unwrap_or(""));
            if known || start.elapsed() > SEEN {
                return outcome;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// What was refused "without any effect" has had none.
    async fn refusals(&mut self, known: &Known) {
        self.tell(&format!("{} orders were refused without effect\n", known.refused.len()));
        for id in &known.refused {
            let order = self.get(&format!("/v1/orders/{id}")).await.unwrap_or_default();
            if order["status"] != 404 {
                self.problem(format!("order {id} was refused, and is there: {order}"));
            }
        }
    }

    /// `millrace verify`.
    async fn promises(&mut self) {
        let config = VerifyConfig::from(&self.world.config);
        match verify::check(&config, SEEN).await {
            Ok(report) if report.is_ok() => self.report += &report.to_string(),
            Ok(report) => self.problem(report.to_string()),
            Err(error) => self.problem(format!("nothing can be verified: {error:#}")),
        }
    }

    /// Nothing was wrong with any message: none may be parked because a server was away.
    async fn nothing_is_parked(&mut self) {
        let parked = async {
            let jetstream = self.jetstream().await?;
            let name = self.world.config.nats.topology()?.parked_stream();
            let stream = jetstream.get_stream(name).await?;
            let state = &stream.cached_info().state;
            let mut parked = Vec::new();
            for sequence in state.first_sequence..=state.last_sequence {
                if let Ok(message) = stream.get_raw_message(sequence).await {
                    parked.push(format!("{}: {:?}", message.subject, message.headers));
                }
            }
            anyhow::Ok(parked)
        };
        match parked.await {
            Ok(parked) if parked.is_empty() => {}
            Ok(parked) => self.problem(format!("parked: {}", parked.join("\n  "))),
            Err(error) => self.problem(format!("PARKED cannot be read: {error:#}")),
        }
    }
}

fn wrong(ack: &Acknowledged, outcome: &Value) -> Option<&'static str> {
    let accepted = match outcome["status"].as_str() {
        Some("accepted") => true,
        Some("rejected") => false,
        _ => return Some("an acknowledged command has no outcome"),
    };
    if ack.accepted.is_some_and(|told| told != accepted) {
        return Some("its client was told another outcome");
    }
    let order = outcome["orderId"].as_str();
    (accepted && ack.order.is_some() && ack.order.as_deref() != order)
        .then_some("its client was told another order")
}
