//! The settings of who may sign in, and how much each may ask for.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use super::jwks::{Jwks, Place};
use super::keys::KeyFile;
use super::limits::{Rate, Rates};
use super::token::{Expected, Tokens};

/// Streams that one customer or operator may have open, if it is not said.
const USUAL_STREAMS: usize = 20;

/// The secret of tokens, and what else they must say.
#[derive(Debug, Clone, Args)]
pub struct TokenConfig {
    /// Secret that HS256 tokens are signed with, at least 32 bytes; better in a file
    #[arg(
        long,
        env = "MILLRACE_JWT_SECRET",
        hide_env_values = true,
        value_name = "SECRET",
        conflicts_with = "jwt_secret_file"
    )]
    pub jwt_secret: Option<String>,
    /// File with that secret
    #[arg(long, env = "MILLRACE_JWT_SECRET_FILE", value_name = "FILE")]
    pub jwt_secret_file: Option<PathBuf>,
    /// The issuer that tokens must name (`iss`)
    #[arg(long, env = "MILLRACE_JWT_ISSUER", value_name = "NAME", default_value = "millrace")]
    pub jwt_issuer: String,
    /// The audience that tokens must name (`aud`)
    #[arg(long, env = "MILLRACE_JWT_AUDIENCE", value_name = "NAME", default_value = "millrace")]
    pub jwt_audience: String,
    /// Seconds by which clocks may differ
    #[arg(long, env = "MILLRACE_JWT_SKEW", value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u32).range(0..=600))]
    pub jwt_skew: u32,
}

impl Default for TokenConfig {
    fn default() -> Self {
        let name = || "millrace".to_owned();
        Self {
            jwt_secret: None,
            jwt_secret_file: None,
            jwt_issuer: name(),
            jwt_audience: name(),
            jwt_skew: 30,
        }
    }
}

impl TokenConfig {
    /// What a token must say.
    pub fn expected(&self) -> Expected {
        Expected {
            issuer: self.jwt_issuer.clone(),
            audience: self.jwt_audience.clone(),
            skew: Duration::from_secs(self.jwt_skew.into()),
        }
    }

    /// The secret, if there is one.
    pub fn secret(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let Some(file) = &self.jwt_secret_file else {
            return Ok(self.jwt_secret.as_ref().map(|secret| secret.clone().into_bytes()));
        };
        let secret = fs::read_to_string(file)
            .with_context(|| format!("the secret of tokens {} cannot be read", file.display()))?;
        Ok(Some(secret.trim_end_matches(['\r', '\n']).as_bytes().to_vec()))
    }
}

/// Who may sign in, and how much each may ask for. Without a secret, keys of tokens or API keys nobody
/// has to sign in, and only this machine is listened to.
#[derive(Debug, Clone, Default, Args)]
pub struct AuthConfig {
    #[command(flatten)]
    #[allow(missing_docs, reason = "the text would become part of the help")]
    pub tokens: TokenConfig,
    /// Public keys of who signs tokens with RS256, ES256 or `EdDSA`: a JWKS file, or its URL
    #[arg(long, env = "MILLRACE_JWKS", value_name = "FILE|URL",
          conflicts_with_all = ["jwt_secret", "jwt_secret_file"])]
    jwks: Option<Place>,
    /// File of API keys; `millrace key new` makes its lines
    #[arg(long, env = "MILLRACE_API_KEYS", value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// Requests a second of one caller: customer=50, service=10000, operator=500 and, by address,
    /// anonymous=100 unless others are said, separated by commas; 0 is no limit. Where nobody signs
    /// in there are none unless they are said
    #[arg(long, env = "MILLRACE_RATES", value_name = "WHO=N", value_delimiter = ',')]
    rates: Vec<Rate>,
    /// Live streams that one customer or operator may have open [default: 20]
    #[arg(long, env = "MILLRACE_STREAMS_PER_CALLER", value_name = "NUMBER")]
    streams_per_caller: Option<usize>,
    /// All requests come through a proxy that speaks TLS, and that adds to X-Forwarded-For whom it
    /// has them from
    #[arg(long, env = "MILLRACE_BEHIND_PROXY")]
    pub(super) behind_proxy: bool,
}

impl AuthConfig {
    /// With HS256 tokens by a secret.
    #[must_use]
    pub fn with_secret(mut self, secret: &str) -> Self {
        self.tokens.jwt_secret = Some(secret.to_owned());
        self
    }

    /// With tokens by published keys.
    #[must_use]
    pub fn with_jwks(mut self, place: Place) -> Self {
        self.jwks = Some(place);
        self
    }

    /// With API keys.
    #[must_use]
    pub fn with_keys(mut self, file: PathBuf) -> Self {
        self.api_keys = Some(file);
        self
    }

    /// With other rates and limits of streams.
    #[must_use]
    pub fn with_limits(mut self, rates: Vec<Rate>, streams: Option<usize>) -> Self {
        (self.rates, self.streams_per_caller) = (rates, streams);
        self
    }

    /// Whether callers have to sign in.
    pub fn is_set(&self) -> bool {
        let TokenConfig { jwt_secret, jwt_secret_file, .. } = &self.tokens;
        jwt_secret.is_some()
            || jwt_secret_file.is_some()
            || self.jwks.is_some()
            || self.api_keys.is_some()
    }

    pub(super) fn tokens(&self) -> anyhow::Result<Option<Tokens>> {
        let expected = self.tokens.expected();
        match (self.tokens.secret()?, &self.jwks) {
            (Some(_), Some(_)) => {
                bail!("tokens are signed by a secret or by published keys, not both")
            }
            (Some(secret), None) => Tokens::by_secret(&secret, &expected).map(Some),
            (None, Some(place)) => {
                let jwks = Jwks::new(place.clone(), expected.clone());
                Ok(Some(Tokens::by_jwks(jwks, &expected)))
            }
            (None, None) => Ok(None),
        }
    }

    pub(super) fn keys(&self) -> anyhow::Result<Option<KeyFile>> {
        self.api_keys.as_deref().map(KeyFile::open).transpose()
    }

    pub(super) fn rates(&self, signed_in: bool) -> Rates {
        let usual = if signed_in { Rates::usual() } else { Rates::default() };
        usual.with(&self.rates)
    }

    pub(super) fn streams(&self, signed_in: bool) -> Option<usize> {
        self.streams_per_caller.or(signed_in.then_some(USUAL_STREAMS))
    }
}
