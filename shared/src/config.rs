//! Settings of the three servers, from the command line or the environment, and the connections
//! that they give. Passwords come from variables or files, never from URLs.
//!
//! Users and password files may have `{role}` in them: each part of the program puts its own name
//! there ([`Principal::name`]), so that one set of variables serves all of them, and each connects
//! with its own rights.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use fred::error::ErrorKind;
use fred::interfaces::EventInterface as _;
use fred::prelude::{Builder, ClientLike as _, Config as FredConfig};
use fred::rustls::pki_types::CertificateDer;
use fred::rustls::pki_types::pem::PemObject as _;
use fred::rustls::{ClientConfig, RootCertStore};
use fred::types::ConnectHandle;
use fred::types::config::{ReconnectPolicy, TlsConnector, UnresponsiveConfig};
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};

use crate::access::{self, Principal};
use crate::topology::Topology;

/// What stands for the name of the principal.
const ROLE: &str = "{role}";
/// After so long without use a worker's connection is asked whether it is there still.
const IDLE: Duration = Duration::from_secs(1);

/// How to reach NATS, and the namespace.
#[derive(Debug, Clone, Args)]
pub struct NatsConfig {
    /// Addresses of the NATS servers of one cluster, separated by commas
    #[arg(
        long,
        env = "MILLRACE_NATS_URL",
        value_delimiter = ',',
        value_name = "URL",
        default_value = "nats://127.0.0.1:4222"
    )]
    pub nats_url: Vec<String>,
    /// User at NATS; `{role}` in it stands for the name of the part that connects
    #[arg(long, env = "MILLRACE_NATS_USER", value_name = "USER")]
    pub nats_user: Option<String>,
    /// Password at NATS; better in a file
    #[arg(
        long,
        env = "MILLRACE_NATS_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD",
        conflicts_with = "nats_password_file"
    )]
    pub nats_password: Option<String>,
    /// File with the password at NATS; `{role}` as in the user
    #[arg(long, env = "MILLRACE_NATS_PASSWORD_FILE", value_name = "FILE")]
    pub nats_password_file: Option<PathBuf>,
    /// File with the certificates (PEM) of who may vouch for NATS; TLS is demanded with it
    #[arg(long, env = "MILLRACE_NATS_CA_FILE", value_name = "FILE")]
    pub nats_ca_file: Option<PathBuf>,
    /// Prefix of all streams, subjects and Redis keys: several systems can share the servers
    #[arg(long, env = "MILLRACE_NAMESPACE", default_value = "millrace")]
    pub namespace: String,
    /// Where replies arrive: see [`NatsConfig::of`].
    #[arg(skip)]
    pub inbox: Option<String>,
}

/// How to reach PostgreSQL.
#[derive(Debug, Clone, Args)]
pub struct PostgresConfig {
    /// Address of the database, without password: `postgres://USER@HOST:PORT/DATABASE`; `{role}` in
    /// it stands for the name of the part that connects
    #[arg(
        long,
        env = "MILLRACE_POSTGRES_URL",
        value_name = "URL",
        default_value = "postgres://millrace@127.0.0.1:5432/millrace"
    )]
    pub postgres_url: String,
    /// Password at PostgreSQL; better in a file
    #[arg(
        long,
        env = "MILLRACE_POSTGRES_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD",
        conflicts_with = "postgres_password_file"
    )]
    pub postgres_password: Option<String>,
    /// File with the password at PostgreSQL; `{role}` as in the address
    #[arg(long, env = "MILLRACE_POSTGRES_PASSWORD_FILE", value_name = "FILE")]
    pub postgres_password_file: Option<PathBuf>,
    /// File with the certificates (PEM) of who may vouch for PostgreSQL; TLS is demanded with it
    #[arg(long, env = "MILLRACE_POSTGRES_CA_FILE", value_name = "FILE")]
    pub postgres_ca_file: Option<PathBuf>,
    /// Connections that one role opens at the most
    #[arg(long, env = "MILLRACE_POSTGRES_CONNECTIONS", default_value_t = 8,
          value_parser = clap::value_parser!(u32).range(2..=1000))]
    pub postgres_connections: u32,
}

/// How to reach Redis or Valkey.
#[derive(Debug, Clone, Args)]
pub struct RedisConfig {
    /// Address, without password: `redis://USER@HOST:PORT`, `redis-cluster://…`, or `rediss://…` for
    /// TLS; `{role}` in it stands for the name of the part that connects
    #[arg(
        long,
        env = "MILLRACE_REDIS_URL",
        value_name = "URL",
        default_value = "redis://127.0.0.1:6379"
    )]
    pub redis_url: String,
    /// Password at Redis; better in a file
    #[arg(
        long,
        env = "MILLRACE_REDIS_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD",
        conflicts_with = "redis_password_file"
    )]
    pub redis_password: Option<String>,
    /// File with the password at Redis; `{role}` as in the address
    #[arg(long, env = "MILLRACE_REDIS_PASSWORD_FILE", value_name = "FILE")]
    pub redis_password_file: Option<PathBuf>,
    /// File with the certificates (PEM) of who may vouch for Redis; the address must be `rediss://…`
    #[arg(long, env = "MILLRACE_REDIS_CA_FILE", value_name = "FILE")]
    pub redis_ca_file: Option<PathBuf>,
}

/// The path of a principal's own file.
fn file_of(file: Option<&PathBuf>, principal: Principal) -> Option<PathBuf> {
    // A path that is not UTF-8 has no `{role}` that anybody could have written there.
    let named = |file: &PathBuf| match file.to_str() {
        Some(text) => text.replace(ROLE, principal.name()).into(),
        None => file.clone(),
    };
    file.map(named)
}

/// A secret that is in no log: [`std::fmt::Debug`] does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is in the file, or else what was given; an empty variable is as none. `what` names the
    /// secret in errors.
    pub fn read(
        given: Option<&Self>,
        file: Option<&PathBuf>,
        what: &str,
    ) -> anyhow::Result<Option<Self>> {
        let Some(file) = file else {
            return Ok(given.filter(|given| !given.0.is_empty()).cloned());
        };
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("{what}: the file {} cannot be read", file.display()))?;
        let text = text.trim();
        ensure!(!text.is_empty(), "{what}: the file {} is empty", file.display());
        Ok(Some(Self(text.to_owned())))
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

fn password(given: Option<&String>, file: Option<&PathBuf>) -> anyhow::Result<Option<String>> {
    let Some(file) = file else { return Ok(given.cloned()) };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("the password file {} cannot be read", file.display()))?;
    let text = text.trim_end_matches(['\r', '\n']).to_owned();
    ensure!(!text.is_empty(), "the password file {} is empty", file.display());
    Ok(Some(text))
}

/// A TLS client that trusts who is vouched for by the certificates in a file, and nobody else.
fn trusting(file: &Path) -> anyhow::Result<ClientConfig> {
    let unread = || format!("the certificates in {} cannot be read", file.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).with_context(unread)? {
        roots.add(certificate.with_context(unread)?).with_context(unread)?;
    }
    ensure!(!roots.is_empty(), "there is no certificate in {}", file.display());
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

fn refuse_password_in(url: &str, what: &str) -> anyhow::Result<()> {
    let authority = url.split("://").nth(1).unwrap_or(url).split('/').next().unwrap_or("");
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    if user.contains(':') {
        bail!("the {what} URL has a password in it; use --{what}-password-file or the environment");
    }
    Ok(())
}

impl NatsConfig {
    /// As a principal connects: with its user and password, and with replies where nobody else can
    /// listen.
    #[must_use]
    pub fn of(&self, principal: Principal) -> Self {
        Self {
            nats_user: self.nats_user.as_ref().map(|user| user.replace(ROLE, principal.name())),
            nats_password_file: file_of(self.nats_password_file.as_ref(), principal),
            inbox: Some(access::inbox(&self.namespace, principal)),
            ..self.clone()
        }
    }

    /// The names below the configured namespace.
    pub fn topology(&self) -> anyhow::Result<Topology> {
        Topology::new(&self.namespace)
    }

    /// Connects; waits for a server that is not there yet. `name` is shown in the server's list of
    /// connections.
    pub async fn connect(&self, name: &str) -> anyhow::Result<async_nats::Client> {
        self.connect_with(self.options(name)?.retry_on_initial_connect()).await
    }

    /// Connects, or tells why that is not possible now: for tools that somebody waits for.
    pub async fn connect_now(&self, name: &str) -> anyhow::Result<async_nats::Client> {
        self.connect_with(self.options(name)?).await
    }

    async fn connect_with(
        &self,
        options: async_nats::ConnectOptions,
    ) -> anyhow::Result<async_nats::Client> {
        let urls = || format!("NATS at {} cannot be reached", self.nats_url.join(", "));
        options.connect(self.nats_url.clone()).await.with_context(urls)
    }

    /// The password, if there is one.
    pub fn password(&self) -> anyhow::Result<Option<String>> {
        password(self.nats_password.as_ref(), self.nats_password_file.as_ref())
    }

    fn options(&self, name: &str) -> anyhow::Result<async_nats::ConnectOptions> {
        for url in &self.nats_url {
            ensure!(
                !url.contains('@'),
                "user and password do not belong into the NATS URL: use \
                --nats-user and --nats-password-file or the environment"
            );
        }
        let password = self.password()?;
        let urls = self.nats_url.join(", ");
        let mut options = async_nats::ConnectOptions::new()
            .name(name)
            .connection_timeout(Duration::from_secs(5))
            // A connection that the other side no longer has is found with the fourth.
            .ping_interval(Duration::from_secs(3))
            .request_timeout(Some(Duration::from_secs(5)))
            .subscription_capacity(16 * 1024)
            .require_tls(self.nats_ca_file.is_some())
            .reconnect_delay_callback(|attempt| {
                Duration::from_millis(50 << attempt.min(5)).min(Duration::from_secs(1))
            })
            .event_callback(move |event| {
                let urls = urls.clone();
                async move { tracing::info!(%event, urls, "NATS connection") }
            });
        if let Some(inbox) = &self.inbox {
            options = options.custom_inbox_prefix(inbox);
        }
        if let Some(file) = &self.nats_ca_file {
            options = options.add_root_certificates(file.clone());
        }
        match (&self.nats_user, password) {
            (Some(user), Some(password)) => {
                options = options.user_and_password(user.clone(), password);
            }
            (None, None) => {}
            (Some(_), None) => bail!(
                "--nats-user needs a password: set MILLRACE_NATS_PASSWORD or \
                --nats-password-file"
            ),
            (None, Some(_)) => bail!("a NATS password is set, but no --nats-user"),
        }
        Ok(options)
    }
}

impl PostgresConfig {
    /// As a principal connects.
    #[must_use]
    pub fn of(&self, principal: Principal) -> Self {
        Self {
            postgres_url: self.postgres_url.replace(ROLE, principal.name()),
            postgres_password_file: file_of(self.postgres_password_file.as_ref(), principal),
            ..self.clone()
        }
    }

    /// The connection options, checked.
    pub fn options(&self) -> anyhow::Result<PgConnectOptions> {
        refuse_password_in(&self.postgres_url, "postgres")?;
        let options: PgConnectOptions =
            self.postgres_url.parse().context("--postgres-url is not a PostgreSQL URL")?;
        let password =
            password(self.postgres_password.as_ref(), self.postgres_password_file.as_ref())?;
        let options = match &self.postgres_ca_file {
            Some(file) => options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert(file),
            None => options,
        };
        Ok(match password {
            Some(password) => options.password(&password),
            None => options,
        })
    }

    /// A pool that connects when it is first used, so a worker starts while the database is away.
    pub fn pool(&self, name: &str) -> anyhow::Result<PgPool> {
        Ok(self.pool_options().connect_lazy_with(self.options()?.application_name(name)))
    }
}

impl PostgresConfig {
    /// As [`PostgresConfig::pool`], for a worker, all of whose statements look rows up by their keys.
    /// They are planned once, perhaps while the tables are empty: such a plan would read them whole,
    /// and go on doing so when they have grown.
    pub fn working_pool(&self, name: &str) -> anyhow::Result<PgPool> {
        let options = self.options()?.application_name(name);
        let pool =
            self.pool_options().test_before_acquire(false).before_acquire(|connection, meta| {
                // What was used a moment ago is there still, or its worker tries again.
                let idle = meta.idle_for > IDLE;
                Box::pin(async move {
                    if idle {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            });
        Ok(pool.connect_lazy_with(options.options([("enable_seqscan", "off")])))
    }

    fn pool_options(&self) -> PgPoolOptions {
        PgPoolOptions::new()
            .max_connections(self.postgres_connections)
            .acquire_timeout(Duration::from_secs(5))
    }

    /// As [`PostgresConfig::pool`], for reading only: few connections, and who asks is told soon
    /// that the database is away.
    pub fn reading_pool(&self, name: &str) -> anyhow::Result<PgPool> {
        let options = self.options()?.application_name(name);
        Ok(PgPoolOptions::new()
            .max_connections(self.postgres_connections.min(4))
            .acquire_timeout(Duration::from_secs(2))
            .connect_lazy_with(options.options([("default_transaction_read_only", "on")])))
    }
}

impl RedisConfig {
    /// As a principal connects.
    #[must_use]
    pub fn of(&self, principal: Principal) -> Self {
        Self {
            redis_url: self.redis_url.replace(ROLE, principal.name()),
            redis_password_file: file_of(self.redis_password_file.as_ref(), principal),
            ..self.clone()
        }
    }

    /// The client's configuration, checked.
    pub fn client_config(&self) -> anyhow::Result<FredConfig> {
        refuse_password_in(&self.redis_url, "redis")?;
        let mut config =
            FredConfig::from_url(&self.redis_url).context("--redis-url is not a Redis URL")?;
        config.password =
            password(self.redis_password.as_ref(), self.redis_password_file.as_ref())?;
        config.fail_fast = false;
        if let Some(file) = &self.redis_ca_file {
            ensure!(
                config.tls.is_some(),
                "--redis-ca-file is set, but the address does not ask for TLS: use rediss://…"
            );
            config.tls = Some(TlsConnector::from(trusting(file)?).into());
        }
        Ok(config)
    }

    /// A builder for clients and subscribers that reconnect for ever. Its check for unresponsive
    /// connections finds those on which nothing is written any more only: see `watch_over`.
    pub fn builder(&self) -> anyhow::Result<Builder> {
        let mut builder = Builder::from_config(self.client_config()?);
        builder
            .with_connection_config(|connection| {
                connection.connection_timeout = Duration::from_secs(5);
                connection.internal_command_timeout = Duration::from_secs(5);
                connection.unresponsive = UnresponsiveConfig {
                    max_timeout: Some(Duration::from_secs(10)),
                    interval: Duration::from_secs(2),
                };
            })
            .with_performance_config(|performance| {
                performance.default_command_timeout = Duration::from_secs(3);
            })
            .set_policy(ReconnectPolicy::new_exponential(0, 50, 1_000, 2));
        Ok(builder)
    }

    /// A client; it connects in the background and reconnects for ever.
    pub fn client(&self) -> anyhow::Result<fred::clients::Client> {
        let client = self.builder()?.build()?;
        // The task ends with the client's `quit`; until then it reconnects.
        let connection = client.connect();
        tokio::spawn(watch_over(client.clone(), connection));
        Ok(client)
    }
}

/// How often it is looked whether Redis answers.
const PING_EVERY: Duration = Duration::from_secs(2);
/// How often it is told that Redis lets nobody in.
const REFUSED_EVERY: Duration = Duration::from_secs(30);
/// Pings without an answer, after which a connection is given up.
const MOST_UNANSWERED: u32 = 2;

/// Gives up a connection whose other end is gone without a word, and makes a new one. The client's
/// own check does not see it while commands are still being written.
async fn watch_over(client: fred::clients::Client, mut connection: ConnectHandle) {
    let mut unanswered = 0;
    let mut errors = client.error_rx();
    let mut told: Option<Instant> = None;
    loop {
        tokio::select! {
            _ = &mut connection => return,
            Ok((error, _)) = errors.recv() => {
                // It is tried again and again; this is nothing that gets better by itself.
                let refused = *error.kind() == ErrorKind::Auth;
                if refused && told.is_none_or(|at| at.elapsed() > REFUSED_EVERY) {
                    tracing::warn!(%error, "Redis refuses the user or its password");
                    told = Some(Instant::now());
                }
                continue;
            }
            () = tokio::time::sleep(PING_EVERY) => {}
        }
        let answered = !client.is_connected() || client.ping::<()>(None).await.is_ok();
        unanswered = if answered { 0 } else { unanswered + 1 };
        if unanswered >= MOST_UNANSWERED {
            tracing::warn!("Redis does not answer: a new connection is made");
            unanswered = 0;
            if let Err(error) = client.force_reconnection().await {
                tracing::debug!(%error, "no new connection to Redis yet");
            }
        }
    }
}
