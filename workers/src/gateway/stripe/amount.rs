//! Amounts as Stripe counts them (<https://docs.stripe.com/currencies>): mostly minor units of ISO
//! 4217, as our own are, but not for all currencies.

use millrace_shared::money::{Currency, Money};

/// The amount in Stripe's units; nothing where Stripe has no such amount. Nothing is ever rounded.
pub fn in_units(money: Money) -> Option<i64> {
    let Money { amount, currency } = money;
    let whole = |part: i64| (amount % part == 0).then_some(amount);
    match currency {
        // Without minor units, and counted in hundredths all the same.
        Currency::ISK | Currency::UGX => amount.checked_mul(100),
        // Has minor units that nobody uses, and is counted in whole ones.
        Currency::MGA => whole(100).map(|amount| amount / 100),
        // In thousandths, of which the last digit must be zero.
        Currency::BHD | Currency::JOD | Currency::KWD | Currency::OMR | Currency::TND => whole(10),
        _ => Some(amount),
    }
    .filter(|units| *units > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_counted_as_stripe_counts_them() {
        for (currency, amount, units) in [
            (Currency::USD, 1_234, Some(1_234)),
            (Currency::JPY, 500, Some(500)),
            (Currency::HUF, 500, Some(500)),
            (Currency::ISK, 5, Some(500)),
            (Currency::UGX, 5, Some(500)),
            (Currency::MGA, 500, Some(5)),
            (Currency::MGA, 501, None),
            (Currency::KWD, 5_120, Some(5_120)),
            (Currency::KWD, 5_124, None),
            (Currency::USD, 0, None),
        ] {
            assert_eq!(in_units(Money::new(amount, currency)), units, "{amount} {currency:?}");
        }
    }

    #[test]
    fn our_own_minor_units_are_what_that_takes_them_for() {
        let digits = |currency: Currency| currency.exponent();
        assert_eq!([Currency::ISK, Currency::UGX, Currency::JPY].map(digits), [Some(0); 3]);
        assert_eq!([Currency::MGA, Currency::HUF, Currency::USD].map(digits), [Some(2); 3]);
        let thousandths =
            [Currency::BHD, Currency::JOD, Currency::KWD, Currency::OMR, Currency::TND];
        assert_eq!(thousandths.map(digits), [Some(3); 5]);
        // All that Stripe counts in whole units (`MGA` is above, `UGX` is no more).
        for currency in [
            Currency::BIF,
            Currency::CLP,
            Currency::DJF,
            Currency::GNF,
            Currency::KMF,
            Currency::KRW,
            Currency::PYG,
            Currency::RWF,
            Currency::VND,
            Currency::VUV,
            Currency::XAF,
            Currency::XOF,
            Currency::XPF,
        ] {
            assert_eq!(digits(currency), Some(0), "{currency:?}");
        }
    }
}
