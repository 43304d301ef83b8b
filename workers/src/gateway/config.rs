//! Which gateway charges, how it is reached, and how much it is asked for.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use millrace_shared::config::Secret;
use millrace_shared::https::{Https, Uri, is_this_machine};
use sqlx::PgPool;

use super::breaker::Breaker;
use super::guard::Limits;
use super::stripe::{Api, Stripe};

/// Stripe's own address.
const STRIPE: &str = "https://api.stripe.com";

/// A payment gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Kind {
    /// Takes no money: its book is in PostgreSQL
    #[default]
    Sandbox,
    /// Stripe's `PaymentIntents`
    Stripe,
}

/// The gateway, for payment.
#[derive(Debug, Clone, Args)]
pub struct GatewayConfig {
    /// Which gateway charges cards. The same for all payment workers; settle what is open before you
    /// change it
    #[arg(long, env = "MILLRACE_GATEWAY", value_name = "NAME", value_enum, default_value_t)]
    pub gateway: Kind,
    /// Seconds that the gateway may take for one request before its outcome counts as unknown
    #[arg(long, env = "MILLRACE_GATEWAY_TIMEOUT", value_name = "SECONDS", default_value_t = 8,
          value_parser = clap::value_parser!(u64).range(1..=8))]
    pub gateway_timeout: u64,
    /// Calls of the gateway at a time, of each payment worker [default: 32; sandbox: 256]
    #[arg(long, env = "MILLRACE_GATEWAY_CALLS", value_name = "NUMBER",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub gateway_calls: Option<u16>,
    /// Requests to Stripe that fail in a row, after which a worker leaves it alone for a while
    #[arg(long, env = "MILLRACE_GATEWAY_FAILURES", value_name = "NUMBER", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub gateway_failures: u32,
    /// Seconds for which it is left alone
    #[arg(long, env = "MILLRACE_GATEWAY_PAUSE", value_name = "SECONDS", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub gateway_pause: u64,
    /// Secret key at Stripe (`sk_…` or, better, a restricted key `rk_…`); better in a file
    #[arg(
        long,
        env = "MILLRACE_STRIPE_KEY",
        hide_env_values = true,
        value_name = "KEY",
        conflicts_with = "stripe_key_file"
    )]
    pub stripe_key: Option<Secret>,
    /// File with that key
    #[arg(long, env = "MILLRACE_STRIPE_KEY_FILE", value_name = "FILE")]
    pub stripe_key_file: Option<PathBuf>,
    /// Address of Stripe, or of what stands in for it: https, or http on this machine
    #[arg(long, env = "MILLRACE_STRIPE_URL", value_name = "URL", default_value = STRIPE)]
    pub stripe_url: Uri,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            gateway: Kind::Sandbox,
            gateway_timeout: 8,
            gateway_calls: None,
            gateway_failures: 10,
            gateway_pause: 5,
            stripe_key: None,
            stripe_key_file: None,
            stripe_url: Uri::from_static(STRIPE),
        }
    }
}

impl GatewayConfig {
    /// How long one request may take.
    fn request(&self) -> Duration {
        Duration::from_secs(self.gateway_timeout)
    }

    /// How much the gateway is asked for. A call is two requests at the most, and what is written
    /// down between them.
    pub fn limits(&self) -> Limits {
        let usual = match self.gateway {
            Kind::Sandbox => 256,
            Kind::Stripe => 32,
        };
        Limits { calls: self.gateway_calls.map_or(usual, usize::from), time: self.request() * 3 }
    }

    /// Stripe, with what is remembered of it in `pool`.
    pub fn stripe(&self, pool: PgPool) -> anyhow::Result<Stripe> {
        let key = Secret::read(
            self.stripe_key.as_ref(),
            self.stripe_key_file.as_ref(),
            "the key at Stripe",
        )?;
        let key =
            key.context("--gateway stripe needs a key: --stripe-key-file or MILLRACE_STRIPE_KEY")?;
        let url = &self.stripe_url;
        ensure!(
            url.scheme_str() == Some("https")
                || (url.scheme_str() == Some("http") && url.host().is_some_and(is_this_machine)),
            "--stripe-url must begin with https://, or with http:// where it is on this machine"
        );
        ensure!(
            url.authority().is_some_and(|it| !it.as_str().contains('@')) && url.query().is_none(),
            "--stripe-url has no password and no query in it: the key comes from --stripe-key-file"
        );
        let pause = Duration::from_secs(self.gateway_pause);
        let breaker = Breaker::new(self.gateway_failures, pause);
        let https = Https::to(url).context("the certificates of this machine cannot be read")?;
        let api = Api::new(https, url, &key, self.request(), breaker)?;
        Ok(Stripe::new(api, pool, self.request() * 3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripe(url: &'static str) -> anyhow::Result<()> {
        let config = GatewayConfig {
            stripe_key: Some("sk_test_1".into()),
            stripe_url: Uri::from_static(url),
            ..GatewayConfig::default()
        };
        config.stripe(PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/x")?).map(drop)
    }

    #[tokio::test]
    async fn a_key_is_sent_over_tls_or_within_this_machine_only() {
        for good in ["http://127.0.0.1:8420", "http://localhost:1", "http://[::1]:8420/"] {
            stripe(good).unwrap();
        }
        for bad in ["http://stripe.example", "http://10.0.0.1", "https://a:b@stripe.example", "/v1"]
        {
            assert!(stripe(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_secret_is_in_what_debug_shows() {
        let config =
            GatewayConfig { stripe_key: Some("sk_live_1".into()), ..GatewayConfig::default() };
        assert!(!format!("{config:?}").contains("sk_live"));
    }
}
