//! The program as a process of its own, as users start it.

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use millrace_workers::WorkerConfig;
use rustix::process::{Pid, Signal};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::harness::eventually;

/// How long the program may take to end after it was asked to.
const END: Duration = Duration::from_secs(20);

/// A running program. It is killed when this is dropped, so that a failed test leaves nothing.
pub struct Process {
    child: Child,
    output: PathBuf,
    errors: PathBuf,
}

/// What a program that has ended left behind.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub output: String,
    /// What it wrote to standard error.
    pub errors: String,
}

/// An empty folder of this run; the harness removes it in a later run.
pub fn folder(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let run = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("runs");
    let folder = run.join(std::process::id().to_string()).join(format!("{name}-{number}"));
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.expect("a folder of the test's own");
    folder
}

/// The settings with which the program reaches a system, as environment variables.
pub fn settings(config: &WorkerConfig) -> Vec<(&'static str, String)> {
    let file = |path: &Option<PathBuf>| path.as_ref().map(|it| it.display().to_string());
    let stripe = config.gateway.stripe_key.as_ref();
    let settings = [
        ("MILLRACE_NAMESPACE", Some(config.nats.namespace.clone())),
        ("MILLRACE_NATS_URL", Some(config.nats.nats_url.join(","))),
        ("MILLRACE_NATS_USER", config.nats.nats_user.clone()),
        ("MILLRACE_NATS_PASSWORD_FILE", file(&config.nats.nats_password_file)),
        ("MILLRACE_POSTGRES_URL", Some(config.postgres.postgres_url.clone())),
        ("MILLRACE_POSTGRES_PASSWORD_FILE", file(&config.postgres.postgres_password_file)),
        ("MILLRACE_PAYMENT_TIMEOUT", Some(config.payment_timeout.to_string())),
        ("MILLRACE_REDIS_URL", Some(config.redis.redis_url.clone())),
        ("MILLRACE_REDIS_PASSWORD_FILE", file(&config.redis.redis_password_file)),
        ("MILLRACE_NATS_CA_FILE", file(&config.nats.nats_ca_file)),
        ("MILLRACE_POSTGRES_CA_FILE", file(&config.postgres.postgres_ca_file)),
        ("MILLRACE_REDIS_CA_FILE", file(&config.redis.redis_ca_file)),
        ("MILLRACE_GATEWAY_TIMEOUT", Some(config.gateway.gateway_timeout.to_string())),
        ("MILLRACE_GATEWAY", stripe.map(|_| "stripe".to_owned())),
        ("MILLRACE_STRIPE_KEY", stripe.map(|key| key.reveal().to_owned())),
        ("MILLRACE_STRIPE_URL", stripe.map(|_| config.gateway.stripe_url.to_string())),
    ];
    settings.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

impl Process {
    /// Starts the program with these arguments and settings, and none of the settings that
    /// whoever runs the tests may have.
    pub fn start<S: AsRef<str>>(arguments: &[S], settings: &[(&str, String)]) -> Self {
        Self::of(env!("CARGO_BIN_EXE_millrace-under-test"), arguments, settings)
    }

    /// As [`Process::start`], for the program at a path: one of another version.
    pub fn of<S: AsRef<str>>(program: &str, arguments: &[S], settings: &[(&str, String)]) -> Self {
        let folder = folder("process");
        let (output, errors) = (folder.join("output"), folder.join("errors"));
        let mut command = Command::new(program);
        command.args(arguments.iter().map(AsRef::as_ref)).current_dir(&folder);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            // Those of the servers' programs hold for the harness as well.
            let servers =
                ["MILLRACE_NATS_SERVER", "MILLRACE_POSTGRES_BIN", "MILLRACE_REDIS_SERVER"];
            if name.starts_with("MILLRACE_") && !servers.contains(&&*name) {
                command.env_remove(&*name);
            }
        }
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(File::create(&output).expect("a file"));
        command.stderr(File::create(&errors).expect("a file"));
        Self { child: command.spawn().expect("the program starts"), output, errors }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// What it has written to standard output.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.output).expect("text")
    }

    /// What it has written to standard error.
    pub fn errors(&self) -> String {
        fs::read_to_string(&self.errors).expect("text")
    }

    /// Waits until it has written `text` to standard output or standard error.
    pub async fn says(&mut self, text: &str) {
        eventually(&format!("{text:?} is said"), async || {
            let said = format!("{}{}", self.output(), self.errors());
            if said.contains(text) {
                return Some(());
            }
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none(), "it ended ({ended:?}) before it said {text:?}: {said}");
            None
        })
        .await;
    }

    /// Waits until an api says where it listens: `http://127.0.0.1:PORT`.
    pub async fn http(&mut self) -> String {
        self.address("the api answers").await
    }

    /// Waits until it says something with an address of this machine: `http://127.0.0.1:PORT`.
    pub async fn address(&mut self, text: &str) -> String {
        self.says(text).await;
        let errors = self.errors();
        let line = errors.lines().find(|line| line.contains(text));
        let port = line.and_then(|line| line.split("127.0.0.1:").nth(1)).expect("an address");
        let port: String = port.chars().take_while(char::is_ascii_digit).collect();
        format!("http://127.0.0.1:{port}")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        rustix::process::kill_process(pid.expect("it runs"), signal).expect("the signal is sent");
    }

    /// Waits until it ends by itself.
    pub async fn ended(mut self) -> Ended {
        let status: ExitStatus = timeout(Duration::from_mins(2), self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("it goes on: {}{}", self.output(), self.errors()))
            .expect("a child");
        Ended { code: status.code(), output: self.output(), errors: self.errors() }
    }

    /// Sends it a signal, and waits until it has ended for it.
    pub async fn end(self, signal: Signal) -> Ended {
        self.signal(signal);
        let (output, errors) = (self.output.clone(), self.errors.clone());
        timeout(END, self.ended()).await.unwrap_or_else(|_| {
            let said = [output, errors].map(|file| fs::read_to_string(file).unwrap_or_default());
            panic!("it did not end within {END:?} after {signal:?}: {}", said.concat())
        })
    }
}

/// Runs the program to its end.
pub async fn run<S: AsRef<str>>(arguments: &[S], settings: &[(&str, String)]) -> Ended {
    Process::start(arguments, settings).ended().await
}

/// The processes that have something in a folder: it is on their command line, or they work in it.
pub fn processes_of(folder: &Path) -> Vec<String> {
    let name = folder.to_str().expect("a path in UTF-8");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let works_in_it =
            fs::read_link(entry.path().join("cwd")).is_ok_and(|at| at.starts_with(folder));
        let ours = !line.is_empty() && (line.contains(name) || works_in_it);
        ours.then(|| format!("{}: {line}", entry.file_name().to_string_lossy()))
    });
    found.collect()
}
