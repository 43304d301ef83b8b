//! The processes: replicas of validation and payment, whose handlers take turns, die together and
//! are started again.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use millrace_shared::consumer::{Delivery, Raw, Verdict, Worker};
use millrace_shared::ids::OrderId;
use millrace_shared::message::now;
use millrace_shared::topology::Topology;
use millrace_shared::trace::Trace;
use tokio::sync::Notify;

use super::fate::Fate;
use super::gateway::MemoryGateway;
use super::ledger::MemoryLedger;
use super::load::Clients;
use super::log::{Delivered, MemoryLog, Message, Stream, Streams};
use crate::expiry::Expiry;
use crate::payment::Payment;
use crate::relay::{Heads, Relay};
use crate::reservations::Reservations;
use crate::validation::Validation;

const TIME_TO_PAY: Duration = Duration::from_mins(15);
/// Steps after which a world that is calm must have come to rest.
const REST: usize = 100_000;
/// So many steps are longer than any order waits.
const LONG: usize = 2_000;
/// Deliveries after which a message that keeps failing is parked: nothing here ever should be.
const ATTEMPTS: u64 = 8;
/// From this delivery on a message is handled alone.
const ALONE_FROM: u64 = 3;

type Handler = Pin<Box<dyn Future<Output = Vec<Verdict>> + Send>>;
type Log = MemoryLog;
type Decider = Validation<MemoryLedger, Log>;
type Releaser = Reservations<MemoryLedger>;
type Charger = Payment<Log, MemoryGateway>;

/// A batch in the hands of a process, its relay, or what ends its overdue orders.
struct Task {
    process: usize,
    name: &'static str,
    batch: Vec<Delivered>,
    handler: Handler,
}

/// A kind of handler, and how many a process has at a time.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind {
    name: &'static str,
    at_a_time: usize,
    batch: usize,
}

/// What goes on until its process dies.
const RELAY: &str = "relay";
const EXPIRY: &str = "expiry";
const VALIDATES: &[Kind] = &[
    Kind { name: Decider::NAME, at_a_time: 2, batch: 5 },
    Kind { name: Releaser::NAME, at_a_time: 1, batch: 5 },
    Kind { name: EXPIRY, at_a_time: 1, batch: 0 },
    Kind { name: RELAY, at_a_time: 1, batch: 0 },
];
const CHARGES: &[Kind] = &[Kind { name: Charger::NAME, at_a_time: 3, batch: 1 }];
/// The handlers of each process.
const PROCESSES: [&[Kind]; 4] = [VALIDATES, VALIDATES, CHARGES, CHARGES];

/// Everything of one seed.
pub struct World {
    pub fate: Fate,
    pub topology: Topology,
    pub ledger: MemoryLedger,
    pub log: Log,
    pub gateway: MemoryGateway,
    /// Messages that were parked, and why.
    pub parked: Vec<String>,
    clients: Clients,
    tasks: Vec<Task>,
    validation: Arc<Decider>,
    reservations: Arc<Releaser>,
    expiry: Arc<Expiry<MemoryLedger, Log>>,
    relay: Arc<Relay<MemoryLedger, Log>>,
    payment: Arc<Charger>,
}

impl World {
    pub fn new(fate: Fate, topology: Topology) -> Self {
        let (ledger, log) = (MemoryLedger::new(fate.clone()), MemoryLog::new(fate.clone()));
        let gateway = MemoryGateway::new(fate.clone());
        let (wake, names) = (Arc::new(Notify::new()), || topology.clone());
        let validation =
            Validation::new(ledger.clone(), log.clone(), names(), wake.clone(), TIME_TO_PAY);
        let relay = Relay::new(ledger.clone(), log.clone(), names(), wake);
        let reservations = Reservations::new(ledger.clone());
        let expiry = Expiry::new(ledger.clone(), log.clone(), names(), TIME_TO_PAY);
        let payment = Payment::new(log.clone(), names(), Arc::new(gateway.clone()));
        {
            let mut streams = log.streams();
            let asked = |worker: &str| {
                let consumers = topology.consumers(worker).into_iter();
                consumers.map(|(_, filter)| filter.unwrap_or_else(|| ">".to_owned())).collect()
            };
            streams.commands.consume(Decider::NAME, asked(Decider::NAME));
            streams.events.consume(Releaser::NAME, asked(Releaser::NAME));
            streams.events.consume(Charger::NAME, asked(Charger::NAME));
        }
        Self {
            clients: Clients::new(fate.clone(), topology.clone()),
            parked: Vec::new(),
            tasks: Vec::new(),
            validation: Arc::new(validation),
            reservations: Arc::new(reservations),
            expiry: Arc::new(expiry),
            relay: Arc::new(relay),
            payment: Arc::new(payment),
            fate,
            topology,
            ledger,
            log,
            gateway,
        }
    }

    /// Lets troubles happen until all commands are sent, then waits for rest. Tells whether it came.
    pub fn run(&mut self) -> bool {
        let mut sending = true;
        let mut rest_of_trouble = self.fate.pick(0..2000);
        while sending || rest_of_trouble > 0 {
            if sending {
                if self.fate.strikes(self.fate.rates().sends) {
                    sending = self.send();
                }
            } else {
                rest_of_trouble -= 1;
            }
            self.trouble();
            self.step();
        }
        self.fate.calm_down();
        for step in 1..REST {
            self.step();
            let at_rest = self.is_at_rest();
            // An order whose charge is not known waits until its time is over.
            if at_rest || step % LONG == 0 {
                self.fate.act("time", None);
                let timed_out = self.time_out();
                if at_rest && !timed_out {
                    return true;
                }
            }
        }
        false
    }

    /// What has not come to rest.
    pub fn unrest(&self) -> String {
        let names: Vec<&str> = self.tasks.iter().map(|task| task.name).collect();
        let streams = self.log.streams();
        let tables = self.ledger.tables();
        format!(
            "handlers {names:?}, commands idle: {}, events idle: {}, outbox: {}",
            streams.commands.is_idle(),
            streams.events.is_idle(),
            tables.outbox.len()
        )
    }

    fn is_at_rest(&self) -> bool {
        let streams = self.log.streams();
        let tables = self.ledger.tables();
        let told = tables.products.values().all(|(_, touched)| !touched)
            && tables.customers.values().all(|(_, touched)| !touched);
        let working = self.tasks.iter().any(|task| ![RELAY, EXPIRY].contains(&task.name));
        let quiet = self.fate.is_quiet() && !working;
        quiet
            && told
            && tables.outbox.is_empty()
            && streams.commands.is_idle()
            && streams.events.is_idle()
            // Last, since it reads every history.
            && streams.unpaid().is_disjoint(&tables.overdue)
    }

    /// A client publishes a command; not hearing of it, it does so again.
    fn send(&mut self) -> bool {
        let Some(message) = self.clients.next() else { return false };
        self.fate.act("client", None);
        for _ in 0..if self.fate.one_in(8) { 2 } else { 1 } {
            let (log, fate, message) = (self.log.clone(), self.fate.clone(), message.clone());
            let named = message.subject.clone();
            self.fate.post(
                move || format!("publish {named}"),
                move || {
                    let commands = &mut log.streams().commands.messages;
                    fate.tell(|| {
                        let body = String::from_utf8_lossy(&message.payload);
                        format!("COMMANDS {}: {} {body}", commands.len() + 1, message.subject)
                    });
                    commands.push(message);
                },
            );
        }
        true
    }

    fn trouble(&mut self) {
        let rates = self.fate.rates();
        if self.fate.strikes(rates.dies) {
            let process = self.fate.pick(0..PROCESSES.len());
            self.kill(process);
        }
        if self.fate.strikes(rates.time_out) {
            self.fate.act("time", None);
            self.time_out();
        }
        if self.fate.strikes(rates.restarts) {
            self.fate.act("servers", None);
            match self.fate.pick(0..3) {
                0 => {
                    self.fate.tell(|| "PostgreSQL is killed and started again".to_owned());
                    self.ledger.tables().restart();
                }
                1 => {
                    self.fate.tell(|| "the relay's connection is cut".to_owned());
                    self.ledger.tables().relay = None;
                }
                _ => {
                    self.fate.tell(|| "NATS is killed and started again: acks are lost".to_owned());
                    let mut streams = self.log.streams();
                    streams.commands.forget_acks(&self.fate);
                    streams.events.forget_acks(&self.fate);
                }
            }
        }
    }

    /// Has the time of one order run out, if any waits for its payment.
    fn time_out(&self) -> bool {
        let unpaid = self.log.streams().unpaid();
        let mut tables = self.ledger.tables();
        let running: Vec<OrderId> = unpaid.difference(&tables.overdue).copied().collect();
        if running.is_empty() {
            return false;
        }
        let order = self.fate.choose(&running);
        self.fate.tell(|| format!("the time of the order {order} is over"));
        tables.overdue.insert(order);
        true
    }

    /// Kills a process: its handlers are gone; what they had sent may yet arrive.
    fn kill(&mut self, process: usize) {
        self.fate.act("process", Some(process));
        self.fate.tell(|| "is killed".to_owned());
        let (dead, alive): (Vec<Task>, _) =
            std::mem::take(&mut self.tasks).into_iter().partition(|task| task.process == process);
        self.tasks = alive;
        for Task { name, batch, .. } in dead {
            for (sequence, _) in batch {
                stream(&mut self.log.streams(), name).settle(name, sequence, false);
            }
        }
    }

    /// Somebody goes on: a handler, a request, or a process that takes up more work.
    fn step(&mut self) {
        match self.fate.pick(0..10) {
            0..5 if !self.tasks.is_empty() => self.go_on(),
            5..8 => {
                self.fate.act("", None);
                self.fate.deliver();
            }
            _ => self.take_up(),
        }
    }

    fn go_on(&mut self) {
        let at = self.fate.pick(0..self.tasks.len());
        let task = &mut self.tasks[at];
        self.fate.act(task.name, Some(task.process));
        let Poll::Ready(verdicts) =
            task.handler.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        else {
            return;
        };
        let Task { name, batch, .. } = self.tasks.swap_remove(at);
        for ((sequence, attempt), verdict) in batch.into_iter().zip(verdicts) {
            let lost = self.fate.strikes(self.fate.rates().ack_lost);
            self.fate.tell(|| {
                let ack = if lost { ", but its ack is lost" } else { "" };
                format!("on {sequence}, delivery {attempt}: {verdict:?}{ack}")
            });
            let parks = match &verdict {
                Verdict::Park(_) => true,
                Verdict::Failed(_) => attempt >= ATTEMPTS,
                _ => false,
            };
            if parks {
                self.parked.push(format!("{name} has parked {sequence}: {verdict:?}"));
            }
            let acked = (parks || verdict == Verdict::Done) && !lost;
            stream(&mut self.log.streams(), name).settle(name, sequence, acked);
        }
    }

    fn take_up(&mut self) {
        let process = self.fate.pick(0..PROCESSES.len());
        let kind = self.fate.choose(PROCESSES[process]);
        let name = kind.name;
        let running = self.tasks.iter().filter(|task| (task.process, task.name) == (process, name));
        if running.count() >= kind.at_a_time {
            return;
        }
        if kind.batch == 0 {
            let handler: Handler = if name == RELAY {
                Box::pin(relay(self.relay.clone(), self.ledger.clone(), self.fate.clone()))
            } else {
                Box::pin(expire(self.expiry.clone(), self.fate.clone()))
            };
            self.tasks.push(Task { process, name, batch: Vec::new(), handler });
            return;
        }
        let mut streams = self.log.streams();
        let most = self.fate.pick(1..=kind.batch);
        let stream = stream(&mut streams, name);
        let batch = stream.fetch(&self.fate, name, most);
        let (alone, together): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|(_, attempt)| *attempt >= ALONE_FROM);
        for batch in alone.into_iter().map(|single| vec![single]).chain([together]) {
            if batch.is_empty() {
                continue;
            }
            self.fate.act(name, Some(process));
            self.fate.tell(|| format!("takes up {batch:?} (sequence, delivery)"));
            let messages = batch.iter().map(|(at, attempt)| {
                (*at, *attempt, stream.messages[usize::try_from(at - 1).unwrap_or(0)].clone())
            });
            let messages: Vec<_> = messages.collect();
            let handler: Handler = match name {
                Decider::NAME => Box::pin(handle(self.validation.clone(), messages)),
                Releaser::NAME => Box::pin(handle(self.reservations.clone(), messages)),
                _ => Box::pin(handle(self.payment.clone(), messages)),
            };
            self.tasks.push(Task { process, name, batch, handler });
        }
    }
}

/// The stream that a worker consumes.
fn stream<'a>(streams: &'a mut MutexGuard<'_, Streams>, name: &str) -> &'a mut Stream {
    if name == Decider::NAME { &mut streams.commands } else { &mut streams.events }
}

/// The worker's loop about one batch: decode, handle, and those that fail in company once more alone.
async fn handle<W: Worker>(worker: Arc<W>, messages: Vec<(u64, u64, Message)>) -> Vec<Verdict> {
    let mut deliveries = Vec::new();
    for (sequence, attempt, message) in &messages {
        let trace = Trace::default();
        let raw = Raw {
            trace: &trace,
            subject: &message.subject,
            payload: &message.payload,
            headers: Some(&message.headers),
            sequence: *sequence,
            at: now(),
        };
        match worker.decode(&raw) {
            Ok(message) => {
                let (sequence, attempt) = (*sequence, *attempt);
                deliveries.push(Delivery { message, sequence, attempt, trace });
            }
            Err(reason) => return vec![Verdict::Park(reason); messages.len()],
        }
    }
    let mut verdicts = worker.handle(&deliveries).await;
    for at in 0..deliveries.len() {
        let failed = matches!(verdicts[at], Verdict::Failed(_) | Verdict::Park(_));
        if failed && deliveries.len() > 1 {
            verdicts[at] = worker.handle(&deliveries[at..=at]).await.remove(0);
        }
    }
    verdicts
}

/// The relay of one process, until it dies.
async fn relay(
    relay: Arc<Relay<MemoryLedger, Log>>,
    ledger: MemoryLedger,
    fate: Fate,
) -> Vec<Verdict> {
    use crate::ledger::{Ledger as _, Turn};
    loop {
        fate.turn().await;
        let Ok(Some(mut outbox)) = ledger.outbox().await else { continue };
        let (mut heads, mut turn) = (Heads::new(), Turn::new());
        while relay.round(&mut outbox, &mut heads, &mut turn).await.is_ok() {
            fate.turn().await;
        }
    }
}

/// What ends the overdue orders of one process, until it dies.
async fn expire(expiry: Arc<Expiry<MemoryLedger, Log>>, fate: Fate) -> Vec<Verdict> {
    loop {
        fate.turn().await;
        if let Err(error) = expiry.look().await {
            fate.tell(|| format!("overdue orders cannot be looked for: {error:#}"));
        }
    }
}
