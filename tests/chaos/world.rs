//! The system under chaos: servers of its own, every role twice as a process, and a line from each
//! process to each server; and what is done to them.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex as StdMutex;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use millrace_cli::servers::{Addresses, ServerOptions, Servers, Which};
use millrace_shared::access::Principal;
use millrace_shared::topology::StreamOptions;
use millrace_workers::WorkerConfig;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::plan::{Plan, Step, What, Whose, Wrong};
use crate::harness::{eventually, servers_dir};
use crate::process::settings;
use crate::proxy::{Line, Mode};

const NAMESPACE: &str = "chaos";

/// Every process: its name, and what it runs. The second half are the second of each.
pub const MEMBERS: [(&str, &[&str]); 10] = [
    ("api-1", &["api"]),
    ("validation-1", &["worker", "validation"]),
    ("payment-1", &["worker", "payment"]),
    ("persistence-1", &["worker", "persistence"]),
    ("projection-1", &["worker", "projection"]),
    ("api-2", &["api"]),
    ("validation-2", &["worker", "validation"]),
    ("payment-2", &["worker", "payment"]),
    ("persistence-2", &["worker", "persistence"]),
    ("projection-2", &["worker", "projection"]),
];

/// The whole system.
pub struct World {
    /// Where everything of this run is: data, logs.
    pub folder: PathBuf,
    /// The settings with which the servers are reached directly.
    pub config: WorkerConfig,
    servers: Mutex<Servers>,
    members: Vec<Member>,
    start: Instant,
    done: StdMutex<String>,
    /// What must never happen, whatever is done to the system.
    faults: StdMutex<Vec<String>>,
}

/// A process that is started again and again.
struct Member {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    settings: Vec<(&'static str, String)>,
    log: PathBuf,
    /// To NATS, `PostgreSQL`, Redis.
    lines: [Line; 3],
    http: Option<SocketAddr>,
    child: Mutex<Child>,
}

impl World {
    /// Starts everything in a folder that must be new.
    pub async fn start(folder: &Path, payment_timeout: u32) -> Self {
        fs::create_dir_all(folder).expect("a folder");
        let options = ServerOptions {
            data_dir: folder.join("data"),
            servers_dir: servers_dir(),
            durable: true,
            namespaces: vec![NAMESPACE.to_owned()],
        };
        let servers = Box::pin(Servers::start(&options)).await.expect("the servers start");
        let mut config = millrace_cli::up::worker_config(servers.addresses(), NAMESPACE);
        config.payment_timeout = payment_timeout;
        let made = millrace_cli::up::prepare_database(servers.addresses(), NAMESPACE).await;
        made.expect("a database");
        millrace_cli::topology(&config.nats.of(Principal::Admin), &StreamOptions::default())
            .await
            .expect("streams");
        // A build meanwhile must not change what is started again.
        let program = folder.join("millrace");
        fs::copy(env!("CARGO_BIN_EXE_millrace-under-test"), &program).expect("a copy");
        let start = |(name, arguments)| {
            Member::start(name, arguments, &program, &config, servers.addresses(), folder)
        };
        let members = join_all(MEMBERS.map(start)).await;
        let world = Self {
            folder: folder.to_owned(),
            config,
            servers: Mutex::new(servers),
            members,
            start: Instant::now(),
            done: StdMutex::default(),
            faults: StdMutex::default(),
        };
        for edge in world.edges() {
            eventually("the edge answers", async || {
                reqwest::get(format!("{edge}/livez")).await.ok()
            })
            .await;
        }
        world
    }

    /// The addresses of the edges.
    pub fn edges(&self) -> Vec<String> {
        let edges = self.members.iter().filter_map(|member| member.http);
        edges.map(|address| format!("http://{address}")).collect()
    }

    /// The settings of the clients: their line to NATS is cut with that of the first edge.
    pub fn of_clients(&self) -> WorkerConfig {
        let mut config = self.config.clone();
        config.nats.nats_url = vec![format!("nats://{}", self.members[0].lines[0].address())];
        config
    }

    /// Carries out a plan, and makes everything good again.
    pub async fn suffer(&self, plan: &Plan) {
        let start = Instant::now();
        join_all(plan.lanes.iter().map(async |steps| {
            for step in steps {
                sleep(step.at.saturating_sub(start.elapsed())).await;
                // A server took long to come back.
                if start.elapsed() < plan.lasts {
                    self.carry_out(step).await;
                }
            }
        }))
        .await;
        self.note("the chaos is over");
    }

    async fn carry_out(&self, step: &Step) {
        self.note(&format!("{}, for {:.3} s", step.what, step.lasts.as_secs_f64()));
        match step.what {
            What::KillServer(which) => {
                self.servers.lock().await.kill(which).await.expect("it is killed");
                sleep(step.lasts).await;
                let restarted = self.servers.lock().await.restart(which).await;
                if let Err(error) = restarted {
                    self.fault(format!("{which:?} did not start again: {error:#}"));
                }
            }
            What::FreezeServer(which) => {
                let pid = self.servers.lock().await.pid(which).expect("it runs");
                let frozen = stop(pid);
                sleep(step.lasts).await;
                signal(&frozen, Signal::CONT);
            }
            What::Kill(member) => {
                let member = &self.members[member];
                let mut child = member.child.lock().await;
                self.lives(member.name, &mut child);
                child.kill().await.expect("it is killed");
                sleep(step.lasts).await;
                *child = member.spawn();
            }
            What::Freeze(member) => {
                let member = &self.members[member];
                let mut child = member.child.lock().await;
                self.lives(member.name, &mut child);
                let pid = child.id().expect("it runs");
                signal(&[pid], Signal::STOP);
                sleep(step.lasts).await;
                signal(&[pid], Signal::CONT);
            }
            What::Line(wrong, which, whose) => {
                let members = match whose {
                    Whose::All => &self.members[..],
                    Whose::Member(member) => std::slice::from_ref(&self.members[member]),
                };
                let lines: Vec<&Line> = members.iter().map(|member| member.line(which)).collect();
                spoil(&lines, wrong);
                sleep(step.lasts).await;
                for line in lines {
                    line.set(Mode::Open);
                }
            }
        }
        self.note(&format!("made good: {}", step.what));
    }

    /// A process may only end because we kill it.
    fn lives(&self, name: &str, child: &mut Child) {
        if let Some(status) = child.try_wait().expect("a child") {
            self.fault(format!("{name} has ended by itself: {status}"));
        }
    }

    fn note(&self, what: &str) {
        let mut done = self.done.lock().expect("no panic");
        let at = chrono::Utc::now().format("%H:%M:%S%.3f");
        writeln!(done, "{at} {:8.3} s  {what}", self.start.elapsed().as_secs_f64()).expect("text");
        fs::write(self.folder.join("done"), done.as_bytes()).expect("a file");
    }

    /// Notes what must never happen.
    pub fn fault(&self, what: String) {
        self.note(&what);
        self.faults.lock().expect("no panic").push(what);
    }

    /// What was done, with the times.
    pub fn done(&self) -> String {
        self.done.lock().expect("no panic").clone()
    }

    /// All faults, those included that show only now.
    pub async fn faults(&self) -> Vec<String> {
        for member in &self.members {
            self.lives(member.name, &mut *member.child.lock().await);
            let log = fs::read_to_string(&member.log).expect("a log");
            if let Some(panic) = log.lines().find(|line| line.contains("panicked")) {
                self.fault(format!("{} has panicked: {panic}", member.name));
            }
        }
        self.faults.lock().expect("no panic").clone()
    }

    /// Ends everything and removes what it left.
    pub async fn stop(self) {
        for member in &self.members {
            member.child.lock().await.kill().await.expect("it is killed");
        }
        self.servers.into_inner().stop().await.expect("the servers end");
        fs::remove_dir_all(&self.folder).expect("the folder is removed");
    }
}

impl Member {
    async fn start(
        name: &'static str,
        arguments: &[&str],
        program: &Path,
        config: &WorkerConfig,
        servers: &Addresses,
        folder: &Path,
    ) -> Self {
        let urls = [&servers.nats_url, &servers.postgres_url, &servers.redis_url];
        let targets = urls.map(|url| {
            let address = url.split("://").nth(1).expect("an address");
            (address, address.parse().expect("an address"))
        });
        let [nats, postgres, redis] = targets.map(|(_, target)| Line::to(target));
        let (nats, postgres, redis) = tokio::join!(nats, postgres, redis);
        let mut config = config.clone();
        config.nats.nats_url = vec![format!("nats://{}", nats.address())];
        let behind = postgres.address().to_string();
        config.postgres.postgres_url = config.postgres.postgres_url.replace(targets[1].0, &behind);
        let behind = redis.address().to_string();
        config.redis.redis_url = config.redis.redis_url.replace(targets[2].0, &behind);
        let mut arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        let http = (arguments[0] == "api").then(free_address);
        if let Some(http) = http {
            arguments.extend(["--http".to_owned(), http.to_string()]);
        }
        let log = folder.join(format!("{name}.log"));
        let child = spawn(program, &arguments, &settings(&config), &log);
        Self {
            name,
            program: program.to_owned(),
            settings: settings(&config),
            arguments,
            log,
            lines: [nats, postgres, redis],
            http,
            child: Mutex::new(child),
        }
    }

    fn spawn(&self) -> Child {
        spawn(&self.program, &self.arguments, &self.settings, &self.log)
    }

    fn line(&self, which: Which) -> &Line {
        let [nats, postgres, redis] = &self.lines;
        match which {
            Which::Nats => nats,
            Which::Postgres => postgres,
            Which::Redis => redis,
        }
    }
}

fn spawn(
    program: &Path,
    arguments: &[String],
    settings: &[(&'static str, String)],
    log: &Path,
) -> Child {
    let mut log = File::options().create(true).append(true).open(log).expect("a log");
    std::io::Write::write_all(&mut log, b"--- started\n").expect("a log");
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MILLRACE_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).envs(settings.iter().map(|(name, value)| (name, value)));
    if let Ok(filter) = std::env::var("MILLRACE_CHAOS_LOG") {
        command.env("MILLRACE_LOG", filter);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
    command.kill_on_drop(true).spawn().expect("the program starts")
}

fn spoil(lines: &[&Line], wrong: Wrong) {
    for line in lines {
        match wrong {
            Wrong::Cut => {
                line.set(Mode::Refused);
                line.cut();
            }
            Wrong::Slow(delay) => line.set(Mode::Slow(Duration::from_millis(delay))),
            Wrong::Stopped => line.set(Mode::Stopped),
            Wrong::HalfOpen => line.silence(),
        }
    }
}

/// A port that stays ours while its process is away: below those that outgoing connections get.
fn free_address() -> SocketAddr {
    let bind = |_| {
        let port = rand::random_range(15_000..30_000);
        std::net::TcpListener::bind(("127.0.0.1", port)).ok()?.local_addr().ok()
    };
    (0..100).find_map(bind).expect("a free port")
}

/// Stops a process and all below it; returns them.
fn stop(pid: u32) -> Vec<u32> {
    let mut stopped = vec![pid];
    signal(&stopped, Signal::STOP);
    // By now it starts no others.
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = |of: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{of}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    };
    let children: Vec<u32> = pids.filter(|child| parent(*child) == Some(pid)).collect();
    signal(&children, Signal::STOP);
    stopped.extend(children);
    stopped
}

fn signal(pids: &[u32], signal: Signal) {
    for pid in pids {
        let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw).expect("a process");
        // It may have ended.
        kill_process(pid, signal).ok();
    }
}
