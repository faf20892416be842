//! How long connections live: idle times by state, ports used again, resets real and forged, and who makes room in a full table.

use nomagic_core::conntrack::{EvictionRank, PhaseKind};
use nomagic_core::frame::Verdict;
use nomagic_core::reason::Reason;
use nomagic_core::tuple::{Proto, Tuple};
use nomagic_core_fixtures::*;

/// Services of the test world, without and with SNAT.
const DNAT: &str = "10.96.0.1:80";
const SNAT: &str = "10.96.0.2:80";
/// Time before each packet.
const PACE_MS: u64 = 500;

/// A client's connection and its backend's answers, all IPv4.
struct Talk {
    key: Tuple,
    /// What the backend sees, once there is a connection.
    seen: Option<Tuple>,
}

impl Talk {
    fn new(proto: Proto, client: &str, service: &str) -> Talk {
        let spec = spec("tcp", client, service, 0);
        Talk { key: Tuple { proto, ..spec.tuple() }, seen: None }
    }

    /// One packet, by its name; with `<` before it, by the backend.
    fn send(&mut self, w: &mut World, word: &str) -> Verdict {
        let (t, what, port) = match word.strip_prefix('<') {
            Some(what) => (self.seen.expect("a connection").reversed(), what, PODS),
            None => (self.key, word, CLIENTS),
        };
        let (src, dst) = (format!("{}:{}", t.src_addr(), t.sport), format!("{}:{}", t.dst_addr(), t.dport));
        let tcp = |flags| spec("tcp", &src, &dst, flags).frame();
        let sctp = |chunk| sctp_frame(&src, &dst, chunk, 16);
        let frame = match what {
            "syn" => tcp(SYN),
            "synack" => tcp(SYN_ACK),
            "ack" => tcp(ACK),
            "fin" => tcp(FIN_ACK),
            "rst" => tcp(RST),
            "udp" => spec("udp", &src, &dst, 0).frame(),
            "init" => sctp(1),
            "init-ack" => sctp(2),
            "cookie-echo" => sctp(10),
            "cookie-ack" => sctp(11),
            "data" => sctp(0),
            "shutdown" => sctp(7),
            "shutdown-ack" => sctp(8),
            "shutdown-complete" => sctp(14),
            "abort" => sctp(6),
            other => panic!("{other}"),
        };
        let done = w.run(port, &frame);
        if let (CLIENTS, Verdict::Forward(..)) = (port, done.verdict) {
            let addr = |at: usize| [0, u64::from(u32::from_be_bytes(done.bytes[at..at + 4].try_into().unwrap()))];
            let port = |at: usize| u16::from_be_bytes([done.bytes[at], done.bytes[at + 1]]);
            self.seen = Some(Tuple { src: addr(26), dst: addr(30), sport: port(34), dport: port(36), ..self.key });
        }
        done.verdict
    }

    /// Several packets, time between them, all of which must go on.
    fn say(&mut self, w: &mut World, line: &str) {
        for word in line.split_whitespace() {
            w.now_ms += PACE_MS;
            let verdict = self.send(w, word);
            assert!(matches!(verdict, Verdict::Forward(..)), "{word} of {line}: {verdict:?}");
        }
    }

    fn kind(&self, w: &mut World) -> Option<PhaseKind> {
        w.with(|ctx| ctx.table.lookup(&self.key, ctx.table.hash(&self.key)).map(|hit| hit.phase.kind()))
    }
}

fn tcp(client_port: u16, service: &str) -> Talk {
    Talk::new(Proto::Tcp, &format!("10.0.0.2:{client_port}"), service)
}

fn world() -> World {
    World::new(services(), 256)
}

fn wait_s(w: &mut World, seconds: u64) {
    w.now_ms += seconds * 1_000;
}

/// Ways into every state, and how many seconds it lasts.
const STATES: [(Proto, &str, u64); 28] = [
    (Proto::Tcp, "syn", 120),
    (Proto::Tcp, "syn <synack", 60),
    (Proto::Tcp, "syn <syn", 60),
    (Proto::Tcp, "syn <synack ack", 86_400),
    (Proto::Tcp, "syn <synack ack fin", 120),
    (Proto::Tcp, "syn <synack ack <fin", 120),
    (Proto::Tcp, "syn <synack ack fin <ack", 3_600),
    (Proto::Tcp, "syn <synack ack <fin ack", 3_600),
    (Proto::Tcp, "syn <synack ack fin <ack <fin", 30),
    (Proto::Tcp, "syn <synack ack fin <ack <fin ack", 120),
    (Proto::Tcp, "syn <synack ack rst", 10),
    (Proto::Tcp, "syn <synack ack <rst", 10),
    (Proto::Tcp, "syn <synack ack rst ack", 300),
    (Proto::Tcp, "syn <synack ack <rst <ack", 300),
    (Proto::Tcp, "ack", 300),
    (Proto::Tcp, "ack <ack", 86_400),
    (Proto::Udp, "udp udp", 30),
    (Proto::Udp, "udp <udp", 30),
    // At 2 s of age it is no stream yet, after that it is.
    (Proto::Udp, "udp <udp udp <udp udp", 30),
    (Proto::Udp, "udp <udp udp <udp udp <udp", 120),
    // However old it is: the first answer is no traffic after an answer.
    (Proto::Udp, "udp udp udp udp udp udp udp <udp", 30),
    (Proto::Sctp, "init", 10),
    (Proto::Sctp, "init <init-ack", 3),
    (Proto::Sctp, "init <init-ack cookie-echo", 3),
    (Proto::Sctp, "init <init-ack cookie-echo <cookie-ack data", 210),
    (Proto::Sctp, "init <init-ack cookie-echo <cookie-ack shutdown <data", 3),
    (Proto::Sctp, "init <init-ack cookie-echo <cookie-ack shutdown <shutdown-ack", 3),
    (Proto::Sctp, "data", 30),
];

#[test]
fn every_state_lasts_as_long_as_it_should() {
    for (proto, line, idle_s) in STATES {
        let mut w = world();
        Talk::new(proto, "10.0.0.2:40000", DNAT).say(&mut w, line);
        w.now_ms += idle_s * 1_000 - 1;
        w.sweep_all();
        assert_eq!(w.live(), 1, "{line}: too short");
        w.now_ms += 1;
        w.sweep_all();
        assert_eq!((w.live(), w.announced(), w.counters.conntrack.expired.get()), (0, 0, 1), "{line}: too long");
    }
    let mut w = world();
    Talk::new(Proto::Sctp, "10.0.0.2:40000", DNAT)
        .say(&mut w, "init <init-ack cookie-echo <cookie-ack shutdown <shutdown-ack shutdown-complete");
    wait_s(&mut w, 10);
    w.sweep_all();
    assert_eq!(w.live(), 0);
}

#[test]
fn a_clients_syn_replaces_only_what_is_over() {
    for service in [DNAT, SNAT] {
        for (proto, line, _) in
            STATES.into_iter().filter(|(proto, line, _)| *proto == Proto::Tcp && (service == DNAT || line.starts_with("syn")))
        {
            let mut w = world();
            let mut talk = Talk::new(proto, "10.0.0.2:40000", service);
            talk.say(&mut w, line);
            let (before, seen) = (talk.kind(&mut w), talk.seen);
            let over = matches!(before, Some(PhaseKind::TimeWait | PhaseKind::Closed));
            talk.say(&mut w, "syn");
            let c = &w.counters;
            assert_eq!((c.conntrack.replaced.get(), c.conntrack.created.get()), (over.into(), 1 + u64::from(over)), "{line}");
            assert_eq!(c.conntrack.syn_repeated.get(), u64::from(!over), "{line}");
            assert_eq!(talk.kind(&mut w), if over { Some(PhaseKind::SynSent) } else { before }, "{line}");
            if !over {
                assert_eq!(talk.seen, seen, "to the same backend");
            }
            assert_eq!(w.live(), 1);
        }
    }
    // What only looks like it.
    for flags in [SYN | 1, SYN | RST, SYN_ACK] {
        let mut w = world();
        tcp(40000, DNAT).say(&mut w, "syn <synack ack rst");
        w.run(CLIENTS, &spec("tcp", "10.0.0.2:40000", DNAT, flags).frame());
        assert_eq!((w.counters.conntrack.replaced.get(), w.live()), (0, 1), "{flags:#x}");
    }
}

#[test]
fn a_syn_sent_again_does_not_keep_a_dead_endpoint() {
    let mut w = world();
    let mut talk = tcp(40000, DNAT);
    for _ in 0..7 {
        talk.say(&mut w, "syn");
        w.now_ms += 20_000 - PACE_MS;
    }
    assert_eq!((w.counters.conntrack.created.get(), w.counters.conntrack.expired.get()), (2, 1), "a new one after two minutes");
    assert_eq!(w.counters.conntrack.syn_repeated.get(), 5);
}

#[test]
fn a_forged_reset_does_not_end_a_connection_that_goes_on() {
    for service in [DNAT, SNAT] {
        for (rst, goes_on, other) in [("rst", "ack", "<ack"), ("<rst", "<ack", "ack")] {
            let mut w = world();
            let mut talk = tcp(40000, service);
            talk.say(&mut w, "syn <synack ack");
            talk.say(&mut w, rst);
            assert_eq!(talk.kind(&mut w), Some(PhaseKind::Closed));
            wait_s(&mut w, 9);
            talk.say(&mut w, goes_on);
            assert_eq!(w.counters.conntrack.revived.get(), 1, "{goes_on}");
            wait_s(&mut w, 299);
            talk.say(&mut w, goes_on);
            wait_s(&mut w, 299);
            talk.say(&mut w, other);
            assert_eq!(talk.kind(&mut w), Some(PhaseKind::Established));
            wait_s(&mut w, 86_398);
            talk.say(&mut w, goes_on);
            let c = &w.counters;
            assert_eq!((c.conntrack.created.get(), c.conntrack.expired.get(), c.conntrack.revived.get()), (1, 0, 1));
            assert_eq!(c.frames.dropped.packets.get(), 0);
        }
    }
}

#[test]
fn a_real_reset_ends_it_in_ten_seconds_whatever_was_on_its_way() {
    for (rst, on_its_way) in [("rst", "<ack <fin <ack"), ("<rst", "ack fin ack"), ("rst", ""), ("<rst", ""), ("rst <rst", "")] {
        let mut w = world();
        let mut talk = tcp(40000, SNAT);
        talk.say(&mut w, "syn <synack ack");
        talk.say(&mut w, rst);
        talk.say(&mut w, on_its_way);
        assert_eq!((talk.kind(&mut w), w.counters.conntrack.revived.get()), (Some(PhaseKind::Closed), 0), "{rst} {on_its_way}");
        wait_s(&mut w, 10);
        assert_eq!(talk.send(&mut w, "ack"), Verdict::Drop(Reason::MidFlowSnat));
        assert_eq!(w.live(), 0);
    }
    // Nobody answers the one who went on.
    let mut w = world();
    let mut talk = tcp(40000, SNAT);
    talk.say(&mut w, "syn <synack ack rst ack");
    wait_s(&mut w, 300);
    assert_eq!(talk.send(&mut w, "ack"), Verdict::Drop(Reason::MidFlowSnat));
}

/// A forged RST and a forged SYN replace the connection in the table; both its ends know nothing of that, and go on.
#[test]
fn a_connection_that_was_replaced_by_forgery_is_found_again() {
    let mut w = world();
    let mut talk = tcp(40000, SNAT);
    talk.say(&mut w, "syn <synack ack");
    let seen = talk.seen;
    talk.say(&mut w, "rst syn");
    assert_eq!((talk.kind(&mut w), talk.seen), (Some(PhaseKind::SynSent), seen), "the same endpoint, the same source port");
    talk.say(&mut w, "<ack ack <ack");
    assert_eq!(talk.kind(&mut w), Some(PhaseKind::Established));
}

#[test]
fn half_closed_connections_live_long() {
    for line in ["syn <synack ack fin <ack", "syn <synack ack <fin ack"] {
        let mut w = world();
        let mut talk = tcp(40000, SNAT);
        talk.say(&mut w, line);
        for _ in 0..3 {
            wait_s(&mut w, 30 * 60);
            w.sweep_all();
            talk.say(&mut w, "<ack ack");
        }
        assert_eq!((talk.kind(&mut w), w.counters.conntrack.expired.get()), (Some(PhaseKind::CloseWait), 0));
    }
}

#[test]
fn connections_met_in_their_middle_are_counted() {
    let mut w = world();
    tcp(40000, DNAT).say(&mut w, "ack <ack ack");
    tcp(40001, DNAT).say(&mut w, "syn <synack ack");
    Talk::new(Proto::Udp, "10.0.0.2:40000", DNAT).say(&mut w, "udp <udp");
    assert_eq!((w.counters.conntrack.mid_stream.get(), w.counters.conntrack.created.get()), (1, 3));
    assert_eq!(tcp(40002, SNAT).send(&mut w, "ack"), Verdict::Drop(Reason::MidFlowSnat));
    assert_eq!(w.counters.conntrack.mid_stream.get(), 1);
}

fn evicted(w: &World) -> [u64; 3] {
    [EvictionRank::Closed, EvictionRank::HalfOpen, EvictionRank::IdleUdp].map(|rank| w.counters.conntrack.evicted.of(rank).get())
}

#[test]
fn a_full_table_makes_room_in_the_order_of_ranks() {
    // In the order in which they must go; the last five must not.
    let lines = [
        (Proto::Tcp, "syn <synack ack fin <fin ack"),
        (Proto::Tcp, "syn <synack ack fin <fin"),
        (Proto::Tcp, "syn <synack ack rst"),
        (Proto::Udp, "udp"),
        (Proto::Tcp, "syn <synack"),
        (Proto::Tcp, "ack"),
        (Proto::Sctp, "data"),
        (Proto::Udp, "udp <udp"),
        (Proto::Tcp, "syn <synack ack"),
        (Proto::Tcp, "syn <synack ack fin <ack"),
        (Proto::Tcp, "syn <synack ack fin"),
        (Proto::Sctp, "init <init-ack cookie-echo <cookie-ack"),
        (Proto::Udp, "udp <udp"),
    ];
    const EVICTABLE: usize = 8;
    let mut w = World::new(services(), lines.len() as u32);
    // The later ranks are older: time alone does not decide.
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by_key(|&i| match i {
        7.. => 0,
        3.. => 1,
        _ => 2,
    });
    let mut talks: Vec<Talk> = (0..lines.len()).map(|i| Talk::new(lines[i].0, &format!("10.0.0.2:{}", 1_000 + i), DNAT)).collect();
    for i in order {
        talks[i].say(&mut w, lines[i].1);
    }
    let keeps_asking = lines.len() - 1;
    for gone in 0..EVICTABLE {
        talks[keeps_asking].say(&mut w, "udp");
        let mut newcomer = tcp(2_000 + gone as u16, DNAT);
        for word in ["syn", "<synack", "ack"] {
            w.now_ms += 1;
            assert!(matches!(newcomer.send(&mut w, word), Verdict::Forward(..)));
        }
        for (i, talk) in talks.iter().enumerate() {
            assert_eq!(talk.kind(&mut w).is_some(), i > gone, "{i} {} when {gone} goes", lines[i].1);
        }
        assert_eq!((w.live(), w.announced()), (lines.len() as u64, lines.len()));
    }
    assert_eq!(evicted(&w), [3, 4, 1]);
    // Now nothing may go: not for those who need a source port, nor for those who do not.
    for service in [DNAT, SNAT] {
        talks[keeps_asking].say(&mut w, "udp");
        assert_eq!(tcp(3_000, service).send(&mut w, "syn"), Verdict::Drop(Reason::ConntrackFull));
    }
    // Until one has timed out that the sweep has not come by yet.
    wait_s(&mut w, 5);
    assert!(matches!(tcp(3_000, SNAT).send(&mut w, "syn"), Verdict::Forward(..)));
    assert_eq!((evicted(&w), w.counters.reasons.drop.of(Reason::ConntrackFull).get()), ([3, 4, 2], 2));
}

#[test]
fn what_has_timed_out_makes_room_before_anything_else() {
    let mut w = World::new(services(), 2);
    let (mut old, mut half_open) = (tcp(1_000, DNAT), tcp(1_001, DNAT));
    old.say(&mut w, "syn <synack ack");
    wait_s(&mut w, 86_400);
    half_open.say(&mut w, "syn");
    tcp(1_002, DNAT).say(&mut w, "syn");
    assert_eq!((old.kind(&mut w), half_open.kind(&mut w), evicted(&w)), (None, Some(PhaseKind::SynSent), [1, 0, 0]));
}

#[test]
fn who_is_to_go_next_stays_when_its_handshake_goes_on() {
    let mut w = World::new(services(), 3);
    let (mut first, mut next, mut settled) = (tcp(1_000, DNAT), tcp(1_001, DNAT), tcp(1_002, DNAT));
    for (talk, words) in [(&mut first, "syn"), (&mut next, "syn"), (&mut settled, "syn <synack ack")] {
        talk.say(&mut w, words);
        wait_s(&mut w, 1);
    }
    let mut newcomer = tcp(1_003, DNAT);
    newcomer.say(&mut w, "syn");
    assert_eq!((first.kind(&mut w), evicted(&w)), (None, [0, 1, 0]));
    next.say(&mut w, "<synack ack");
    tcp(1_004, DNAT).say(&mut w, "syn");
    assert_eq!((next.kind(&mut w), newcomer.kind(&mut w), evicted(&w)), (Some(PhaseKind::Established), None, [0, 2, 0]));
    assert_eq!(settled.kind(&mut w), Some(PhaseKind::Established));
}

/// SYNs from everywhere, many times as many as the table has places. Those who are connected stay, and those who come get in.
#[test]
fn a_syn_flood_ends_no_connection_and_keeps_nobody_out() {
    const CAPACITY: u32 = 512;
    let mut w = World::new(services(), CAPACITY);
    w.filter_words.resize_with(16 * CAPACITY as usize, Default::default);
    let mut sources = 0u32;
    let mut flood = |w: &mut World, syns: u32| {
        for _ in 0..syns {
            sources += 1;
            w.now_ms += 1;
            let client = format!("203.0.113.{}:{}", sources % 250 + 1, 1_024 + sources / 250);
            Talk::new(Proto::Tcp, &client, DNAT).send(w, "syn");
        }
    };
    let mut connected: Vec<Talk> = Vec::new();
    for i in 0..150 {
        let mut talk = tcp(1_000 + i, if i % 2 == 0 { DNAT } else { SNAT });
        talk.say(&mut w, "syn <synack ack");
        connected.push(talk);
    }
    flood(&mut w, 4 * CAPACITY);
    for i in 0..150 {
        // The answer takes as long as fifty SYNs.
        let mut talk = tcp(2_000 + i, if i % 2 == 0 { DNAT } else { SNAT });
        for word in ["syn", "<synack", "ack"] {
            let verdict = talk.send(&mut w, word);
            assert!(matches!(verdict, Verdict::Forward(..)), "{word} of newcomer {i}: {verdict:?}");
            flood(&mut w, 50);
        }
        connected.push(talk);
    }
    assert!(connected.iter().all(|talk| talk.kind(&mut w) == Some(PhaseKind::Established)));
    let created = w.counters.conntrack.created.get();
    assert_eq!((w.live(), evicted(&w)), (u64::from(CAPACITY), [0, created - u64::from(CAPACITY), 0]));
    assert_eq!(w.counters.frames.dropped.packets.get(), 0);
}
