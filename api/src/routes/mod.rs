//! The routes, by what they are about.

#![expect(unused_qualifications, reason = "in what utoipa's macros write")]

mod commands;
mod customers;
mod health;
mod history;
mod import;
mod ops;
mod orders;
mod products;
mod reports;
mod trial;

use std::sync::Arc;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;

/// All that takes commands or reads views.
pub fn commands_and_views() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(orders::place))
        .routes(routes!(orders::show))
        .routes(routes!(orders::stream))
        .routes(routes!(history::history))
        .routes(routes!(history::explain))
        .routes(routes!(orders::cancel))
        .routes(routes!(orders::ship))
        .routes(routes!(orders::deliver))
        .routes(routes!(orders::refund))
        .routes(routes!(customers::register))
        .routes(routes!(customers::show))
        .routes(routes!(customers::stream))
        .routes(routes!(customers::set_credit_limit))
        .routes(routes!(customers::orders))
        .routes(routes!(products::list))
        .routes(routes!(import::import))
        .routes(routes!(products::show, products::define))
        .routes(routes!(products::restock))
        .routes(routes!(products::retire))
        .routes(routes!(commands::show))
}

/// What operators do.
pub fn operators() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(orders::list))
        .routes(routes!(ops::pipeline))
        .routes(routes!(ops::pipeline_stream))
        .routes(routes!(ops::list))
        .routes(routes!(ops::show))
        .routes(routes!(ops::replay))
        .routes(routes!(ops::discard))
        .routes(routes!(reports::sales::sales))
        .routes(routes!(reports::sales::payments))
        .routes(routes!(reports::status))
        .routes(routes!(reports::top::top_products))
        .routes(routes!(reports::top::top_brands))
        .routes(routes!(reports::time_to_paid))
}

/// What is only there to try things out.
pub fn trial() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().route("/v1/trial/customers", axum::routing::get(trial::customers))
}

/// What is asked by whoever runs the edge.
pub fn health() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(health::live)).routes(routes!(health::ready))
}
