//! The state of a running gateway, as far as a packet's fate depends on it.

use std::sync::atomic::AtomicU64;

use nomagic_core::conntrack::copy::{copy_affinity, copy_flow, copy_port_counts};
use nomagic_core::conntrack::{Conntrack, Flow, Hit, Sticky, Timeouts};
use nomagic_core::frame::PortId;
use nomagic_core::routes::Routes;
use nomagic_core::services::Services;
use nomagic_core::tuple::Tuple;

/// Flows that a scratch table has room for besides the copied ones.
const ROOM: u32 = 8;
/// First port that a client's own one may be replaced with, see the core's source ports.
const CLIENT_PORTS_FROM: u16 = 1_024;

/// What a running gateway knows. Nothing of it is changed.
#[derive(Clone, Copy)]
pub struct LiveState<'l> {
    /// The connection table.
    pub table: Conntrack<'l>,
    /// Routes and neighbours in force.
    pub routes: &'l Routes,
    /// Interface names in the order of their [`PortId`]s.
    pub ports: &'l [String],
    /// Idle times of flows.
    pub timeouts: Timeouts,
    /// The time of the workers' clock.
    pub now_ms: u64,
}

/// What was copied from the living table: facts for sentences.
#[derive(Default)]
pub(super) struct Copied {
    /// The flow that the packet belongs to.
    pub flow: Option<Flow>,
    /// The endpoint that is remembered for the client, and the seconds since its last new flow.
    pub remembered: Option<(u64, u64)>,
    /// Source ports in use towards the endpoint, of those that the new flow may have.
    pub ports_in_use: Option<usize>,
    /// The table is full: a new flow needs the place of another one.
    pub full: bool,
}

/// The source ports of a new flow towards its endpoint that are taken.
pub(super) struct TakenPorts {
    hits: Vec<Hit>,
    flow: Flow,
}

impl LiveState<'_> {
    pub(super) fn port_name(&self, port: PortId) -> &str {
        self.ports.get(usize::from(port.0)).map_or("an interface that is gone", String::as_str)
    }

    /// Looks for flows whose packets look like answers to the new flow `opened` with any of its possible source ports.
    pub(super) fn taken_ports(&self, services: &Services, tuple: &Tuple, opened: &Hit) -> TakenPorts {
        let new = &opened.new;
        let flow = Flow {
            proto: tuple.proto,
            v6: tuple.v6,
            announced: false,
            client: tuple.src,
            client_port: tuple.sport,
            service: tuple.dst,
            service_port: tuple.dport,
            backend: new.dst,
            backend_port: new.dport,
            source: new.src,
            source_port: new.sport,
            stats: opened.stats,
        };
        let own = std::iter::once(tuple.sport);
        let find = |port: u16| {
            let reply = Tuple { dport: port, ..flow.reply() };
            self.table.lookup(&reply, self.table.hash(&reply))
        };
        let hits = if flow.replaces_source() {
            (services.snat.port_first..=services.snat.port_last).filter_map(find).collect()
        } else if own.clone().any(|port| find(port).is_some()) {
            // Rare: only then are others tried.
            own.filter(|port| *port < CLIENT_PORTS_FROM).chain(CLIENT_PORTS_FROM..=u16::MAX).filter_map(find).collect()
        } else {
            Vec::new()
        };
        TakenPorts { hits, flow }
    }
}

impl TakenPorts {
    pub(super) fn len(&self) -> usize {
        self.hits.len()
    }

    /// Flows that a scratch table must have room for.
    pub(super) fn room(taken: Option<&TakenPorts>) -> u32 {
        ROOM + taken.map_or(0, |taken| taken.hits.len() as u32)
    }
}

/// A table of its own for one question, filled with what the packet's fate depends on. `None`: a larger one is needed.
pub(super) fn fill<'w>(
    words: &'w [AtomicU64],
    room: u32,
    services: &Services,
    tuple: &Tuple,
    live: Option<&LiveState<'_>>,
    taken: Option<&TakenPorts>,
) -> Option<(Conntrack<'w>, Copied)> {
    let Some(live) = live else {
        let table = Conntrack::format_zeroed(words, room, 1, [0, 0]).ok()?;
        return Some((table, Copied::default()));
    };
    let table = Conntrack::format_zeroed(words, room, live.table.seed(), [0, 0]).ok()?;
    let hash = live.table.hash(tuple);
    let flow = live.table.lookup(tuple, hash).and_then(|hit| copy_flow(&live.table, &hit, &table));
    let affinity = services.frontend(tuple.dst_addr(), tuple.dport, tuple.proto).and_then(|f| f.port.affinity);
    let remembered = affinity.and_then(|affinity| {
        let sticky = Sticky { id: affinity.id, client: tuple.src, v6: tuple.v6, timeout_s: affinity.timeout_s };
        copy_affinity(&live.table, &sticky, live.now_ms, &table)
    });
    if let Some(taken) = taken {
        for hit in &taken.hits {
            // One that has ended since then has given its port back.
            let _ = copy_flow(&live.table, hit, &table);
        }
        let counted: Vec<Flow> = [Some(taken.flow), flow].into_iter().flatten().filter(Flow::replaces_source).collect();
        if !copy_port_counts(&live.table, &counted, &table) {
            return None;
        }
    }
    let full = live.table.live() >= u64::from(live.table.capacity());
    Some((table, Copied { flow, remembered, ports_in_use: taken.map(TakenPorts::len), full }))
}
