//! A full bucket of the reply filter: which flows make room, which never do, and what is left when two workers meet there.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;
use nomagic_core::conntrack::{Conntrack, EvictionRank, PhaseKind};
use nomagic_core::counters::Counters;
use nomagic_core::filter::BUCKET_SLOTS;
use nomagic_core::frame::{Frame, Outputs, Verdict};
use nomagic_core::pipeline::{Context, WorkerState, end_connection, process};
use nomagic_core::reason::Reason;
use nomagic_core::services::Services;
use nomagic_core::tuple::{Proto, Tuple};
use nomagic_core_fixtures::*;

/// Services with one backend each, so that it is known whom a client is led to.
fn single_backends() -> Services {
    let mut s = services();
    for (service, pod) in [("10.96.0.9", "192.168.1.1"), ("fd00:96::9", "fd00:b::1")] {
        add_service(&mut s, service, 80, Proto::Tcp, &[backend(pod, 80)], false);
    }
    s
}

/// A world whose reply filter has so many buckets.
fn crowded(buckets: usize) -> World {
    let mut w = World::new(single_backends(), 256);
    w.replies = Replies::new(buckets);
    w
}

fn client(v6: bool, port: u16) -> Spec {
    match v6 {
        false => spec("tcp", &format!("10.0.0.2:{port}"), "10.96.0.9:80", SYN),
        true => spec("tcp", &format!("[fd00:a::2]:{port}"), "[fd00:96::9]:80", SYN),
    }
}

/// A reset whose number fits.
fn reset(client: &Spec) -> Spec {
    Spec { flags: RST, sequence: client.sequence + 1, ..*client }
}

/// The reply that a client of the Service with one backend gets.
fn reply(client: &Spec) -> Tuple {
    let pod = if client.src.is_ipv6() { "fd00:b::1" } else { "192.168.1.1" };
    Tuple::new(Proto::Tcp, ip(pod), 80, client.src.ip(), client.src.port()).unwrap()
}

/// Runs a client's packet in a context that is not a [`World`]'s.
fn run(ctx: &mut Context<'_>, client: &Spec) -> Verdict {
    let bytes = client.frame();
    let mut buffer = vec![0; 1_024];
    buffer[256..256 + bytes.len()].copy_from_slice(&bytes);
    let mut frames = [Frame::new(&mut buffer, 256, bytes.len(), CLIENTS, 1)];
    let mut verdicts = ArrayVec::new();
    process(ctx, &mut frames, &mut verdicts, &mut Outputs::default());
    verdicts[0]
}

fn opens(w: &mut World, client: &Spec) -> Result<(), Reason> {
    match w.run(CLIENTS, &client.frame()).verdict {
        Verdict::Forward(..) => Ok(()),
        Verdict::Drop(reason) => Err(reason),
        other => panic!("{other:?}"),
    }
}

fn evicted(w: &World) -> u64 {
    EvictionRank::ALL.into_iter().map(|rank| w.counters.conntrack.evicted.of(rank).get()).sum()
}

#[test]
fn a_full_bucket_makes_room_in_the_order_of_ranks() {
    for v6 in [false, true] {
        let mut w = crowded(1);
        let [older, newer, closed] = [1, 2, 3].map(|port| client(v6, port));
        for unconfirmed in [older, newer] {
            opens(&mut w, &unconfirmed).unwrap();
            w.now_ms += 1_000;
        }
        w.connect(&closed).unwrap();
        w.run(CLIENTS, &reset(&closed).frame());
        assert_eq!(w.phase(&closed.tuple()), Some(PhaseKind::Closed));
        (10..23).for_each(|port| drop(w.connect(&client(v6, port)).unwrap()));
        assert_eq!((w.live(), w.announced(), evicted(&w)), (16, 16, 0));
        for (i, gone) in [closed, older, newer].iter().enumerate() {
            w.connect(&client(v6, 30 + i as u16)).unwrap();
            assert_eq!(w.phase(&gone.tuple()), None, "{gone:?} goes {i}");
            assert_eq!((w.live(), w.announced(), evicted(&w)), (16, 16, i as u64 + 1));
        }
        assert_eq!(w.counters.conntrack.evicted.of(EvictionRank::Closed).get(), 1);
        // Established flows stay.
        assert_eq!(opens(&mut w, &client(v6, 40)), Err(Reason::ReplyFilterFull));
        assert_eq!((w.live(), w.announced(), evicted(&w)), (16, 16, 3));
        for port in (10..23).chain(30..33) {
            assert_eq!(w.phase(&client(v6, port).tuple()), Some(PhaseKind::Established), "{port}");
        }
        // Until one has timed out that the sweep has not come by yet.
        w.now_ms += 86_400_000;
        opens(&mut w, &client(v6, 40)).unwrap();
        assert_eq!((w.live(), w.announced(), evicted(&w)), (16, 16, 4));
    }
}

#[test]
fn a_flood_in_one_bucket_keeps_nobody_out() {
    let mut w = crowded(1);
    (0..8).for_each(|port| drop(w.connect(&client(false, 1_000 + port)).unwrap()));
    for port in 1..=2_000 {
        w.now_ms += 1;
        opens(&mut w, &client(true, port)).unwrap();
    }
    for port in 0..8 {
        assert_eq!(w.phase(&client(false, 1_000 + port).tuple()), Some(PhaseKind::Established));
        w.connect(&client(false, 2_000 + port)).unwrap();
    }
    assert_eq!((w.live(), w.announced(), evicted(&w)), (16, 16, 2_000));
    assert_eq!(opens(&mut w, &client(true, 3_000)), Err(Reason::ReplyFilterFull));
}

/// An owner may be of the past. It must not cost a flow its life that is not in the bucket.
#[test]
fn owners_that_are_out_of_date_end_nothing() {
    let mut w = crowded(2);
    let of_bucket = |w: &World, bucket| {
        let filter = w.replies.filter();
        let ports = (1..).map(|port| client(false, port)).filter(|c| filter.bucket_of(&reply(c)) == bucket);
        ports.take(BUCKET_SLOTS + 1).collect::<Vec<_>>()
    };
    let (first, second) = (of_bucket(&w, 0), of_bucket(&w, 1));
    let (newcomer, first) = first.split_last().unwrap();
    first.iter().for_each(|c| drop(w.connect(c).unwrap()));
    // Unconfirmed ones that may be evicted, but are not in the bucket: announced in the other one, and not announced at all.
    opens(&mut w, &second[0]).unwrap();
    let silent = client(false, 50_000);
    w.with(|ctx| {
        let filter = ctx.filter.take();
        run(ctx, &silent);
        ctx.filter = filter;
    });
    assert_eq!((w.live(), w.announced()), (18, 17));
    let slot_of =
        |w: &mut World, client: &Spec| w.with(|ctx| ctx.table.lookup(&client.tuple(), ctx.table.hash(&client.tuple())).unwrap().slot());
    let outsiders = [slot_of(&mut w, &second[0]) + 1, slot_of(&mut w, &silent) + 1];
    // Those, none, a slot without a flow, the highest, one beyond the table.
    for owner in outsiders.into_iter().chain([0, 100, 256, 257, u32::MAX]) {
        w.replies.owners[..BUCKET_SLOTS].iter().for_each(|o| o.store(owner, Relaxed));
        assert_eq!(opens(&mut w, newcomer), Err(Reason::ReplyFilterFull), "{owner}");
        assert_eq!((w.live(), w.announced(), evicted(&w)), (18, 17, 0));
    }
    // One that is right among them.
    w.run(CLIENTS, &reset(&first[7]).frame());
    let right = slot_of(&mut w, &first[7]) + 1;
    w.replies.owners[3].store(right, Relaxed);
    opens(&mut w, newcomer).unwrap();
    assert_eq!((w.phase(&first[7].tuple()), w.live(), w.announced(), evicted(&w)), (None, 18, 17, 1));
}

/// Two workers crowd one bucket with unconfirmed connections: in the end there is one announcement for each that is left.
#[test]
fn workers_that_meet_in_a_bucket_leave_an_announcement_for_each_connection() {
    const EACH: u16 = 4_000;
    let (services, routes, replies) = (single_backends(), routes(1), Replies::new(1));
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(256)).map(|_| AtomicU64::new(0)).collect();
    let table = Conntrack::format(&words, 256, 99, [0, 0]).unwrap();
    let carry = |number: u16| {
        let (counters, mut worker, mut refused) = (Counters::new(8), WorkerState::new(number), 0);
        for port in 1..=EACH {
            let mut ctx = Context {
                now_ms: 1_000 + u64::from(port),
                services: &services,
                routes: &routes,
                table,
                filter: Some(replies.filter()),
                counters: &counters,
                worker: &mut worker,
            };
            match run(&mut ctx, &client(number == 1, port)) {
                Verdict::Forward(..) => {}
                Verdict::Drop(Reason::ReplyFilterFull) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        refused
    };
    let refused: u32 = std::thread::scope(|scope| {
        let workers = [0, 1].map(|number| scope.spawn(move || carry(number)));
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    println!("{refused} of {} refused, since the other worker took the places", 2 * EACH);
    assert!(refused < u32::from(EACH) / 50, "{refused}");
    let filter = replies.filter();
    assert_eq!((table.live(), filter.len()), (16, 16));
    let mut ended = 0;
    table.for_each(|hit, flow| {
        assert!(filter.contains(&flow.reply()));
        ended += u32::from(end_connection(table, Some(filter), hit));
    });
    assert_eq!((ended, filter.len(), table.live()), (16, 0, 0));
}
