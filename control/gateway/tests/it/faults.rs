//! A start in which one system call fails: it ends with one error that says what to do, or becomes ready all the same. The next start works,
//! and no connection of the table's file is lost. Needs root.
//!
//! A start without faults is recorded first. Then each *site* of it (thread, call, and what the call is about) fails once, in a start of its
//! own. `NOMAGIC_FAULTS=all` fails each site with every error that it can give, and `NOMAGIC_FAULTS=TEXT` the sites that contain a text.
//!
//! Not failed: what precedes the program's own first call (the loader and libc), waits, and the heap's calls, see
//! `nomagic_testbed::rig::Netns::spawn_watched`.

mod errors;
mod judge;
mod lane;
mod record;

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::common::CpuLock;
use judge::Trial;
use lane::Lane;
use record::Fault;

/// Gateways at a time.
const LANES: usize = 2;

/// What a start finds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Before {
    /// Everything of a process that was killed.
    Killed,
    /// Only the table's file.
    TableOnly,
    /// Nothing.
    Nothing,
}

#[test]
fn each_system_call_of_the_start_fails_once() {
    let _cpus = CpuLock::take();
    let begun = Instant::now();
    let mut lanes: Vec<Lane> = (0..LANES).map(|n| Lane::new(&format!("fault{n}"))).collect();
    let wanted = std::env::var("NOMAGIC_FAULTS").unwrap_or_default();
    let mut faults = Vec::new();
    let mut calls = 0;
    for before in [Before::Killed, Before::TableOnly, Before::Nothing] {
        let recorded = lanes[0].record(before);
        calls += recorded.len();
        let unknown: Vec<_> = recorded.iter().filter(|site| site.contains(": unknown ")).collect();
        assert!(unknown.is_empty(), "calls that the testbed does not know, see its `kinds.rs`: {unknown:?}");
        record::plan(before, &recorded, &wanted, &mut faults);
    }
    println!("{calls} calls, {} faults, recorded after {:?}", faults.len(), begun.elapsed());
    assert!(calls > 500 && (faults.len() > 100 || !wanted.is_empty()), "the record is not of a start");
    // What needs nothing ends the connections, so it comes last.
    faults.sort_by_key(|fault| fault.before);
    let queue: Mutex<VecDeque<Fault>> = Mutex::new(faults.into());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let trials: Vec<Trial> = std::thread::scope(|scope| {
        let threads: Vec<_> = lanes.iter_mut().map(|lane| scope.spawn(|| lane.run(next))).collect();
        threads.into_iter().flat_map(|t| t.join().expect("a lane")).collect()
    });
    println!("{} starts after {:?}", trials.len(), begun.elapsed());
    judge::print(&trials);
    let failed = trials.iter().filter(|t| !t.problems.is_empty()).count();
    assert_eq!(failed, 0, "of {} faults, see above", trials.len());
}
