//! Accepting connections: a bounded number, and none that is held for nothing.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// What the kernel keeps for a client that does not take it, in bytes; it takes twice as much.
const SEND_BUFFER: usize = 64 * 1024;

/// A TCP listener that takes no more connections than it has slots; further ones wait in the
/// kernel's queue.
#[derive(Debug)]
pub struct Bounded {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    patience: Duration,
    stalled: Duration,
}

impl Bounded {
    /// At most `most` connections. One on which nothing is answered for `patience` is closed: it
    /// idles, or its client sends too slowly. So is one whose client takes nothing of what is
    /// answered for the time `stalled`.
    pub fn new(listener: TcpListener, most: usize, patience: Duration, stalled: Duration) -> Self {
        Self { listener, slots: Arc::new(Semaphore::new(most)), patience, stalled }
    }

    fn prepare(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let socket = SockRef::from(stream);
        socket.set_send_buffer_size(SEND_BUFFER)?;
        // So that the kernel gives up who has vanished without a word.
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(self.stalled))?;
        Ok(())
    }
}

/// Lets the process open so many files, if it may; how many it may open now.
pub fn allow_files(files: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::try_from(files).ok();
    if limit.current.is_none() || limit.current >= wanted {
        return files;
    }
    let current = match limit.maximum {
        Some(maximum) => wanted.map(|wanted| wanted.min(maximum)),
        None => wanted,
    };
    let allowed = match setrlimit(Resource::Nofile, Rlimit { current, ..limit }) {
        Ok(()) => current,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays as it is");
            limit.current
        }
    };
    allowed.and_then(|allowed| usize::try_from(allowed).ok()).unwrap_or(files)
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            // The semaphore is never closed.
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { continue };
            let (stream, address) = Listener::accept(&mut self.listener).await;
            if let Err(error) = self.prepare(&stream) {
                tracing::debug!(%error, "a connection ended while it was accepted");
                continue;
            }
            let deadline = Box::pin(sleep(self.patience));
            let connection = Connection {
                stream,
                deadline,
                patience: self.patience,
                stalled: self.stalled,
                blocked: false,
                _slot: slot,
            };
            return (connection, address);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when nothing has been answered on it for too long.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    patience: Duration,
    stalled: Duration,
    /// Whether the last write had to wait.
    blocked: bool,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    /// Reads and writes that have to wait do so until the deadline only.
    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.deadline.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn written(
        &mut self,
        context: &mut Context<'_>,
        poll: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match poll {
            Poll::Pending => {
                if !std::mem::replace(&mut self.blocked, true) {
                    self.deadline.as_mut().reset(Instant::now() + self.stalled);
                }
                self.wait(context)
            }
            Poll::Ready(result) => {
                self.blocked = false;
                self.deadline.as_mut().reset(Instant::now() + self.patience);
                Poll::Ready(result)
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Pending => self.wait(context),
            ready @ Poll::Ready(_) => ready,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(context, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.written(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const FAR: Duration = Duration::from_mins(5);

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_cut_off_and_one_that_takes_a_little_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stalled = Duration::from_millis(400);
        let mut bounded = Bounded::new(listener, 1, FAR, stalled);
        let mut client = TcpStream::connect(bounded.local_addr().unwrap()).await.unwrap();
        let (mut connection, _) = bounded.accept().await;
        let sending = tokio::spawn(async move {
            let bytes = vec![7; 64 * 1024];
            loop {
                if let Err(error) = connection.write_all(&bytes).await {
                    return error.kind();
                }
            }
        });
        let mut bytes = vec![0; 1024 * 1024];
        for _ in 0..10 {
            sleep(stalled / 4).await;
            assert!(client.read(&mut bytes).await.unwrap() > 0);
        }
        assert!(!sending.is_finished());
        assert_eq!(sending.await.unwrap(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_connection_without_answers_is_closed_however_busily_it_sends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut bounded = Bounded::new(listener, 1, Duration::from_millis(200), FAR);
        let mut client = TcpStream::connect(bounded.local_addr().unwrap()).await.unwrap();
        let (mut connection, _) = bounded.accept().await;
        let sending = tokio::spawn(async move {
            while client.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(10)).await;
            }
        });
        let mut bytes = Vec::new();
        let error = connection.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(!bytes.is_empty());
        drop(connection);
        sending.await.unwrap();
    }
}
