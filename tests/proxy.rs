//! A TCP line between a process and a server that a test can cut, slow down, stop or leave
//! half-open.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// How a line carries bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// At once.
    Open,
    /// So much later, in both directions.
    Slow(Duration),
    /// Not at all; what is on its way arrives when the line opens again.
    Stopped,
    /// New connections are closed at once.
    Refused,
}

#[derive(Debug, Clone, Copy)]
struct State {
    mode: Mode,
    /// Connections from before the last cut are closed.
    cuts: u64,
    /// Connections from before it are half-open.
    silenced: u64,
}

/// A line to one server. It ends when this is dropped.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    state: watch::Sender<State>,
    task: AbortHandle,
}

impl Line {
    /// Opens a line to the server at `target`.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (state, watched) = watch::channel(State { mode: Mode::Open, cuts: 0, silenced: 0 });
        let task = tokio::spawn(async move {
            // They end with this task.
            let mut connections = JoinSet::new();
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                connections.spawn(carry(client, target, watched.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, state, task: task.abort_handle() }
    }

    /// Where a client connects to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on bytes are carried so.
    pub fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
    }

    /// Closes every connection that there is.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Leaves every connection that there is half-open: the server sees it closed, the client
    /// sees nothing and never gets another byte.
    pub fn silence(&self) {
        self.state.send_modify(|state| state.silenced += 1);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut client: TcpStream, target: SocketAddr, mut watched: watch::Receiver<State>) {
    let born = *watched.borrow();
    if born.mode == Mode::Refused {
        return;
    }
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let silenced = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let mut end = watched.clone();
        tokio::select! {
            () = pump(from_client, to_server, watched.clone()) => false,
            () = pump(from_server, to_client, watched.clone()) => false,
            _ = end.wait_for(|state| state.cuts > born.cuts) => false,
            _ = watched.wait_for(|state| state.silenced > born.silenced) => true,
        }
    };
    drop(server);
    if silenced {
        let mut end = watched;
        tokio::select! {
            () = swallow(client) => {}
            _ = end.wait_for(|state| state.cuts > born.cuts) => {}
        }
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut watched: watch::Receiver<State>,
) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let count = match from.read(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        let mode = watched.borrow().mode;
        match mode {
            Mode::Open | Mode::Refused => {}
            Mode::Slow(delay) => tokio::time::sleep(delay).await,
            Mode::Stopped => {
                if watched.wait_for(|state| state.mode != Mode::Stopped).await.is_err() {
                    return;
                }
            }
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

async fn swallow(mut client: TcpStream) {
    let mut bytes = vec![0; 64 * 1024];
    while client.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
}

/// A server that sends back what it gets, behind a line.
async fn echo() -> Line {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
            });
        }
    });
    Line::to(address).await
}

/// Sends a byte; tells whether it came back, or that the connection was closed.
async fn ping(stream: &mut TcpStream, within: Duration) -> Result<bool, ()> {
    stream.write_all(b"x").await.map_err(|_| ())?;
    match tokio::time::timeout(within, stream.read(&mut [0])).await {
        Err(_) => Ok(false),
        Ok(Ok(1)) => Ok(true),
        Ok(_) => Err(()),
    }
}

#[tokio::test]
async fn a_line_is_cut_stopped_slowed_and_left_half_open() {
    let (line, soon) = (echo().await, Duration::from_millis(300));
    let connect = async || TcpStream::connect(line.address()).await.expect("a connection");
    let mut stream = connect().await;
    assert_eq!(ping(&mut stream, soon).await, Ok(true));

    line.set(Mode::Slow(Duration::from_millis(50)));
    let start = tokio::time::Instant::now();
    assert_eq!(ping(&mut stream, soon).await, Ok(true));
    assert!(start.elapsed() >= Duration::from_millis(100), "there and back");

    line.set(Mode::Stopped);
    assert_eq!(ping(&mut stream, soon).await, Ok(false));
    line.set(Mode::Open);
    assert_eq!(stream.read(&mut [0]).await.expect("what was held"), 1);

    line.silence();
    assert_eq!(ping(&mut stream, soon).await, Ok(false));
    line.set(Mode::Open);
    assert_eq!(ping(&mut stream, soon).await, Ok(false), "it stays silent");
    let mut other = connect().await;
    assert_eq!(ping(&mut other, soon).await, Ok(true));

    line.set(Mode::Refused);
    line.cut();
    assert_eq!(ping(&mut other, soon).await, Err(()));
    assert_eq!(ping(&mut connect().await, soon).await, Err(()));
    line.set(Mode::Open);
    assert_eq!(ping(&mut connect().await, soon).await, Ok(true));
}
