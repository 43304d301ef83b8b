//! Private NATS, `PostgreSQL` and Redis-compatible servers on free ports of this machine.
//!
//! All they keep is below one data folder, which one process at a time may use. The servers end with us,
//! also when we are killed.

mod home;
mod nats;
mod postgres;
pub(crate) mod process;
mod provision;
mod redis;

use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::FutureExt as _;
use futures_util::future::{join_all, select_all};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use home::Home;
use process::{Running, Spawner};
use provision::Program;

/// How long a server may take until it answers; a long journal may have to be read first.
const START_LIMIT: Duration = Duration::from_mins(2);
/// How long a server may take to write down what it holds and end.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Where the servers keep their data and programs.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Folder for data, logs, addresses and passwords; made when it is missing.
    pub data_dir: PathBuf,
    /// Folder for the servers' programs; any number of data folders may share it.
    pub servers_dir: PathBuf,
    /// Every acknowledged write is on the disk first. Only tests that need speed turn it off.
    pub durable: bool,
    /// Whose users NATS and Redis are to know.
    pub namespaces: Vec<String>,
}

/// Where the servers listen, and the secrets that open them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Addresses {
    /// `nats://127.0.0.1:PORT`
    pub nats_url: String,
    /// A user of NATS who may do everything.
    pub nats_user: String,
    /// Its password.
    pub nats_password: String,
    /// `postgres://127.0.0.1:PORT`
    pub postgres_url: String,
    /// The cluster's superuser.
    pub postgres_user: String,
    /// Its password.
    pub postgres_password: String,
    /// `redis://127.0.0.1:PORT`
    pub redis_url: String,
    /// The default user's password.
    pub redis_password: String,
    /// The folder with the passwords of everybody else: see [`crate::credentials`].
    #[serde(skip)]
    pub credentials: PathBuf,
}

/// One of the three servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// nats-server with `JetStream`.
    Nats,
    /// `PostgreSQL`.
    Postgres,
    /// Valkey or Redis.
    Redis,
}

impl Which {
    const ALL: [Self; 3] = [Self::Nats, Self::Postgres, Self::Redis];

    const fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        }
    }
}

/// The three servers, running. Dropping this kills them; [`Servers::stop`] lets them end in order.
///
/// They belong to the Tokio runtime in which they were started, and end with it.
pub struct Servers {
    running: Vec<Server>,
    addresses: Addresses,
    // After the servers: the lock on the data folder goes last.
    starter: Starter,
}

struct Server {
    which: Which,
    program: Program,
    process: Running,
}

/// Sees to it that the servers' programs are there.
pub async fn fetch(servers_dir: &Path) -> Result<()> {
    for which in Which::ALL {
        provision::find(which, servers_dir).await?;
    }
    Ok(())
}

impl Servers {
    /// Starts the three and returns when each of them answers.
    pub async fn start(options: &ServerOptions) -> Result<Self> {
        let home = Home::open(&options.data_dir).await?;
        let starter = Starter { home, spawner: Spawner::new().await?, options: options.clone() };
        let [nats, postgres, redis] = Which::ALL.map(|which| starter.provide_and_start(which));
        let (nats, postgres, redis) = tokio::try_join!(nats, postgres, redis)?;
        let addresses = starter.home.addresses().await;
        Ok(Self { running: vec![nats, postgres, redis], addresses, starter })
    }

    /// Where they listen.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Waits until one of the servers ends by itself and tells which, how, and where its log is.
    pub async fn exited(&mut self) -> String {
        let waits = self.running.iter_mut().map(|server| {
            async {
                let Some(child) = &mut server.process.child else {
                    return pending().await;
                };
                let end = child
                    .wait()
                    .await
                    .map_or_else(|error| error.to_string(), |status| status.to_string());
                format!(
                    "{} ended ({end}): see {}",
                    server.which.name(),
                    server.process.log.path.display()
                )
            }
            .boxed()
        });
        select_all(waits).await.0
    }

    /// Asks the three to end and waits for it. Those that do not within the limit are killed and named.
    pub async fn stop(mut self) -> Result<()> {
        let ends = join_all(self.running.iter_mut().map(Server::stop)).await;
        ends.into_iter().collect()
    }

    /// The process id of a server, unless it has ended.
    pub fn pid(&self, which: Which) -> Option<u32> {
        let server = self.running.iter().find(|server| server.which == which)?;
        server.process.pid()
    }

    /// Kills a server as a crash would. [`Servers::exited`] does not report it.
    pub async fn kill(&mut self, which: Which) -> Result<()> {
        if let Some(mut child) = self.server(which)?.process.child.take() {
            child.kill().await.with_context(|| format!("{} could not be killed", which.name()))?;
        }
        Ok(())
    }

    /// Starts a server again on its old port with its old data, and returns when it answers.
    pub async fn restart(&mut self, which: Which) -> Result<()> {
        let server = self.server(which)?;
        server.stop().await?;
        let program = server.program.clone();
        let process = self.starter.start(which, &program, false).await?;
        self.server(which)?.process = process;
        Ok(())
    }

    fn server(&mut self, which: Which) -> Result<&mut Server> {
        let found = self.running.iter_mut().find(|server| server.which == which);
        found.with_context(|| format!("{} is not among the servers", which.name()))
    }
}

impl Server {
    async fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.process.child.take() else {
            return Ok(());
        };
        // PostgreSQL takes SIGTERM as "wait for all clients to leave".
        let signal = if self.which == Which::Postgres { Signal::INT } else { Signal::TERM };
        process::signal(child.id(), signal);
        if timeout(STOP_LIMIT, child.wait()).await.is_err() {
            child.kill().await?;
            let (name, seconds) = (self.which.name(), STOP_LIMIT.as_secs());
            bail!(
                "{name} did not end within {seconds} s and was killed: see {}",
                self.process.log.path.display()
            );
        }
        Ok(())
    }
}

/// What is needed to start a server, the first time and again.
struct Starter {
    home: Home,
    spawner: Spawner,
    options: ServerOptions,
}

impl Starter {
    async fn provide_and_start(&self, which: Which) -> Result<Server> {
        let program = provision::find(which, &self.options.servers_dir).await?;
        tracing::debug!(program = %program.path.display(), version = ?program.version, "starting");
        let process = self.start(which, &program, true).await?;
        Ok(Server { which, program, process })
    }

    /// Starts a server until it stays up: a port may be taken between our choosing it and the server's
    /// using it, and a killed `PostgreSQL`'s children take a moment to let go of its memory.
    async fn start(&self, which: Which, program: &Program, may_move: bool) -> Result<Running> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let port = self.home.port(which, may_move).await?;
            let addresses = self.home.addresses().await;
            let (home, durable) = (&self.home, self.options.durable);
            let namespaces = &self.options.namespaces;
            let launch = match which {
                Which::Nats => nats::launch(home, program, port, &addresses, durable, namespaces)?,
                Which::Postgres => {
                    postgres::launch(home, &self.spawner, program, port, &addresses, durable)
                        .await?
                }
                Which::Redis => {
                    redis::launch(home, program, port, &addresses, durable, namespaces)?
                }
            };
            process::end_leftovers(&launch).await?;
            if which == Which::Postgres {
                postgres::drop_stale_pid_file(Path::new(&launch.mark))?;
            }
            let mut running = self.spawner.spawn(&launch).await?;
            let Err(failure) =
                until_ready(which, &mut running, &addresses, &launch.mark, deadline).await
            else {
                return Ok(running);
            };
            let said = running.log.tail();
            let passing = said.contains("ddress already in use") || said.contains("still in use");
            if !passing || Instant::now() > deadline {
                let (name, path, hint) =
                    (which.name(), running.log.path.display(), process::hint(&said));
                return Err(failure.context(format!(
                    "{name} did not start{hint}\nlast lines of {path}:\n{said}"
                )));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn until_ready(
    which: Which,
    running: &mut Running,
    addresses: &Addresses,
    mark: &str,
    deadline: Instant,
) -> Result<()> {
    loop {
        let attempt = timeout(Duration::from_secs(5), async {
            match which {
                Which::Nats => nats::answers(addresses, mark).await,
                Which::Postgres => postgres::answers(addresses, mark).await,
                Which::Redis => redis::answers(addresses).await,
            }
        });
        let answer = attempt.await.unwrap_or_else(|_| Err(anyhow!("no answer")));
        // Looked at after the answer: nothing but a server that lives can have given it.
        if let Some(status) = running.ended()? {
            bail!("it ended: {status}");
        }
        match answer {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context("it does not answer"));
            }
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
}
