//! The NATS way in: commands are published to the stream, and what became of them is read from
//! the log, without HTTP.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::Client;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::{Ordered, OrderedConfig};
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context};
use futures_util::StreamExt as _;
use millrace_shared::ids::CommandId;
use millrace_shared::message::{CommandOutcome, Event, Subject};
use millrace_shared::topology::Topology;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::target::{Answer, Refused, Request, can_retry};

const RETRY: Duration = Duration::from_millis(250);
/// How long the system may be away when the replay starts.
const START: Duration = Duration::from_secs(10);

pub struct Nats {
    jetstream: Context,
    log: Stream<()>,
    topology: Topology,
    watches: Watches,
    waker: JoinHandle<()>,
}

/// Who waits for something to happen to a command.
type Watches = Arc<Mutex<HashMap<Uuid, Arc<Notify>>>>;

impl Nats {
    pub async fn new(client: Client, topology: Topology) -> anyhow::Result<Self> {
        let jetstream = jetstream::new(client);
        let log = jetstream.get_stream_no_info(topology.events_stream()).await?;
        let deadline = Instant::now() + START;
        let messages = loop {
            match follow(&log, &topology).await {
                Ok(messages) => break messages,
                Err(error) if !can_retry(RETRY, deadline).await => return Err(error),
                Err(_) => {}
            }
        };
        let watches = Watches::default();
        let waker = tokio::spawn(wake(messages, log.clone(), topology.clone(), watches.clone()));
        Ok(Self { jetstream, log, topology, watches, waker })
    }

    /// Is woken when something happens to a command, from now on.
    pub fn watch(&self, id: CommandId) -> Watch<'_> {
        let notify = Arc::new(Notify::new());
        lock(&self.watches).insert(id.0, notify.clone());
        Watch { watches: &self.watches, id: id.0, notify }
    }

    pub async fn look(
        &self,
        subject: Subject,
        id: &str,
        deadline: Instant,
    ) -> anyhow::Result<Option<Value>> {
        let last = self.last(&self.topology.history(subject, id), deadline).await?;
        Ok(last.map(|event| event.state()).transpose()?)
    }

    pub async fn refusal(
        &self,
        id: CommandId,
        deadline: Instant,
    ) -> anyhow::Result<Option<Refused>> {
        let history = self.topology.history(Subject::Command, &id.to_string());
        let Some(event) = self.last(&history, deadline).await? else { return Ok(None) };
        let refusal = event.state::<CommandOutcome>()?.refusal;
        Ok(refusal.map(|refusal| Refused {
            reason: refusal.reason.as_str().to_owned(),
            detail: refusal.detail,
        }))
    }

    /// Publishes until the stream has acknowledged. A command that is stored twice that way has
    /// one outcome, as both have the same key.
    pub async fn send(&self, request: &Request, deadline: Instant) -> anyhow::Result<Answer> {
        let Value::Object(mut body) = serde_json::to_value(&request.command)? else {
            bail!("a command must be a JSON object");
        };
        body.insert("idempotencyKey".to_owned(), request.key.clone().into());
        let body = serde_json::to_vec(&body)?;
        let subject = self.topology.command(request.command.kind());
        loop {
            let ack =
                async { self.jetstream.publish(subject.clone(), body.clone().into()).await?.await };
            match ack.await {
                Ok(_) => return Ok(Answer::Taken(None)),
                Err(error) if !can_retry(RETRY, deadline).await => {
                    return Err(error).with_context(|| format!("{subject} takes no command"));
                }
                Err(_) => {}
            }
        }
    }

    /// The last event of a history, from the leader of the stream.
    async fn last(&self, history: &str, deadline: Instant) -> anyhow::Result<Option<Event>> {
        loop {
            match self.log.get_last_raw_message_by_subject(history).await {
                Ok(message) => return Ok(Some(Event::decode(&message.payload)?)),
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                    return Ok(None);
                }
                Err(error) if !can_retry(RETRY, deadline).await => {
                    return Err(error).context("the log cannot be read");
                }
                Err(_) => {}
            }
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.waker.abort();
    }
}

/// A command that is watched until this is dropped.
pub struct Watch<'a> {
    watches: &'a Watches,
    id: Uuid,
    notify: Arc<Notify>,
}

impl Watch<'_> {
    /// Something has happened since the last time.
    pub async fn woken(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        lock(self.watches).remove(&self.id);
    }
}

fn lock(watches: &Watches) -> MutexGuard<'_, HashMap<Uuid, Arc<Notify>>> {
    // Nothing panics while it is held; the map is whole in any case.
    watches.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the log from now on. A plain subscription would not do: it also gets, and before they
/// are stored, the events that the log then refuses.
async fn follow(log: &Stream<()>, topology: &Topology) -> anyhow::Result<Ordered> {
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::New,
        filter_subjects: topology.all_events(),
        ..OrderedConfig::default()
    };
    let consumer = log.create_consumer(config).await.context(
        "the stream of events cannot be followed: is NATS there, and is the system set up on it?",
    )?;
    Ok(consumer.messages().await?)
}

/// Wakes who waits for a command, at every event that goes back to it.
async fn wake(mut messages: Ordered, log: Stream<()>, topology: Topology, watches: Watches) {
    loop {
        while let Some(Ok(message)) = messages.next().await {
            let Ok(event) = Event::decode(&message.payload) else { continue };
            if let Some(notify) = lock(&watches).get(&event.correlation) {
                notify.notify_one();
            }
        }
        // Meanwhile those who wait look by themselves, now and then.
        messages = loop {
            match follow(&log, &topology).await {
                Ok(messages) => break messages,
                Err(error) => tracing::warn!("{error:#}"),
            }
            sleep(Duration::from_secs(1)).await;
        };
    }
}
