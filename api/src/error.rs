//! Errors as they are told to clients: one [`Problem`], `application/problem+json` (RFC 9457).
//!
//! | `type` | status | means |
//! |---|---|---|
//! | `/problems/validation` | 400 | the request is malformed; `errors` names the fields |
//! | `/problems/too-much` | 422 | more is asked for than one answer may hold; `errors` names the field |
//! | `/problems/payload-too-large` | 413 | the body is larger than a command may be |
//! | `/problems/unsupported-media-type` | 415 | the body is not JSON |
//! | `/problems/unauthorized` | 401 | a token is needed, or it is not taken; `WWW-Authenticate` says why |
//! | `/problems/forbidden` | 403 | the caller's role may not do this |
//! | `/problems/misdirected-request` | 421 | nobody has to sign in, and the api was not called by a name of this machine |
//! | `/problems/too-many-requests` | 429 | the caller sends too many; without any effect |
//! | `/problems/not-found` | 404 | there is no such thing |
//! | `/problems/method-not-allowed` | 405 | the header `Allow` names what is |
//! | `/problems/request-timeout` | 408 | the body did not arrive in time |
//! | `/problems/overloaded` | 503 | refused without any effect; come back later |
//! | `/problems/unavailable` | 503 | a server behind the edge is away; without any effect |
//! | `/problems/outcome-unknown` | 503 | the command may or may not be stored |
//! | `/problems/timeout` | 503 | the edge itself took too long |
//! | `/problems/internal` | 500 | a defect |
//! | `/problems/REASON` | 404, 409, 422 | a command was refused; `reason` says why, for programs |

use std::any::Any;
use std::borrow::Cow;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use millrace_shared::command::{FieldError, Malformed};
use millrace_shared::reason::Reason;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The media type of problems.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// An error as the client sees it.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    /// Seconds after which it may be tried again.
    retry: Option<u64>,
    /// How to sign in (RFC 6750, 3).
    challenge: Option<&'static str>,
    body: Box<Body>,
}

/// A problem as it is sent. Beside these members it may have others: `reason` and ids of a command
/// that was refused.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Body {
    /// Which of the problems it is, for programs.
    #[serde(rename = "type")]
    kind: Cow<'static, str>,
    /// The same for all problems of a type.
    title: Cow<'static, str>,
    /// The HTTP status.
    status: u16,
    /// What is wrong here and now, for people.
    detail: String,
    /// What is wrong with which field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    #[serde(flatten)]
    #[schema(ignore)]
    more: Map<String, Value>,
}

impl Problem {
    /// A problem of a kind of its own.
    pub fn new(
        status: StatusCode,
        kind: impl Into<Cow<'static, str>>,
        title: impl Into<Cow<'static, str>>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            status,
            retry: None,
            challenge: None,
            body: Box::new(Body {
                kind: kind.into(),
                title: title.into(),
                status: status.as_u16(),
                detail: detail.into(),
                errors: Vec::new(),
                more: Map::new(),
            }),
        }
    }

    /// One field, header or parameter is wrong.
    pub fn field(error: FieldError) -> Self {
        Malformed::from(error).into()
    }

    /// More is asked for than one answer may hold.
    pub fn too_much(error: FieldError) -> Self {
        let (status, detail) = (StatusCode::UNPROCESSABLE_ENTITY, error.detail.clone());
        let mut problem = Self::new(status, "/problems/too-much", "Too much at once", detail);
        problem.body.errors = vec![error];
        problem
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "/problems/not-found", "Not found", detail)
    }

    /// The caller's role may not do this.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "/problems/forbidden", "Forbidden", detail)
            .challenge("Bearer realm=\"millrace\", error=\"insufficient_scope\"")
    }

    /// Refused before it had any effect, because this caller asks for too much.
    pub fn limited(detail: impl Into<String>, wait: Duration) -> Self {
        let (kind, title) = ("/problems/too-many-requests", "Too many requests");
        let mut problem = Self::new(StatusCode::TOO_MANY_REQUESTS, kind, title, detail);
        problem.retry = Some(wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
        problem
    }

    /// Refused before it had any effect, because there is too much to do.
    pub fn overloaded(detail: impl Into<String>) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, "/problems/overloaded", "Overloaded", detail).retry()
    }

    /// Not possible now, and without any effect, because a server behind the edge is away.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, "/problems/unavailable", "Temporarily unavailable", detail).retry()
    }

    /// A defect; what it is stands in the log only.
    pub fn internal() -> Self {
        let detail = "the request failed through no fault of its own";
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, "/problems/internal", "Internal error", detail)
    }

    /// A command was refused for a reason of the domain.
    pub fn refused(status: StatusCode, reason: Reason, detail: impl Into<String>) -> Self {
        let kind = format!("/problems/{}", reason.as_str().replace('_', "-"));
        Self::new(status, kind, "The command was refused", detail).with("reason", reason.as_str())
    }

    /// Adds a member.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.body.more.insert(name.to_owned(), value.into());
        self
    }

    /// Tells the client to come back in a second.
    #[must_use]
    pub fn retry(mut self) -> Self {
        self.retry = Some(1);
        self
    }

    /// Tells how to sign in.
    #[must_use]
    pub fn challenge(mut self, challenge: &'static str) -> Self {
        self.challenge = Some(challenge);
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What it is, in a few words that are always the same.
    pub fn title(&self) -> &str {
        &self.body.title
    }

    /// The problem as JSON.
    pub fn json(&self) -> String {
        // It has text and numbers only, so this does not fail.
        serde_json::to_string(&self.body).unwrap_or_default()
    }

    /// The problem that a bare status stands for.
    fn of_status(status: StatusCode) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        match status {
            StatusCode::NOT_FOUND => Self::not_found("there is nothing at this path"),
            StatusCode::METHOD_NOT_ALLOWED => Self::new(
                status,
                "/problems/method-not-allowed",
                title,
                "the header Allow names the methods of this path",
            ),
            StatusCode::BAD_REQUEST => Self::new(
                status,
                "/problems/validation",
                "The request is not valid",
                "the path or the query is not properly encoded",
            ),
            _ => {
                let kind = format!("/problems/{}", title.to_ascii_lowercase().replace(' ', "-"));
                Self::new(status, kind, title, title)
            }
        }
    }
}

impl From<Malformed> for Problem {
    fn from(malformed: Malformed) -> Self {
        let mut problem = Self::new(
            StatusCode::BAD_REQUEST,
            "/problems/validation",
            "The request is not valid",
            malformed.to_string(),
        );
        problem.body.errors = malformed.0;
        problem
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Ok(json) = serde_json::to_vec(&self.body) else { return self.status.into_response() };
        let mut response = (self.status, json).into_response();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = self.retry {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(challenge) = self.challenge {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

/// Gives the errors that axum answers by itself (unknown path, wrong method, a path that is not
/// UTF-8) the form of all others.
///
/// `OPTIONS` is answered by the methods that there are.
pub async fn uniform(request: Request, next: Next) -> Response {
    let asks_for_methods = request.method() == Method::OPTIONS;
    let mut response = next.run(request).await;
    if asks_for_methods && response.status() == StatusCode::METHOD_NOT_ALLOWED {
        *response.status_mut() = StatusCode::NO_CONTENT;
        return response;
    }
    let status = response.status();
    let error = status.is_client_error() || status.is_server_error();
    let is_problem = response
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes() == PROBLEM_JSON.as_bytes());
    if !error || is_problem {
        return response;
    }
    // What stands in its headers beside its text (the methods that there are, CORS) stays.
    let (problem, body) = Problem::of_status(status).into_response().into_parts();
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.remove(CONTENT_ENCODING);
    headers.extend(problem.headers);
    *response.body_mut() = body;
    response
}

/// Answers for a handler that has panicked.
pub fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    tracing::error!(panic = text, "a request handler panicked");
    // Dropping a payload may panic again; this one is text or unknown, and leaving it costs little.
    std::mem::forget(panic);
    Problem::internal().into_response()
}
