//! Requests to servers of others: over HTTPS (rustls with ring), by the certificates that this machine
//! trusts, or over plain HTTP where the address says so: within one's own network.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
pub use hyper::header::HeaderValue;
pub use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// How long it may take to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a connection is kept that nobody needs.
const IDLE: Duration = Duration::from_secs(30);

/// Whether a host, as it stands in an address, is this machine for whoever looks it up.
pub fn is_this_machine(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// What is sent.
pub type Body = Full<Bytes>;

/// A client with its connections; clones share them.
#[derive(Debug, Clone)]
pub enum Https {
    /// With TLS.
    Secured(Client<HttpsConnector<HttpConnector>, Body>),
    /// Without.
    Plain(Client<HttpConnector, Body>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The request was not sent.
    #[error("the server cannot be reached: {0}")]
    NotSent(String),
    /// It was sent, at least in part: nobody knows what became of it.
    #[error("the answer did not come: {0}")]
    NoAnswer(String),
}

impl Https {
    /// A client for addresses of this one's scheme. The certificates of the machine are read for
    /// `https` only: where there are none, plain HTTP works all the same.
    pub fn to(uri: &Uri) -> std::io::Result<Self> {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_idle_timeout(IDLE);
        if uri.scheme_str() == Some("http") {
            return Ok(Self::Plain(builder.build(connector)));
        }
        let secured = HttpsConnectorBuilder::new().with_native_roots()?.https_only();
        Ok(Self::Secured(builder.build(secured.enable_http1().wrap_connector(connector))))
    }

    /// Sends a request, and reads an answer of at most so many bytes.
    pub async fn send(
        &self,
        request: Request<Body>,
        most_bytes: usize,
    ) -> Result<Response<Bytes>, HttpError> {
        let answered = match self {
            Self::Secured(client) => client.request(request).await,
            Self::Plain(client) => client.request(request).await,
        };
        let answer = answered.map_err(|error| {
            let not_sent = error.is_connect();
            let mut error = format!("{:#}", anyhow::Error::new(error));
            // In the words of rustls, whose error is wrapped too deep to be looked at.
            if error.contains("invalid peer certificate") {
                error.push_str("; if it is right, name who vouches for it in SSL_CERT_FILE");
            }
            if not_sent { HttpError::NotSent(error) } else { HttpError::NoAnswer(error) }
        })?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, most_bytes).collect().await;
        let body = body.map_err(|error| HttpError::NoAnswer(error.to_string()))?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}
