//! Tokens: signed JWTs (RFC 7519, RFC 8725). The algorithm follows from the key and never from the
//! token, so that none passes a public key off as a secret. What was verified once is remembered, by
//! its hash, until it ends.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
};
use lru::LruCache;
use millrace_shared::ids::CustomerId;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::jwks::Jwks;
use super::{Caller, Role, crypto};
use crate::error::Problem;
use axum::http::StatusCode;

/// The most bytes of a token.
pub const MAX_BYTES: usize = 8 * 1024;
/// The fewest bytes of a secret: as many as the hash has (RFC 7518, 3.2).
const SECRET_BYTES: usize = 32;
/// Verified tokens that are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::MIN.saturating_add(9_999);
/// The longest name in a token.
const LONGEST_NAME: usize = 200;

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// The header is not `Bearer TOKEN`.
    NoBearer,
    /// More than [`MAX_BYTES`].
    TooLong,
    /// It cannot be read.
    Malformed,
    /// No JWTs are taken here.
    NotTaken,
    /// There is no such API key.
    UnknownKey,
    /// No key that is known here has signed it.
    Signature,
    /// Its algorithm is not that of the key.
    Algorithm,
    /// It has ended.
    Expired,
    /// It has not begun.
    NotYet,
    /// It is of another issuer.
    Issuer,
    /// It is for others.
    Audience,
    /// Its end, subject or role is missing or none that is known here.
    Claims,
    /// The keys could not be read yet: nothing can be said of any token.
    NoKeys,
}

impl TokenError {
    fn detail(self) -> &'static str {
        match self {
            Self::NoBearer => "the header must be Authorization: Bearer TOKEN",
            Self::TooLong => "the token is longer than 8 KiB",
            Self::Malformed => "the token cannot be read",
            Self::NotTaken => "only API keys are taken here, no other tokens",
            Self::UnknownKey => "there is no such API key",
            Self::Signature => "no key that is known here has signed the token",
            Self::Algorithm => "the token is signed in a way that its key is not for",
            Self::Expired => "the token has expired",
            Self::NotYet => "the token is not valid yet",
            Self::Issuer => "the token is of another issuer",
            Self::Audience => "the token is for another audience",
            Self::Claims => {
                "the token needs exp, sub and role: customer (sub is its id), service or operator"
            }
            Self::NoKeys => "the keys that tokens are signed with cannot be read now",
        }
    }

    /// As it is told: 401 with the reason (RFC 6750, 3.1).
    pub fn problem(self) -> Problem {
        let (kind, title) = ("/problems/unauthorized", "Not signed in");
        Problem::new(StatusCode::UNAUTHORIZED, kind, title, self.detail())
            .challenge("Bearer realm=\"millrace\", error=\"invalid_token\"")
    }
}

impl From<jsonwebtoken::errors::Error> for TokenError {
    fn from(error: jsonwebtoken::errors::Error) -> Self {
        match error.kind() {
            ErrorKind::InvalidSignature => Self::Signature,
            ErrorKind::InvalidAlgorithm => Self::Algorithm,
            ErrorKind::ExpiredSignature => Self::Expired,
            ErrorKind::ImmatureSignature => Self::NotYet,
            ErrorKind::InvalidIssuer => Self::Issuer,
            ErrorKind::InvalidAudience => Self::Audience,
            ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
                "iss" => Self::Issuer,
                "aud" => Self::Audience,
                _ => Self::Claims,
            },
            _ => Self::Malformed,
        }
    }
}

/// What a token must say to be taken.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Who issues tokens (`iss`).
    pub issuer: String,
    /// Whom they are for (`aud`).
    pub audience: String,
    /// How much clocks may differ.
    pub skew: Duration,
}

/// What a token says.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    role: String,
    /// In seconds since 1970; JSON knows no integers (RFC 7519, 2).
    exp: f64,
}

/// A key, and what it signs.
#[derive(Debug)]
pub struct Key {
    decoding: DecodingKey,
    validation: Validation,
}

impl Key {
    /// A key for one algorithm.
    pub fn new(decoding: DecodingKey, algorithm: Algorithm, expected: &Expected) -> Self {
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[&expected.issuer]);
        validation.set_audience(&[&expected.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = expected.skew.as_secs();
        Self { decoding, validation }
    }

    fn read(&self, token: &str) -> Result<Claims, TokenError> {
        decode::<Claims>(token, &self.decoding, &self.validation).map(|data| data.claims).map_err(
            |error| match error.kind() {
                // The rest of it was read already: it is what it says that is not enough.
                ErrorKind::Json(_) => TokenError::Claims,
                _ => error.into(),
            },
        )
    }
}

/// Where the keys of tokens are.
#[derive(Debug)]
pub enum Source {
    /// One secret, shared with who issues the tokens.
    Secret(Box<Key>),
    /// Public keys of who issues them.
    Jwks(Box<Jwks>),
}

/// A token that was verified, and under which state of the keys.
#[derive(Debug)]
struct Verified {
    caller: Caller,
    keys: u64,
}

/// Reads tokens.
#[derive(Debug)]
pub struct Tokens {
    source: Source,
    skew: Duration,
    verified: Mutex<LruCache<[u8; 32], Verified>>,
}

impl Tokens {
    /// Tokens that are signed by a shared secret.
    pub fn by_secret(secret: &[u8], expected: &Expected) -> anyhow::Result<Self> {
        check_secret(secret)?;
        let key = Key::new(DecodingKey::from_secret(secret), Algorithm::HS256, expected);
        Ok(Self::new(Source::Secret(Box::new(key)), expected))
    }

    /// Tokens that are signed by who publishes these keys.
    pub fn by_jwks(jwks: Jwks, expected: &Expected) -> Self {
        Self::new(Source::Jwks(Box::new(jwks)), expected)
    }

    fn new(source: Source, expected: &Expected) -> Self {
        crypto::install();
        let verified = Mutex::new(LruCache::new(REMEMBERED));
        Self { source, skew: expected.skew, verified }
    }

    /// Keeps the keys fresh until the shutdown.
    pub async fn keep_fresh(&self, stop: &CancellationToken) {
        if let Source::Jwks(jwks) = &self.source {
            jwks.keep_fresh(stop).await;
        }
    }

    /// Whether the keys are there.
    pub fn are_ready(&self) -> bool {
        match &self.source {
            Source::Secret(_) => true,
            Source::Jwks(jwks) => jwks.are_known(),
        }
    }

    /// Whose token it is.
    pub async fn verify(&self, token: &str) -> Result<Caller, TokenError> {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        let state = self.state();
        if let Some(known) = self.remembered().get(&hash)
            && known.keys == state
            && known.caller.left().is_some_and(|left| !left.is_zero())
        {
            return Ok(known.caller.clone());
        }
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        let claims = match &self.source {
            Source::Secret(key) => key.read(token)?,
            Source::Jwks(jwks) => jwks.key(header.kid.as_deref()).await?.read(token)?,
        };
        let caller = self.caller(&claims)?;
        // To the moment, and not to the second.
        if caller.left().is_none_or(|left| left.is_zero()) {
            return Err(TokenError::Expired);
        }
        // Under the state from before: what was verified while the keys changed is verified again.
        self.remembered().put(hash, Verified { caller: caller.clone(), keys: state });
        Ok(caller)
    }

    fn caller(&self, claims: &Claims) -> Result<Caller, TokenError> {
        let exp = Duration::try_from_secs_f64(claims.exp).map_err(|_| TokenError::Malformed)?;
        let until = UNIX_EPOCH.checked_add(exp).and_then(|until| until.checked_add(self.skew));
        let until = until.ok_or(TokenError::Malformed)?;
        let role: Role = claims.role.parse().map_err(|()| TokenError::Claims)?;
        if role == Role::Customer {
            let id: CustomerId = claims.sub.parse().map_err(|_| TokenError::Claims)?;
            return Ok(Caller::customer(id, until));
        }
        // It stands in headers and in the audit table.
        let plain = (1..=LONGEST_NAME).contains(&claims.sub.len())
            && claims.sub.bytes().all(|byte| byte.is_ascii_graphic());
        if !plain {
            return Err(TokenError::Claims);
        }
        Ok(Caller::worker(role, &format!("{}:{}", role.as_str(), claims.sub), Some(until)))
    }

    fn state(&self) -> u64 {
        match &self.source {
            Source::Secret(_) => 0,
            Source::Jwks(jwks) => jwks.state(),
        }
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, LruCache<[u8; 32], Verified>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_secret(secret: &[u8]) -> anyhow::Result<()> {
    ensure!(
        secret.len() >= SECRET_BYTES,
        "the secret of tokens must have at least {SECRET_BYTES} bytes: make one with \
         `openssl rand -hex 32`"
    );
    Ok(())
}

/// Makes a token that [`Tokens::by_secret`] takes, for `valid` from now on.
pub fn issue(
    secret: &[u8],
    expected: &Expected,
    subject: &str,
    role: Role,
    valid: Duration,
) -> anyhow::Result<String> {
    check_secret(secret)?;
    crypto::install();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let claims = serde_json::json!({
        "iss": expected.issuer, "aud": expected.audience, "sub": subject, "role": role.as_str(),
        "iat": now.as_secs(), "exp": (now + valid).as_secs(),
    });
    let key = EncodingKey::from_secret(secret);
    Ok(encode(&Header::new(Algorithm::HS256), &claims, &key)?)
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
