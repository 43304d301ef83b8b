//! nats-server: its configuration, and whether `JetStream` answers.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_nats::ConnectOptions;
use async_nats::jetstream;
use millrace_shared::topology::Topology;
use rustix::fs::statvfs;

use super::home::{Home, make_private_folder, write_secret};
use super::process::{Launch, User, quoted};
use super::provision::Program;
use super::{Addresses, Which};
use crate::credentials::{Credentials, nats_users};

/// While the server works, a thread of its runtime asks to be woken every 20 µs, to see whether another
/// waits for the disk: a tenth of all its time on a virtual machine. So seldom it costs nothing, and is
/// soon enough for a disk that hangs.
const TIMER_SLACK: Duration = Duration::from_millis(10);

pub(super) fn launch(
    home: &Home,
    program: &Program,
    port: u16,
    addresses: &Addresses,
    durable: bool,
    namespaces: &[String],
) -> Result<Launch> {
    let folder = home.folder(program, &["nats"])?;
    let store = folder.join("store");
    make_private_folder(&store)?;
    let config = folder.join("nats.conf");
    // The server's own default counts the free space only: a full store would then not open again.
    let space = statvfs(&store)?;
    let limit = (space.f_bavail * space.f_frsize + size(&store)) / 4 * 3;
    let sync = if durable { "sync_interval: always" } else { "" };
    let namespaces: Vec<Topology> =
        namespaces.iter().map(|name| Topology::new(name)).collect::<Result<_>>()?;
    let all = (addresses.nats_user.as_str(), addresses.nats_password.as_str());
    let users = nats_users(&Credentials::at(&addresses.credentials), &namespaces, &[all])?;
    let text = format!(
        "server_name: {name}\nlisten: \"127.0.0.1:{port}\"\nmax_payload: 1048576\n\
         jetstream {{\n  store_dir: {store}\n  max_file_store: {limit}\n  {sync}\n}}\n{users}",
        name = name(&store),
        store = quoted(&store),
    );
    write_secret(&config, &text)?;
    let mark = config.to_string_lossy().into_owned();
    Ok(Launch {
        program: program.path.clone(),
        arguments: vec!["--config".to_owned(), mark.clone()],
        // It keeps every subject in memory, which is millions of small objects with a million orders:
        // it marks them half as often, and takes half as much memory again for it.
        environment: &[("GOGC", "200")],
        timer_slack: Some(TIMER_SLACK),
        user: User::Same,
        log: home.log(Which::Nats),
        mark,
    })
}

/// Whether it is our server that answers (its name says so), and `JetStream` in it.
pub(super) async fn answers(addresses: &Addresses, config: &str) -> Result<()> {
    let options = ConnectOptions::with_user_and_password(
        addresses.nats_user.clone(),
        addresses.nats_password.clone(),
    );
    let options = options.connection_timeout(Duration::from_secs(2));
    let client = options.connect(&addresses.nats_url).await?;
    ensure!(
        client.server_info().server_name == name(Path::new(config)),
        "another server has the port"
    );
    jetstream::new(client).query_account().await.context("JetStream")?;
    Ok(())
}

/// The server's name, by which its data folder is known; it must not have spaces.
fn name(file: &Path) -> String {
    let folder = file.parent().unwrap_or(file).to_string_lossy();
    format!("millrace{}", folder.replace(|c: char| !c.is_ascii_alphanumeric(), "-"))
}

fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
