//! Health, for whoever runs the edge.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use millrace_shared::metrics::{TEXT, metrics as measured};
use serde_json::{Value, json};

use crate::App;

/// The process answers.
#[utoipa::path(
    get, path = "/livez", tag = "health",
    responses((status = OK, description = "It does", body = Object))
)]
pub async fn live() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// What is measured, in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "operators",
    responses((status = OK, description = "All metrics", body = String, content_type = "text/plain"))
)]
pub async fn metrics() -> Response {
    ([(CONTENT_TYPE, TEXT)], measured().text()).into_response()
}

/// Commands can be stored or views can be read. With one of the two the edge still has work that it
/// can do; without both it is not ready. Nor is it while it reads the catalogue for the first time.
#[utoipa::path(
    get, path = "/readyz", tag = "health",
    responses(
        (status = OK, description = "It is ready", body = Object),
        (status = SERVICE_UNAVAILABLE, description = "It is not", body = Object)
    )
)]
pub async fn ready(State(app): State<Arc<App>>) -> Response {
    let word = |up: bool| if up { "up" } else { "down" };
    let (accepts, reads) = (app.can_accept(), app.can_read());
    let (word_of_all, status) = match (accepts, reads) {
        (false, false) => ("down", StatusCode::SERVICE_UNAVAILABLE),
        _ if app.is_starting() => ("starting", StatusCode::SERVICE_UNAVAILABLE),
        (true, true) if app.search.is_live() => ("ok", StatusCode::OK),
        _ => ("degraded", StatusCode::OK),
    };
    let body = json!({
        "status": word_of_all,
        "nats": word(accepts),
        "redis": word(reads),
        "catalogue": word(app.search.is_live()),
    });
    (status, Json(body)).into_response()
}
