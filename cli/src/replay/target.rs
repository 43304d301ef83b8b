//! Where a replay sends its commands and looks for what became of them: one face for HTTP and
//! NATS.

use std::time::Duration;

use millrace_shared::command::{Command, Given, Identified, Source};
use millrace_shared::ids::CommandId;
use millrace_shared::message::Subject;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::http::Http;
use super::nats::{Nats, Watch};

/// The system, by one of its two ways in.
pub enum Target {
    Http(Http),
    Nats(Box<Nats>),
}

/// A command under its idempotency key, with the id that the system gives to the two: it is the
/// same on both ways in.
pub struct Request {
    pub command: Command,
    pub key: String,
    pub id: CommandId,
}

/// Why a command was refused.
#[derive(Debug, Clone)]
pub struct Refused {
    pub reason: String,
    pub detail: String,
}

/// What became of a request.
pub enum Settled<T> {
    /// The state that was waited for.
    Reached(T),
    /// The command was refused, and that state is not there.
    Refused(Refused),
    /// Neither, in the time that it had.
    Open,
}

/// How a subject stands to what is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It is so.
    Reached,
    /// It may become so.
    NotYet,
    /// It is what another command made of it.
    Other,
}

/// How the system answered when a command was handed in.
pub enum Answer {
    /// It is stored; its subject may come along as it now is.
    Taken(Option<Value>),
    Refused(Refused),
}

/// How long a refused command's subject is still looked for: a rejected order is told by the same
/// refusal, and its view may come a moment later.
const GRACE: Duration = Duration::from_secs(1);

impl Request {
    pub fn new(command: Command, key: String) -> anyhow::Result<Self> {
        let given = Given { key: Some(key.clone()), ..Given::default() };
        let id = Identified::new(command.clone(), &given, Source::New)?.command_id;
        Ok(Self { command, key, id })
    }
}

impl Target {
    /// A subject as it is now, if there is one.
    pub async fn look<T: DeserializeOwned>(
        &self,
        (subject, id): (Subject, &str),
        deadline: Instant,
    ) -> anyhow::Result<Option<T>> {
        let state = match self {
            Self::Http(http) => http.look(subject, id, deadline).await?,
            Self::Nats(nats) => nats.look(subject, id, deadline).await?,
        };
        Ok(state.map(serde_json::from_value).transpose()?)
    }

    async fn send(&self, request: &Request, deadline: Instant) -> anyhow::Result<Answer> {
        match self {
            Self::Http(http) => http.send(request, deadline).await,
            Self::Nats(nats) => nats.send(request, deadline).await,
        }
    }

    async fn refusal(&self, id: CommandId, deadline: Instant) -> anyhow::Result<Option<Refused>> {
        match self {
            Self::Http(http) => http.refusal(id, deadline).await,
            Self::Nats(nats) => nats.refusal(id, deadline).await,
        }
    }

    /// Sends a command, and waits until its subject is as `fit` wants it or the command is
    /// refused. Fails if it cannot be handed in, or the system cannot be asked.
    pub async fn settle<T: DeserializeOwned>(
        &self,
        request: &Request,
        subject: (Subject, &str),
        deadline: Instant,
        fit: impl Fn(&T) -> Fit,
    ) -> anyhow::Result<Settled<T>> {
        let mut pause = self.pause(request.id);
        let (mut seen, mut refused) = match self.send(request, deadline).await? {
            // An answer that is not the subject itself is no mistake: it is looked for then.
            Answer::Taken(state) => (state.and_then(|s| serde_json::from_value::<T>(s).ok()), None),
            Answer::Refused(refused) => (None, Some((refused, Instant::now() + GRACE))),
        };
        loop {
            if let Some(state) = seen.filter(|seen| fit(seen) == Fit::Reached) {
                return Ok(Settled::Reached(state));
            }
            // What the system says after the deadline no longer counts, but it is asked once.
            let until = deadline.max(Instant::now() + GRACE);
            seen = self.look(subject, until).await?;
            let now = seen.as_ref().map(&fit);
            if now == Some(Fit::Reached) {
                continue;
            }
            if refused.is_none() {
                let found = self.refusal(request.id, until).await?;
                refused = found.map(|refused| (refused, Instant::now() + GRACE));
            }
            match refused {
                Some((refused, end)) if now == Some(Fit::Other) || Instant::now() >= end => {
                    return Ok(Settled::Refused(refused));
                }
                None if Instant::now() >= deadline => return Ok(Settled::Open),
                _ => pause.next().await,
            }
        }
    }

    fn pause(&self, id: CommandId) -> Pause<'_> {
        match self {
            Self::Http(_) => Pause { watch: None, length: Duration::from_millis(5) },
            // The watch wakes it; asking now and then covers a wake-up that was lost.
            Self::Nats(nats) => Pause { watch: Some(nats.watch(id)), length: Pause::LONGEST },
        }
    }
}

/// The time between two looks: growing, or until something is told to have happened.
struct Pause<'a> {
    watch: Option<Watch<'a>>,
    length: Duration,
}

impl Pause<'_> {
    const LONGEST: Duration = Duration::from_millis(500);

    async fn next(&mut self) {
        let end = Instant::now() + self.length;
        self.length = (self.length * 2).min(Self::LONGEST);
        match &self.watch {
            Some(watch) => tokio::select! {
                () = watch.woken() => {}
                () = sleep_until(end) => {}
            },
            None => sleep_until(end).await,
        }
    }
}

/// Waits before trying again; false if the deadline would pass meanwhile.
pub async fn can_retry(wait: Duration, deadline: Instant) -> bool {
    let end = Instant::now() + wait;
    if end >= deadline {
        return false;
    }
    sleep_until(end).await;
    true
}
