//! Accepts connections, with or without TLS. Handshakes run concurrently, so a slow client does not block others.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::tls::Identity;

/// Maximum number of connections; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1_000;
/// Time limit of a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// A connection, with or without TLS.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for T {}

/// Connections with a finished handshake.
pub(crate) struct Connections {
    ready: mpsc::Receiver<(Box<dyn ByteStream>, SocketAddr)>,
    local: SocketAddr,
}

impl Connections {
    /// Starts to accept connections on tasks of the current runtime.
    pub(crate) fn accept(listener: TcpListener, identity: Option<Identity>) -> io::Result<Connections> {
        let local = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(16);
        tokio::spawn(async move {
            let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
            while let Ok(permit) = permits.clone().acquire_owned().await {
                match listener.accept().await {
                    Ok((stream, peer)) => drop(tokio::spawn(handshake(stream, peer, identity.clone(), sender.clone(), permit))),
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
        Ok(Connections { ready, local })
    }
}

async fn handshake(
    stream: TcpStream,
    peer: SocketAddr,
    identity: Option<Identity>,
    ready: mpsc::Sender<(Box<dyn ByteStream>, SocketAddr)>,
    permit: OwnedSemaphorePermit,
) {
    // Watch events are small; without this, Nagle's algorithm would delay them.
    let _ = stream.set_nodelay(true);
    let stream: Box<dyn ByteStream> = match identity {
        None => Box::new(PermittedStream { stream, _permit: permit }),
        Some(identity) => match tokio::time::timeout(HANDSHAKE_MAX, identity.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Box::new(PermittedStream { stream, _permit: permit }),
            _ => return,
        },
    };
    let _ = ready.send((stream, peer)).await;
}

impl axum::serve::Listener for Connections {
    type Io = Box<dyn ByteStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Box<dyn ByteStream>, SocketAddr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

/// A stream that holds a connection permit.
struct PermittedStream<S> {
    stream: S,
    _permit: OwnedSemaphorePermit,
}

impl<S: AsyncRead + Unpin> AsyncRead for PermittedStream<S> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PermittedStream<S> {
    fn poll_write(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>, buf: &[u8]) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
