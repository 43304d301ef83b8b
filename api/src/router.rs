//! All routes of the edge, and what is around each of them.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use tower_http::catch_panic::CatchPanicLayer;

use crate::error::Problem;
use crate::headers::{Origin, Place};
use crate::web::Offer;
use crate::{App, auth, contract, error, headers, observe, routes, web};

/// The routes that `offer` and the settings ask for.
pub fn router(app: &Arc<App>, offer: Offer, cors_origins: Vec<Origin>) -> Router {
    let place = Place { signed_in: app.gate.is_closed(), behind_proxy: app.gate.is_behind_proxy() };
    // The first is the outermost. They are one layer, with few functions of our own: each of either is
    // one more box around each route, which is copied with all that is in it for each request.
    let around = (
        from_fn_with_state(place, outermost),
        headers::cors(cors_origins),
        headers::compression(),
        CatchPanicLayer::custom(error::panicked),
    );
    let mut routes = routes::commands_and_views().merge(routes::metrics());
    if app.desk.is_some() {
        routes = routes.merge(routes::operators());
    }
    if app.webhooks.is_some() {
        routes = routes.merge(routes::webhooks());
    }
    let mut routes = routes.into_router();
    if offer.trial {
        routes = routes.merge(routes::trial());
    }
    Router::from(routes)
        .layer(from_fn_with_state(Arc::clone(app), guarded))
        .merge(routes::health().into_router())
        .merge(contract::served(app.desk.is_some(), app.webhooks.is_some()))
        .merge(web::served(offer))
        .with_state(Arc::clone(app))
        .layer(around)
}

/// Sees each request as it comes, and each answer as it goes.
async fn outermost(State(place): State<Place>, request: Request, next: Next) -> Response {
    observe::request(request, |request| headers::usual(place, request, next)).await
}

/// Refuses what is too much, and who is not who he says, before anything was read or done.
async fn guarded(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let Ok(_slot) = app.requests.try_acquire() else {
        return Problem::overloaded("too many requests are under way").into_response();
    };
    match auth::identify(&app.gate, &mut request).await {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}
