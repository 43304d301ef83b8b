//! What became of a command.

use std::sync::Arc;

use async_nats::HeaderValue;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind};
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use millrace_shared::command::{FieldError, Received};
use millrace_shared::ids::CommandId;
use millrace_shared::message::{Event, Subject};
use millrace_shared::topology::DECIDER;
use millrace_shared::views::{CommandView, ViewError, command_view};

use crate::App;
use crate::contract::ReadAnswers;
use crate::error::Problem;

/// What became of a command: by command id, or by the stream sequence that the publish ack named.
#[utoipa::path(
    get, path = "/v1/commands/{id}", tag = "commands",
    params(("id" = String, Path, description = "A UUID, or a sequence", pattern = "^([0-9]{1,19}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$")),
    responses((status = OK, description = "The outcome", body = CommandView), ReadAnswers)
)]
pub async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    app.check_views()?;
    let view = match (id.parse::<u64>(), id.parse::<CommandId>()) {
        (Ok(0), _) => None,
        (Ok(sequence), _) => by_sequence(&app, sequence).await?,
        (_, Ok(command)) => app.views.command(command).await?,
        _ => {
            let detail = "must be a UUID, or the sequence of the publish ack";
            return Err(Problem::field(FieldError::new("commandId", "invalid", detail)));
        }
    };
    let view = view.ok_or_else(|| {
        Problem::not_found(format!("no command {id} is known; its outcome may not be there yet"))
    })?;
    Ok(Json(view).into_response())
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
    let decider = stream.consumer_info(DECIDER).await.map_err(unavailable)?;
    if id == derived_id || decider.ack_floor.stream_sequence < sequence {
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
