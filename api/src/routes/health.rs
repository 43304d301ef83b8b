//! Health, for whoever runs the edge.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};

use crate::App;

/// `GET /livez`: the process answers.
pub async fn live() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// `GET /readyz`: commands can be stored or views can be read. With one of the two the edge still
/// has work that it can do; without both it is not ready.
pub async fn ready(State(app): State<Arc<App>>) -> Response {
    let word = |up: bool| if up { "up" } else { "down" };
    let (accepts, reads) = (app.can_accept(), app.can_read());
    let status = if accepts || reads { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "status": if accepts && reads { "ok" } else if accepts || reads { "degraded" } else { "down" },
        "nats": word(accepts),
        "redis": word(reads),
    });
    (status, Json(body)).into_response()
}
