//! The input of a run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::interface::Place;
use super::profile::Profile;

pub const DURATION_MAX: Duration = Duration::from_secs(3600);
/// The most frames of a run: sequence numbers of a flow have 32 bits.
pub const COUNT_MAX: u64 = u32::MAX as u64;
/// The highest rate in frames a second: 100 Gbit/s of the smallest frames.
pub const RATE_MAX: u64 = 148_809_523;

/// How frames are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum BackendKind {
    /// AF_XDP transmit: each frame is made in userspace.
    AfXdp,
    /// BPF live frames: the kernel runs an XDP program that makes each frame. The fastest on veth; the receiving end needs native XDP.
    Live,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub tx: Place,
    /// The receiving interface; `None` to count nothing.
    pub rx: Option<Place>,
    pub profile: Profile,
    /// A capture to send instead of the profile.
    pub pcap: Option<PathBuf>,
    pub backend: BackendKind,
    /// Frames a second; `None` for as many as possible.
    pub rate: Option<u64>,
    pub duration: Duration,
    pub count: Option<u64>,
    /// The sink only counts.
    pub count_only: bool,
    /// The first hop's MAC address; the default is the sink's.
    pub dst_mac: Option<[u8; 6]>,
    /// Allow interfaces outside of the namespaces of `ip netns`.
    pub allow_host: bool,
}

impl Options {
    /// Checks limits and contradictions.
    pub fn check(&self) -> Result<()> {
        if self.pcap.is_none() {
            self.profile.check()?;
        }
        ensure!(!self.duration.is_zero() && self.duration <= DURATION_MAX, "--duration: give 1 ms to {} s", DURATION_MAX.as_secs());
        ensure!(self.count.is_none_or(|n| (1..=COUNT_MAX).contains(&n)), "--count: give 1 to {COUNT_MAX}");
        ensure!(self.rate.is_none_or(|n| (1..=RATE_MAX).contains(&n)), "--rate: give 1 to {RATE_MAX} frames a second");
        ensure!(self.rx.is_some() || self.dst_mac.is_some(), "without --rx, --dst-mac must name the first hop");
        ensure!(self.pcap.is_none() || self.backend == BackendKind::AfXdp, "--pcap needs --backend af-xdp");
        Ok(())
    }
}
