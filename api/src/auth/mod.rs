//! Who may what over HTTP. A request is taken for somebody's by its bearer token: a JWT ([`token`])
//! or an API key ([`keys`]). What each route is for stands in one table, `routes/mod.rs`; whose data
//! are asked for is looked at where they are read ([`Caller::sees`]), and what is somebody else's is
//! answered like what is not there.

pub mod config;
mod crypto;
pub mod jwks;
pub mod keys;
pub mod limits;
pub mod token;

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::ensure;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{FromRequestParts, Request};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::serve::IncomingStream;
use millrace_shared::ids::CustomerId;
use tokio_util::sync::CancellationToken;

use self::config::AuthConfig;
use self::keys::KeyFile;
use self::limits::{Limits, OwnStream};
use self::token::{TokenError, Tokens};
use crate::error::Problem;
use crate::listener::Bounded;

/// What somebody is to the shop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Role {
    /// Buys: has its own data and orders only.
    Customer,
    /// A program of the shop, which acts for all customers.
    Service,
    /// Runs the shop.
    Operator,
}

impl Role {
    /// All of them, the least first: each may what those before it may.
    pub const ALL: [Self; 3] = [Self::Customer, Self::Service, Self::Operator];

    /// As it stands in a token's claim and in a key file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Customer => "customer",
            Self::Service => "service",
            Self::Operator => "operator",
        }
    }
}

impl FromStr for Role {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(())
    }
}

/// For whom a route is. Each is for all who come after it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// Needs no token.
    Anyone,
    /// Customers, about themselves.
    Customers,
    /// Programs of the shop.
    Services,
    /// Those who run it.
    Operators,
}

impl Who {
    /// The roles that it lets in.
    pub fn roles(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.admits(*role))
    }

    fn admits(self, role: Role) -> bool {
        match self {
            Self::Anyone | Self::Customers => true,
            Self::Services => role >= Role::Service,
            Self::Operators => role == Role::Operator,
        }
    }
}

/// Who has sent a request.
#[derive(Debug, Clone)]
pub struct Caller {
    role: Role,
    /// Of a customer: which.
    customer: Option<CustomerId>,
    /// For the audit, and to tell callers apart; absent where nobody has to sign in.
    name: Option<Arc<str>>,
    /// When its token ends.
    until: Option<SystemTime>,
}

impl Caller {
    /// Anybody, where nobody has to sign in, and who asks over NATS: NATS itself decides who may.
    pub const ANYBODY: Self =
        Self { role: Role::Operator, customer: None, name: None, until: None };

    fn customer(id: CustomerId, until: SystemTime) -> Self {
        let name = Some(format!("customer:{id}").into());
        Self { role: Role::Customer, customer: Some(id), name, until: Some(until) }
    }

    fn worker(role: Role, name: &str, until: Option<SystemTime>) -> Self {
        Self { role, customer: None, name: Some(name.into()), until }
    }

    /// The customer in whose name everything is done, if it is one who calls.
    pub fn on_behalf_of(&self) -> Option<&CustomerId> {
        self.customer.as_ref()
    }

    /// Whether it may see what belongs to this customer.
    pub fn sees(&self, customer: &str) -> bool {
        self.customer.as_ref().is_none_or(|own| own.as_str() == customer)
    }

    /// Whether it runs the shop.
    pub fn is_operator(&self) -> bool {
        self.role == Role::Operator
    }

    /// What it is called in the audit, if it had to sign in.
    pub fn actor(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// How much longer it may be served; for ever, if it has no end.
    pub fn left(&self) -> Option<Duration> {
        let until = self.until?;
        Some(until.duration_since(SystemTime::now()).unwrap_or_default())
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Self>().cloned();
        // A route whose handler wants to know who calls is for somebody who has signed in.
        caller.ok_or_else(Problem::internal)
    }
}

/// The address of who has connected.
#[derive(Debug, Clone, Copy)]
pub struct Peer(IpAddr);

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        Self(stream.remote_addr().ip())
    }
}

/// Tells callers from each other and limits them.
#[derive(Debug)]
pub struct Gate {
    /// Nobody has to sign in without it.
    sign_in: Option<SignIn>,
    limits: Limits,
    behind_proxy: bool,
}

#[derive(Debug)]
struct SignIn {
    tokens: Option<Tokens>,
    keys: Option<KeyFile>,
}

impl Gate {
    /// The gate of an edge that listens at `http`.
    ///
    /// Without anything to sign in with everybody may everything: refused where others than those of
    /// this machine can come.
    pub fn new(config: &AuthConfig, http: SocketAddr) -> anyhow::Result<Self> {
        let (tokens, keys) = (config.tokens()?, config.keys()?);
        let sign_in = (tokens.is_some() || keys.is_some()).then_some(SignIn { tokens, keys });
        ensure!(
            sign_in.is_some() || http.ip().is_loopback(),
            "the api would let everybody at {http} do everything: say who may sign in, with \
             --jwt-secret-file, --jwks or --api-keys (see docs/security.md), or listen at 127.0.0.1"
        );
        if sign_in.is_none() {
            tracing::info!(%http, "nobody has to sign in: whoever reaches this address may do everything");
        }
        let limits =
            Limits::new(config.rates(sign_in.is_some()), config.streams(sign_in.is_some()));
        Ok(Self { sign_in, limits, behind_proxy: config.behind_proxy })
    }

    /// Whether callers have to sign in.
    pub fn is_closed(&self) -> bool {
        self.sign_in.is_some()
    }

    /// Whether all come through a proxy that speaks TLS.
    pub fn is_behind_proxy(&self) -> bool {
        self.behind_proxy
    }

    /// Room for one more live stream of a caller.
    pub fn stream(&self, caller: &Caller) -> Result<OwnStream, Problem> {
        let too_many = || {
            let detail = "too many live streams of yours are open";
            Problem::limited(detail, Duration::from_secs(1))
        };
        self.limits.stream(caller).ok_or_else(too_many)
    }

    /// Whether it can tell who calls.
    pub fn is_ready(&self) -> bool {
        let tokens = self.sign_in.as_ref().and_then(|sign_in| sign_in.tokens.as_ref());
        tokens.is_none_or(Tokens::are_ready)
    }

    /// Keeps the keys of tokens fresh until the shutdown.
    pub async fn keep_fresh(&self, stop: &CancellationToken) {
        if let Some(SignIn { tokens: Some(tokens), .. }) = &self.sign_in {
            tokens.keep_fresh(stop).await;
        }
    }

    /// Who has sent a request; nobody in particular, if it has no token.
    async fn caller(&self, headers: &HeaderMap) -> Result<Option<Caller>, TokenError> {
        let Some(sign_in) = &self.sign_in else { return Ok(Some(Caller::ANYBODY)) };
        let Some(token) = bearer(headers)? else { return Ok(None) };
        if keys::is_key(token) {
            let found = sign_in.keys.as_ref().and_then(|keys| keys.find(token));
            return found.map(Some).ok_or(TokenError::UnknownKey);
        }
        match &sign_in.tokens {
            Some(tokens) => Ok(Some(tokens.verify(token).await?)),
            None => Err(TokenError::NotTaken),
        }
    }

    /// The address that a request comes from. What a proxy adds is the last of its header; what
    /// stands before it may be anybody's invention.
    fn address(&self, request: &Request) -> IpAddr {
        let forwarded = || {
            let last = request.headers().get_all("x-forwarded-for").iter().next_back()?;
            last.to_str().ok()?.rsplit(',').next()?.trim().parse().ok()
        };
        let peer = request.extensions().get::<ConnectInfo<Peer>>();
        let peer = peer.map_or(IpAddr::from([0, 0, 0, 0]), |ConnectInfo(Peer(peer))| *peer);
        if self.behind_proxy { forwarded().unwrap_or(peer) } else { peer }
    }
}

/// The token of a request (RFC 6750, 2.1), if it has one.
fn bearer(headers: &HeaderMap) -> Result<Option<&str>, TokenError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let (None, Ok(value)) = (values.next(), value.to_str()) else {
        return Err(TokenError::Malformed);
    };
    let (scheme, token) = value.trim().split_once(' ').ok_or(TokenError::NoBearer)?;
    let token = token.trim();
    match scheme.eq_ignore_ascii_case("bearer") {
        true if token.len() <= token::MAX_BYTES => Ok(Some(token)),
        true => Err(TokenError::TooLong),
        false => Err(TokenError::NoBearer),
    }
}

/// Finds out who has sent a request, and refuses who sends too many. Whether it may do what it wants
/// is seen by [`admit`], on its route.
pub async fn identify(gate: &Gate, request: &mut Request) -> Result<(), Problem> {
    let caller = gate.caller(request.headers()).await;
    let limited = match &caller {
        Ok(Some(caller)) if caller.name.is_some() => gate.limits.check_caller(caller),
        // Who tries tokens out is held back like who has none.
        _ => gate.limits.check_address(|| gate.address(request)),
    };
    limited
        .map_err(|wait| Problem::limited("too many requests of yours; nothing was done", wait))?;
    let caller = caller.map_err(|error| match error {
        TokenError::NoKeys => {
            Problem::unavailable("the keys that tokens are signed with cannot be read now")
        }
        error => error.problem(),
    })?;
    if let Some(caller) = caller {
        request.extensions_mut().insert(caller);
    }
    Ok(())
}

/// Lets those in for whom a route is.
pub async fn admit(who: Who, request: Request, next: Next) -> Response {
    match request.extensions().get::<Caller>() {
        _ if who == Who::Anyone => next.run(request).await,
        Some(caller) if who.admits(caller.role) => next.run(request).await,
        Some(caller) => {
            let roles: Vec<&str> = who.roles().map(Role::as_str).collect();
            let (role, roles) = (caller.role.as_str(), roles.join(" or "));
            let detail = format!("this is for the role {roles}; yours is {role}");
            Problem::forbidden(detail).into_response()
        }
        None => Problem::new(
            StatusCode::UNAUTHORIZED,
            "/problems/unauthorized",
            "Not signed in",
            "a token is needed: Authorization: Bearer TOKEN",
        )
        .challenge("Bearer realm=\"millrace\"")
        .into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_for_its_own_role_and_those_above_it() {
        let roles = |who: Who| who.roles().map(Role::as_str).collect::<Vec<_>>();
        assert_eq!(roles(Who::Customers), ["customer", "service", "operator"]);
        assert_eq!(roles(Who::Services), ["service", "operator"]);
        assert_eq!(roles(Who::Operators), ["operator"]);
    }

    #[test]
    fn a_customer_sees_its_own_and_everybody_else_sees_all() {
        let ann = Caller::customer("ann".parse().unwrap(), SystemTime::now());
        assert!(ann.sees("ann") && !ann.sees("anna") && !ann.sees(""));
        assert!(Caller::worker(Role::Service, "shop", None).sees("ann"));
        assert!(Caller::ANYBODY.sees("ann"));
    }

    #[test]
    fn one_header_with_the_scheme_bearer_is_a_token() {
        let with = |values: &[&'static str]| {
            let values = values.iter().map(|value| (AUTHORIZATION, value.parse().unwrap()));
            let headers: HeaderMap = values.collect();
            bearer(&headers).map(|token| token.map(str::to_owned))
        };
        assert_eq!(with(&[]), Ok(None));
        assert_eq!(with(&["bearer  abc "]), Ok(Some("abc".to_owned())));
        assert_eq!(with(&["Basic YTpi"]), Err(TokenError::NoBearer));
        assert_eq!(with(&["Bearer"]), Err(TokenError::NoBearer));
        assert_eq!(with(&["Bearer a", "Bearer b"]), Err(TokenError::Malformed));
        let long: &'static str = format!("Bearer {}", "x".repeat(token::MAX_BYTES + 1)).leak();
        assert_eq!(with(&[long]), Err(TokenError::TooLong));
    }
}
