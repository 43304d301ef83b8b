//! What all requests and answers have in common: the name that the api may be called by, how long
//! answers may be kept, compression, and whose pages may call (CORS).

use std::str::FromStr;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header::{
    ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    ETAG, HOST, HeaderName, IF_NONE_MATCH, LOCATION, REFERRER_POLICY, RETRY_AFTER,
    STRICT_TRANSPORT_SECURITY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use millrace_shared::https::is_this_machine;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, Predicate as _, SizeAbove};
use tower_http::cors::CorsLayer;

use crate::error::{Problem, uniform};

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

/// Where the api stands.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Whether callers have to sign in.
    pub signed_in: bool,
    /// Whether a proxy speaks TLS for it.
    pub behind_proxy: bool,
}

/// What all requests and answers have in common, but for CORS and compression, which come next.
pub async fn usual(place: Place, request: Request, next: Next) -> Response {
    let mut response = if place.signed_in || is_own_name(request.uri(), request.headers()) {
        uniform(request, next).await
    } else {
        not_own_name().into_response()
    };
    caching(response.headers_mut());
    secure(response.headers_mut(), place.behind_proxy);
    weaken(response.headers_mut());
    response
}

/// The refusal of requests by another name than this machine's own where nobody has to sign in. A
/// stranger's page could have its name looked up once more, and be told `127.0.0.1` (DNS rebinding):
/// for the browser this would be the page's own server, and for us somebody of this machine.
fn not_own_name() -> Problem {
    Problem::new(
        StatusCode::MISDIRECTED_REQUEST,
        "/problems/misdirected-request",
        "Not a name of this machine",
        "nobody has to sign in here, so only http://localhost, http://127.0.0.1 and http://[::1] are \
         answered: call one of these, or say who may sign in (see docs/security.md)",
    )
}

/// Whether all that a request calls this server is this machine. A browser always calls it something;
/// who does not is no page.
fn is_own_name(uri: &Uri, headers: &HeaderMap) -> bool {
    let local = |name: &Authority| is_this_machine(name.host());
    let mut hosts = headers.get_all(HOST).iter();
    uri.authority().is_none_or(local)
        && hosts.all(|host| Authority::try_from(host.as_bytes()).is_ok_and(|name| local(&name)))
}

/// Views change at any time: what has a version may be kept if it is asked for again each time,
/// anything else is not kept. Who knows better has said so already.
fn caching(headers: &mut HeaderMap) {
    let rule = if headers.contains_key(ETAG) { "private, no-cache" } else { "no-store" };
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static(rule));
}

/// What keeps browsers from taking an answer for something else: its type is as it says, no page may
/// frame it, and no address is told to others. That only TLS is spoken here is said where a proxy
/// speaks it: this program itself does not.
fn secure(headers: &mut HeaderMap, tls: bool) {
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
}

/// Brotli or gzip, as the client likes; not for streams of events, nor for what is small.
pub fn compression() -> CompressionLayer<impl tower_http::compression::Predicate> {
    CompressionLayer::new().compress_when(DefaultPredicate::new().and(SizeAbove::new(WORTH)))
}

/// A compressed answer is not byte for byte what the tag was made for (RFC 9110, 8.8.1): its tag is
/// a weak one.
fn weaken(headers: &mut HeaderMap) {
    if headers.contains_key(CONTENT_ENCODING)
        && let Some(tag) = headers.get(ETAG).and_then(|tag| tag.to_str().ok())
        && !tag.starts_with("W/")
        && let Ok(weak) = HeaderValue::from_str(&format!("W/{tag}"))
    {
        headers.insert(ETAG, weak);
    }
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
    fn only_names_of_this_machine_are_its_own() {
        let with = |uri: &'static str, hosts: &[&'static str]| {
            let hosts = hosts.iter().map(|host| (HOST, HeaderValue::from_static(host)));
            is_own_name(&Uri::from_static(uri), &hosts.collect())
        };
        for host in
            ["localhost", "LocalHost:80", "127.0.0.1", "127.0.0.1:8080", "127.8.9.1", "[::1]:80"]
        {
            assert!(with("/", &[host]), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1@evil.example",
            "0.0.0.0:8080",
            "192.168.1.2",
            "[::]",
            "localhost, evil.example",
        ] {
            assert!(!with("/", &[host]), "{host}");
        }
        // HTTP/1.0 asks for none; of several each counts, and so does the address itself.
        assert!(with("/", &[]));
        assert!(!with("/", &["localhost", "evil.example"]));
        assert!(!with("http://evil.example/", &["localhost"]));
        assert!(with("http://localhost/", &["localhost"]));
    }

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
