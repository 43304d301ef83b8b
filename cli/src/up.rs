//! `millrace up`: the private servers, the streams, the database, the api and all workers.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use millrace_api::auth::config::AuthConfig;
use millrace_api::{ApiConfig, Server, WebhookConfig};
use millrace_shared::access::Principal;
use millrace_shared::config::{NatsConfig, PostgresConfig, RedisConfig};
use millrace_shared::topology::StreamOptions;
use millrace_workers::gateway::config::GatewayConfig;
use millrace_workers::{PAYMENT_TIMEOUT, Role, WorkerConfig};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::AdminArgs;
use crate::credentials::Credentials;
use crate::sample;
use crate::servers::{Addresses, ServerOptions, Servers};

/// Where the api listens if nothing else is asked for and the port is free.
const USUAL_HTTP: &str = "127.0.0.1:8080";

/// What `up` is to run.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Where the api listens [default: 127.0.0.1:8080, or another port if that one is taken]
    #[arg(long, env = "MILLRACE_HTTP", value_name = "ADDRESS:PORT")]
    http: Option<SocketAddr>,
    /// Folder of all data, logs and passwords; kept for the next start
    #[arg(long, env = "MILLRACE_DATA_DIR", default_value = ".millrace", value_name = "DIR")]
    data_dir: PathBuf,
    /// Folder of the servers' programs [default: the folder `servers` in the data folder]
    #[arg(long, env = "MILLRACE_SERVERS_DIR", value_name = "DIR")]
    servers_dir: Option<PathBuf>,
    /// Prefix of all streams, subjects and Redis keys
    #[arg(long, env = "MILLRACE_NAMESPACE", default_value = "millrace")]
    namespace: String,
    /// Run the servers and the workers, but no api
    #[arg(long, conflicts_with = "http")]
    workers_only: bool,
    /// Run the servers only: start api and workers yourself
    #[arg(long, conflicts_with_all = ["http", "workers_only"])]
    servers_only: bool,
    /// Seconds that an accepted order may wait for its payment
    #[arg(long, env = "MILLRACE_PAYMENT_TIMEOUT", value_name = "SECONDS",
          default_value_t = PAYMENT_TIMEOUT, value_parser = clap::value_parser!(u32).range(1..))]
    payment_timeout: u32,
    #[command(flatten)]
    gateway: GatewayConfig,
    #[command(flatten)]
    auth: AuthConfig,
    #[command(flatten)]
    webhooks: WebhookConfig,
    /// Start with an empty catalogue
    #[arg(long)]
    no_sample: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs the system until the shutdown.
pub async fn run(args: UpArgs, shutdown: CancellationToken) -> Result<()> {
    let options = ServerOptions {
        servers_dir: args.servers_dir.clone().unwrap_or_else(|| args.data_dir.join("servers")),
        data_dir: args.data_dir.clone(),
        durable: true,
        namespaces: vec![args.namespace.clone()],
    };
    // Told first: the very first start fetches the servers, which takes some seconds.
    say("Starting NATS, PostgreSQL and Valkey …")?;
    let mut servers = tokio::select! {
        servers = Servers::start(&options) => servers?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let result = tokio::select! {
        result = system(&args, servers.addresses().clone(), shutdown.clone()) => result,
        ended = servers.exited() => {
            // The roles drain what they can before the program ends.
            shutdown.cancel();
            Err(anyhow::anyhow!("the server {ended}"))
        }
    };
    say("Stopping …")?;
    servers.stop().await?;
    result
}

async fn system(args: &UpArgs, addresses: Addresses, shutdown: CancellationToken) -> Result<()> {
    let config = WorkerConfig {
        payment_timeout: args.payment_timeout,
        gateway: args.gateway.clone(),
        ..worker_config(&addresses, &args.namespace)
    };
    prepare_database(&addresses, &args.namespace).await?;
    crate::topology(&config.nats.of(Principal::Admin), &StreamOptions::default()).await?;
    write_environment(&args.data_dir, &config)?;
    if args.servers_only {
        say(&explain(args, &addresses, None))?;
        shutdown.cancelled().await;
        return Ok(());
    }
    args.admin.serve(shutdown.clone()).await?;
    let edge = if args.workers_only { None } else { Some(bind(args, &config).await?) };
    let http = edge.as_ref().map(Server::local_addr);
    let stop = shutdown.clone();
    let serve = async {
        match edge {
            Some(edge) => edge.serve(stop.clone()).await,
            None => Ok(()),
        }
        .inspect_err(|_| stop.cancel())
    };
    let work = work(config.clone(), shutdown.clone());
    let greet = async {
        if !args.no_sample {
            load_sample(&config.nats).await?;
        }
        say(&explain(args, &addresses, http))
    };
    let greet = async {
        let greeted = tokio::select! {
            greeted = greet => greeted,
            () = shutdown.cancelled() => Ok(()),
        };
        greeted.inspect_err(|_| shutdown.cancel())
    };
    let (served, worked, greeted) = tokio::join!(serve, work, greet);
    served.and(worked).and(greeted)
}

/// Runs the workers on threads of their own, at the most half as many as there are processors: what
/// they do with a batch keeps no request waiting, and fewer threads wake each other less. If one
/// fails, all stop.
async fn work(config: WorkerConfig, shutdown: CancellationToken) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, |all| all.get().div_ceil(2));
    let mut working = JoinSet::new();
    for roles in Role::ALL.chunks(Role::ALL.len().div_ceil(threads)) {
        let (config, shutdown) = (config.clone(), shutdown.clone());
        working.spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let worked = runtime.block_on(crate::workers(roles, &config, shutdown));
            runtime.shutdown_timeout(crate::LAST_WORK);
            worked
        });
    }
    crate::all_or_none(working, &shutdown).await
}

/// The connections of the parts of the system to the private servers, each with its own rights.
pub fn worker_config(addresses: &Addresses, namespace: &str) -> WorkerConfig {
    let password_file = Some(Credentials::at(&addresses.credentials).template());
    let database = database_of(namespace);
    let at = |url: &str, user: &str| url.replacen("://", &format!("://{user}@"), 1);
    WorkerConfig {
        nats: NatsConfig {
            nats_url: vec![addresses.nats_url.clone()],
            nats_user: Some(format!("{namespace}-{{role}}")),
            nats_password: None,
            nats_password_file: password_file.clone(),
            nats_ca_file: None,
            namespace: namespace.to_owned(),
            inbox: None,
        },
        postgres: PostgresConfig {
            postgres_url: format!(
                "{}/{database}",
                at(&addresses.postgres_url, &format!("{database}_{{role}}"))
            ),
            postgres_password: None,
            postgres_password_file: password_file.clone(),
            postgres_ca_file: None,
            postgres_connections: 8,
        },
        redis: RedisConfig {
            redis_url: at(&addresses.redis_url, &format!("{namespace}-{{role}}")),
            redis_password: None,
            redis_password_file: password_file,
            redis_ca_file: None,
        },
        payment_timeout: PAYMENT_TIMEOUT,
        gateway: GatewayConfig::default(),
        trim_keep_hours: None,
    }
}

/// Each namespace has a database of its own.
fn database_of(namespace: &str) -> String {
    namespace.to_ascii_lowercase()
}

/// Makes the database of a namespace if it is not there, brings it to this version's schema, and
/// lets its roles in.
pub async fn prepare_database(addresses: &Addresses, namespace: &str) -> Result<()> {
    let WorkerConfig { postgres, .. } = worker_config(addresses, namespace);
    let owner = PostgresConfig {
        postgres_url: postgres
            .postgres_url
            .replace(&format!("{}_{{role}}", database_of(namespace)), &addresses.postgres_user),
        postgres_password: Some(addresses.postgres_password.clone()),
        postgres_password_file: None,
        ..postgres
    };
    let options = owner.options()?;
    let name = options.get_database().unwrap_or("millrace").to_owned();
    let mut connection = options.database("postgres").connect().await?;
    let there: bool =
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(&name)
            .fetch_one(&mut connection)
            .await?;
    if !there {
        // Not a parameter in SQL; the characters of a namespace need no escaping within quotes.
        let create = format!("create database \"{name}\"");
        sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&mut connection).await?;
    }
    // Who sets up may do everything here, where the servers are nobody else's.
    let admin = format!(
        "do $$ begin create role \"{name}_{}\" superuser; exception when duplicate_object then end $$",
        Principal::Admin
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(admin)).execute(&mut connection).await?;
    connection.close().await?;
    let credentials = Credentials::at(&addresses.credentials);
    crate::migrate(&owner, Some(&credentials)).await
}

async fn bind(args: &UpArgs, config: &WorkerConfig) -> Result<Server> {
    let edge = |http: SocketAddr| {
        let edge = ApiConfig::new(http, config.nats.clone(), config.redis.clone());
        let journal = config.postgres.clone();
        let edge = edge.with_operator_routes(journal).with_auth(args.auth.clone());
        let edge = edge.with_webhooks(args.webhooks.clone());
        // Whoever comes may be anybody only where nobody is asked: where only this machine comes.
        if args.auth.is_set() { edge } else { edge.with_trial() }
    };
    match args.http {
        Some(http) => Server::bind(edge(http)).await,
        None => match Server::bind(edge(USUAL_HTTP.parse()?)).await {
            Ok(server) => Ok(server),
            Err(_) => Server::bind(edge("127.0.0.1:0".parse()?)).await,
        },
    }
}

async fn load_sample(nats: &NatsConfig) -> Result<()> {
    let client = nats.of(Principal::Operator).connect("millrace-sample").await?;
    let jetstream = async_nats::jetstream::new(client);
    sample::load(&jetstream, &nats.topology()?, sample::SEED).await?;
    Ok(())
}

/// Writes the settings with which further processes reach this system. Each part puts its own name
/// for `{role}`.
fn write_environment(data_dir: &Path, config: &WorkerConfig) -> Result<()> {
    let file = |path: &Option<PathBuf>| path.as_ref().map(|it| it.display().to_string());
    let operator = config.nats.of(Principal::Operator);
    let lines = [
        ("MILLRACE_NAMESPACE", Some(config.nats.namespace.clone())),
        ("MILLRACE_NATS_URL", Some(config.nats.nats_url.join(","))),
        ("MILLRACE_NATS_USER", config.nats.nats_user.clone()),
        ("MILLRACE_NATS_PASSWORD_FILE", file(&config.nats.nats_password_file)),
        ("MILLRACE_POSTGRES_URL", Some(config.postgres.postgres_url.clone())),
        ("MILLRACE_POSTGRES_PASSWORD_FILE", file(&config.postgres.postgres_password_file)),
        ("MILLRACE_REDIS_URL", Some(config.redis.redis_url.clone())),
        ("MILLRACE_REDIS_PASSWORD_FILE", file(&config.redis.redis_password_file)),
        // What the NATS CLI reads.
        ("NATS_URL", Some(config.nats.nats_url.join(","))),
        ("NATS_USER", operator.nats_user.clone()),
        ("NATS_PASSWORD", operator.password()?),
    ];
    let path = data_dir.join("env");
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    for (name, value) in lines {
        let value = value.unwrap_or_default();
        if value.contains(['\'', '\n']) {
            bail!("the setting {name} has a character that a shell would misread");
        }
        writeln!(file, "export {name}='{value}'")?;
    }
    Ok(())
}

fn explain(args: &UpArgs, addresses: &Addresses, http: Option<SocketAddr>) -> String {
    let env = args.data_dir.join("env");
    let (env, data, ns) = (env.display(), args.data_dir.display(), &args.namespace);
    let Addresses { nats_url, postgres_url, redis_url, credentials, .. } = addresses;
    let (operator, database) = (Principal::Operator, database_of(ns));
    let password = credentials.join(operator.name());
    let password = password.display();
    let order = first_order();
    let program = std::env::current_exe().unwrap_or_else(|_| "millrace".into());
    let program = program.display();
    let by_http = http.map(|http| {
        let (who, token) = if args.auth.is_set() {
            ("callers sign in", " \\\n      -H \"Authorization: Bearer $TOKEN\"")
        } else {
            ("nobody has to sign in: only this machine is listened to", "")
        };
        format!(
            "  HTTP        http://{http}   {who}
  Shop        http://{http}/
  Console     http://{http}/ops

  Place an order:
    curl -s http://{http}/v1/orders{token} -H 'Prefer: wait=5' \\
      -H 'Content-Type: application/json' -H 'Idempotency-Key: first-order' \\
      -d '{order}'

"
        )
    });
    let by_http = by_http.unwrap_or_default();
    format!(
        "
Millrace is up.

{by_http}  NATS        {nats_url}   user {ns}-{operator}   password in {password}

  Place an order with the NATS CLI:
    . {env}
    nats req {ns}.cmd.order.place '{order}'
    nats sub '{ns}.evt.>'

  PostgreSQL  {postgres_url}/{database}   user {database}_{operator}   the same password
  Valkey      {redis_url}   user {ns}-{operator}   the same password

  More workers, in another terminal:
    . {env}
    {program} worker validation payment persistence projection

Data are kept in {data}. Ctrl-C stops everything.
"
    )
}

/// An order that the sample catalogue can fill.
fn first_order() -> String {
    let product = sample::products(sample::SEED, 1).pop().map(|product| product.product_id);
    let customer = sample::customers(sample::SEED, 1).pop().and_then(|c| c.customer_id);
    serde_json::json!({
        "customerId": customer,
        "lines": [{ "productId": product, "quantity": 2 }],
        "payment": { "method": "card", "token": "tok_ok" },
    })
    .to_string()
}

fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}
