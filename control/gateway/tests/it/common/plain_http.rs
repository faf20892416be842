//! One HTTP request over a plain socket, and its answer as it came.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// By name in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// Status line and headers as they came.
    pub head: String,
}

/// Asks with GET. `Err`: the connection was refused or broke.
pub fn get(at: SocketAddr, path: &str) -> std::io::Result<Answer> {
    request(at, &format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n"))
}

/// Sends a request as it is.
pub fn request(at: SocketAddr, text: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|code| code.parse().ok()).expect("a status line");
    let headers = lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_ascii_lowercase(), v.to_string())).collect();
    Ok(Answer { status, headers, body: body.to_string(), head: head.to_string() })
}
