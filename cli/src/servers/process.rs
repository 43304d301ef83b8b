//! Child processes that end with us.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
#[cfg(target_os = "linux")]
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
#[cfg(target_os = "linux")]
use rustix::thread::set_current_timer_slack;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::sleep;

/// A log larger than this is set aside when its server starts.
const LOG_LIMIT: u64 = 16 << 20;

/// A command line to run.
pub(crate) struct Launch {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// What it finds in its environment, unless it is set there already.
    pub environment: &'static [(&'static str, &'static str)],
    /// How much later than it asks for its timers may wake it; the system's usual, if it is none.
    pub timer_slack: Option<Duration>,
    pub user: User,
    pub log: PathBuf,
    /// The argument by which the process is known as this data folder's.
    pub mark: String,
}

/// Who a process runs as.
#[derive(Clone, Copy, Debug)]
pub(crate) enum User {
    Same,
    /// Root outside, nobody inside: `PostgreSQL` refuses root, yet the files stay root's.
    Namespace,
    Other {
        uid: u32,
        gid: u32,
    },
}

pub(crate) struct Running {
    /// None once it was stopped or killed.
    pub child: Option<Child>,
    pub log: Log,
}

/// The part of a log file that one process wrote.
pub(crate) struct Log {
    pub path: PathBuf,
    start: u64,
}

/// Starts processes from a thread of its own: Linux sends the signal of a parent's death when the *thread*
/// that started the child ends, and the runtime's threads come and go.
pub(crate) struct Spawner {
    requests: mpsc::Sender<Request>,
    tied: bool,
}

struct Request {
    command: Command,
    timer_slack: Option<Duration>,
    reply: oneshot::Sender<io::Result<Child>>,
}

impl Spawner {
    pub async fn new() -> Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        let runtime = Handle::current();
        let work = move || {
            let _entered = runtime.enter();
            for mut request in inbox {
                set_timer_slack(request.timer_slack);
                // Nobody waits for the reply any more: the child is dropped, and so killed.
                let _ = request.reply.send(request.command.spawn());
            }
        };
        thread::Builder::new().name("servers".to_owned()).spawn(work)?;
        // Elsewhere than on Linux, and with other makes of setpriv, only the next start ends what is left.
        let tied = works("setpriv", &["--pdeathsig", "KILL", "--", "true"]).await;
        Ok(Self { requests, tied })
    }

    pub async fn spawn(&self, launch: &Launch) -> Result<Running> {
        let failed = || format!("{} cannot be run", launch.program.display());
        let (log, output) = Log::open(&launch.log)?;
        let mut words: Vec<String> = Vec::new();
        if matches!(launch.user, User::Namespace) {
            words.extend(NAMESPACE.map(str::to_owned));
        }
        // After the change of user, which would undo it. We may have ended before that, so look.
        if self.tied {
            words.extend(["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c"].map(str::to_owned));
            words.push("test \"$PPID\" = \"$0\" && exec \"$@\"".to_owned());
            words.push(std::process::id().to_string());
        }
        words.push(launch.program.to_str().with_context(failed)?.to_owned());
        words.extend(launch.arguments.iter().cloned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir("/").env("LC_ALL", "C");
        let missing = launch.environment.iter().filter(|(name, _)| env::var_os(name).is_none());
        command.envs(missing.copied());
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // A Ctrl-C at the terminal must not reach the servers before those who use them are done.
        command.process_group(0).kill_on_drop(true);
        if let User::Other { uid, gid } = launch.user {
            command.uid(uid).gid(gid);
        }
        let (reply, child) = oneshot::channel();
        let request = Request { command, timer_slack: launch.timer_slack, reply };
        self.requests.send(request).ok().with_context(failed)?;
        let child = child.await?.with_context(failed)?;
        Ok(Running { child: Some(child), log })
    }
}

/// Sets the slack of this thread's timers: processes that it starts begin with the same (prctl(2)).
#[cfg(target_os = "linux")]
fn set_timer_slack(slack: Option<Duration>) {
    let nanoseconds = slack.and_then(|it| NonZeroU64::new(u64::try_from(it.as_nanos()).ok()?));
    if let Err(error) = set_current_timer_slack(nanoseconds) {
        tracing::debug!(%error, "the slack of timers stays as it is");
    }
}

/// Elsewhere timers have none that could be set.
#[cfg(not(target_os = "linux"))]
fn set_timer_slack(_slack: Option<Duration>) {}

const NAMESPACE: [&str; 5] = ["unshare", "--user", "--map-user=65534", "--map-group=65534", "--"];

/// Whether this machine lets us run a process as [`User::Namespace`].
pub(super) async fn namespaces_work() -> bool {
    let words: Vec<&str> = NAMESPACE[1..].iter().copied().chain(["true"]).collect();
    works(NAMESPACE[0], &words).await
}

async fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

impl Running {
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.as_mut().map_or(Ok(None), Child::try_wait)
    }
}

impl Log {
    fn open(path: &Path) -> Result<(Self, File)> {
        let context = || path.display().to_string();
        if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_LIMIT) {
            fs::rename(path, path.with_extension("log.old")).with_context(context)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path).with_context(context)?;
        let start = file.metadata()?.len();
        Ok((Self { path: path.to_owned(), start }, file))
    }

    /// The last lines that the process wrote.
    pub fn tail(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            let end = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(self.start.max(end.saturating_sub(1 << 14))))?;
            file.read_to_end(&mut text)
        });
        if let Err(error) = read {
            return error.to_string();
        }
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

/// What a log's last lines ask for.
pub(super) fn hint(log: &str) -> &'static str {
    let known = [
        ("No space left", ": the disk is full"),
        ("Permission denied", ": the data folder may belong to another user"),
        ("permission denied", ": the data folder may belong to another user"),
        ("wrong ownership", ": the data folder belongs to another user"),
        (
            "password authentication failed",
            ": run.json is not the one that these data were made with",
        ),
        (
            "loading shared libraries",
            ": a system library is missing (Debian, Ubuntu: apt install zlib1g)",
        ),
        ("user does not exist", ": the user we run as has no entry in /etc/passwd"),
        ("shared memory segment", ": too little shared memory (in Docker: --shm-size=256m)"),
    ];
    known.iter().find(|(said, _)| log.contains(said)).map_or("", |(_, hint)| hint)
}

/// Ends what an earlier process of ours, that was killed, may have left running.
pub(super) async fn end_leftovers(launch: &Launch) -> Result<()> {
    for _ in 0..500 {
        let left = marked(&launch.program, &launch.mark);
        if left.is_empty() {
            return Ok(());
        }
        for pid in left {
            tracing::warn!(pid, program = %launch.program.display(), "ending a server left by an earlier run");
            signal(Some(pid), Signal::KILL);
        }
        sleep(Duration::from_millis(20)).await;
    }
    let program = launch.program.display();
    bail!("a {program} for {} is left from an earlier run and cannot be ended", launch.mark);
}

pub(crate) fn signal(pid: Option<u32>, signal: Signal) {
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // The one thing that can go wrong is that it has ended already.
        let _ = kill_process(pid, signal);
    }
}

/// The processes that run a program of this name with this argument, and those of `PostgreSQL`'s children
/// that outlive it: they have their task for a command line, and the data folder for a working folder.
fn marked(program: &Path, mark: &str) -> Vec<u32> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    if Path::new("/proc/self/cmdline").exists() {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let ours = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let mut words = line.split('\0');
            let first = words.next().unwrap_or_default();
            let child = first.strip_prefix(&*name).is_some_and(|rest| rest.starts_with(": "));
            let folder = || fs::read_link(format!("/proc/{pid}/cwd"));
            child && folder().is_ok_and(|folder| folder == Path::new(mark))
                || Path::new(first).ends_with(&*name) && words.any(|word| word == mark)
        };
        return pids.filter(ours).collect();
    }
    let output = std::process::Command::new("ps").args(["-axww", "-o", "pid=,command="]).output();
    let list = output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    );
    let ours = list.lines().filter(|line| line.contains(&*name) && line.contains(mark));
    ours.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

/// A word for a configuration file; both servers' take what JSON takes.
pub(super) fn quoted(word: impl AsRef<Path>) -> String {
    serde_json::Value::from(word.as_ref().to_string_lossy()).to_string()
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    /// The slack of timers, in nanoseconds, that a process finds that is started with this one.
    async fn slack_of_child(spawner: &Spawner, timer_slack: Option<Duration>) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let launch = Launch {
            program: "/bin/cat".into(),
            arguments: vec!["/proc/self/timerslack_ns".to_owned()],
            environment: &[],
            timer_slack,
            user: User::Same,
            log: folder.path().join("log"),
            mark: String::new(),
        };
        let mut running = spawner.spawn(&launch).await.unwrap();
        running.child.as_mut().unwrap().wait().await.unwrap();
        running.log.tail().trim().parse().unwrap()
    }

    #[tokio::test]
    async fn the_slack_of_timers_is_that_of_one_process_and_of_no_other() {
        let spawner = Spawner::new().await.unwrap();
        let usual = slack_of_child(&spawner, None).await;
        assert_eq!(slack_of_child(&spawner, Some(Duration::from_millis(10))).await, 10_000_000);
        assert_eq!(slack_of_child(&spawner, None).await, usual);
    }
}
