//! One client port for two connections: to a Service, and to its endpoint itself. The kernel's NAT in the gateway's place says what is right.
//! Needs root.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nomagic_testbed::rig::{PODS, Scene};
use socket2::{Domain, Protocol, Socket, Type};

use crate::common::kernel_nat::SERVICE;
use crate::common::nat::Nat;
use crate::common::*;

const LIMIT: Duration = Duration::from_secs(3);
/// The client's first port.
const FIRST: u16 = 31_000;

/// The Service and its endpoint, with this port.
fn ends(v6: bool, port: u16) -> [SocketAddr; 2] {
    let (service, endpoint) = if v6 { (SERVICE[1], PODS[0].v6.to_string()) } else { (SERVICE[0], PODS[0].v4.to_string()) };
    [service, &endpoint].map(|addr| SocketAddr::new(addr.parse().unwrap(), port))
}

/// A socket of the client at this port, which others may have, too.
fn connect(to: SocketAddr, port: u16, (kind, protocol): (Type, Protocol)) -> io::Result<Socket> {
    let any = SocketAddr::new(if to.is_ipv6() { "::" } else { "0.0.0.0" }.parse().unwrap(), port);
    let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&any.into())?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.connect_timeout(&to.into(), LIMIT)?;
    Ok(socket)
}

/// A request on an open connection.
fn ask(mut stream: &TcpStream) -> io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")?;
    let mut answer = [0; 4_096];
    let read = stream.read(&mut answer)?;
    match answer[..read].starts_with(b"HTTP/1.1 200") {
        true => Ok(()),
        false => Err(io::Error::other(format!("{:?}", String::from_utf8_lossy(&answer[..read])))),
    }
}

/// Opens two connections from one port in this order; both must answer, also after the other one has.
fn both_answer(order: [SocketAddr; 2], port: u16) -> io::Result<()> {
    let mut streams: Vec<TcpStream> = Vec::new();
    for to in order {
        streams.push(connect(to, port, (Type::STREAM, Protocol::TCP))?.into());
        streams.iter().try_for_each(ask)?;
    }
    streams.iter().rev().try_for_each(ask)
}

/// The same with datagrams.
fn both_echo(order: [SocketAddr; 2], port: u16) -> io::Result<()> {
    let mut sockets: Vec<UdpSocket> = Vec::new();
    for to in order {
        sockets.push(connect(to, port, (Type::DGRAM, Protocol::UDP))?.into());
        for socket in &sockets {
            socket.send(b"more")?;
            socket.recv(&mut [0; 512])?;
        }
    }
    Ok(())
}

#[test]
fn direct_and_service_connections_from_one_client_port() {
    for nomagic in [false, true] {
        let nat = Nat::start(Scene::new(if nomagic { "dir-n" } else { "dir-k" }).unwrap(), &nginx(&[0]), nomagic);
        let mut port = FIRST;
        for (v6, direct_first) in [(false, true), (true, true), (false, false), (true, false)] {
            for _ in 0..6 {
                port += 1;
                let in_order = |[service, endpoint]: [SocketAddr; 2]| if direct_first { [endpoint, service] } else { [service, endpoint] };
                let (tcp, udp) = (in_order(ends(v6, 80)), in_order(ends(v6, 53)));
                let talked = nat.scene().client.run(move || both_answer(tcp, port)).unwrap();
                talked.unwrap_or_else(|e| panic!("TCP to {tcp:?} from port {port}, nomagic {nomagic}: {e}; {}", nat.account()));
                // With UDP only the direct one may be first: nothing tells that another one begins.
                if direct_first {
                    let talked = nat.scene().client.run(move || both_echo(udp, port)).unwrap();
                    talked.unwrap_or_else(|e| panic!("UDP to {udp:?} from port {port}, nomagic {nomagic}: {e}; {}", nat.account()));
                }
            }
        }
        if let Nat::Nomagic(gateway) = nat {
            gateway.assert_accounts_close();
        }
    }
}
