//! What observers of the slow path hear, and that hearing changes nothing.

use arrayvec::ArrayVec;
use nomagic_core::conntrack::{Hit, Remembered};
use nomagic_core::first_packet::first_packet;
use nomagic_core::frame::{Frame, NextHopId, Outputs, PortId, Verdict};
use nomagic_core::observe::{FlowFate, Observer};
use nomagic_core::parse::{Packet, parse};
use nomagic_core::pipeline::{process_observed, process_tapped};
use nomagic_core::reason::Reason;
use nomagic_core::reject::Answer;
use nomagic_core::routes::Resolution;
use nomagic_core::services::{Action, Affinity, Decision, Source};
use nomagic_core::tap::{FlowView, Notes as TapNotes, PacketFilter, Tap};
use nomagic_core::tuple::{Proto, Tuple, splitmix64};
use nomagic_core_fixtures::*;

/// Notes what it hears, a word for each decision.
#[derive(Default)]
struct Notes(Vec<String>);

impl Observer<'_> for Notes {
    fn parsed(&mut self, packet: &Packet) {
        self.0.push(format!("parsed {}", packet.tuple.proto));
    }

    fn known_flow(&mut self, hit: &Hit, fate: FlowFate) {
        self.0.push(format!("{fate:?} {:?}", hit.direction));
    }

    fn affinity(&mut self, remembered: Remembered) {
        self.0.push(format!("affinity {remembered:?}"));
    }

    fn service(&mut self, decision: &Decision<'_>) {
        self.0.push(match decision {
            Decision::Pass(reason) => format!("pass {}", reason.label()),
            Decision::Forward { matched, pool, snat, .. } => {
                format!("{} for {:?}: one of {}, {snat:?}", matched.frontend.port.name, matched.client, pool.backends.len())
            }
            Decision::Reject(matched, reason) => format!("reject {} {}", reason.label(), matched.is_some()),
            Decision::Drop(matched, reason) => format!("drop {} {}", reason.label(), matched.is_some()),
        });
    }

    fn next_hop(&mut self, _: &Tuple, resolution: &Resolution) {
        self.0.push(match resolution {
            Resolution::Hop(_) => "hop".into(),
            Resolution::Ask(wanted) => format!("ask {}", wanted.addr),
            Resolution::Kernel { captured } => format!("kernel {captured}"),
            Resolution::Nowhere(reason) => format!("nowhere {}", reason.label()),
        });
    }

    fn source(&mut self, source: Result<Source, Reason>, needs_internal: bool) {
        let internal = if needs_internal { " internal" } else { "" };
        self.0.push(match source {
            Ok(Source::Client) => format!("source stays{internal}"),
            Ok(Source::Replaced(_)) => format!("source replaced{internal}"),
            Err(reason) => format!("no source: {}{internal}", reason.label()),
        });
    }

    fn opened(&mut self, hit: &Hit) {
        self.0.push(format!("opened, {}", if hit.new.sport >= 61_000 { "port of the range" } else { "own port" }));
    }

    fn rejected(&mut self, reason: Reason, answer: Answer, sent: bool) {
        self.0.push(format!("rejected {} {answer:?} {sent}", reason.label()));
    }

    fn verdict(&mut self, verdict: &Verdict) {
        self.0.push(match verdict {
            Verdict::Forward(..) => "forward".into(),
            Verdict::Kernel(reason) => format!("to the kernel: {}", reason.label()),
            Verdict::Drop(reason) => format!("dropped: {}", reason.label()),
            Verdict::Fragment(_, _, mtu) => format!("forward in fragments of {mtu}"),
            Verdict::Hold(_) => "held".into(),
        });
    }
}

/// Verdict, frame and made frames afterwards.
type Outcome = (Verdict, Vec<u8>, Vec<Vec<u8>>);

fn observed(w: &mut World, port: PortId, bytes: &[u8]) -> (Outcome, Vec<String>) {
    let (mut buf, mut spare) = (vec![0u8; 4096], vec![0u8; 2048]);
    buf[256..256 + bytes.len()].copy_from_slice(bytes);
    let (mut verdicts, mut out, mut notes) = (ArrayVec::new(), Outputs::default(), Notes::default());
    out.spare.push(Frame::new(&mut spare, 0, 0, PortId(0), 0));
    let mut frames = [Frame::new(&mut buf, 256, bytes.len(), port, 1)];
    w.with(|ctx| process_observed(ctx, &mut frames, &mut verdicts, &mut out, &mut notes));
    let made = out.made.iter().map(|(f, ..)| f.head().to_vec()).collect();
    ((verdicts[0], frames[0].head().to_vec(), made), notes.0)
}

fn heard(w: &mut World, frame: &[u8]) -> String {
    observed(w, CLIENTS, frame).1.join("; ")
}

#[test]
fn every_decision_about_a_new_flow_is_heard_in_order() {
    let mut s = services();
    add_service(&mut s, "10.96.0.3", 80, Proto::Tcp, &[backend("172.31.0.5", 1)], false);
    add_service(&mut s, "10.96.0.4", 80, Proto::Tcp, &[backend("172.16.0.5", 1)], false);
    add_service(&mut s, "10.96.0.5", 80, Proto::Tcp, &[backend("192.168.9.9", 1)], false);
    add_service(&mut s, "10.96.0.6", 80, Proto::Tcp, &[backend("192.168.77.1", 1)], false);
    add_action(&mut s, "10.96.0.7", 80, Proto::Tcp, Action::Reject(Reason::NoEndpoints));
    let mut w = World::new(s, 64);
    let table = [
        ("10.96.0.1:80", "s0 for External: one of 3, None; hop; source stays; opened, own port; forward"),
        ("10.96.0.2:80", "s2 for External: one of 3, Some(Masquerade); hop; source replaced; opened, port of the range; forward"),
        ("10.96.0.3:80", "for External: one of 1, None; kernel true; source stays; opened, own port; forward"),
        ("10.96.0.4:80", "for External: one of 1, None; kernel false; source replaced internal; opened, port of the range; forward"),
        ("10.96.0.5:80", "for External: one of 1, None; ask 192.168.9.9; held"),
        (
            "10.96.0.6:80",
            "for External: one of 1, None; nowhere unreachable; rejected unreachable Icmp(RouteUnreachable) true; dropped: unreachable",
        ),
        ("10.96.0.7:80", "parsed TCP; reject no_endpoints true; rejected no_endpoints Icmp(PortUnreachable) true; dropped: no_endpoints"),
        (
            "10.96.0.1:81",
            "parsed TCP; reject unused_service_port false; rejected unused_service_port Icmp(PortUnreachable) true; dropped: unused_service_port",
        ),
        ("10.96.9.9:80", "parsed TCP; drop unallocated_service_address false; dropped: unallocated_service_address"),
        ("8.8.8.8:80", "parsed TCP; pass not_ours; to the kernel: not_ours"),
    ];
    for (to, expected) in table {
        let told = heard(&mut w, &spec("tcp", "10.0.0.2:1000", to, SYN).frame());
        assert!(told.starts_with("parsed TCP; ") && told.ends_with(expected), "{to}: {told}");
    }
    w.services.snat.v4.clear();
    let told = heard(&mut w, &spec("tcp", "10.0.0.2:1001", "10.96.0.2:80", SYN).frame());
    assert!(told.ends_with("hop; no source: snat_address_missing; dropped: snat_address_missing"), "{told}");
    assert_eq!(heard(&mut w, &spec("tcp", "127.0.0.1:1", "10.96.0.1:80", SYN).frame()), "dropped: martian");
    assert_eq!(heard(&mut w, &[0; 10]), "dropped: ethernet_truncated");
}

#[test]
fn what_the_sender_is_told_is_heard() {
    let mut w = World::new(services(), 64);
    let table = [
        (spec("tcp", "10.0.0.2:1000", "10.96.0.2:80", ACK), "rejected mid_flow_snat Reset true; dropped: mid_flow_snat"),
        (spec("tcp", "10.0.0.2:1000", "10.96.0.1:80", FIN_ACK), "rejected tcp_flags Reset true; dropped: tcp_flags"),
        (spec("tcp", "10.0.0.2:1000", "10.96.0.1:80", RST), "s0 for External: one of 3, None; dropped: tcp_flags"),
        (
            Spec { ttl: 1, ..spec("udp", "10.0.0.2:1000", "10.96.0.1:80", 0) },
            "rejected ttl_exceeded Icmp(TimeExceeded) true; dropped: ttl_exceeded",
        ),
        (
            Spec { payload: 1_500, ..spec("udp", "10.0.0.2:1000", "10.96.0.1:80", 0) },
            "rejected too_big Icmp(TooBig(1500)) true; dropped: too_big",
        ),
    ];
    for (sent, expected) in table {
        let told = heard(&mut w, &sent.frame());
        assert!(told.ends_with(expected), "{told}");
    }
    (0..1_000).for_each(|_| drop(heard(&mut w, &table[0].0.frame())));
    let told = heard(&mut w, &table[0].0.frame());
    assert!(told.ends_with("rejected mid_flow_snat Reset false; dropped: mid_flow_snat"), "{told}");
}

#[test]
fn a_known_flow_goes_on_times_out_or_is_replaced() {
    let mut w = World::new(services(), 64);
    let syn = spec("tcp", "10.0.0.2:1000", "10.96.0.1:80", SYN);
    heard(&mut w, &syn.frame());
    assert_eq!(heard(&mut w, &syn.frame()), "parsed TCP; Continues Original; hop; forward");
    heard(&mut w, &spec("tcp", "10.0.0.2:1000", "10.96.0.1:80", RST).frame());
    let replaced = heard(&mut w, &syn.frame());
    assert!(replaced.starts_with("parsed TCP; Replaced Original; s0 for") && replaced.ends_with("forward"), "{replaced}");
    w.now_ms += 100_000_000;
    let timed_out = heard(&mut w, &syn.frame());
    assert!(timed_out.starts_with("parsed TCP; TimedOut Original; s0 for") && timed_out.ends_with("forward"), "{timed_out}");
}

#[test]
fn affinity_tells_what_it_knew_of_the_client() {
    let mut s = services();
    change(&mut s, |f| std::sync::Arc::make_mut(&mut f.port).affinity = Some(Affinity { id: 1, timeout_s: 100 }));
    let mut w = World::new(s, 64);
    let ask = |w: &mut World, port: u16| heard(w, &spec("tcp", &format!("10.0.0.2:{port}"), "10.96.0.1:80", SYN).frame());
    assert!(ask(&mut w, 1).starts_with("parsed TCP; affinity Nothing; s0"));
    assert!(ask(&mut w, 2).starts_with("parsed TCP; affinity Kept; s0"));
    w.now_ms += 101_000;
    assert!(ask(&mut w, 3).starts_with("parsed TCP; affinity Nothing; s0"), "its time is over");
    change_backends(&mut w.services, |_| vec![backend("192.168.1.4", 8080)]);
    assert!(ask(&mut w, 4).starts_with("parsed TCP; affinity EndpointGone; s0"));
}

/// Watches every other packet, and some that their filter names.
#[derive(Default)]
struct EveryOther {
    asked: u64,
    judged: u64,
}

impl Tap for EveryOther {
    fn wants(&mut self, view: &FlowView<'_, '_>, _: &Frame<'_>) -> bool {
        self.asked += 1;
        let filter = PacketFilter { port: Some(80), ..PacketFilter::default() };
        self.asked.is_multiple_of(2) || filter.fits(view)
    }

    fn judged(&mut self, frame: &Frame<'_>, verdict: &Verdict, notes: &TapNotes, _: &[(Frame<'_>, PortId, NextHopId)]) {
        self.judged += 1;
        if let (Verdict::Forward(..), Some(new)) = (verdict, notes.rewritten)
            && let Ok(seen) = read(frame.head())
            && notes.packet.is_some()
        {
            assert_eq!(seen.tuple, new, "the notes say what is on the wire");
        }
    }
}

/// What comes out of a world whose packets are tapped.
fn tapped(w: &mut World, tap: &mut EveryOther, port: PortId, bytes: &[u8]) -> Outcome {
    let (mut buf, mut spare) = (vec![0u8; 4096], vec![0u8; 2048]);
    buf[256..256 + bytes.len()].copy_from_slice(bytes);
    let (mut verdicts, mut out) = (ArrayVec::new(), Outputs::default());
    out.spare.push(Frame::new(&mut spare, 0, 0, PortId(0), 0));
    let mut frames = [Frame::new(&mut buf, 256, bytes.len(), port, 1)];
    w.with(|ctx| process_tapped(ctx, &mut frames, &mut verdicts, &mut out, tap));
    let made = out.made.iter().map(|(f, ..)| f.head().to_vec()).collect();
    (verdicts[0], frames[0].head().to_vec(), made)
}

/// Three worlds, one observed and one tapped: all that comes out is the same, whatever comes in.
#[test]
fn hearing_changes_nothing() {
    let (mut plain, mut watched) = (World::new(services(), 32), World::new(services(), 32));
    let (mut third, mut tap) = (World::new(services(), 32), EveryOther::default());
    let mut random = 5;
    let honest = honest_frames();
    for _ in 0..24_000 {
        let mut next = |n: u64| splitmix64(&mut random) % n;
        // Three clients, and now and then one with the gateway's own address.
        let client = format!("10.0.0.{}:{}", if next(25) == 0 { 1 } else { 2 + next(3) }, 1_000 + next(12));
        let to = ["10.96.0.1:80", "10.96.0.2:80", "10.96.0.1:9", "10.96.7.7:80", "10.0.0.1:61005"][next(5) as usize];
        let flags = [SYN, SYN, ACK, SYN_ACK, FIN_ACK, RST][next(6) as usize];
        let mut frame = match next(8) {
            0 => honest[next(honest.len() as u64) as usize].clone(),
            1 => spec("udp", &client, to, 0).frame(),
            2 => spec("tcp", "192.168.1.1:8080", &format!("10.0.0.1:{}", 61_000 + next(1_000)), flags).frame(),
            _ => spec("tcp", &client, to, flags).frame(),
        };
        if next(10) == 0 {
            let at = next(frame.len() as u64) as usize;
            frame[at] ^= 1 << next(8);
        }
        let port = [CLIENTS, PODS, INTERNAL][next(3) as usize];
        let later_ms = if next(40) == 0 { 60_000 } else { 7 };
        let done = plain.run(port, &frame);
        let (outcome, _) = observed(&mut watched, port, &frame);
        assert_eq!((done.verdict, done.bytes, done.made), outcome);
        assert_eq!(tapped(&mut third, &mut tap, port, &frame), outcome);
        for w in [&mut plain, &mut watched, &mut third] {
            w.now_ms += later_ms;
        }
    }
    assert_eq!(plain.counters.frames.read(), watched.counters.frames.read());
    assert_eq!(plain.counters.frames.read(), third.counters.frames.read());
    assert_eq!((plain.live(), plain.announced()), (watched.live(), watched.announced()));
    assert!(tap.judged > tap.asked / 2 && tap.judged < tap.asked, "{} of {}", tap.judged, tap.asked);
    let (live, forwarded) = (plain.live(), plain.counters.frames.read().forwarded.packets);
    assert!(live > 10 && forwarded > 5_000, "{live} live, {forwarded} forwarded");
}

#[test]
fn first_packets_are_whole() {
    for (proto, src, dst) in [
        (Proto::Tcp, "10.0.0.2", "10.96.0.1"),
        (Proto::Udp, "10.0.0.2", "10.96.0.1"),
        (Proto::Sctp, "10.0.0.2", "10.96.0.1"),
        (Proto::Tcp, "fd00:a::2", "fd00:96::1"),
        (Proto::Udp, "fd00:a::2", "fd00:96::1"),
        (Proto::Sctp, "fd00:a::2", "fd00:96::1"),
    ] {
        let tuple = Tuple::new(proto, ip(src), 4_000, ip(dst), 80).unwrap();
        let mut bytes = first_packet(&tuple);
        let len = bytes.len();
        let l4 = if tuple.v6 { 54 } else { 34 };
        if proto == Proto::Sctp {
            let crc: [u8; 4] = bytes[l4 + 8..l4 + 12].try_into().unwrap();
            bytes[l4 + 8..l4 + 12].fill(0);
            assert_eq!(naive_crc32c(&bytes[l4..]).to_le_bytes(), crc);
        } else {
            assert_eq!(read(&bytes).map(|seen| seen.tuple), Ok(tuple));
        }
        let packet = parse(&Frame::new(&mut bytes, 0, len, CLIENTS, 0)).unwrap();
        assert_eq!((packet.tuple, usize::from(packet.l3) + packet.ip_len()), (tuple, len), "nothing behind it");
        // An INIT means to SCTP what a SYN means to TCP.
        assert_eq!(packet.tcp_flags, if proto == Proto::Udp { 0 } else { SYN });
    }
}
