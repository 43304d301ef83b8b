//! An order's past: its events, its state at a moment, and its whole story.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse as _, Response};
use chrono::{DateTime, Utc};
use millrace_shared::ids::OrderId;
use millrace_shared::log::ReadError;
use millrace_shared::message::Event;
use millrace_shared::order::Order;
use millrace_shared::past::{PastError, Told, as_of};
use millrace_shared::story::Story;
use millrace_shared::views::Document;
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use crate::App;
use crate::auth::Caller;
use crate::contract::{EventPage, Missing};
use crate::error::Problem;
use crate::reading::limit;
use crate::request::{parameters, path_id};

/// Which of an order's events are asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// The version that the page begins after.
    cursor: Option<u64>,
    /// The items of a page, at the most.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// Which past state of an order is asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PastQuery {
    /// As it was then. Neither this nor `version` goes together with `minVersion` or `waitMs`.
    as_of: Option<DateTime<Utc>>,
    /// As it was after the event of this version.
    version: Option<u64>,
}

impl From<PastError> for Problem {
    fn from(error: PastError) -> Self {
        match error {
            PastError::Log(_) | PastError::NoJournal | PastError::Journal(_) => {
                tracing::warn!(%error, "an order's past cannot be told");
                Self::unavailable(error.to_string())
            }
            PastError::Gap(_) | PastError::Unreadable(_) => {
                tracing::error!(%error, "an order's past is damaged");
                Self::internal()
            }
        }
    }
}

/// Every event of an order, the first first.
#[utoipa::path(
    get, path = "/v1/orders/{id}/history", tag = "orders",
    params(("id" = OrderId, Path), HistoryQuery),
    responses((status = OK, description = "A page", body = EventPage), Missing)
)]
pub async fn history(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let id: OrderId = path_id("orderId", &id)?;
    let query = parameters(query)?;
    let (after, limit) = (query.cursor.unwrap_or(0), limit(query.limit)?);
    let events = app.history(&caller, id).await?;
    let mut items: Vec<Told> = events
        .iter()
        .filter(|event| event.version > after)
        .take(limit + 1)
        .map(Told::from)
        .collect();
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|last| last.version.to_string());
    Ok(Json(json!({ "orderId": id, "items": items, "nextCursor": next })).into_response())
}

/// An order's whole story: commands, events, charges, parkings, times and what it holds.
#[utoipa::path(
    get, path = "/v1/orders/{id}/explain", tag = "orders",
    params(("id" = OrderId, Path)),
    responses((status = OK, description = "The story", body = Story), Missing)
)]
pub async fn explain(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: OrderId = path_id("orderId", &id)?;
    app.check_log()?;
    let story = app.stories.story(id, app.audience(&caller)).await?;
    let story = story.filter(|story| caller.sees(&story.customer_id));
    Ok(Json(story.ok_or_else(|| unknown(id))?).into_response())
}

fn unknown(id: OrderId) -> Problem {
    Problem::not_found(format!("there is no order {id}, or it is not decided yet"))
}

impl App {
    fn check_log(&self) -> Result<(), Problem> {
        let away = || Problem::unavailable("NATS cannot be reached: what happened last is there");
        if self.can_accept() { Ok(()) } else { Err(away()) }
    }

    /// The events of an order; none of somebody else's are told.
    async fn history(&self, caller: &Caller, id: OrderId) -> Result<Vec<Event>, Problem> {
        self.check_log()?;
        let events = self.past.history(id).await?;
        let Some(last) = events.last() else { return Err(unknown(id)) };
        if caller.on_behalf_of().is_some() {
            let order: Order = last.state().map_err(ReadError::from).map_err(PastError::from)?;
            if !caller.sees(order.customer_id.as_str()) {
                return Err(unknown(id));
            }
        }
        Ok(events)
    }

    /// An order as it was: by version, by time, or both, if they agree.
    pub async fn past_state(
        &self,
        caller: &Caller,
        id: OrderId,
        query: &PastQuery,
    ) -> Result<Document, Problem> {
        let events = self.history(caller, id).await?;
        let found = match query.as_of {
            Some(time) => as_of(&events, time)
                .ok_or_else(|| Problem::not_found(format!("there was no order {id} at {time}")))?,
            None => events.last().ok_or_else(|| unknown(id))?,
        };
        let version = query.version.unwrap_or(found.version);
        let found =
            events.iter().find(|event| event.version == version && version <= found.version);
        let last = events.len();
        let none = || {
            let when = query.as_of.map_or_else(String::new, |time| format!(" at {time}"));
            Problem::not_found(format!(
                "there is no version {version} of order {id}{when}; the last is {last}"
            ))
        };
        let found = found.ok_or_else(none)?;
        Ok(Document { version: found.version, json: found.state.get().to_owned() })
    }
}
