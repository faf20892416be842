//! Receive side scaling: which worker a packet will come in at.
//!
//! A NIC hashes the addresses and ports of what it receives and finds the queue in an indirection table. Who knows the hash's key and
//! the table knows the queue beforehand, so the source port of a new connection can be chosen such that its answers come in at the
//! worker that opened it, whose caches know it. That is a preference and nothing more: every worker serves every connection.
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
/// In place of the worker of a queue that nobody owns.
const NOBODY: u16 = u16::MAX;

/// Why the worker of a packet cannot be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unpredictable {
    /// The key is shorter than [`KEY_BYTES_MIN`]: this many bytes.
    Key(usize),
    /// The indirection table is empty, or larger than [`ENTRIES_MAX`]: this many entries.
    Entries(usize),
    /// No kind of packet has its ports hashed, so no choice of a port makes a difference.
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
    /// With this kind.
    pub fn with(self, proto: Proto, v6: bool) -> Kinds {
        Kinds(self.0 | Kinds::bit(proto, v6))
    }

    /// Whether it is in.
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

    /// Whether it makes a difference: packets come in at several workers.
    pub fn divides(&self) -> bool {
        self.workers.len() > 1
    }

    /// The answers to a new connection, whose destination port is still to be chosen, as this worker sees them. `None`: the choice does
    /// not lead them to or away from it.
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
    /// The hash of what is the same in all.
    fixed: u32,
    /// What the two bytes of the destination port add to it.
    high: &'r [u32; 256],
    low: &'r [u32; 256],
    entries: &'r [u16],
    worker: u16,
}

impl Answers<'_> {
    /// Whether those to this port come in at the worker.
    #[inline]
    pub fn come_back(&self, port: u16) -> bool {
        let [high, low] = port.to_be_bytes();
        let hash = self.fixed ^ self.high[usize::from(high)] ^ self.low[usize::from(low)];
        // As drivers do; a table is never empty.
        self.entries[(hash % self.entries.len() as u32) as usize] == self.worker
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::SocketAddr;

    /// Key and vectors: Microsoft, "Verifying the RSS hash calculation"; also the data sheet of Intel's 82599, 7.1.2.8.3.
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b,
        0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];
    /// Destination, source, hash of the addresses, hash of addresses and ports.
    const VECTORS: [(&str, &str, u32, u32); 8] = [
        ("161.142.100.80:1766", "66.9.149.187:2794", 0x323e_8fc2, 0x51cc_c178),
        ("65.69.140.83:4739", "199.92.111.2:14230", 0xd718_262a, 0xc626_b0ea),
        ("12.22.207.184:38024", "24.19.198.95:12898", 0xd2d0_a5de, 0x5c2b_394a),
        ("209.142.163.6:2217", "38.27.205.30:48228", 0x8298_9176, 0xafc7_327f),
        ("202.188.127.2:1303", "153.39.163.191:44251", 0x5d18_09c5, 0x10e8_28a2),
        ("[3ffe:2501:200:3::1]:1766", "[3ffe:2501:200:1fff::7]:2794", 0x2cc1_8cd5, 0x4020_7d3d),
        ("[ff02::1]:4739", "[3ffe:501:8::260:97ff:fe40:efab]:14230", 0x0f0c_461c, 0xdde5_1bbf),
        ("[fe80::200:f8ff:fe21:67cf]:38024", "[3ffe:1900:4545:3:200:f8ff:fe21:67cf]:44251", 0x4b61_e985, 0x02d1_feef),
    ];

    fn tuple(proto: Proto, src: &str, dst: &str) -> Tuple {
        let (src, dst): (SocketAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        Tuple::new(proto, src.ip(), src.port(), dst.ip(), dst.port()).unwrap()
    }

    /// What is hashed of a packet.
    fn input(t: &Tuple, ports: bool) -> Vec<u8> {
        let skip = if t.v6 { 0 } else { 12 };
        let ports: &[u16] = if ports { &[t.sport, t.dport] } else { &[] };
        let mut input = [&bytes(t.src)[skip..], &bytes(t.dst)[skip..]].concat();
        input.extend(ports.iter().flat_map(|p| p.to_be_bytes()));
        input
    }

    /// Bit by bit, as Microsoft's pseudocode.
    fn naive(key: &[u8], input: &[u8]) -> u32 {
        let bit = |bytes: &[u8], i: usize| u32::from(bytes[i / 8] >> (7 - i % 8)) & 1;
        let window = |i: usize| (i..i + 32).fold(0, |w, i| (w << 1) | bit(key, i));
        (0..8 * input.len()).filter(|&i| bit(input, i) == 1).fold(0, |hash, i| hash ^ window(i))
    }

    fn all_kinds() -> Kinds {
        let kinds = [Proto::Tcp, Proto::Udp, Proto::Sctp].into_iter().flat_map(|proto| [(proto, false), (proto, true)]);
        kinds.fold(Kinds::default(), |kinds, (proto, v6)| kinds.with(proto, v6))
    }

    #[test]
    fn the_published_vectors() {
        let toeplitz = Toeplitz::new(&KEY).unwrap();
        let one_to_one: Vec<u16> = (0..128).collect();
        let queues: Vec<u32> = (0..128).collect();
        let rss = Rss::new(&KEY, &queues, &one_to_one, all_kinds()).unwrap();
        for (dst, src, addresses, ports) in VECTORS {
            let t = tuple(Proto::Tcp, src, dst);
            assert_eq!(naive(&KEY, &input(&t, true)), ports, "the twin, {t}");
            assert_eq!(toeplitz.hash(input(&t, false).into_iter()), addresses, "{t}");
            assert_eq!(toeplitz.hash(input(&t, true).into_iter()), ports, "{t}");
            let at = |worker| rss.answers(&t, worker).unwrap().come_back(t.dport);
            assert_eq!((0..128).filter(|&w| at(w)).collect::<Vec<u16>>(), [(ports & 127) as u16], "{t}");
        }
    }

    #[test]
    fn what_cannot_be_predicted_is_said() {
        let tcp4 = Kinds::default().with(Proto::Tcp, false);
        let new = |key: &[u8], entries: usize, kinds| Rss::new(key, &vec![0; entries], &[0], kinds).map(|rss| rss.entries());
        assert_eq!(new(&KEY, 128, tcp4), Ok(128));
        assert_eq!(new(&[1; 52], 512, tcp4), Ok(512), "a longer key");
        assert_eq!(new(&KEY[..39], 128, tcp4), Err(Unpredictable::Key(39)));
        assert_eq!(new(&[], 128, tcp4), Err(Unpredictable::Key(0)));
        assert_eq!(new(&KEY, 0, tcp4), Err(Unpredictable::Entries(0)));
        assert_eq!(new(&KEY, ENTRIES_MAX, tcp4), Ok(ENTRIES_MAX));
        assert_eq!(new(&KEY, ENTRIES_MAX + 1, tcp4), Err(Unpredictable::Entries(ENTRIES_MAX + 1)));
        assert_eq!(new(&KEY, 128, Kinds::default()), Err(Unpredictable::AddressesOnly));
    }

    #[test]
    fn only_workers_with_queues_and_kinds_with_ports_have_a_choice() {
        let udp6 = Kinds::default().with(Proto::Udp, true);
        let (v4, v6) = ("10.0.0.1:80", "[fd00::1]:80");
        let rss = Rss::new(&KEY, &[0, 1, 2, 9], &[5, 5, 7], udp6).unwrap();
        assert!(rss.divides());
        assert!(rss.answers(&tuple(Proto::Udp, v6, v6), 5).is_some());
        assert!(rss.answers(&tuple(Proto::Udp, v6, v6), 7).is_some());
        for worker in [0, 6, NOBODY] {
            assert!(rss.answers(&tuple(Proto::Udp, v6, v6), worker).is_none(), "{worker}");
        }
        for other in [tuple(Proto::Tcp, v6, v6), tuple(Proto::Sctp, v6, v6), tuple(Proto::Udp, v4, v4)] {
            assert!(rss.answers(&other, 5).is_none(), "{other}");
        }
        assert!(!Rss::new(&KEY, &[0, 1], &[3, 3], udp6).unwrap().divides(), "one worker");
        assert!(!Rss::new(&KEY, &[4, 5], &[0, 1], udp6).unwrap().divides(), "nobody's queues");
        assert_eq!(format!("{rss:?}"), "Rss { 4 entries, workers: [5, 7], ports_hashed: Kinds(8) }");
    }

    proptest! {
        #[test]
        fn the_worker_is_that_of_the_naive_hash(
            key in proptest::collection::vec(any::<u8>(), KEY_BYTES_MIN..64),
            queues in proptest::collection::vec(0u32..6, 1..300),
            owners in proptest::collection::vec(0u16..4, 1..6),
            (src, dst, v6) in (any::<[u64; 2]>(), any::<[u64; 2]>(), any::<bool>()),
            (sport, dport) in any::<(u16, u16)>(),
            proto in prop_oneof![Just(Proto::Tcp), Just(Proto::Udp), Just(Proto::Sctp)],
        ) {
            let addr = |[high, low]: AddrWords| if v6 { [high, low] } else { [0, low & 0xffff_ffff] };
            let t = Tuple { src: addr(src), dst: addr(dst), sport, dport, proto, v6 };
            let rss = Rss::new(&key, &queues, &owners, all_kinds()).unwrap();
            let queue = queues[naive(&key, &input(&t, true)) as usize % queues.len()];
            for worker in 0..4 {
                let expected = owners.get(queue as usize) == Some(&worker);
                // A worker that no answer comes in at has no choice.
                let here = rss.answers(&t, worker).is_some_and(|answers| answers.come_back(dport));
                prop_assert_eq!(here, expected, "worker {}", worker);
            }
        }
    }
}
