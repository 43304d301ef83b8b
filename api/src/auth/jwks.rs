//! The public keys of who issues tokens, as a JWKS (RFC 7517) in a file or at a URL. They are read
//! again now and then, and when a token names a key that is not known: for a new key. Where they
//! cannot be read, those from before stay in use.

use std::collections::HashMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::body::Bytes;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use millrace_shared::https::{Https, Request, Uri};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::token::{Expected, Key, TokenError};

/// How often the keys are read again: so long does one live on that was taken away.
const EVERY: Duration = Duration::from_mins(5);
/// How often they are read again at the most because of tokens whose key is not known: such tokens
/// cost their sender nothing.
const SOONEST: Duration = Duration::from_secs(30);
/// How soon it is tried again while none could be read yet: no token can be taken until then.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most bytes of all keys.
const MOST_BYTES: usize = 256 * 1024;
/// Bits of the smallest RSA key (RFC 7518, 3.3), in bytes.
const RSA_BYTES: usize = 256;

/// Where the keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file.
    File(PathBuf),
    /// At an address, `https://…` or, within one's own network, `http://…`.
    Url(Uri),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.contains("://") {
            return Ok(Self::File(text.into()));
        }
        let uri: Uri = text.parse().map_err(|error| format!("is no address: {error}"))?;
        match uri.scheme_str() {
            Some("https" | "http")
                if uri.authority().is_some_and(|it| !it.as_str().contains('@')) =>
            {
                Ok(Self::Url(uri))
            }
            _ => Err("must be https://HOST/PATH, without a password in it, or a file".to_owned()),
        }
    }
}

type Keys = HashMap<String, Arc<Key>>;

/// What is known of the keys.
#[derive(Debug, Default)]
struct Known {
    /// By `kid`; one that has none is under the empty name. Absent until they could be read.
    keys: Option<Keys>,
    /// What was read.
    text: Vec<u8>,
    /// Another number for all that was read.
    state: u64,
}

/// The keys.
#[derive(Debug)]
pub struct Jwks {
    place: Place,
    expected: Expected,
    known: RwLock<Known>,
    /// When a token has last made them be read.
    asked: Mutex<Option<Instant>>,
}

impl Jwks {
    /// The keys at a place; they are read by [`Jwks::keep_fresh`].
    pub fn new(place: Place, expected: Expected) -> Self {
        Self { place, expected, known: RwLock::default(), asked: Mutex::default() }
    }

    /// Another number whenever other keys were read.
    pub fn state(&self) -> u64 {
        self.known.read().unwrap_or_else(PoisonError::into_inner).state
    }

    /// The key of this name; where there is but one a token need not name it.
    pub async fn key(&self, kid: Option<&str>) -> Result<Arc<Key>, TokenError> {
        let found = self.find(kid);
        // What could not be read yet is tried again all the time.
        if !matches!(found, Err(TokenError::Signature)) {
            return found;
        }
        // Others wait meanwhile, and find what was read.
        let mut asked = self.asked.lock().await;
        if asked.is_none_or(|at| at.elapsed() >= SOONEST) && self.find(kid).is_err() {
            *asked = Some(Instant::now());
            self.refresh().await;
        }
        self.find(kid)
    }

    fn find(&self, kid: Option<&str>) -> Result<Arc<Key>, TokenError> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let keys = known.keys.as_ref().ok_or(TokenError::NoKeys)?;
        let found = match kid {
            Some(kid) => keys.get(kid),
            None if keys.len() == 1 => keys.values().next(),
            None => None,
        };
        found.cloned().ok_or(TokenError::Signature)
    }

    /// Reads the keys now and again until the shutdown.
    pub async fn keep_fresh(&self, stop: &CancellationToken) {
        loop {
            self.refresh().await;
            // Until they could be read once, no token is taken: then it is tried again soon.
            let wait = if self.are_known() { EVERY } else { AFTER_FAILURE };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Whether the keys could be read.
    pub fn are_known(&self) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).keys.is_some()
    }

    /// Reads the keys; those from before stay where that does not work.
    pub async fn refresh(&self) {
        let read = timeout(PATIENCE, self.read()).await;
        let read = read.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {PATIENCE:?}")));
        match read.and_then(|text| Ok((parse(&text, &self.expected)?, text))) {
            Ok((keys, text)) => {
                let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                if known.keys.is_none() || known.text != text {
                    tracing::info!(keys = keys.len(), "the keys of tokens were read");
                    let state = known.state + 1;
                    *known = Known { keys: Some(keys), text, state };
                }
            }
            Err(error) => tracing::warn!(
                place = ?self.place,
                "the keys of tokens cannot be read; those from before stay in use: {error:#}"
            ),
        }
    }

    async fn read(&self) -> anyhow::Result<Vec<u8>> {
        let uri = match &self.place {
            Place::File(path) => return Ok(tokio::fs::read(path).await?),
            Place::Url(uri) => uri.clone(),
        };
        let request = Request::get(&uri).header("accept", "application/json");
        let request = request.body(Bytes::new().into())?;
        let answer = Https::to(&uri)?.send(request, MOST_BYTES).await?;
        ensure!(answer.status().is_success(), "the answer is {}", answer.status());
        Ok(answer.into_body().to_vec())
    }
}

/// The keys of a JWKS that tokens can be signed with here. What is for other things is left out.
pub(super) fn parse(text: &[u8], expected: &Expected) -> anyhow::Result<Keys> {
    ensure!(text.len() <= MOST_BYTES, "there are more than {MOST_BYTES} bytes of keys");
    let set: Value = serde_json::from_slice(text).context("it is not JSON")?;
    let listed = set["keys"].as_array().context("it has no list of keys")?;
    let keys: Keys = listed
        .iter()
        // One that cannot be read is no reason to do without the others.
        .filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok())
        .filter_map(|jwk| {
            let algorithm = algorithm(&jwk)?;
            let decoding = DecodingKey::from_jwk(&jwk).ok()?;
            let key = Arc::new(Key::new(decoding, algorithm, expected));
            Some((jwk.common.key_id.unwrap_or_default(), key))
        })
        .collect();
    ensure!(!keys.is_empty(), "it has no key for RS256, ES256 or EdDSA (Ed25519)");
    Ok(keys)
}

/// What a key is for: that follows from its kind alone. A secret is never taken from a JWKS.
fn algorithm(jwk: &Jwk) -> Option<Algorithm> {
    let signs = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) => {
            let modulus = BASE64_URL_SAFE_NO_PAD.decode(&rsa.n).ok()?;
            (modulus.len() >= RSA_BYTES).then_some(Algorithm::RS256)?
        }
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        _ => return None,
    };
    let named = jwk.common.key_algorithm.map(|named| named.to_string());
    let fits = named.is_none_or(|named| named == format!("{algorithm:?}"));
    (signs && fits).then_some(algorithm)
}
