//! What became of a command.

use std::sync::Arc;

use async_nats::jetstream::stream::RawMessageErrorKind;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use millrace_shared::command::{FieldError, Received};
use millrace_shared::ids::CommandId;
use millrace_shared::views::CommandView;

use crate::App;
use crate::error::Problem;

/// `GET /v1/commands/{id}`, by command id or by the stream sequence that the publish ack named.
pub async fn show(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    app.check_views()?;
    let view = match (id.parse::<u64>(), id.parse::<CommandId>()) {
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

async fn by_sequence(app: &App, sequence: u64) -> Result<Option<CommandView>, Problem> {
    if let Some(view) = app.views.command(app.topology.command_id(sequence)).await? {
        return Ok(Some(view));
    }
    // It is not decided yet, or its client chose the id.
    let unavailable = |error: &dyn std::fmt::Display| {
        tracing::warn!(%error, "a command cannot be read");
        Problem::unavailable("the command cannot be looked up by its sequence without NATS")
    };
    if !app.can_accept() {
        return Err(unavailable(&"NATS cannot be reached"));
    }
    let stream = app.commands.stream().await.map_err(|error| unavailable(&error))?;
    let message = match stream.get_raw_message(sequence).await {
        Ok(message) => message,
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
        Err(error) => return Err(unavailable(&error)),
    };
    let header = |name: &str| message.headers.get(name).map(|value| value.as_str());
    let kind = app.topology.command_kind(&message.subject);
    let place = (app.topology.commands_stream(), sequence);
    let received = Received::read(kind, &message.payload, header, (&place.0, place.1));
    let view = app.views.command(received.command_id).await?;
    Ok(view.or_else(|| Some(CommandView::pending(received.command_id))))
}
