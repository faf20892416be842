//! The five values that name a connection, and the hash that spreads them.
//!
//! A [`Tuple`] is what the packet path passes around: both families in one fixed-size value, compared
//! word by word, convertible to and from `std::net` types at the edges.

mod prefix;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::frame::PortId;
use crate::wire::protocol;

pub use prefix::{Prefix, PrefixSet, mask_addr};

/// A transport protocol that Services can name (Kubernetes `ServicePort.protocol`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Proto {
    /// TCP, RFC 9293.
    Tcp = protocol::TCP,
    /// UDP, RFC 768.
    Udp = protocol::UDP,
    /// SCTP, RFC 9260.
    Sctp = protocol::SCTP,
}

impl Proto {
    /// The protocol with this number in an IP header, if Services can name it.
    pub fn from_ip_number(n: u8) -> Option<Proto> {
        match n {
            protocol::TCP => Some(Proto::Tcp),
            protocol::UDP => Some(Proto::Udp),
            protocol::SCTP => Some(Proto::Sctp),
            _ => None,
        }
    }

    /// The name Kubernetes uses: `TCP`, `UDP`, `SCTP`.
    pub fn name(self) -> &'static str {
        match self {
            Proto::Tcp => "TCP",
            Proto::Udp => "UDP",
            Proto::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An IP address of either family in two words. IPv4 sits in the low 32 bits of the second word; the family
/// is kept beside it (see [`Tuple`]), so an IPv4-mapped IPv6 address is never taken for an IPv4 one.
pub type AddrWords = [u64; 2];

/// Splits an address into words: `(words, is_v6)`.
pub fn addr_words(addr: IpAddr) -> (AddrWords, bool) {
    match addr {
        IpAddr::V4(a) => ([0, u64::from(u32::from(a))], false),
        IpAddr::V6(a) => {
            let n = u128::from(a);
            ([(n >> 64) as u64, n as u64], true)
        }
    }
}

/// The inverse of [`addr_words`].
pub fn words_addr(words: AddrWords, v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::from((u128::from(words[0]) << 64) | u128::from(words[1])))
    } else {
        IpAddr::V4(Ipv4Addr::from(words[1] as u32))
    }
}

/// Source, destination, ports and protocol of a packet, in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub src: AddrWords,
    /// Destination address.
    pub dst: AddrWords,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Transport protocol.
    pub proto: Proto,
    /// True for IPv6.
    pub v6: bool,
}

impl Tuple {
    /// Builds a tuple. Both addresses must be of one family: `None` otherwise.
    pub fn new(proto: Proto, src: IpAddr, sport: u16, dst: IpAddr, dport: u16) -> Option<Tuple> {
        let ((src, v6), (dst, dst_v6)) = (addr_words(src), addr_words(dst));
        (v6 == dst_v6).then_some(Tuple { src, dst, sport, dport, proto, v6 })
    }

    /// Source address.
    pub fn src_addr(&self) -> IpAddr {
        words_addr(self.src, self.v6)
    }

    /// Destination address.
    pub fn dst_addr(&self) -> IpAddr {
        words_addr(self.dst, self.v6)
    }

    /// The same connection seen from the other end.
    pub fn reversed(&self) -> Tuple {
        Tuple { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, ..*self }
    }

    /// All but the addresses in one word of [`META_BITS`]: source port, destination port, protocol, family.
    #[inline(always)]
    pub fn meta(&self) -> u64 {
        key_meta((u32::from(self.sport) << 16) | u32::from(self.dport), self.proto, self.v6)
    }

    /// The same values as words to hash and compare.
    #[inline(always)]
    pub fn key(&self) -> Key {
        let addrs = match self.v6 {
            true => [self.src[0], self.src[1], self.dst[0], self.dst[1]],
            false => [(self.src[1] << 32) | (self.dst[1] & 0xffff_ffff), 0, 0, 0],
        };
        Key { meta: self.meta(), addrs }
    }

    /// A keyed 64-bit hash; the same on every machine for the same seed.
    #[inline]
    pub fn hash(&self, seed: &HashSeed) -> u64 {
        self.key().hash(self.v6, seed)
    }
}

/// A [`Tuple`] as it is hashed and compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// [`Tuple::meta`].
    pub meta: u64,
    /// IPv6: two words of the source and two of the destination. IPv4: `source << 32 | destination`, and nothing.
    pub addrs: [u64; 4],
}

impl Key {
    /// See [`Tuple::hash`]. `v6` is what `meta` says, for callers whose compiler knows it.
    #[inline(always)]
    pub fn hash(&self, v6: bool, seed: &HashSeed) -> u64 {
        let (k, a) = (&seed.0, &self.addrs);
        let h = if v6 {
            let src = fold(a[0] ^ k[0], a[1] ^ k[1]);
            let dst = fold(a[2] ^ k[1], a[3] ^ k[2]);
            fold(src ^ dst.rotate_left(32) ^ k[3], self.meta ^ k[0])
        } else {
            fold(a[0] ^ k[0], self.meta ^ k[1])
        };
        fold(h ^ k[2], k[3])
    }

    /// The key of a packet that came in by this port, as [`Conntrack::lookup_prefetched`](crate::conntrack::Conntrack::lookup_prefetched)
    /// compares it. Its hash is another one.
    #[inline(always)]
    pub fn by_port(self, port: PortId) -> Key {
        Key { meta: self.meta | ingress_mark(port), ..self }
    }

    /// Source and destination address.
    pub fn addresses(&self, v6: bool) -> (AddrWords, AddrWords) {
        let a = &self.addrs;
        if v6 { ([a[0], a[1]], [a[2], a[3]]) } else { ([0, a[0] >> 32], [0, a[0] & 0xffff_ffff]) }
    }
}

/// In the low byte of a flow's key: the port that the direction's packets were last seen to come in by, plus one. 0: none yet.
pub(crate) const INGRESS_MASK: u64 = 0xfe;

/// A port as a key's word has it, for ports below [`PORTS_MAX`](crate::routes::PORTS_MAX).
#[inline(always)]
pub(crate) fn ingress_mark(port: PortId) -> u64 {
    ((u64::from(port.0) + 1) << 1) & INGRESS_MASK
}

/// [`Tuple::meta`] of two ports as they are in a packet, a protocol and a family.
#[inline(always)]
pub fn key_meta(ports: u32, proto: Proto, v6: bool) -> u64 {
    (u64::from(ports) << 16) | (u64::from(proto as u8) << 8) | u64::from(v6)
}

/// Bits of [`Tuple::meta`].
pub const META_BITS: u32 = 48;

/// A tuple without addresses, from its [`Tuple::meta`]; bits beyond [`META_BITS`] are ignored. What is no protocol counts as TCP.
pub fn meta_parts(meta: u64) -> Tuple {
    Tuple {
        src: [0; 2],
        dst: [0; 2],
        sport: (meta >> 32) as u16,
        dport: (meta >> 16) as u16,
        proto: Proto::from_ip_number((meta >> 8) as u8).unwrap_or(Proto::Tcp),
        v6: meta & 1 == 1,
    }
}

impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Tuple {
    /// `tcp 192.168.0.5:40000 -> 10.109.35.24:80`, `[v6]:port` for IPv6.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proto = self.proto.name().to_ascii_lowercase();
        let src = std::net::SocketAddr::new(self.src_addr(), self.sport);
        let dst = std::net::SocketAddr::new(self.dst_addr(), self.dport);
        write!(f, "{proto} {src} -> {dst}")
    }
}

/// Key material of a hash, expanded from one `u64`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashSeed(pub [u64; 4]);

impl HashSeed {
    /// Expands a seed with splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
    pub fn new(seed: u64) -> HashSeed {
        let mut state = seed;
        HashSeed(std::array::from_fn(|_| splitmix64(&mut state) | 1))
    }

    /// Hashes a few words, for identities that are not tuples.
    pub fn hash_words(&self, words: &[u64]) -> u64 {
        let mut h = self.0[0] ^ words.len() as u64;
        for (i, w) in words.iter().enumerate() {
            h = fold(h ^ w ^ self.0[i & 3], self.0[(i + 1) & 3]);
        }
        fold(h ^ self.0[2], self.0[3])
    }
}

/// One step of splitmix64: advances the state and returns the next value.
pub fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The 128-bit product folded to 64 bits: one multiplication mixes both inputs.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let p = u128::from(a) * u128::from(b);
    (p as u64) ^ ((p >> 64) as u64)
}

/// Maps a 32-bit hash evenly onto `0..n` without a division (Lemire: "Fast random integer generation in an interval", 2019).
#[inline]
pub fn fast_range(hash: u32, n: u32) -> u32 {
    ((u64::from(hash) * u64::from(n)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(proto: Proto, src: &str, dst: &str) -> Tuple {
        let s: std::net::SocketAddr = src.parse().unwrap();
        let d: std::net::SocketAddr = dst.parse().unwrap();
        Tuple::new(proto, s.ip(), s.port(), d.ip(), d.port()).unwrap()
    }

    #[test]
    fn displays_and_round_trips() {
        let v4 = t(Proto::Tcp, "192.168.0.5:40000", "10.109.35.24:80");
        assert_eq!(v4.to_string(), "tcp 192.168.0.5:40000 -> 10.109.35.24:80");
        let v6 = t(Proto::Udp, "[fd00::5]:40000", "[fd00:10::24]:53");
        assert_eq!(v6.to_string(), "udp [fd00::5]:40000 -> [fd00:10::24]:53");
        assert_eq!(v6.reversed().reversed(), v6);
        assert!(Tuple::new(Proto::Tcp, "1.2.3.4".parse().unwrap(), 1, "::1".parse().unwrap(), 2).is_none());
    }

    #[test]
    fn a_mapped_address_is_not_the_v4_address() {
        let v4 = t(Proto::Tcp, "1.2.3.4:1", "5.6.7.8:2");
        let mapped = t(Proto::Tcp, "[::ffff:1.2.3.4]:1", "[::ffff:5.6.7.8]:2");
        let low = t(Proto::Tcp, "[::1.2.3.4]:1", "[::5.6.7.8]:2");
        assert_ne!(v4, mapped);
        assert_ne!(v4, low);
        let seed = HashSeed::new(1);
        assert_ne!(v4.hash(&seed), low.hash(&seed));
    }

    #[test]
    fn hash_changes_with_each_field_and_with_the_seed() {
        let seed = HashSeed::new(7);
        let base = t(Proto::Tcp, "1.2.3.4:1000", "5.6.7.8:80");
        let others = [
            t(Proto::Udp, "1.2.3.4:1000", "5.6.7.8:80"),
            t(Proto::Tcp, "1.2.3.5:1000", "5.6.7.8:80"),
            t(Proto::Tcp, "1.2.3.4:1001", "5.6.7.8:80"),
            t(Proto::Tcp, "1.2.3.4:1000", "5.6.7.9:80"),
            t(Proto::Tcp, "1.2.3.4:1000", "5.6.7.8:81"),
        ];
        for o in others {
            assert_ne!(o.hash(&seed), base.hash(&seed), "{o}");
        }
        assert_ne!(base.hash(&seed), base.hash(&HashSeed::new(8)));
    }

    #[test]
    fn hash_spreads_sequential_ports_evenly() {
        let seed = HashSeed::new(3);
        let mut counts = [0u32; 64];
        for port in 0..64_000u32 {
            let tuple = t(Proto::Tcp, &format!("10.0.{}.{}:{}", port >> 14, (port >> 8) & 63, 1024 + port % 50_000), "10.1.1.1:80");
            counts[fast_range(tuple.hash(&seed) as u32, 64) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| (850..1150).contains(&c)), "{counts:?}");
    }
}
