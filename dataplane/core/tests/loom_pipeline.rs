//! Two workers at one table: the packet path under every interleaving that loom finds, see `loom.rs`.
#![cfg(loom)]

mod common;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use arrayvec::ArrayVec;
use common::*;
use loom::sync::atomic::AtomicU64;
use loom::thread;
use nomagic_core::conntrack::Conntrack;
use nomagic_core::counters::Counters;
use nomagic_core::filter::ReplyFilter;
use nomagic_core::frame::{Frame, Outputs, PortId, Verdict};
use nomagic_core::pipeline::{Context, WorkerState, process};
use nomagic_core::reason::Reason;
use nomagic_core::routes::Routes;
use nomagic_core::services::Services;

/// Of a worker, in words.
const STACK: usize = 1 << 16;

/// What both workers share, except the connection table: only that is loom's, the rest does not change or does not matter here.
struct Gateway {
    filter: Vec<AtomicU32>,
    services: Services,
    routes: Routes,
    counters: Counters,
}

/// What became of a packet: where from and where to it went on, or why not.
type Went = Result<(IpAddr, u16, IpAddr), Reason>;

impl Gateway {
    /// One worker, one packet.
    fn carry(&self, words: &[AtomicU64], worker: u16, packet: &Spec) -> Went {
        let bytes = packet.frame();
        let mut buf = vec![0; 1024];
        buf[256..256 + bytes.len()].copy_from_slice(&bytes);
        let mut frames = [Frame::new(&mut buf, 256, bytes.len(), CLIENTS, 1)];
        let mut verdicts = ArrayVec::new();
        let mut context = Context {
            now_ms: 1_000,
            services: &self.services,
            routes: &self.routes,
            table: Conntrack::attach(words).unwrap(),
            filter: ReplyFilter::new(&self.filter, 7),
            counters: &self.counters,
            worker: &mut WorkerState::new(worker),
        };
        process(&mut context, &mut frames, &mut verdicts, &mut Outputs::default());
        match verdicts[0] {
            Verdict::Forward(PortId(_), _) => {
                let seen = read(frames[0].head()).unwrap();
                Ok((seen.tuple.src_addr(), seen.tuple.sport, seen.tuple.dst_addr()))
            }
            Verdict::Drop(reason) => Err(reason),
            other => panic!("{other:?}"),
        }
    }
}

/// Two workers meet these packets at once; what became of them, how many connections there are, and how many announcements.
fn meet(packets: [Spec; 2], check: impl Fn([Went; 2], u64, usize) + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 100_000;
    builder.max_duration = Some(Duration::from_secs(15));
    let gateway = Arc::new(Gateway {
        filter: (0..64).map(|_| AtomicU32::new(0)).collect(),
        services: services(),
        routes: routes(1),
        counters: Counters::new(8),
    });
    builder.check(move || {
        let capacity = 2;
        let words: Arc<Vec<AtomicU64>> = Arc::new((0..Conntrack::words_needed(capacity)).map(|_| AtomicU64::new(0)).collect());
        let filter = ReplyFilter::new(&gateway.filter, 7).unwrap();
        filter.clear();
        let table = Conntrack::format(&words, capacity, 99, [0, 0]).unwrap();
        let workers = [0, 1].map(|worker| {
            let (gateway, words) = (gateway.clone(), words.clone());
            let carry = move || gateway.carry(&words, worker, &packets[usize::from(worker)]);
            thread::Builder::new().stack_size(STACK).spawn(carry).unwrap()
        });
        let went = workers.map(|worker| worker.join().unwrap());
        check(went, table.live(), filter.len());
    });
}

/// Both packets go the same way, or one is dropped for the one reason there is, and the connection is announced once.
fn same_connection(packet: Spec) {
    meet([packet; 2], move |went, live, announced| {
        let ways: Vec<_> = went.iter().filter_map(|w| w.ok()).collect();
        assert!(went.iter().all(|w| !matches!(w, Err(reason) if *reason != Reason::ConntrackBusy)), "{went:?}");
        assert!(!ways.is_empty() && ways.iter().all(|way| *way == ways[0]), "{went:?}");
        assert_eq!((live, announced), (1, 1));
        assert_eq!((ways[0].0, ways[0].1), (packet.src.ip(), packet.src.port()), "the client's own");
    });
}

#[test]
fn two_workers_that_meet_a_new_connection_carry_one() {
    same_connection(spec("udp", "10.0.0.2:1000", "10.96.0.1:80", 0));
}

#[test]
fn two_workers_that_meet_a_connection_in_its_middle_pick_up_one() {
    same_connection(spec("tcp", "10.0.0.2:1000", "10.96.0.1:80", ACK));
}

#[test]
fn two_clients_that_meet_at_a_source_port_are_both_carried() {
    let client = |port: u16| spec("udp", &format!("10.0.0.2:{port}"), "10.96.0.2:80", 0);
    meet([client(1000), client(1001)], |went, live, _| {
        let [a, b] = went.map(|w| w.unwrap());
        assert_eq!((a.0, b.0, live), (ip("10.0.0.1"), ip("10.0.0.1"), 2));
        assert!(a.2 != b.2 || a.1 != b.1, "one backend, one source port: {a:?} {b:?}");
    });
}
