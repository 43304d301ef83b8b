//! What is read from a request: body, headers and parameters, each bounded and checked.

use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, Query, Request};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use futures_util::StreamExt as _;
use millrace_shared::command::{self, FieldError, KEY_HEADER, MAX_BYTES};
use millrace_shared::message::TRACEPARENT;
use millrace_shared::trace::Trace;
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::error::Problem;

/// How long a body may take to arrive.
pub const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a body that are read although they are too many.
pub const MOST_FORGOTTEN: usize = 16 * 1024 * 1024;
/// The longest time that a request may wait for an outcome.
pub const MAX_WAIT: Duration = Duration::from_secs(30);

/// A request with a JSON object in its body. A body that is not there is an empty object.
#[derive(Debug)]
pub struct Posted {
    /// The headers.
    pub headers: HeaderMap,
    /// Its place in its trace.
    pub trace: Trace,
    /// The object.
    pub body: Map<String, Value>,
}

impl<S: Sync> FromRequest<S> for Posted {
    type Rejection = Problem;

    async fn from_request(mut request: Request, state: &S) -> Result<Self, Problem> {
        let trace = request.extensions_mut().remove().unwrap_or_default();
        let Raw { headers, body } = Raw::from_request(request, state).await?;
        let body = match body.as_slice() {
            [] => Map::new(),
            bytes => {
                check_media_type(&headers)?;
                command::read_object(bytes)?
            }
        };
        Ok(Self { headers, trace, body })
    }
}

/// A request with its body as it came.
#[derive(Debug)]
pub struct Raw {
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl<S: Sync> FromRequest<S> for Raw {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let body = timeout(BODY_PATIENCE, read(body)).await.map_err(|_| too_slow())??;
        Ok(Self { headers: parts.headers, body })
    }
}

impl Posted {
    /// Adds what the path names; the body must not name it as well.
    pub fn with(mut self, field: &str, value: &str) -> Result<Self, Problem> {
        if self.body.insert(field.to_owned(), value.into()).is_some() {
            let detail = "is named by the path: leave it out of the body";
            return Err(Problem::field(FieldError::new(field, "unknown_field", detail)));
        }
        Ok(self)
    }
}

/// The body, unless it is too large. Some of what is too much is read and forgotten: a client that
/// is still sending when the connection is closed never sees the answer.
async fn read(body: Body) -> Result<Vec<u8>, Problem> {
    let mut stream = body.into_data_stream();
    let (mut bytes, mut seen) = (Vec::new(), 0);
    while let Some(chunk) = stream.next().await {
        let Ok(chunk) = chunk else {
            // Nobody is there to read this.
            return Err(Problem::field(FieldError::new("body", "invalid", "ended too early")));
        };
        seen += chunk.len();
        if seen <= MAX_BYTES {
            bytes.extend_from_slice(&chunk);
        } else if seen > MOST_FORGOTTEN {
            break;
        }
    }
    if seen <= MAX_BYTES {
        return Ok(bytes);
    }
    let detail = format!("the body must not be larger than {MAX_BYTES} bytes");
    let status = StatusCode::PAYLOAD_TOO_LARGE;
    Err(Problem::new(status, "/problems/payload-too-large", "Payload too large", detail))
}

/// The body did not arrive in time.
pub fn too_slow() -> Problem {
    let detail = format!("the body did not arrive within {} s", BODY_PATIENCE.as_secs());
    let status = StatusCode::REQUEST_TIMEOUT;
    Problem::new(status, "/problems/request-timeout", "Request timeout", detail)
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let unsupported = |detail: &str| {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let kind = "/problems/unsupported-media-type";
        Problem::new(status, kind, "Unsupported media type", detail)
    };
    let kind = text(headers, CONTENT_TYPE.as_str()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if kind != "application/json" && !(kind.starts_with("application/") && kind.ends_with("+json"))
    {
        return Err(unsupported("the body must be JSON, with Content-Type: application/json"));
    }
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(unsupported("the body must not be compressed"));
    }
    Ok(())
}

/// The text of a header, if there is one.
pub fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// The idempotency key of a request, if it has one.
pub fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut keys = headers.get_all(KEY_HEADER).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let refused = |mut error: FieldError| {
        KEY_HEADER.clone_into(&mut error.field);
        Problem::field(error)
    };
    if keys.next().is_some() {
        return Err(refused(FieldError::new(KEY_HEADER, "duplicate", "is there more than once")));
    }
    // What is not ASCII is refused like an empty key.
    let key = key.to_str().unwrap_or("");
    command::check_key(key).map_err(refused)?;
    Ok(Some(key.to_owned()))
}

/// How long the client wants to wait for the outcome: `Prefer: wait=SECONDS` (RFC 7240), at most
/// [`MAX_WAIT`]. A preference that cannot be read is ignored, as the RFC has it.
pub fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let seconds = preferences.flat_map(|text| text.split(',')).find_map(|preference| {
        let (name, value) = preference.split(';').next()?.split_once('=')?;
        let named = name.trim().eq_ignore_ascii_case("wait");
        named.then(|| value.trim().trim_matches('"').parse().ok()).flatten()
    })?;
    (seconds > 0).then(|| Duration::from_secs(seconds).min(MAX_WAIT))
}

/// The W3C trace context of a request, if it has one.
pub fn traceparent(headers: &HeaderMap) -> Option<&str> {
    text(headers, TRACEPARENT)
}

/// An id from the path.
pub fn path_id<T: FromStr<Err: Display>>(field: &str, id: &str) -> Result<T, Problem> {
    id.parse().map_err(|error: T::Err| {
        Problem::field(FieldError::new(field, "invalid", error.to_string()))
    })
}

/// The parameters of a request, or what is wrong with them.
pub fn parameters<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    query.map(|Query(query)| query).map_err(|error| {
        let text = error.body_text();
        let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
        let (field, detail) = text.split_once(": ").unwrap_or(("query", text));
        let code = if detail.starts_with("unknown field") { "unknown_field" } else { "invalid" };
        Problem::field(FieldError::new(field, code, detail))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_of(value: &'static str) -> Option<u64> {
        let headers = [("prefer".parse().unwrap(), value.parse().unwrap())].into_iter().collect();
        preferred_wait(&headers).map(|wait| wait.as_secs())
    }

    #[test]
    fn the_preferred_wait_is_bounded_and_what_cannot_be_read_is_ignored() {
        assert_eq!(wait_of("wait=5"), Some(5));
        assert_eq!(wait_of("respond-async, Wait = \"7\"; x=y"), Some(7));
        assert_eq!(wait_of("wait=100000"), Some(30));
        for ignored in ["wait=0", "wait=-1", "wait=soon", "wait", "return=minimal", ""] {
            assert_eq!(wait_of(ignored), None, "{ignored}");
        }
    }
}
