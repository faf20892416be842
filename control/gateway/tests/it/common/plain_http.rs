//! One HTTP request over a plain socket, with the raw response.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

const CONNECT_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct HttpResponse {
    pub status: u16,
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// Status line and headers as received.
    pub head: String,
}

/// Sends a GET request. Fails if the connection is refused or breaks.
pub fn get(at: SocketAddr, path: &str) -> std::io::Result<HttpResponse> {
    request(at, &format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n"))
}

/// Sends a GET request from an address of the client's.
pub fn get_from(source: Option<IpAddr>, at: SocketAddr, path: &str) -> std::io::Result<HttpResponse> {
    let Some(source) = source else { return get(at, path) };
    let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect_timeout(&at.into(), CONNECT_MAX)?;
    exchange(socket.into(), &format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n"))
}

/// Sends a raw request.
pub fn request(at: SocketAddr, text: &str) -> std::io::Result<HttpResponse> {
    exchange(TcpStream::connect_timeout(&at, CONNECT_MAX)?, text)
}

fn exchange(mut stream: TcpStream, text: &str) -> std::io::Result<HttpResponse> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|code| code.parse().ok()).expect("a status line");
    let headers = lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_ascii_lowercase(), v.to_string())).collect();
    Ok(HttpResponse { status, headers, body: body.to_string(), head: head.to_string() })
}
