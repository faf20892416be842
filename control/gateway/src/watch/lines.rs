//! An answer's body, as lines or as a whole, with limits on its size and on silence.

use std::time::Duration;

use http_body_util::BodyExt;
use kube::client::Body;

use super::fault::{self, Fault};

/// Bytes of a line at the most: an object has about 1.5 MB (etcd's limit), two in the worst encoding.
const LINE_MAX: usize = 16 << 20;

/// A body that comes bit by bit.
pub(crate) struct Lines {
    body: Body,
    silence: Duration,
    buffer: Vec<u8>,
    /// No line ends before this place in the buffer.
    scanned: usize,
}

impl Lines {
    pub(super) fn new(body: Body, silence: Duration) -> Lines {
        Lines { body, silence, buffer: Vec::new(), scanned: 0 }
    }

    /// The next line without its end; `None` when the body is over. What is left without a line's end is not a line: it was cut off.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, Fault> {
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
                return Err(Fault::TooMuch(format!("the API server sent an event of more than {LINE_MAX} bytes")));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// All of it.
    pub(crate) async fn whole(mut self, bytes_max: usize) -> Result<Vec<u8>, Fault> {
        while self.more().await? {
            if self.buffer.len() > bytes_max {
                return Err(Fault::TooMuch(format!("the API server sent a list of more than {bytes_max} bytes")));
            }
        }
        Ok(self.buffer)
    }

    /// Waits for a piece. False at the end.
    async fn more(&mut self) -> Result<bool, Fault> {
        match tokio::time::timeout(self.silence, self.body.frame()).await {
            Err(_) => Err(Fault::Silent(self.silence)),
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
        assert!(matches!(lines(vec![b'x'; LINE_MAX + 1]).next().await, Err(Fault::TooMuch(_))));
        assert!(lines(vec![b'x'; LINE_MAX]).next().await.unwrap().is_none());
        assert!(matches!(lines("12345").whole(4).await, Err(Fault::TooMuch(_))));
        assert_eq!(lines("12345").whole(5).await.unwrap(), b"12345");
    }
}
