//! The straight line for ordinary packets against the general way: whatever the first decides, the second would have decided the same.

use arrayvec::ArrayVec;
use nomagic_core::fast_parse::Plain;
use nomagic_core::frame::{Frame, Outputs, PortId, Verdict};
use nomagic_core::parse::{NotPacket, martian, parse};
use nomagic_core::pipeline::process;
use nomagic_core::reason::Reason;
use nomagic_core_fixtures::*;
use proptest::prelude::*;

/// A packet of one of a few connections, with what may be wrong with it.
#[derive(Clone, Debug)]
struct Step {
    proto: &'static str,
    v6: bool,
    client_port: u16,
    snat: bool,
    reply: bool,
    flags: u8,
    ttl: u8,
    payload: usize,
    partial: bool,
    /// Bytes of the frame that are changed by exclusive or.
    spoiled: Vec<(usize, u8)>,
    wait_ms: u64,
}

fn step() -> impl Strategy<Value = Step> {
    let what = (prop::sample::select(vec!["tcp", "udp"]), any::<bool>(), 1_000u16..1_003, any::<bool>(), any::<bool>());
    let flags = prop::sample::select(vec![SYN, SYN_ACK, ACK, ACK, ACK, FIN_ACK, RST]);
    let rest = (
        flags,
        prop::sample::select(vec![64u8, 64, 64, 1, 0]),
        prop::sample::select(vec![0usize, 7, 32, 1_500]),
        prop::bool::weighted(0.1),
    );
    let spoiled = prop_oneof![8 => Just(Vec::new()), 2 => prop::collection::vec((0usize..70, any::<u8>()), 1..3)];
    let wait = prop::sample::select(vec![0u64, 10, 300, 200_000]);
    (what, rest, spoiled, wait).prop_map(|((proto, v6, client_port, snat, reply), (flags, ttl, payload, partial), spoiled, wait_ms)| Step {
        proto,
        v6,
        client_port,
        snat,
        reply,
        flags,
        ttl,
        payload,
        partial,
        spoiled,
        wait_ms,
    })
}

impl Step {
    /// The frame; a reply is to the last request of the same kind that went on.
    fn frame(&self, answered: &[(Step, Spec)]) -> (PortId, Vec<u8>) {
        let (client, service) = match (self.v6, self.snat) {
            (false, snat) => (format!("10.0.0.2:{}", self.client_port), format!("10.96.0.{}:80", 1 + u8::from(snat))),
            (true, snat) => (format!("[fd00:a::2]:{}", self.client_port), format!("[fd00:96::{}]:80", 1 + u8::from(snat))),
        };
        let mut spec = Spec { ttl: self.ttl, payload: self.payload, ..spec(self.proto, &client, &service, self.flags) };
        let same = |s: &Step| (s.proto, s.v6, s.client_port, s.snat) == (self.proto, self.v6, self.client_port, self.snat);
        let asked = answered.iter().rev().find(|(step, _)| same(step));
        let mut port = CLIENTS;
        if let (true, Some((_, sent))) = (self.reply, asked) {
            spec = Spec { src: sent.dst, dst: sent.src, ..spec };
            port = PODS;
        }
        let mut frame = spec.frame();
        if self.partial {
            make_partial(&mut frame, &spec);
        }
        for (at, change) in &self.spoiled {
            if let Some(byte) = frame.get_mut(*at) {
                *byte ^= change;
            }
        }
        (port, frame)
    }
}

/// One frame; with `general`, as one that was held before, which never takes the straight line.
fn carry(world: &mut World, port: PortId, bytes: &[u8], general: bool) -> (Verdict, Vec<u8>) {
    let mut buffer = vec![0; 2_048];
    buffer[256..256 + bytes.len()].copy_from_slice(bytes);
    let mut frames = [Frame::new(&mut buffer, 256, bytes.len(), port, 0)];
    // Of a later fragment that was held before, its bytes have been noted: it repeats nothing.
    frames[0].resubmitted = general && !matches!(parse(&frames[0]), Err(NotPacket::Later(_)));
    let mut verdicts = ArrayVec::new();
    world.with(|ctx| process(ctx, &mut frames, &mut verdicts, &mut Outputs::default()));
    (verdicts[0], frames[0].head().to_vec())
}

proptest! {
    #[test]
    fn both_ways_agree(steps in prop::collection::vec(step(), 1..40)) {
        let (mut straight, mut general) = (World::new(services(), 64), World::new(services(), 64));
        let mut answered: Vec<(Step, Spec)> = Vec::new();
        for step in &steps {
            let (port, frame) = step.frame(&answered);
            straight.now_ms += step.wait_ms;
            general.now_ms = straight.now_ms;
            let a = carry(&mut straight, port, &frame, false);
            let b = carry(&mut general, port, &frame, true);
            prop_assert_eq!(&a, &b, "{:?}", step);
            if let (Verdict::Forward(..), CLIENTS, Ok(seen)) = (a.0, port, read(&a.1)) {
                let (src, dst) = ((seen.tuple.src_addr(), seen.tuple.sport).into(), (seen.tuple.dst_addr(), seen.tuple.dport).into());
                answered.push((step.clone(), Spec { src, dst, ..spec(step.proto, "10.0.0.2:1", "10.0.0.2:2", 0) }));
            }
        }
        let count = |w: &World| {
            let c = &w.counters;
            let targets = [&c.target(1).forward, &c.target(1).reply].map(|t| (t.packets.get(), t.bytes.get()));
            let frames = w.reconciled();
            let carried = (frames.forwarded, frames.dropped, frames.kernel);
            (targets, carried, c.conntrack.read(), c.reasons.read(), c.path.checksum_completed.get())
        };
        prop_assert_eq!(count(&straight), count(&general));
        let came = |w: &World| w.counters.frames.received.packets.get() + w.counters.frames.released.packets.get();
        prop_assert_eq!(came(&straight), came(&general));
        prop_assert_eq!(straight.live(), general.live());
    }

    #[test]
    fn what_is_plain_is_what_parse_reads(step in step(), cut in 0usize..80) {
        let (port, frame) = step.frame(&[]);
        for bytes in [&frame[..], &frame[..frame.len().min(cut)]] {
            let mut buffer = bytes.to_vec();
            let frame = Frame::new(&mut buffer, 0, bytes.len(), port, 0);
            if let Some(plain) = Plain::read(&frame) {
                let packet = plain.packet(frame.head());
                let martian = martian(packet.tuple.src, packet.tuple.v6);
                prop_assert_eq!(if martian { Err(NotPacket::Malformed(Reason::Martian)) } else { Ok(packet) }, parse(&frame));
            }
        }
    }
}

#[test]
fn ordinary_packets_are_plain() {
    for (client, service) in [("10.0.0.2:1000", "10.96.0.1:80"), ("[fd00:a::2]:1000", "[fd00:96::1]:80")] {
        for proto in ["tcp", "udp"] {
            let mut bytes = spec(proto, client, service, ACK).frame();
            let len = bytes.len();
            assert!(Plain::read(&Frame::new(&mut bytes, 0, len, CLIENTS, 0)).is_some(), "{proto} {client}");
        }
    }
}
