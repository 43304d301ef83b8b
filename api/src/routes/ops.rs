//! The pipeline and its parked messages, for operators. Only there with `--operator-routes`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use millrace_shared::command::{FieldError, Malformed, check_text, one_line};
use millrace_shared::parking::desk::{Desk, Filter, Patience};
use millrace_shared::parking::told;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::{IntoParams, ToSchema};

use crate::App;
use crate::auth::Caller;
use crate::contract::{Discarded, ParkedPage, SampleEvent, WaitHeaders};
use crate::error::{Body, Problem};
use crate::pipeline::{Pipeline, Samples};
use crate::reading::limit;
use crate::request::{Posted, parameters, path_id, preferred_wait};

/// Messages that one request may name, or have replayed.
const MOST: usize = 100;
/// The longest reason for a discard.
const LONGEST_WHY: usize = 1_000;
/// How long results of a replay are waited for without `Prefer: wait`.
const WAIT: Duration = Duration::from_secs(10);

/// Which parked messages are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ParkedQuery {
    /// Only of this worker.
    #[param(pattern = r"^[^\s.*>\u0000-\u001f\u007f-\u009f]{1,200}$")]
    worker: Option<String>,
    /// Only about this subject: `order/ID`.
    #[param(
        pattern = r"^[^\s.*>/\u0000-\u001f\u007f-\u009f]{1,200}/[^\s.*>\u0000-\u001f\u007f-\u009f]{1,200}$"
    )]
    subject: Option<String>,
    /// Items of a page.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// The `nextCursor` of the page before.
    #[param(pattern = "^[0-9]{1,19}$")]
    cursor: Option<String>,
}

/// What is to be replayed: what is named, or all.
#[derive(Debug, ToSchema)]
#[serde(untagged)]
enum Replay {
    Named(ReplayNamed),
    All(ReplayAll),
}

/// These messages, and what is parked of the same orders.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ReplayNamed {
    /// Their sequences in PARKED.
    #[schema(min_items = 1, max_items = 100)]
    sequences: Vec<u64>,
    /// The most that are replayed.
    #[schema(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// All messages, or all of a worker or about a subject.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ReplayAll {
    #[schema(schema_with = just_true)]
    all: bool,
    /// Only of this worker.
    #[schema(pattern = r"^[^\s.*>\u0000-\u001f\u007f-\u009f]{1,200}$")]
    worker: Option<String>,
    /// Only about this subject: `order/ID`.
    #[schema(
        pattern = r"^[^\s.*>/\u0000-\u001f\u007f-\u009f]{1,200}/[^\s.*>\u0000-\u001f\u007f-\u009f]{1,200}$"
    )]
    subject: Option<String>,
    /// The most that are replayed.
    #[schema(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// The sequence to begin at.
    cursor: Option<u64>,
}

fn just_true() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([true]))
}

/// What is to be discarded.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Discard {
    /// Their sequences in PARKED.
    #[schema(min_items = 1, max_items = 100)]
    sequences: Vec<u64>,
    /// Kept in the audit table.
    #[schema(schema_with = one_line::<LONGEST_WHY>)]
    why: String,
}

/// The pipeline now, and its last quarter of an hour.
#[utoipa::path(
    get, path = "/v1/ops/pipeline", tag = "operators",
    responses((status = OK, description = "The pipeline", body = Pipeline))
)]
pub async fn pipeline(State(app): State<Arc<App>>) -> Json<Pipeline> {
    Json(app.monitor.pipeline())
}

/// The pipeline as it changes, as Server-Sent Events: a whole sample every two seconds.
#[utoipa::path(
    get, path = "/v1/ops/pipeline/stream", tag = "operators",
    responses((status = OK, description = "Samples, until the client goes", body = SampleEvent, content_type = "text/event-stream"))
)]
pub async fn pipeline_stream(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Response, Problem> {
    let slot = app.live.slot(&app.gate, &caller)?;
    let mut news = app.monitor.watch();
    let first = Samples::first(&mut news);
    Ok(app.live.answer(slot, news, Samples, first))
}

/// Parked messages, in the order in which they were parked.
#[utoipa::path(
    get, path = "/v1/ops/parked", tag = "operators", params(ParkedQuery),
    responses((status = OK, description = "A page", body = ParkedPage))
)]
pub async fn list(
    State(app): State<Arc<App>>,
    query: Result<Query<ParkedQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let query = parameters(query)?;
    let limit = limit(query.limit)?;
    let filter = filter(query.worker.as_deref(), query.subject.as_deref())?;
    let cursor = query.cursor.as_deref().map(|cursor| path_id("cursor", cursor)).transpose()?;
    let page = desk(&app)?.list(&filter, cursor.unwrap_or(1), limit).await.map_err(unavailable)?;
    let next = page.next_cursor.map(|cursor| cursor.to_string());
    Ok(Json(json!({ "items": page.items, "nextCursor": next })).into_response())
}

/// A parked message with all that it holds.
#[utoipa::path(
    get, path = "/v1/ops/parked/{sequence}", tag = "operators",
    params(("sequence" = u64, Path, description = "Its sequence in PARKED")),
    responses(
        (status = OK, description = "The message", body = told::Shown),
        (status = NOT_FOUND, description = "Nothing is parked there", body = Body, content_type = "application/problem+json")
    )
)]
pub async fn show(
    State(app): State<Arc<App>>,
    Path(sequence): Path<String>,
) -> Result<Response, Problem> {
    let sequence: u64 = path_id("sequence", &sequence)?;
    let shown = desk(&app)?.show(sequence).await.map_err(unavailable)?;
    let none = || Problem::not_found(format!("nothing is parked as {sequence}"));
    Ok(Json(shown.ok_or_else(none)?).into_response())
}

/// Gives parked messages back to their workers, and waits for what becomes of them.
#[utoipa::path(
    post, path = "/v1/ops/parked/replay", tag = "operators", params(WaitHeaders),
    request_body(content = Replay, example = json!({ "all": true })),
    responses((status = OK, description = "What became of them", body = told::Report))
)]
pub async fn replay(
    State(app): State<Arc<App>>,
    caller: Caller,
    posted: Posted,
) -> Result<Response, Problem> {
    let patience = Patience::of(preferred_wait(&posted.headers).unwrap_or(WAIT));
    let replay = if posted.body.contains_key("all") {
        Replay::All(body(posted)?)
    } else {
        Replay::Named(body(posted)?)
    };
    let report = match replay {
        Replay::Named(ReplayNamed { sequences, limit: most }) => {
            bounded(&sequences)?;
            let most = limit(most.or(Some(MOST)))?;
            desk(&app)?.of(caller.actor()).replay(&sequences, most, patience).await
        }
        Replay::All(ReplayAll { all: false, .. }) => {
            let detail = "must be true; leave it out to name sequences";
            return Err(Problem::field(FieldError::new("all", "invalid", detail)));
        }
        Replay::All(ReplayAll { worker, subject, limit: most, cursor, .. }) => {
            let filter = filter(worker.as_deref(), subject.as_deref())?;
            let most = limit(most.or(Some(MOST)))?;
            let from = cursor.unwrap_or(1);
            desk(&app)?.of(caller.actor()).replay_all(&filter, from, most, patience, |_| {}).await
        }
    };
    Ok(Json(report.map_err(unavailable)?).into_response())
}

/// Discards parked messages; they are kept in the audit table.
#[utoipa::path(
    post, path = "/v1/ops/parked/discard", tag = "operators", request_body(content = Discard, example = json!({ "sequences": [7], "why": "the order is a test" })),
    responses((status = OK, description = "What became of them", body = Discarded))
)]
pub async fn discard(
    State(app): State<Arc<App>>,
    caller: Caller,
    posted: Posted,
) -> Result<Response, Problem> {
    let discard: Discard = body(posted)?;
    bounded(&discard.sequences)?;
    let mut errors = Vec::new();
    check_text("why", &discard.why, LONGEST_WHY, &mut errors);
    if !errors.is_empty() {
        return Err(Malformed(errors).into());
    }
    let results = desk(&app)?
        .of(caller.actor())
        .discard(&discard.sequences, &discard.why)
        .await
        .map_err(unavailable)?;
    Ok(Json(json!({ "results": results })).into_response())
}

fn desk(app: &App) -> Result<&Desk, Problem> {
    if !app.can_accept() {
        return Err(unavailable("NATS cannot be reached"));
    }
    app.desk.as_ref().ok_or_else(Problem::internal)
}

fn filter(worker: Option<&str>, subject: Option<&str>) -> Result<Filter, Problem> {
    Filter::new(worker, subject).map_err(|detail| {
        let field = if detail.contains("worker") { "worker" } else { "subject" };
        Problem::field(FieldError::new(field, "invalid", detail))
    })
}

fn bounded(sequences: &[u64]) -> Result<(), Problem> {
    if (1..=MOST).contains(&sequences.len()) {
        return Ok(());
    }
    let detail = format!("must be from 1 to {MOST}");
    Err(Problem::field(FieldError::new("sequences", "out_of_range", detail)))
}

fn body<T: for<'de> Deserialize<'de>>(posted: Posted) -> Result<T, Problem> {
    serde_json::from_value(Value::Object(posted.body))
        .map_err(|error| Problem::field(FieldError::new("body", "invalid", error.to_string())))
}

/// NATS or PostgreSQL is away. Nothing is lost by it: what was asked for is done, and can be asked
/// for again.
fn unavailable(error: impl std::fmt::Display) -> Problem {
    tracing::warn!("parked messages cannot be handled: {error:#}");
    Problem::unavailable("parked messages cannot be handled now; ask again what became of them")
}
