//! Receive side scaling: predicts which worker receives a packet.
//!
//! A NIC hashes the addresses and ports of received packets and finds the queue in an indirection table. With the hash key and the table,
//! the queue is known beforehand, so the source port of a new flow can be chosen such that its answers arrive at the worker that opened it,
//! whose caches hold it. This is only a preference: every worker serves every flow.
//!
//! The hash is Toeplitz's, as Microsoft defines it ("RSS hashing functions", Windows driver documentation): addresses, then ports, in
//! network order. It is tested against the vectors published there. Whether a NIC does what its driver says has not been tested: no NIC
//! with several queues was at hand. Steering rules (`ethtool -N`) and further RSS contexts are not looked at.

use std::fmt;

use crate::tuple::{AddrWords, Proto, Tuple};

/// Bytes of key that the longest input needs: two IPv6 addresses and two ports, and the 32 bits of the hash beyond them.
pub const KEY_BYTES_MIN: usize = INPUT_BYTES_MAX + 4;
/// Entries of an indirection table at the most; NICs have 128 to a few thousand.
pub const ENTRIES_MAX: usize = 1 << 14;

const INPUT_BYTES_MAX: usize = 36;
/// Stands for the worker of a queue without an owner.
const NOBODY: u16 = u16::MAX;

/// Why the worker of a packet cannot be predicted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unpredictable {
    /// The key is shorter than [`KEY_BYTES_MIN`]: this many bytes.
    Key(usize),
    /// The indirection table is empty, or larger than [`ENTRIES_MAX`]: this many entries.
    Entries(usize),
    /// Ports are hashed for no kind of packet, so the choice of a port makes no difference.
    AddressesOnly,
}

impl fmt::Display for Unpredictable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unpredictable::Key(bytes) => write!(f, "the hash key has {bytes} bytes: at least {KEY_BYTES_MIN} are needed"),
            Unpredictable::Entries(entries) => write!(f, "the indirection table has {entries} entries: 1 to {ENTRIES_MAX} are expected"),
            Unpredictable::AddressesOnly => {
                f.write_str("ports are not hashed (`ethtool -N IFACE rx-flow-hash udp4 sdfn`, tcp4, udp6, tcp6)")
            }
        }
    }
}

/// A set of kinds of packet: protocol and family.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Kinds(u8);

impl Kinds {
    /// Adds a kind.
    pub fn with(self, proto: Proto, v6: bool) -> Kinds {
        Kinds(self.0 | Kinds::bit(proto, v6))
    }

    /// Whether the set has this kind.
    pub fn contains(self, proto: Proto, v6: bool) -> bool {
        self.0 & Kinds::bit(proto, v6) != 0
    }

    fn bit(proto: Proto, v6: bool) -> u8 {
        let place = match proto {
            Proto::Tcp => 0,
            Proto::Udp => 1,
            Proto::Sctp => 2,
        };
        1 << (2 * place + u8::from(v6))
    }
}

/// The Toeplitz hash under one key. The hash of an input is the xor of its bytes' hashes: here is a table of them for each place.
#[derive(PartialEq, Eq)]
struct Toeplitz(Vec<[u32; 256]>);

impl Toeplitz {
    /// Only the first [`KEY_BYTES_MIN`] bytes of a longer key count.
    fn new(key: &[u8]) -> Result<Toeplitz, Unpredictable> {
        let key = key.get(..KEY_BYTES_MIN).ok_or(Unpredictable::Key(key.len()))?;
        Ok(Toeplitz(key.windows(5).map(place).collect()))
    }

    /// The hash of the first [`INPUT_BYTES_MAX`] bytes.
    #[inline]
    fn hash(&self, input: impl Iterator<Item = u8>) -> u32 {
        self.0.iter().zip(input).fold(0, |hash, (place, byte)| hash ^ place[usize::from(byte)])
    }
}

/// The hashes of all bytes at the place where this part of the key begins: each bit of a byte adds the 32 bits of the key from its own
/// place on.
fn place(key: &[u8]) -> [u32; 256] {
    let key = key.iter().fold(0, |bits, byte| (bits << 8) | u64::from(*byte));
    let mut hashes = [0; 256];
    for byte in 1..256usize {
        hashes[byte] = hashes[byte & (byte - 1)] ^ (key >> (byte.trailing_zeros() + 1)) as u32;
    }
    hashes
}

/// How a port spreads what it receives over the workers. Immutable.
#[derive(PartialEq, Eq)]
pub struct Rss {
    toeplitz: Toeplitz,
    /// The worker of each entry of the indirection table.
    entries: Vec<u16>,
    /// Those workers, each once.
    workers: Vec<u16>,
    ports_hashed: Kinds,
}

impl Rss {
    /// From a NIC's settings. `queues`: the indirection table; `owners`: the worker of each queue; `ports_hashed`: kinds of packet whose
    /// ports are hashed beside their addresses.
    pub fn new(key: &[u8], queues: &[u32], owners: &[u16], ports_hashed: Kinds) -> Result<Rss, Unpredictable> {
        if queues.is_empty() || queues.len() > ENTRIES_MAX {
            return Err(Unpredictable::Entries(queues.len()));
        }
        if ports_hashed == Kinds::default() {
            return Err(Unpredictable::AddressesOnly);
        }
        let entries: Vec<u16> = queues.iter().map(|&queue| owners.get(queue as usize).copied().unwrap_or(NOBODY)).collect();
        let mut workers: Vec<u16> = entries.iter().copied().filter(|&worker| worker != NOBODY).collect();
        workers.sort_unstable();
        workers.dedup();
        Ok(Rss { toeplitz: Toeplitz::new(key)?, entries, workers, ports_hashed })
    }

    /// Entries of the indirection table.
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Whether packets arrive at several workers.
    pub fn divides(&self) -> bool {
        self.workers.len() > 1
    }

    /// The answers to a new flow whose source port is not chosen yet, from this worker's point of view. `None`: the port makes no
    /// difference to this worker.
    #[inline]
    pub fn answers(&self, reply: &Tuple, worker: u16) -> Option<Answers<'_>> {
        if !self.ports_hashed.contains(reply.proto, reply.v6) || !self.workers.contains(&worker) {
            return None;
        }
        let (src, dst, first) = (bytes(reply.src), bytes(reply.dst), if reply.v6 { 0 } else { 12 });
        let fixed = src[first..].iter().chain(&dst[first..]).copied().chain(reply.sport.to_be_bytes());
        let [high, low] = self.toeplitz.0.get(2 * (16 - first) + 2..)?.first_chunk()?;
        Some(Answers { fixed: self.toeplitz.hash(fixed), high, low, entries: &self.entries, worker })
    }
}

/// An address in network order; IPv4 is the last four bytes.
fn bytes(addr: AddrWords) -> [u8; 16] {
    ((u128::from(addr[0]) << 64) | u128::from(addr[1])).to_be_bytes()
}

impl fmt::Debug for Rss {
    /// Without the tables.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rss { workers, ports_hashed, .. } = self;
        write!(f, "Rss {{ {} entries, workers: {workers:?}, ports_hashed: {ports_hashed:?} }}", self.entries())
    }
}

/// Packets that differ in their destination port only.
#[derive(Clone)]
pub struct Answers<'r> {
    /// The hash of the common parts.
    fixed: u32,
    /// The hashes of the destination port's two bytes.
    high: &'r [u32; 256],
    low: &'r [u32; 256],
    entries: &'r [u16],
    worker: u16,
}

impl Answers<'_> {
    /// Whether answers to this port arrive at the worker.
    #[inline]
    pub fn come_back(&self, port: u16) -> bool {
        let [high, low] = port.to_be_bytes();
        let hash = self.fixed ^ self.high[usize::from(high)] ^ self.low[usize::from(low)];
        // As drivers do; a table is never empty.
        self.entries[(hash % self.entries.len() as u32) as usize] == self.worker
    }
}

#[cfg(test)]
mod tests;
