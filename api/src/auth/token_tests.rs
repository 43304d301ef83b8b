use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use serde_json::{Value, json};

use millrace_shared::fuzzing::fuzz;

use super::*;
use crate::auth::jwks::{self, Place};

const SECRET: &[u8] = b"a secret of the tests, which is long enough";

/// An RSA key whose private half was thrown away, and a token that it had signed by openssl.
const MODULUS: &str = concat!(
    "8A4XECspWLi8x7LB3NGfkzUfTtQXP3YYSYqmYGAAj_5NxSNR4S_oIhKvF2ypBKp7ayzzK49C8H0dSwBr",
    "ETKRMDYVM_YPCMavk_Ghyjj4W1pC2FeoSTkUrZfWBXg2qD4fjQpORqLpXtE9D0kClryuM34LenER0BYA",
    "T0znvGbHaK0f1VXyWaUDzeElPsp9aYMsGJIfp0bCxcKmKLJIw7toLKxAWAEbtmG9a79UsoD4G7ZaieHW",
    "FGuNtmRHXpT_9lzLO8ROJfmTLibOaWNonAhH2G9lJdNLtLSdRe_mtcJUW8GzAmY_Dp4KQpZFTBRC8WWc",
    "G9WO",
    "ULrnBHw2moqYm3CvBQ",
);
const BY_RSA: &str = concat!(
    "eyJhbGciOiAiUlMyNTYiLCAia2lkIjogInJzYSJ9.eyJpc3MiOiAiaXNzdWVyIiwgImF1ZCI6ICJzaG9",
    "wIiwgInN1YiI6ICJhbm4iLCAicm9sZSI6ICJjdXN0b21lciIsICJleHAiOiA0MTAyNDQ0ODAwfQ.Eypk",
    "25KSN8JNseAXPhlkt_6rLBTzoxYULc-R4fkDDWrjFNzKkVpi_Ymws_NLd_APt7H4xXPiD8D73u0JWnuC",
    "luIgo7AnWS8wOP1--xXNx-GF_USLYJGPjbiCIOGATe",
    "hVIbpqFFWddSRkyJbFp9_iQtqeaTENVRJkzeOr",
    "QxAlym6GDztVAr7ixGprgMlbFn1rTMqqbBerxVz8pwXjfbF_nsHC4B-jsoQ_6kDdppoSFOZa7tNgXOUC",
    "yWeFoiV8qTqn36sP5XPehakwav8mE8mKgEC2huU4-_SfKUSh3n5ZnLbd27GEV6eB1ET57JXmypGpAduE",
    "9AFUNn0o_emtnnWArw",
);

fn expected() -> Expected {
    Expected { issuer: "issuer".into(), audience: "shop".into(), skew: Duration::from_secs(30) }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What a good token says, with some of it changed; null takes it away.
fn claims(changes: Value) -> Value {
    let good = json!({
        "iss": "issuer", "aud": ["shop", "others"], "sub": "ann", "role": "customer",
        "exp": now() + 60, "nbf": now() - 60,
    });
    let all = [good, changes].into_iter().flat_map(|it| it.as_object().unwrap().clone());
    let all: BTreeMap<String, Value> = all.collect();
    all.into_iter().filter(|(_, value)| !value.is_null()).collect::<serde_json::Map<_, _>>().into()
}

fn encoded(value: &Value) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A token by anything that signs.
fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!("{}.{}", encoded(header), encoded(claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn by_secret(secret: &[u8]) -> impl FnOnce(&[u8]) -> Vec<u8> {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    move |message| ring::hmac::sign(&key, message).as_ref().to_vec()
}

async fn read(changes: Value) -> Result<Caller, TokenError> {
    let tokens = Tokens::by_secret(SECRET, &expected()).unwrap();
    let token = token(&json!({ "alg": "HS256" }), &claims(changes), by_secret(SECRET));
    tokens.verify(&token).await
}

#[tokio::test]
async fn a_token_says_who_calls() {
    let ann = read(json!({})).await.unwrap();
    assert_eq!(ann.on_behalf_of().unwrap().as_str(), "ann");
    assert!(ann.left().unwrap() <= Duration::from_secs(91));
    let shop = read(json!({ "role": "service", "sub": "shop@example", "aud": "shop" })).await;
    let shop = shop.unwrap();
    assert_eq!((shop.actor(), shop.on_behalf_of()), (Some("service:shop@example"), None));
    assert!(!shop.is_operator());
    assert!(read(json!({ "role": "operator" })).await.unwrap().is_operator());
    assert!(read(json!({ "nbf": null })).await.is_ok());
}

#[tokio::test]
async fn a_token_that_says_anything_else_is_refused() {
    for (changes, error) in [
        (json!({ "exp": now() - 31 }), TokenError::Expired),
        (json!({ "exp": null }), TokenError::Claims),
        (json!({ "exp": "tomorrow" }), TokenError::Claims),
        (json!({ "nbf": now() + 60 }), TokenError::NotYet),
        (json!({ "iss": "somebody" }), TokenError::Issuer),
        (json!({ "iss": null }), TokenError::Issuer),
        (json!({ "aud": "others" }), TokenError::Audience),
        (json!({ "aud": null }), TokenError::Audience),
        (json!({ "sub": null }), TokenError::Claims),
        (json!({ "sub": "a.b" }), TokenError::Claims),
        (json!({ "sub": "" }), TokenError::Claims),
        (json!({ "role": null }), TokenError::Claims),
        (json!({ "role": "admin" }), TokenError::Claims),
        (json!({ "role": ["operator"] }), TokenError::Claims),
        (json!({ "role": "operator", "sub": "a\r\nb" }), TokenError::Claims),
    ] {
        assert_eq!(read(changes.clone()).await.unwrap_err(), error, "{changes}");
    }
}

#[tokio::test]
async fn clocks_may_differ_a_little() {
    assert!(read(json!({ "exp": now() - 20 })).await.is_ok());
    assert!(read(json!({ "nbf": now() + 20 })).await.is_ok());
}

#[tokio::test]
async fn only_the_secret_signs_and_only_in_its_way() {
    let tokens = Tokens::by_secret(SECRET, &expected()).unwrap();
    let good = claims(json!({}));
    let of = |alg: &str, secret: &[u8]| token(&json!({ "alg": alg }), &good, by_secret(secret));
    assert!(tokens.verify(&of("HS256", SECRET)).await.is_ok());
    let other = of("HS256", b"another secret, which is as long as it is");
    assert_eq!(tokens.verify(&other).await.unwrap_err(), TokenError::Signature);
    for alg in ["none", "None", "HS384", "RS256", "ES256", ""] {
        assert!(tokens.verify(&of(alg, SECRET)).await.is_err(), "{alg}");
        let unsigned = token(&json!({ "alg": alg }), &good, |_| Vec::new());
        assert!(tokens.verify(&unsigned).await.is_err(), "{alg}");
    }
    for garbage in ["", "a", "a.b", "a.b.c", "..", "a.b.c.d"] {
        assert!(tokens.verify(garbage).await.is_err(), "{garbage}");
    }
    assert!(Tokens::by_secret(b"short", &expected()).is_err());
}

#[tokio::test]
async fn what_is_issued_here_is_taken_here() {
    let tokens = Tokens::by_secret(SECRET, &expected()).unwrap();
    let valid = Duration::from_mins(1);
    let issued = issue(SECRET, &expected(), "ann", Role::Customer, valid).unwrap();
    assert!(tokens.verify(&issued).await.is_ok());
    // Remembered, and taken again.
    assert!(tokens.verify(&issued).await.is_ok());
    assert_eq!(tokens.remembered().len(), 1);
    assert!(issue(b"short", &expected(), "ann", Role::Customer, valid).is_err());
}

#[tokio::test]
async fn a_token_that_was_remembered_ends_all_the_same() {
    let none = Expected { skew: Duration::ZERO, ..expected() };
    let tokens = Tokens::by_secret(SECRET, &none).unwrap();
    let says = claims(json!({ "exp": now() + 2 }));
    let soon = token(&json!({ "alg": "HS256" }), &says, by_secret(SECRET));
    assert!(tokens.verify(&soon).await.is_ok());
    while now() < says["exp"].as_u64().unwrap() + 1 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(tokens.verify(&soon).await.unwrap_err(), TokenError::Expired);
}

/// Tokens by the keys of a JWKS in a file.
async fn by_keys(name: &str, keys: &Value) -> Tokens {
    let path = std::env::temp_dir().join(format!("millrace-{name}-{}.json", std::process::id()));
    std::fs::write(&path, json!({ "keys": keys }).to_string()).unwrap();
    let jwks = Jwks::new(Place::File(path), expected());
    jwks.refresh().await;
    Tokens::by_jwks(jwks, &expected())
}

fn curve() -> (EcdsaKeyPair, Value) {
    let (way, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
    let document = EcdsaKeyPair::generate_pkcs8(way, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(way, document.as_ref(), &random).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    let [x, y] = [x, y].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part));
    let key = json!({ "kty": "EC", "crv": "P-256", "kid": "ec", "use": "sig", "x": x, "y": y });
    (pair, key)
}

fn edwards() -> (Ed25519KeyPair, Value) {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let x = BASE64_URL_SAFE_NO_PAD.encode(pair.public_key());
    (pair, json!({ "kty": "OKP", "crv": "Ed25519", "kid": "ed", "alg": "EdDSA", "x": x }))
}

#[tokio::test]
async fn published_keys_of_three_kinds_are_taken() {
    let ((curve, curve_key), (edwards, edwards_key)) = (curve(), edwards());
    let rsa = json!({ "kty": "RSA", "kid": "rsa", "n": MODULUS, "e": "AQAB" });
    let unknown = json!({ "kty": "NEW", "kid": "new" });
    let tokens = by_keys("kinds", &json!([curve_key, edwards_key, rsa, unknown])).await;
    let good = claims(json!({}));
    let random = SystemRandom::new();
    let by_curve = |message: &[u8]| curve.sign(&random, message).unwrap().as_ref().to_vec();
    let by_edwards = |message: &[u8]| edwards.sign(message).as_ref().to_vec();
    assert!(
        tokens
            .verify(&token(&json!({ "alg": "ES256", "kid": "ec" }), &good, by_curve))
            .await
            .is_ok()
    );
    assert!(
        tokens
            .verify(&token(&json!({ "alg": "EdDSA", "kid": "ed" }), &good, by_edwards))
            .await
            .is_ok()
    );
    assert!(tokens.verify(BY_RSA).await.is_ok());
    let (start, _) = BY_RSA.rsplit_once('.').unwrap();
    let forged = format!("{start}.{}", BASE64_URL_SAFE_NO_PAD.encode([7; 256]));
    assert_eq!(tokens.verify(&forged).await.unwrap_err(), TokenError::Signature);
    // Of several keys one must be named, and one that is there.
    for header in [json!({ "alg": "ES256" }), json!({ "alg": "ES256", "kid": "none" })] {
        let refused = tokens.verify(&token(&header, &good, by_curve)).await;
        assert_eq!(refused.unwrap_err(), TokenError::Signature);
    }
    // Another key than the one that has signed.
    let refused =
        tokens.verify(&token(&json!({ "alg": "ES256", "kid": "rsa" }), &good, by_curve)).await;
    assert_eq!(refused.unwrap_err(), TokenError::Algorithm);
}

#[tokio::test]
async fn a_public_key_is_no_secret() {
    let (_, key) = curve();
    let secret = json!({ "kty": "oct", "kid": "oct", "k": BASE64_URL_SAFE_NO_PAD.encode(SECRET) });
    let tokens = by_keys("confusion", &json!([key, secret])).await;
    let good = claims(json!({}));
    for public in [MODULUS.as_bytes(), key["x"].as_str().unwrap().as_bytes(), SECRET] {
        for kid in ["ec", "oct"] {
            let header = json!({ "alg": "HS256", "kid": kid });
            assert!(
                tokens.verify(&token(&header, &good, by_secret(public))).await.is_err(),
                "{kid}"
            );
        }
    }
}

#[tokio::test]
async fn keys_for_other_things_are_left_out() {
    let (pair, key) = curve();
    let random = SystemRandom::new();
    for (field, value) in [("use", "enc"), ("alg", "ES384"), ("crv", "P-384")] {
        let mut other = key.clone();
        other[field] = value.into();
        let tokens = by_keys(&format!("left-out-{value}"), &json!([other, edwards().1])).await;
        let header = json!({ "alg": "ES256", "kid": "ec" });
        let signed = token(&header, &claims(json!({})), |message| {
            pair.sign(&random, message).unwrap().as_ref().to_vec()
        });
        assert_eq!(tokens.verify(&signed).await.unwrap_err(), TokenError::Signature, "{value}");
    }
    let short = json!({ "kty": "RSA", "kid": "rsa", "n": &MODULUS[..170], "e": "AQAB" });
    let tokens = by_keys("short", &json!([short])).await;
    assert_eq!(tokens.verify(BY_RSA).await.unwrap_err(), TokenError::NoKeys);
}

#[test]
fn no_damaged_token_is_taken() {
    crypto::install();
    let key = Key::new(DecodingKey::from_secret(SECRET), Algorithm::HS256, &expected());
    let good = issue(SECRET, &expected(), "ann", Role::Customer, Duration::from_mins(1)).unwrap();
    assert!(key.read(&good).is_ok());
    let corpus = [good.clone(), BY_RSA.to_owned()].map(String::into_bytes);
    fuzz("tokens", &corpus, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        assert!(text == good || key.read(&text).is_err(), "{text} is taken");
    });
}

#[test]
fn a_damaged_set_of_keys_has_no_key_for_anything_else() {
    let set = json!({ "keys": [
        { "kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256", "n": MODULUS, "e": "AQAB" },
        { "kty": "oct", "kid": "secret", "k": "c2VjcmV0" },
        { "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" },
    ]});
    fuzz("sets of keys", &[set.to_string().into_bytes()], |bytes| {
        let Ok(keys) = jwks::parse(bytes, &expected()) else { return };
        let public = |key: &Key| !key.validation.algorithms.contains(&Algorithm::HS256);
        assert!(keys.values().all(|key| public(key)), "no secret is taken from it");
    });
}
