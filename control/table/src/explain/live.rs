//! The part of a running gateway's state that decides what happens to a packet.

use std::sync::atomic::AtomicU64;

use nomagic_core::conntrack::copy::{copy_affinity, copy_client_count, copy_flow, copy_port_counts};
use nomagic_core::conntrack::{Conntrack, Flow, Hit, Sticky, Timeouts};
use nomagic_core::frame::PortId;
use nomagic_core::routes::Routes;
use nomagic_core::services::Services;
use nomagic_core::tuple::Tuple;

/// Flows that a scratch table has room for in addition to the copied ones.
const ROOM: u32 = 8;
/// Lowest port that may replace a client's own source port, see the core's source ports.
const CLIENT_PORTS_FROM: u16 = 1_024;

/// The state of a running gateway. It is only read.
#[derive(Clone, Copy)]
pub struct LiveState<'l> {
    /// The connection table.
    pub table: Conntrack<'l>,
    /// The current routes and neighbours.
    pub routes: &'l Routes,
    /// Interface names in the order of their [`PortId`]s.
    pub ports: &'l [String],
    /// Idle timeouts of flows.
    pub timeouts: Timeouts,
    /// The current time of the workers' clock.
    pub now_ms: u64,
}

/// Facts about the flows copied from the gateway's table.
#[derive(Default)]
pub(super) struct Copied {
    /// The packet's flow.
    pub flow: Option<Flow>,
    /// The endpoint remembered for the client, and the seconds since the client's last new flow.
    pub remembered: Option<(u64, u64)>,
    /// Connections of the client to the Service that count for its limit.
    pub client_flows: Option<u64>,
    /// Source ports in use towards the endpoint, out of those the new flow may get.
    pub ports_in_use: Option<usize>,
    /// The table is full: a new flow must evict another one.
    pub full: bool,
}

/// The source ports towards an endpoint that are unavailable to a new flow.
pub(super) struct TakenPorts {
    hits: Vec<Hit>,
    flow: Flow,
}

impl LiveState<'_> {
    pub(super) fn port_name(&self, port: PortId) -> &str {
        self.ports.get(usize::from(port.0)).map_or("an interface that is gone", String::as_str)
    }

    /// Finds flows whose reply keys conflict with the new flow `opened`, over all of its possible source ports.
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
            counted: None,
        };
        let own = std::iter::once(tuple.sport);
        let find = |port: u16| {
            let reply = Tuple { dport: port, ..flow.reply() };
            self.table.lookup(&reply, self.table.hash(&reply))
        };
        let hits = if flow.replaces_source() {
            services.snat.ports().iter().filter_map(find).collect()
        } else if own.clone().any(|port| find(port).is_some()) {
            // Rare: other ports are tried only then.
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

    /// The number of flows a scratch table must have room for.
    pub(super) fn room(taken: Option<&TakenPorts>) -> u32 {
        ROOM + taken.map_or(0, |taken| taken.hits.len() as u32)
    }
}

/// Fills a scratch table with the flows that decide what happens to the packet; without the packet's own flow, if it counts as new. `None`: the
/// table is too small.
pub(super) fn fill<'w>(
    words: &'w [AtomicU64],
    room: u32,
    (services, tuple, as_new): (&Services, &Tuple, bool),
    live: Option<&LiveState<'_>>,
    taken: Option<&TakenPorts>,
) -> Option<(Conntrack<'w>, Copied)> {
    let Some(live) = live else {
        let table = Conntrack::format_zeroed(words, room, 1, [0, 0]).ok()?;
        return Some((table, Copied::default()));
    };
    let table = Conntrack::format_zeroed(words, room, live.table.seed(), [0, 0]).ok()?;
    let hash = live.table.hash(tuple);
    let frontend = services.frontend(tuple.dst_addr(), tuple.dport, tuple.proto);
    // Before the flows, which may leave no room for another client's counter. What they count for this client is overwritten.
    let client = frontend.and_then(|f| f.port.limits.per_client).map(|limit| table.clients().client(limit.service, tuple.src, tuple.v6));
    let copy_count = || client.iter().for_each(|client| copy_client_count(&live.table, *client, &table));
    copy_count();
    let own = live.table.lookup(tuple, hash);
    let flow = own.filter(|_| !as_new).and_then(|hit| copy_flow(&live.table, &hit, &table));
    let affinity = frontend.and_then(|f| f.port.affinity);
    let remembered = affinity.and_then(|affinity| {
        let sticky = Sticky { id: affinity.id, client: tuple.src, v6: tuple.v6, timeout_s: affinity.timeout_s };
        copy_affinity(&live.table, &sticky, live.now_ms, &table)
    });
    if let Some(taken) = taken {
        // The own flow holds a source port, too.
        let left_out = own.filter(|_| as_new).map(|own| own.place());
        for hit in taken.hits.iter().filter(|hit| Some(hit.place()) != left_out) {
            // A flow that has ended meanwhile has freed its port.
            let _ = copy_flow(&live.table, hit, &table);
        }
        let counted: Vec<Flow> = [Some(taken.flow), flow].into_iter().flatten().filter(Flow::replaces_source).collect();
        copy_port_counts(&live.table, &counted, &table);
    }
    copy_count();
    let client_flows = client.map(|client| table.clients().flows(client));
    let full = live.table.live() >= u64::from(live.table.capacity());
    Some((table, Copied { flow, remembered, client_flows, ports_in_use: taken.map(TakenPorts::len), full }))
}
