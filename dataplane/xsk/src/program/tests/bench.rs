//! A loaded program, and frames to run it on.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use aya::Ebpf;
use aya::maps::{MapInfo, PerCpuArray};
use aya::programs::{TestRun, TestRunOptions};
use nomagic_core::capture::FilterRules;
use nomagic_core::counters::XdpCounts;
use nomagic_core::filter::{BUCKET_SLOTS, REPLY_SOURCES, ReplyFilter, ReplyKey, source_place};
use nomagic_core::tuple::{Proto, Tuple};
use nomagic_core_fixtures::set_ipv4_checksum;
use nomagic_sys::memory;
use nomagic_sys::time::monotonic_ns;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::addressed::{Configured, PortMacs};
use crate::config::EdgeConfig;
use crate::denied::DeniedMaps;
use crate::filter::FilterMaps;
use crate::limits::{InterfaceName, VlanId};
use crate::link::Link;
use crate::program::{self, Constants};
use crate::reply_key;
use crate::status::read_xdp;

pub const DROP: u32 = 1;
pub const PASS: u32 = 2;
pub const REDIRECT: u32 = 4;
const BUCKETS: u32 = 64;
/// Addresses that the kernel always routes to the internal port.
const INTERNAL: [&str; 2] = ["169.254.78.78", "fd4e::78"];
pub const KEY: ReplyKey = ReplyKey([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
/// The port's address, to which all frames here are addressed.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// That of its bridge, and a configured one (VRRP).
pub const BRIDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x2b];
pub const VRRP_MAC: [u8; 6] = [0, 0, 0x5e, 0, 1, 0xa];
/// The only VLAN that is captured.
pub const VLAN: u16 = 7;

/// A loaded program with an AF_XDP socket on queue 0 and a live worker.
pub struct Bench {
    pub ebpf: Ebpf,
    pub maps: FilterMaps,
    pub denied: DeniedMaps,
    pub replies: ReplyFilter<'static>,
    pub sources: &'static [std::sync::atomic::AtomicU64],
    pub heartbeat: &'static std::sync::atomic::AtomicU64,
    pub config: EdgeConfig,
    pub socket: Option<OwnedFd>,
}

impl Bench {
    pub fn new(take_everything: bool) -> Bench {
        Bench::with_buckets(BUCKETS, take_everything)
    }

    pub fn with_buckets(buckets: u32, take_everything: bool) -> Bench {
        Bench::with_constants(Constants { reply_buckets: buckets, take_everything, ..Bench::constants() })
    }

    pub fn constants() -> Constants {
        let macs: String = VRRP_MAC.map(|byte| format!("{byte:02x}")).join(":");
        Constants {
            reply_buckets: BUCKETS,
            reply_key: KEY,
            take_everything: false,
            refuse_unused: false,
            answer_ping: false,
            redirect_to: 0,
            segments: false,
            internal: INTERNAL.map(|a| a.parse().ok()),
            configured: Configured::new(&[macs.parse().unwrap()], &[VlanId::from_static(VLAN.into())]),
        }
    }

    /// The port's interface, as the kernel would describe it.
    pub fn link(mac: [u8; 6], master_mac: Option<[u8; 6]>) -> Link {
        Link { name: "test".into(), ifindex: 1, mac, mtu: 1500, state: crate::link::LinkState::Up, xdp: None, master_mac }
    }

    pub fn with_constants(constants: Constants) -> Bench {
        let buckets = constants.reply_buckets;
        let mut ebpf = program::load("test", constants, None).expect("loading needs root");
        program::set_macs(&mut ebpf, PortMacs::of(&Bench::link(MAC, Some(BRIDGE_MAC)))).unwrap();
        let config = EdgeConfig::new("/nowhere", vec![InterfaceName::from_static("test")]);
        program::write_settings(&mut ebpf, &config).unwrap();
        let fd = |ebpf: &Ebpf, name| match ebpf.map(name) {
            Some(aya::maps::Map::Array(data)) => data.fd().as_fd().try_clone_to_owned().unwrap(),
            _ => panic!("{name} is not an array"),
        };
        let words = memory::bpf_words32(fd(&ebpf, "replies").as_fd(), reply_key::entries(buckets) as usize * BUCKET_SLOTS).unwrap();
        let (words, more) = words.split_at(buckets as usize * BUCKET_SLOTS);
        let heartbeats = memory::bpf_words64(fd(&ebpf, "heartbeats").as_fd(), 64).unwrap();
        heartbeats[0].store(monotonic_ns(), Relaxed);
        let socket = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
        program::connect_queue(&mut ebpf, 0, socket.as_fd(), 0).unwrap();
        let (maps, denied) = (FilterMaps::open(&mut ebpf).unwrap(), DeniedMaps::open(&mut ebpf).unwrap());
        let owners = memory::anonymous32(words.len()).unwrap();
        let sources = memory::bpf_words64(fd(&ebpf, "reply_sources").as_fd(), REPLY_SOURCES).unwrap();
        let replies =
            ReplyFilter::new(words, owners, constants.reply_key).unwrap().with_direct(&more[BUCKET_SLOTS..]).with_sources(sources);
        Bench { ebpf, maps, denied, replies, sources, heartbeat: &heartbeats[0], config, socket: Some(socket) }
    }

    /// Makes the filter's rules exactly these, as control does: widened first, then narrowed.
    pub fn apply(&mut self, rules: &FilterRules) {
        let surplus = self.maps.rules().without(rules);
        self.maps.add(rules).unwrap();
        self.maps.remove(&surplus).unwrap();
    }

    pub fn run(&mut self, frame: &[u8]) -> u32 {
        let program = program::program(&mut self.ebpf).unwrap();
        program.test_run(TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() }).unwrap().return_value
    }

    /// Maximum number of entries of a map.
    pub fn map_size(&mut self, map: &str) -> usize {
        let ids = program::program(&mut self.ebpf).unwrap().info().unwrap().map_ids().unwrap().expect("the kernel names them");
        let mut infos = ids.into_iter().map(|id| MapInfo::from_id(id).unwrap());
        infos.find(|info| info.name_as_str() == Some(map)).unwrap().max_entries() as usize
    }

    pub fn counters(&self) -> XdpCounts {
        let Some(aya::maps::Map::PerCpuArray(data)) = self.ebpf.map("stats") else { panic!("no stats") };
        let fd = data.fd().as_fd().try_clone_to_owned().unwrap();
        let map = aya::maps::Map::PerCpuArray(aya::maps::MapData::from_fd(fd).unwrap());
        read_xdp(&PerCpuArray::try_from(map).unwrap()).unwrap()
    }

    /// Runs the program once on a frame: the action, and the outcome that it counted.
    pub fn outcome(&mut self, frame: &[u8]) -> (u32, &'static str) {
        let before = self.counters();
        self.heartbeat.store(monotonic_ns(), Relaxed);
        let action = self.run(frame);
        let counted =
            self.counters().iter().zip(before.iter()).filter(|((_, after), (_, before))| after != before).map(|(after, _)| after.0);
        let counted: Vec<&str> = counted.collect();
        let [outcome] = counted[..] else { panic!("{counted:?}: {frame:x?}") };
        (action, outcome)
    }

    /// Whether the rules may match a packet without ports.
    pub fn may_be_ours(&self, t: &Tuple) -> bool {
        let (dst, rules) = (t.dst_addr(), self.maps.rules());
        rules.services.iter().any(|(addr, _, proto)| (*addr, *proto) == (dst, t.proto))
            || rules.addresses.contains(&dst)
            || rules.service_cidrs.iter().any(|p| p.contains(dst))
            || self.sources[source_place(t.src)].load(Relaxed) != 0
    }

    /// Whether the rules match a packet.
    pub fn ours(&self, t: &Tuple) -> bool {
        let (dst, rules) = (t.dst_addr(), self.maps.rules());
        rules.services.contains(&(dst, t.dport, t.proto))
            || rules.addresses.contains(&dst)
            || rules.service_cidrs.iter().any(|p| p.contains(dst))
            || self.replies.contains(t)
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn tuple(proto: Proto, src: &str, dst: &str) -> Tuple {
    let (s, d): (std::net::SocketAddr, std::net::SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    Tuple::new(proto, s.ip(), s.port(), d.ip(), d.port()).unwrap()
}

/// Encapsulation and options of a test frame.
#[derive(Clone, Copy, Default, Debug)]
pub struct Dress {
    pub vlan_tags: usize,
    pub ipv4_options: usize,
    /// IPv6 extension headers, by number.
    pub extensions: &'static [u8],
    /// Fragment offset and flags, in families that have them.
    pub fragment: u16,
}

pub fn frame(t: &Tuple, dress: Dress) -> Vec<u8> {
    let l4_len = if t.proto == Proto::Udp { 8 } else { 20 };
    let mut f = [MAC, [2, 0, 0, 0, 0, 2]].concat();
    for i in 0..dress.vlan_tags {
        f.extend(if i + 1 < dress.vlan_tags { [0x88, 0xa8, 0, 5] } else { [0x81, 0, 0, VLAN as u8] });
    }
    match (t.src_addr(), t.dst_addr()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let header = 20 + dress.ipv4_options * 4;
            f.extend([8, 0, 0x40 | (header / 4) as u8, 0, 0, (header + l4_len) as u8, 0, 1]);
            f.extend(dress.fragment.to_be_bytes());
            f.extend([64, t.proto as u8, 0, 0]);
            f.extend(src.octets());
            f.extend(dst.octets());
            f.extend(std::iter::repeat_n(1, dress.ipv4_options * 4));
            let l3 = f.len() - header;
            set_ipv4_checksum(&mut f, l3);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut chain = Vec::new();
            for (i, kind) in dress.extensions.iter().enumerate() {
                let next = dress.extensions.get(i + 1).copied().unwrap_or(t.proto as u8);
                let mut header = vec![next, u8::from(*kind == 60)];
                if *kind == 44 {
                    header = vec![next, 0];
                    header.extend(dress.fragment.to_be_bytes());
                }
                // Destination options are given 16 bytes, the others 8.
                header.resize(if *kind == 60 { 16 } else { 8 }, 0);
                chain.extend(header);
            }
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            f.extend(((chain.len() + l4_len) as u16).to_be_bytes());
            f.extend([dress.extensions.first().copied().unwrap_or(t.proto as u8), 64]);
            f.extend(src.octets());
            f.extend(dst.octets());
            f.extend(chain);
        }
        _ => unreachable!("a tuple has one family"),
    }
    f.extend(t.sport.to_be_bytes());
    f.extend(t.dport.to_be_bytes());
    match t.proto {
        Proto::Udp => f.extend([0, 8, 0, 0]),
        _ => f.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]),
    }
    f
}

pub const DRESSES: [Dress; 10] = [
    Dress { vlan_tags: 0, ipv4_options: 0, extensions: &[], fragment: 0 },
    Dress { vlan_tags: 1, ipv4_options: 1, extensions: &[0], fragment: 0 },
    Dress { vlan_tags: 2, ipv4_options: 10, extensions: &[0, 60, 43], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 5, extensions: &[60, 60, 60, 60, 60, 60, 60], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 0, extensions: &[44], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 0, extensions: &[0, 44], fragment: 0x2001 },
    Dress { vlan_tags: 3, ipv4_options: 0, extensions: &[], fragment: 0 },
    Dress { vlan_tags: 1, ipv4_options: 2, extensions: &[0, 0, 0, 0, 0, 0, 0, 0, 0], fragment: 0x0010 },
    Dress { vlan_tags: 0, ipv4_options: 0, extensions: &[60; 16], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 0, extensions: &[60; 17], fragment: 0 },
];

/// What the program says of a frame before it looks at more than whose it is: a second opinion, written without it. `None`: the port's, and sound as
/// far as the IPv4 header tells.
pub fn refused(frame: &[u8]) -> Option<&'static str> {
    let word = |at: usize| frame.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
    if ![MAC, BRIDGE_MAC, VRRP_MAC].iter().any(|mac| frame.starts_with(mac)) {
        return Some("pass_other_mac");
    }
    let mut at = 12;
    if word(12)? == 0x8100 {
        word(16)?; // else the tag is cut short
        if ![0, VLAN].contains(&(word(14)? % 4096)) {
            return Some("pass_vlan");
        }
        at = 16;
    }
    let ip = match word(at)? {
        0x8100 | 0x88a8 | 0x9100 => return Some("pass_vlan"),
        0x0800 => frame.get(at + 2..).filter(|ip| ip.len() >= 20 && ip[0] >> 4 == 4)?,
        _ => return None,
    };
    let header = ip.get(..usize::from(ip[0] & 15) * 4).filter(|header| header.len() >= 20)?;
    let sum = header.chunks(2).fold(0, |sum: u64, pair| sum + u64::from(pair[0]) * 256 + u64::from(pair[1]));
    (sum % 0xffff != 0).then_some("pass_ipv4_checksum")
}
