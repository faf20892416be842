//! What a run is told.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::interface::Place;
use super::profile::Profile;

pub const DURATION_MAX: Duration = Duration::from_secs(3600);
/// Frames of a run at the most: sequence numbers of one flow have 32 bits.
pub const COUNT_MAX: u64 = u32::MAX as u64;
/// Frames a second at the most: 100 Gbit/s of the smallest ones.
pub const RATE_MAX: u64 = 148_809_523;

/// How frames are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum BackendKind {
    /// AF_XDP transmit: each frame is made in userspace.
    AfXdp,
    /// BPF live frames: the kernel runs an XDP program that makes each frame. The quickest on veth; the receiving end needs native XDP.
    Live,
}

/// All that a run is told.
#[derive(Clone, Debug)]
pub struct Options {
    pub tx: Place,
    /// Where they are expected; `None` when nobody counts them.
    pub rx: Option<Place>,
    pub profile: Profile,
    /// Frames to send in the profile's place.
    pub pcap: Option<PathBuf>,
    pub backend: BackendKind,
    /// Frames a second; `None` for as many as possible.
    pub rate: Option<u64>,
    pub duration: Duration,
    pub count: Option<u64>,
    /// Frames are only counted at the sink.
    pub count_only: bool,
    /// The first hop's MAC address; by default the sink's.
    pub dst_mac: Option<[u8; 6]>,
    /// Interfaces outside of the namespaces of `ip netns` are allowed.
    pub allow_host: bool,
}

impl Options {
    /// Checks limits, and what does not go together.
    pub fn check(&self) -> Result<()> {
        if self.pcap.is_none() {
            self.profile.check()?;
        }
        ensure!(!self.duration.is_zero() && self.duration <= DURATION_MAX, "--duration: give 1 ms to {} s", DURATION_MAX.as_secs());
        ensure!(self.count.is_none_or(|n| (1..=COUNT_MAX).contains(&n)), "--count: give 1 to {COUNT_MAX}");
        ensure!(self.rate.is_none_or(|n| (1..=RATE_MAX).contains(&n)), "--rate: give 1 to {RATE_MAX} frames a second");
        ensure!(self.rx.is_some() || self.dst_mac.is_some(), "without --rx, --dst-mac must name the first hop");
        ensure!(self.pcap.is_none() || self.backend == BackendKind::AfXdp, "--pcap: replayed by --backend af-xdp only");
        Ok(())
    }
}
