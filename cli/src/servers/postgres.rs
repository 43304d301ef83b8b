//! `PostgreSQL`: a cluster made at the first start, run by a user that it accepts.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::geteuid;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _};

use super::home::{Home, make_private_folder, write_secret};
use super::process::{Launch, Spawner, User, hint, namespaces_work};
use super::provision::{self, Program};
use super::{Addresses, Which};

const NOBODY: User = User::Other { uid: 65534, gid: 65534 };
/// For root on a machine without user namespaces, when the data folder is hidden from other users.
const ELSEWHERE: &str = "/var/lib/millrace";

/// A cluster's folder, the programs for it, and the user that they run as.
struct Cluster {
    folder: PathBuf,
    bin: PathBuf,
    user: User,
}

pub(super) async fn launch(
    home: &Home,
    spawner: &Spawner,
    program: &Program,
    port: u16,
    addresses: &Addresses,
    durable: bool,
) -> Result<Launch> {
    let cluster = Cluster::choose(home, program).await?;
    if !cluster.folder.exists() {
        cluster.create(home, spawner, program, addresses, durable).await?;
    }
    let settings = [
        format!("port={port}"),
        "listen_addresses=127.0.0.1".to_owned(),
        // The default folder for sockets is closed to normal users.
        "unix_socket_directories=".to_owned(),
        format!("fsync={}", if durable { "on" } else { "off" }),
        "synchronous_commit=on".to_owned(),
        "max_connections=200".to_owned(),
        // The keys of orders are random. With a million of them the indexes are larger than the default
        // of 128 MB; and after each checkpoint every page that is changed is written whole once more: with
        // the default of 1 GB under load every ten seconds, nine tenths of the log.
        "shared_buffers=512MB".to_owned(),
        "max_wal_size=4GB".to_owned(),
        "checkpoint_timeout=15min".to_owned(),
        "timezone=UTC".to_owned(),
    ];
    let mark = cluster.folder.to_string_lossy().into_owned();
    let options = settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]);
    Ok(Launch {
        program: cluster.bin.join("postgres"),
        arguments: ["-D".to_owned(), mark.clone()].into_iter().chain(options).collect(),
        environment: &[],
        timer_slack: None,
        user: cluster.user,
        log: home.log(Which::Postgres),
        mark,
    })
}

/// Whether it is our server that answers a query.
pub(super) async fn answers(addresses: &Addresses, folder: &str) -> Result<()> {
    let address =
        addresses.postgres_url.strip_prefix("postgres://").context("no postgres:// address")?;
    let (host, port) = address.split_once(':').context("no port")?;
    let options = PgConnectOptions::new_without_pgpass().host(host).port(port.parse()?);
    let options = options.username(&addresses.postgres_user).password(&addresses.postgres_password);
    let options =
        options.database("postgres").ssl_mode(PgSslMode::Disable).disable_statement_logging();
    let mut connection = options.connect().await?;
    let query = sqlx::query_scalar("select current_setting('data_directory')");
    let answer: String = query.fetch_one(&mut connection).await?;
    connection.close().await?;
    ensure!(answer == folder, "another server has the port");
    Ok(())
}

fn folder_of(program: &Path) -> PathBuf {
    program.parent().unwrap_or(Path::new("/")).to_owned()
}

impl Cluster {
    /// `PostgreSQL` refuses root. Root therefore runs it in a user namespace, or where that is forbidden (as in
    /// most containers) as nobody; a cluster that is there already is run by its owner.
    async fn choose(home: &Home, program: &Program) -> Result<Self> {
        let bin = folder_of(&program.path);
        let folder = home.folder(program, &["pg"])?;
        if !geteuid().is_root() {
            return Ok(Self { folder, bin, user: User::Same });
        }
        let name = home.dir.to_string_lossy().replace('/', "%");
        let elsewhere = Path::new(ELSEWHERE).join(name.trim_start_matches('%'));
        let elsewhere = elsewhere.join(format!("pg{}", program.version.0));
        let existing = [&elsewhere, &folder].into_iter().find(|folder| folder.exists()).cloned();
        let folder = existing.clone().unwrap_or(folder);
        let owner = existing.map(fs::metadata).transpose()?.map(|owner| (owner.uid(), owner.gid()));
        let user = match owner {
            Some((uid, gid)) if uid != 0 => User::Other { uid, gid },
            _ if namespaces_work().await => {
                return Ok(Self { folder, bin, user: User::Namespace });
            }
            _ => NOBODY,
        };
        // What is secret in it is closed by itself.
        fs::set_permissions(&home.dir, fs::Permissions::from_mode(0o711))?;
        let cluster = Self { folder, bin, user };
        match (cluster.reaches(&cluster.folder), owner) {
            (true, Some((0, _))) => cluster.give(&cluster.folder, true)?,
            (true, _) => {}
            (false, None) => {
                return Self { folder: elsewhere, ..cluster }.with_bin_in_reach().await;
            }
            (false, Some(_)) => bail!(
                "PostgreSQL refuses to run as root, user namespaces are forbidden here, and no other user can \
                 enter {}: move the data folder to where all can, or run as the user who made it",
                cluster.folder.display()
            ),
        }
        cluster.with_bin_in_reach().await
    }

    /// Whether our user can enter all the folders above a path.
    fn reaches(&self, path: &Path) -> bool {
        let User::Other { uid, .. } = self.user else {
            return true;
        };
        path.ancestors().skip(1).all(|folder| {
            fs::metadata(folder)
                .is_ok_and(|of| of.mode() & 0o001 != 0 || of.uid() == uid && of.mode() & 0o100 != 0)
        })
    }

    /// Programs that our user cannot reach are fetched again, to where it can.
    async fn with_bin_in_reach(mut self) -> Result<Self> {
        if !self.reaches(&self.bin.join("postgres")) {
            let program =
                provision::find(Which::Postgres, &Path::new(ELSEWHERE).join("servers")).await?;
            self.bin = folder_of(&program.path);
            ensure!(
                self.reaches(&program.path),
                "{} is closed to PostgreSQL's user",
                self.bin.display()
            );
        }
        Ok(self)
    }

    fn give(&self, path: &Path, all_below: bool) -> Result<()> {
        let User::Other { uid, gid } = self.user else {
            return Ok(());
        };
        chown(path, Some(uid), Some(gid)).with_context(|| path.display().to_string())?;
        if all_below && path.is_dir() {
            for entry in fs::read_dir(path)? {
                self.give(&entry?.path(), true)?;
            }
        }
        Ok(())
    }

    /// Makes the cluster beside its final place, and moves it there when it is whole.
    async fn create(
        &self,
        home: &Home,
        spawner: &Spawner,
        program: &Program,
        addresses: &Addresses,
        durable: bool,
    ) -> Result<()> {
        let above = self.folder.parent().context("a data folder has no parent")?;
        fs::create_dir_all(above)?;
        let new = self.folder.with_extension("new");
        let _ = fs::remove_dir_all(&new);
        make_private_folder(&new)?;
        let password = above.join("initdb.password");
        write_secret(&password, &addresses.postgres_password)?;
        self.give(&new, false)?;
        self.give(&password, false)?;
        let mut arguments = vec![
            format!("--pgdata={}", new.display()),
            format!("--username={}", addresses.postgres_user),
            format!("--pwfile={}", password.display()),
            "--auth=scram-sha-256".to_owned(),
            "--encoding=UTF8".to_owned(),
            "--data-checksums".to_owned(),
        ];
        // With plain C, lower('Ä') and ILIKE would fail; before 17 the builtin provider is not there.
        let builtin = ["--locale-provider=builtin", "--locale=C", "--builtin-locale=C.UTF-8"]
            .map(str::to_owned);
        arguments.extend(if program.version.0 >= 17 {
            builtin.to_vec()
        } else {
            vec!["--locale=C.UTF-8".to_owned()]
        });
        arguments.extend((!durable).then(|| "--no-sync".to_owned()));
        let mark = new.to_string_lossy().into_owned();
        let initdb = self.bin.join("initdb");
        let log = home.log(Which::Postgres);
        let launch = Launch {
            program: initdb,
            arguments,
            environment: &[],
            timer_slack: None,
            user: self.user,
            log,
            mark,
        };
        let mut running = spawner.spawn(&launch).await?;
        let status = running.child.as_mut().context("initdb has no process")?.wait().await?;
        let _ = fs::remove_file(&password);
        let said = running.log.tail();
        ensure!(status.success(), "initdb failed{} ({status}):\n{said}", hint(&said));
        fs::rename(&new, &self.folder).with_context(|| self.folder.display().to_string())
    }
}

/// After a crash the old process id may be another program's by now, which `PostgreSQL` would take for itself
/// still running. To be called when none of its processes is left: the file also guards against those.
pub(super) fn drop_stale_pid_file(folder: &Path) -> Result<()> {
    let file = folder.join("postmaster.pid");
    let text = fs::read_to_string(&file).unwrap_or_default();
    let pid: Option<u32> = text.lines().next().and_then(|line| line.trim().parse().ok());
    if pid.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
        fs::remove_file(&file).with_context(|| file.display().to_string())?;
    }
    Ok(())
}
