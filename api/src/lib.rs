//! The HTTP edge. It checks the shape of a request, gives it its ids, publishes it, waits for the
//! publish ack and answers; it reads the views. It decides nothing. Accepting commands needs only
//! NATS, reading needs only Redis: each goes on while the other is away.

pub mod auth;
pub mod config;
pub mod contract;
pub mod error;
#[cfg(test)]
mod fuzz;
mod headers;
pub mod listener;
pub mod lists;
pub mod live;
pub mod marks;
mod observe;
pub mod pipeline;
pub mod query;
pub mod reading;
pub mod request;
mod router;
pub mod routes;
pub mod search;
pub mod submit;
pub mod wait;
mod web;
mod webhook;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::connection::State as Connection;
use millrace_shared::access::Principal;
use millrace_shared::config::PostgresConfig;
use millrace_shared::log::Log;
use millrace_shared::parking::desk::Desk;
use millrace_shared::past::Past;
use millrace_shared::story::{Audience, Finder};
use millrace_shared::topology::Topology;
use millrace_shared::views::{Change, Views, watch_changes};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::auth::{Caller, Gate, Peer};
pub use crate::config::ApiConfig;
pub use crate::headers::Origin;
use crate::listener::Bounded;
use crate::live::Live;
use crate::marks::Marks;
use crate::pipeline::Monitor;
use crate::search::Search;
use crate::search::feed::Feed;
use crate::wait::Waiters;
use crate::web::Offer;
use crate::webhook::Signatures;
pub use crate::webhook::WebhookConfig;

/// Connections at a time besides those of live streams; more wait in the kernel's queue.
const CONNECTIONS: usize = 10_000;
/// Open files besides those of connections.
const OTHER_FILES: usize = 200;
/// A connection on which nothing was answered for so long is closed: longer than any wait.
const PATIENCE: Duration = Duration::from_secs(75);
/// Requests at a time, waiting ones among them; further ones are refused at once.
const REQUESTS: usize = 8_000;
/// Imports at a time.
const IMPORTS: usize = 4;
/// Requests that wait for an outcome at a time.
const WAITING: usize = 4_000;
/// How long the first request waits for NATS and Redis to be connected.
const WARM_UP: Duration = Duration::from_secs(3);
/// How long requests that are under way get when the process is asked to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the edge calls itself not ready because the catalogue is still being read. Who cannot
/// search for so long can take and show orders all the same.
const READING: Duration = Duration::from_mins(1);

/// What the handlers share.
#[derive(Debug)]
pub struct App {
    nats: async_nats::Client,
    topology: Topology,
    gate: Gate,
    commands: Log,
    views: Views,
    waiters: Arc<Waiters>,
    live: Live,
    marks: Marks,
    requests: Semaphore,
    search: Arc<Search>,
    imports: Semaphore,
    import_max_bytes: usize,
    started: Instant,
    past: Past,
    stories: Finder,
    /// Only with the routes for operators.
    desk: Option<Desk>,
    /// Only with a secret of webhooks.
    webhooks: Option<Signatures>,
    monitor: Monitor,
}

impl App {
    /// Whether commands can be stored now.
    pub fn can_accept(&self) -> bool {
        self.nats.connection_state() == Connection::Connected
    }

    /// Whether views can be read now.
    pub fn can_read(&self) -> bool {
        self.views.is_connected()
    }

    /// Whether the edge has just begun, and is still reading the catalogue.
    pub fn is_starting(&self) -> bool {
        self.can_accept() && !self.search.is_filled() && self.started.elapsed() < READING
    }

    /// What a caller is told of an order's story.
    fn audience(&self, caller: &Caller) -> Audience {
        match self.desk {
            Some(_) if caller.is_operator() => Audience::Operators,
            _ => Audience::Public,
        }
    }

    /// Closes the connections to Redis and PostgreSQL.
    async fn close(&self) {
        // Whoever stops does not care how a connection ends.
        self.views.close().await.ok();
        self.past.close().await;
        if let Some(desk) = &self.desk {
            desk.close().await;
        }
    }

    /// Gives both connections, and the keys of tokens, a moment, so that the first requests are not refused for nothing.
    async fn warm_up(&self) {
        let start = Instant::now();
        while !(self.can_accept() && self.can_read() && self.gate.is_ready())
            && start.elapsed() < WARM_UP
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The edge, listening.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    config: ApiConfig,
    gate: Gate,
    webhooks: Option<Signatures>,
}

impl Server {
    /// Begins to listen; nothing is answered before [`Server::serve`].
    pub async fn bind(config: ApiConfig) -> anyhow::Result<Self> {
        let gate = Gate::new(&config.auth, config.http)?;
        anyhow::ensure!(
            !(gate.is_closed() && config.operators.trial),
            "--trial lets whoever comes be any customer: leave it out where callers have to sign in"
        );
        let webhooks = config.webhooks.signatures()?;
        let refused = || format!("the api cannot listen at {}; see --http", config.http);
        let listener = TcpListener::bind(config.http).await.with_context(refused)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, config, gate, webhooks })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests until the shutdown. What is under way then is answered still: for at most
    /// ten seconds, and who waits for an outcome is told that it is pending.
    pub async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let ApiConfig { nats, redis, import_max_bytes, live, operators, cors_origins, .. } =
            self.config;
        let (redis, of_desk) = (redis.of(Principal::Api), nats.of(Principal::Desk));
        let nats = nats.of(Principal::Api);
        let topology = nats.topology()?;
        let client = nats.connect("millrace-api").await?;
        let waiters = Arc::new(Waiters::new(WAITING, shutdown.clone()));
        let offer = Offer {
            console: operators.operator_routes,
            trial: operators.trial,
            sign_in: self.gate.is_closed(),
        };
        let journal = operators.postgres.as_ref();
        let reading = |it: &PostgresConfig| it.of(Principal::Api).reading_pool("millrace-api-past");
        let journal = journal.map(reading).transpose()?;
        let log = Log::new(client.clone(), topology.events_stream());
        let past = Past::new(log, topology.clone(), journal);
        let (search, index) = Search::new()?;
        let views = Views::new(redis.client()?, topology.namespace());
        let app = Arc::new(App {
            stories: Finder::new(&client, past.clone()),
            gate: self.gate,
            past,
            desk: operators.desk(&of_desk).await?,
            webhooks: self.webhooks,
            monitor: Monitor::default(),
            commands: Log::new(client.clone(), topology.commands_stream()),
            nats: client,
            live: Live::new(&live, &views, shutdown.clone()),
            marks: Marks::new(views.clone()),
            views,
            waiters: Arc::clone(&waiters),
            requests: Semaphore::new(REQUESTS),
            search: Arc::new(search),
            imports: Semaphore::new(IMPORTS),
            import_max_bytes,
            started: Instant::now(),
            topology,
        });
        let feed = Feed {
            nats: nats.connect("millrace-catalogue").await?,
            topology: app.topology.clone(),
            views: app.views.clone(),
            search: Arc::clone(&app.search),
        };
        let feeding = tokio::spawn(feed.run(index, shutdown.clone()));
        let watching = tokio::spawn({
            let (app, stop) = (Arc::clone(&app), shutdown.clone());
            async move {
                let woken = [&*waiters, app.live.waiters()];
                watch_changes(&redis, app.topology.namespace(), &stop, |change| match change {
                    Change::Views(lines) => woken.iter().for_each(|waiters| waiters.wake(lines)),
                    Change::Missed => woken.iter().for_each(|waiters| waiters.wake_all()),
                })
                .await
            }
        });
        let querying = tokio::spawn(query::serve(Arc::clone(&app), shutdown.clone()));
        let monitoring = tokio::spawn({
            let (app, stop) = (Arc::clone(&app), shutdown.clone());
            async move {
                if app.desk.is_some() {
                    app.monitor.run(&app, &stop).await;
                }
            }
        });
        let keeping = tokio::spawn({
            let (app, stop) = (Arc::clone(&app), shutdown.clone());
            async move { app.gate.keep_fresh(&stop).await }
        });
        app.warm_up().await;
        tracing::info!(address = %self.address, "the api answers");
        let connections = CONNECTIONS + live.streams;
        // Each connection is a file; what is too many waits in the kernel's queue.
        let files = listener::allow_files(connections + OTHER_FILES);
        let connections = connections.min(files.saturating_sub(OTHER_FILES)).max(1);
        let stalled = Duration::from_secs(live.stalled.into());
        let listener = Bounded::new(self.listener, connections, PATIENCE, stalled);
        let stop = shutdown.clone();
        // A bare router would be copied, route by route, for each connection.
        let router = router::router(&app, offer, cors_origins);
        let router = router.into_make_service_with_connect_info::<Peer>();
        let serving = axum::serve(listener, router)
            .with_graceful_shutdown(async move { stop.cancelled().await });
        let late = async {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            served = serving => served?,
            () = late => tracing::warn!("requests were cut off: they took too long to end"),
        }
        shutdown.cancel();
        watching.await??;
        feeding.await?;
        querying.await?;
        monitoring.await?;
        keeping.await?;
        app.close().await;
        Ok(())
    }
}

/// Runs the edge until the shutdown.
pub async fn run(config: ApiConfig, shutdown: CancellationToken) -> anyhow::Result<()> {
    Server::bind(config).await?.serve(shutdown).await
}
