//! How long connections live: idle times by state, ports used again, resets real and forged, and who makes room in a full table.

use nomagic_core::conntrack::{EvictionRank, PhaseKind};
use nomagic_core::frame::Verdict;
use nomagic_core::reason::Reason;
use nomagic_core::tuple::Proto;
use nomagic_core_fixtures::*;

use crate::talk::{DNAT, PACE_MS, SNAT, Talk, tcp};

fn world() -> World {
    World::new(services(), 256)
}

fn wait_s(w: &mut World, seconds: u64) {
    w.now_ms += seconds * 1_000;
}

/// Ways into every state, and how many seconds it lasts.
const STATES: [(Proto, &str, u64); 36] = [
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
    (Proto::Tcp, "syn <synack ack rst!", 86_400),
    (Proto::Tcp, "syn <synack ack fin!", 86_400),
    (Proto::Tcp, "syn <synack ack fin! <ack", 86_400),
    // What does not complete the handshake does not prolong it either.
    (Proto::Tcp, "syn <synack ack! fin! <synack", 60),
    (Proto::Tcp, "syn <synack ack rst! ack!", 86_400),
    (Proto::Tcp, "ack", 300),
    (Proto::Tcp, "ack <ack", 300),
    (Proto::Tcp, "ack <ack ack!", 300),
    (Proto::Tcp, "ack <ack ack", 86_400),
    (Proto::Udp, "udp udp", 30),
    (Proto::Udp, "udp <udp", 30),
    (Proto::Udp, "udp <udp udp", 30),
    // At 2 s of age it is no stream yet, after that it is.
    (Proto::Udp, "udp <udp udp <udp udp", 30),
    (Proto::Udp, "udp <udp udp <udp udp <udp", 120),
    // However old it is: the first answer is no traffic after an answer.
    (Proto::Udp, "udp udp udp udp udp udp udp <udp", 30),
    (Proto::Sctp, "init", 10),
    (Proto::Sctp, "init <init-ack", 3),
    (Proto::Sctp, "init <init-ack cookie-echo", 3),
    (Proto::Sctp, "init <init-ack cookie-echo <cookie-ack data", 210),
    (Proto::Sctp, "init <init-ack cookie-echo <cookie-ack <shutdown data", 3),
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
            // A doubtful reset is no end.
            let over = matches!(before, Some(PhaseKind::TimeWait | PhaseKind::Closed)) && !line.ends_with('!');
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

/// A reset whose number happens to fit closes, but the connection continues if its supposed sender is heard within ten seconds.
#[test]
fn a_reset_that_fits_does_not_end_a_connection_that_goes_on() {
    for service in [DNAT, SNAT] {
        for (rst, goes_on, confirms) in [("rst", "ack", "<ack ack"), ("<rst", "<ack", "ack")] {
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
            wait_s(&mut w, 298);
            talk.say(&mut w, confirms);
            assert_eq!(talk.kind(&mut w), Some(PhaseKind::Established));
            wait_s(&mut w, 86_398);
            talk.say(&mut w, goes_on);
            let c = &w.counters;
            assert_eq!((c.conntrack.created.get(), c.conntrack.expired.get(), c.conntrack.revived.get()), (1, 0, 1));
            assert_eq!(c.frames.dropped.packets.get(), 0);
        }
    }
}

/// Resets and FINs of a spoofer, who does not know the numbers, end no idle connection.
#[test]
fn forged_resets_and_fins_end_no_connection() {
    for service in [DNAT, SNAT] {
        for forged in ["rst!", "<rst!", "fin!", "fin! rst!", "rst! fin!", "rst! <rst!", "syn! rst!"] {
            let mut w = world();
            let mut talk = tcp(40000, service);
            talk.say(&mut w, "syn <synack ack");
            for _ in 0..3 {
                talk.say(&mut w, forged);
                wait_s(&mut w, 6 * 3_600);
                w.sweep_all();
            }
            let seen = talk.seen;
            talk.say(&mut w, "ack <ack ack <ack");
            assert_eq!((w.counters.conntrack.created.get(), talk.seen), (1, seen), "{forged}");
            assert_eq!(w.counters.frames.dropped.packets.get(), 0, "{forged}");
        }
    }
}

/// Numbers lag behind what passed. A reset or a FIN that is real all the same takes effect, later or in other words.
#[test]
fn real_ends_whose_numbers_are_not_known_take_effect() {
    for (line, kind) in [
        ("fin! <ack!", PhaseKind::CloseWait),
        ("fin! <fin!", PhaseKind::LastAck),
        ("fin! <fin! ack!", PhaseKind::TimeWait),
        ("fin! <ack! <fin! ack!", PhaseKind::TimeWait),
        ("<fin ack fin!", PhaseKind::LastAck),
        ("<fin ack fin! <ack!", PhaseKind::TimeWait),
        ("rst! syn <synack ack", PhaseKind::Established),
    ] {
        let mut w = world();
        let mut talk = tcp(40000, DNAT);
        talk.say(&mut w, "syn <synack ack");
        // The client has sent much that the table has not seen acknowledged.
        talk.skip(1 << 30);
        talk.say(&mut w, &line.replace('!', ""));
        assert_eq!(talk.kind(&mut w), Some(kind), "{line}");
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
    talk.say(&mut w, "<ack ack <ack ack");
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

fn evicted(w: &World) -> [u64; EvictionRank::COUNT] {
    EvictionRank::ALL.map(|rank| w.counters.conntrack.evicted.of(rank).get())
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
        (Proto::Tcp, "syn <synack ack rst!"),
        (Proto::Udp, "udp <udp udp"),
        (Proto::Tcp, "syn <synack ack"),
        (Proto::Tcp, "syn <synack ack fin <ack"),
        (Proto::Tcp, "syn <synack ack fin"),
        (Proto::Sctp, "init <init-ack cookie-echo <cookie-ack"),
        (Proto::Udp, "udp <udp udp"),
    ];
    const EVICTABLE: usize = 10;
    let mut w = World::new(services(), lines.len() as u32);
    // The later ranks are older: time alone does not decide.
    let mut order: Vec<usize> = (0..lines.len()).collect();
    order.sort_by_key(|&i| match i {
        8.. => 0,
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
    assert_eq!(evicted(&w), [3, 5, 1, 1]);
    // Now nothing may go: not for those who need a source port, nor for those who do not.
    for service in [DNAT, SNAT] {
        talks[keeps_asking].say(&mut w, "udp");
        assert_eq!(tcp(3_000, service).send(&mut w, "syn"), Verdict::Drop(Reason::ConntrackFull));
    }
    // Until one has timed out that the sweep has not come by yet.
    wait_s(&mut w, 5);
    assert!(matches!(tcp(3_000, SNAT).send(&mut w, "syn"), Verdict::Forward(..)));
    assert_eq!((evicted(&w), w.counters.reasons.drop.of(Reason::ConntrackFull).get()), ([3, 5, 1, 2], 2));
}

#[test]
fn what_has_timed_out_makes_room_before_anything_else() {
    let mut w = World::new(services(), 2);
    let (mut old, mut half_open) = (tcp(1_000, DNAT), tcp(1_001, DNAT));
    old.say(&mut w, "syn <synack ack");
    wait_s(&mut w, 86_400);
    half_open.say(&mut w, "syn");
    tcp(1_002, DNAT).say(&mut w, "syn");
    assert_eq!((old.kind(&mut w), half_open.kind(&mut w), evicted(&w)), (None, Some(PhaseKind::SynSent), [1, 0, 0, 0]));
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
    assert_eq!((first.kind(&mut w), evicted(&w)), (None, [0, 1, 0, 0]));
    next.say(&mut w, "<synack ack");
    tcp(1_004, DNAT).say(&mut w, "syn");
    assert_eq!((next.kind(&mut w), newcomer.kind(&mut w), evicted(&w)), (Some(PhaseKind::Established), None, [0, 2, 0, 0]));
    assert_eq!(settled.kind(&mut w), Some(PhaseKind::Established));
}

/// SYNs from everywhere, many times as many as the table has places. Those who are connected stay, and those who come get in.
#[test]
fn a_syn_flood_ends_no_connection_and_keeps_nobody_out() {
    const CAPACITY: u32 = 512;
    let mut w = World::new(services(), CAPACITY);
    w.replies = Replies::new(CAPACITY as usize);
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
    assert_eq!((w.live(), evicted(&w)), (u64::from(CAPACITY), [0, created - u64::from(CAPACITY), 0, 0]));
    assert_eq!(w.counters.frames.dropped.packets.get(), 0);
}
