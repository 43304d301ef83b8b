//! Stripe over TLS, in a process of its own: which certificates are trusted is a matter of its
//! environment.

use std::path::Path;

use rustix::process::Signal;

use super::stand_in::LocalStripe;
use super::{GOOD, close, payment, place, verified, without_payment};
use crate::process::folder;
use crate::sealed::{authority, certificate, seal};

#[tokio::test(flavor = "multi_thread")]
async fn while_nobody_vouches_for_stripe_an_order_waits_and_over_tls_it_is_paid() {
    let Some(stripe) = LocalStripe::start().await else { return };
    let (system, running) = without_payment(stripe.url()).await;
    let folder = folder("stripe");
    let (vouching, trusted) = authority(&folder, "ca.pem");
    let (_, stranger) = authority(&folder, "stranger.pem");
    let address = stripe.url().trim_start_matches("http://");
    let sealed = seal(&certificate(&vouching, &folder), address, false).await;
    let url = format!("https://{sealed}");
    let trusting = |file: &Path| {
        let file = file.to_str().expect("a path in UTF-8");
        // Long enough for all tries, so that their reason is told.
        let time = ("MILLRACE_GATEWAY_TIMEOUT", "8");
        payment(&system, &[("MILLRACE_STRIPE_URL", &url), ("SSL_CERT_FILE", file), time])
    };

    let mut deceived = trusting(&stranger);
    let order = place(&system, GOOD).await;
    deceived.says("a server is away").await;
    let ended = deceived.end(Signal::TERM).await;
    for part in ["invalid peer certificate", "SSL_CERT_FILE"] {
        assert!(ended.errors.contains(part), "{ended:?}");
    }
    assert_eq!(system.steps(&order).await, ["validated"]);
    assert!(stripe.all("payment_intents").await.is_empty());

    let process = trusting(&trusted);
    system.order_in(&order, "paid").await;
    stripe.has_charged(&[(&order, false)]).await;
    verified(&system).await;
    assert_eq!(process.end(Signal::TERM).await.code, Some(0));
    close(system, running).await;
}
