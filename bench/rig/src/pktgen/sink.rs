//! The receiving end: an XDP program takes the generator's frames, and AF_XDP sockets check them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{PerCpuArray, XskMap};
use aya::programs::{Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use hdrhistogram::Histogram;
use nomagic_sys::time::monotonic_ns;

use super::check::{Checker, SinkCounts};
use super::interface::Interface;
use super::xsk::Xsk;

/// The most queues of an interface: entries of `xsks` in bpf/sink.c.
const QUEUES_MAX: u32 = 64;
/// Bytes of `struct counts`.
const COUNTS_LEN: usize = 24;
/// The longest wait for frames, and the pause between readings of the counters.
const WAIT_MS: i32 = 10;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sink.o"));

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SinkMode {
    /// Checks each frame: loss, order, duplicates, corruption, latency.
    Check {
        /// The run to expect.
        run: u16,
        flows: u32,
    },
    /// Counts frames in the XDP program and drops them there: for rates above those of sockets.
    Count {
        /// Take all TCP and UDP, not only frames with the generator's payload.
        any_payload: bool,
    },
}

/// Shared with other threads.
#[derive(Debug, Default)]
pub struct SinkControl {
    pub stop: AtomicBool,
    pub received: AtomicU64,
}

#[derive(Clone, Debug)]
pub struct SinkResult {
    /// Frames that the XDP program received.
    pub arrived: u64,
    /// Bytes of them, without FCS.
    pub arrived_bytes: u64,
    /// Those that were lost before the sockets: ring full, no memory, or a queue without a socket.
    pub lost_at_sockets: u64,
    /// `None` when frames were only counted.
    pub checked: Option<Checked>,
    /// Native mode, not generic.
    pub native: bool,
}

#[derive(Clone, Debug)]
pub struct Checked {
    pub counts: SinkCounts,
    /// Flows with at least one frame.
    pub flows_seen: u64,
    /// Time from writing a frame to receiving it, in nanoseconds.
    pub latency_ns: Histogram<u32>,
}

/// A sink on an interface, ready to receive. Dropping it detaches the program.
pub struct Sink {
    ebpf: Ebpf,
    sockets: Vec<Xsk>,
    checker: Option<Checker>,
    native: bool,
}

impl Sink {
    /// Attaches to an interface of the calling thread's namespace.
    pub fn open(interface: &Interface, mode: SinkMode) -> Result<Sink> {
        let name = &interface.link.name;
        ensure!(interface.link.xdp.is_none(), "--rx {name}: an XDP program is attached already (`ip link show {name}`)");
        ensure!(interface.queues <= QUEUES_MAX, "--rx {name}: {} receive queues; at most {QUEUES_MAX} (`ethtool -L`)", interface.queues);
        let (count_only, any_payload) = match mode {
            SinkMode::Check { .. } => (0u32, 0u32),
            SinkMode::Count { any_payload } => (1, any_payload.into()),
        };
        let mut loader = EbpfLoader::new();
        // No relocations against the kernel's types: its BTF is not needed.
        loader.btf(None);
        loader.override_global("count_only", &count_only, true);
        loader.override_global("any_payload", &any_payload, true);
        let mut ebpf = loader.load(OBJECT).context("cannot load the sink's XDP program (needs CAP_BPF and CAP_NET_ADMIN)")?;
        let program: &mut Xdp = ebpf.program_mut("sink").context("the object has no program sink")?.try_into()?;
        program.load().context("the kernel refused the sink's XDP program")?;
        let checker = match mode {
            SinkMode::Check { run, flows } => Some(Checker::new(run, flows)),
            SinkMode::Count { .. } => None,
        };
        let sockets = if checker.is_some() { bind_all(&mut ebpf, name, interface.queues)? } else { Vec::new() };
        let program: &mut Xdp = ebpf.program_mut("sink").context("the object has no program sink")?.try_into()?;
        let index = interface.link.ifindex;
        let native = program.attach_to_if_index(index, XdpMode::Driver).is_ok();
        if !native {
            program.attach_to_if_index(index, XdpMode::Skb).with_context(|| format!("--rx {name}: no XDP program can be attached"))?;
        }
        Ok(Sink { ebpf, sockets, checker, native })
    }

    pub fn run(mut self, control: &SinkControl) -> Result<SinkResult> {
        while !control.stop.load(Relaxed) {
            let received = match &self.checker {
                None => {
                    std::thread::sleep(Duration::from_millis(WAIT_MS as u64));
                    self.counted()?.0
                }
                Some(_) => {
                    if self.look()? == 0 {
                        self.wait()?;
                    }
                    self.checker.as_ref().map_or(0, |c| c.counts().received)
                }
            };
            control.received.store(received, Relaxed);
        }
        self.result()
    }

    fn look(&mut self) -> Result<usize> {
        let Some(checker) = &mut self.checker else { return Ok(0) };
        let mut n = 0;
        for socket in &mut self.sockets {
            let mut now = None;
            // One timestamp for the batch, taken at its first frame.
            n += socket.receive(|frame| checker.observe(frame, *now.get_or_insert_with(monotonic_ns))).context("AF_XDP receive")?;
        }
        Ok(n)
    }

    /// Waits for frames: poll on a single socket, a short sleep with several.
    fn wait(&mut self) -> Result<()> {
        match &mut self.sockets[..] {
            [one] => one.wait(WAIT_MS).context("AF_XDP poll").map(drop),
            _ => {
                std::thread::sleep(Duration::from_micros(20));
                Ok(())
            }
        }
    }

    /// The program's counters: `(frames, bytes, frames without a socket)`.
    fn counted(&self) -> Result<(u64, u64, u64)> {
        let map = self.ebpf.map("counted").context("the object has no map counted")?;
        let values = PerCpuArray::<_, [u8; COUNTS_LEN]>::try_from(map)?.get(&0, 0).context("cannot read the sink's counters")?;
        let mut sums = [0; 3];
        for value in values.iter() {
            for (sum, word) in sums.iter_mut().zip(value.as_chunks::<8>().0) {
                *sum += u64::from_ne_bytes(*word);
            }
        }
        Ok((sums[0], sums[1], sums[2]))
    }

    fn result(mut self) -> Result<SinkResult> {
        // Frames that are still on the rings belong to the result.
        while self.look()? > 0 {}
        let (arrived, arrived_bytes, unserved) = self.counted()?;
        let mut lost_at_sockets = unserved;
        for socket in &self.sockets {
            let (ring_full, dropped) = socket.lost().context("AF_XDP statistics")?;
            lost_at_sockets += ring_full + dropped;
        }
        let checked = self.checker.map(|c| Checked { counts: c.counts(), flows_seen: c.flows_seen(), latency_ns: c.latency_ns().clone() });
        Ok(SinkResult { arrived, arrived_bytes, lost_at_sockets, checked, native: self.native })
    }
}

fn bind_all(ebpf: &mut Ebpf, name: &str, queues: u32) -> Result<Vec<Xsk>> {
    let mut xsks = XskMap::try_from(ebpf.map_mut("xsks").context("the object has no map xsks")?)?;
    let mut sockets = Vec::new();
    for queue in 0..queues {
        let mut socket = match Xsk::bind(name, queue) {
            Ok(socket) => socket,
            // An interface may use fewer queues than it was created with.
            Err(_) if queue > 0 => break,
            Err(e) => return Err(e),
        };
        socket.refill().context("AF_XDP fill ring")?;
        xsks.set(queue, socket.fd(), 0).context("cannot map a queue to its socket")?;
        sockets.push(socket);
    }
    Ok(sockets)
}
