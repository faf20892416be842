//! Two workers on one table against one, relative to the scaling of the floor.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::rig::{FRAMES, Filled, Rig, run};
use super::rows::Draw;

const TIME: Duration = Duration::from_millis(250);

/// The rate of two workers over the rate of one.
pub struct Scaling {
    pub pipeline: f64,
    pub floor: f64,
}

impl Scaling {
    /// `relative`: the pipeline's scaling over the floor's; medians of interleaved rounds.
    pub fn measure(filled: &Filled, rounds: usize) -> Scaling {
        let (mut pipeline, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            pipeline.push(rate(2, filled, true) / rate(1, filled, true));
            floor.push(rate(2, filled, false) / rate(1, filled, false));
        }
        Scaling { pipeline: super::report::median(&pipeline), floor: super::report::median(&floor) }
    }

    pub fn relative(&self) -> f64 {
        self.pipeline / self.floor
    }
}

/// Packets a second of so many workers together, each with its own frames, counters and keys.
fn rate(workers: usize, filled: &Filled, pipeline: bool) -> f64 {
    let (begin, end) = (Barrier::new(workers), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers)
            .map(|worker| {
                let (begin, end) = (&begin, &end);
                scope.spawn(move || {
                    let mut rig = Rig::new();
                    rig.random = worker as u64 + 1;
                    let (mut packets, mut busy) = (0u64, Duration::ZERO);
                    begin.wait();
                    let start = Instant::now();
                    while !end.load(Ordering::Relaxed) {
                        rig.write_headers(|random| filled.header(Draw::Uniform.pick(filled.flows, random)));
                        if pipeline {
                            let mut forwarded = 0;
                            busy += rig.time_batches(FRAMES, |parts, batch| forwarded += run(filled, parts, batch));
                            packets += forwarded as u64;
                        } else {
                            busy += Duration::from_secs_f64(rig.floor(filled.words, filled.template()) * FRAMES as f64 / 1e9);
                            packets += FRAMES as u64;
                        }
                        if worker == 0 && start.elapsed() > TIME {
                            end.store(true, Ordering::Relaxed);
                        }
                    }
                    packets as f64 / busy.as_secs_f64()
                })
            })
            .collect();
        handles.into_iter().map(|h| h.join().expect("a worker")).sum()
    })
}
