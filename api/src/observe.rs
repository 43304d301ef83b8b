//! What is measured of each request, and its place in its trace.

use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::response::Response;
use millrace_shared::metrics::{Open, Timed, label, metrics};
use millrace_shared::trace::{SpanKind, Trace};
use tracing::Instrument as _;

use crate::request::traceparent;

/// Measures a request until its answer begins, by route template: never by path, which has ids.
pub async fn request<F: Future<Output = Response>>(
    mut request: Request,
    answer: impl FnOnce(Request) -> F,
) -> Response {
    let _open = Open::new(&metrics().http_open, 1, Vec::new());
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("unmatched", MatchedPath::as_str).to_owned();
    let method = method(request.method());
    let mut timed =
        Timed::new(&metrics().http, vec![label("method", method), label("route", route.clone())]);
    let trace = Trace::enter(SpanKind::Server, traceparent(request.headers()), || {
        format!("{method} {route}").into()
    });
    trace.tell("http.request.method", method);
    trace.tell("http.route", route);
    request.extensions_mut().insert(trace.clone());
    let answering = trace.around(answer(request));
    let response = match trace.id() {
        Some(trace_id) => answering.instrument(tracing::error_span!("request", trace_id)).await,
        None => answering.await,
    };
    let status = response.status();
    timed.tell(label("status", i64::from(status.as_u16())));
    trace.tell("http.response.status_code", i64::from(status.as_u16()));
    trace.end(status.is_server_error().then(|| status.canonical_reason().unwrap_or("error")));
    response
}

/// A method; whatever a client invents is one.
fn method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "PATCH" => "PATCH",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}
