//! Queries an interface's driver with the ethtool ioctl: its queues, and its receive side scaling.
//!
//! Written by hand: the `ethtool` crate (0.3) queries channels over netlink, but neither the hash key nor the indirection table. Layouts
//! and numbers are those of linux/ethtool.h. Tested with hand-made answers, and on veth and loopback, which have no receive side scaling;
//! not tested on a NIC that has it.
#![allow(unsafe_code, reason = "an ioctl that rustix does not have")]

use std::io;

use nomagic_core::rss::{ENTRIES_MAX, Kinds, Rss, Unpredictable};
use nomagic_core::tuple::Proto;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// The ioctl of all ethtool commands, linux/sockios.h.
const SIOCETHTOOL: Opcode = 0x8946;
/// Queries: channels, hashed fields of a flow type, receive side scaling.
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_GRXFH: u32 = 0x29;
const ETHTOOL_GRSSH: u32 = 0x46;
/// Switches: tx checksum offload, and generic receive offload.
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_SGRO: u32 = 0x2c;
/// Words of `struct ethtool_channels`, and the index of two of them.
const CHANNELS_WORDS: usize = 9;
const CHANNELS_RX: usize = 5;
const CHANNELS_COMBINED: usize = 8;
/// Words of `struct ethtool_rxnfc`, rounded up; the kernel fills in the first four.
const RXNFC_WORDS: usize = 64;
/// Words of `struct ethtool_rxfh` before the indirection table, which the key follows.
const RXFH_WORDS: usize = 6;
/// Maximum length of a hash key; NICs have 40 or 52 bytes.
const KEY_BYTES_MAX: usize = 256;
/// `ETH_RSS_HASH_TOP`: Toeplitz.
const HASH_TOEPLITZ: u8 = 1;
/// `RXH_IP_SRC`, `RXH_IP_DST`, `RXH_L4_B_0_1` and `RXH_L4_B_2_3` only: `sdfn` in ethtool's notation.
const ADDRESSES_AND_PORTS: u64 = 0xf0;
/// Flow types: `TCP_V4_FLOW`, `UDP_V4_FLOW`, `SCTP_V4_FLOW`, and the same for IPv6.
const FLOW_TYPES: [(u32, Proto, bool); 6] = [
    (1, Proto::Tcp, false),
    (2, Proto::Udp, false),
    (3, Proto::Sctp, false),
    (5, Proto::Tcp, true),
    (6, Proto::Udp, true),
    (7, Proto::Sctp, true),
];

/// Why a port's receive side scaling is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RssError {
    /// The port has no bound queues.
    #[error("the port is not bound")]
    NotBound,
    /// The driver does not support the query.
    #[error("the driver does not support the query")]
    Unsupported,
    #[error("querying the driver failed: {0}")]
    Query(Errno),
    /// The answer is shorter than its length fields state.
    #[error("the driver's answer is truncated")]
    Truncated,
    /// The indirection table or the key is empty.
    #[error("the driver has no indirection table or no hash key")]
    NoTable,
    /// Larger than any known NIC's.
    #[error("the driver has {entries} entries and {key_bytes} bytes of key: at most {ENTRIES_MAX} and {KEY_BYTES_MAX} are expected")]
    TooLarge {
        /// Entries of the indirection table.
        entries: u32,
        /// Bytes of the hash key.
        key_bytes: u32,
    },
    /// With these bits of `ETH_RSS_HASH`.
    #[error("the hash function is not Toeplitz (bits {0:#x} of ETH_RSS_HASH)")]
    NotToeplitz(u8),
    /// With these bits of `RXH_XFRM`.
    #[error("addresses and ports are made symmetric before they are hashed (bits {0:#x} of RXH_XFRM)")]
    Symmetric(u8),
    /// The settings are known, but do not determine the worker of a packet.
    #[error("{0}")]
    Unpredictable(Unpredictable),
}

impl From<Errno> for RssError {
    fn from(error: Errno) -> RssError {
        if error == Errno::OPNOTSUPP { RssError::Unsupported } else { RssError::Query(error) }
    }
}

/// `struct ifreq` as SIOCETHTOOL reads it: the name is NUL-terminated.
#[repr(C)]
struct EthtoolRequest {
    name: [u8; 16],
    words: *mut u32,
    rest: [u64; 2],
}

/// Words of a command's structure, including its variable part.
fn words_needed(question: &[u32]) -> Option<usize> {
    match *question {
        [ETHTOOL_GCHANNELS, ..] => Some(CHANNELS_WORDS),
        [ETHTOOL_GRXFH, ..] => Some(RXNFC_WORDS),
        [ETHTOOL_GRSSH, _, entries, key_bytes, ..] => Some(RXFH_WORDS + entries as usize + key_bytes.div_ceil(4) as usize),
        // `struct ethtool_value`.
        [ETHTOOL_STXCSUM | ETHTOOL_SGRO, ..] => Some(2),
        _ => None,
    }
}

/// Queries the driver of an interface. The answer overwrites the question, whose first word is the command.
fn ask(interface: &str, words: &mut [u32]) -> Result<(), Errno> {
    let mut request = EthtoolRequest { name: [0; 16], words: words.as_mut_ptr(), rest: [0; 2] };
    if interface.len() >= request.name.len() || words_needed(words).is_none_or(|needed| words.len() < needed) {
        return Err(Errno::INVAL);
    }
    request.name[..interface.len()].copy_from_slice(interface.as_bytes());
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: SIOCETHTOOL reads and writes a `struct ifreq`, which the request is, with a NUL-terminated name.
    let call = unsafe { Updater::<SIOCETHTOOL, EthtoolRequest>::new(&mut request) };
    // SAFETY: the request points to at least as many words as the command reads and writes, and they outlive the call. rustix leaves ioctls
    // it does not know to the caller.
    unsafe { ioctl(&socket, call) }
}

/// Receive queues of an interface; 1 if the driver does not report them.
pub fn rx_queues(interface: &str) -> io::Result<u32> {
    let mut channels = [0; CHANNELS_WORDS];
    channels[0] = ETHTOOL_GCHANNELS;
    match ask(interface, &mut channels) {
        Ok(()) => Ok(channels[CHANNELS_RX].saturating_add(channels[CHANNELS_COMBINED]).max(1)),
        Err(Errno::OPNOTSUPP) => Ok(1),
        Err(e) => Err(e.into()),
    }
}

/// Disables tx checksum offload on a veth's end, so that it sends complete checksums, and enables generic receive offload, which switches
/// it to NAPI: it needs that to receive frames sent back by an XDP program.
pub fn prepare_kernel_side(interface: &str) -> io::Result<()> {
    for mut value in [[ETHTOOL_STXCSUM, 0], [ETHTOOL_SGRO, 1]] {
        ask(interface, &mut value)?;
    }
    Ok(())
}

/// How a port spreads received packets over the owners of its queues, or why that is unknown.
pub fn rss(interface: &str, owners: &[u16]) -> Result<Rss, RssError> {
    // With zero entries and key bytes, the kernel returns only their numbers.
    let (entries, key_bytes) = sizes(&ask_rss(interface, 0, 0)?)?;
    let settings = RssSettings::parse(&ask_rss(interface, entries, key_bytes)?)?;
    let hashes_ports = |flow_type: u32| {
        let mut flow = [0; RXNFC_WORDS];
        flow[..2].copy_from_slice(&[ETHTOOL_GRXFH, flow_type]);
        ask(interface, &mut flow).is_ok_and(|()| hashes_addresses_and_ports(&flow))
    };
    let kinds = FLOW_TYPES.iter().filter(|(flow_type, ..)| hashes_ports(*flow_type));
    let kinds = kinds.fold(Kinds::default(), |kinds, (_, proto, v6)| kinds.with(*proto, *v6));
    Rss::new(&settings.key, &settings.queues, owners, kinds).map_err(RssError::Unpredictable)
}

/// The driver's `struct ethtool_rxfh` followed by this many entries and key bytes.
fn ask_rss(interface: &str, entries: usize, key_bytes: usize) -> Result<Vec<u32>, RssError> {
    let mut words = vec![0; RXFH_WORDS + entries + key_bytes.div_ceil(4)];
    (words[0], words[2], words[3]) = (ETHTOOL_GRSSH, entries as u32, key_bytes as u32);
    ask(interface, &mut words)?;
    Ok(words)
}

/// Entries of the indirection table and bytes of the key, checked against the limits.
fn sizes(answer: &[u32]) -> Result<(usize, usize), RssError> {
    let [_, _, entries, key_bytes, ..] = *answer else { return Err(RssError::Truncated) };
    if entries == 0 || key_bytes == 0 {
        return Err(RssError::NoTable);
    }
    if entries as usize > ENTRIES_MAX || key_bytes as usize > KEY_BYTES_MAX {
        return Err(RssError::TooLarge { entries, key_bytes });
    }
    Ok((entries as usize, key_bytes as usize))
}

/// Whether exactly addresses and ports are hashed for a flow type.
fn hashes_addresses_and_ports(answer: &[u32; RXNFC_WORDS]) -> bool {
    let [low, high] = [answer[2], answer[3]].map(u32::to_ne_bytes);
    let mut fields = [0; 8];
    fields[..4].copy_from_slice(&low);
    fields[4..].copy_from_slice(&high);
    u64::from_ne_bytes(fields) == ADDRESSES_AND_PORTS
}

/// Key and indirection table of a Toeplitz hash.
#[derive(PartialEq, Eq, Debug)]
struct RssSettings {
    queues: Vec<u32>,
    key: Vec<u8>,
}

impl RssSettings {
    /// Parses a `struct ethtool_rxfh` with its table and key.
    fn parse(answer: &[u32]) -> Result<RssSettings, RssError> {
        let (entries, key_bytes) = sizes(answer)?;
        let [function, transform, ..] = answer.get(4).ok_or(RssError::Truncated)?.to_ne_bytes();
        if function != HASH_TOEPLITZ {
            return Err(RssError::NotToeplitz(function));
        }
        if transform != 0 {
            return Err(RssError::Symmetric(transform));
        }
        let queues = answer.get(RXFH_WORDS..RXFH_WORDS + entries).ok_or(RssError::Truncated)?.to_vec();
        let mut key: Vec<u8> = answer[RXFH_WORDS + entries..].iter().flat_map(|word| word.to_ne_bytes()).collect();
        if key.len() < key_bytes {
            return Err(RssError::Truncated);
        }
        key.truncate(key_bytes);
        Ok(RssSettings { queues, key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver's answer: `entries` entries that cycle through four queues, and a key of consecutive bytes.
    fn answer(entries: u32, key_bytes: u32, function: u8, transform: u8) -> Vec<u32> {
        let mut words = vec![ETHTOOL_GRSSH, 0, entries, key_bytes, u32::from_ne_bytes([function, transform, 0, 0]), 0];
        words.extend((0..entries).map(|entry| entry % 4));
        let key: Vec<u8> = (0..key_bytes.next_multiple_of(4)).map(|i| i as u8).collect();
        words.extend(key.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]])));
        words
    }

    #[test]
    fn answers_are_read() {
        for (entries, key_bytes) in [(128, 40), (512, 52), (100, 41), (1, 1)] {
            let settings = RssSettings::parse(&answer(entries, key_bytes, 1, 0)).unwrap();
            assert_eq!(settings.queues, (0..entries).map(|entry| entry % 4).collect::<Vec<_>>());
            assert_eq!(settings.key, (0..key_bytes as u8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn other_hashes_and_hostile_answers_are_refused_with_a_reason() {
        let refused = |words: &[u32]| RssSettings::parse(words).unwrap_err();
        for function in [0, 2, 4, 3, 0xff] {
            assert_eq!(refused(&answer(128, 40, function, 0)), RssError::NotToeplitz(function));
        }
        for transform in [1, 2, 0xff] {
            assert_eq!(refused(&answer(128, 40, 1, transform)), RssError::Symmetric(transform));
        }
        assert_eq!(refused(&answer(0, 40, 1, 0)), RssError::NoTable);
        assert_eq!(refused(&answer(128, 0, 1, 0)), RssError::NoTable);
        let most = answer(ENTRIES_MAX as u32, KEY_BYTES_MAX as u32, 1, 0);
        RssSettings::parse(&most).unwrap();
        for (place, value) in [(2, ENTRIES_MAX as u32 + 1), (2, u32::MAX), (3, KEY_BYTES_MAX as u32 + 1), (3, u32::MAX)] {
            let mut words = most.clone();
            words[place] = value;
            assert_eq!(refused(&words), RssError::TooLarge { entries: words[2], key_bytes: words[3] });
            assert!(refused(&words).to_string().contains(&format!("{value}")) && refused(&words).to_string().contains("at most"));
        }
        let whole = answer(128, 40, 1, 0);
        assert!((0..whole.len()).all(|len| refused(&whole[..len]) == RssError::Truncated));
    }

    #[test]
    fn only_addresses_with_ports_are_known() {
        let answered = |fields: u64| {
            let mut words = [0; RXNFC_WORDS];
            let bytes = fields.to_ne_bytes();
            words[2] = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            words[3] = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            hashes_addresses_and_ports(&words)
        };
        assert!(answered(0xf0));
        // Addresses only, nothing, one port, with the VLAN, with an unknown field, discarded.
        for fields in [0x30, 0, 0x70, 0xf4, 0x1_0000_00f0, 0x8000_00f0] {
            assert!(!answered(fields), "{fields:#x}");
        }
    }

    #[test]
    fn interfaces_without_support_are_reported_as_such() {
        assert_eq!(rss("lo", &[0, 1]), Err(RssError::Unsupported));
        assert_eq!(rss("no-such-if", &[0]), Err(RssError::Query(Errno::NODEV)));
        assert_eq!(rss("an-interface-name-that-is-too-long", &[0]), Err(RssError::Query(Errno::INVAL)));
        assert_eq!(rx_queues("lo").unwrap(), 1);
        rx_queues("no-such-if").unwrap_err();
        rx_queues("an-interface-name-that-is-too-long").unwrap_err();
    }

    #[test]
    fn a_question_without_room_for_its_answer_is_not_asked() {
        for question in [&[][..], &[ETHTOOL_GCHANNELS; 8], &[ETHTOOL_GRXFH; 63], &[ETHTOOL_SGRO], &[ETHTOOL_GRSSH, 0, 3], &[0x1; 99]] {
            assert_eq!(ask("lo", &mut question.to_vec()), Err(Errno::INVAL), "{question:?}");
        }
        for (entries, key_bytes, room) in [(0, 0, 6), (3, 0, 9), (3, 5, 11), (u32::MAX, u32::MAX, 4096)] {
            let question = |len: usize| {
                let mut words = vec![0; len];
                (words[0], words[2], words[3]) = (ETHTOOL_GRSSH, entries, key_bytes);
                words
            };
            assert_eq!(ask("lo", &mut question(room - 1)), Err(Errno::INVAL));
            let answered = if entries == u32::MAX { Errno::INVAL } else { Errno::OPNOTSUPP };
            assert_eq!(ask("lo", &mut question(room)), Err(answered));
        }
    }
}
