//! Rejects under a scan and under a flood: no class of them is at the expense of another, no sender's at that of another's.

use arrayvec::ArrayVec;
use nomagic_core::frame::{BATCH_MAX, Frame, OUTPUT_MAX, Outputs, PortId, Verdict};
use nomagic_core::pipeline::process;
use nomagic_core::reason::Reason;
use nomagic_core::reject::Class;
use nomagic_core_fixtures::*;

/// The cluster IP of a Service, and a port that it has not.
const UNUSED: &str = "10.96.0.1:81";
/// Longer than the links' MTU.
const LONG: usize = 1_480;

fn world() -> World {
    World::new(services(), 256)
}

fn datagram(from: &str, to: &str, payload: usize) -> Vec<u8> {
    Spec { payload, ..spec("udp", from, to, 0) }.frame()
}

/// Whether an ICMP error of this type and code was sent.
fn told(done: &Done, icmp: [u8; 2]) -> bool {
    done.made.first().is_some_and(|made| made[34..36] == icmp)
}

const UNREACHABLE: [u8; 2] = [3, 3];
const FRAGMENTATION_NEEDED: [u8; 2] = [3, 4];
const TIME_EXCEEDED: [u8; 2] = [11, 0];

/// A client of 10.96.0.1:80 with an established connection. Its next segment can be too long for the way on.
fn connect(w: &mut World, client: &str) -> Spec {
    let from_client = |flags| spec("tcp", client, "10.96.0.1:80", flags);
    let pod = read(&w.run(CLIENTS, &from_client(SYN).frame()).bytes).unwrap().tuple.dst_addr();
    w.run(PODS, &spec("tcp", &format!("{pod}:8080"), client, SYN_ACK).frame());
    w.run(CLIENTS, &from_client(ACK).frame());
    Spec { payload: LONG, ..from_client(ACK) }
}

/// How often of a hundred times in 5 s `ask` is answered, beside a flood of 5,000 frames a second.
fn beside(w: &mut World, mut flood: impl FnMut(u32) -> Vec<u8>, mut ask: impl FnMut(&mut World, u32) -> bool) -> usize {
    let mut answered = 0;
    for ms in 0..5_000 {
        w.now_ms += 1;
        (0..5).for_each(|i| drop(w.run(CLIENTS, &flood(5 * ms + i))));
        answered += usize::from(ms % 50 == 49 && ask(w, ms));
    }
    answered
}

/// One address that asks port after port.
fn scan(i: u32) -> Vec<u8> {
    datagram(&format!("10.7.0.9:{}", 1_024 + i % 50_000), UNUSED, 8)
}

/// An address that was never seen before.
fn forged(i: u32) -> String {
    let [_, a, b, c] = (i + 1).to_be_bytes();
    format!("11.{a}.{b}.{c}:5")
}

#[test]
fn a_scan_does_not_keep_others_from_being_told() {
    let mut w = world();
    let connected = connect(&mut w, "10.0.0.2:50000");
    assert_eq!(
        beside(&mut w, scan, |w, i| told(
            &w.run(CLIENTS, &datagram(&format!("10.0.0.2:{}", 1_024 + i), "10.96.0.1:80", LONG)),
            FRAGMENTATION_NEEDED
        )),
        100
    );
    assert_eq!(beside(&mut w, scan, |w, _| told(&w.run(CLIENTS, &connected.frame()), FRAGMENTATION_NEEDED)), 100);
    assert_eq!(beside(&mut w, scan, |w, _| told(&w.run(CLIENTS, &datagram("10.0.0.3:7", UNUSED, 8)), UNREACHABLE)), 100, "honest rejects");
    let dying = Spec { ttl: 1, ..spec("udp", "10.0.0.2:33434", "10.96.0.1:80", 0) }.frame();
    assert_eq!(beside(&mut w, scan, |w, _| told(&w.run(CLIENTS, &dying), TIME_EXCEEDED)), 100, "traceroute");
    let unknown = spec("tcp", "10.0.0.2:40000", "10.96.0.2:80", ACK).frame();
    assert_eq!(beside(&mut w, scan, |w, _| w.run(CLIENTS, &unknown).made.len() == 1), 100, "resets");
    // The scanner has had its share, and no more.
    let share = Class::Unreachable.share();
    let made = w.counters.path.rejects_made.of(Class::Unreachable).get() - 100;
    assert!(made.abs_diff(share.burst + 25 * share.per_second) <= 3, "{made}");
    assert_eq!(w.counters.path.rejects_suppressed.of(Class::Unreachable).get(), 125_000 - made);
    w.reconciled();
}

#[test]
fn forged_senders_use_up_their_class_only() {
    let mut w = world();
    let connected = connect(&mut w, "10.0.0.2:50000");
    let rejected = |i| datagram(&forged(i), UNUSED, 8);
    let too_big =
        |w: &mut World, i| told(&w.run(CLIENTS, &datagram(&format!("10.0.0.2:{}", 1_024 + i), "10.96.0.1:80", LONG)), FRAGMENTATION_NEEDED);
    assert_eq!(beside(&mut w, rejected, too_big), 100);
    let honest = beside(&mut w, rejected, |w, _| told(&w.run(CLIENTS, &datagram("10.0.0.3:7", UNUSED, 8)), UNREACHABLE));
    assert!(honest < 60, "{honest}: a limit for all there is");
    assert_eq!(w.counters.path.rejects_suppressed.of(Class::TooBig).get(), 0);

    // The same by forged datagrams that are too big: flows that nobody knows suffer, those that are confirmed do not.
    let forged_too_big = |i| datagram(&forged(i), "10.96.0.1:80", LONG);
    let unknown = beside(&mut w, forged_too_big, too_big);
    assert!(unknown < 60, "{unknown}");
    assert_eq!(beside(&mut w, forged_too_big, |w, _| told(&w.run(CLIENTS, &connected.frame()), FRAGMENTATION_NEEDED)), 100);
    assert_eq!(w.counters.path.rejects_made.of(Class::TooBigConfirmed).get(), 100);
    // Nor do answered questions, once their client has sent again.
    let question = spec("udp", "10.0.0.2:50001", "10.96.0.1:80", 0);
    let pod = read(&w.run(CLIENTS, &question.frame()).bytes).unwrap().tuple.dst_addr();
    w.run(PODS, &spec("udp", &format!("{pod}:8080"), "10.0.0.2:50001", 0).frame());
    w.run(CLIENTS, &question.frame());
    let long = Spec { payload: LONG, ..question }.frame();
    assert_eq!(beside(&mut w, forged_too_big, |w, _| told(&w.run(CLIENTS, &long), FRAGMENTATION_NEEDED)), 100);
    assert_eq!(w.counters.path.rejects_made.of(Class::TooBigAnswered).get(), 100);
}

#[test]
fn handshakes_that_nobody_confirmed_do_not_reach_the_class_of_connections() {
    let mut w = world();
    for flags in [&[SYN][..], &[SYN, RST], &[ACK]] {
        let client = format!("10.0.0.2:{}", 50_000 + flags.len() as u16 + u16::from(flags[0]));
        for flags in flags {
            w.run(CLIENTS, &spec("tcp", &client, "10.96.0.1:80", *flags).frame());
        }
        let done = w.run(CLIENTS, &Spec { payload: LONG, ..spec("tcp", &client, "10.96.0.1:80", ACK) }.frame());
        assert!(told(&done, FRAGMENTATION_NEEDED));
    }
    assert_eq!((w.counters.path.rejects_made.of(Class::TooBig).get(), w.counters.path.read().rejects_made.total()), (3, 3));
}

#[test]
fn what_is_never_answered_uses_nothing_up() {
    let mut w = world();
    let mut may_fragment = datagram("10.0.0.2:7", "10.96.0.1:80", LONG);
    may_fragment[20] = 0;
    let mut broadcast = datagram("10.0.0.2:7", UNUSED, 8);
    broadcast[0] = 0xff;
    w.services.tcp_reject = nomagic_core::services::TcpReject::Reset;
    w.services.fragment = false;
    let reset = spec("tcp", "10.0.0.2:7", UNUSED, RST).frame();
    for frame in [may_fragment, broadcast, reset] {
        assert!((0..500).all(|_| w.run(CLIENTS, &frame).made.is_empty()));
    }
    assert_eq!(w.counters.path.read().rejects_suppressed.total(), 1_500);
    let burst = Class::TooBig.share().burst;
    for (class, to, payload) in [(Class::TooBig, "10.96.0.1:80", LONG), (Class::Unreachable, UNUSED, 8)] {
        (0..2 * burst).for_each(|_| drop(w.run(CLIENTS, &datagram("10.0.0.2:7", to, payload))));
        assert_eq!(w.counters.path.rejects_made.of(class).get(), burst);
    }
}

/// A batch makes 16 frames at the most. A scan's do not take the place of "too big" behind them.
#[test]
fn a_batch_keeps_room_for_too_big() {
    let mut w = world();
    let connected = connect(&mut w, "10.0.0.2:50000").frame();
    let rejected = (0..BATCH_MAX as u32 - 34).map(|i| datagram(&forged(i), UNUSED, 8));
    let unknown = (0..32).map(|i| datagram(&forged(1_000 + i), "10.96.0.1:80", LONG));
    let batch: Vec<Vec<u8>> = rejected.chain(unknown).chain([connected.clone(), connected]).collect();
    let mut buffers: Vec<Vec<u8>> = batch.iter().map(|bytes| [vec![0; 256], bytes.clone()].concat()).collect();
    let mut spares = vec![vec![0u8; 2_048]; OUTPUT_MAX];
    let mut out = Outputs::default();
    spares.iter_mut().for_each(|spare| out.spare.push(Frame::new(spare, 0, 0, PortId(0), 0)));
    let mut frames: ArrayVec<Frame<'_>, BATCH_MAX> =
        buffers.iter_mut().zip(&batch).map(|(buffer, bytes)| Frame::new(buffer, 256, bytes.len(), CLIENTS, 1)).collect();
    let mut verdicts = ArrayVec::new();
    w.with(|ctx| process(ctx, &mut frames, &mut verdicts, &mut out));
    let kinds: Vec<[u8; 2]> = out.made.iter().map(|(made, ..)| [made.head()[34], made.head()[35]]).collect();
    assert_eq!(kinds, [vec![UNREACHABLE; 12], vec![FRAGMENTATION_NEEDED; 4]].concat());
    let made = &w.counters.path.rejects_made;
    assert_eq!([Class::Unreachable, Class::TooBig, Class::TooBigConfirmed].map(|class| made.of(class).get()), [12, 2, 2]);
    assert!(verdicts.iter().all(|v| matches!(v, Verdict::Drop(Reason::UnusedServicePort | Reason::TooBig))));
}

#[test]
fn a_scan_of_one_network_is_one_sender_in_ipv6() {
    let mut w = world();
    let rejected = |host: u32, network: u32| datagram(&format!("[fd00:a:0:{network:x}::{host:x}]:5"), "[fd00:96::1]:81", 8);
    let told = (1..=1_000).filter(|i| !w.run(CLIENTS, &rejected(*i, 1)).made.is_empty()).count() as u64;
    assert_eq!(told, Class::Unreachable.share().burst);
    assert_eq!(w.run(CLIENTS, &rejected(1, 2)).made.len(), 1, "the next network is another one");
}
