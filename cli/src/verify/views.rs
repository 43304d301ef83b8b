//! Each view in Redis equals what its history gives: documents, and outcomes of commands.

use std::fmt;

use anyhow::Result;
use futures_util::future::try_join_all;
use millrace_shared::message::{Event, Subject, now};
use millrace_shared::views::{Document, ViewError, command_view};
use serde_json::Value;

use super::Data;
use super::engine::{Check, Found, PAGE};
use super::journal::{self, Owner, difference, ids_of};

const SUBJECTS: [Subject; 3] = [Subject::Order, Subject::Customer, Subject::Product];

/// The check of the documents.
pub struct Documents {
    data: Data,
}

impl Documents {
    pub fn new(data: Data) -> Self {
        Self { data }
    }

    async fn look(&self, subject: Subject, ids: Vec<String>) -> Result<Vec<(Owner, String)>> {
        // First the views, then the journal: meanwhile a view does not become older.
        let reads = ids.iter().map(|id| self.document(subject, id));
        let documents: Vec<Option<Document>> = try_join_all(reads).await?;
        let version = |document: &Option<Document>| document.as_ref().map_or(0, |d| d.version);
        let versions: Vec<(String, u64)> =
            ids.into_iter().zip(documents.iter().map(version)).collect();
        let states = journal::states(&self.data.pool, subject, &versions).await?;
        let behind = self.behind(subject, &versions).await?;
        let mut wrong = Vec::new();
        for ((id, version), document) in versions.into_iter().zip(documents) {
            let problem = match (document, states.get(&id)) {
                _ if behind.contains(&id) => match version {
                    0 => Some("it has no view".to_owned()),
                    _ => Some(format!("its view stays at version {version}")),
                },
                (None, _) => None,
                (Some(_), None) if version == 0 => None,
                (Some(_), None) => {
                    Some(format!("its view is of version {version}, which the journal has not"))
                }
                (Some(document), Some(state)) => difference(state, &parsed(&document.json))
                    .map(|difference| format!("its view differs: {difference}")),
            };
            wrong.extend(problem.map(|problem| (Owner { subject, id }, problem)));
        }
        Ok(wrong)
    }

    async fn document(&self, subject: Subject, id: &str) -> Result<Option<Document>> {
        match self.data.views.document(subject, id).await {
            Ok(document) => Ok(document),
            Err(ViewError::Absent) => Ok(None),
            // A version that no history has.
            Err(ViewError::Damaged(json)) => Ok(Some(Document { version: u64::MAX, json })),
            Err(error) => Err(error.into()),
        }
    }

    /// Those of which the journal has had a newer version for longer than the settling time.
    async fn behind(&self, subject: Subject, versions: &[(String, u64)]) -> Result<Vec<String>> {
        let signed = |version: u64| i64::try_from(version).unwrap_or(i64::MAX);
        Ok(sqlx::query_scalar(
            "select shown.id from unnest($2::text[], $3::bigint[]) as shown (id, version)
             where exists (select from journal.events
                           where subject = $1 and subject_id = shown.id
                             and version > shown.version and occurred_at < $4)",
        )
        .bind(subject.as_str())
        .bind(versions.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>())
        .bind(versions.iter().map(|(_, version)| signed(*version)).collect::<Vec<_>>())
        .bind(now() - self.data.settle)
        .fetch_all(&self.data.pool)
        .await?)
    }
}

fn parsed(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|_| Value::String(json.to_owned()))
}

impl Check for Documents {
    type Key = Owner;
    const NAME: &'static str = "views";
    const PROMISE: &'static str =
        "order, customer and product in Redis is as its history says, and not behind";

    async fn scan(&self, found: &mut Found<Owner>) -> Result<()> {
        for subject in SUBJECTS {
            let mut after = String::new();
            loop {
                let page = journal::owners(&self.data.pool, subject, &after).await?;
                let Some(last) = page.last() else { break };
                after.clone_from(&last.id);
                let wrong = self.look(subject, ids_of(&page, subject)).await?;
                found.note(page.len(), wrong);
            }
        }
        Ok(())
    }

    async fn examine(&self, keys: &[Owner]) -> Result<Vec<(Owner, String)>> {
        let mut wrong = Vec::new();
        for subject in SUBJECTS {
            wrong.extend(self.look(subject, ids_of(keys, subject)).await?);
        }
        Ok(wrong)
    }
}

/// A row of the journal that answers a command.
#[derive(Debug, Clone)]
pub struct Answer {
    owner: Owner,
    version: i64,
    command: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "command {}", self.command)
    }
}

/// The check of the outcomes.
pub struct Outcomes {
    data: Data,
}

impl Outcomes {
    pub fn new(data: Data) -> Self {
        Self { data }
    }

    async fn look(&self, events: &[Event]) -> Result<Vec<(Answer, String)>> {
        let views = try_join_all(events.iter().map(async |event| {
            let Some(expected) = command_view(event)? else { return Ok(None) };
            let problem = match self.data.views.command(expected.command_id).await {
                Ok(Some(view)) if view == expected => None,
                Ok(Some(view)) => {
                    difference(&serde_json::to_value(&expected)?, &serde_json::to_value(view)?)
                        .map(|difference| format!("its view differs: {difference}"))
                }
                Ok(None) | Err(ViewError::Absent) => Some("it has no view".to_owned()),
                Err(ViewError::Damaged(key)) => Some(format!("the view {key} cannot be read")),
                Err(error) => return Err(anyhow::Error::from(error)),
            };
            let answer = || Answer {
                owner: Owner { subject: event.subject, id: event.subject_id.clone() },
                version: i64::try_from(event.version).unwrap_or(i64::MAX),
                command: expected.command_id.to_string(),
            };
            Ok(problem.map(|problem| (answer(), problem)))
        }))
        .await?;
        Ok(views.into_iter().flatten().collect())
    }
}

impl Check for Outcomes {
    type Key = Answer;
    const NAME: &'static str = "outcomes";
    const PROMISE: &'static str = "outcome of a command in Redis is what its event says";

    async fn scan(&self, found: &mut Found<Answer>) -> Result<()> {
        let mut after = (String::new(), String::new(), 0_i64);
        loop {
            let rows = sqlx::query(
                "select * from journal.events
                 where (subject, subject_id, version) > ($1, $2, $3)
                   and causation = correlation and causation <> '00000000-0000-0000-0000-000000000000'
                 order by subject, subject_id, version limit $4",
            )
            .bind(&after.0)
            .bind(&after.1)
            .bind(after.2)
            .bind(i64::from(PAGE))
            .fetch_all(&self.data.pool)
            .await?;
            let events = rows.iter().map(journal::event).collect::<Result<Vec<_>>>()?;
            let Some(last) = events.last() else { return Ok(()) };
            let version = i64::try_from(last.version).unwrap_or(i64::MAX);
            after = (last.subject.to_string(), last.subject_id.clone(), version);
            found.note(events.len(), self.look(&events).await?);
        }
    }

    async fn examine(&self, keys: &[Answer]) -> Result<Vec<(Answer, String)>> {
        let rows = sqlx::query(
            "select * from unnest($1::text[], $2::text[], $3::bigint[])
                    as asked (subject, subject_id, version)
             join journal.events using (subject, subject_id, version)",
        )
        .bind(keys.iter().map(|key| key.owner.subject.as_str()).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.owner.id.as_str()).collect::<Vec<_>>())
        .bind(keys.iter().map(|key| key.version).collect::<Vec<_>>())
        .fetch_all(&self.data.pool)
        .await?;
        let events = rows.iter().map(journal::event).collect::<Result<Vec<_>>>()?;
        self.look(&events).await
    }
}
