//! A loaded program, and frames to run it on.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use aya::Ebpf;
use aya::maps::{MapInfo, PerCpuArray};
use aya::programs::{TestRun, TestRunOptions};
use nomagic_core::capture::FilterRules;
use nomagic_core::counters::XdpCounts;
use nomagic_core::filter::{BUCKET_SLOTS, ReplyFilter};
use nomagic_core::tuple::{Proto, Tuple};
use nomagic_sys::memory;
use nomagic_sys::time::monotonic_ns;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::config::EdgeConfig;
use crate::filter::FilterMaps;
use crate::limits::InterfaceName;
use crate::program::{self, Constants};
use crate::status::read_xdp;

pub const DROP: u32 = 1;
pub const PASS: u32 = 2;
pub const REDIRECT: u32 = 4;
const BUCKETS: u32 = 64;
/// What the kernel always routes to the internal port.
const INTERNAL: [&str; 2] = ["169.254.78.78", "fd4e::78"];
const SEED: u32 = 0x1234_5678;

/// A loaded program with an AF_XDP socket on queue 0 and a live worker.
pub struct Bench {
    pub ebpf: Ebpf,
    pub maps: FilterMaps,
    pub replies: ReplyFilter<'static>,
    pub heartbeat: &'static std::sync::atomic::AtomicU64,
    pub config: EdgeConfig,
    pub socket: Option<OwnedFd>,
}

impl Bench {
    pub fn new(take_everything: bool) -> Bench {
        Bench::with_buckets(BUCKETS, take_everything)
    }

    pub fn with_buckets(buckets: u32, take_everything: bool) -> Bench {
        let constants = Constants {
            reply_buckets: buckets,
            reply_seed: SEED,
            take_everything,
            redirect_to: 0,
            internal: INTERNAL.map(|a| a.parse().ok()),
        };
        let mut ebpf = program::load("test", constants, None).expect("loading needs root");
        let config = EdgeConfig::new("/nowhere", vec![InterfaceName::from_static("test")]);
        program::write_settings(&mut ebpf, &config).unwrap();
        let fd = |ebpf: &Ebpf, name| match ebpf.map(name) {
            Some(aya::maps::Map::Array(data)) => data.fd().as_fd().try_clone_to_owned().unwrap(),
            _ => panic!("{name} is no array"),
        };
        let words = memory::bpf_words32(fd(&ebpf, "replies").as_fd(), buckets as usize * BUCKET_SLOTS).unwrap();
        let heartbeats = memory::bpf_words64(fd(&ebpf, "heartbeats").as_fd(), 64).unwrap();
        heartbeats[0].store(monotonic_ns(), Relaxed);
        let socket = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None).unwrap();
        program::connect_queue(&mut ebpf, 0, socket.as_fd(), 0).unwrap();
        let maps = FilterMaps::open(&mut ebpf).unwrap();
        let replies = ReplyFilter::new(words, SEED).unwrap();
        Bench { ebpf, maps, replies, heartbeat: &heartbeats[0], config, socket: Some(socket) }
    }

    /// Makes the filter take exactly this, as control does: first it is widened, then narrowed.
    pub fn apply(&mut self, rules: &FilterRules) {
        let surplus = self.maps.rules().without(rules);
        self.maps.add(rules).unwrap();
        self.maps.remove(&surplus).unwrap();
    }

    pub fn run(&mut self, frame: &[u8]) -> u32 {
        let program = program::program(&mut self.ebpf).unwrap();
        program.test_run(TestRunOptions { data_in: Some(frame), ..TestRunOptions::default() }).unwrap().return_value
    }

    /// Entries of a map at the most.
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

    /// What the rules say about a packet.
    pub fn ours(&self, t: &Tuple) -> bool {
        let (dst, rules) = (t.dst_addr(), self.maps.rules());
        rules.services.contains(&(dst, t.dport, t.proto))
            || rules.addresses.contains(&dst)
            || rules.service_cidrs.iter().any(|p| p.contains(dst))
            || rules.snat.iter().any(|(a, first, last)| *a == dst && (*first..=*last).contains(&t.dport))
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

/// How a frame is dressed.
#[derive(Clone, Copy, Default, Debug)]
pub struct Dress {
    pub vlan_tags: usize,
    pub ipv4_options: usize,
    /// IPv6 extension headers, by number.
    pub extensions: &'static [u8],
    /// Fragment offset and flags, where the family has them.
    pub fragment: u16,
}

pub fn frame(t: &Tuple, dress: Dress) -> Vec<u8> {
    let l4_len = if t.proto == Proto::Udp { 8 } else { 20 };
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for i in 0..dress.vlan_tags {
        f.extend(if i + 1 < dress.vlan_tags { [0x88, 0xa8, 0, 5] } else { [0x81, 0, 0, 7] });
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

pub const DRESSES: [Dress; 8] = [
    Dress { vlan_tags: 0, ipv4_options: 0, extensions: &[], fragment: 0 },
    Dress { vlan_tags: 1, ipv4_options: 1, extensions: &[0], fragment: 0 },
    Dress { vlan_tags: 2, ipv4_options: 10, extensions: &[0, 60, 43], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 5, extensions: &[60, 60, 60, 60, 60, 60, 60], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 0, extensions: &[44], fragment: 0 },
    Dress { vlan_tags: 0, ipv4_options: 0, extensions: &[0, 44], fragment: 0x2001 },
    Dress { vlan_tags: 3, ipv4_options: 0, extensions: &[], fragment: 0 },
    Dress { vlan_tags: 1, ipv4_options: 2, extensions: &[0, 0, 0, 0, 0, 0, 0, 0, 0], fragment: 0x0010 },
];
