//! A connection that is kept open: one request at a time, as little work as possible. The load
//! comes from the same machine, so what it costs is missing elsewhere.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// A connection that was not used for so long is left: the edge closes such in the end, and would do so
/// while something is sent.
const IDLE: Duration = Duration::from_secs(5);

/// A connection to the edge. It is made when it is first used, and again after it was closed.
#[derive(Debug)]
pub struct Connection {
    authority: String,
    authorization: Option<String>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    sender: SendRequest<Full<Bytes>>,
    used: Instant,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

impl Connection {
    /// A connection to `http://HOST:PORT`.
    pub fn new(http: &str, authorization: Option<&str>) -> Result<Self> {
        let uri: Uri = http.parse().with_context(|| format!("{http:?} is no address"))?;
        let authority = uri.authority().context("an address without a host")?.to_string();
        Ok(Self { authority, authorization: authorization.map(str::to_owned), open: None })
    }

    /// Reads.
    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        let request = Request::builder().method(Method::GET).uri(path);
        self.send(request, Bytes::new()).await
    }

    /// Sends JSON with an idempotency key.
    pub async fn post(&mut self, path: &str, key: &str, body: Vec<u8>) -> Result<Answer> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(CONTENT_TYPE, "application/json")
            .header(HeaderName::from_static("idempotency-key"), key);
        self.send(request, body.into()).await
    }

    async fn send(
        &mut self,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<Answer> {
        let mut request = request.header(HOST, self.authority.as_str());
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body))?;
        let answered = timeout(PATIENCE, self.exchange(request)).await;
        let answered = answered.unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}")));
        // What is left of it would be read as the next answer.
        answered.inspect_err(|_| self.open = None)
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let mut sender = match self.open.take() {
            Some(Open { sender, used }) if !sender.is_closed() && used.elapsed() < IDLE => sender,
            _ => self.connect().await?,
        };
        sender.ready().await?;
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await?.to_bytes();
        self.open = Some(Open { sender, used: Instant::now() });
        Ok(Answer { status, body })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.authority)
            .await
            .with_context(|| format!("{} cannot be reached", self.authority))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with the sender, or when the other side closes.
        tokio::spawn(connection);
        Ok(sender)
    }
}
