//! The XDP program of live frames: the kernel runs it once a frame (BPF_PROG_TEST_RUN with
//! BPF_F_TEST_XDP_LIVE_FRAMES), and it writes the next frame of the traffic into each.
//!
//! Its frames are a mix of [`Part`]s. It keeps the rate itself, because starting and ending a call takes tens of
//! milliseconds: while no frame is due, it drops the frames it is run for.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, MapData};
use aya::programs::{ProgramError, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};

use super::profile::{Choice, Profile, Protocol};
use super::stream::Stream;
use super::template::{Macs, TEMPLATE_LEN, Template};

/// The most flows of all parts: entries of the program's map.
pub const LIVE_FLOWS_MAX: u32 = 1 << 18;
/// Steps of the cycle of flows and sizes: `STEPS_MAX` of bpf/generate.c.
const STEPS_MAX: usize = 1 << 18;
/// Bytes of `struct flow`, `struct step` and `struct state`.
const FLOW_LEN: usize = TEMPLATE_LEN + 16;
const STEP_LEN: usize = 8;
const STATE_LEN: usize = 14 * 8;
/// `kind` of bpf/generate.c.
const ALWAYS_SYN: u32 = 0x100;
const FRESH: u32 = 0x200;
/// Frames that the kernel runs through the program before it sends them.
const KERNEL_BATCH: u32 = 64;
/// Units of the interval between frames in a second: 1/1024 ns.
const INTERVAL_UNITS: u64 = 1_000_000_000 << 10;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/generate.o"));

#[derive(Clone, Copy, Debug)]
pub struct Part<'p> {
    pub profile: &'p Profile,
    /// Its share of the frames is its weight over the sum of all weights.
    pub weight: u32,
    /// Every frame has another source, out of 2^30: the profile's range must leave 16 bits free.
    pub fresh: bool,
    /// The run in the payload header.
    pub run: u16,
}

/// `struct state` of bpf/generate.c.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "bpf/generate.c says what they are")]
pub struct State {
    pub frames: u64,
    pub bytes: u64,
    pub failed: u64,
    pub forgone: u64,
    pub start_ns: u64,
    pub until_ns: u64,
    pub duration_ns: u64,
    pub limit: u64,
    pub interval: u64,
    pub behind_max: u64,
    pub paced: u64,
    pub due: u64,
    pub next: u64,
    pub last_ns: u64,
}

impl State {
    /// Sets the rate in frames a second (`None`: as fast as possible), and the longest delay to catch up with, in nanoseconds.
    pub fn pace(&mut self, pps: Option<u64>, behind_max_ns: u64) {
        self.interval = pps.map_or(0, |pps| INTERVAL_UNITS / pps.max(1));
        self.behind_max = behind_max_ns << 10;
    }

    /// Nanoseconds of so many frames at the rate.
    pub fn lasts_ns(&self, frames: u32) -> u64 {
        u64::from(frames).saturating_mul(self.interval) >> 10
    }

    fn read(value: &[u8; STATE_LEN]) -> State {
        let word = |n: usize| value.as_chunks::<8>().0.get(n).map_or(0, |w| u64::from_ne_bytes(*w));
        State {
            frames: word(0),
            bytes: word(1),
            failed: word(2),
            forgone: word(3),
            start_ns: word(4),
            until_ns: word(5),
            duration_ns: word(6),
            limit: word(7),
            interval: word(8),
            behind_max: word(9),
            paced: word(10),
            due: word(11),
            next: word(12),
            last_ns: word(13),
        }
    }

    fn write(&self) -> [u8; STATE_LEN] {
        let s = self;
        let limits = [s.start_ns, s.until_ns, s.duration_ns, s.limit, s.interval, s.behind_max, s.paced, s.due, s.next, s.last_ns];
        let words = [s.frames, s.bytes, s.failed, s.forgone].into_iter().chain(limits);
        let mut value = [0; STATE_LEN];
        words.zip(value.as_chunks_mut::<8>().0).for_each(|(word, to)| *to = word.to_ne_bytes());
        value
    }
}

/// The loaded program with its tables.
pub struct LiveProgram {
    ebpf: Ebpf,
    states: Array<MapData, [u8; STATE_LEN]>,
    frame: Vec<u8>,
    /// Steps of the cycle that open a flow.
    first_steps: Vec<usize>,
}

impl LiveProgram {
    /// Loads the program for frames on the interface of this index. All parts are of one family.
    pub fn open(ifindex: u32, parts: &[Part<'_>], macs: Macs) -> Result<LiveProgram> {
        let flows_all: u32 = parts.iter().map(|p| p.profile.flows).sum();
        ensure!(flows_all <= LIVE_FLOWS_MAX, "--flows {flows_all}: --backend live takes at most {LIVE_FLOWS_MAX}");
        ensure!(
            parts.iter().all(|p| p.profile.new_flows.is_none()),
            "--backend live cannot replace flows: use --backend af-xdp with --new-flows-per-second"
        );
        let first = parts.first().context("no traffic")?;
        let v4 = first.profile.sources.address.is_ipv4();
        let mut streams: Vec<(Stream, u32)> = Vec::new();
        let mut flows_before = 0;
        for part in parts {
            streams.push((stream(part, macs), flows_before));
            flows_before += part.profile.flows;
        }
        let count = cycle(parts);
        let mut ebpf = load(ifindex, v4, count as u32, flows_all)?;
        let mut flows = Array::<_, [u8; FLOW_LEN]>::try_from(ebpf.map_mut("flows").context("the object has no map flows")?)?;
        for (part, (stream, before)) in parts.iter().zip(&streams) {
            for flow in 0..part.profile.flows {
                let template = match part.fresh {
                    true => stream.fresh_template(flow),
                    false => stream.template(flow, flow.into()),
                };
                flows.set(before + flow, flow_value(&template, kind(part)), 0).context("cannot fill the map of flows")?;
            }
        }
        let mut steps = Array::<_, [u8; STEP_LEN]>::try_from(ebpf.map_mut("steps").context("the object has no map steps")?)?;
        let mut first_steps = Vec::new();
        let weights: Vec<u32> = parts.iter().map(|p| p.weight).collect();
        let mut turns = Turns::new(&weights);
        for n in 0..count {
            let (stream, before) = &mut streams[turns.take()];
            let step = stream.step();
            if step.first {
                first_steps.push(n);
            }
            let mut value = [0; STEP_LEN];
            value[..4].copy_from_slice(&(*before + step.flow).to_ne_bytes());
            value[4..].copy_from_slice(&(step.len as u32).to_ne_bytes());
            steps.set(n as u32, value, 0).context("cannot fill the map of steps")?;
        }
        let states = Array::try_from(ebpf.take_map("states").context("the object has no map states")?)?;
        let frame = vec![0; parts.iter().map(|p| p.profile.buffer_max()).max().unwrap_or(0)];
        Ok(LiveProgram { ebpf, states, frame, first_steps })
    }

    /// The program's counters and limits.
    pub fn state(&self) -> Result<State> {
        let state = State::read(&self.states.get(&0, 0).context("cannot read the generator's counters")?);
        ensure!(state.failed == 0, "the live-frames generator could not make {} frames", state.failed);
        Ok(state)
    }

    /// Sets the program's limits, between two calls.
    pub fn set(&mut self, state: &State) -> Result<()> {
        self.states.set(0, state.write(), 0).context("cannot set the generator's limits")
    }

    /// Runs the program `runs` times, on the calling thread's CPU.
    pub fn call(&self, runs: u32) -> Result<()> {
        let program: &Xdp = self.ebpf.program("generate").context("the object has no program generate")?.try_into()?;
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            repeat: runs,
            attrs: TestRunAttrs::new().xdp_live_frames(KERNEL_BATCH),
            ..TestRunOptions::new()
        };
        match program.test_run(options) {
            // A signal ends the call early; the program's counters tell how far it came.
            Err(ProgramError::SyscallError(e)) if e.io_error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            other => other.map(drop).context("the kernel refused live frames (BPF_F_TEST_XDP_LIVE_FRAMES needs Linux 5.18 or later)"),
        }
    }

    /// Flows opened by so many frames, without those of [`Part::fresh`].
    pub fn flows_opened(&self, frames: u64) -> u64 {
        self.first_steps.partition_point(|step| (*step as u64) < frames) as u64
    }
}

/// Each flow has one source, even in a SYN flood: its frames differ by sequence number.
fn stream(part: &Part<'_>, macs: Macs) -> Stream {
    let profile = part.profile;
    let protocol = if profile.protocol == Protocol::SynFlood { Protocol::Tcp } else { profile.protocol };
    Stream::new(&Profile { protocol, ..profile.clone() }, macs, part.run)
}

fn cycle(parts: &[Part<'_>]) -> usize {
    match parts {
        // Every flow gets the same number of frames, and all sizes of an IMIX.
        [one] if one.profile.choice == Choice::RoundRobin => {
            let flows = one.profile.flows as usize;
            (flows * 12).min(STEPS_MAX / flows * flows)
        }
        _ => STEPS_MAX,
    }
}

fn kind(part: &Part<'_>) -> u32 {
    let protocol = if part.profile.protocol == Protocol::Udp { 17 } else { 6 };
    let syn = if part.profile.protocol == Protocol::SynFlood { ALWAYS_SYN } else { 0 };
    protocol | syn | if part.fresh { FRESH } else { 0 }
}

fn load(ifindex: u32, v4: bool, steps: u32, flows: u32) -> Result<Ebpf> {
    let version: u32 = if v4 { 4 } else { 6 };
    let mut loader = EbpfLoader::new();
    // No relocations against the kernel's types: its BTF is not needed.
    loader.btf(None);
    loader.override_global("out_ifindex", &ifindex, true);
    loader.override_global("step_count", &steps, true);
    loader.override_global("ip_version", &version, true);
    loader.map_max_entries("flows", flows);
    let mut ebpf = loader.load(OBJECT).context("cannot load the live-frames generator (needs CAP_BPF and CAP_NET_ADMIN)")?;
    let program: &mut Xdp = ebpf.program_mut("generate").context("the object has no program generate")?.try_into()?;
    program.load().context("the kernel refused the live-frames generator")?;
    Ok(ebpf)
}

fn flow_value(template: &Template, kind: u32) -> [u8; FLOW_LEN] {
    let mut value = [0; FLOW_LEN];
    value[..TEMPLATE_LEN].copy_from_slice(&template.bytes);
    value[TEMPLATE_LEN..TEMPLATE_LEN + 4].copy_from_slice(&template.ip_sum.to_ne_bytes());
    value[TEMPLATE_LEN + 4..TEMPLATE_LEN + 8].copy_from_slice(&template.l4_sum.to_ne_bytes());
    value[TEMPLATE_LEN + 12..].copy_from_slice(&kind.to_ne_bytes());
    value
}

/// The order of the parts in a cycle: each as often as its weight, evenly spread.
struct Turns {
    weights: Vec<u32>,
    due: Vec<u64>,
}

impl Turns {
    fn new(weights: &[u32]) -> Turns {
        Turns { weights: weights.to_vec(), due: vec![0; weights.len()] }
    }

    fn take(&mut self) -> usize {
        self.due.iter_mut().zip(&self.weights).for_each(|(due, weight)| *due += u64::from(*weight));
        let next = (0..self.due.len()).max_by_key(|&n| (self.due[n], std::cmp::Reverse(n))).unwrap_or(0);
        let all: u64 = self.weights.iter().copied().map(u64::from).sum();
        self.due[next] = self.due[next].saturating_sub(all);
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_survives_its_way_through_the_map() {
        let mut state =
            State { frames: 1, bytes: 2, failed: 3, forgone: 4, start_ns: 5, until_ns: 6, duration_ns: 7, limit: 8, ..State::default() };
        state.pace(Some(1_000_000), 3);
        (state.paced, state.due, state.next, state.last_ns) = (11, 12, 13, 14);
        assert_eq!(State::read(&state.write()), state);
        assert_eq!((state.interval, state.behind_max, state.lasts_ns(5)), (1000 << 10, 3 << 10, 5_000));
    }

    #[test]
    fn turns_come_as_often_as_their_weights_say_and_evenly() {
        let mut turns = Turns::new(&[9, 1]);
        let order: Vec<usize> = (0..30).map(|_| turns.take()).collect();
        assert_eq!(order.iter().filter(|&&n| n == 1).count(), 3);
        let places: Vec<usize> = order.iter().enumerate().filter(|(_, n)| **n == 1).map(|(i, _)| i).collect();
        assert_eq!((places[1] - places[0], places[2] - places[1]), (10, 10));
    }

    /// The frame that the program makes next, without sending it.
    fn make(program: &LiveProgram) -> Vec<u8> {
        let xdp: &Xdp = program.ebpf.program("generate").unwrap().try_into().unwrap();
        let mut out = vec![0; 2048];
        let options = TestRunOptions { data_in: Some(&program.frame), data_out: Some(&mut out), ..TestRunOptions::new() };
        let len = xdp.test_run(options).unwrap().data_size_out;
        out.truncate(len as usize);
        out
    }

    /// Each SYN has another source and checksums that etherparse accepts, mixed with frames of a known flow. Needs root.
    #[test]
    fn fresh_frames_come_from_sources_of_their_own_and_are_right() {
        use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
        for (v4, protocol) in [(true, Protocol::Udp), (true, Protocol::SynFlood), (false, Protocol::Udp), (false, Protocol::SynFlood)] {
            let mut profile = crate::compare::workload::profile(1, 1, protocol, crate::pktgen::profile::Size::Min);
            if !v4 {
                (profile.sources, profile.targets) = ("fd00::/64".parse().unwrap(), vec!["[fd00:1::1]:9".parse().unwrap()]);
            }
            let part = |weight, fresh, run| Part { profile: &profile, weight, fresh, run };
            let macs = Macs { src: [2, 0, 0, 0, 0, 1], dst: [2, 0, 0, 0, 0, 2] };
            let program = LiveProgram::open(1, &[part(1, false, 0), part(3, true, 1)], macs).unwrap();
            let (mut sources, mut known) = (std::collections::HashSet::new(), 0);
            for _ in 0..400 {
                let frame = make(&program);
                let sliced = PacketHeaders::from_ethernet_slice(&frame).unwrap();
                let (net, payload) = (sliced.net.unwrap(), sliced.payload.slice());
                let (source, port) = match (&net, sliced.transport.unwrap()) {
                    (NetHeaders::Ipv4(ip, _), TransportHeader::Udp(udp)) => {
                        assert_eq!(udp.calc_checksum_ipv4(ip, payload).unwrap(), udp.checksum);
                        (ip.source.to_vec(), udp.source_port)
                    }
                    (NetHeaders::Ipv6(ip, _), TransportHeader::Udp(udp)) => {
                        assert_eq!(udp.calc_checksum_ipv6(ip, payload).unwrap(), udp.checksum);
                        (ip.source.to_vec(), udp.source_port)
                    }
                    (NetHeaders::Ipv4(ip, _), TransportHeader::Tcp(tcp)) => {
                        assert!(tcp.syn && tcp.calc_checksum_ipv4(ip, payload).unwrap() == tcp.checksum);
                        (ip.source.to_vec(), tcp.source_port)
                    }
                    (NetHeaders::Ipv6(ip, _), TransportHeader::Tcp(tcp)) => {
                        assert!(tcp.syn && tcp.calc_checksum_ipv6(ip, payload).unwrap() == tcp.checksum);
                        (ip.source.to_vec(), tcp.source_port)
                    }
                    other => panic!("{other:?}"),
                };
                if let NetHeaders::Ipv4(ip, _) = &net {
                    assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
                }
                let fresh = crate::pktgen::payload::Payload::read(payload).unwrap().run == 1;
                known += u32::from(!fresh);
                assert!(!fresh || sources.insert((source, port)), "a source came again");
            }
            assert_eq!((known, sources.len()), (100, 300), "{protocol:?}");
        }
    }
}
