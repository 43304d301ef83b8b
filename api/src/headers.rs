//! What all answers have in common: how long they may be kept, compression, and whose pages may
//! call (CORS).

use std::str::FromStr;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    ETAG, HeaderName, IF_NONE_MATCH, LOCATION, REFERRER_POLICY, RETRY_AFTER,
    STRICT_TRANSPORT_SECURITY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderValue, Method, Uri};
use axum::response::Response;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, Predicate as _, SizeAbove};
use tower_http::cors::CorsLayer;

/// Bytes from which on compression is worth its time.
const WORTH: u64 = 1024;
/// How long a browser may remember what it may send.
const PREFLIGHT: Duration = Duration::from_hours(1);

/// A web origin (RFC 6454): `https://shop.example`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl FromStr for Origin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "must be a scheme, a host and perhaps a port: https://shop.example";
        let uri: Uri = text.parse().map_err(|_| WRONG)?;
        let web = matches!(uri.scheme_str(), Some("http" | "https"));
        // A path is none of it, and a parsed URI has one even where none was written.
        let bare = uri.authority().is_some_and(|host| text.ends_with(host.as_str()));
        if !(web && bare) {
            return Err(WRONG);
        }
        text.parse().map(Self).map_err(|_| WRONG)
    }
}

/// Views change at any time: what has a version may be kept if it is asked for again each time,
/// anything else is not kept. Who knows better has said so already.
pub async fn caching(mut response: Response) -> Response {
    let rule = if response.headers().contains_key(ETAG) { "private, no-cache" } else { "no-store" };
    let rule = HeaderValue::from_static(rule);
    response.headers_mut().entry(CACHE_CONTROL).or_insert(rule);
    response
}

/// What keeps browsers from taking an answer for something else: its type is as it says, no page may
/// frame it, and no address is told to others. That only TLS is spoken here is said where a proxy
/// speaks it: this program itself does not.
pub async fn secure(State(tls): State<bool>, mut response: Response) -> Response {
    let headers = response.headers_mut();
    let mut usual = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    usual(X_CONTENT_TYPE_OPTIONS, "nosniff");
    usual(REFERRER_POLICY, "no-referrer");
    // The pages have a stricter one of their own.
    usual(CONTENT_SECURITY_POLICY, "frame-ancestors 'none'");
    if tls {
        usual(STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
    response
}

/// Brotli or gzip, as the client likes; not for streams of events, nor for what is small.
pub fn compression() -> CompressionLayer<impl tower_http::compression::Predicate> {
    CompressionLayer::new().compress_when(DefaultPredicate::new().and(SizeAbove::new(WORTH)))
}

/// A compressed answer is not byte for byte what the tag was made for (RFC 9110, 8.8.1): its tag is
/// a weak one.
pub async fn weakened(mut response: Response) -> Response {
    let headers = response.headers_mut();
    if headers.contains_key(CONTENT_ENCODING)
        && let Some(tag) = headers.get(ETAG).and_then(|tag| tag.to_str().ok())
        && !tag.starts_with("W/")
        && let Ok(weak) = HeaderValue::from_str(&format!("W/{tag}"))
    {
        headers.insert(ETAG, weak);
    }
    response
}

/// Which pages of other origins may call, and what they may send and see.
pub fn cors(origins: Vec<Origin>) -> CorsLayer {
    if origins.is_empty() {
        return CorsLayer::new();
    }
    let name = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(origins.into_iter().map(|Origin(origin)| origin).collect::<Vec<_>>())
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT])
        .allow_headers([
            ACCEPT,
            AUTHORIZATION,
            CONTENT_TYPE,
            IF_NONE_MATCH,
            name("idempotency-key"),
            name("last-event-id"),
            name("prefer"),
            name("traceparent"),
        ])
        .expose_headers([ETAG, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE, name("preference-applied")])
        .max_age(PREFLIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_a_host_and_perhaps_a_port() {
        for good in ["https://shop.example", "http://localhost:3000", "http://[::1]:3000"] {
            assert!(good.parse::<Origin>().is_ok(), "{good}");
        }
        for bad in ["*", "shop.example", "https://shop.example/", "ftp://a", "https://a/b", ""] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }
}
