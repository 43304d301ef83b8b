//! What payment gateways tell of their own accord.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use millrace_shared::command::FieldError;

use crate::App;
use crate::error::Problem;
use crate::request::{Raw, text};
use crate::webhook::order_of;

/// The header with the signature.
const SIGNATURE: &str = "Stripe-Signature";

/// An event of Stripe's, by its signature. It makes an unknown outcome of a payment known sooner, and
/// is never believed: Stripe is asked. Events that speak of nothing of ours are taken and forgotten.
#[utoipa::path(
    post, path = "/v1/webhooks/stripe", tag = "webhooks",
    params(("Stripe-Signature" = String, Header, description = "`t=SECONDS,v1=SIGNATURE`")),
    request_body(content = Object, description = "The event, as Stripe has signed it"),
    responses((status = NO_CONTENT, description = "Taken"))
)]
pub async fn stripe(State(app): State<Arc<App>>, raw: Raw) -> Result<StatusCode, Problem> {
    let Some(signatures) = &app.webhooks else {
        return Err(Problem::not_found("no webhooks are taken here"));
    };
    let header = text(&raw.headers, SIGNATURE).unwrap_or_default();
    let checked = signatures.check(header, &raw.body, SystemTime::now());
    checked
        .map_err(|why| Problem::field(FieldError::new(SIGNATURE, "invalid", why.to_string())))?;
    if let Some(order) = order_of(&raw.body) {
        if !app.can_accept() {
            return Err(Problem::unavailable("NATS is away; send the event again"));
        }
        // Nobody has to hear it: payment asks Stripe by itself, only later.
        let hint = app.nats.publish(app.topology.payment_hint(), order.to_string().into()).await;
        hint.map_err(|_| Problem::unavailable("NATS is away; send the event again"))?;
    }
    Ok(StatusCode::NO_CONTENT)
}
