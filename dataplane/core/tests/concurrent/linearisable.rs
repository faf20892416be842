//! Concurrent histories of the connection table are recorded and checked: is there an order, one call after the other, that explains
//! every result?
//!
//! # What the table promises
//!
//! Clients that compete for the same reply keys (one backend, one source address, the same source ports) are one sequential object; all
//! others are independent of each other. Each call takes effect at one moment between its beginning and its end:
//!
//! - A creation that succeeds: the client had no connection, nobody held the source port, and now this one does. Ports that were tried before were
//!   taken, each at some moment.
//! - `Exists`: the client has a connection. `ReplyTaken`: it had none at some moment, and every source port was taken, each at some moment.
//! - A look-up by either key returns the connection that there is, or `None` when there is none. A connection that is not live yet does not count.
//! - `end` succeeds if the connection that was found is still the one; for each connection exactly once. A sweep is a look-up and at most one end
//!   for each slot; `for_each` finds every connection that is there all the while.
//!
//! Weaker, by design, and only while another creation in the group overlaps:
//!
//! - `Busy`: nothing happened. Two creations may even both fail, each because of the other.
//! - A source port that the other has only reserved counts as taken (so `ReplyTaken` does not prove that anybody has a connection), as does one
//!   that it gives back.
//! - A reservation that is given back was possible for each of its keys at some moment, not for both at one.
//!
//! And while a call that ends a connection has not returned, that connection's source port counts as taken: the search for a free one reads the
//! index only, and the index entries are removed after the connection.
//!
//! Not in here: `Full` (this table is large enough never to say so; one that is full but for a few places may say so while others take and
//! give back the last ones), the time of the last packet and the next hop, which are hints.

mod checker;
mod contract;

use std::cell::{Cell, RefCell};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use contract::{Did, Held, Record};
use nomagic_core::conntrack::{Conntrack, Flow, Hit, Phase, Refused};
use nomagic_core::frame::NextHopId;
use nomagic_core::tuple::{Proto, splitmix64};

const THREADS: u64 = 4;
const HISTORIES: u64 = if cfg!(miri) { 2 } else { 2_000 };
const CALLS: u32 = if cfg!(miri) { 20 } else { 150 };
/// At most 5 connections are live, and each thread has one on its way in and one on its way out.
const CAPACITY: u32 = 16;

/// Clients that compete for source ports.
struct Group {
    originals: usize,
    ports: u8,
    v6: bool,
    proto: Proto,
}

const GROUPS: [Group; 4] = [
    Group { originals: 1, ports: 1, v6: false, proto: Proto::Tcp },
    Group { originals: 1, ports: 1, v6: true, proto: Proto::Udp },
    Group { originals: 1, ports: 1, v6: false, proto: Proto::Sctp },
    Group { originals: 3, ports: 2, v6: false, proto: Proto::Udp },
];

const FIRST_PORT: u16 = 61_000;

/// A number of 24 bits that tells group, client and creation.
fn value(group: usize, original: u8, count: u32) -> u32 {
    (group as u32) << 20 | u32::from(original) << 16 | (count & 0xffff)
}

fn group_of(value: u32) -> usize {
    (value >> 20) as usize
}

fn original_of(value: u32) -> u8 {
    (value >> 16) as u8 & 0xf
}

fn flow(group: usize, original: u8, held: Held) -> Flow {
    let g = &GROUPS[group];
    let addr = |n: u64| if g.v6 { [0xfd00 << 48, n] } else { [0, 0x0a00_0000 + n] };
    Flow {
        proto: g.proto,
        v6: g.v6,
        announced: false,
        client: addr(0x100 + u64::from(original)),
        client_port: 1_024 + u16::from(original),
        service: addr(1),
        service_port: 80 + group as u16,
        backend: addr(2),
        backend_port: 8_080 + group as u16,
        source: addr(3),
        source_port: FIRST_PORT + u16::from(held.port),
        stats: held.value,
        counted: None,
    }
}

/// One thread's part of a history.
struct Thread<'t> {
    table: Conntrack<'t>,
    clock: &'t AtomicU64,
    random: Cell<u64>,
    records: RefCell<Vec<Record>>,
    /// A connection that was found some time ago.
    old: Cell<Option<Hit>>,
}

impl Thread<'_> {
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn random(&self, n: u64) -> u64 {
        let mut state = self.random.get();
        let r = splitmix64(&mut state);
        self.random.set(state);
        (r >> 8) % n
    }

    /// Lets the others go on, or waits a moment, or neither.
    fn breathe(&self) {
        match self.random(4) {
            0 | 1 => std::thread::yield_now(),
            2 => (0..self.random(60)).for_each(|_| std::hint::spin_loop()),
            _ => {}
        }
    }

    fn record(&self, group: usize, call: u64, did: Did) -> u64 {
        let ret = self.now();
        self.records.borrow_mut().push(Record { group, call, ret, did });
        ret
    }

    /// Any of the calls, for any of the clients.
    fn act(&self, count: u32) {
        let group = self.random(GROUPS.len() as u64) as usize;
        let original = self.random(GROUPS[group].originals as u64) as u8;
        let port = self.random(u64::from(GROUPS[group].ports)) as u8;
        match self.random(16) {
            0..=5 => self.create(group, original, value(group, original, count), true),
            6 => self.create(group, original, value(group, original, count), false),
            7 | 8 => drop(self.find(group, original)),
            9 => drop(self.find_reply(group, port)),
            10 | 11 => self.end(self.find(group, original)),
            12 => self.end(self.find_reply(group, port)),
            13 => self.end(self.old.get()),
            14 => self.sweep(),
            _ => self.visit_all(),
        }
    }

    fn create(&self, group: usize, original: u8, value: u32, commits: bool) {
        let mut flow = flow(group, original, Held { value, port: 0 });
        let (hash, phase) = (self.table.hash(&flow.original()), Phase::first(flow.proto, 2));
        let ports = (FIRST_PORT..).take(usize::from(GROUPS[group].ports)).inspect(|_| self.breathe());
        self.table.snat_ports().take(&flow, nomagic_core::services::PortLimits::NONE).unwrap();
        let call = self.now();
        let reserved = self.table.reserve(&mut flow, hash, phase, 0, ports);
        let done = reserved.and_then(|pending| {
            self.breathe();
            if commits {
                return self.table.commit(pending).map(Some);
            }
            self.table.abort(pending);
            Ok(None)
        });
        let port = (flow.source_port - FIRST_PORT) as u8;
        let did = match done {
            Ok(Some(_)) => Did::Created { original, held: Held { value, port } },
            Ok(None) => Did::Reserved { original, port },
            Err(Refused::Exists) => Did::Exists { original },
            Err(Refused::ReplyTaken) => Did::ReplyTaken { original },
            Err(Refused::Busy) => Did::Busy { original },
            Err(Refused::Full | Refused::Crowded(_)) => panic!("the table is never full"),
        };
        self.record(group, call, did);
        match done {
            Ok(Some(hit)) => self.old.set(Some(hit)),
            _ => self.table.snat_ports().give_back(&flow),
        }
    }

    /// What a hit says, after checking that all of it is of one connection.
    fn held(hit: &Hit, group: usize, original: u8) -> Held {
        let held = Held { value: hit.stats, port: (hit.new.sport.wrapping_sub(FIRST_PORT)) as u8 };
        assert_eq!((group_of(held.value), original_of(held.value)), (group, original));
        assert_eq!(hit.new, flow(group, original, held).reply().reversed());
        held
    }

    fn find(&self, group: usize, original: u8) -> Option<Hit> {
        let key = flow(group, original, Held { value: 0, port: 0 }).original();
        let call = self.now();
        let hit = self.table.lookup(&key, self.table.hash(&key));
        let found = hit.map(|hit| Self::held(&hit, group, original));
        self.record(group, call, Did::Original { original, found });
        hit
    }

    fn find_reply(&self, group: usize, port: u8) -> Option<Hit> {
        let key = flow(group, 0, Held { value: 0, port }).reply();
        let call = self.now();
        let hit = self.table.lookup(&key, self.table.hash(&key));
        let found = hit.map(|hit| (hit.stats, (hit.new.dport - 1_024) as u8));
        if let (Some(hit), Some((value, original))) = (hit, found) {
            assert_eq!(hit.new, flow(group, original, Held { value, port }).original().reversed());
            assert_eq!((group_of(value), original_of(value)), (group, original));
        }
        self.record(group, call, Did::Reply { port, found });
        hit
    }

    fn end(&self, hit: Option<Hit>) {
        let Some(hit) = hit else { return };
        self.breathe();
        let (group, value) = (group_of(hit.stats), hit.stats);
        let call = self.now();
        // Late notes about a connection that may be gone change no other one.
        self.table.touch(&hit, hit.phase, call);
        self.table.cache_hop(&hit, call, NextHopId(1));
        let ended = self.table.end(&hit);
        assert!(ended.is_none_or(|flow| flow.stats == value));
        self.record(group, call, Did::Ended { value, ended: ended.is_some() });
        self.old.set(Some(hit));
    }

    /// Each slot is a call of its own. The sweep reads a slot before it calls back, so the call for a slot begins when the slot before was
    /// reported. An end that failed is recorded at the next report.
    fn sweep(&self) {
        let since = Cell::new(self.now());
        // The connection that is to end, and when that was decided.
        let ending: Cell<Option<u32>> = Cell::new(None);
        let too_late = || {
            if let Some(value) = ending.take() {
                since.set(self.record(group_of(value), since.get(), Did::Ended { value, ended: false }));
            }
        };
        let places = 1 + self.random(u64::from(CAPACITY)) as u32;
        self.table.sweep(
            places,
            self.random(3),
            |hit| {
                let read_since = since.get();
                self.breathe();
                too_late();
                let (group, original) = (group_of(hit.stats), original_of(hit.stats));
                let found = Some(Self::held(hit, group, original));
                since.set(self.record(group, read_since, Did::Original { original, found }));
                let ends = self.random(3) == 0;
                if ends {
                    ending.set(Some(hit.stats));
                }
                self.breathe();
                ends
            },
            |ended, _, _| {
                assert_eq!(ending.take(), Some(ended.stats));
                since.set(self.record(group_of(ended.stats), since.get(), Did::Ended { value: ended.stats, ended: true }));
            },
        );
        too_late();
    }

    fn visit_all(&self) {
        let began = self.now();
        let (since, met) = (Cell::new(began), RefCell::new(Vec::new()));
        self.table.for_each(|hit, whole| {
            let (group, original) = (group_of(hit.stats), original_of(hit.stats));
            let found = Self::held(hit, group, original);
            assert_eq!(*whole, flow(group, original, found));
            since.set(self.record(group, since.get(), Did::Original { original, found: Some(found) }));
            met.borrow_mut().push((group, original));
            self.breathe();
        });
        let met = met.into_inner();
        for (group, g) in GROUPS.iter().enumerate() {
            for original in (0..g.originals as u8).filter(|&o| !met.contains(&(group, o))) {
                self.record(group, began, Did::Original { original, found: None });
            }
        }
    }
}

/// Threads act at random; what they did.
fn history(seed: u64) -> Vec<Record> {
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(CAPACITY)).map(|_| AtomicU64::new(0)).collect();
    let table = Conntrack::format(&words, CAPACITY, seed, [0, 0]).unwrap();
    let (clock, barrier) = (AtomicU64::new(0), Barrier::new(THREADS as usize));
    let mut records: Vec<Record> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (clock, barrier) = (&clock, &barrier);
                scope.spawn(move || {
                    let random = Cell::new(seed << 8 | thread);
                    let thread_part = Thread { table, clock, random, records: RefCell::default(), old: Cell::new(None) };
                    barrier.wait();
                    (0..CALLS).for_each(|i| thread_part.act((thread as u32) << 12 | i));
                    thread_part.records.into_inner()
                })
            })
            .collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    records.sort_by_key(|r| r.call);
    let mut live = 0;
    table.for_each(|_, _| live += 1);
    assert_eq!((table.live(), table.snat_ports().in_use()), (live, live), "the counts of history {seed}");
    records
}

#[test]
fn every_history_has_a_legal_order() {
    let (mut overlapping, mut busy, mut ends) = (0, 0, 0);
    for seed in 0..HISTORIES {
        let records = history(seed);
        for group in 0..GROUPS.len() {
            if let Err(story) = contract::check(group, &records) {
                panic!("history with seed {seed}, group {group}: {story}");
            }
        }
        overlapping += records.windows(2).filter(|pair| pair[1].call < pair[0].ret).count();
        busy += records.iter().filter(|r| matches!(r.did, Did::Busy { .. })).count();
        ends += records.iter().filter(|r| matches!(r.did, Did::Ended { ended: true, .. })).count();
    }
    println!("{overlapping} calls overlapped, {busy} creations met a rival, {ends} connections ended");
    let much = overlapping > 1_000 && busy > 10 && ends > 1_000;
    assert!(much || cfg!(miri), "{overlapping} {busy} {ends}: these histories prove little");
}
