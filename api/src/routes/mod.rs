//! The routes, by what they are about.

mod commands;
mod customers;
mod health;
mod ops;
mod orders;
mod products;
mod reports;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post, put};

use crate::App;

/// All that takes commands or reads views.
pub fn commands_and_views() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/orders", post(orders::place))
        .route("/v1/orders/{id}", get(orders::show))
        .route("/v1/orders/{id}/stream", get(orders::stream))
        .route("/v1/orders/{id}/cancel", post(orders::cancel))
        .route("/v1/orders/{id}/ship", post(orders::ship))
        .route("/v1/orders/{id}/deliver", post(orders::deliver))
        .route("/v1/orders/{id}/refund", post(orders::refund))
        .route("/v1/customers", post(customers::register))
        .route("/v1/customers/{id}", get(customers::show))
        .route("/v1/customers/{id}/stream", get(customers::stream))
        .route("/v1/customers/{id}/credit-limit", put(customers::set_credit_limit))
        .route("/v1/customers/{id}/orders", get(customers::orders))
        .route("/v1/products", get(products::list))
        .route("/v1/products/{id}", get(products::show).put(products::define))
        .route("/v1/products/{id}/restock", post(products::restock))
        .route("/v1/products/{id}/retire", post(products::retire))
        .route("/v1/commands/{id}", get(commands::show))
}

/// What operators do.
pub fn operators() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/orders", get(orders::list))
        .route("/v1/ops/parked", get(ops::list))
        .route("/v1/ops/parked/{sequence}", get(ops::show))
        .route("/v1/ops/parked/replay", post(ops::replay))
        .route("/v1/ops/parked/discard", post(ops::discard))
        .route("/v1/reports/sales", get(reports::sales))
        .route("/v1/reports/payments", get(reports::payments))
        .route("/v1/reports/status", get(reports::status))
        .route("/v1/reports/top-products", get(reports::top_products))
        .route("/v1/reports/top-brands", get(reports::top_brands))
        .route("/v1/reports/time-to-paid", get(reports::time_to_paid))
}

/// What is asked by whoever runs the edge.
pub fn health() -> Router<Arc<App>> {
    Router::new().route("/livez", get(health::live)).route("/readyz", get(health::ready))
}
