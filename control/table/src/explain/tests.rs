//! Tests of answers about a running gateway: the individual sentences, and that answers always agree with the packet path.

mod denied;
mod known;
mod limits;
mod outer;
mod room;
mod unknown_seed;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arrayvec::ArrayVec;
use nomagic_core::conntrack::{Conntrack, Phase, Timeouts};
use nomagic_core::counters::Counters;
use nomagic_core::first_packet::first_packet;
use nomagic_core::frame::{Frame, Outputs, PortId};
use nomagic_core::mss::SegmentSize;
use nomagic_core::parse::{Packet, parse};
use nomagic_core::pipeline::{Context, WorkerState, process};
use nomagic_core::routes::{InternalPort, Leg, Neighbour, Port, Route, RouteKind};
use nomagic_core::services::{ConnectionsPerClient, ConnectionsPerSecond, SnatRange, TcpReject, UnusedPorts};
use nomagic_core::tuple::{HashSeed, splitmix64};
use nomagic_core::wire::tcp;

use super::*;
use crate::compile::{Compiler, TARGETS_MAX};
use crate::objects::{Object, Slice};
use crate::problem::Origin;
use crate::settings::{DefaultLimits, ExternalIps, NodePortAddresses, ThisNode};

const CAPACITY: u32 = 1_024;
const SEED: u64 = 77;

fn settings() -> Settings {
    let addr = |text: &str| text.parse().unwrap();
    Settings {
        snat: SnatRange {
            v4: vec![addr("192.168.0.2")],
            v6: vec![],
            port_first: 61_000,
            port_last: 61_015,
            excluded: None,
            share_percent: 75,
            client_share_percent: 0,
            internal_v4: Some(addr("169.254.78.78")),
            internal_v6: None,
        },
        node: ThisNode { name: "here".into(), ips: vec![addr("192.168.0.2")], primary: vec![addr("192.168.0.2")], zone: None },
        cluster_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
        pods_by_interface: false,
        incomplete: false,
        service_cidrs: vec!["172.30.0.0/16".parse().unwrap()],
        masquerade_all: false,
        localhost_node_ports: true,
        node_port_addresses: NodePortAddresses::Primary,
        kernel_ips: [].into(),
        keep_local: Vec::new(),
        external_ips: ExternalIps::default(),
        api_servers: [].into(),
        tcp_reject: TcpReject::default(),
        unused_ports: UnusedPorts::default(),
        answer_ping: false,
        mss: SegmentSize::Keep,
        fragment: true,
        reset_idle: false,
        limits: DefaultLimits::default(),
        seed: HashSeed::new(0),
    }
}

/// Services by the last byte of their address, with their endpoints; `sticky` ones have session affinity for 100 s.
fn index(services: &[(u8, bool, &[&str])]) -> Index {
    let ports = ["TCP", "UDP", "SCTP"];
    let list = |field: &str| -> String {
        ports
            .map(|p| format!("{{name: {}, protocol: {p}, port: {}}}", p.to_lowercase(), if field == "slice" { 8080 } else { 80 }))
            .join(", ")
    };
    let objects = services.iter().flat_map(|(last, sticky, endpoints)| {
        let affinity = if *sticky { "sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 100}}, " } else { "" };
        let service = format!(
            "{{metadata: {{name: s{last}, namespace: n}}, spec: {{{affinity}clusterIP: 172.30.0.{last}, ports: [{}]}}}}",
            list("service")
        );
        let all: String = endpoints.iter().map(|e| format!("{{addresses: ['{e}']}}, ")).collect();
        let slice = format!(
            "{{metadata: {{name: e{last}, namespace: n, labels: {{kubernetes.io/service-name: s{last}}}}}, addressType: IPv4, ports: [{}], endpoints: [{all}]}}",
            list("slice")
        );
        let origin = Origin::default();
        [
            Object::Service(Arc::new(Service::from_k8s(&serde_saphyr::from_str(&service).unwrap(), &origin).unwrap())),
            Object::Slice(Arc::new(Slice::from_k8s(&serde_saphyr::from_str(&slice).unwrap(), &origin).unwrap())),
        ]
    });
    Index::of(objects)
}

/// Endpoints of the tests: with known neighbours, with an unknown neighbour, behind the kernel with and without a captured return path, and
/// unreachable.
const HOPS: [&str; 4] = ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"];
const UNKNOWN: &str = "10.1.0.99";
const CAPTURED: &str = "10.2.0.1";
const HIDDEN: &str = "10.3.0.1";
const UNREACHABLE: &str = "10.4.0.1";

fn routes(generation: u64, pods_up: bool, internal: bool) -> Routes {
    let port = |last, up| Port { mac: [2, 0, 0, 0, 0, last], mtu: 1_500, up };
    let leg = |port: Option<u16>, captured| Leg { port: port.map(PortId), captured, gateway: None, weight: 1, mtu: None };
    let route = |prefix: &str, kind| Route { prefix: prefix.parse().unwrap(), metric: 0, kind };
    let unicast = |leg| RouteKind::Unicast(vec![leg]);
    let all = vec![
        route("10.1.0.0/16", unicast(leg(Some(1), false))),
        route("10.2.0.0/16", unicast(leg(None, true))),
        route("10.3.0.0/16", unicast(leg(None, false))),
        route("10.4.0.0/16", RouteKind::Unreachable),
        route("203.0.113.0/24", unicast(leg(Some(0), false))),
        route("10.9.0.0/16", unicast(leg(Some(0), false))),
    ];
    let at = |port, addr: &str, last| Neighbour { port: PortId(port), addr: addr.parse().unwrap(), mac: [4, 0, 0, 0, 0, last] };
    let mut neighbours: Vec<Neighbour> = (1..).zip(HOPS).map(|(last, addr)| at(1, addr, last)).collect();
    neighbours.extend(CLIENTS.iter().map(|addr| at(0, addr, 9)));
    let internal = internal.then_some(InternalPort { port: PortId(2), kernel_mac: [9; 6] });
    Routes::build(generation, vec![port(0, true), port(1, pods_up), port(2, true)], internal, all, &neighbours).0
}

const CLIENTS: [&str; 4] = ["203.0.113.1", "203.0.113.2", "10.9.0.1", "10.9.0.2"];
const PORTS: [&str; 3] = ["clients", "pods", "nm1"];

/// A gateway with one worker.
struct OneWorkerGateway {
    index: Index,
    settings: Settings,
    compiled: Compiled,
    routes: Routes,
    words: Vec<AtomicU64>,
    counters: Counters,
    worker: WorkerState,
    ports: Vec<String>,
    now_ms: u64,
}

impl OneWorkerGateway {
    fn new(index: Index, settings: Settings) -> OneWorkerGateway {
        let words: Vec<AtomicU64> = (0..Conntrack::words_needed(CAPACITY)).map(|_| AtomicU64::new(0)).collect();
        Conntrack::format(&words, CAPACITY, SEED, [0, 0]).unwrap();
        let compiled = Compiler::new(TARGETS_MAX).compile(&index, &settings);
        let (counters, worker) = (Counters::new(64), WorkerState::new(0));
        let ports = PORTS.map(str::to_owned).to_vec();
        OneWorkerGateway { index, settings, compiled, routes: routes(1, true, true), words, counters, worker, ports, now_ms: 100_000 }
    }

    fn compile(&mut self, index: Index) {
        self.index = index;
        self.compiled = Compiler::new(TARGETS_MAX).compile(&self.index, &self.settings);
    }

    fn table(&self) -> Conntrack<'_> {
        Conntrack::attach(&self.words).unwrap()
    }

    fn explain(&self, flow: &str) -> Answer {
        let explainer = Explainer::new(&self.index, &self.settings, &self.compiled);
        let live =
            LiveState { table: self.table(), routes: &self.routes, ports: &self.ports, timeouts: Timeouts::default(), now_ms: self.now_ms };
        explainer.with_state(live).answer(flow, &parse_flow(flow).unwrap())
    }

    /// The steps of the answer, in one text.
    fn steps(&self, flow: &str) -> String {
        self.explain(flow).steps.join("\n")
    }

    /// Makes all flows such that never make room.
    fn confirm_all(&self) {
        let table = self.table();
        table.for_each(|hit, flow| {
            let steps = [(Direction::Reply, 0x12), (Direction::Original, 0x10), (Direction::Reply, 0x10)];
            let confirmed = steps.into_iter().fold(Phase::first(flow.proto, 0x02), |phase, (from, flags)| phase.after(from, flags, true));
            table.touch(hit, confirmed, hit.seen_ms);
        });
    }

    /// Sends a packet through the packet path. Returns the verdict, whether a reject was sent, and the rewritten packet.
    fn send(&mut self, frame: &[u8]) -> (frame::Verdict, bool, Option<Packet>) {
        let (mut buffer, mut spare) = (vec![0; 512], vec![0; 2_048]);
        buffer[128..128 + frame.len()].copy_from_slice(frame);
        let (mut verdicts, mut out) = (ArrayVec::new(), Outputs::default());
        out.spare.push(Frame::new(&mut spare, 0, 0, PortId(0), 0));
        let mut frames = [Frame::new(&mut buffer, 128, frame.len(), PortId(0), 0)];
        // A reply comes in by a port that leads to its endpoint.
        let table = Conntrack::attach(&self.words).unwrap();
        if let Ok(Packet { tuple, .. }) = parse(&frames[0])
            && table.lookup(&tuple, table.hash(&tuple)).is_some_and(|hit| hit.direction == Direction::Reply)
        {
            frames[0].port = self.routes.port_towards(tuple.src_addr()).unwrap_or(PortId(0));
        }
        let mut ctx = Context {
            now_ms: self.now_ms,
            services: &self.compiled.services,
            routes: &self.routes,
            table,
            filter: None,
            counters: &self.counters,
            worker: &mut self.worker,
        };
        process(&mut ctx, &mut frames, &mut verdicts, &mut out);
        (verdicts[0], !out.made.is_empty(), parse(&frames[0]).ok())
    }

    fn open(&mut self, flow: &str) {
        let (verdict, ..) = self.send(&first_packet(&parse_flow(flow).unwrap()));
        assert!(matches!(verdict, frame::Verdict::Forward(..)), "{flow}: {verdict:?}");
    }
}

/// A TCP segment of a flow with these flags.
fn segment(tuple: &Tuple, flags: u8) -> Vec<u8> {
    let mut frame = first_packet(tuple);
    if tuple.proto == Proto::Tcp {
        // Byte 13 of the TCP header. The packet path does not verify checksums.
        frame[34 + 13] = flags;
    }
    frame
}

/// The difference between the answer and the actual outcome.
fn disagreement(answer: &Answer, tuple: &Tuple, (verdict, rejected, packet): (frame::Verdict, bool, Option<Packet>)) -> Option<String> {
    let expected = match verdict {
        frame::Verdict::Forward(..) | frame::Verdict::Fragment(..) => Verdict::Forward,
        frame::Verdict::Hold(_) => Verdict::Hold,
        frame::Verdict::Kernel(_) => Verdict::Pass,
        frame::Verdict::Drop(_) if rejected => Verdict::Reject,
        frame::Verdict::Drop(_) => Verdict::Drop,
    };
    let reason = match verdict {
        frame::Verdict::Drop(reason) | frame::Verdict::Kernel(reason) => Some(reason.label()),
        frame::Verdict::Forward(..) | frame::Verdict::Fragment(..) | frame::Verdict::Hold(_) => None,
    };
    let mut agrees = answer.verdict == expected && answer.reason.as_deref() == reason && !answer.steps.is_empty();
    if let (Verdict::Forward, Some(new)) = (expected, packet.map(|p| p.tuple)) {
        let to = socket(new.dst_addr(), new.dport);
        // A reply in a known flow goes to its client, which is not a chosen backend.
        let original = answer.chosen.as_ref().is_none_or(|chosen| *chosen == to);
        agrees &= original && answer.chosen.is_some() == (tuple.dst_addr().to_string().starts_with("172.30."));
        agrees &= answer.chosen.is_none() || answer.snat.unwrap_or(tuple.src_addr()) == new.src_addr();
    }
    (!agrees).then(|| format!("{tuple}: explained {answer:?}, happened {verdict:?} {packet:?}"))
}

/// Tuples of all kinds, with a gateway whose table, routes, Services and clock change: the explained outcome is the actual one, and
/// explaining changes nothing.
#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn answers_agree_with_the_packet_path() {
    let everywhere: &[&str] = &[HOPS[0], UNKNOWN, CAPTURED, HIDDEN, UNREACHABLE];
    let services = |endpoints: &'static [&'static str]| {
        index(&[
            (1, false, endpoints),
            (2, true, endpoints),
            (3, false, &HOPS[..1]),
            (4, false, &[]),
            (5, false, everywhere),
            (6, false, &[CLIENTS[2]]),
        ])
    };
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for round in 0..8u64 {
        let mut random = round;
        let mut next = |n: usize| splitmix64(&mut random) as usize % n;
        let mut settings = settings();
        match round {
            // Few ports; small shares; no source address.
            1 | 2 => (settings.snat.port_last, settings.snat.share_percent) = (61_003, 0),
            3 => (settings.snat.share_percent, settings.snat.client_share_percent) = (40, 20),
            4 => settings.snat.v4.clear(),
            6 => settings.limits.per_second = ConnectionsPerSecond::new(1),
            7 => settings.limits.per_client = ConnectionsPerClient::new(2),
            _ => {}
        }
        let quiet = [1, 2, 3, 6, 7].contains(&round);
        let mut g = OneWorkerGateway::new(services(&HOPS), settings);
        for step in 0..1_500 {
            g.now_ms += [1, 7, 500, if quiet { 2 } else { 30_000 }][next(4)];
            match next(40) {
                0 => g.compile(services(&HOPS[..1 + next(4)])),
                1 => g.routes = routes(g.routes.generation + 1, next(4) > 0, next(4) > 0),
                2 if !quiet => g.now_ms += 200_000,
                3 | 4 if quiet => g.confirm_all(),
                _ => {}
            }
            let client = CLIENTS[next(4)];
            let to = [
                "172.30.0.1:80",
                "172.30.0.2:80",
                "172.30.0.3:80",
                "172.30.0.4:80",
                "172.30.0.5:80",
                "172.30.0.6:80",
                "172.30.0.1:81",
                "8.8.8.8:80",
            ];
            let proto = ["tcp", "tcp", "udp", "sctp"][next(4)];
            let mut tuple = parse_flow(&format!("{proto} {client}:{} -> {}", 1_000 + next(16), to[next(8)])).unwrap();
            let mut flows = Vec::new();
            g.table().for_each(|_, flow| flows.push(*flow));
            if next(5) == 0 && !flows.is_empty() {
                tuple = flows[next(flows.len())].reply();
            }
            let before: Vec<u64> = g.words.iter().map(|word| word.load(Relaxed)).collect();
            let answer = g.explain(&tuple.to_string());
            assert!(g.words.iter().zip(&before).all(|(now, before)| now.load(Relaxed) == *before), "explaining changes nothing");
            let happened = g.send(&first_packet(&tuple));
            *seen.entry(format!("{:?} {}", answer.verdict, answer.reason.as_deref().unwrap_or("-"))).or_default() += 1;
            if let Some(what) = disagreement(&answer, &tuple, happened) {
                panic!("round {round}, step {step}: {what}");
            }
            // Flows continue: replies, confirmations, ends.
            if let Some(flow) = (!flows.is_empty()).then(|| flows[next(flows.len())]) {
                let (key, flags) = [
                    (flow.reply(), tcp::SYN | tcp::ACK),
                    (flow.original(), tcp::ACK),
                    (flow.reply(), tcp::RST),
                    (flow.original(), tcp::FIN | tcp::ACK),
                ][next(4)];
                g.send(&segment(&key, flags));
            }
        }
    }
    println!("{seen:#?}");
    for needed in [
        "Forward -",
        "Hold -",
        "Pass not_ours",
        "Reject no_endpoints",
        "Reject unused_service_port",
        "Reject unreachable",
        "Drop port_down",
        "Drop snat_address_missing",
        "Drop snat_ports_exhausted",
        "Drop snat_share",
        "Drop service_rate_limited",
        "Drop client_connection_limit",
        "Drop no_internal_port",
    ] {
        assert!(seen.contains_key(needed), "{needed} did not come up");
    }
}

#[test]
fn a_known_flow_is_described() {
    let mut g = OneWorkerGateway::new(index(&[(1, false, &[HOPS[0]])]), settings());
    let flow = "tcp 10.9.0.1:1000 -> 172.30.0.1:80";
    let before = g.steps(flow);
    assert!(before.contains("Candidates") && !before.contains("knows this flow"), "{before}");
    g.open(flow);
    g.now_ms += 20_500;
    let answer = g.explain(flow);
    let text = answer.steps.join("\n");
    for words in [
        "knows this flow: it goes to 10.1.0.1:8080",
        "half-open: only the client's first packet was seen, its last packet came 20 s ago, and without another one it ends in 99 s",
        "The destination 172.30.0.1:80 is rewritten to 10.1.0.1:8080, the source stays as it is.",
        "leaves through pods, to the MAC address 04:00:00:00:00:01",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!((answer.service.as_deref(), answer.port, answer.address.as_deref()), (Some("n/s1"), Some(80), Some("clusterIP")));
    assert_eq!((answer.chosen.as_deref(), answer.verdict), (Some("10.1.0.1:8080"), Verdict::Forward));
    let reply = g.explain("tcp 10.1.0.1:8080 -> 10.9.0.1:1000");
    assert_eq!((reply.verdict, reply.chosen), (Verdict::Forward, None));
    assert!(
        reply.steps[1].starts_with("The packet is a reply in a known flow: 10.9.0.1:1000 has asked 172.30.0.1:80"),
        "{:?}",
        reply.steps
    );
    g.now_ms += 200_000;
    let text = g.steps(flow);
    assert!(text.contains("it has timed out and ends now") && text.contains("Candidates"), "{text}");
    g.send(&segment(&parse_flow(flow).unwrap(), tcp::SYN));
    g.send(&segment(&parse_flow(flow).unwrap(), tcp::RST));
    let text = g.steps(flow);
    assert!(text.contains("it is reset") && text.contains("the packet opens a new flow") && text.contains("Candidates"), "{text}");
}

#[test]
fn a_remembered_client_is_described() {
    let mut g = OneWorkerGateway::new(index(&[(2, true, &HOPS)]), settings());
    let ask = |g: &OneWorkerGateway, port: u16| g.explain(&format!("tcp 10.9.0.1:{port} -> 172.30.0.2:80"));
    assert!(ask(&g, 1).steps.iter().any(|s| s.contains("does not remember this client")));
    g.open("tcp 10.9.0.1:1 -> 172.30.0.2:80");
    let first = g.table();
    let mut to = None;
    first.for_each(|hit, _| to = Some(socket(hit.new.dst_addr(), hit.new.dport)));
    g.now_ms += 40_000;
    for port in 2..12 {
        let answer = ask(&g, port);
        assert_eq!(answer.chosen, to);
        let text = answer.steps.join("\n");
        assert!(text.contains("40 s ago") && text.contains("it goes there again") && !text.contains("are hashed"), "{text}");
    }
    g.now_ms += 70_000;
    let text = ask(&g, 20).steps.join("\n");
    assert!(text.contains("110 s ago") && text.contains("its affinity has expired") && text.contains("are hashed"), "{text}");
    g.now_ms -= 70_000;
    let others: Vec<&str> = HOPS.into_iter().filter(|hop| to.as_ref().is_some_and(|to| !to.starts_with(hop))).collect();
    g.compile(index(&[(2, true, &others)]));
    let text = ask(&g, 21).steps.join("\n");
    assert!(text.contains("is no longer a candidate") && text.contains("are hashed"), "{text}");
}

#[test]
fn the_next_hop_is_described() {
    let services =
        [(1, false, &[HOPS[1]][..]), (2, false, &[UNKNOWN]), (3, false, &[CAPTURED]), (4, false, &[HIDDEN]), (5, false, &[UNREACHABLE])];
    let g = OneWorkerGateway::new(index(&services), settings());
    let table: [(u8, Verdict, &[&str]); 5] = [
        (1, Verdict::Forward, &["leaves through pods, to the MAC address 04:00:00:00:00:02"]),
        (2, Verdict::Hold, &["next hop is 10.1.0.99 on pods", "held, not dropped"]),
        (3, Verdict::Forward, &["the kernel forwards the packet, and replies come back through a captured interface"]),
        (4, Verdict::Forward, &["Replies come back to an address", "rewritten to 169.254.78.78", "come back only to this address"]),
        (5, Verdict::Reject, &["ICMP \"host unreachable\"", "routes say unreachable"]),
    ];
    for (last, verdict, words) in table {
        let answer = g.explain(&format!("tcp 10.9.0.1:1 -> 172.30.0.{last}:80"));
        let text = answer.steps.join("\n");
        assert_eq!(answer.verdict, verdict, "{text}");
        let missing: Vec<_> = words.iter().filter(|w| !text.contains(**w)).collect();
        assert!(missing.is_empty(), "{missing:?}: {text}");
    }
}
