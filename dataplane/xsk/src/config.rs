//! What the edge is told at its start, and the limits of it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use arrayvec::ArrayVec;
use nomagic_core::conntrack::Timeouts;
use nomagic_core::frame::{BATCH_MAX, Frame, Outputs, Verdict};
use nomagic_core::pipeline::{Context, process};

use crate::error::EdgeError;
use crate::limits::{FrameSize, Headroom, InterfaceName, RingSize, WorkerCount};

/// Queues of one interface at the most.
pub const QUEUES_MAX: u32 = 256;
/// Buckets of the reply filter at the most: 2 GiB, half as many as the largest connection table has connections.
pub const REPLY_BUCKETS_MAX: u32 = 1 << 25;
/// Interfaces at the most, the internal port included.
pub const PORTS_MAX: usize = 64;
/// Redirect ports at the most.
pub const REDIRECTS_MAX: usize = 4096;

/// What a worker does with a batch of frames: one verdict a frame, in order.
pub type PacketPath = for<'f> fn(&mut Context<'_>, &mut [Frame<'f>], &mut ArrayVec<Verdict, BATCH_MAX>, &mut Outputs<'f>);

/// What a worker does when no frames come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// Polls on: the shortest latency, and a whole CPU.
    Spin,
    /// Sleeps in poll(2) after this many microseconds without a frame.
    Sleep {
        /// Microseconds of patience.
        after_us: u64,
    },
}

/// What the XDP filter does with our frames once the worker is known to be gone for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnFailure {
    /// Leaves them to the kernel (a kernel proxy takes over).
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
    /// Addresses that the kernel always routes into it, by family: they are not given back to the kernel when no worker is alive.
    pub addresses: [Option<IpAddr>; 2],
}

/// Configuration of the edge.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    /// Directory of the process's state; the pins live in a bpffs on `<state_dir>/bpf`.
    pub state_dir: PathBuf,
    /// The interfaces that carry Service traffic.
    pub interfaces: Vec<InterfaceName>,
    /// The way back to the kernel, if there is one.
    pub internal: Option<InternalPair>,
    /// Entries of each ring.
    pub ring_size: RingSize,
    /// Bytes of a frame's buffer; 256 of them are headroom.
    pub frame_size: FrameSize,
    /// Bytes of headroom in addition to those 256.
    pub headroom: Headroom,
    /// Frames lie on huge pages of 2 MiB, which must have been set aside.
    pub huge_pages: bool,
    /// Worker threads.
    pub workers: WorkerCount,
    /// Connections at the most.
    pub conntrack_capacity: u32,
    /// The file of the connection table, which the next process goes on with; `None`: memory of this process alone.
    pub conntrack_file: Option<PathBuf>,
    /// A table without a file lies on huge pages of 2 MiB, which must have been set aside. (With one, its file system decides.)
    pub conntrack_huge_pages: bool,
    /// How long idle connections are remembered.
    pub timeouts: Timeouts,
    /// Buckets of the reply filter (16 connections each), a power of two.
    pub reply_buckets: u32,
    /// (Service port, backend) pairs with counters of their own.
    pub targets_max: usize,
    /// Seed of a new connection table's hashes and the reply filter's; 0: a random one, so that nobody can aim at a bucket.
    pub hash_seed: u64,
    /// What the worker does when idle.
    pub idle: Idle,
    /// The CPU of each worker; those that are not named are left to the scheduler.
    pub cpus: Vec<usize>,
    /// A heartbeat younger than this means that the worker is alive.
    pub fresh: Duration,
    /// A heartbeat older than `fresh` but younger than this: our frames are dropped.
    pub grace: Duration,
    /// What happens after the grace period.
    pub on_failure: OnFailure,
    /// Frames that may wait for neighbours at the most.
    pub hold_frames_max: usize,
    /// How long a frame may wait for its neighbour.
    pub hold_max: Duration,
    /// Zero-copy mode is tried first when true.
    pub zero_copy: bool,
    /// The packet path: [`process`], or an empty one that shows what the edge costs by itself.
    pub path: PacketPath,
}

impl EdgeConfig {
    /// The defaults for these interfaces.
    pub fn new(state_dir: impl Into<PathBuf>, interfaces: Vec<InterfaceName>) -> EdgeConfig {
        EdgeConfig {
            state_dir: state_dir.into(),
            interfaces,
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
            reply_buckets: 1 << 15,
            targets_max: 1 << 16,
            hash_seed: 0,
            idle: Idle::Sleep { after_us: 200 },
            cpus: Vec::new(),
            fresh: Duration::from_millis(500),
            grace: Duration::from_secs(2),
            on_failure: OnFailure::Pass,
            hold_frames_max: 1024,
            hold_max: Duration::from_secs(1),
            zero_copy: true,
            path: process,
        }
    }

    /// Checks the limits.
    pub fn validate(&self) -> Result<(), EdgeError> {
        let bad = |text: String| Err(EdgeError::Config(text));
        if self.interfaces.is_empty() {
            return bad("no interfaces: name at least one".into());
        }
        let internal = self.internal.iter().flat_map(|pair| [&pair.kernel_side, &pair.edge_side]);
        let names: Vec<&InterfaceName> = self.interfaces.iter().chain(internal).collect();
        if names.len() > PORTS_MAX {
            return bad(format!("{} interfaces: {PORTS_MAX} at the most", names.len()));
        }
        if let Some((_, name)) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            return bad(format!("interface {name} is named twice"));
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
            return bad("held frames: 65536 and 60 s at the most".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named() {
        let eth0 = InterfaceName::from_static("eth0");
        let good = || EdgeConfig::new("/run/x", vec![eth0.clone()]);
        assert!(good().validate().is_ok());
        type Spoil = fn(&mut EdgeConfig);
        let bad: [(Spoil, &str); 7] = [
            (|c| c.interfaces.clear(), "no interfaces"),
            (|c| c.interfaces.push(c.interfaces[0].clone()), "eth0 is named twice"),
            (|c| (c.conntrack_huge_pages, c.conntrack_file) = (true, Some("/x".into())), "hugetlbfs"),
            (|c| c.cpus = vec![0, 1], "2 CPUs for 1 workers"),
            (|c| c.reply_buckets = 3, "reply buckets"),
            (|c| c.fresh = Duration::from_millis(1), "heartbeat"),
            (
                |c| {
                    let (kernel_side, edge_side) = (InterfaceName::from_static("nm0"), c.interfaces[0].clone());
                    c.internal = Some(InternalPair { kernel_side, edge_side, addresses: [None; 2] });
                },
                "named twice",
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
