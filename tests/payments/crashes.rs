//! Payment dies at each of its places with Stripe behind it, and another takes over.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use millrace_shared::crash::POINTS;
use millrace_workers::Role;
use rustix::process::Signal;

use super::stand_in::{KEY, LocalStripe};
use super::{BAD, GOOD, cancel, close, payment, place, verified, without_payment};
use crate::harness::System;

/// Waits until an order has a status: what a dead worker had in hand comes again after 15 s, each time.
async fn reaches(system: &System, id: &str, status: &str) {
    let start = Instant::now();
    while system.order(id).await["status"] != status {
        assert!(start.elapsed() < Duration::from_secs(90), "{id} is not {status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Payment dies at `point`; then another goes on.
async fn dies_at(point: &str) {
    let Some(stripe) = LocalStripe::start().await else { return };
    let (system, mut running) = without_payment(stripe.url()).await;
    let (paid, declined, called_off) =
        (place(&system, GOOD).await, place(&system, BAD).await, place(&system, GOOD).await);
    let trade = async {
        reaches(&system, &paid, "paid").await;
        reaches(&system, &declined, "rejected").await;
        reaches(&system, &called_off, "paid").await;
        cancel(&system, &called_off).await;
        reaches(&system, &called_off, "refunded").await;
    };
    let dying = async {
        let ended = payment(&system, &[("MILLRACE_CRASH_POINT", point)]).ended().await;
        assert_eq!(ended.code, None, "{point}: a signal ends it: {ended:?}");
        assert!(ended.errors.contains(point), "{point}: it died elsewhere: {ended:?}");
        system.run(Role::Payment)
    };
    let ((), successor) = tokio::join!(trade, dying);
    running.push(successor);
    stripe.has_charged(&[(&paid, false), (&called_off, true)]).await;
    verified(&system).await;
    close(system, running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_that_dies_anywhere_charges_and_refunds_once_at_stripe() {
    let passed = |name: &&str| {
        // Those of a charge that is called off before it stands are below.
        (name.starts_with("stripe.") || name.starts_with("payment."))
            && !name.contains("void")
            && *name != "stripe.cancelled"
    };
    join_all(POINTS.iter().map(|(name, _)| *name).filter(passed).map(dies_at)).await;
}

/// Payment dies at `point` while it calls off a charge that has been begun, and has not been made.
async fn dies_while_it_calls_off(point: &str) {
    let Some(stripe) = LocalStripe::start().await else { return };
    let (system, mut running) = without_payment(stripe.url()).await;
    let order = place(&system, GOOD).await;
    let begun = payment(&system, &[("MILLRACE_CRASH_POINT", "stripe.remembered")]).ended().await;
    assert!(begun.errors.contains("stripe.remembered"), "{begun:?}");
    cancel(&system, &order).await;
    system.order_in(&order, "cancelled").await;
    let ended = payment(&system, &[("MILLRACE_CRASH_POINT", point)]).ended().await;
    assert!(ended.code.is_none() && ended.errors.contains(point), "{point}: {ended:?}");
    running.push(system.run(Role::Payment));
    verified(&system).await;
    stripe.has_charged(&[]).await;
    let intents = stripe.all("payment_intents").await;
    assert_eq!(intents.len(), 1, "{intents:#?}");
    assert_eq!(intents[0]["status"], "canceled", "{intents:#?}");
    assert_eq!(system.steps(&order).await, ["validated", "cancelled"]);
    close(system, running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payment_that_dies_while_it_calls_a_charge_off_takes_no_money() {
    join_all(["stripe.cancelled", "payment.voided"].map(dies_while_it_calls_off)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_shows_the_key_at_stripe() {
    let Some(stripe) = LocalStripe::start().await else { return };
    let (system, running) = without_payment(stripe.url()).await;
    let mut process = payment(&system, &[("MILLRACE_LOG", "trace")]);
    process.says("consuming").await;
    let order = place(&system, GOOD).await;
    system.order_in(&order, "paid").await;
    let ended = process.end(Signal::TERM).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let said = format!("{}{}", ended.output, ended.errors);
    // It has said much, of Stripe's address as well.
    assert!(said.contains("127.0.0.1") && said.len() > 10_000, "{said}");
    assert!(!said.contains(KEY), "the key is in the log");
    close(system, running).await;
}
