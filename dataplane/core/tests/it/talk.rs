//! A client's connection and its backend's answers, packet by packet.

use nomagic_core::conntrack::PhaseKind;
use nomagic_core::frame::Verdict;
use nomagic_core::tuple::{Proto, Tuple};
use nomagic_core_fixtures::*;

/// Services of the test world, without and with SNAT.
pub const DNAT: &str = "10.96.0.1:80";
pub const SNAT: &str = "10.96.0.2:80";
/// Time before each packet.
pub const PACE_MS: u64 = 500;

/// A client's connection and its backend's answers, all IPv4.
pub struct Talk {
    pub key: Tuple,
    /// What the backend sees, once there is a connection.
    pub seen: Option<Tuple>,
    /// The next TCP sequence numbers: the client's and the backend's.
    next: [u32; 2],
}

/// Distance of a forged number from the right one.
const GUESS: u32 = 1 << 30;

impl Talk {
    pub fn new(proto: Proto, client: &str, service: &str) -> Talk {
        let spec = spec("tcp", client, service, 0);
        Talk { key: Tuple { proto, ..spec.tuple() }, seen: None, next: [1_000, 0xffff_fff0] }
    }

    /// One packet, by its name; with `<` before it, by the backend; with `!` after it, forged: with other TCP numbers.
    pub fn send(&mut self, w: &mut World, word: &str) -> Verdict {
        let (t, what, port) = match word.strip_prefix('<') {
            Some(what) => (self.seen.expect("a connection").reversed(), what, PODS),
            None => (self.key, word, CLIENTS),
        };
        let (what, guess) = what.strip_suffix('!').map_or((what, 0), |what| (what, GUESS));
        let side = usize::from(port == PODS);
        let (sequence, acknowledgment) = (self.next[side].wrapping_add(guess), self.next[1 - side].wrapping_add(guess));
        if guess == 0 && ["syn", "synack", "fin"].contains(&what) {
            self.next[side] = self.next[side].wrapping_add(1);
        }
        let (src, dst) = (format!("{}:{}", t.src_addr(), t.sport), format!("{}:{}", t.dst_addr(), t.dport));
        let tcp = |flags| Spec { payload: 0, sequence, acknowledgment, ..spec("tcp", &src, &dst, flags) }.frame();
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
    pub fn say(&mut self, w: &mut World, line: &str) {
        for word in line.split_whitespace() {
            w.now_ms += PACE_MS;
            let verdict = self.send(w, word);
            assert!(matches!(verdict, Verdict::Forward(..)), "{word} of {line}: {verdict:?}");
        }
    }

    /// The client has sent more bytes that nobody here has seen.
    pub fn skip(&mut self, bytes: u32) {
        self.next[0] = self.next[0].wrapping_add(bytes);
    }

    pub fn kind(&self, w: &mut World) -> Option<PhaseKind> {
        w.with(|ctx| ctx.table.lookup(&self.key, ctx.table.hash(&self.key)).map(|hit| hit.phase.kind()))
    }
}

pub fn tcp(client_port: u16, service: &str) -> Talk {
    Talk::new(Proto::Tcp, &format!("10.0.0.2:{client_port}"), service)
}
