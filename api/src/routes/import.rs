//! Taking in a catalogue: rows are read while they arrive, and stored as commands, many at a time.
//! Memory is bounded by a few chunks of the body, a few hundred rows, and a hash for each product.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use millrace_shared::command::{ACTOR_HEADER, FieldError};
use millrace_shared::import::{Before, Format, Report, Row, Rows, RowsError, command_id, entry};
use millrace_shared::log::{AppendError, Entry};
use serde_json::Value;
use tokio::sync::{SemaphorePermit, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::App;
use crate::auth::Caller;
use crate::error::Problem;
use crate::request::{BODY_PATIENCE, MOST_FORGOTTEN, too_slow};

/// Rows that are stored at a time.
const BATCH: usize = 200;
/// How long a batch may take to be stored.
const STORE_PATIENCE: Duration = Duration::from_secs(10);
/// Chunks of the body, and batches of rows, that wait.
const AHEAD: usize = 4;

/// Takes in a catalogue: CSV with a header, or one JSON object on each line.
///
/// Wrong rows do not hold up the others. What is known already is left out, so the same may be sent again.
#[utoipa::path(
    post, path = "/v1/products:import", tag = "products",
    request_body(content(
        (String = "text/csv", example = "productId,name,brand,category,price,currency,stock\npen,Pen,Acme,Office,199,USD,10\n"),
        (String = "application/x-ndjson")
    )),
    responses(
        (status = OK, description = "Nothing was to be changed", body = Report),
        (status = ACCEPTED, description = "Rows were stored as commands; they are decided after that", body = Report),
    )
)]
pub async fn import(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (format, _turn) = match admit(&app, &headers) {
        Ok(admitted) => admitted,
        Err(problem) => {
            forget(body.into_data_stream()).await;
            return Err(problem);
        }
    };
    let (to_reader, chunks) = mpsc::channel(AHEAD);
    let (to_store, batches) = mpsc::channel(AHEAD);
    let reading = spawn_blocking(move || read(Chunks::new(chunks), format, &to_store));
    let (pumped, read, (report, stored)) = tokio::join!(
        pump(body, to_reader, app.import_max_bytes),
        reading,
        store(&app, &caller, batches)
    );
    let read = read.map_err(|error| {
        tracing::error!(%error, "an import cannot be read");
        Problem::internal()
    });
    // What has gone wrong first is the reason of what has gone wrong after it.
    let problem = stored.err().or(pumped.err()).or(match read? {
        Ok(()) => None,
        Err(RowsError::Header(malformed)) => Some(malformed.into()),
        Err(error) => Some(Problem::field(FieldError::new("body", "invalid", error.to_string()))),
    });
    match problem {
        // Nothing is taken back: who sends all of it again changes nothing by what is stored.
        Some(problem) => Err(problem.with("report", told(&report))),
        None if report.published > 0 => {
            Ok((StatusCode::ACCEPTED, Json(told(&report))).into_response())
        }
        None => Ok(Json(told(&report)).into_response()),
    }
}

/// Whether an import may begin now, and how its rows are written.
fn admit<'a>(app: &'a App, headers: &HeaderMap) -> Result<(Format, SemaphorePermit<'a>), Problem> {
    let format = format(headers)?;
    if announced(headers).is_some_and(|length| length > app.import_max_bytes) {
        return Err(too_large(app.import_max_bytes));
    }
    if !app.can_accept() {
        return Err(Problem::unavailable("NATS cannot be reached; nothing was stored"));
    }
    if !app.search.is_live() {
        return Err(Problem::unavailable("the catalogue is being read; nothing was stored"));
    }
    let full = |_| Problem::overloaded("too many imports are under way; nothing was stored");
    Ok((format, app.imports.try_acquire().map_err(full)?))
}

/// Reads some of what nobody wants: a client that is still sending when the connection is closed
/// never sees the answer.
async fn forget(mut stream: BodyDataStream) {
    let mut seen = 0;
    while seen < MOST_FORGOTTEN
        && let Ok(Some(Ok(chunk))) = timeout(BODY_PATIENCE, stream.next()).await
    {
        seen += chunk.len();
    }
}

fn told(report: &Report) -> Value {
    serde_json::to_value(report).unwrap_or_default()
}

fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    let unsupported = |detail: &str| {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let kind = "/problems/unsupported-media-type";
        Err(Problem::new(status, kind, "Unsupported media type", detail))
    };
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return unsupported("the body must not be compressed");
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    match kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase().as_str() {
        "text/csv" => Ok(Format::Csv),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Format::Ndjson),
        _ => unsupported("the body must be text/csv or application/x-ndjson"),
    }
}

fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(most: usize) -> Problem {
    let detail =
        format!("the body must not be larger than {most} bytes; send the rest as another import");
    let status = StatusCode::PAYLOAD_TOO_LARGE;
    Problem::new(status, "/problems/payload-too-large", "Payload too large", detail)
}

/// Hands the body on as it arrives, until it ends or nobody reads it any more.
async fn pump(
    body: Body,
    to_reader: mpsc::Sender<io::Result<Bytes>>,
    most: usize,
) -> Result<(), Problem> {
    let mut stream = body.into_data_stream();
    let mut seen = 0;
    let problem = loop {
        let chunk = match timeout(BODY_PATIENCE, stream.next()).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(chunk))) => chunk,
            // Nobody is there to read this.
            Ok(Some(Err(_))) => {
                break Problem::field(FieldError::new("body", "invalid", "ended too early"));
            }
            Err(_) => break too_slow(),
        };
        seen += chunk.len();
        if seen > most {
            break too_large(most);
        }
        if to_reader.send(Ok(chunk)).await.is_err() {
            forget(stream).await;
            return Ok(());
        }
    };
    // Without this what has arrived would pass for the whole.
    to_reader.send(Err(io::Error::other("the body did not arrive as a whole"))).await.ok();
    drop(to_reader);
    forget(stream).await;
    Err(problem)
}

/// Reads rows, in a thread that may block, until they end or nobody stores them any more.
fn read(
    chunks: Chunks,
    format: Format,
    to_store: &mpsc::Sender<Vec<Row>>,
) -> Result<(), RowsError> {
    let mut rows = Rows::new(chunks, format, |_| None)?;
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let row = rows.read_row();
        let more = matches!(row, Ok(Some(_)));
        let ended = row.map(|row| batch.extend(row));
        if batch.len() == BATCH || !more {
            let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
            if to_store.blocking_send(full).is_err() {
                return Ok(());
            }
        }
        if !more {
            return ended;
        }
    }
}

/// Stores the rows that say something new.
async fn store(
    app: &App,
    caller: &Caller,
    mut batches: mpsc::Receiver<Vec<Row>>,
) -> (Report, Result<(), Problem>) {
    let mut report = Report::default();
    while let Some(batch) = batches.recv().await {
        let entries = app.search.look(|catalogue| {
            let mut entries = Vec::with_capacity(batch.len());
            for Row { line, product } in batch {
                report.rows += 1;
                let row = match product {
                    Ok(row) => row,
                    Err(malformed) => {
                        report.fails(line, malformed);
                        continue;
                    }
                };
                let known = catalogue.find(&row.product_id);
                match command_id(&row, known.map_or(Before::Unknown(1), Before::Known)) {
                    Some(id) => {
                        entries.push(entry(&app.topology, &row, id).map(|it| by(caller, it)));
                    }
                    None => report.unchanged += 1,
                }
            }
            entries.into_iter().collect::<Result<Vec<_>, _>>()
        });
        let stored = match entries {
            Ok(entries) if entries.is_empty() => continue,
            Ok(entries) => {
                let count = entries.len();
                app.commands.append(entries, STORE_PATIENCE).await.map(|_| count)
            }
            Err(error) => Err(AppendError::Refused(error.to_string())),
        };
        match stored {
            Ok(count) => report.published += u64::try_from(count).unwrap_or(u64::MAX),
            Err(error) => return (report, Err(not_stored(&error))),
        }
    }
    (report, Ok(()))
}

/// Names who imports.
fn by(caller: &Caller, mut entry: Entry) -> Entry {
    if let Some(actor) = caller.actor() {
        entry.headers.insert(ACTOR_HEADER, actor);
    }
    entry
}

fn not_stored(error: &AppendError) -> Problem {
    tracing::warn!(%error, "an import stops");
    let detail = "not all rows were stored; import the same again: what is stored is left out";
    match error {
        AppendError::Full(_) => Problem::overloaded(detail),
        AppendError::Unavailable(_) => Problem::unavailable(detail),
        AppendError::Refused(_) | AppendError::Conflict => Problem::internal(),
    }
}

/// The chunks of a body, for who reads in a thread of their own.
struct Chunks {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Chunks {
    fn new(chunks: mpsc::Receiver<io::Result<Bytes>>) -> Self {
        Self { chunks, current: Bytes::new() }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        let (to, from) = (buffer.get_mut(..length), self.current.split_to(length));
        if let Some(to) = to {
            to.copy_from_slice(&from);
        }
        Ok(length)
    }
}
