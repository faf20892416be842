//! The live-frames backend: calls of [`LiveProgram`].

use anyhow::Result;
use nomagic_sys::time::monotonic_ns;

use super::backend::{Backend, Sent};
use super::profile::Profile;
use super::program::{LiveProgram, Part, State};
use super::template::Macs;

/// The most frames of one system call without a rate, so that the end of the run and signals are noticed.
const CALL_FRAMES: u32 = 1 << 16;
/// Runs of the first call at a rate, and limits of the later ones.
const RUNS_FIRST: u64 = 1 << 16;
const RUNS_MIN: u64 = 1 << 12;
const RUNS_MAX: u64 = 1 << 26;
/// How long one call at a rate should last.
const CALL_NS: u64 = 500_000_000;
/// The longest delay to catch up with: more than the pause between two calls.
const BEHIND_MAX_NS: u64 = 200_000_000;

pub struct LiveFrames {
    program: LiveProgram,
    sent: Sent,
    paced: bool,
    /// Runs of the next call at a rate.
    runs: u64,
}

impl LiveFrames {
    /// Loads the program for frames on the interface of this index.
    pub fn open(ifindex: u32, profile: &Profile, macs: Macs, run: u16, rate: Option<u64>) -> Result<LiveFrames> {
        let mut program = LiveProgram::open(ifindex, &[Part { profile, weight: 1, fresh: false, run }], macs)?;
        let mut state = State { paced: rate.is_some().into(), ..State::default() };
        state.pace(rate, BEHIND_MAX_NS);
        program.set(&state)?;
        Ok(LiveFrames { program, sent: Sent::default(), paced: rate.is_some(), runs: RUNS_FIRST })
    }

    /// One call at a rate: sets the program's limits and runs it for up to half a second.
    fn call_paced(&mut self, frames: u32, until_ns: u64) -> Result<()> {
        let mut state = self.program.state()?;
        let start_ns = monotonic_ns();
        if state.start_ns == 0 {
            state.start_ns = start_ns;
        }
        (state.until_ns, state.limit) = (until_ns, state.frames + u64::from(frames));
        self.program.set(&state)?;
        self.program.call(self.runs as u32)?;
        let run_ns = (monotonic_ns() - start_ns) as f64 / self.runs as f64;
        let left_ns = state.lasts_ns(frames).min(until_ns.saturating_sub(monotonic_ns()));
        self.runs = ((CALL_NS.min(left_ns) as f64 / run_ns) as u64).clamp(RUNS_MIN, RUNS_MAX);
        Ok(())
    }
}

impl Backend for LiveFrames {
    fn describe(&self) -> String {
        "BPF live frames, one CPU".into()
    }

    fn burst_max(&self) -> u32 {
        if self.paced { u32::MAX } else { CALL_FRAMES }
    }

    fn send(&mut self, frames: u32, until_ns: u64) -> Result<u32> {
        if self.paced {
            self.call_paced(frames, until_ns)?;
        } else {
            self.program.call(frames.min(CALL_FRAMES))?;
        }
        let state = self.program.state()?;
        let n = state.frames - self.sent.frames;
        self.sent.frames = state.frames;
        self.sent.bytes = state.bytes;
        self.sent.forgone = state.forgone;
        self.sent.last_ns = state.last_ns;
        self.sent.flows_opened = self.program.flows_opened(state.frames);
        Ok(n as u32)
    }

    fn sent(&self) -> Sent {
        self.sent
    }

    fn paces_itself(&self) -> bool {
        self.paced
    }
}
