//! What holds after every batch of frames, whatever was in them.

use std::collections::{HashMap, HashSet};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nomagic_core::conntrack::{CountedClient, Direction, IdleTimes, PhaseKind, Timeouts};
use nomagic_core::frame::{Frame, PortId, Verdict};
use nomagic_core::hash::WordSet;
use nomagic_core::parse::{Packet, parse};
use nomagic_core::tuple::{AddrWords, Proto, Tuple};
use nomagic_core::wire::tcp;
use nomagic_core_fixtures::{KERNEL_MAC, Seen, naive_crc32c, read, split};

use super::frames::{Sent, words};
use super::twin::{BUFFER, Live, Outcome, START, Twin};

/// Lines that count the source ports of an endpoint each, in tables as small as these.
const ENDPOINT_LINES: usize = 8;
/// Confirmed UDP stays this long after its last packet.
const CONFIRMED_IDLE_MS: u64 = 5_000;
/// Backends' segments farther apart than this are not of one connection.
const SEGMENTS_APART_MAX: u32 = 1 << 24;

/// A TCP flow's numbers, by its original tuple: the first that the backend has sent, and the number after its last one.
type Numbers = HashMap<Tuple, (u32, u32)>;

/// What is remembered from batch to batch.
pub struct Model {
    idle: IdleTimes,
    numbers: Numbers,
    /// Flows whose backend's numbers make no sense: nothing can be said about them.
    wild: WordSet<Tuple>,
    endpoints: HashSet<(AddrWords, u16, Proto, bool, AddrWords)>,
}

/// One batch.
pub struct Step<'s> {
    pub now_ms: u64,
    pub batch: &'s [Sent],
    pub outcome: &'s Outcome,
    pub before: &'s [Live],
    pub after: &'s [Live],
    /// Whether to check the whole table. In a flood it would take most of the time.
    pub whole: bool,
}

/// A frame as the slow path reads it.
pub fn packet_of(sent: &Sent) -> Option<(Packet, Vec<u8>)> {
    let (head, tail) = sent.bytes.split_at(sent.split.unwrap_or(sent.bytes.len()));
    let mut buffer = vec![0; BUFFER];
    buffer[START..START + head.len()].copy_from_slice(head);
    let tail = [tail];
    let frame = Frame::new(&mut buffer, START, head.len(), sent.port, 0).with_tail(&tail);
    parse(&frame).ok().map(|packet| (packet, head.to_vec()))
}

impl Model {
    pub fn new() -> Model {
        Model { idle: Timeouts::default().table(), numbers: HashMap::new(), wild: WordSet::default(), endpoints: HashSet::new() }
    }

    /// Whether a flow has timed out.
    pub fn expired(&self, live: &Live, now_ms: u64) -> bool {
        now_ms.saturating_sub(live.seen_ms) >= self.idle.of(live.phase)
    }

    /// Checks a batch. `latest_ms`: the time of the worker whose clock is ahead of the others'.
    pub fn check(&mut self, twin: &mut Twin, step: &Step<'_>, latest_ms: u64) {
        let packets: Vec<Option<(Packet, Vec<u8>)>> = step.batch.iter().map(packet_of).collect();
        self.bystanders_stay(step, &packets);
        for (sent, (verdict, bytes)) in step.batch.iter().zip(&step.outcome.done) {
            sent_on_soundly(twin, sent, verdict, bytes);
        }
        for (_, made) in &step.outcome.made {
            made_soundly(made, step.batch);
        }
        if let ([sent], [Some((packet, head))], [(verdict, bytes)]) = (step.batch, &packets[..], &step.outcome.done[..]) {
            self.by_its_port(twin, step, (sent, packet), verdict);
            rewritten_as_the_flow_says(twin, sent, packet, verdict, bytes);
            self.proven(step, (packet, head), verdict);
        } else {
            // More than one packet: what each has changed is not known.
            self.wild.extend(step.after.iter().map(|live| live.flow.original()));
        }
        if step.whole {
            self.tables(twin, step.after, latest_ms);
        }
    }

    /// A flow that is confirmed, and not silent for too long, ends by its own packets only: no newcomer takes its place.
    fn bystanders_stay(&self, step: &Step<'_>, packets: &[Option<(Packet, Vec<u8>)>]) {
        let touched: WordSet<Tuple> = packets.iter().flatten().map(|(packet, _)| packet.tuple).collect();
        let stay: WordSet<(Tuple, Tuple)> = step.after.iter().map(|live| (live.flow.original(), live.flow.reply())).collect();
        for live in step.before {
            let keys = (live.flow.original(), live.flow.reply());
            if confirmed(live, step.now_ms) && !self.expired(live, step.now_ms) && !touched.contains(&keys.0) && !touched.contains(&keys.1)
            {
                assert!(stay.contains(&keys), "{live:?} had to go for {touched:?}");
            }
        }
    }

    /// What looks like a reply but comes in by a port that does not lead to its sender is none, and changes nothing.
    fn by_its_port(&self, twin: &Twin, step: &Step<'_>, (sent, packet): (&Sent, &Packet), verdict: &Verdict) {
        let Some(live) = step.before.iter().find(|live| live.flow.reply() == packet.tuple) else { return };
        if self.expired(live, step.now_ms) || twin.routes().leads_by(packet.tuple.src_addr(), sent.port) {
            return;
        }
        assert!(!matches!(verdict, Verdict::Forward(..) | Verdict::Fragment(..)), "{verdict:?} for a forged reply {}", packet.tuple);
        assert!(step.after.contains(live), "a forged reply has changed {live:?}");
    }

    /// A TCP flow counts as established only after its client has acknowledged a number that its backend had sent; a UDP flow as confirmed only
    /// after an answer.
    fn proven(&mut self, step: &Step<'_>, (packet, head): (&Packet, &[u8]), verdict: &Verdict) {
        let flow_of =
            |flows: &[Live]| flows.iter().copied().find(|live| live.flow.original() == packet.tuple || live.flow.reply() == packet.tuple);
        let (Some(before), Some(after)) = (flow_of(step.before), flow_of(step.after)) else { return };
        let key = after.flow.original();
        let (was, is) = (before.phase.kind(), after.phase.kind());
        let fresh = matches!(is, PhaseKind::SynSent | PhaseKind::PickedUp) && was != is;
        if before.flow != after.flow || fresh {
            self.numbers.remove(&key);
            self.wild.remove(&key);
        }
        if packet.tuple == after.flow.reply() {
            self.remember(&key, packet, head, verdict);
            return;
        }
        if self.wild.contains(&key) || was == is {
            return;
        }
        assert!(
            was != PhaseKind::Unreplied || !matches!(is, PhaseKind::Confirmed | PhaseKind::Stream),
            "{before:?} -> {after:?} without an answer"
        );
        let unproven = |kind| matches!(kind, PhaseKind::SynSent | PhaseKind::SynReceived | PhaseKind::PickedUp | PhaseKind::PickedUpReply);
        if unproven(was) && !unproven(is) && is != PhaseKind::Closed {
            let covered = packet.tcp_numbers(head).and_then(|numbers| {
                let (first, last) = self.numbers.get(&key)?;
                Some(numbers.acknowledgment?.wrapping_sub(*first) <= last.wrapping_sub(*first))
            });
            let tcp = packet.tuple.proto == Proto::Tcp;
            assert!(!tcp || covered == Some(true), "{before:?} -> {after:?} without proof: {:?}", packet.tcp_numbers(head));
        }
    }

    /// Remembers what a backend has sent.
    fn remember(&mut self, key: &Tuple, packet: &Packet, head: &[u8], verdict: &Verdict) {
        let (Some(numbers), Verdict::Forward(..) | Verdict::Fragment(..)) = (packet.tcp_numbers(head), verdict) else { return };
        let (first, last) = self.numbers.entry(*key).or_insert((numbers.sequence, numbers.end));
        let (before, beyond) = (first.wrapping_sub(numbers.sequence), numbers.end.wrapping_sub(*last));
        if before.cast_signed() > 0 {
            *first = numbers.sequence;
        }
        if beyond.cast_signed() > 0 {
            *last = numbers.end;
        }
        if last.wrapping_sub(*first) > SEGMENTS_APART_MAX {
            self.wild.insert(*key);
        }
    }

    /// The table, its counts and the reply filter agree.
    pub fn tables(&mut self, twin: &mut Twin, flows: &[Live], now_ms: u64) {
        let frames = twin.world().reconciled();
        let out = frames.forwarded.packets + frames.kernel.packets + frames.dropped.packets + frames.held.packets;
        assert_eq!(frames.received.packets + frames.released.packets, out, "accounts close");
        let mut keys = WordSet::default();
        twin.world().with(|ctx| {
            assert_eq!(ctx.table.live(), flows.len() as u64);
            for live in flows {
                for (key, direction) in [(live.flow.original(), Direction::Original), (live.flow.reply(), Direction::Reply)] {
                    assert!(keys.insert(key), "two flows of one key: {key}");
                    let hit = ctx.table.lookup(&key, ctx.table.hash(&key)).unwrap_or_else(|| panic!("not found by {key}"));
                    assert_eq!((ctx.table.flow(&hit), hit.direction), (Some(live.flow), direction));
                }
                assert!(live.seen_ms <= now_ms, "{live:?} was seen in the future");
                let Some(filter) = ctx.filter.filter(|_| live.flow.announced) else { continue };
                let reply = live.flow.reply();
                assert!(filter.contains(&reply), "not announced");
                let owner = ctx.table.lookup(&reply, ctx.table.hash(&reply)).map(|hit| hit.slot());
                assert!(filter.owners(filter.bucket_of(&reply)).any(|slot| Some(slot) == owner), "announced without an owner");
            }
        });
        let announced = flows.iter().filter(|live| live.flow.announced).count();
        assert_eq!(twin.world().announced(), announced, "announcements");
        self.source_ports(twin, flows);
        clients(twin, flows);
    }

    /// The shares of clients and Services, and the counts by endpoint, are those of the live flows.
    fn source_ports(&mut self, twin: &mut Twin, flows: &[Live]) {
        let (mut endpoints, mut clients) = (HashMap::new(), HashMap::new());
        let with_snat = flows.iter().map(|live| live.flow).filter(|flow| flow.replaces_source());
        for flow in with_snat {
            let endpoint = (flow.backend, flow.backend_port, flow.proto, flow.v6, flow.source);
            self.endpoints.insert(endpoint);
            *endpoints.entry(endpoint).or_insert(0u64) += 1;
            *clients.entry((endpoint.0, endpoint.1, endpoint.2, flow.client)).or_insert(0u64) += 1;
        }
        let most = |counts: &mut dyn Iterator<Item = u64>| counts.max().unwrap_or(0);
        let (in_use, fullest) = (endpoints.values().sum::<u64>(), most(&mut endpoints.values().copied()));
        let largest = most(&mut clients.values().copied());
        twin.world().with(|ctx| {
            let ports = ctx.table.snat_ports();
            assert_eq!(ports.in_use(), in_use, "source ports in use");
            let shares = ports.largest_shares();
            for share in [shares.client, shares.service] {
                assert!(share <= in_use && (share > 0) == (in_use > 0), "{shares:?} of {in_use}");
            }
            assert!(shares.client >= largest, "{shares:?}, one client has {largest}");
            assert!(ports.fullest_endpoint() <= fullest, "{} of {fullest}", ports.fullest_endpoint());
            // Each endpoint has a line as long as there are enough.
            assert!(
                self.endpoints.len() > ENDPOINT_LINES || ports.fullest_endpoint() == fullest,
                "{} of {fullest}",
                ports.fullest_endpoint()
            );
        });
    }
}

/// What is counted for each client are its live flows that its backend has not closed.
fn clients(twin: &mut Twin, flows: &[Live]) {
    let mut counts: HashMap<CountedClient, u64> = HashMap::new();
    for (client, live) in flows.iter().filter_map(|live| Some((live.flow.counted?, live))) {
        *counts.entry(client).or_default() += u64::from(!live.phase.is_over());
    }
    twin.world().with(|ctx| counts.iter().for_each(|(client, flows)| assert_eq!(ctx.table.clients().flows(*client), *flows)));
}

/// Whether a flow may not be evicted: its client has proven that it is there, and it is not idle UDP. Said here anew, so that a change of the
/// core's own rule is noticed.
fn confirmed(live: &Live, now_ms: u64) -> bool {
    match live.phase.kind() {
        PhaseKind::Established | PhaseKind::FinWait | PhaseKind::CloseWait => true,
        PhaseKind::Confirmed | PhaseKind::Stream => now_ms.saturating_sub(live.seen_ms) < CONFIRMED_IDLE_MS,
        _ => false,
    }
}

/// What leaves is unchanged, or well-formed if it came in so.
fn sent_on_soundly(twin: &Twin, sent: &Sent, verdict: &Verdict, bytes: &[u8]) {
    match verdict {
        Verdict::Drop(_) | Verdict::Hold(_) => assert_eq!(bytes, sent.bytes, "{verdict:?}: changed"),
        Verdict::Kernel(_) => {
            assert_eq!(bytes[..6], KERNEL_MAC, "not to the kernel");
            assert!(bytes.ends_with(&sent.bytes[sent.bytes.len().min(22 + 128)..]), "{verdict:?}: payload changed");
        }
        Verdict::Forward(port, id) | Verdict::Fragment(port, id, _) => {
            let hop = twin.routes().hop(*id).expect("a next hop of these routes");
            assert_eq!((hop.port, &bytes[..12]), (*port, &hop.link[..]));
            let headers_ok = SlicedPacket::from_ethernet(&sent.bytes).is_ok();
            assert!(!headers_ok || SlicedPacket::from_ethernet(bytes).is_ok(), "a frame that nobody can read");
            if let Verdict::Fragment(_, _, mtu) = verdict {
                split_soundly(bytes, *mtu);
            }
        }
    }
}

/// The fragments of a frame are well-formed, fit, and together are its packet.
fn split_soundly(bytes: &[u8], mtu: u16) {
    let mut buffer = bytes.to_vec();
    let fragments = split(&Frame::new(&mut buffer, 0, bytes.len(), PortId(0), 0), mtu);
    let of = |frame: &[u8]| match SlicedPacket::from_ethernet(frame).ok().and_then(|packet| packet.net) {
        Some(NetSlice::Ipv4(ip)) => (ip.header().to_header(), ip.payload().payload.to_vec()),
        _ => panic!("a fragment that nobody can read"),
    };
    let ((whole, expected), mut payload) = (of(bytes), Vec::new());
    for (number, fragment) in fragments.iter().enumerate() {
        let (header, part) = of(fragment);
        let at = usize::from(header.fragment_offset.value() - whole.fragment_offset.value()) * 8;
        let more = number + 1 < fragments.len() || whole.more_fragments;
        assert_eq!((at, header.more_fragments, header.header_checksum), (payload.len(), more, header.calc_header_checksum()));
        assert!(header.total_len <= mtu && (!more || part.len() % 8 == 0), "a fragment of {} bytes", header.total_len);
        payload.extend(part);
    }
    assert_eq!(payload, expected, "the fragments are not the packet");
}

/// The packet has the addresses, ports and checksums that its flow says; checksums stay as wrong as they were.
fn rewritten_as_the_flow_says(twin: &mut Twin, sent: &Sent, packet: &Packet, verdict: &Verdict, bytes: &[u8]) {
    let (Verdict::Forward(..) | Verdict::Fragment(..)) = verdict else { return };
    let hit = twin.lookup(&packet.tuple).expect("what is forwarded has a flow");
    if let Some(crc_was_right) = sctp_crc_holds(&sent.bytes) {
        assert!(!crc_was_right || sctp_crc_holds(bytes) == Some(true), "the SCTP checksum broke");
    }
    match (read(&sent.bytes), read(bytes)) {
        (Ok(before), after) => {
            let after = after.unwrap_or_else(|fault| panic!("{fault} in {}", packet.tuple));
            assert_eq!(after.tuple, hit.new, "rewritten to another flow's tuple");
            let expected =
                Seen { src_mac: after.src_mac, dst_mac: after.dst_mac, tuple: hit.new, ttl: before.ttl - 1, payload: before.payload };
            assert_eq!(after, expected);
        }
        (Err(fault), after) if sent.partial_sum && fault.contains("checksum") && packet.fragment.is_none() => {
            let after = after.unwrap_or_else(|fault| panic!("{fault}: a partial checksum was not completed"));
            assert_eq!(after.tuple, hit.new);
        }
        (Err(fault), after) if sent.wrong_sum && fault.contains("checksum") => {
            assert!(after.is_err(), "a wrong checksum became right: {}", packet.tuple);
        }
        (Err(_), _) => {}
    }
}

/// Whether the CRC32c of an SCTP packet is right. `None`: the frame has none.
fn sctp_crc_holds(frame: &[u8]) -> Option<bool> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let payload = packet.net.as_ref()?.ip_payload_ref()?;
    if payload.ip_number != etherparse::IpNumber::SCTP || payload.fragmented || payload.payload.len() < 12 {
        return None;
    }
    let mut sctp = payload.payload.to_vec();
    let crc = sctp[8..12].to_vec();
    sctp[8..12].fill(0);
    Some(naive_crc32c(&sctp).to_le_bytes()[..] == crc)
}

/// A frame that was made is well-formed, and for the sender of one of the batch.
fn made_soundly(made: &[u8], batch: &[Sent]) {
    let packet = SlicedPacket::from_ethernet(made).unwrap_or_else(|e| panic!("{e}: an answer that nobody can read"));
    let sum_of = |bytes: &[u8]| nomagic_core::checksum::fold(words(bytes));
    let dst: Vec<u8> = match packet.net.as_ref().expect("an IP packet") {
        NetSlice::Ipv4(v4) => {
            let header = v4.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum);
            if let Some(TransportSlice::Icmpv4(icmp)) = &packet.transport {
                assert_eq!(sum_of(icmp.slice()), 0xffff, "the ICMP checksum");
            }
            header.destination.to_vec()
        }
        NetSlice::Ipv6(v6) => {
            let header = v6.header().to_header();
            if let Some(TransportSlice::Icmpv6(icmp)) = &packet.transport {
                assert!(icmp.is_checksum_valid(header.source, header.destination), "the ICMPv6 checksum");
            }
            header.destination.to_vec()
        }
        NetSlice::Arp(_) => panic!("an ARP packet"),
    };
    if let Some(TransportSlice::Tcp(segment)) = &packet.transport {
        assert!(segment.rst() && read(made).is_ok(), "{:?}", read(made));
    }
    assert_ne!(sctp_crc_holds(made), Some(false), "the SCTP checksum of an answer");
    let sender = batch.iter().any(|sent| sent.bytes.windows(dst.len()).any(|window| window == dst));
    assert!(sender && made.len() <= 22 + 1_280, "an answer that nobody has asked for");
}

/// The numbers that a sender's next packet begins with.
pub fn next_number(sequence: u32, flags: u8, payload: usize) -> u32 {
    let counted = [tcp::SYN, 1].into_iter().filter(|flag| flags & flag != 0).count();
    sequence.wrapping_add((payload + counted) as u32)
}
