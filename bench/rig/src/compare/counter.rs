//! The counter at the far end: a tc program counts frames and their latency on ingress.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use anyhow::{Context, Result};
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::{SchedClassifier, TcAttachType, tc};
use aya::{Ebpf, EbpfLoader};
use hdrhistogram::Histogram;

use super::topology::Ends;

/// Kinds of traffic, told apart by the lowest bit of the run: `RUNS` of bpf/count.c.
pub const KINDS: usize = 2;
/// `LATENCIES` and `STEP_BITS` of bpf/count.c.
const LATENCIES: u32 = 40 << STEP_BITS;
const STEP_BITS: u32 = 5;
/// Bytes of `struct counts`.
const COUNTS_LEN: usize = 16;
/// Bytes of `struct watch`.
const WATCH_LEN: usize = 24;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/count.o"));

/// The counter on one interface of the sink; dropping it detaches the program.
pub struct Counter {
    ebpf: Ebpf,
    watches: Array<MapData, [u8; WATCH_LEN]>,
}

/// Frames and bytes (without FCS) of each kind of traffic.
pub type Counted = [(u64, u64); KINDS];

impl Counter {
    /// Attaches to an interface of the sink's namespace.
    pub fn open(ends: &Ends, interface: &str) -> Result<Counter> {
        ends.sink.run(|| {
            let mut loader = EbpfLoader::new();
            // No relocations against the kernel's types: its BTF is not needed.
            loader.btf(None);
            let mut ebpf = loader.load(OBJECT).context("cannot load the counter's BPF program (needs CAP_BPF and CAP_NET_ADMIN)")?;
            let program: &mut SchedClassifier = ebpf.program_mut("count").context("the object has no program count")?.try_into()?;
            program.load().context("the kernel refused the counter's BPF program")?;
            // Needed without TCX (before Linux 6.6). It may exist already.
            let _ = tc::qdisc_add_clsact(interface);
            program.attach(interface, TcAttachType::Ingress).with_context(|| format!("{interface}: no tc program can be attached"))?;
            let watches = Array::try_from(ebpf.take_map("watches").context("the object has no map watches")?)?;
            Ok(Counter { ebpf, watches })
        })?
    }

    pub fn read(&self) -> Result<Counted> {
        let map = PerCpuArray::<_, [u8; COUNTS_LEN]>::try_from(self.ebpf.map("counted").context("the object has no map counted")?)?;
        let mut counted = [(0, 0); KINDS];
        for (kind, sums) in counted.iter_mut().enumerate() {
            for value in map.get(&(kind as u32), 0).context("cannot read the counter")?.iter() {
                let word = |n: usize| value.as_chunks::<8>().0.get(n).map_or(0, |w| u64::from_ne_bytes(*w));
                *sums = (sums.0 + word(0), sums.1 + word(1));
            }
        }
        Ok(counted)
    }

    /// `reflect` sends UDP frames back to their source, which establishes flows in both directions. `addresses`:
    /// [`Counter::first_ns`] is the time of the first frame to one of them.
    pub fn watch(&mut self, reflect: bool, addresses: Option<RangeInclusive<Ipv4Addr>>) -> Result<()> {
        let (low, high) = addresses.map_or((0, 0), |range| (range.start().to_bits(), range.end().to_bits()));
        let mut value = [0; WATCH_LEN];
        for (word, to) in [u32::from(reflect), low, high].into_iter().zip(value.as_chunks_mut::<4>().0) {
            *to = word.to_ne_bytes();
        }
        self.watches.set(0, value, 0).context("cannot tell the counter what to watch")
    }

    /// When the first frame to one of the watched addresses arrived, in nanoseconds of CLOCK_MONOTONIC.
    pub fn first_ns(&self) -> Result<Option<u64>> {
        let value = self.watches.get(&0, 0).context("cannot read the counter")?;
        let ns = value.as_chunks::<8>().0.last().map_or(0, |w| u64::from_ne_bytes(*w));
        Ok((ns > 0).then_some(ns))
    }

    /// The latencies of all frames so far: a count for each step.
    pub fn latencies(&self) -> Result<Vec<u64>> {
        let map = PerCpuArray::<_, u64>::try_from(self.ebpf.map("latencies").context("the object has no map latencies")?)?;
        (0..LATENCIES).map(|n| Ok(map.get(&n, 0).context("cannot read the counter")?.iter().sum())).collect()
    }
}

/// The histogram between two readings of [`Counter::latencies`], in nanoseconds. A value counts as the middle of its step.
pub fn histogram(before: &[u64], after: &[u64]) -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, 1 << 40, 3).expect("the bounds and digits are fixed and valid");
    for (place, (before, after)) in before.iter().zip(after).enumerate() {
        // Recording nothing would still count as the largest value.
        let n = after.saturating_sub(*before);
        if n == 0 {
            continue;
        }
        let (low, width) = step(place as u64);
        // Cannot fail: every step lies within the bounds.
        let _ = histogram.record_n(low + width / 2, n);
    }
    histogram
}

/// The lowest value of a step, and its width, in nanoseconds.
fn step(place: u64) -> (u64, u64) {
    let (power, rest) = (place >> STEP_BITS, place & ((1 << STEP_BITS) - 1));
    if power == 0 { (place, 1) } else { (((1 << STEP_BITS) | rest) << (power - 1), 1 << (power - 1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The place that bpf/count.c finds.
    fn place(ns: u64) -> u64 {
        let log = 63 - u64::from(ns.max(1).leading_zeros());
        let bits = u64::from(STEP_BITS);
        if log < bits { ns } else { ((log - bits + 1) << bits) + ((ns >> (log - bits)) & 31) }
    }

    #[test]
    fn every_latency_lies_in_its_step() {
        let values = (0..63).flat_map(|n| [1u64 << n, (1 << n) + 1, (1 << n) | (1 << n >> 1)]).filter(|v| *v < 1 << 40);
        for ns in values.chain(0..5_000) {
            let (low, width) = step(place(ns));
            assert!((low..low + width).contains(&ns), "{ns}: {low} + {width}");
            assert!(width as f64 <= (ns.max(32) as f64) / 32.0, "{ns}: {width}");
        }
    }

    #[test]
    fn a_histogram_of_the_difference() {
        let (before, mut after) = (vec![5; LATENCIES as usize], vec![5; LATENCIES as usize]);
        after[place(10_000) as usize] += 99;
        after[place(1_000_000) as usize] += 1;
        let histogram = histogram(&before, &after);
        assert_eq!(histogram.len(), 100);
        assert!((9_700..10_300).contains(&histogram.value_at_quantile(0.5)), "{}", histogram.value_at_quantile(0.5));
        assert!((970_000..1_030_000).contains(&histogram.max()));
    }
}
