//! Chance: one seed decides who goes on next, and what is lost, late or cut off.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use rand::distr::uniform::{SampleRange, SampleUniform};
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Locks what only one thread uses.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How likely each trouble is. Drawn for each seed, some at none: troubles hide each other.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// A process dies, at each step.
    pub dies: f64,
    /// A request never arrives.
    pub request_lost: f64,
    /// A request is done, but its answer never arrives.
    pub answer_lost: f64,
    /// Who asked stops waiting, at each look; the request may still arrive.
    pub gives_up: f64,
    /// An ack is lost.
    pub ack_lost: f64,
    /// A message that is being worked on is delivered again.
    pub impatient: f64,
    /// A server does not answer a question.
    pub away: f64,
    /// A server loses what it may lose, at each step.
    pub restarts: f64,
    /// The next command is sent, at each step.
    pub sends: f64,
    /// An order's time is over, at each step.
    pub time_out: f64,
}

impl Rates {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let mut rate =
            |most: f64| if rng.random_bool(0.4) { 0.0 } else { rng.random_range(0.0..most) };
        Self {
            dies: rate(0.02),
            request_lost: rate(0.2),
            answer_lost: rate(0.2),
            gives_up: rate(0.2),
            ack_lost: rate(0.3),
            impatient: rate(0.2),
            away: rate(0.05),
            restarts: rate(0.003),
            sends: 0.005 + rate(0.1),
            time_out: rate(0.003),
        }
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arrival {
    Lost,
    Unanswered,
    Answered,
}

/// What a request is about, for the trace.
type What = Arc<dyn Fn() -> String + Send + Sync>;

/// A request on its way to a server. It may arrive after who sent it has died.
struct Request {
    what: What,
    arrive: Box<dyn FnOnce(Arrival) + Send>,
}

enum Answer<T> {
    Awaited,
    Here(T),
    Never,
}

/// A server that does not do what it promises: the checks must notice it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The log takes an append wherever the history stands.
    AppendsAnywhere,
    /// The gateway charges at every call of a key.
    ChargesAgain,
    /// The database gives a locked row to everybody.
    SharesLocks,
}

struct Inner {
    rng: ChaCha8Rng,
    rates: Rates,
    flaw: Option<Flaw>,
    calm: bool,
    wire: Vec<Request>,
    /// The kind of handler, and its process.
    actor: (&'static str, Option<usize>),
    step: u64,
    trace: Option<Vec<String>>,
}

/// The seed's choices, shared by all.
#[derive(Clone)]
pub struct Fate(Arc<Mutex<Inner>>);

impl Fate {
    pub fn new(seed: u64, flaw: Option<Flaw>, traced: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rates = Rates::draw(&mut rng);
        let trace = traced.then(|| vec![format!("{rates:?}")]);
        let inner = Inner {
            rng,
            rates,
            flaw,
            calm: false,
            wire: Vec::new(),
            actor: ("", None),
            step: 0,
            trace,
        };
        Self(Arc::new(Mutex::new(inner)))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }

    pub fn has(&self, flaw: Flaw) -> bool {
        self.inner().flaw == Some(flaw)
    }

    pub fn rates(&self) -> Rates {
        self.inner().rates
    }

    /// From now on nothing goes wrong any more.
    pub fn calm_down(&self) {
        self.inner().calm = true;
        self.tell(|| "from now on nothing goes wrong any more".to_owned());
    }

    /// Whether a trouble happens; none does in the calm.
    pub fn strikes(&self, rate: f64) -> bool {
        let mut inner = self.inner();
        !inner.calm && inner.rng.random_bool(rate)
    }

    pub fn one_in(&self, count: u32) -> bool {
        self.inner().rng.random_ratio(1, count)
    }

    pub fn pick<T: SampleUniform>(&self, range: impl SampleRange<T>) -> T {
        self.inner().rng.random_range(range)
    }

    pub fn bits(&self) -> u128 {
        let mut inner = self.inner();
        u128::from(inner.rng.next_u64()) << 64 | u128::from(inner.rng.next_u64())
    }

    /// One of `among`.
    pub fn choose<T: Clone>(&self, among: &[T]) -> T {
        among[self.pick(0..among.len())].clone()
    }

    /// Who acts from now on, in the trace.
    pub fn act(&self, kind: &'static str, process: Option<usize>) {
        let mut inner = self.inner();
        inner.step += 1;
        inner.actor = (kind, process);
    }

    /// A line of the trace.
    pub fn tell(&self, line: impl FnOnce() -> String) {
        let mut inner = self.inner();
        let (step, (kind, process)) = (inner.step, inner.actor);
        if let Some(trace) = &mut inner.trace {
            let process = process.map_or_else(String::new, |process| format!("-{process}"));
            trace.push(format!("{step:>5} {:<14} {}", format!("{kind}{process}"), line()));
        }
    }

    pub fn trace(&self) -> Vec<String> {
        self.inner().trace.clone().unwrap_or_default()
    }

    /// Lets others go on, or not.
    pub async fn turn(&self) {
        poll_fn(|context| {
            if self.one_in(2) {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Sends a request to a server, which does `effect` when it arrives; nothing, if no answer came.
    /// Then it may have been done, or may be done later.
    pub async fn request<T: Send + 'static>(
        &self,
        what: impl Fn() -> String + Send + Sync + 'static,
        effect: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let what: What = Arc::new(what);
        let answer = Arc::new(Mutex::new(Answer::Awaited));
        let reply = Arc::clone(&answer);
        self.send(Arc::clone(&what), move |arrival| {
            *lock(&reply) = match arrival {
                Arrival::Lost => Answer::Never,
                Arrival::Unanswered => {
                    effect();
                    Answer::Never
                }
                Arrival::Answered => Answer::Here(effect()),
            };
        });
        let answered = poll_fn(|context| {
            let mut answer = lock(&answer);
            match std::mem::replace(&mut *answer, Answer::Awaited) {
                Answer::Here(value) => return Poll::Ready(Some(value)),
                Answer::Never => return Poll::Ready(None),
                Answer::Awaited => {}
            }
            if self.strikes(self.rates().gives_up) {
                return Poll::Ready(None);
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        if answered.is_none() {
            self.tell(|| format!("has no answer: {}", what()));
        }
        answered
    }

    /// Sends a message of which no answer is awaited.
    pub fn post(
        &self,
        what: impl Fn() -> String + Send + Sync + 'static,
        effect: impl FnOnce() + Send + 'static,
    ) {
        self.send(Arc::new(what), move |arrival| {
            if arrival != Arrival::Lost {
                effect();
            }
        });
    }

    fn send(&self, what: What, arrive: impl FnOnce(Arrival) + Send + 'static) {
        self.inner().wire.push(Request { what, arrive: Box::new(arrive) });
    }

    /// Whether no request is on its way.
    pub fn is_quiet(&self) -> bool {
        self.inner().wire.is_empty()
    }

    /// Has one of the requests arrive, if there are any.
    pub fn deliver(&self) -> bool {
        let mut inner = self.inner();
        let count = inner.wire.len();
        if count == 0 {
            return false;
        }
        let at = inner.rng.random_range(0..count);
        let request = inner.wire.swap_remove(at);
        drop(inner);
        let rates = self.rates();
        let arrival = if self.strikes(rates.request_lost) {
            Arrival::Lost
        } else if self.strikes(rates.answer_lost) {
            Arrival::Unanswered
        } else {
            Arrival::Answered
        };
        match arrival {
            Arrival::Lost => self.tell(|| format!("lost on its way: {}", (request.what)())),
            Arrival::Unanswered => {
                self.tell(|| format!("arrives, its answer will be lost: {}", (request.what)()));
            }
            Arrival::Answered => {}
        }
        (request.arrive)(arrival);
        true
    }
}
