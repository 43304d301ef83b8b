//! The data folder: its lock, and the file that remembers ports and passwords.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rand::distr::{Alphanumeric, SampleString as _};
use tokio::sync::Mutex;
use tokio::time::sleep;

use super::provision::Program;
use super::{Addresses, Which};
use crate::credentials::Credentials;

/// Away from 4222, 5432 and 6379, and below the ports that the system gives to outgoing connections:
/// there, a client that tries to come back to a killed server could take its port, or meet itself.
const PORTS: Range<u16> = 15_000..30_000;

/// A data folder that is ours alone until this is dropped.
pub(super) struct Home {
    pub dir: PathBuf,
    run: Mutex<Addresses>,
    credentials: Credentials,
    _lock: File,
}

impl Home {
    /// Takes the folder, which is made if it is missing.
    pub async fn open(dir: &Path) -> Result<Self> {
        let of = || format!("data folder {}", dir.display());
        make_private_folder(dir).with_context(of)?;
        let dir = dir.canonicalize().with_context(of)?;
        let lock = lock(&dir).await?;
        make_private_folder(&dir.join("log")).with_context(of)?;
        let file = dir.join("run.json");
        let run = if file.exists() {
            let text = fs::read(&file).with_context(of)?;
            serde_json::from_slice(&text)
                .with_context(|| format!("{} is damaged", file.display()))?
        } else {
            if !folders(&dir, &["pg"]).is_empty() {
                bail!("{} is missing: it has the passwords of the data beside it", file.display());
            }
            Addresses::new()
        };
        let credentials = Credentials::open(&dir.join("credentials"))?;
        let home = Self { dir, run: Mutex::new(run), credentials, _lock: lock };
        home.save(&*home.run.lock().await)?;
        Ok(home)
    }

    pub async fn addresses(&self) -> Addresses {
        let credentials = self.credentials.folder().to_owned();
        Addresses { credentials, ..self.run.lock().await.clone() }
    }

    /// The port of a server: the one it had, or if that is taken and the server may move, a new one.
    pub async fn port(&self, which: Which, may_move: bool) -> Result<u16> {
        let mut run = self.run.lock().await;
        let url = run.url(which);
        let old = url.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0);
        let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if !may_move || PORTS.contains(&old) && free(old) {
            return Ok(old);
        }
        let port = (0..1_000).map(|_| rand::random_range(PORTS)).find(|port| free(*port));
        let port = port.with_context(|| format!("no free port among {PORTS:?}"))?;
        url.truncate(url.len() - url.rsplit(':').next().map_or(0, str::len));
        url.push_str(&port.to_string());
        self.save(&run)?;
        Ok(port)
    }

    fn save(&self, run: &Addresses) -> Result<()> {
        write_secret(&self.dir.join("run.json"), &serde_json::to_string_pretty(run)?)
    }

    pub fn log(&self, which: Which) -> PathBuf {
        self.dir.join("log").join(which.name()).with_extension("log")
    }

    /// The folder for a server's data, such as `pg18`. Data that another major version wrote are never
    /// passed over in silence.
    pub fn folder(&self, program: &Program, siblings: &[&str]) -> Result<PathBuf> {
        let wanted = format!("{}{}", program.folder, program.version.0);
        if let Some(other) = folders(&self.dir, siblings).into_iter().find(|name| *name != wanted) {
            bail!(
                "the data in {} are from another version than {}, which would use {wanted}: \
                 provide the version that wrote them (MILLRACE_NATS_SERVER, MILLRACE_POSTGRES_BIN, \
                 MILLRACE_REDIS_SERVER), or choose another data folder",
                self.dir.join(other).display(),
                program.path.display(),
            );
        }
        Ok(self.dir.join(wanted))
    }
}

impl Addresses {
    fn new() -> Self {
        let secret = || Alphanumeric.sample_string(&mut rand::rng(), 32);
        Self {
            nats_url: "nats://127.0.0.1:0".to_owned(),
            nats_user: "millrace".to_owned(),
            nats_password: secret(),
            postgres_url: "postgres://127.0.0.1:0".to_owned(),
            postgres_user: "millrace".to_owned(),
            postgres_password: secret(),
            redis_url: "redis://127.0.0.1:0".to_owned(),
            redis_password: secret(),
            credentials: PathBuf::new(),
        }
    }

    fn url(&mut self, which: Which) -> &mut String {
        match which {
            Which::Nats => &mut self.nats_url,
            Which::Postgres => &mut self.postgres_url,
            Which::Redis => &mut self.redis_url,
        }
    }
}

async fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let mut options = OpenOptions::new();
    let open = options.read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.with_context(|| path.display().to_string())?;
    // One that was just killed needs a moment to let go.
    for _ in 0..20 {
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())?;
                return Ok(file);
            }
            Err(TryLockError::WouldBlock) => sleep(Duration::from_millis(50)).await,
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("{} cannot be locked", path.display()));
            }
        }
    }
    let holder = fs::read_to_string(&path).unwrap_or_default();
    let (holder, dir) = (holder.trim(), dir.display());
    bail!("process {holder} uses the data folder {dir}: stop it, or choose another folder");
}

/// The data folders of a kind, such as `pg17` and `pg18` for `pg`.
fn folders(dir: &Path, kinds: &[&str]) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let versioned = |name: &str, kind: &str| {
        name.strip_prefix(kind)
            .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    names.filter(|name| kinds.iter().any(|kind| versioned(name, kind))).collect()
}

pub(super) fn make_private_folder(dir: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Writes a file that only we can read, whole or not at all.
pub(super) fn write_secret(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let new = path.with_extension("new");
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_data_folder_is_used_by_one_at_a_time_and_keeps_its_ports_and_passwords() {
        let dir = std::env::temp_dir().join(format!("millrace-home-{}", std::process::id()));
        let home = Home::open(&dir).await.unwrap();
        let port = home.port(Which::Nats, true).await.unwrap();
        let before = home.addresses().await;
        let refusal = Home::open(&dir).await.err().unwrap().to_string();
        assert!(refusal.contains(&std::process::id().to_string()), "{refusal}");
        drop(home);

        let home = Home::open(&dir).await.unwrap();
        assert_eq!(home.port(Which::Nats, true).await.unwrap(), port);
        assert_eq!(home.addresses().await.nats_password, before.nats_password);
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_ne!(home.port(Which::Nats, true).await.unwrap(), port);
        drop(taken);
        fs::remove_dir_all(&dir).unwrap();
    }
}
