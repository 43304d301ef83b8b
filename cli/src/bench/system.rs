//! The system that is measured: a private one, as `millrace up` runs it, or one that runs already.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream;
use futures_util::StreamExt as _;
use millrace_shared::access::Principal;
use millrace_shared::topology::Topology;
use millrace_workers::WorkerConfig;
use rustix::process::Signal;
use sqlx::PgPool;
use tokio::time::{sleep, timeout};

use super::proc::{Watched, children};
use crate::servers::Addresses;
use crate::servers::process::{Launch, Running, Spawner, User, signal};
use crate::up::worker_config;

/// How long anything may take to start, to end, or to be worked off.
const PATIENCE: Duration = Duration::from_mins(2);
/// The workers, as the command line names them.
pub const ROLES: [&str; 4] = ["validation", "payment", "persistence", "projection"];
/// What `up` prints when it is ready.
const UP: &str = "Ctrl-C stops everything.";
/// What an api logs when it is.
const SERVING: &str = "the api answers";

/// How a private system is to be run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Its data; it is made, and stays.
    pub data: PathBuf,
    /// The servers' programs.
    pub servers: PathBuf,
    /// Every role in a process of its own.
    pub apart: bool,
    /// Replicas of each worker.
    pub replicas: usize,
}

/// A system to measure.
pub struct System {
    /// `http://HOST:PORT`
    pub http: String,
    /// What its edge is signed in to with.
    pub authorization: Option<String>,
    /// How its servers are reached.
    pub config: WorkerConfig,
    /// Its names.
    pub topology: Topology,
    /// Its processes, as far as they are on this machine and known.
    pub processes: Vec<Watched>,
    /// From the start of the program to the first good answer of its edge.
    pub cold_start: Option<Duration>,
    /// Connections of the benchmark's own.
    pub nats: async_nats::Client,
    /// To the database.
    pub pool: PgPool,
    /// Where a private system keeps its data.
    pub data: Option<PathBuf>,
    private: Vec<Running>,
    /// The processes of a private system end with it.
    spawner: Option<Spawner>,
}

struct Starter<'a> {
    plan: &'a Plan,
    spawner: Spawner,
    running: Vec<Running>,
    processes: Vec<Watched>,
}

impl System {
    /// Starts a private system in an empty folder.
    pub async fn start(plan: &Plan) -> Result<Self> {
        let spawner = Spawner::new().await?;
        let (running, processes) = (Vec::new(), Vec::new());
        let mut starter = Starter { plan, spawner, running, processes };
        let begin = Instant::now();
        let mut words = vec!["up", "--no-sample", "--namespace", "millrace", "--data-dir"];
        let (data, servers) = (text(&plan.data)?, text(&plan.servers)?);
        words.extend([data, "--servers-dir", servers]);
        if plan.apart {
            words.push("--servers-only");
        } else {
            words.extend(["--http", "127.0.0.1:0"]);
        }
        let up = if plan.apart { "up" } else { "millrace" };
        let said = starter.run(up, &words, UP).await?;
        let mut addresses: Addresses =
            serde_json::from_slice(&fs::read(plan.data.join("run.json"))?)?;
        addresses.credentials = plan.data.join("credentials");
        let config = worker_config(&addresses, "millrace");
        let http = if plan.apart {
            starter.roles(&config, plan.replicas).await?
        } else {
            let http = address(&said, "http://")?;
            starter.replicas(&config, plan.replicas - 1).await?;
            http
        };
        starter.find_servers()?;
        let http = format!("http://{http}");
        until_ready(&http).await?;
        let cold_start = Some(begin.elapsed());
        let mut system = Self::connect(http, None, config).await?;
        system.cold_start = cold_start;
        system.processes = starter.processes;
        system.private = starter.running;
        system.spawner = Some(starter.spawner);
        system.data = Some(plan.data.clone());
        Ok(system)
    }

    /// A system that runs already.
    pub async fn connect(
        http: String,
        authorization: Option<String>,
        config: WorkerConfig,
    ) -> Result<Self> {
        until_ready(&http).await?;
        // It looks at everything, and makes tables of its own.
        let config = config.of(Principal::Admin);
        Ok(Self {
            topology: config.nats.topology()?,
            nats: config.nats.connect_now("millrace-bench").await?,
            pool: config.postgres.pool("millrace-bench")?,
            processes: Vec::new(),
            cold_start: None,
            data: None,
            private: Vec::new(),
            spawner: None,
            http,
            authorization,
            config,
        })
    }

    /// Waits until the workers have nothing left to do with what is in the streams.
    pub async fn worked_off(&self, workers: &[&str]) -> Result<()> {
        let jetstream = jetstream::new(self.nats.clone());
        let wait = async {
            loop {
                if self.left(&jetstream, workers).await? == 0 {
                    return anyhow::Ok(());
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, wait).await.context("the workers do not get to an end")?
    }

    async fn left(&self, jetstream: &jetstream::Context, workers: &[&str]) -> Result<u64> {
        let mut left = 0;
        for name in [self.topology.commands_stream(), self.topology.events_stream()] {
            let stream = jetstream.get_stream_no_info(&name).await?;
            let mut consumers = std::pin::pin!(stream.consumers());
            while let Some(consumer) = consumers.next().await {
                let info = consumer?;
                let durable = info.config.durable_name.as_deref();
                if durable.is_some_and(|it| workers.is_empty() || workers.contains(&it)) {
                    left += info.num_pending + info.num_ack_pending as u64;
                }
            }
        }
        Ok(left)
    }

    /// Ends a private system.
    pub async fn stop(self) -> Result<()> {
        self.pool.close().await;
        // The roles before the servers that they use.
        for mut process in self.private.into_iter().rev() {
            let Some(mut child) = process.child.take() else { continue };
            signal(child.id(), Signal::INT);
            if timeout(PATIENCE, child.wait()).await.is_err() {
                child.kill().await?;
                bail!("a process did not end: see {}", process.log.path.display());
            }
        }
        drop(self.spawner);
        Ok(())
    }
}

impl Starter<'_> {
    /// Runs this program, until it says `ready`; returns what it has said.
    async fn run(&mut self, name: &str, words: &[&str], ready: &str) -> Result<String> {
        let number = self.running.len();
        let log = self.plan.data.join(format!("bench-{number}-{name}.log"));
        let launch = Launch {
            program: std::env::current_exe()?,
            arguments: words.iter().map(|word| (*word).to_owned()).collect(),
            environment: &[],
            timer_slack: None,
            user: User::Same,
            log: log.clone(),
            mark: String::new(),
        };
        let mut running = self.spawner.spawn(&launch).await?;
        let pid = running.pid().context("it has ended")?;
        self.processes.push(Watched { name: name.to_owned(), pid, with_children: false });
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = fs::read_to_string(&log).unwrap_or_default();
            if said.contains(ready) {
                self.running.push(running);
                return Ok(said);
            }
            if running.ended()?.is_some() || Instant::now() > deadline {
                bail!("{name} did not start:\n{}", running.log.tail());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Every role in processes of its own; returns where the api listens.
    async fn roles(&mut self, config: &WorkerConfig, replicas: usize) -> Result<String> {
        let settings = Self::settings(config)?;
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        for _ in 0..replicas {
            for role in ROLES {
                let words = [&["worker", role][..], &settings].concat();
                self.run(role, &words, "consuming").await?;
            }
        }
        let words = [&["api", "--http", "127.0.0.1:0"][..], &settings].concat();
        let said = self.run("api", &words, SERVING).await?;
        let line = said.lines().find(|line| line.contains(SERVING)).unwrap_or_default();
        address(line, "")
    }

    /// Further workers beside those of `up`.
    async fn replicas(&mut self, config: &WorkerConfig, count: usize) -> Result<()> {
        let settings = Self::settings(config)?;
        for _ in 0..count {
            let settings = settings.iter().map(String::as_str);
            let words: Vec<&str> = ["worker"].into_iter().chain(ROLES).chain(settings).collect();
            self.run("workers", &words, "consuming").await?;
        }
        Ok(())
    }

    /// What tells a role where the servers are.
    fn settings(config: &WorkerConfig) -> Result<Vec<String>> {
        fn file(path: Option<&PathBuf>) -> Result<Option<&str>> {
            path.map(|path| text(path)).transpose()
        }
        let (nats, postgres, redis) = (&config.nats, &config.postgres, &config.redis);
        let urls = nats.nats_url.join(",");
        let settings = [
            ("--namespace", Some(nats.namespace.as_str())),
            ("--nats-url", Some(&urls)),
            ("--nats-user", nats.nats_user.as_deref()),
            ("--nats-password-file", file(nats.nats_password_file.as_ref())?),
            ("--postgres-url", Some(&postgres.postgres_url)),
            ("--postgres-password-file", file(postgres.postgres_password_file.as_ref())?),
            ("--redis-url", Some(&redis.redis_url)),
            ("--redis-password-file", file(redis.redis_password_file.as_ref())?),
        ];
        let given = settings.into_iter().filter_map(|(name, value)| Some([name, value?]));
        Ok(given.flatten().map(str::to_owned).collect())
    }

    /// The servers are children of `up`.
    fn find_servers(&mut self) -> Result<()> {
        let up = self.running.first().and_then(Running::pid).context("`up` has ended")?;
        for (pid, program) in children(up) {
            let name = match program.as_str() {
                name if name.contains("nats") => "nats",
                name if name.contains("postgres") => "postgres",
                name if name.contains("valkey") || name.contains("redis") => "redis",
                _ => continue,
            };
            let with_children = name == "postgres";
            self.processes.push(Watched { name: name.to_owned(), pid, with_children });
        }
        Ok(())
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}

/// The local address that follows `before` in what a process has said.
fn address(said: &str, before: &str) -> Result<String> {
    let start = format!("{before}127.0.0.1:");
    let port = said.split(&start).nth(1).context("no address is told")?;
    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
    Ok(format!("127.0.0.1:{port}"))
}

async fn until_ready(http: &str) -> Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let ready = async {
        loop {
            let answer = client.get(format!("{http}/readyz")).send().await;
            let ready = match answer {
                Ok(answer) => {
                    let body = answer.json().await;
                    body.is_ok_and(|body: serde_json::Value| body["status"] == "ok")
                }
                Err(_) => false,
            };
            if ready {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, ready).await.with_context(|| format!("{http} does not become ready"))
}
