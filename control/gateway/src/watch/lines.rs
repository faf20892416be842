//! A response's body, by lines or as a whole, with limits on size and on the time between chunks.

use std::time::Duration;

use http_body_util::BodyExt;
use kube::client::Body;

use super::fault::{self, ApiFault};

/// Maximum length of a line, bytes: well above the largest object (1.5 MB, etcd's limit) in its longest encoding.
const LINE_MAX: usize = 16 << 20;

/// A body that arrives in chunks.
pub(crate) struct Lines {
    body: Body,
    timeout: Duration,
    buffer: Vec<u8>,
    /// The buffer has no line end before this offset.
    scanned: usize,
}

impl Lines {
    pub(super) fn new(body: Body, timeout: Duration) -> Lines {
        Lines { body, timeout, buffer: Vec::new(), scanned: 0 }
    }

    /// The next line without its end; `None` at the end of the body. Discards an incomplete last line.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, ApiFault> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|b| *b == b'\n') {
                let rest = self.buffer.split_off(self.scanned + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                self.scanned = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(line));
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > LINE_MAX {
                return Err(ApiFault::LimitExceeded(format!("the API server sent an event longer than {LINE_MAX} bytes")));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// The whole body.
    pub(crate) async fn whole(mut self, bytes_max: usize) -> Result<Vec<u8>, ApiFault> {
        while self.more().await? {
            if self.buffer.len() > bytes_max {
                return Err(ApiFault::LimitExceeded(format!("the API server sent a list longer than {bytes_max} bytes")));
            }
        }
        Ok(self.buffer)
    }

    /// Waits for a chunk. False at the end.
    async fn more(&mut self) -> Result<bool, ApiFault> {
        match tokio::time::timeout(self.timeout, self.body.frame()).await {
            Err(_) => Err(ApiFault::Timeout(self.timeout)),
            Ok(None) => Ok(false),
            Ok(Some(Err(e))) => Err(fault::broken(&e)),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    self.buffer.extend_from_slice(&data);
                }
                Ok(true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: impl Into<Vec<u8>>) -> Lines {
        Lines::new(Body::from(text.into()), Duration::from_secs(1))
    }

    #[tokio::test]
    async fn whole_lines_only() {
        let mut l = lines("one\n\r\n two\nthr");
        let mut seen = Vec::new();
        while let Some(line) = l.next().await.unwrap() {
            seen.push(String::from_utf8(line).unwrap());
        }
        assert_eq!(seen, ["one", " two"]);
    }

    #[tokio::test]
    async fn limits() {
        assert!(matches!(lines(vec![b'x'; LINE_MAX + 1]).next().await, Err(ApiFault::LimitExceeded(_))));
        assert!(lines(vec![b'x'; LINE_MAX]).next().await.unwrap().is_none());
        assert!(matches!(lines("12345").whole(4).await, Err(ApiFault::LimitExceeded(_))));
        assert_eq!(lines("12345").whole(5).await.unwrap(), b"12345");
    }
}
