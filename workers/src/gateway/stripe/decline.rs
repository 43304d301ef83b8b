//! Why a payment is declined, in our words.

use super::api::Problem;

/// The bank wants to see the card's owner, who is not there.
pub const AUTHENTICATION: &str = "authentication_required";

/// The reason of a declined card, as the order tells it. Stripe's own codes
/// (<https://docs.stripe.com/declines/codes>) but for those that have a name here already, and those
/// that nobody who holds a stolen card should read.
pub fn of_card(problem: &Problem) -> String {
    let code = problem.decline_code.as_deref().or(problem.code.as_deref());
    match code.unwrap_or("card_declined") {
        "card_declined" | "generic_decline" | "fraudulent" | "lost_card" | "merchant_blacklist"
        | "pickup_card" | "restricted_card" | "security_violation" | "stolen_card" => "declined",
        "payment_intent_authentication_failure" => AUTHENTICATION,
        code => code,
    }
    .to_owned()
}

/// The reason, where Stripe refuses a payment for what the order brought with it; nothing where the
/// request itself is wrong.
pub fn of_request(problem: &Problem) -> Option<String> {
    let about_the_card = problem.param.as_deref() == Some("payment_method");
    let code = problem.code.as_deref().unwrap_or_default();
    if problem.kind == "card_error" {
        return Some(of_card(problem));
    }
    match code {
        "resource_missing" if about_the_card => Some("unknown_token".to_owned()),
        "amount_too_small" | "amount_too_large" => Some(code.to_owned()),
        _ if code.starts_with("payment_method_") => Some(code.to_owned()),
        // A currency that the account cannot take, a card that has been used up.
        _ if about_the_card || problem.param.as_deref() == Some("currency") => {
            Some("not_chargeable".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(json: serde_json::Value) -> Problem {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_declined_card_has_the_bank_s_reason_unless_that_would_warn_a_thief() {
        for (code, decline_code, reason) in [
            ("card_declined", Some("insufficient_funds"), "insufficient_funds"),
            ("card_declined", Some("generic_decline"), "declined"),
            ("card_declined", Some("stolen_card"), "declined"),
            ("card_declined", None, "declined"),
            ("expired_card", None, "expired_card"),
            ("authentication_required", Some("authentication_required"), AUTHENTICATION),
        ] {
            let problem = problem(serde_json::json!({
                "type": "card_error", "code": code, "decline_code": decline_code,
            }));
            assert_eq!(of_card(&problem), reason);
            assert_eq!(of_request(&problem).as_deref(), Some(reason));
        }
    }

    #[test]
    fn an_order_is_declined_for_what_it_brought_and_not_for_a_defect_of_ours() {
        let refused = |code: &str, param: &str| {
            of_request(&problem(serde_json::json!({
                "type": "invalid_request_error", "code": code, "param": param, "message": "No",
            })))
        };
        assert_eq!(refused("resource_missing", "payment_method").as_deref(), Some("unknown_token"));
        assert_eq!(refused("amount_too_small", "amount").as_deref(), Some("amount_too_small"));
        assert_eq!(refused("", "currency").as_deref(), Some("not_chargeable"));
        assert_eq!(refused("", "payment_method").as_deref(), Some("not_chargeable"));
        assert_eq!(refused("parameter_unknown", "colour"), None);
        assert_eq!(refused("resource_missing", "intent"), None);
    }
}
