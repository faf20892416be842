//! A connection's socket that records when the client has read something: the response to a slow reader makes no progress.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::connections::Turns;

/// A client's socket.
pub(super) struct ClientStream {
    socket: TcpStream,
    turns: Turns,
}

impl ClientStream {
    pub(super) fn new(socket: TcpStream, turns: Turns) -> ClientStream {
        ClientStream { socket, turns }
    }

    /// Ends the connection with a reset.
    pub(super) fn reset(self) {
        reset(&self.socket);
    }

    fn moved(&self, written: io::Result<usize>) -> Poll<io::Result<usize>> {
        if matches!(written, Ok(bytes) if bytes > 0) {
            self.turns.renew();
        }
        Poll::Ready(written)
    }
}

/// Makes the kernel drop the connection with a reset when it is closed, so that nothing of a slow client stays in the kernel. On failure it is
/// closed normally.
pub(super) fn reset(socket: &TcpStream) {
    let _ = SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write(cx, bytes));
        self.moved(written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, slices));
        self.moved(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
