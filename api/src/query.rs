//! Reads over NATS request and reply, by the same code as over HTTP: `{ns}.query.order.{id}`,
//! `{ns}.query.customer.{id}`, `{ns}.query.command.{id}`. All replicas of the api are one NATS micro
//! service; each request is answered by one of them.
//!
//! Nobody signs in here: whoever may publish to these subjects is told everything. NATS decides who
//! may, by its permissions.
//!
//! A request may carry `{"minVersion": V, "waitMs": N}`. The answer is the JSON document, with its
//! version in `Millrace-Version` and the status that HTTP would give in `Millrace-Status`; or a
//! problem, with its status and title in the standard headers of service errors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::anyhow;
use async_nats::HeaderMap;
use async_nats::service::endpoint::Endpoint;
use async_nats::service::{
    NATS_SERVICE_ERROR, NATS_SERVICE_ERROR_CODE, Request, Service, ServiceExt as _,
};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use millrace_shared::command::FieldError;
use millrace_shared::ids::{CustomerId, OrderId};
use millrace_shared::message::Subject;
use millrace_shared::service::VERSION;
use millrace_shared::views::CommandStatus;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::App;
use crate::auth::Caller;
use crate::error::Problem;
use crate::reading::{Found, Freshness, with_credit};
use crate::request::path_id;

/// The role, and the queue group of its replicas.
const ROLE: &str = "api";
/// Requests of one kind at a time in one replica; more wait in its subscription.
const AT_A_TIME: usize = 256;
/// The version of the document in the answer.
const VERSION_HEADER: &str = "Millrace-Version";
/// The status that HTTP would give: 200, or 202 for what is not there yet.
const STATUS_HEADER: &str = "Millrace-Status";
/// What can be asked for.
const SUBJECTS: [Subject; 3] = [Subject::Order, Subject::Customer, Subject::Command];

/// What one replica has answered.
#[derive(Debug, Default)]
struct Answered {
    documents: AtomicU64,
    problems: AtomicU64,
}

/// An answer: the document, its version if it has one, and the status that HTTP would give.
type Answer = (String, Option<u64>, u16);

/// Answers queries until the shutdown.
pub async fn serve(app: Arc<App>, shutdown: CancellationToken) {
    if let Err(error) = answer_all(app, shutdown).await {
        tracing::warn!("queries over NATS are not answered: {error:#}");
    }
}

async fn answer_all(app: Arc<App>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let answered: [Arc<Answered>; 3] = std::array::from_fn(|_| Arc::default());
    let (service, endpoints) = announce(&app, &answered).await?;
    let answering = join_all(endpoints.into_iter().zip(SUBJECTS).zip(&answered).map(
        |((endpoint, subject), answered)| {
            endpoint.for_each_concurrent(AT_A_TIME, {
                let app = Arc::clone(&app);
                move |request| {
                    let (app, answered) = (Arc::clone(&app), Arc::clone(answered));
                    async move { respond(&app, subject, &request, &answered).await }
                }
            })
        },
    ));
    tokio::select! {
        _ = answering => tracing::warn!("queries over NATS have ended"),
        () = shutdown.cancelled() => {}
    }
    // It only fails where it has ended.
    service.stop().await.ok();
    Ok(())
}

async fn announce(
    app: &App,
    answered: &[Arc<Answered>; 3],
) -> anyhow::Result<(Service, Vec<Endpoint>)> {
    let told = answered.clone();
    let stats = move |endpoint: String, _| {
        let of = SUBJECTS.iter().zip(&told).find(|(subject, _)| subject.as_str() == endpoint);
        of.map_or(Value::Null, |(_, answered)| {
            json!({
                "documents": answered.documents.load(Ordering::Relaxed),
                "problems": answered.problems.load(Ordering::Relaxed),
            })
        })
    };
    let service = app
        .nats
        .service_builder()
        .description(format!("Millrace api of {}", app.topology.namespace()))
        .stats_handler(stats)
        .queue_group(ROLE)
        .start(app.topology.service(ROLE), VERSION)
        .await
        .map_err(|error| anyhow!("{error}"))?;
    let mut endpoints = Vec::new();
    for subject in SUBJECTS {
        let endpoint = service.endpoint_builder().name(subject);
        let all = app.topology.query(subject.as_str(), "*");
        endpoints.push(endpoint.add(all).await.map_err(|error| anyhow!("{error}"))?);
    }
    Ok((service, endpoints))
}

async fn respond(app: &App, subject: Subject, request: &Request, answered: &Answered) {
    let id = request.message.subject.rsplit('.').next().unwrap_or_default();
    let answer = match app.requests.try_acquire() {
        Ok(_slot) => answer(app, subject, id, &request.message.payload).await,
        Err(_) => Err(Problem::overloaded("too many requests are under way")),
    };
    let mut headers = HeaderMap::new();
    let body = match answer {
        Ok((json, version, status)) => {
            answered.documents.fetch_add(1, Ordering::Relaxed);
            headers.insert(STATUS_HEADER, status.to_string());
            if let Some(version) = version {
                headers.insert(VERSION_HEADER, version.to_string());
            }
            json
        }
        Err(problem) => {
            answered.problems.fetch_add(1, Ordering::Relaxed);
            headers.insert(NATS_SERVICE_ERROR, problem.title());
            headers.insert(NATS_SERVICE_ERROR_CODE, problem.status().as_str());
            problem.json()
        }
    };
    if let Err(error) = request.respond_with_headers(Ok(body.into()), headers).await {
        tracing::debug!(%error, "a query was not answered");
    }
}

async fn answer(app: &App, subject: Subject, id: &str, asked: &[u8]) -> Result<Answer, Problem> {
    let fresh = match asked {
        [] => Freshness::default(),
        asked => serde_json::from_slice(asked).map_err(|error| {
            Problem::field(FieldError::new("body", "invalid", error.to_string()))
        })?,
    };
    let found = match subject {
        Subject::Command => {
            let wait = fresh.wait();
            let view = app.outcome(&Caller::ANYBODY, id, wait).await?;
            let undecided = wait.is_some() && view.status == CommandStatus::Pending;
            let json = serde_json::to_string(&view).map_err(|_| Problem::internal())?;
            return Ok((json, None, if undecided { 202 } else { 200 }));
        }
        Subject::Customer => {
            let id: CustomerId = path_id("customerId", id)?;
            let found = app.read(&Caller::ANYBODY, subject, id.as_str(), &fresh).await?;
            Found { document: with_credit(&found.document)?, ..found }
        }
        Subject::Order | Subject::Product => {
            let id: OrderId = path_id("orderId", id)?;
            app.read(&Caller::ANYBODY, Subject::Order, &id.to_string(), &fresh).await?
        }
    };
    let status = if found.not_yet { 202 } else { 200 };
    Ok((found.document.json, Some(found.document.version), status))
}
