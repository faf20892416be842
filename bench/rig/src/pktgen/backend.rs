//! Ways to send frames.

use anyhow::{Context, Result};
use nomagic_sys::time::monotonic_ns;

use super::stream::Source;
use super::xsk::{BATCH, Xsk};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sent {
    pub frames: u64,
    /// Bytes of them, without FCS.
    pub bytes: u64,
    pub flows_opened: u64,
    /// Times that the interface took fewer frames than there were.
    pub blocked: u64,
    /// Frames that a backend which keeps the rate by itself did not make in time.
    pub forgone: u64,
    /// When the last frame was made (CLOCK_MONOTONIC), where that is known better than by the end of the call; else 0.
    pub last_ns: u64,
}

/// Sends the frames of a source. Made and used by one thread, inside the interface's namespace.
pub trait Backend {
    /// Its name, with what limits it.
    fn describe(&self) -> String;

    /// Frames that one call sends at the most.
    fn burst_max(&self) -> u32;

    /// Sends up to `frames` frames, and may stop at `until_ns`. Returns how many; fewer when the interface takes no more now.
    fn send(&mut self, frames: u32, until_ns: u64) -> Result<u32>;

    /// All that was sent so far.
    fn sent(&self) -> Sent;

    /// Called again and again after the last frame until it says that all have left.
    fn finished(&mut self) -> Result<bool> {
        Ok(true)
    }

    /// It keeps the rate by itself: [`Backend::send`] gets all frames at once.
    fn paces_itself(&self) -> bool {
        false
    }
}

/// Frames written into the UMEM of an AF_XDP socket on queue 0.
pub struct AfXdp {
    xsk: Xsk,
    source: Box<dyn Source>,
    sent: Sent,
}

impl AfXdp {
    pub fn open(interface: &str, source: Box<dyn Source>) -> Result<AfXdp> {
        Ok(AfXdp { xsk: Xsk::bind(interface, 0)?, source, sent: Sent::default() })
    }
}

impl Backend for AfXdp {
    fn describe(&self) -> String {
        "AF_XDP transmit on one queue".into()
    }

    fn burst_max(&self) -> u32 {
        BATCH as u32
    }

    fn send(&mut self, frames: u32, _until_ns: u64) -> Result<u32> {
        let (source, mut bytes) = (&mut self.source, 0);
        let write = |out: &mut [u8]| {
            let len = source.next(out, monotonic_ns());
            bytes += len as u64;
            len
        };
        let n = self.xsk.send(frames as usize, write).context("AF_XDP transmit")?;
        self.sent.frames += n as u64;
        self.sent.bytes += bytes;
        self.sent.flows_opened = self.source.flows_opened();
        self.sent.blocked += u64::from((n as u32) < frames.min(BATCH as u32));
        Ok(n as u32)
    }

    fn sent(&self) -> Sent {
        self.sent
    }

    fn finished(&mut self) -> Result<bool> {
        self.xsk.kick().context("AF_XDP transmit")?;
        Ok(self.xsk.complete())
    }
}
