//! Two workers at one table: the packet path under every interleaving that loom finds, see `table`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use loom::sync::atomic::AtomicU64;
use loom::thread;
use nomagic_core::conntrack::Conntrack;
use nomagic_core::counters::Counters;
use nomagic_core::filter::ReplyFilter;
use nomagic_core::frame::{Frame, Outputs, PortId, Verdict};
use nomagic_core::pipeline::{Context, WorkerState, end_connection, process};
use nomagic_core::reason::Reason;
use nomagic_core::routes::Routes;
use nomagic_core::services::Services;
use nomagic_core_fixtures::*;

/// Of a worker, in words.
const STACK: usize = 1 << 16;

/// What both workers share, except the connection table: only that is loom's, the rest does not change or does not matter here.
struct SharedTables {
    filter: Replies,
    services: Services,
    routes: Routes,
    counters: Counters,
}

/// What became of a packet: where from and where to it went on, or why not.
type Went = Result<(IpAddr, u16, IpAddr), Reason>;

impl SharedTables {
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
            filter: Some(self.filter.filter()),
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

fn gateway() -> Arc<SharedTables> {
    Arc::new(SharedTables { filter: Replies::new(4), services: services(), routes: routes(1), counters: Counters::new(8) })
}

/// An empty table, and the gateway's filter, emptied.
fn table(gateway: &SharedTables) -> (Arc<Vec<AtomicU64>>, ReplyFilter<'_>) {
    let capacity = 2;
    let words: Arc<Vec<AtomicU64>> = Arc::new((0..Conntrack::words_needed(capacity)).map(|_| AtomicU64::new(0)).collect());
    Conntrack::format(&words, capacity, 99, [0, 0]).unwrap();
    let filter = gateway.filter.filter();
    filter.clear();
    (words, filter)
}

fn model() -> loom::model::Builder {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 100_000;
    builder.max_duration = Some(Duration::from_secs(15));
    builder
}

/// Two workers meet these packets at once; what became of them, how many connections there are, and how many announcements.
fn meet(packets: [Spec; 2], check: impl Fn([Went; 2], u64, usize) + Sync + Send + 'static) {
    let gateway = gateway();
    model().check(move || {
        let (words, filter) = table(&gateway);
        let table = Conntrack::attach(&words).unwrap();
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

/// One packet of a connection meets a thread that walks the table and ends it: the packet goes on, and what is left is a whole connection or none.
#[test]
fn a_connection_that_is_ended_from_outside_ends_once_and_whole() {
    for (service, snat) in [("10.96.0.1:80", false), ("10.96.0.2:80", true)] {
        let packet = spec("udp", "10.0.0.2:1000", service, 0);
        let gateway = gateway();
        model().check(move || {
            let (words, filter) = table(&gateway);
            let worker = || {
                let (worker, words) = (gateway.clone(), words.clone());
                thread::Builder::new().stack_size(STACK).spawn(move || worker.carry(&words, 0, &packet)).unwrap()
            };
            // The first packet is over before anything else begins; the model's own thread has no stack for it.
            worker().join().unwrap().unwrap();
            let worker = worker();
            let table = Conntrack::attach(&words).unwrap();
            let mut ended = 0;
            table.walk(0..table.slots_used(), |hit, _| ended += u64::from(end_connection(table, Some(filter), hit)));
            let went = worker.join().unwrap().unwrap();
            assert_eq!(went.0, if snat { ip("10.0.0.1") } else { packet.src.ip() });
            // The first one, and perhaps the one that the packet has opened after that.
            assert!((1..=2).contains(&ended), "{ended}");
            let live = table.live();
            assert!(live + ended <= 2 && live <= 1, "{live} live, {ended} ended");
            assert_eq!((filter.len() as u64, table.snat_ports().in_use()), (live, if snat { live } else { 0 }));
            if live == 1 {
                // It is whole: found by both keys.
                let hit = table.lookup(&packet.tuple(), table.hash(&packet.tuple())).unwrap();
                let reply = table.flow(&hit).unwrap().reply();
                assert!(table.lookup(&reply, table.hash(&reply)).is_some());
            }
        });
    }
}
