//! Another gateway than the one that has charged.

use millrace_workers::Role;
use serde_json::json;

use super::stand_in::{Fault, LocalStripe, Unreliable};
use super::{GOOD, close, payment, place, without_payment};
use crate::harness::eventually;
use crate::parking::{header, parked};

#[tokio::test(flavor = "multi_thread")]
async fn payment_does_not_leave_stripe_while_a_charge_is_open_there_and_parks_refunds_afterwards() {
    let Some(stripe) = LocalStripe::start().await else { return };
    let line = Unreliable::to(stripe.url()).await;
    let (system, running) = without_payment(line.url()).await;
    line.fail("/confirm", 1, Fault::NoAnswer);
    line.fail("GET /v1/payment_intents", usize::MAX, Fault::Answer(500));
    let at_stripe = system.run(Role::Payment);
    let order = place(&system, GOOD).await;
    system.order_in(&order, "payment_unknown").await;
    let sandbox = || payment(&system, &[("MILLRACE_GATEWAY", "sandbox")]);
    let refused = sandbox().ended().await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    for part in ["millrace: charges are open at Stripe (1)", "--gateway stripe"] {
        assert!(refused.errors.contains(part), "{refused:?}");
    }
    line.mend();
    system.order_in(&order, "paid").await;
    at_stripe.stop().await;

    let mut changed = sandbox();
    changed.says("consuming").await;
    let refund = system.post(&format!("/v1/orders/{order}/refund"), &json!({})).await;
    assert_eq!(refund.status, 202, "{refund:?}");
    let kept = eventually("it is parked", async || parked(&system).await.pop()).await;
    assert!(header(&kept, "Millrace-Reason").contains("no charge of the sandbox's"), "{kept:?}");
    stripe.has_charged(&[(&order, false)]).await;
    drop(changed);
    close(system, running).await;
}
