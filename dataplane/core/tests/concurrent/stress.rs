//! Threads at one small table, with its places reused all the time under those who read. Every field of a connection follows from one number,
//! so whatever is read shows whether it is whole, and whose it is.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};

use nomagic_core::conntrack::{Conntrack, Deltas, Direction, Fate, Flow, Hit, Phase, PhaseKind, Refused, Sticky};
use nomagic_core::frame::NextHopId;
use nomagic_core::tuple::{Proto, Tuple, splitmix64};
use nomagic_core::wire::tcp;

/// Connections that clients can ask for; each is opened again and again, towards other backends.
const KEYS: u32 = 6;
const CAPACITY: u32 = 8;
const WRITERS: u32 = 2;
const READERS: u32 = 2;
const ROUNDS: u32 = if cfg!(miri) { 1 } else { 200 };
/// A next hop's generation has 12 bits: whoever sleeps while its place goes round 4,096 times would take another's word for its own.
const LIVES: u32 = if cfg!(miri) { 100 } else { 2_000 };
const ROUTES: u64 = 5;

fn mixed(n: u32) -> u64 {
    splitmix64(&mut u64::from(n))
}

/// Life `n` of key `n % KEYS`. What the client sees follows from the key, everything else from all of `n`. All have the same few addresses, so that fragments,
/// which have no ports, could be taken for another's.
fn flow(n: u32) -> Flow {
    let key = n % KEYS;
    let v6 = key % 2 == 1;
    let addr = |last: u64| if v6 { [0xfd00 << 48 | (last << 8), !last] } else { [0, 0x0a00_0000 + last] };
    let snat = key >= KEYS / 2;
    let m = mixed(n);
    Flow {
        proto: if key.is_multiple_of(3) { Proto::Udp } else { Proto::Tcp },
        v6,
        announced: m & 1 == 1,
        client: addr(1),
        client_port: 1_024 + key as u16,
        service: addr(2),
        service_port: 80,
        backend: addr(3 + (m >> 8) % 2),
        backend_port: (m >> 16) as u16,
        source: if snat { addr(5) } else { addr(1) },
        // No two lives of one round have a reply's key in common.
        source_port: n as u16,
        stats: n,
        counted: None,
    }
}

fn hop(n: u32, direction: Direction) -> NextHopId {
    NextHopId(1 + ((mixed(n) >> 40) as u16 & 0xfff) + direction as u16)
}

/// Whether all that a hit says is of one connection, and that has this key.
fn check(hit: &Hit, key: Option<Tuple>) {
    let f = flow(hit.stats);
    let reply = hit.direction == Direction::Reply;
    let (arrives, leaves) = if reply { (f.reply(), f.original()) } else { (f.original(), f.reply()) };
    assert!(key.is_none_or(|key| key == arrives), "asked for {key:?}, found {hit:?}");
    let (l3, l4) = f.deltas();
    let deltas = if reply { Deltas { l3: !l3, l4: !l4 } } else { Deltas { l3, l4 } };
    assert_eq!((hit.new, hit.deltas), (leaves.reversed(), deltas), "torn: {hit:?}");
    let kinds: &[PhaseKind] = match f.proto {
        Proto::Udp => &[PhaseKind::Unreplied, PhaseKind::Replied, PhaseKind::Confirmed, PhaseKind::Stream],
        _ => &[PhaseKind::SynSent, PhaseKind::SynReceived],
    };
    assert!(kinds.contains(&hit.phase.kind()), "the phase of another: {hit:?}");
    assert!(hit.cached_hop(ROUTES).is_none_or(|id| id == hop(hit.stats, hit.direction)), "the next hop of another: {hit:?}");
}

fn region(capacity: u32) -> Vec<AtomicU64> {
    (0..Conntrack::words_needed(capacity)).map(|_| AtomicU64::new(0)).collect()
}

fn create(table: &Conntrack<'_>, f: &mut Flow, ports: impl Iterator<Item = u16>) -> Result<Hit, Refused> {
    let (hash, phase) = (table.hash(&f.original()), Phase::first(f.proto, tcp::SYN));
    if f.replaces_source() {
        table.snat_ports().take(f, nomagic_core::services::PortLimits::NONE).unwrap();
    }
    let done = table.reserve(f, hash, phase, 0, ports).and_then(|pending| table.commit(pending));
    if done.is_err() && f.replaces_source() {
        table.snat_ports().give_back(f);
    }
    done
}

fn find(table: &Conntrack<'_>, key: &Tuple) -> Option<Hit> {
    table.lookup(key, table.hash(key))
}

/// Runs threads by number, all from one moment on.
fn together(threads: u32, run: impl Fn(u32) + Sync) {
    let barrier = Barrier::new(threads as usize);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (barrier, run) = (&barrier, &run);
            scope.spawn(move || {
                barrier.wait();
                run(thread);
            });
        }
    });
}

/// What the threads of a round share.
struct Round<'r> {
    table: Conntrack<'r>,
    /// The life that was opened last, for those who look for replies.
    last: AtomicU32,
    /// How often each life was opened, and ended.
    opened: Vec<AtomicU8>,
    ended: Vec<AtomicU8>,
    /// Writers that are not done.
    writers: AtomicU32,
    read: &'r AtomicU64,
}

/// Counts a writer out, also one that panics.
struct Done<'w>(&'w AtomicU32);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Round<'_> {
    fn end(&self, flow: &Flow) {
        assert_eq!(*flow, self::flow(flow.stats));
        assert_eq!(self.ended[flow.stats as usize].fetch_add(1, SeqCst), 0, "{} was ended twice", flow.stats);
    }

    /// Opens its share of the lives, and ends some of what it finds.
    fn write(&self, writer: u32) {
        let _done = Done(&self.writers);
        let mut state = u64::from(writer);
        for n in (writer..LIVES).step_by(WRITERS as usize) {
            match create(&self.table, &mut flow(n), std::iter::once(n as u16)) {
                Ok(hit) => {
                    check(&hit, Some(flow(n).original()));
                    self.opened[n as usize].store(1, SeqCst);
                    self.last.store(n, SeqCst);
                }
                // Somebody holds the client's key; or all places are taken.
                Err(Refused::Exists | Refused::Busy | Refused::Full | Refused::Crowded(_)) => {}
                Err(Refused::ReplyTaken) => panic!("nobody else has the source port {n}"),
            }
            let r = splitmix64(&mut state);
            if r >> 60 == 0 {
                std::thread::yield_now();
            }
            if r.is_multiple_of(8) {
                self.table.sweep(4, ROUTES, |hit| mixed(hit.stats) % 2 == r % 2, |flow, _, _| self.end(&flow));
            } else if let Some(hit) = find(&self.table, &flow((r >> 8) as u32 % KEYS).original()) {
                check(&hit, None);
                if let Some(flow) = self.table.end(&hit) {
                    self.end(&flow);
                }
            }
        }
    }

    /// As long as there are writers, looks for anything in any way, and notes what a worker would note about it.
    fn read(&self, reader: u32) {
        let mut state = 100 + u64::from(reader);
        while self.writers.load(SeqCst) > 0 {
            let r = splitmix64(&mut state);
            if r >> 60 == 0 {
                std::thread::yield_now();
            }
            let last = flow(self.last.load(SeqCst));
            let key = match r % 3 {
                0 => last.reply(),
                1 => last.original(),
                _ => flow((r >> 8) as u32 % KEYS).original(),
            };
            let hit = find(&self.table, &key);
            let Some(hit) = hit else { continue };
            self.read.fetch_add(1, SeqCst);
            check(&hit, Some(key));
            if let Some(whole) = self.table.flow(&hit) {
                assert_eq!(whole, flow(hit.stats));
            }
            let id = (r >> 16) as u32 % 4;
            let fragments = self.table.fragments();
            let datagram = fragments.datagram(&key, id);
            fragments.remember(datagram, &hit, 800, 0);
            if r & 0x100 == 0 {
                std::thread::yield_now();
            }
            self.table.touch(&hit, hit.phase.after(Direction::Reply, 0, true), r >> 32);
            self.table.cache_hop(&hit, ROUTES, hop(hit.stats, hit.direction));
            if let Some(fate) = fragments.lookup(datagram, &key, 0) {
                let Fate::Flow(hit, 800) = fate else { panic!("{fate:?}") };
                // Another's with the same addresses and identification may have come between; but it is that one's altogether.
                check(&hit, None);
            }
            if r.is_multiple_of(64) {
                self.table.for_each(|hit, whole| {
                    check(hit, None);
                    assert_eq!(*whole, flow(hit.stats));
                });
            }
        }
    }
}

#[test]
fn who_reads_while_places_are_reused_reads_whole_connections() {
    let read = AtomicU64::new(0);
    for round in 0..ROUNDS {
        let words = region(CAPACITY);
        let table = Conntrack::format(&words, CAPACITY, u64::from(round), [0, 0]).unwrap();
        let counts = || (0..LIVES).map(|_| AtomicU8::new(0)).collect();
        let shared =
            Round { table, last: AtomicU32::new(0), opened: counts(), ended: counts(), writers: AtomicU32::new(WRITERS), read: &read };
        together(WRITERS + READERS, |thread| match thread.checked_sub(WRITERS) {
            None => shared.write(thread),
            Some(reader) => shared.read(round * READERS + reader),
        });

        let mut live = 0;
        table.for_each(|hit, _| {
            check(hit, None);
            live += 1;
            shared.end(&table.end(hit).unwrap());
        });
        let count = |of: &[AtomicU8]| of.iter().map(|n| u64::from(n.load(SeqCst))).sum::<u64>();
        assert_eq!(count(&shared.opened), count(&shared.ended), "each ended once");
        assert!(live <= u64::from(KEYS));
        assert_eq!(
            (table.live(), table.snat_ports().in_use(), table.snat_ports().largest_shares().service, table.snat_ports().fullest_endpoint()),
            (0, 0, 0, 0)
        );
        // No place was lost.
        (0..CAPACITY).for_each(|n| {
            create(&table, &mut Flow { client_port: n as u16, ..flow(n) }, std::iter::once(n as u16)).unwrap();
        });
    }
    let read = read.into_inner();
    println!("{read} connections were met");
    assert!(read > u64::from(ROUNDS * LIVES / 100), "only {read} connections were met");
}

/// Clients of one Service and one backend share three source ports.
#[test]
fn a_source_port_belongs_to_one_connection_at_a_time() {
    const THREADS: u32 = 4;
    const FIRST: u16 = 61_000;
    const PORTS: u16 = 3;
    const TIMES: u32 = if cfg!(miri) { 20 } else { 10_000 };
    let words = region(64);
    let table = Conntrack::format(&words, 64, 1, [0, 0]).unwrap();
    let owners: Vec<AtomicU32> = (0..PORTS).map(|_| AtomicU32::new(0)).collect();
    let (got, refused) = (AtomicU32::new(0), AtomicU32::new(0));
    together(THREADS, |thread| {
        let mut state = u64::from(thread);
        for i in 0..TIMES {
            let r = splitmix64(&mut state);
            let mut f = Flow { client_port: thread as u16, source: [0, 9], backend_port: 80, backend: [0, 8], ..flow(KEYS) };
            // Each begins with any of them.
            let ports = (0..PORTS).map(|p| FIRST + (p + r as u16) % PORTS);
            match create(&table, &mut f, ports) {
                Ok(hit) => {
                    let owner = &owners[usize::from(hit.new.sport - FIRST)];
                    let mine = thread << 16 | i | 1 << 31;
                    assert_eq!(owner.swap(mine, SeqCst), 0, "port {} has an owner already", hit.new.sport);
                    (0..r >> 32 & 0x3f).for_each(|_| std::hint::spin_loop());
                    if r >> 48 & 7 == 0 {
                        std::thread::yield_now();
                    }
                    assert_eq!(owner.swap(0, SeqCst), mine);
                    assert!(table.end(&hit).is_some());
                    got.fetch_add(1, SeqCst);
                }
                Err(Refused::ReplyTaken | Refused::Busy) => {
                    refused.fetch_add(1, SeqCst);
                    std::thread::yield_now();
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    });
    let (got, refused) = (got.into_inner(), refused.into_inner());
    assert!(got > TIMES && (refused > 10 || cfg!(miri)), "{got} got one, {refused} did not");
    assert_eq!(
        (table.live(), table.snat_ports().in_use(), table.snat_ports().largest_shares().service, table.snat_ports().fullest_endpoint()),
        (0, 0, 0, 0)
    );
}

/// Two workers open a client's first two connections at once, in a table that is full of other clients.
#[test]
fn two_workers_that_choose_for_one_client_choose_the_same_endpoint() {
    const CLIENTS: u64 = if cfg!(miri) { 30 } else { 30_000 };
    let words = region(32);
    let table = Conntrack::format(&words, 32, 1, [0, 0]).unwrap();
    let chosen: [Vec<AtomicU32>; 2] = std::array::from_fn(|_| (0..CLIENTS).map(|_| AtomicU32::new(0)).collect());
    let turn = AtomicU64::new(0);
    together(2, |me| {
        for client in 0..CLIENTS {
            // Both wait for each other before each client.
            turn.fetch_add(1, SeqCst);
            let mut waited = 0;
            while turn.load(SeqCst) < 2 * (client + 1) {
                waited += 1;
                if waited > 50 {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
            let sticky = Sticky { id: 1, client: [0, client], v6: false, timeout_s: 3_600 };
            let endpoint = table.affinity().stick(&sticky, 1_000 * client, |identity| identity == 1 || identity == 2, u64::from(me) + 1).0;
            chosen[me as usize][client as usize].store(endpoint as u32, SeqCst);
        }
    });
    let differ = (0..CLIENTS as usize).filter(|&c| chosen[0][c].load(SeqCst) != chosen[1][c].load(SeqCst)).count();
    assert_eq!(differ, 0, "of {CLIENTS} clients");
}
