//! All routes of the edge, and what is around each of them.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use tower_http::catch_panic::CatchPanicLayer;

use crate::error::Problem;
use crate::headers::Origin;
use crate::web::Offer;
use crate::{App, auth, contract, error, headers, observe, routes, web};

/// The routes that `offer` and the settings ask for.
pub fn router(app: &Arc<App>, offer: Offer, cors_origins: Vec<Origin>) -> Router {
    let bounded = middleware::from_fn_with_state(Arc::clone(app), bounded);
    let identified = middleware::from_fn_with_state(Arc::clone(app), auth::identify);
    let place = headers::Place {
        signed_in: app.gate.is_closed(),
        behind_proxy: app.gate.is_behind_proxy(),
    };
    // The first is the outermost. They are one layer: each that is added by itself is one more box
    // around each route, which is copied with all that is in it for each request.
    let around = (
        middleware::from_fn(outermost),
        headers::cors(cors_origins),
        headers::compression(),
        middleware::from_fn_with_state(place, headers::usual),
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
        .layer((bounded, identified))
        .merge(routes::health().into_router())
        .merge(contract::served(app.desk.is_some(), app.webhooks.is_some()))
        .merge(web::served(offer))
        .with_state(Arc::clone(app))
        .layer(around)
}

/// Sees each request as it comes, and each answer as it goes.
async fn outermost(request: Request, next: Next) -> Response {
    let mut response = observe::request(request, next).await;
    headers::weaken(response.headers_mut());
    response
}

/// Refuses what is too much, before anything was read or done.
async fn bounded(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match app.requests.try_acquire() {
        Ok(_slot) => next.run(request).await,
        Err(_) => Problem::overloaded("too many requests are under way").into_response(),
    }
}
