//! Random traffic against a naive NAT: a map of what each client's packets must become, and its inverse. Every frame that comes out is read
//! by etherparse, which recomputes all checksums in full.

use std::collections::HashMap;

use nomagic_core::frame::Verdict;
use nomagic_core::reason::Reason;
use nomagic_core::tuple::{Proto, Tuple};
use nomagic_core_fixtures::*;
use proptest::prelude::*;

/// One thing that happens.
#[derive(Clone, Debug)]
enum Op {
    /// A client's packet to a Service. `proven`: with the sequence numbers that the connection's sides know.
    Client { client: u8, service: u8, flags: u8, payload: u16, partial: bool, proven: bool },
    /// A backend answers a connection that the model knows (the n-th).
    Reply { nth: u8, flags: u8, payload: u16, proven: bool },
    /// A backend sends to somebody who never asked.
    Stray { pod: u8, port: u16 },
    /// Seconds pass.
    Wait { seconds: u16 },
    /// The sweep comes by.
    Sweep,
    /// Routes are published anew, with the same content.
    Routes,
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![4 => Just(SYN), 6 => Just(ACK), 1 => Just(FIN_ACK), 1 => Just(RST), 2 => Just(SYN_ACK)]
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let proven = || prop_oneof![3 => Just(true), 1 => Just(false)];
    let client = (0..6u8, 0..8u8, flags(), 0..200u16, any::<bool>(), proven())
        .prop_map(|(client, service, flags, payload, partial, proven)| Op::Client { client, service, flags, payload, partial, proven });
    let reply = (any::<u8>(), flags(), 0..200u16, proven());
    let op = prop_oneof![
        8 => client,
        6 => reply.prop_map(|(nth, flags, payload, proven)| Op::Reply { nth, flags, payload, proven }),
        1 => (1..4u8, 1024..1030u16).prop_map(|(pod, port)| Op::Stray { pod, port }),
        1 => prop_oneof![Just(1u16), Just(11), Just(31), Just(61), Just(121), Just(301), Just(3_601)].prop_map(|seconds| Op::Wait { seconds }),
        1 => Just(Op::Sweep),
        1 => Just(Op::Routes),
    ];
    prop::collection::vec(op, 1..120)
}

/// Distance of a forged sequence number from the right one.
const GUESS: u32 = 1 << 30;

/// A connection as the model sees it, by hand-written rules of its own.
#[derive(Clone, Debug)]
struct Conn {
    /// What client packets become.
    to_backend: Tuple,
    created_s: u64,
    seen_s: u64,
    /// A row of `tcp_states.txt`, or for UDP: `1` is unanswered, `2` answered, `3` a stream, `4` continued by the client after an answer.
    state: &'static str,
    /// In SR and PR: the first number that the backend sent, and the one after its last. Else: the next numbers of client and backend.
    numbers: [u32; 2],
}

fn holds_range(state: &str) -> bool {
    matches!(state, "SR" | "PR")
}

fn is_doubtful(state: &str) -> bool {
    state.ends_with('?')
}

impl Conn {
    fn timeout_s(&self) -> u64 {
        match self.state {
            "1" | "2" | "4" => 30,
            "3" => 120,
            "SS" | "TW" | "FWc" | "FWb" => 120,
            "SR" => 60,
            "ES" => 24 * 3_600,
            "CWc" | "CWb" => 3_600,
            "LAc" | "LAb" => 30,
            "CLc" | "CLb" | "CLa" => 10,
            "PU" | "PR" => 300,
            doubtful if is_doubtful(doubtful) => 24 * 3_600,
            other => panic!("{other}"),
        }
    }

    /// What the table says about a packet. `.`: nothing changes.
    fn next(&self, reply: bool, flags: u8, proven: bool) -> &'static str {
        let column = match flags {
            SYN => 1,
            SYN_ACK => 2,
            FIN_ACK => 3,
            ACK => 4,
            RST => 5,
            other => panic!("{other:#x}"),
        };
        let mut rows = TCP_STATES.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let cell = rows.find(|row| row.first() == Some(&self.state)).unwrap()[column + if reply { 5 } else { 0 }];
        let (first, second) = cell.split_once('/').unwrap_or((cell, cell));
        if proven { first } else { second }
    }

    fn over(&self, flags: u8) -> bool {
        self.state.len() > 1 && self.next(false, flags, true) == "NEW"
    }

    /// A packet of this connection with the right sequence numbers, or with others; and whether its numbers prove anything.
    fn numbered(&self, reply: bool, packet: Spec, proven: bool) -> (Spec, bool) {
        let guess = if proven { 0 } else { GUESS };
        let [first, second] = self.numbers;
        let (range, resets) = (holds_range(self.state), packet.flags & RST != 0);
        let (sequence, acknowledgment, proven) = match reply {
            false if range => (500, first.wrapping_add(guess), proven),
            false if packet.flags == FIN_ACK || (packet.flags == ACK && is_doubtful(self.state)) => {
                (first.wrapping_add(guess).wrapping_sub(packet.payload as u32), second, proven)
            }
            false => (first.wrapping_add(guess), second, proven),
            true if resets => (second.wrapping_add(guess), first, proven || range),
            true => (second, first.wrapping_add(guess), proven || !is_doubtful(self.state)),
        };
        (Spec { sequence, acknowledgment, ..packet }, proven)
    }

    fn see(&mut self, reply: bool, packet: &Spec, proven: bool, now_s: u64) {
        let (before, flags) = (self.state, packet.flags);
        let tcp = packet.proto == Proto::Tcp;
        let next = match before {
            // The age comes round after 256 s.
            "2" | "4" if (now_s - self.created_s) % 256 > 2 && now_s > self.seen_s => "3",
            "1" if reply => "2",
            "2" if !reply => "4",
            "1" | "2" | "3" | "4" => before,
            _ => self.next(reply, flags, proven),
        };
        let changes = next != "." && next != before;
        if tcp && !changes && (flags == SYN || (before == "SR" && !reply)) {
            return;
        }
        if changes {
            self.state = next;
        }
        if tcp && (changes || now_s > self.seen_s || !matches!(before, "ES" | "CWc" | "CWb" | "PU")) {
            self.remember(before, reply, packet);
        }
        self.seen_s = now_s;
    }

    fn remember(&mut self, before: &str, reply: bool, packet: &Spec) {
        let counted = |flag: u8| u32::from(packet.flags & flag != 0);
        let end = packet.sequence.wrapping_add(packet.payload as u32 + counted(SYN) + counted(1));
        let acknowledged = if packet.flags & ACK != 0 { packet.acknowledgment } else { self.numbers[0] };
        let (was_range, is_range) = (holds_range(before), holds_range(self.state));
        if reply && is_range {
            match (was_range, packet.flags & SYN != 0) {
                (true, false) if packet.sequence.wrapping_sub(self.numbers[0]) <= self.numbers[1].wrapping_sub(self.numbers[0]) => {
                    self.numbers[1] = if end.wrapping_sub(self.numbers[1]) < 1 << 31 { end } else { self.numbers[1] }
                }
                (true, true) if end == self.numbers[0] => {}
                (_, true) => self.numbers = [packet.sequence.wrapping_add(1), end],
                (_, false) => self.numbers = [packet.sequence, end],
            }
        } else if reply && (was_range || (packet.flags & RST == 0 && !is_doubtful(self.state))) {
            self.numbers = [acknowledged, end];
        } else if !reply && !is_range && (was_range || (is_doubtful(self.state) && packet.flags & 1 != 0)) {
            self.numbers[0] = end;
        }
    }
}

#[derive(Default)]
struct Model {
    conns: HashMap<Tuple, Conn>,
    now_s: u64,
}

impl Model {
    fn drop_expired(&mut self) {
        let now = self.now_s;
        self.conns.retain(|_, c| now - c.seen_s < c.timeout_s());
    }

    fn by_reply(&self, reply: &Tuple) -> Option<Tuple> {
        self.conns.iter().find(|(_, c)| c.to_backend.reversed() == *reply).map(|(t, _)| *t)
    }
}

fn client_spec(client: u8, service: u8, flags: u8, payload: u16) -> Spec {
    let (proto, snat, v6) = (service & 1 == 0, service & 2 != 0, service & 4 != 0);
    let last = if snat { 2 } else { 1 };
    let (src, dst) = if v6 {
        (format!("[fd00:a::2]:{}", 1024 + u16::from(client)), format!("[fd00:96::{last}]:80"))
    } else {
        (format!("10.0.0.2:{}", 1024 + u16::from(client)), format!("10.96.0.{last}:80"))
    };
    Spec { payload: payload.into(), ..spec(if proto { "tcp" } else { "udp" }, &src, &dst, if proto { flags } else { 0 }) }
}

fn is_snat(spec: &Spec) -> bool {
    matches!(spec.dst.ip(), a if a == ip("10.96.0.2") || a == ip("fd00:96::2"))
}

fn client_packet(w: &mut World, m: &mut Model, s: Spec, partial: bool, proven: bool) -> Result<(), TestCaseError> {
    let tuple = s.tuple();
    let (s, proven) = m.conns.get(&tuple).map_or((s, false), |conn| conn.numbered(false, s, proven));
    let mut frame = s.frame();
    if partial {
        make_partial(&mut frame, &s);
    }
    let done = w.run(CLIENTS, &frame);
    if m.conns.get(&tuple).is_some_and(|c| c.over(s.flags)) {
        m.conns.remove(&tuple);
    }
    if let Some(conn) = m.conns.get_mut(&tuple) {
        prop_assert!(matches!(done.verdict, Verdict::Forward(..)), "{:?} of a known connection", done.verdict);
        let seen = read(&done.bytes).map_err(TestCaseError::fail)?;
        prop_assert_eq!(seen.tuple, conn.to_backend);
        prop_assert_eq!(seen.payload.len(), s.payload);
        conn.see(false, &s, proven, m.now_s);
        return Ok(());
    }
    // A new connection, if the first packet may open one.
    if s.proto == Proto::Tcp && s.flags != SYN {
        let reason = match (s.flags == ACK, is_snat(&s)) {
            (true, false) => None,
            (true, true) => Some(Reason::MidFlowSnat),
            (false, _) => Some(Reason::TcpFlags),
        };
        if let Some(reason) = reason {
            prop_assert_eq!(done.verdict, Verdict::Drop(reason));
            return Ok(());
        }
    }
    if done.verdict == Verdict::Drop(Reason::ReplyKeyTaken) {
        // Only right when another client connection owns that way back: same client port, other Service of the same pool.
        prop_assert!(s.flags == ACK && m.conns.values().any(|c| (c.to_backend.src, c.to_backend.sport) == (tuple.src, tuple.sport)));
        return Ok(());
    }
    let seen = read(&done.bytes).map_err(TestCaseError::fail)?;
    let pods = if tuple.v6 { 2 } else { 3 };
    let backends: Vec<_> = (1..=pods).map(|i| ip(&if tuple.v6 { format!("fd00:b::{i}") } else { format!("192.168.1.{i}") })).collect();
    prop_assert!(backends.contains(&seen.tuple.dst_addr()) && seen.tuple.dport == 8080);
    prop_assert_eq!(seen.tuple.src_addr() != s.src.ip(), is_snat(&s));
    prop_assert!(m.by_reply(&seen.tuple.reversed()).is_none(), "two connections with one way back");
    let state = match (s.proto, s.flags) {
        (Proto::Udp, _) => "1",
        (_, SYN) => "SS",
        _ => "PU",
    };
    let conn = Conn { to_backend: seen.tuple, created_s: m.now_s, seen_s: m.now_s, state, numbers: [0; 2] };
    m.conns.insert(tuple, conn);
    Ok(())
}

fn reply_packet(w: &mut World, m: &mut Model, nth: u8, flags: u8, payload: u16, proven: bool) -> Result<(), TestCaseError> {
    let mut known: Vec<Tuple> = m.conns.keys().copied().collect();
    known.sort_by_key(ToString::to_string);
    if known.is_empty() {
        return Ok(());
    }
    let tuple = known[usize::from(nth) % known.len()];
    let Some(conn) = m.conns.get_mut(&tuple) else { return Ok(()) };
    let from = conn.to_backend.reversed();
    let flags = if tuple.proto == Proto::Tcp { flags } else { 0 };
    let s = Spec {
        proto: tuple.proto,
        src: (from.src_addr(), from.sport).into(),
        dst: (from.dst_addr(), from.dport).into(),
        flags,
        ttl: 64,
        payload: payload.into(),
        sequence: 0,
        acknowledgment: 0,
    };
    let (s, proven) = conn.numbered(true, s, proven);
    let done = w.run(PODS, &s.frame());
    prop_assert!(matches!(done.verdict, Verdict::Forward(..)), "{:?} of a known reply", done.verdict);
    prop_assert_eq!(read(&done.bytes).map_err(TestCaseError::fail)?.tuple, tuple.reversed());
    conn.see(true, &s, proven, m.now_s);
    Ok(())
}

fn stray_packet(w: &mut World, m: &mut Model, pod: u8, port: u16) -> Result<(), TestCaseError> {
    let s = spec("udp", &format!("192.168.1.{pod}:8080"), &format!("10.0.0.2:{port}"), 0);
    let done = w.run(PODS, &s.frame());
    match m.by_reply(&s.tuple()) {
        // Not so stray: it is the reply of a connection.
        Some(tuple) => {
            prop_assert!(matches!(done.verdict, Verdict::Forward(..)));
            m.conns.entry(tuple).and_modify(|c| c.see(true, &s, true, w.now_ms / 1_000));
        }
        None => prop_assert_eq!(done.verdict, Verdict::Kernel(Reason::NotOurs)),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_traffic_is_translated_as_the_naive_nat_does(ops in ops()) {
        let mut w = World::new(services(), 256);
        w.now_ms = 0;
        let mut m = Model::default();
        for op in ops {
            w.now_ms = m.now_s * 1_000;
            m.drop_expired();
            match op {
                Op::Client { client, service, flags, payload, partial, proven } => {
                    client_packet(&mut w, &mut m, client_spec(client, service, flags, payload), partial, proven)?;
                }
                Op::Reply { nth, flags, payload, proven } => reply_packet(&mut w, &mut m, nth, flags, payload, proven)?,
                Op::Stray { pod, port } => stray_packet(&mut w, &mut m, pod, port)?,
                Op::Wait { seconds } => m.now_s += u64::from(seconds),
                Op::Sweep => {
                    w.sweep_all();
                    prop_assert_eq!(w.live(), m.conns.len() as u64);
                    prop_assert_eq!(w.announced(), m.conns.len(), "announced exactly while alive");
                }
                Op::Routes => w.routes = routes(w.routes.generation + 1),
            }
        }
        let frames = w.reconciled();
        prop_assert_eq!(frames.received.packets, frames.forwarded.packets + frames.kernel.packets + frames.dropped.packets);
    }
}
