//! What became of a command.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderValue;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use millrace_shared::command::{FieldError, Received};
use millrace_shared::ids::CommandId;
use millrace_shared::message::{Event, Subject};
use millrace_shared::topology::DECIDER;
use millrace_shared::views::{CommandStatus, CommandView, ViewError, command_view};
use serde::Deserialize;
use tokio::time::Instant;
use utoipa::IntoParams;

use crate::App;
use crate::auth::Caller;
use crate::contract::{Missing, WaitHeaders};
use crate::error::Problem;
use crate::reading::Freshness;
use crate::request::{MAX_WAIT, parameters, preferred_wait};

/// How a command is named.
#[derive(Debug, Clone, Copy)]
enum Named {
    Place(u64),
    Id(CommandId),
}

/// For how long an outcome is waited for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wait {
    /// Milliseconds; more than 30,000 are taken for 30,000.
    wait_ms: Option<u64>,
}

/// What became of a command: by command id, or by the stream sequence that the publish ack named.
///
/// With `waitMs` or `Prefer: wait` when it is decided, or 202 if it is not by then.
#[utoipa::path(
    get, path = "/v1/commands/{id}", tag = "commands",
    params(
        ("id" = String, Path, description = "A UUID, or a sequence", pattern = "^([0-9]{1,19}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$"),
        Wait, WaitHeaders,
    ),
    responses(
        (status = OK, description = "The outcome", body = CommandView),
        (status = ACCEPTED, description = "It is not decided yet", body = CommandView),
        Missing
    )
)]
pub async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    query: Result<Query<Wait>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wait = parameters(query)?.wait_ms.map(Duration::from_millis);
    let wait = wait.map(|wait| wait.min(MAX_WAIT)).or_else(|| preferred_wait(&headers));
    let view = app.outcome(&caller, &id, wait).await?;
    let undecided = wait.is_some() && view.status == CommandStatus::Pending;
    let status = if undecided { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(view)).into_response())
}

impl App {
    /// What became of a command, by its id or its place in COMMANDS, or what becomes of it in time.
    /// What is not the caller's is not there, however long it waits.
    pub async fn outcome(
        &self,
        caller: &Caller,
        id: &str,
        wait: Option<Duration>,
    ) -> Result<CommandView, Problem> {
        self.check_views()?;
        let named = match (id.parse::<u64>(), id.parse::<CommandId>()) {
            (Ok(sequence), _) => Named::Place(sequence),
            (_, Ok(command)) => Named::Id(command),
            _ => {
                let detail = "must be a UUID, or the sequence of the publish ack";
                return Err(Problem::field(FieldError::new("commandId", "invalid", detail)));
            }
        };
        let unknown = || {
            let detail = format!("no command {id} is known; its outcome may not be there yet");
            Problem::not_found(detail)
        };
        let decided = |view: &CommandView| view.status != CommandStatus::Pending;
        // NATS tells its own clients a place; no customer has any, and they can be counted through.
        if let (Named::Place(_), Some(_)) = (named, caller.on_behalf_of()) {
            return Err(unknown());
        }
        let mut seen = self.look_up(caller, named).await?;
        let Some(wait) = wait.filter(|_| !seen.as_ref().is_some_and(decided)) else {
            return seen.ok_or_else(unknown);
        };
        let deadline = Instant::now() + wait;
        let derived = match named {
            Named::Place(sequence) => self.topology.command_id(sequence),
            Named::Id(id) => id,
        };
        // A message may carry an id of its own.
        let ids = [Some(derived), seen.map(|view| view.command_id).filter(|id| *id != derived)];
        let keys = ids.into_iter().flatten().map(|id| format!("command/{id}"));
        let waiter = self.wait_for(keys.collect())?;
        let (mut in_time, mut told) = (true, false);
        loop {
            seen = self.look_up(caller, named).await?;
            if seen.as_ref().is_some_and(decided) || !in_time {
                return seen.ok_or_else(unknown);
            }
            in_time = match named {
                // That the message itself is settled, which comes right after, is not told.
                Named::Place(_) if told => waiter.changed_or_soon(deadline).await,
                _ => waiter.changed(deadline).await,
            };
            told = true;
        }
    }

    async fn look_up(&self, caller: &Caller, named: Named) -> Result<Option<CommandView>, Problem> {
        match named {
            Named::Place(0) => Ok(None),
            Named::Place(sequence) => by_sequence(self, sequence).await,
            Named::Id(id) => match self.views.command(id).await? {
                Some(view) if self.is_theirs(caller, &view).await? => Ok(Some(view)),
                _ => Ok(None),
            },
        }
    }

    /// Whether a command is the caller's to see: it was given in a customer's name, or it led to an
    /// event of an order or customer that is theirs.
    async fn is_theirs(&self, caller: &Caller, view: &CommandView) -> Result<bool, Problem> {
        let Some(customer) = caller.on_behalf_of() else { return Ok(true) };
        Ok(match view {
            CommandView { on_behalf_of: Some(given), .. } => given == customer,
            CommandView { version: None, .. } => false,
            CommandView { order_id: Some(order), .. } => {
                match self.read(caller, Subject::Order, order, &Freshness::default()).await {
                    Ok(_) => true,
                    Err(problem) if problem.status() == StatusCode::NOT_FOUND => false,
                    Err(problem) => return Err(problem),
                }
            }
            CommandView { customer_id, .. } => customer_id.as_deref() == Some(customer.as_str()),
        })
    }
}

/// The outcome of the message at a place in COMMANDS.
async fn by_sequence(app: &App, sequence: u64) -> Result<Option<CommandView>, Problem> {
    let derived_id = app.topology.command_id(sequence);
    if let Some(view) = app.views.command(derived_id).await? {
        return Ok(Some(view));
    }
    // It is not decided yet, or its client chose the id.
    if !app.can_accept() {
        return Err(unavailable("NATS cannot be reached"));
    }
    let stream = app.commands.stream().await.map_err(unavailable)?;
    let message = match stream.get_raw_message(sequence).await {
        Ok(message) => message,
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
        Err(error) => return Err(unavailable(error)),
    };
    let header = |name: &str| message.headers.get(name).map(HeaderValue::as_str);
    let kind = app.topology.command_kind(&message.subject);
    let place = app.topology.commands_stream();
    let id = Received::read(kind, &message.payload, header, (&place, sequence)).command_id;
    // Another message may have had the same id: then the refusal of this one stands under the
    // derived id, as soon as it is decided.
    let decided = match stream.consumer_info(DECIDER).await {
        Ok(decider) => decider.ack_floor.stream_sequence,
        // No validation has ever run here.
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => 0,
        Err(error) => return Err(unavailable(error)),
    };
    if id == derived_id || decided < sequence {
        return Ok(Some(CommandView::pending(id)));
    }
    let events = app.commands.other(&app.topology.events_stream()).await.map_err(unavailable)?;
    let outcome = app.topology.history(Subject::Command, &derived_id.to_string());
    match events.get_last_raw_message_by_subject(&outcome).await {
        Ok(refusal) => {
            let event = Event::decode(&refusal.payload).map_err(ViewError::from)?;
            Ok(command_view(&event)?)
        }
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
            Ok(app.views.command(id).await?.or_else(|| Some(CommandView::pending(id))))
        }
        Err(error) => Err(unavailable(error)),
    }
}

fn unavailable(error: impl std::fmt::Display) -> Problem {
    tracing::warn!(%error, "a command cannot be looked up by its sequence");
    Problem::unavailable("a command cannot be looked up by its sequence now")
}
