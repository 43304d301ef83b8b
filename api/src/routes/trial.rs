//! What is only there to try things out, with `--trial`.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use futures_util::TryStreamExt as _;
use futures_util::future::try_join_all;
use millrace_shared::message::Subject;

use crate::App;
use crate::error::Problem;
use crate::reading::{items, with_credit};

/// The customers that can be chosen from.
const MOST: usize = 100;

/// `GET /v1/trial/customers`: some customers, for the shop to be one of them. The log knows their
/// names by its subjects; no list of them is kept.
pub async fn customers(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    app.check_views()?;
    let away = |error: &dyn std::fmt::Display| {
        tracing::warn!(%error, "customers cannot be listed");
        Problem::unavailable("customers cannot be listed now")
    };
    let log = app.commands.other(&app.topology.events_stream()).await;
    let log = log.map_err(|error| away(&error))?;
    let all = app.topology.event(Subject::Customer, "*", "registered");
    let subjects = log.info_with_subjects(all).await.map_err(|error| away(&error))?;
    let subjects: Vec<(String, usize)> =
        subjects.try_collect().await.map_err(|error| away(&error))?;
    let ids: BTreeSet<&str> =
        subjects.iter().filter_map(|(subject, _)| Some(app.topology.about(subject)?.1)).collect();
    let read = ids.into_iter().take(MOST).map(|id| app.views.document(Subject::Customer, id));
    let found = try_join_all(read).await?;
    let customers: Vec<String> = found
        .iter()
        .flatten()
        .map(|document| with_credit(document).map(|shown| shown.json))
        .collect::<Result<_, _>>()?;
    Ok(items(&customers, None, None))
}
