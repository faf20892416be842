//! Clients: every request has its own connection, every wait has a limit.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::blob::blob;

/// The largest answer, in bytes.
const ANSWER_MAX: u64 = 65 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientOptions {
    /// The most requests in flight.
    pub concurrency: usize,
    /// Time for one request from connect to the end of its answer.
    pub limit: Duration,
}

impl Default for ClientOptions {
    fn default() -> ClientOptions {
        ClientOptions { concurrency: 16, limit: Duration::from_secs(5) }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HttpAnswer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl HttpAnswer {
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("status {}, no JSON: {}", self.status, String::from_utf8_lossy(&self.body)))
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LoadReport {
    pub per_pod: BTreeMap<String, u32>,
    /// The client addresses that the pods saw, with their counts.
    pub clients_seen: BTreeMap<IpAddr, u32>,
    /// Reasons of failures, with their counts.
    pub failures: BTreeMap<String, u32>,
}

impl LoadReport {
    pub fn answered(&self) -> u32 {
        self.per_pod.values().sum()
    }

    pub fn failed(&self) -> u32 {
        self.failures.values().sum()
    }

    fn count(&mut self, outcome: Result<(String, SocketAddr)>) {
        match outcome {
            Ok((pod, client)) => {
                *self.per_pod.entry(pod).or_default() += 1;
                *self.clients_seen.entry(client.ip()).or_default() += 1;
            }
            Err(e) => *self.failures.entry(format!("{e:#}")).or_default() += 1,
        }
    }
}

/// `GET path` over a fresh connection.
pub async fn http_get(to: SocketAddr, path: &str, limit: Duration) -> Result<HttpAnswer> {
    let head = format!("GET {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    timeout(limit, exchange(to, head, &[])).await.with_context(|| format!("GET {path}: no answer within {limit:?}"))?
}

/// `POST path` over a fresh connection.
pub async fn http_post(to: SocketAddr, path: &str, body: &[u8], limit: Duration) -> Result<HttpAnswer> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: {to}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    timeout(limit, exchange(to, head, body)).await.with_context(|| format!("POST {path}: no answer within {limit:?}"))?
}

async fn exchange(to: SocketAddr, head: String, body: &[u8]) -> Result<HttpAnswer> {
    let mut stream = TcpStream::connect(to).await.context("connect")?;
    stream.write_all(head.as_bytes()).await.context("send")?;
    stream.write_all(body).await.context("send")?;
    let mut bytes = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut bytes).await.context("receive")?;
    parse_answer(&bytes)
}

/// Reads an answer of known length (the pods send `Content-Length`); one that is cut short is an error.
fn parse_answer(bytes: &[u8]) -> Result<HttpAnswer> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").context("the connection ended inside the answer's header")?;
    let head = std::str::from_utf8(&bytes[..end]).context("the answer's header is not text")?;
    let body = &bytes[end + 4..];
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|l| l.strip_prefix("HTTP/1.1 ")).and_then(|l| l.get(..3)?.parse().ok());
    let status = status.with_context(|| format!("no HTTP status in `{}`", head.lines().next().unwrap_or_default()))?;
    let length = lines.filter_map(|l| l.split_once(':')).find(|(k, _)| k.eq_ignore_ascii_case("content-length"));
    let length: usize = length.and_then(|(_, v)| v.trim().parse().ok()).context("the answer names no content-length")?;
    if body.len() != length {
        bail!("the answer was cut short: {} of {length} bytes", body.len());
    }
    Ok(HttpAnswer { status, body: body.to_vec() })
}

/// Opens `connections` fresh connections and asks each one who answered.
pub async fn http_load(to: SocketAddr, connections: u32, options: ClientOptions) -> LoadReport {
    many(connections, options.concurrency, move |_| async move {
        let answer = http_get(to, "/", options.limit).await?.json()?;
        let text = |key: &str| answer[key].as_str().with_context(|| format!("the answer names no {key}"));
        Ok((text("pod")?.to_owned(), text("client")?.parse().context("the answer's client address")?))
    })
    .await
}

/// Sends `datagrams` datagrams, each from a fresh socket, and waits for each echo.
pub async fn udp_load(to: SocketAddr, datagrams: u32, options: ClientOptions) -> LoadReport {
    many(datagrams, options.concurrency, move |i| async move { udp_echo(to, format!("datagram {i}").as_bytes(), options.limit).await })
        .await
}

/// Runs `count` requests, at most `concurrency` at a time.
async fn many<F>(count: u32, concurrency: usize, request: impl Fn(u32) -> F) -> LoadReport
where
    F: Future<Output = Result<(String, SocketAddr)>> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(concurrency.max(1)));
    let mut running = JoinSet::new();
    for i in 0..count {
        let (slots, request) = (slots.clone(), request(i));
        running.spawn(async move {
            let _slot = slots.acquire_owned().await.context("the client was closed")?;
            request.await
        });
    }
    let mut report = LoadReport::default();
    while let Some(done) = running.join_next().await {
        report.count(done.context("a request panicked").and_then(|outcome| outcome));
    }
    report
}

/// Sends one datagram and checks its echo: the pod's name and the client address that the pod saw.
pub async fn udp_echo(to: SocketAddr, payload: &[u8], limit: Duration) -> Result<(String, SocketAddr)> {
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.context("bind")?;
    // Connected: an answer from any other address is not ours, and ICMP errors are seen.
    socket.connect(to).await.context("connect")?;
    socket.send(payload).await.context("send")?;
    let mut buf = vec![0u8; 65_536];
    let len = timeout(limit, socket.recv(&mut buf)).await.with_context(|| format!("no echo within {limit:?}"))?.context("receive")?;
    let mut parts = buf[..len].splitn(3, |b| *b == b'|');
    let (Some(name), Some(client), Some(echoed)) = (parts.next(), parts.next(), parts.next()) else { bail!("a malformed echo") };
    if echoed != payload {
        bail!("the echo has {} bytes, not the {} that were sent", echoed.len(), payload.len());
    }
    let client = std::str::from_utf8(client).ok().and_then(|c| c.parse().ok()).context("a malformed client address in the echo")?;
    Ok((String::from_utf8_lossy(name).into_owned(), client))
}

/// Uploads `bytes` deterministic bytes; the pod compares them one by one. Returns the pod's name.
pub async fn upload(to: SocketAddr, bytes: usize, limit: Duration) -> Result<String> {
    let answer = http_post(to, "/sink", &blob(bytes), limit).await?.json()?;
    if answer["bytes"].as_u64() != Some(bytes as u64) || answer["blob"].as_bool() != Some(true) {
        bail!("the pod received something else: {answer}");
    }
    Ok(answer["pod"].as_str().unwrap_or_default().to_owned())
}

/// Downloads `bytes` deterministic bytes and compares them one by one.
pub async fn download(to: SocketAddr, bytes: usize, limit: Duration) -> Result<()> {
    let answer = http_get(to, &format!("/blob?bytes={bytes}"), limit).await?;
    if answer.status != 200 || answer.body != blob(bytes) {
        bail!("status {}, {} bytes, not the {bytes} that were asked for", answer.status, answer.body.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        let whole = parse_answer(b"HTTP/1.1 200 OK\r\nContent-LENGTH: 3\r\n\r\nabc").unwrap();
        assert_eq!(whole, HttpAnswer { status: 200, body: b"abc".to_vec() });
        for (bytes, why) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc"[..], "cut short: 3 of 4"),
            (b"HTTP/1.1 200 OK\r\n\r\nabc", "no content-length"),
            (b"HTTP/1.1 200 OK\r\n", "inside the answer's header"),
            (b"SSH-2.0-x\r\n\r\n", "no HTTP status"),
            (b"HTTP/1.1 20", "inside the answer's header"),
            (b"", "inside the answer's header"),
        ] {
            let error = parse_answer(bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn a_closed_port_and_a_silent_one_are_failures_with_names() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = listener.local_addr().unwrap();
        let options = ClientOptions { concurrency: 4, limit: Duration::from_millis(100) };
        let report = http_load(silent, 3, options).await;
        assert_eq!((report.answered(), report.failed()), (0, 3));
        assert!(report.failures.keys().all(|k| k.contains("no answer within 100ms")), "{report:?}");
        // A port that was never open: a program started by another test may inherit a listener and hold it a moment longer.
        let report = http_load("127.0.0.1:1".parse().unwrap(), 2, options).await;
        assert!(report.failures.keys().all(|k| k.contains("refused")), "{report:?}");
        assert_eq!(report.failed(), 2);
    }
}
