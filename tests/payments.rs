//! Payments through Stripe: one charge for each order, one refund for each that was charged and ended,
//! whatever is lost, fails or dies in between. Stripe is localstripe here, whose own books are read.

mod change;
mod crashes;
mod sealed;
mod stand_in;
mod webhooks;

use std::time::Duration;

use millrace_cli::verify::check;
use millrace_workers::Role;
use millrace_workers::gateway::config::{GatewayConfig, Kind};
use serde_json::{Value, json};

use self::stand_in::{Fault, KEY, LocalStripe, Unreliable};
use crate::harness::{Running, System, card_order, eventually};
use crate::parking::{header, parked};
use crate::process::{Process, run, settings};

/// A card that is good.
const GOOD: &str = "pm_card_visa";
/// One that is declined.
const BAD: &str = "pm_card_chargeCustomerFail";
/// The number of one whose owner the bank asks for.
const ASKING: &str = "4000002760003184";

/// The settings with which payment charges through Stripe at an address.
fn through(url: &str) -> GatewayConfig {
    GatewayConfig {
        gateway: Kind::Stripe,
        gateway_timeout: 1,
        gateway_pause: 1,
        stripe_key: Some(KEY.into()),
        stripe_url: url.parse().expect("an address"),
        ..GatewayConfig::default()
    }
}

/// A shop that charges through Stripe at an address: a customer, and boxes at 10 dollars.
async fn shop(gateway: GatewayConfig) -> (System, Vec<Running>) {
    let mut system = System::without_workers().await;
    system.config.gateway = gateway;
    let running = Role::ALL.map(|role| system.run(role)).into();
    system.register("ann", None).await;
    system.define("box", 1_000, 100).await;
    (system, running)
}

/// Payment as a process, with these further settings.
fn payment(system: &System, further: &[(&'static str, &str)]) -> Process {
    let mut settings = settings(&system.config);
    settings.extend(further.iter().map(|(name, value)| (*name, (*value).to_owned())));
    Process::start(&["worker", "payment"], &settings)
}

/// A shop whose payment is not running.
async fn without_payment(stripe: &str) -> (System, Vec<Running>) {
    let (system, mut running) = shop(through(stripe)).await;
    let at = Role::ALL.iter().position(|role| *role == Role::Payment).expect("payment");
    running.remove(at).stop().await;
    (system, running)
}

async fn close(system: System, running: Vec<Running>) {
    for worker in running {
        worker.stop().await;
    }
    system.stop().await;
}

/// Places an order of one box; its id.
async fn place(system: &System, card: &str) -> String {
    let answer = system.post("/v1/orders", &card_order("ann", "box", 1, card)).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    answer.text("/orderId")
}

/// Calls an order off.
async fn cancel(system: &System, id: &str) {
    let answer = system.post(&format!("/v1/orders/{id}/cancel"), &json!({})).await;
    assert_eq!(answer.status, 202, "{answer:?}");
}

/// Checks that `verify` finds every promise kept.
async fn verified(system: &System) {
    system.settle().await;
    let config = (&system.config).into();
    let report = Box::pin(check(&config, Duration::from_secs(10))).await.expect("verify runs");
    assert!(report.is_ok(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_is_charged_once_and_a_declined_one_is_told_why() {
    let Some(stripe) = LocalStripe::start().await else { return };
    let (system, running) = shop(through(stripe.url())).await;
    let asking = stripe.card(ASKING).await;
    let paid = place(&system, GOOD).await;
    let order = system.order_in(&paid, "paid").await;
    let charge = order["payment"]["chargeId"].as_str().expect("a charge").to_owned();
    assert!(charge.starts_with("pi_"), "{order}");
    for (card, why) in [
        (BAD, "declined"),
        (asking.as_str(), "authentication_required"),
        ("tok_ok", "unknown_token"),
    ] {
        let id = place(&system, card).await;
        let order = system.order_in(&id, "rejected").await;
        assert_eq!(order["reason"], "payment_declined", "{order}");
        assert_eq!(order["detail"], why, "{order}");
    }
    stripe.has_charged(&[(&paid, false)]).await;
    let intents = stripe.all("payment_intents").await;
    let intent = intents.iter().find(|intent| intent["id"] == *charge).expect("the order's");
    assert_eq!((&intent["amount"], &intent["currency"]), (&json!(1_000), &json!("usd")));
    // Nobody can go on with what its owner was asked for.
    let open = |intent: &&Value| intent["status"] == "requires_action";
    assert_eq!(intents.iter().filter(open).count(), 0, "{intents:#?}");
    verified(&system).await;
    system.stock_is("box", [99, 1, 0]).await;
    let story = system.get(&format!("/v1/orders/{paid}/explain")).await.body.to_string();
    assert!(story.contains(&format!("charged at Stripe as {charge}; 1 call")), "{story}");
    close(system, running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_what_is_wrong_with_payments_at_stripe_and_says_what_it_cannot_see() {
    let Some(stripe) = LocalStripe::start().await else { return };
    let (system, running) = shop(through(stripe.url())).await;
    let id = place(&system, GOOD).await;
    system.order_in(&id, "paid").await;
    verified(&system).await;
    let config = (&system.config).into();
    for (wrong, right) in [
        ("outcome = null", "outcome = 'succeeded'"),
        ("amount = amount + 1", "amount = amount - 1"),
        ("refund_id = 're_1'", "refund_id = null"),
        ("key = 'charge-x'", "key = 'charge-' || (select order_id from journal.orders)"),
    ] {
        for (change, failed) in [(wrong, vec!["money"]), (right, vec![])] {
            let sql = format!("update payment.intents set {change}");
            let changed = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&system.pool).await;
            assert_eq!(changed.expect("it is changed").rows_affected(), 1);
            let report = Box::pin(check(&config, Duration::ZERO)).await.expect("verify runs");
            assert_eq!(report.failed(), failed, "{change}: {report}");
            assert!(report.to_string().contains("Stripe's own books"), "{report}");
        }
    }
    close(system, running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_after_its_charge_is_given_back_once_and_whole() {
    let Some(stripe) = LocalStripe::start().await else { return };
    let (system, running) = shop(through(stripe.url())).await;
    let [kept, cancelled, refunded] =
        [place(&system, GOOD).await, place(&system, GOOD).await, place(&system, GOOD).await];
    // Called off while it is charged: either way it is not charged in the end.
    let raced = place(&system, GOOD).await;
    cancel(&system, &raced).await;
    for id in [&kept, &cancelled, &refunded] {
        system.order_in(id, "paid").await;
    }
    cancel(&system, &cancelled).await;
    let refund = system.post(&format!("/v1/orders/{refunded}/refund"), &json!({})).await;
    assert_eq!(refund.status, 202, "{refund:?}");
    for id in [&cancelled, &refunded] {
        let order = system.order_in(id, "refunded").await;
        let refund = order["payment"]["refundId"].as_str().expect("a refund");
        assert!(refund.starts_with("re_"), "{order}");
    }
    system.settle().await;
    let was_charged = system.order(&raced).await["status"] == "refunded";
    let mut charged = vec![(kept.as_str(), false), (&cancelled, true), (&refunded, true)];
    charged.extend(was_charged.then_some((raced.as_str(), true)));
    stripe.has_charged(&charged).await;
    verified(&system).await;
    close(system, running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_charge_without_an_answer_is_asked_for_and_not_made_again() {
    let Some(stripe) = LocalStripe::start().await else { return };
    let line = Unreliable::to(stripe.url()).await;
    let (system, running) = shop(through(line.url())).await;
    // One is charged, and its answer never comes; one is cut off in its answer; one never arrives.
    let mut orders = Vec::new();
    for fault in [Fault::NoAnswer, Fault::Cut, Fault::Lost] {
        line.fail("/confirm", 1, fault);
        line.fail("GET /v1/payment_intents", 1_000, Fault::Answer(500));
        let id = place(&system, GOOD).await;
        system.order_in(&id, "payment_unknown").await;
        orders.push(id);
        line.mend();
    }
    let [unanswered, cut, lost] = orders.try_into().expect("three");
    for id in [&unanswered, &cut] {
        system.order_in(id, "paid").await;
    }
    assert_eq!(system.order(&lost).await["status"], "payment_unknown");
    assert_eq!(line.seen("/confirm").len(), 3, "{:?}", line.seen("/confirm"));
    stripe.has_charged(&[(&unanswered, false), (&cut, false)]).await;
    // What never arrived takes no money later.
    cancel(&system, &lost).await;
    system.order_in(&lost, "cancelled").await;
    system.settle().await;
    assert_eq!(system.steps(&lost).await, ["validated", "payment-unknown", "cancelled"]);
    let cancelled = stripe.all("payment_intents").await;
    let cancelled = cancelled.iter().filter(|intent| intent["status"] == "canceled");
    assert_eq!(cancelled.count(), 1);
    verified(&system).await;
    close(system, running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stripe_refuses_for_the_moment_is_asked_for_again_and_done_once() {
    let Some(stripe) = LocalStripe::start().await else { return };
    let line = Unreliable::to(stripe.url()).await;
    let (system, running) = shop(through(line.url())).await;
    let mut charged = Vec::new();
    for status in [409, 429, 500, 503] {
        for part in ["POST /v1/payment_intents", "/confirm", "/v1/refunds"] {
            line.fail(part, 1, Fault::Answer(status));
        }
        let id = place(&system, GOOD).await;
        system.order_in(&id, "paid").await;
        cancel(&system, &id).await;
        system.order_in(&id, "refunded").await;
        charged.push(id);
    }
    // The answer to a refund never comes: it is looked for before another is made.
    let last = place(&system, GOOD).await;
    system.order_in(&last, "paid").await;
    line.fail("POST /v1/refunds", 1, Fault::NoAnswer);
    cancel(&system, &last).await;
    system.order_in(&last, "refunded").await;
    charged.push(last);
    let charged: Vec<(&str, bool)> = charged.iter().map(|id| (id.as_str(), true)).collect();
    stripe.has_charged(&charged).await;
    // Sent again it has the same key.
    let created = line.seen("POST /v1/payment_intents");
    let created: Vec<_> = created.iter().filter(|it| it.what.ends_with("intents")).collect();
    let mut keys: Vec<_> = created.iter().map(|it| it.key.clone().expect("a key")).collect();
    keys.dedup();
    assert_eq!((created.len() > keys.len(), keys.len()), (true, charged.len()), "{created:?}");
    verified(&system).await;
    close(system, running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_fails_all_the_time_is_left_alone_and_nothing_is_lost() {
    let Some(stripe) = LocalStripe::start().await else { return };
    let line = Unreliable::to(stripe.url()).await;
    let gateway = GatewayConfig { gateway_failures: 3, ..through(line.url()) };
    let (system, running) = shop(gateway).await;
    line.fail("/v1/", usize::MAX, Fault::Answer(503));
    let mut orders = Vec::new();
    for _ in 0..10 {
        orders.push(place(&system, GOOD).await);
    }
    eventually("it is tried", async || (line.seen("").len() > 12).then_some(())).await;
    // Those that were under way when it opened end by themselves.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = line.seen("").len();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let meanwhile = line.seen("").len() - before;
    // One call at a time, and a pause after it: four requests in a second or two.
    assert!(meanwhile <= 3 * 4, "{meanwhile} requests in three seconds");
    // What needs no gateway goes on.
    let account = json!({
        "customerId": "bob", "lines": [{ "productId": "box", "quantity": 1 }],
        "payment": { "method": "account" },
    });
    system.register("bob", Some(10_000)).await;
    let answer = system.post_and_wait("/v1/orders", &account).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    system.order_in(&answer.text("/orderId"), "paid").await;
    line.mend();
    for id in &orders {
        system.order_in(id, "paid").await;
    }
    let orders: Vec<(&str, bool)> = orders.iter().map(|id| (id.as_str(), false)).collect();
    stripe.has_charged(&orders).await;
    verified(&system).await;
    close(system, running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stripe_does_not_understand_is_parked_and_charged_once_when_it_is_replayed() {
    let Some(stripe) = LocalStripe::start().await else { return };
    let line = Unreliable::to(stripe.url()).await;
    let (system, running) = shop(through(line.url())).await;
    line.fail("POST /v1/payment_intents", usize::MAX, Fault::Answer(400));
    let refused = place(&system, GOOD).await;
    let kept = eventually("it is parked", async || parked(&system).await.pop()).await;
    assert_eq!(header(&kept, "Millrace-Worker"), "payment");
    assert!(header(&kept, "Millrace-Reason").contains("Stripe answers 400"), "{kept:?}");
    assert_eq!(line.seen("POST").len(), 8, "{:?}", line.seen("POST"));
    assert_eq!(system.order(&refused).await["status"], "validated");
    line.mend();
    // It is in nobody's way.
    let paid = place(&system, GOOD).await;
    system.order_in(&paid, "paid").await;
    stripe.has_charged(&[(&paid, false)]).await;
    let replayed = run(&["parked", "replay", "--all"], &settings(&system.config)).await;
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    system.order_in(&refused, "paid").await;
    stripe.has_charged(&[(&paid, false), (&refused, false)]).await;
    verified(&system).await;
    close(system, running).await;
}
