//! Every acknowledged command has an outcome: a decision in the ledger and an event that says the
//! same.

use std::collections::HashMap;
use std::fmt;

use anyhow::Result;
use millrace_shared::command::{Received, UNRECEIVABLE};
use millrace_shared::views::{CommandView, command_view};
use sqlx::Row as _;
use uuid::Uuid;

use super::Data;
use super::engine::{Check, Found, PAGE};
use super::journal;
use super::stream::{Message, Messages};

/// A message's place in COMMANDS.
#[derive(Debug, Clone, Copy)]
pub struct Place(u64);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "message {} of COMMANDS", self.0)
    }
}

/// The check of COMMANDS.
pub struct Commands {
    data: Data,
    messages: Messages,
}

/// A decision as the ledger has it.
struct Decision {
    fingerprint: Uuid,
    reason: Option<String>,
}

impl Commands {
    pub fn new(data: Data) -> Self {
        let messages = Messages::new(data.jetstream.clone(), data.topology.commands_stream());
        Self { data, messages }
    }

    fn received(&self, message: &Message) -> Received {
        let header = |name: &str| match message.unreceivable {
            Some(reason) => (name == UNRECEIVABLE).then_some(reason),
            None => message.headers.get(name).map(async_nats::HeaderValue::as_str),
        };
        let kind = self.data.topology.command_kind(&message.subject);
        let stream = self.data.topology.commands_stream();
        Received::read(kind, &message.payload, header, (&stream, message.sequence))
    }

    /// What is wrong with the messages that are there, and how many these are.
    async fn look(
        &self,
        sequences: impl IntoIterator<Item = u64>,
    ) -> Result<(usize, Vec<(Place, String)>)> {
        let messages = self.messages.read(sequences).await?;
        let received: Vec<Received> = messages.iter().map(|m| self.received(m)).collect();
        let ids: Vec<Uuid> =
            received.iter().flat_map(|r| [r.command_id.0, r.fallback_id.0]).collect();
        let decisions = self.decisions(&ids).await?;
        let answers = self.answers(&ids).await?;
        let mut wrong = Vec::new();
        for (message, received) in messages.iter().zip(&received) {
            if let Err(problem) = outcome(received, &decisions, &answers) {
                let kind = self.data.topology.command_kind(&message.subject);
                let id = received.command_id;
                wrong.push((Place(message.sequence), format!("{kind}, command {id}: {problem}")));
            }
        }
        Ok((messages.len(), wrong))
    }

    async fn decisions(&self, ids: &[Uuid]) -> Result<HashMap<Uuid, Decision>> {
        let rows = sqlx::query(
            "select command_id, fingerprint, reason from ledger.decisions
             where command_id = any($1)",
        )
        .bind(ids)
        .fetch_all(&self.data.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let decision = Decision {
                    fingerprint: row.try_get("fingerprint")?,
                    reason: row.try_get("reason")?,
                };
                Ok((row.try_get("command_id")?, decision))
            })
            .collect()
    }

    /// The outcomes that events tell.
    async fn answers(&self, ids: &[Uuid]) -> Result<HashMap<Uuid, CommandView>> {
        let rows = sqlx::query(
            "select * from journal.events where correlation = any($1) and causation = correlation",
        )
        .bind(ids)
        .fetch_all(&self.data.pool)
        .await?;
        let mut answers = HashMap::new();
        for row in &rows {
            if let Some(view) = command_view(&journal::event(row)?)? {
                answers.insert(view.command_id.0, view);
            }
        }
        Ok(answers)
    }
}

/// Whether a command has its outcome. Another body under a command id that was used before has it
/// under the id that follows from its place.
fn outcome(
    received: &Received,
    decisions: &HashMap<Uuid, Decision>,
    answers: &HashMap<Uuid, CommandView>,
) -> Result<(), String> {
    let own = |id: &Uuid| decisions.get(id).is_some_and(|d| d.fingerprint == received.fingerprint);
    let (named, derived) = (received.command_id.0, received.fallback_id.0);
    let Some(id) = [named, derived].into_iter().find(own) else {
        return Err("it has no decision".to_owned());
    };
    let decided = decisions.get(&id).and_then(|decision| decision.reason.as_deref());
    let Some(answer) = answers.get(&id) else {
        return Err("it is decided, but the journal has no event of it".to_owned());
    };
    let told = answer.reason.map(millrace_shared::reason::Reason::as_str);
    if decided == told {
        Ok(())
    } else {
        let words = |reason: Option<&str>| reason.unwrap_or("accepted").to_owned();
        Err(format!("the ledger says {}, its event {}", words(decided), words(told)))
    }
}

impl Check for Commands {
    type Key = Place;
    const NAME: &'static str = "commands";
    const PROMISE: &'static str =
        "command that was stored has one outcome, in the ledger and as an event";

    async fn scan(&self, found: &mut Found<Place>) -> Result<()> {
        let (mut next, last) = self.messages.range().await?;
        while next <= last {
            let end = last.min(next + u64::from(PAGE) - 1);
            let (checked, wrong) = self.look(next..=end).await?;
            found.note(checked, wrong);
            next = end + 1;
        }
        Ok(())
    }

    async fn examine(&self, keys: &[Place]) -> Result<Vec<(Place, String)>> {
        Ok(self.look(keys.iter().map(|place| place.0)).await?.1)
    }
}
