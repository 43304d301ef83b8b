//! Valkey or Redis: its configuration, and whether it answers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::task::spawn_blocking;

use super::home::{Home, make_private_folder, write_secret};
use super::process::{Launch, User, quoted};
use super::provision::Program;
use super::{Addresses, Which};
use crate::credentials::{Credentials, redis_users};

pub(super) fn launch(
    home: &Home,
    program: &Program,
    port: u16,
    addresses: &Addresses,
    durable: bool,
    namespaces: &[String],
) -> Result<Launch> {
    let folder = home.folder(program, &["valkey", "redis"])?;
    make_private_folder(&folder)?;
    let config = folder.join("server.conf");
    let users = redis_users(&Credentials::at(&addresses.credentials), namespaces)?;
    // The log is rewritten by a second process, which takes a processor from everybody meanwhile:
    // seldom, and without compression, which is three quarters of that work.
    // The command line stays as it is, so that a left-over process is known by it.
    let text = format!(
        "bind 127.0.0.1\nport {port}\nprotected-mode yes\nrequirepass {password}\ndir {folder}\n\
         daemonize no\nset-proc-title no\nmaxmemory-policy noeviction\n\
         save \"\"\nappendonly yes\nappendfsync {sync}\n\
         auto-aof-rewrite-min-size 256mb\nrdbcompression no\n{users}",
        password = quoted(&addresses.redis_password),
        folder = quoted(&folder),
        sync = if durable { "everysec" } else { "no" },
    );
    write_secret(&config, &text)?;
    let mark = config.to_string_lossy().into_owned();
    Ok(Launch {
        program: program.path.clone(),
        arguments: vec![mark.clone()],
        environment: &[],
        timer_slack: None,
        user: User::Same,
        log: home.log(Which::Redis),
        mark,
    })
}

/// Whether a server that takes our password answers PING: while it loads its data it does not.
pub(super) async fn answers(addresses: &Addresses) -> Result<()> {
    let address: SocketAddr =
        addresses.redis_url.strip_prefix("redis://").context("no redis:// address")?.parse()?;
    let request = format!("AUTH {}\r\nPING\r\n", addresses.redis_password);
    let limit = Duration::from_secs(1);
    let ask = move || -> std::io::Result<[u8; 12]> {
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(request.as_bytes())?;
        // As long as the answer that we want; every error is longer.
        let mut reply = [0; 12];
        stream.read_exact(&mut reply)?;
        Ok(reply)
    };
    let reply = spawn_blocking(ask).await??;
    ensure!(reply == *b"+OK\r\n+PONG\r\n", "{}", String::from_utf8_lossy(&reply));
    Ok(())
}
