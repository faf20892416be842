//! The traffic to send: addresses, flows, sizes, protocol.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use super::payload::{FLOW_BITS, PAYLOAD_LEN};

/// The most flows of a profile.
pub const FLOWS_MAX: u32 = 1 << FLOW_BITS;
/// The most destinations of a profile.
pub const TARGETS_MAX: usize = 10_000;
/// The largest frame, in bytes on the wire with its FCS.
pub const FRAME_MAX: u32 = 1518;
/// The smallest Ethernet frame, with its FCS.
pub const FRAME_MIN: u32 = 64;
/// The frame check sequence, which the network card adds: part of a frame's size, as in RFC 2544, but never of a buffer.
pub const FCS_LEN: u32 = 4;
/// The first source port of flows.
pub const FIRST_PORT: u16 = 1024;
/// The simple IMIX: 7 small, 4 medium and 1 large frame in every twelve, mixed.
const IMIX: [u32; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64];

/// Transport protocol of the traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Protocol {
    /// UDP datagrams.
    Udp,
    /// TCP segments: a SYN opens each flow, later segments carry data. Nothing answers.
    Tcp,
    /// Only TCP SYNs, each from another source (with live frames: from up to 262,144 in turn).
    SynFlood,
}

impl Protocol {
    /// Bytes of the L4 header.
    pub fn header_len(self) -> usize {
        if self == Protocol::Udp { 8 } else { 20 }
    }
}

/// Sizes of the frames, on the wire with FCS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Size {
    /// The smallest frame with all headers, at least 64 bytes.
    Min,
    Fixed(u32),
    /// The simple IMIX: 7 of 64, 4 of 594 and 1 of 1518 bytes; small frames grow where the headers need it.
    Imix,
}

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Size> {
        match text {
            "min" => Ok(Size::Min),
            "imix" => Ok(Size::Imix),
            _ => Ok(Size::Fixed(text.parse().with_context(|| format!("size `{text}`: give min, imix or bytes with FCS, such as 512"))?)),
        }
    }
}

/// How the flow of each frame is chosen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Choice {
    RoundRobin,
    Uniform,
    /// At random; the n-th flow has 1/n^s of the first one's frames.
    Zipf(f64),
}

impl FromStr for Choice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Choice> {
        match (text, text.strip_prefix("zipf:")) {
            ("round-robin", _) => Ok(Choice::RoundRobin),
            ("uniform", _) => Ok(Choice::Uniform),
            ("zipf", _) => Ok(Choice::Zipf(1.0)),
            (_, Some(s)) => Ok(Choice::Zipf(s.parse().with_context(|| format!("choice `{text}`: `{s}` is not a valid exponent"))?)),
            _ => bail!("choice `{text}`: give round-robin, uniform, zipf or zipf:EXPONENT"),
        }
    }
}

/// A range of source addresses, as `ADDRESS/LENGTH`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prefix {
    pub address: IpAddr,
    pub len: u8,
}

impl FromStr for Prefix {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Prefix> {
        let parse = || {
            let (address, len) = text.split_once('/').unwrap_or((text, if text.contains(':') { "128" } else { "32" }));
            let prefix = Prefix { address: address.parse().ok()?, len: len.parse().ok()? };
            (u32::from(prefix.len) <= prefix.bits()).then_some(prefix)
        };
        parse().with_context(|| format!("source range `{text}`: give ADDRESS or ADDRESS/LENGTH, such as 10.0.0.0/24"))
    }
}

impl Prefix {
    fn bits(&self) -> u32 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// Usable addresses (no network or broadcast address, no subnet-router anycast), at most 2^24.
    pub fn hosts(&self) -> u64 {
        let free = self.bits() - u32::from(self.len);
        match (free, self.address) {
            (0, _) => 1,
            (1, _) => 2,
            (_, IpAddr::V4(_)) => (1 << free.min(24)) - 2,
            (_, IpAddr::V6(_)) => (1 << free.min(24)) - 1,
        }
    }

    pub fn host(&self, n: u64) -> IpAddr {
        let free = self.bits() - u32::from(self.len);
        let offset = if free < 2 { n } else { n + 1 };
        match self.address {
            IpAddr::V4(v4) => IpAddr::V4(((u64::from(v4.to_bits()) >> free << free) as u32 | offset as u32).into()),
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits().checked_shr(free).map_or(0, |b| b << free) | u128::from(offset)).into()),
        }
    }
}

/// The share of frames that open new flows: `new` of `frames`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NewFlows {
    pub new: u64,
    pub frames: u64,
}

#[derive(Clone, PartialEq, Debug)]
pub struct Profile {
    /// Destinations, all of one family; flows take them in turn.
    pub targets: Vec<SocketAddr>,
    /// Source addresses, each with ports from [`FIRST_PORT`] on.
    pub sources: Prefix,
    pub flows: u32,
    /// Which flow each frame is of.
    pub choice: Choice,
    pub size: Size,
    pub protocol: Protocol,
    /// How many flows are replaced by new ones, from other sources.
    pub new_flows: Option<NewFlows>,
    /// The same seed gives the same frames.
    pub seed: u64,
}

impl Profile {
    pub fn check(&self) -> Result<()> {
        let n = self.targets.len();
        ensure!((1..=TARGETS_MAX).contains(&n), "--to: {n} destinations; give 1 to {TARGETS_MAX}");
        let v4 = self.sources.address.is_ipv4();
        if let Some(other) = self.targets.iter().find(|t| t.is_ipv4() != v4) {
            bail!("--to {other} and --from {}/{} are not of one family", self.sources.address, self.sources.len);
        }
        ensure!((1..=FLOWS_MAX).contains(&self.flows), "--flows {}: give 1 to {FLOWS_MAX}", self.flows);
        let space = self.tuples();
        ensure!(
            u64::from(self.flows) <= space,
            "--flows {}: the source range {}/{} has only {space} addresses and ports; widen --from",
            self.flows,
            self.sources.address,
            self.sources.len
        );
        if let Choice::Zipf(s) = self.choice {
            ensure!(s.is_finite() && (0.0..=10.0).contains(&s), "--choice zipf:{s}: give an exponent of 0 to 10");
        }
        if let Size::Fixed(size) = self.size {
            let least = self.size_min();
            ensure!(
                (least..=FRAME_MAX).contains(&size),
                "--size {size}: give {least} (headers, {PAYLOAD_LEN} bytes of payload, FCS) to {FRAME_MAX} bytes, `min` or `imix`"
            );
        }
        if let Some(NewFlows { new, frames }) = self.new_flows {
            ensure!(new <= frames && frames > 0, "--new-flows-per-second: at most as many as the rate in frames a second");
            ensure!(self.protocol != Protocol::SynFlood, "--new-flows-per-second: each frame of a SYN flood is a new flow already");
        }
        Ok(())
    }

    pub fn tuples(&self) -> u64 {
        self.sources.hosts() * u64::from(u16::MAX - FIRST_PORT + 1)
    }

    /// Bytes of all headers before the payload.
    pub fn headers_len(&self) -> usize {
        14 + if self.sources.address.is_ipv4() { 20 } else { 40 } + self.protocol.header_len()
    }

    /// The smallest frame with all headers and the payload header, on the wire.
    pub fn size_min(&self) -> u32 {
        FRAME_MIN.max((self.headers_len() + PAYLOAD_LEN) as u32 + FCS_LEN)
    }

    /// The size on the wire of the n-th frame.
    pub fn size_of(&self, n: u64) -> u32 {
        match self.size {
            Size::Min => self.size_min(),
            Size::Fixed(size) => size,
            Size::Imix => IMIX[(n % IMIX.len() as u64) as usize].max(self.size_min()),
        }
    }

    /// The largest frame in a buffer: without FCS.
    pub fn buffer_max(&self) -> usize {
        (0..IMIX.len() as u64).map(|n| self.size_of(n) - FCS_LEN).max().unwrap_or(0) as usize
    }
}

#[cfg(test)]
pub(super) mod tests;
