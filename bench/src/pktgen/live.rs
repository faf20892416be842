//! The live-frames backend: an XDP program that the kernel runs once a frame (BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES).
//!
//! Setting up and taking down one system call costs tens of milliseconds, so a rate cannot be kept between calls: the program keeps it,
//! and drops what it is run for while no frame is due.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, MapData};
use aya::programs::{ProgramError, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};

use super::backend::{Backend, Sent};
use super::profile::{Choice, Profile, Protocol};
use super::stream::Stream;
use super::sys::monotonic_ns;
use super::template::{Macs, TEMPLATE_LEN, Template};

/// Flows at the most: their templates are in a BPF array.
pub const LIVE_FLOWS_MAX: u32 = 1 << 18;
/// `STEPS_MAX` of bpf/generate.c: frames after which the order of flows and sizes begins again.
const STEPS_MAX: usize = 1 << 18;
/// Bytes of `struct flow`, `struct step` and `struct state`.
const FLOW_LEN: usize = TEMPLATE_LEN + 16;
const STEP_LEN: usize = 8;
const STATE_LEN: usize = 80;
/// Frames of one system call: enough to make its set-up small, few enough to stop soon.
const CALL_FRAMES: u32 = 1 << 16;
/// Frames that the kernel redirects together.
const KERNEL_BATCH: u32 = 64;
/// Runs of the first call at a rate, before it is known what a run takes; and the fewest and most of later ones.
const RUNS_FIRST: u64 = 1 << 16;
const RUNS_MIN: u64 = 1 << 12;
const RUNS_MAX: u64 = 1 << 26;
/// How long a call at a rate should take.
const CALL_NS: u64 = 500_000_000;
/// `FRACTION` of bpf/generate.c: an interval's unit is 1/1024 ns.
const INTERVAL_UNITS: u64 = 1_000_000_000 << 10;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/generate.o"));

/// The loaded program with its maps.
pub struct LiveFrames {
    ebpf: Ebpf,
    states: Array<MapData, [u8; STATE_LEN]>,
    /// The frame that each run starts from; zeros, as long as the longest.
    frame: Vec<u8>,
    /// Flows of the profile that the steps name, in the order of their first frames' steps.
    first_steps: Vec<usize>,
    sent: Sent,
    /// From frame to frame, in 1/1024 ns; 0 without a rate.
    interval: u64,
    /// Runs of the next call, at a rate.
    runs: u64,
}

/// `struct state` of bpf/generate.c.
#[derive(Clone, Copy, Default)]
struct State {
    frames: u64,
    bytes: u64,
    failed: u64,
    forgone: u64,
    start_ns: u64,
    until_ns: u64,
    limit: u64,
    due: u64,
    next: u64,
    last_ns: u64,
}

impl State {
    fn read(value: &[u8; STATE_LEN]) -> State {
        let word = |n: usize| value.as_chunks::<8>().0.get(n).map_or(0, |w| u64::from_ne_bytes(*w));
        State {
            frames: word(0),
            bytes: word(1),
            failed: word(2),
            forgone: word(3),
            start_ns: word(4),
            until_ns: word(5),
            limit: word(6),
            due: word(7),
            next: word(8),
            last_ns: word(9),
        }
    }

    fn write(&self) -> [u8; STATE_LEN] {
        let s = self;
        let words = [s.frames, s.bytes, s.failed, s.forgone, s.start_ns, s.until_ns, s.limit, s.due, s.next, s.last_ns];
        let mut value = [0; STATE_LEN];
        words.iter().zip(value.as_chunks_mut::<8>().0).for_each(|(word, to)| *to = word.to_ne_bytes());
        value
    }
}

impl LiveFrames {
    /// Loads the program for frames out of the interface of this index.
    pub fn open(ifindex: u32, profile: &Profile, macs: Macs, run: u16, rate: Option<u64>) -> Result<LiveFrames> {
        let interval = rate.map_or(0, |pps| INTERVAL_UNITS / pps);
        ensure!(profile.new_flows.is_none(), "--backend live cannot replace flows: use --backend afxdp with --new-flows-per-second");
        ensure!(profile.flows <= LIVE_FLOWS_MAX, "--flows {}: --backend live takes at most {LIVE_FLOWS_MAX}", profile.flows);
        // Each flow is one source, also in a SYN flood: its frames differ by sequence number.
        let steady =
            Profile { protocol: if profile.protocol == Protocol::SynFlood { Protocol::Tcp } else { profile.protocol }, ..profile.clone() };
        let mut stream = Stream::new(&steady, macs, run);
        let count = match profile.choice {
            Choice::RoundRobin => (profile.flows as usize * 12).min(STEPS_MAX / profile.flows as usize * profile.flows as usize),
            _ => STEPS_MAX,
        };
        let mut ebpf = load(ifindex, profile, count as u32, interval)?;
        let mut flows = Array::<_, [u8; FLOW_LEN]>::try_from(ebpf.map_mut("flows").context("the object has no map flows")?)?;
        for flow in 0..profile.flows {
            flows.set(flow, flow_value(&stream.template(flow, flow.into())), 0).context("cannot fill the map of flows")?;
        }
        let mut steps = Array::<_, [u8; STEP_LEN]>::try_from(ebpf.map_mut("steps").context("the object has no map steps")?)?;
        let mut first_steps = Vec::new();
        for n in 0..count {
            let step = stream.step();
            if step.first {
                first_steps.push(n);
            }
            let mut value = [0; STEP_LEN];
            value[..4].copy_from_slice(&step.flow.to_ne_bytes());
            value[4..].copy_from_slice(&(step.len as u32).to_ne_bytes());
            steps.set(n as u32, value, 0).context("cannot fill the map of steps")?;
        }
        let states = Array::try_from(ebpf.take_map("states").context("the object has no map states")?)?;
        Ok(LiveFrames {
            ebpf,
            states,
            frame: vec![0; profile.buffer_max()],
            first_steps,
            sent: Sent::default(),
            interval,
            runs: RUNS_FIRST,
        })
    }

    fn state(&self) -> Result<State> {
        Ok(State::read(&self.states.get(&0, 0).context("cannot read the generator's counters")?))
    }

    /// Runs the program `runs` times.
    fn call(&self, runs: u32) -> Result<()> {
        let program: &Xdp = self.ebpf.program("generate").context("the object has no program generate")?.try_into()?;
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            repeat: runs,
            attrs: TestRunAttrs::new().xdp_live_frames(KERNEL_BATCH),
            ..TestRunOptions::new()
        };
        match program.test_run(options) {
            // A signal ends the call early: the program's own counters say how far it came.
            Err(ProgramError::SyscallError(e)) if e.io_error.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            other => other.map(drop).context("the kernel refused live frames (BPF_F_TEST_XDP_LIVE_FRAMES needs Linux 5.18 or later)"),
        }
    }

    /// A call at a rate: the program is told its limits, and runs for as long as it has something to do, half a second at the most.
    fn call_paced(&mut self, frames: u32, until_ns: u64) -> Result<()> {
        let mut state = self.state()?;
        let start_ns = monotonic_ns();
        if state.start_ns == 0 {
            state.start_ns = start_ns;
        }
        (state.until_ns, state.limit) = (until_ns, state.frames + u64::from(frames));
        self.states.set(0, state.write(), 0).context("cannot tell the generator its limits")?;
        self.call(self.runs as u32)?;
        let run_ns = (monotonic_ns() - start_ns) as f64 / self.runs as f64;
        let left_ns = (u64::from(frames).saturating_mul(self.interval) >> 10).min(until_ns.saturating_sub(monotonic_ns()));
        self.runs = ((CALL_NS.min(left_ns) as f64 / run_ns) as u64).clamp(RUNS_MIN, RUNS_MAX);
        Ok(())
    }
}

fn load(ifindex: u32, profile: &Profile, steps: u32, interval: u64) -> Result<Ebpf> {
    let version: u32 = if profile.sources.address.is_ipv4() { 4 } else { 6 };
    let protocol: u32 = if profile.protocol == Protocol::Udp { 17 } else { 6 };
    let syn = u32::from(profile.protocol == Protocol::SynFlood);
    let mut loader = EbpfLoader::new();
    // No relocations against the kernel's types: its BTF is not needed.
    loader.btf(None);
    loader.override_global("out_ifindex", &ifindex, true);
    loader.override_global("step_count", &steps, true);
    loader.override_global("ip_version", &version, true);
    loader.override_global("protocol", &protocol, true);
    loader.override_global("always_syn", &syn, true);
    loader.override_global("interval", &interval, true);
    loader.map_max_entries("flows", profile.flows);
    let mut ebpf = loader.load(OBJECT).context("cannot load the live-frames generator (needs CAP_BPF and CAP_NET_ADMIN)")?;
    let program: &mut Xdp = ebpf.program_mut("generate").context("the object has no program generate")?.try_into()?;
    program.load().context("the kernel refused the live-frames generator")?;
    Ok(ebpf)
}

fn flow_value(template: &Template) -> [u8; FLOW_LEN] {
    let mut value = [0; FLOW_LEN];
    value[..TEMPLATE_LEN].copy_from_slice(&template.bytes);
    value[TEMPLATE_LEN..TEMPLATE_LEN + 4].copy_from_slice(&template.ip_sum.to_ne_bytes());
    value[TEMPLATE_LEN + 4..TEMPLATE_LEN + 8].copy_from_slice(&template.l4_sum.to_ne_bytes());
    value
}

impl Backend for LiveFrames {
    fn describe(&self) -> String {
        "BPF live frames, one CPU".into()
    }

    fn burst_max(&self) -> u32 {
        if self.interval == 0 { CALL_FRAMES } else { u32::MAX }
    }

    fn send(&mut self, frames: u32, until_ns: u64) -> Result<u32> {
        if self.interval == 0 {
            self.call(frames.min(CALL_FRAMES))?;
        } else {
            self.call_paced(frames, until_ns)?;
        }
        let state = self.state()?;
        ensure!(state.failed == 0, "the live-frames generator could not make {} frames", state.failed);
        let n = state.frames - self.sent.frames;
        self.sent.frames = state.frames;
        self.sent.bytes = state.bytes;
        self.sent.forgone = state.forgone;
        self.sent.last_ns = state.last_ns;
        self.sent.flows_opened = self.first_steps.partition_point(|step| (*step as u64) < state.frames) as u64;
        Ok(n as u32)
    }

    fn sent(&self) -> Sent {
        self.sent
    }

    fn paces_itself(&self) -> bool {
        self.interval != 0
    }
}
