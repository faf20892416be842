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
    /// How often the interface accepted fewer frames than offered.
    pub blocked: u64,
    /// Frames that a backend with its own pacing was too late for.
    pub forgone: u64,
    /// When the last frame was made (CLOCK_MONOTONIC), if the backend knows it; otherwise 0.
    pub last_ns: u64,
}

/// Sends the frames of a source. Belongs to one thread in the interface's namespace.
pub trait Backend {
    /// Its name, and its limits.
    fn describe(&self) -> String;

    /// The most frames of one call.
    fn burst_max(&self) -> u32;

    /// Sends up to `frames` frames, and may stop at `until_ns`. Returns the number sent, which is lower when the interface is full.
    fn send(&mut self, frames: u32, until_ns: u64) -> Result<u32>;

    /// Totals so far.
    fn sent(&self) -> Sent;

    /// Called repeatedly after the last frame, until it returns true: all frames have left.
    fn finished(&mut self) -> Result<bool> {
        Ok(true)
    }

    /// Whether it keeps the rate itself: then [`Backend::send`] gets all frames at once.
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
