//! What the edge is told when it starts.

use std::net::SocketAddr;

use anyhow::Context as _;
use clap::Args;
use millrace_shared::access::Principal;
use millrace_shared::config::{NatsConfig, PostgresConfig, RedisConfig};
use millrace_shared::parking::desk::Desk;

use crate::auth::config::AuthConfig;
use crate::headers::Origin;
use crate::live::LiveConfig;
use crate::webhook::WebhookConfig;

/// What operators are called in the audit table where nobody has to sign in.
const NOBODY: &str = "http";

/// The bytes that an import may have if it is not said.
const IMPORT_MAX_BYTES: usize = 64 * 1024 * 1024;

/// What the edge needs to know.
#[derive(Debug, Clone, Args)]
pub struct ApiConfig {
    /// Where to listen
    #[arg(
        long,
        env = "MILLRACE_HTTP",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:8080"
    )]
    pub(crate) http: SocketAddr,
    #[command(flatten)]
    pub(crate) nats: NatsConfig,
    #[command(flatten)]
    pub(crate) redis: RedisConfig,
    /// The most bytes of an import's body
    #[arg(long, env = "MILLRACE_IMPORT_MAX_BYTES", value_name = "BYTES",
          default_value_t = IMPORT_MAX_BYTES)]
    pub(crate) import_max_bytes: usize,
    #[command(flatten)]
    pub(crate) live: LiveConfig,
    #[command(flatten)]
    pub(crate) operators: OperatorConfig,
    #[command(flatten)]
    pub(crate) auth: AuthConfig,
    #[command(flatten)]
    pub(crate) webhooks: WebhookConfig,
    /// Web origin whose pages may call the api (CORS); several with commas. None by default
    #[arg(long, env = "MILLRACE_CORS_ORIGINS", value_name = "URL", value_delimiter = ',')]
    pub(crate) cors_origins: Vec<Origin>,
}

/// What the routes for operators need.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct OperatorConfig {
    /// Serve the routes for operators (parked messages, reports) as well: to operators only, where
    /// callers have to sign in
    #[arg(long, env = "MILLRACE_OPERATOR_ROUTES")]
    pub(crate) operator_routes: bool,
    /// Let whoever comes try things out: be any customer in the shop, and make synthetic load in the
    /// console. Only where nobody has to sign in
    #[arg(long, env = "MILLRACE_TRIAL", requires = "operator_routes")]
    pub(crate) trial: bool,
    /// The journal: for the past of orders whose beginning was trimmed from the log, and for the
    /// audit table of operators; nothing else needs it
    #[command(flatten)]
    pub(crate) postgres: Option<PostgresConfig>,
}

impl OperatorConfig {
    /// Where operators deal with parked messages, if there are routes for them.
    pub(crate) async fn desk(&self, nats: &NatsConfig) -> anyhow::Result<Option<Desk>> {
        if !self.operator_routes {
            return Ok(None);
        }
        let postgres = self.postgres.as_ref().context(
            "--operator-routes needs --postgres-url: what operators do is written down there",
        )?;
        let pool = postgres.of(Principal::Desk).pool("millrace-desk")?;
        let client = nats.connect("millrace-desk").await?;
        Ok(Some(Desk::new(client, nats.topology()?, pool, NOBODY)))
    }
}

impl ApiConfig {
    /// An edge that listens at `http`; port 0 takes any free one.
    pub fn new(http: SocketAddr, nats: NatsConfig, redis: RedisConfig) -> Self {
        Self {
            http,
            nats,
            redis,
            live: LiveConfig::default(),
            import_max_bytes: IMPORT_MAX_BYTES,
            operators: OperatorConfig::default(),
            auth: AuthConfig::default(),
            webhooks: WebhookConfig::default(),
            cors_origins: Vec::new(),
        }
    }

    /// With callers that have to sign in.
    #[must_use]
    pub fn with_auth(mut self, auth: AuthConfig) -> Self {
        self.auth = auth;
        self
    }

    /// With the webhooks of gateways.
    #[must_use]
    pub fn with_webhooks(mut self, webhooks: WebhookConfig) -> Self {
        self.webhooks = webhooks;
        self
    }

    /// With pages of these web origins, which may call.
    #[must_use]
    pub fn with_cors_origins(mut self, origins: Vec<Origin>) -> Self {
        self.cors_origins = origins;
        self
    }

    /// With live streams served in another way than usual.
    #[must_use]
    pub fn with_live(mut self, live: LiveConfig) -> Self {
        self.live = live;
        self
    }

    /// With the journal, for the past of orders.
    #[must_use]
    pub fn with_journal(mut self, postgres: PostgresConfig) -> Self {
        self.operators.postgres = Some(postgres);
        self
    }

    /// With the routes for operators; what they do is written to the audit table there.
    #[must_use]
    pub fn with_operator_routes(mut self, postgres: PostgresConfig) -> Self {
        self.operators =
            OperatorConfig { operator_routes: true, trial: false, postgres: Some(postgres) };
        self
    }

    /// With what lets one try things out; needs the routes for operators.
    #[must_use]
    pub fn with_trial(mut self) -> Self {
        self.operators.trial = true;
        self
    }
}
