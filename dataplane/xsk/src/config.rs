//! The edge's configuration and its limits.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use arrayvec::ArrayVec;
use nomagic_core::conntrack::Timeouts;
use nomagic_core::fragment_hold::SENDER_SHARE;
use nomagic_core::frame::{BATCH_MAX, Frame, Outputs, Verdict};
use nomagic_core::pipeline::{Context, process};

use crate::addressed::{MAC_ADDRESSES_MAX, VLANS_MAX};
use crate::error::EdgeError;
use crate::limits::{FrameSize, Headroom, InterfaceName, MacAddress, RingSize, VlanId, WorkerCount};

/// Maximum number of queues of an interface.
pub const QUEUES_MAX: u32 = 256;
/// Maximum number of reply filter buckets: 2 GiB, with places for half the connections of the largest connection table.
pub const REPLY_BUCKETS_MAX: u32 = 1 << 25;
/// Maximum number of interfaces, including the internal port.
pub const PORTS_MAX: usize = 64;
/// Maximum number of fragments that all workers together hold; each has room for one sender's share.
const FRAGMENTS_HELD_MAX: usize = 1024;
/// Maximum number of redirect ports.
pub const REDIRECTS_MAX: usize = 4096;

/// Processes a batch of frames and returns one verdict per frame, in order.
pub type PacketPath = for<'f> fn(&mut Context<'_>, &mut [Frame<'f>], &mut ArrayVec<Verdict, BATCH_MAX>, &mut Outputs<'f>);

/// Worker behaviour when no frames arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// Keeps polling: the lowest latency, at the cost of a whole CPU.
    Spin,
    /// Sleeps in poll(2) after a time without frames.
    Sleep {
        /// Microseconds without a frame before sleeping.
        after_us: u64,
    },
}

/// What the XDP filter does with nomagic's frames after the grace period of a dead worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnFailure {
    /// Passes them to the kernel, for another Service proxy.
    Pass,
    /// Drops them.
    Drop,
}

/// The veth pair between the dataplane and the kernel. Both ends exist before the edge starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InternalPair {
    /// The kernel's end, usually `nm0`.
    pub kernel_side: InterfaceName,
    /// The dataplane's end, usually `nm1`.
    pub edge_side: InterfaceName,
    /// Addresses, by family, that the kernel always routes to this pair. Frames to them are not passed back to the kernel when no worker is
    /// alive, because they would loop.
    pub addresses: [Option<IpAddr>; 2],
}

/// Configuration of the edge.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    /// Directory of the process's state; the pins live in a bpffs on `<state_dir>/bpf`.
    pub state_dir: PathBuf,
    /// The interfaces that carry Service traffic.
    pub interfaces: Vec<InterfaceName>,
    /// MAC addresses that frames may be addressed to, in addition to the interface's own (VRRP, macvlan).
    pub mac_addresses: Vec<MacAddress>,
    /// VLANs whose tagged frames are captured, in addition to untagged frames and priority tags.
    pub vlans: Vec<VlanId>,
    /// The path back to the kernel, if there is one.
    pub internal: Option<InternalPair>,
    /// Entries of each ring.
    pub ring_size: RingSize,
    /// Bytes of a frame's buffer; 256 of them are headroom.
    pub frame_size: FrameSize,
    /// Bytes of headroom in addition to those 256.
    pub headroom: Headroom,
    /// Place frames on preallocated 2 MiB huge pages.
    pub huge_pages: bool,
    pub workers: WorkerCount,
    /// Maximum number of connections.
    pub conntrack_capacity: u32,
    /// The connection table's file, from which the next process continues; `None`: private memory.
    pub conntrack_file: Option<PathBuf>,
    /// Place a table without a file on preallocated 2 MiB huge pages. (With a file, its file system decides.)
    pub conntrack_huge_pages: bool,
    /// How long idle connections are kept.
    pub timeouts: Timeouts,
    /// Buckets of the reply filter (16 connections each), a power of two. Every connection may be announced, so at two for each
    /// bucket a full one is as good as never met.
    pub reply_buckets: u32,
    /// Maximum number of (Service port, backend) pairs with their own counters.
    pub targets_max: usize,
    /// Seed of a new connection table's hashes. 0 chooses a random one, so that attackers cannot target a bucket. The reply filter has a key
    /// of its own.
    pub hash_seed: u64,
    /// What a worker does when idle.
    pub idle: Idle,
    /// The CPU of each worker; the scheduler places workers without an entry.
    pub cpus: Vec<usize>,
    /// A worker with a heartbeat younger than this is alive.
    pub fresh: Duration,
    /// With a heartbeat older than `fresh` but younger than this, the filter drops the worker's frames.
    pub grace: Duration,
    /// What happens after the grace period.
    pub on_failure: OnFailure,
    /// Maximum number of frames held for neighbours.
    pub hold_frames_max: usize,
    /// How long a frame may wait for a neighbour.
    pub hold_max: Duration,
    /// Try zero-copy mode first.
    pub zero_copy: bool,
    /// Try packets of several frames (multi-buffer) first.
    pub segments: bool,
    /// The packet path: [`process`], or an empty one that measures the cost of the edge alone.
    pub path: PacketPath,
}

impl EdgeConfig {
    /// The default configuration for these interfaces.
    pub fn new(state_dir: impl Into<PathBuf>, interfaces: Vec<InterfaceName>) -> EdgeConfig {
        EdgeConfig {
            state_dir: state_dir.into(),
            interfaces,
            mac_addresses: Vec::new(),
            vlans: Vec::new(),
            internal: None,
            ring_size: RingSize::from_static(2048),
            frame_size: FrameSize::from_static(2048),
            headroom: Headroom::from_static(0),
            huge_pages: false,
            workers: WorkerCount::from_static(1),
            conntrack_capacity: 1 << 18,
            conntrack_file: None,
            conntrack_huge_pages: false,
            timeouts: Timeouts::default(),
            reply_buckets: 1 << 17,
            targets_max: 1 << 16,
            hash_seed: 0,
            idle: Idle::Sleep { after_us: 200 },
            cpus: Vec::new(),
            fresh: Duration::from_millis(500),
            grace: Duration::from_secs(2),
            on_failure: OnFailure::Pass,
            hold_frames_max: 1024,
            // The kernel gives up a neighbour after three requests, one a second.
            hold_max: Duration::from_secs(3),
            zero_copy: true,
            segments: true,
            path: process,
        }
    }

    pub fn validate(&self) -> Result<(), EdgeError> {
        let bad = |text: String| Err(EdgeError::Config(text));
        if self.interfaces.is_empty() {
            return bad("no interfaces: name at least one".into());
        }
        let internal = self.internal.iter().flat_map(|pair| [&pair.kernel_side, &pair.edge_side]);
        let names: Vec<&InterfaceName> = self.interfaces.iter().chain(internal).collect();
        if names.len() > PORTS_MAX {
            return bad(format!("{} interfaces: at most {PORTS_MAX}", names.len()));
        }
        if let Some((_, name)) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            return bad(format!("interface {name} is listed twice"));
        }
        if self.mac_addresses.len() > MAC_ADDRESSES_MAX || self.vlans.len() > VLANS_MAX {
            let (macs, vlans) = (self.mac_addresses.len(), self.vlans.len());
            return bad(format!("{macs} MAC addresses and {vlans} VLANs: at most {MAC_ADDRESSES_MAX} and {VLANS_MAX}"));
        }
        if self.conntrack_huge_pages && self.conntrack_file.is_some() {
            return bad("conntrack: a table in a file lies on huge pages when the file is in a hugetlbfs; turn hugePages off".into());
        }
        if self.cpus.len() > self.workers.get() as usize {
            return bad(format!("{} CPUs for {} workers", self.cpus.len(), self.workers));
        }
        if !self.reply_buckets.is_power_of_two() || self.reply_buckets > REPLY_BUCKETS_MAX {
            return bad(format!("{} reply buckets: a power of two up to {REPLY_BUCKETS_MAX}", self.reply_buckets));
        }
        if self.fresh < Duration::from_millis(200) || self.grace < self.fresh || self.grace > Duration::from_secs(3600) {
            return bad("heartbeat: fresh must be at least 200 ms, and grace between fresh and one hour".into());
        }
        if self.hold_frames_max > 65_536 || self.hold_max > Duration::from_secs(60) {
            return bad("held frames: at most 65536, for at most 60 s".into());
        }
        Ok(())
    }

    /// The number of fragments that a worker may hold.
    pub(crate) fn fragments_held_max(&self) -> usize {
        FRAGMENTS_HELD_MAX.div_ceil(self.workers.get() as usize).max(SENDER_SHARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named() {
        let eth0 = InterfaceName::from_static("eth0");
        let good = || EdgeConfig::new("/run/x", vec![eth0.clone()]);
        good().validate().unwrap();
        assert!(good().conntrack_capacity <= 4 * good().reply_buckets, "a full table, a quarter of the places");
        type Spoil = fn(&mut EdgeConfig);
        let bad: [(Spoil, &str); 9] = [
            (|c| c.interfaces.clear(), "no interfaces"),
            (|c| c.interfaces.push(c.interfaces[0].clone()), "eth0 is listed twice"),
            (|c| c.mac_addresses = vec!["00:00:5e:00:01:0a".parse().unwrap(); 9], "9 MAC addresses and 0 VLANs: at most 8 and 64"),
            (|c| c.vlans = vec![VlanId::from_static(100); 65], "0 MAC addresses and 65 VLANs"),
            (|c| (c.conntrack_huge_pages, c.conntrack_file) = (true, Some("/x".into())), "hugetlbfs"),
            (|c| c.cpus = vec![0, 1], "2 CPUs for 1 workers"),
            (|c| c.reply_buckets = 3, "reply buckets"),
            (|c| c.fresh = Duration::from_millis(1), "heartbeat"),
            (
                |c| {
                    let (kernel_side, edge_side) = (InterfaceName::from_static("nm0"), c.interfaces[0].clone());
                    c.internal = Some(InternalPair { kernel_side, edge_side, addresses: [None; 2] });
                },
                "listed twice",
            ),
        ];
        for (spoil, word) in bad {
            let mut config = good();
            spoil(&mut config);
            let text = config.validate().unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
    }
}
