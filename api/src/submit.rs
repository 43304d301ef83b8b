//! The way of a command through the edge: read, given its ids, stored, answered.

use std::time::Duration;

use async_nats::HeaderMap as NatsHeaders;
use axum::Json;
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::future::{BoxFuture, FutureExt as _};
use millrace_shared::command::{
    ACTOR_HEADER, COMMAND_ID_HEADER, Command, Given, Identified, KEY_HEADER, ON_BEHALF_HEADER,
    Source,
};
use millrace_shared::crash;
use millrace_shared::ids::{CommandId, CustomerId};
use millrace_shared::log::{AppendError, Entry};
use millrace_shared::message::{Subject, TRACEPARENT, now};
use millrace_shared::metrics::{label, metrics};
use millrace_shared::reason::Reason;
use millrace_shared::trace::{SpanKind, Trace};
use millrace_shared::views::{CommandStatus, CommandView, Document, Mark, ViewError};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::App;
use crate::auth::Caller;
use crate::error::Problem;
use crate::reading;
use crate::request::{Posted, idempotency_key, preferred_wait};

/// How long storing a command may take before the client is told that its fate is not known.
const STORE_PATIENCE: Duration = Duration::from_millis(750);
/// How long a look at Redis may hold an acceptance up, which can do without.
const GLANCE: Duration = Duration::from_millis(100);
/// How long a look at the outcome may take: who waits is answered in time, if a little later.
const LOOK_PATIENCE: Duration = Duration::from_millis(500);

/// A command that is on its way.
struct Asked {
    command_id: CommandId,
    subject: Subject,
    id: String,
    /// Whose order it places.
    placed_by: Option<CustomerId>,
    /// In whose name it is given.
    on_behalf_of: Option<CustomerId>,
}

/// What is known of a command.
enum Seen {
    /// Not decided, or an order not paid yet: its status now.
    Underway(String),
    /// Refused, or an order that was rejected.
    Refused(Reason, String),
    /// Done: the subject after it.
    Done(Document, String),
}

/// The part of an order's view that the edge reads.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderStanding {
    status: String,
    command_id: Option<CommandId>,
    reason: Option<Reason>,
    #[serde(default)]
    detail: String,
}

/// Takes a command of a kind (`order.place`), as it stands in a request. Boxed, so that the layers around
/// it do not copy all that it holds.
pub fn submit<'a>(
    app: &'a App,
    caller: &'a Caller,
    kind: &'a str,
    posted: Posted,
) -> BoxFuture<'a, Result<Response, Problem>> {
    take(app, caller, kind, posted).boxed()
}

async fn take(app: &App, caller: &Caller, kind: &str, posted: Posted) -> Result<Response, Problem> {
    let Posted { headers, trace, body } = posted;
    let on_behalf_of = caller.on_behalf_of().cloned();
    let given = Given { command_id: None, key: idempotency_key(&headers)?, on_behalf_of };
    let command = Command::read(kind, body)?;
    if let Command::PlaceOrder(order) = &command
        && !caller.sees(order.customer_id.as_str())
    {
        return Err(Problem::forbidden("a customer places orders of its own only"));
    }
    let identified = Identified::new(command.clone(), &given, Source::New)?;
    let asked = Asked::new(&identified);
    let wait = preferred_wait(&headers);
    // Registered before anything happens, so that nothing is missed.
    let waiter = match wait {
        Some(wait) => match app.waiters.register(asked.keys()) {
            Some(waiter) => Some((waiter, Instant::now() + wait)),
            None => return Err(Problem::overloaded("too many requests wait for an outcome")),
        },
        None => None,
    };
    // A key that is known needs no second command.
    let known = if given.key.is_some() { app.known(&asked).await } else { None };
    let mut seen = if let Some(seen) = known {
        seen
    } else {
        // An id that follows from the command's own is left to follow; an order's does not.
        let stored = match &identified.command {
            order @ Command::PlaceOrder(_) => order,
            _ => &command,
        };
        let publish = trace.step(SpanKind::Producer, || format!("publish {kind}").into());
        publish.tell("millrace.command_id", asked.command_id.to_string());
        publish.tell("millrace.subject", format!("{}/{}", asked.subject, asked.id));
        let result = app.store(stored, &asked, &given, (&publish, caller.actor())).await;
        publish.end(result.as_ref().err().map(Problem::title));
        result?;
        app.mark(&asked).await;
        Seen::Underway("pending".to_owned())
    };
    let Some((waiter, deadline)) = waiter else { return answer(&asked, seen, false) };
    let mut in_time = true;
    while matches!(seen, Seen::Underway(_)) {
        let look = timeout(LOOK_PATIENCE, app.look(&asked)).await;
        let failed = !matches!(look, Ok(Ok(_)));
        match look {
            Ok(Ok(newer)) => seen = newer,
            Ok(Err(error)) => tracing::debug!(%error, "the outcome cannot be looked at now"),
            Err(_) => tracing::debug!("the outcome could not be looked at in time"),
        }
        if !in_time || !matches!(seen, Seen::Underway(_)) {
            break;
        }
        // Whatever ends the waiting, there is a last look.
        in_time = if failed {
            waiter.changed_or_soon(deadline).await
        } else {
            waiter.changed(deadline).await
        };
    }
    let mut response = answer(&asked, seen, true).unwrap_or_else(Problem::into_response);
    if let Some(wait) = wait
        && let Ok(applied) = HeaderValue::from_str(&format!("wait={}", wait.as_secs()))
    {
        response.headers_mut().insert("preference-applied", applied);
    }
    Ok(response)
}

impl Asked {
    fn new(identified: &Identified) -> Self {
        let (subject, id) = identified.command.target();
        let placed_by = match &identified.command {
            Command::PlaceOrder(order) => Some(order.customer_id.clone()),
            _ => None,
        };
        let (command_id, on_behalf_of) = (identified.command_id, identified.on_behalf_of.clone());
        Self { command_id, subject, id, placed_by, on_behalf_of }
    }

    /// What changes when the command is carried out.
    fn keys(&self) -> Vec<String> {
        vec![format!("command/{}", self.command_id), format!("{}/{}", self.subject, self.id)]
    }

    fn view(&self) -> CommandView {
        let mut view = CommandView::pending(self.command_id).about(self.subject, self.id.clone());
        view.on_behalf_of.clone_from(&self.on_behalf_of);
        view
    }

    /// Where what it is about, and its outcome, can be read.
    fn resource(&self) -> String {
        format!("/v1/{}s/{}", self.subject, self.id)
    }

    fn outcome(&self) -> String {
        format!("/v1/commands/{}", self.command_id)
    }

    fn name(&self) -> String {
        format!("{}Id", self.subject)
    }
}

impl App {
    /// What is known already of a command with an idempotency key; nothing, if Redis is away.
    async fn known(&self, asked: &Asked) -> Option<Seen> {
        if !self.marks.may_try() || !self.can_read() {
            return None;
        }
        let look = async {
            let (outcome, document) = self.seen(asked).await?;
            match Self::reused(asked, document.as_ref())? {
                None if outcome.is_some() => Self::told(asked, outcome, document).map(Some),
                reused => Ok(reused),
            }
        };
        timeout(GLANCE, look).await.ok().and_then(|seen: Result<_, ViewError>| seen.ok()).flatten()
    }

    /// Whether the order of this customer and key was placed by a command with another body.
    fn reused(asked: &Asked, document: Option<&Document>) -> Result<Option<Seen>, ViewError> {
        // While it is pending, the ledger has not decided which body is the key's.
        let Some(document) = document.filter(|it| asked.placed_by.is_some() && it.version > 0)
        else {
            return Ok(None);
        };
        let standing = standing(document)?;
        let other = standing.command_id.is_some_and(|id| id != asked.command_id);
        let detail = "the idempotency key was used with another body";
        Ok(other.then(|| Seen::Refused(Reason::IdempotencyKeyReused, detail.to_owned())))
    }

    /// What is to be seen of a command now.
    async fn look(&self, asked: &Asked) -> Result<Seen, ViewError> {
        let (outcome, document) = self.seen(asked).await?;
        Self::told(asked, outcome, document)
    }

    async fn seen(
        &self,
        asked: &Asked,
    ) -> Result<(Option<CommandView>, Option<Document>), ViewError> {
        self.views.outcome(asked.command_id, (asked.subject, &asked.id)).await
    }

    fn told(
        asked: &Asked,
        outcome: Option<CommandView>,
        document: Option<Document>,
    ) -> Result<Seen, ViewError> {
        let pending = || Seen::Underway("pending".to_owned());
        let Some(outcome) = outcome else { return Ok(pending()) };
        match (outcome.status, outcome.reason) {
            (CommandStatus::Pending, _) => return Ok(pending()),
            (CommandStatus::Rejected, Some(reason)) => {
                return Ok(Seen::Refused(reason, outcome.detail.unwrap_or_default()));
            }
            (CommandStatus::Accepted | CommandStatus::Rejected, _) => {}
        }
        let Some(document) = document.filter(|d| d.version >= outcome.version.unwrap_or(1)) else {
            return Ok(pending());
        };
        if asked.placed_by.is_none() {
            return Ok(Seen::Done(document, "accepted".to_owned()));
        }
        let standing = standing(&document)?;
        Ok(match (standing.status.as_str(), standing.reason) {
            ("pending" | "validated" | "payment_unknown", _) => Seen::Underway(standing.status),
            ("rejected", Some(reason)) => Seen::Refused(reason, standing.detail),
            _ => Seen::Done(document, standing.status),
        })
    }

    /// Stores the command. Only an answer that says so means that it has had no effect.
    async fn store(
        &self,
        command: &Command,
        asked: &Asked,
        given: &Given,
        (trace, actor): (&Trace, Option<&str>),
    ) -> Result<(), Problem> {
        let told = |outcome: &'static str| {
            let labels = [label("kind", command.kind()), label("outcome", outcome)];
            metrics().commands.add(1, &labels);
        };
        if !self.can_accept() {
            told("unavailable");
            return Err(Problem::unavailable("NATS cannot be reached; nothing was stored"));
        }
        let payload = serde_json::to_vec(command).map_err(|error| {
            tracing::error!(%error, "a command cannot be written as JSON");
            Problem::internal()
        })?;
        let mut about = NatsHeaders::new();
        about.insert(COMMAND_ID_HEADER, asked.command_id.to_string().as_str());
        if let Some(key) = &given.key {
            about.insert(KEY_HEADER, key.as_str());
        }
        // Both are the edge's to say: nothing that a client sends becomes one of them.
        if let Some(customer) = &given.on_behalf_of {
            about.insert(ON_BEHALF_HEADER, customer.as_str());
        }
        if let Some(actor) = actor {
            about.insert(ACTOR_HEADER, actor);
        }
        if let Some(traceparent) = trace.traceparent() {
            about.insert(TRACEPARENT, traceparent);
        }
        let entry = Entry {
            subject: self.topology.command(command.kind()),
            payload: payload.into(),
            headers: about,
            expect: None,
        };
        match self.commands.try_append(vec![entry], STORE_PATIENCE).await {
            Ok(_) => {
                crash::point("api.stored");
                told("stored");
                Ok(())
            }
            Err(AppendError::Full(reason)) => {
                told("full");
                tracing::warn!(%reason, "commands are refused");
                Err(Problem::overloaded("no more commands can be stored now; nothing was stored"))
            }
            Err(AppendError::Unavailable(reason)) => {
                told("unknown");
                tracing::warn!(%reason, "a command was not confirmed in time");
                Err(outcome_unknown(asked))
            }
            Err(error @ (AppendError::Refused(_) | AppendError::Conflict)) => {
                told("failed");
                tracing::error!(%error, "a command cannot be stored");
                Err(Problem::internal())
            }
        }
    }

    /// Notes in the views that the command is pending: a courtesy for who reads right away.
    async fn mark(&self, asked: &Asked) {
        if self.marks.may_try() && self.can_read() {
            let placed = asked.placed_by.clone().map(|customer| (customer, now()));
            self.marks.note(Mark { command: asked.view(), placed }).await;
        }
        crash::point("api.marked");
    }
}

fn standing(document: &Document) -> Result<OrderStanding, ViewError> {
    serde_json::from_str(&document.json).map_err(|_| ViewError::Damaged("of an order".to_owned()))
}

fn outcome_unknown(asked: &Asked) -> Problem {
    let detail = "NATS did not confirm the command in time: it may be stored or not. Read the \
                  outcome, or send it again with the same idempotency key";
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let title = "Outcome unknown";
    let problem = Problem::new(status, "/problems/outcome-unknown", title, detail).retry();
    problem
        .with("commandId", asked.command_id.to_string())
        .with(&asked.name(), asked.id.as_str())
        .with("links", links(asked))
}

fn links(asked: &Asked) -> Value {
    json!({ asked.subject.as_str(): asked.resource(), "command": asked.outcome() })
}

/// The answer; `waited` where the client has asked to be told the outcome.
fn answer(asked: &Asked, seen: Seen, waited: bool) -> Result<Response, Problem> {
    let status = match seen {
        Seen::Refused(reason, detail) => {
            let status = refusal_status(reason, asked.placed_by.is_some());
            return Err(Problem::refused(status, reason, detail)
                .with("commandId", asked.command_id.to_string())
                .with(&asked.name(), asked.id.as_str()));
        }
        Seen::Done(document, _) if waited => {
            let document = match asked.subject {
                Subject::Customer => reading::with_credit(&document)?,
                _ => document,
            };
            let mut response = reading::document(&HeaderMap::new(), document);
            if asked.placed_by.is_some() {
                *response.status_mut() = StatusCode::CREATED;
                locate(&mut response, asked);
            }
            return Ok(response);
        }
        Seen::Done(_, status) | Seen::Underway(status) => status,
    };
    let body = json!({
        asked.name(): asked.id,
        "commandId": asked.command_id,
        "status": status,
        "links": links(asked),
    });
    let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
    locate(&mut response, asked);
    Ok(response)
}

fn locate(response: &mut Response, asked: &Asked) {
    // Ids have no character that a header may not have.
    if let Ok(location) = HeaderValue::from_str(&asked.resource()) {
        response.headers_mut().insert(LOCATION, location);
    }
}

/// 404 for what does not exist, 409 for what does not fit its state, 422 for all else. An order
/// that names something unknown exists itself: rejected.
fn refusal_status(reason: Reason, places: bool) -> StatusCode {
    match reason {
        Reason::UnknownOrder | Reason::UnknownCustomer | Reason::UnknownProduct if !places => {
            StatusCode::NOT_FOUND
        }
        Reason::NotAllowed | Reason::AlreadyExists | Reason::CurrencyMismatch => {
            StatusCode::CONFLICT
        }
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    }
}
