//! The endpoints: TCP connections that end after an answer or go on, and UDP questions.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::compare::topology::Ends;
use crate::compare::workload::{ENDPOINTS_EACH, TCP_PORT, UDP_PORT, endpoint};
use crate::servers::ServerThread;

/// A TCP request whose answer ends the connection, and one whose answer does not.
pub const LAST: u8 = b'?';
pub const MORE: u8 = b'+';
/// A UDP question.
pub const QUESTION: &[u8] = b"question";
const BACKLOG: u32 = 4_096;

/// Gives the sink's namespace the endpoints' addresses, and serves on all of them.
pub fn start(ends: &Ends) -> Result<ServerThread> {
    let addresses: Vec<_> = (0..ENDPOINTS_EACH).map(|n| endpoint(0, n, 0)).collect();
    for address in &addresses {
        ends.sink.ip(&format!("addr add {address}/32 dev lo"))?;
    }
    ServerThread::start(&ends.sink, || async move {
        for address in addresses {
            let tcp = listen(SocketAddr::new(address.into(), TCP_PORT))?;
            tokio::spawn(async move {
                while let Ok((stream, _)) = tcp.accept().await {
                    tokio::spawn(answer(stream));
                }
            });
            let udp = UdpSocket::bind((address, UDP_PORT)).await.context("cannot bind")?;
            tokio::spawn(async move {
                let mut question = [0; 64];
                while let Ok((len, from)) = udp.recv_from(&mut question).await {
                    let _ = udp.send_to(&question[..len], from).await;
                }
            });
        }
        Ok(())
    })
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = TcpSocket::new_v4().context("cannot open a socket")?;
    socket.set_reuseaddr(true).context("cannot set SO_REUSEADDR")?;
    socket.bind(address).with_context(|| format!("cannot bind {address}"))?;
    socket.listen(BACKLOG).context("cannot listen")
}

/// Answers each request, and closes first after the last one, so that TIME_WAIT is on this side.
async fn answer(mut stream: TcpStream) {
    let mut request = [0; 1];
    while stream.read_exact(&mut request).await.is_ok() && stream.write_all(&request).await.is_ok() {
        if request[0] == LAST {
            let _ = stream.shutdown().await;
            // Waits until the client has closed too.
            let _ = stream.read(&mut request).await;
            return;
        }
    }
}
