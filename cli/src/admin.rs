//! What is asked by whoever runs a process: `/metrics`, `/livez` and `/readyz`, at an address of their
//! own, apart from what customers reach.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use clap::Args;
use millrace_shared::health;
use millrace_shared::metrics::{TEXT, metrics};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Where metrics and health are told.
#[derive(Debug, Clone, Default, Args)]
pub struct AdminArgs {
    /// Serve /metrics, /livez and /readyz of this process here. They ask for no password: not where
    /// strangers reach it
    #[arg(long = "metrics", env = "MILLRACE_METRICS", value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
}

impl AdminArgs {
    /// Begins to listen, if that is asked for, and answers until the shutdown.
    pub async fn serve(&self, shutdown: CancellationToken) -> Result<()> {
        let Some(address) = self.metrics else { return Ok(()) };
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("metrics cannot be served at {address}; see --metrics"))?;
        tracing::info!(address = %listener.local_addr()?, "metrics are served");
        let routes = Router::new()
            .route("/metrics", get(|| async { ([(CONTENT_TYPE, TEXT)], metrics().text()) }))
            .route("/livez", get(|| async { axum::Json(json!({ "status": "ok" })) }))
            .route("/readyz", get(ready));
        let serving = axum::serve(listener, routes)
            .with_graceful_shutdown(async move { shutdown.cancelled().await });
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::warn!(%error, "metrics are no longer served");
            }
        });
        Ok(())
    }
}

/// Ready means that every worker of this process pulls from its stream. An edge tells of itself at
/// its own address.
async fn ready() -> Response {
    let workers = health::workers();
    let ready = workers.values().all(|works| *works);
    let word = |works: bool| if works { "up" } else { "down" };
    let each: serde_json::Map<_, _> =
        workers.into_iter().map(|(name, works)| (name.to_owned(), word(works).into())).collect();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(json!({ "status": if ready { "ok" } else { "down" }, "workers": each })))
        .into_response()
}
