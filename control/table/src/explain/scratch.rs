//! Runs one packet through the packet path with a scratch connection table.

use std::sync::atomic::AtomicU64;

use arrayvec::ArrayVec;
use nomagic_core::conntrack::{Conntrack, Direction, Timeouts};
use nomagic_core::counters::Counters;
use nomagic_core::first_packet::first_packet;
use nomagic_core::frame::{Frame, HEADROOM_MIN, Outputs, PortId};
use nomagic_core::pipeline::{Context, WorkerState, process_observed};
use nomagic_core::routes::{InternalPort, Leg, Port, Route, RouteKind, Routes};
use nomagic_core::services::Services;
use nomagic_core::tuple::{Prefix, Tuple};

use super::live::{self, Copied, LiveState, TakenPorts};
use super::trace::Trace;

/// Buffer size for a reject: the longest has 1,280 bytes after the Ethernet header.
const SPARE_LEN: usize = 2_048;
/// The port that receives a client's packet: not a real one.
const ARRIVAL: PortId = PortId(u16::MAX);

/// The port that receives a packet. A reply comes in by a port that leads to its endpoint. A packet for an unused port of a load balancer or external
/// IP comes in by one that leads to its sender: the question is whether it leaves by the same.
fn arrival(services: &Services, table: &Conntrack<'_>, routes: &Routes, tuple: &Tuple) -> PortId {
    let reply = table.lookup(tuple, table.hash(tuple)).is_some_and(|hit| hit.direction == Direction::Reply);
    let unused = || {
        let dst = tuple.dst_addr();
        services.outer().contains(&dst) && services.frontend(dst, tuple.dport, tuple.proto).is_none()
    };
    let port = if reply || unused() { routes.port_towards(tuple.src_addr()) } else { None };
    port.unwrap_or(ARRIVAL)
}

/// Maximum number of flows in a scratch table: more than there are ports.
const ROOM_MAX: u32 = 1 << 20;

/// The tables and state the packet is processed with.
pub(super) struct Scratch<'s> {
    pub services: &'s Services,
    pub routes: &'s Routes,
    pub live: Option<&'s LiveState<'s>>,
    /// The packet's own flow is left out, as if the gateway did not know it.
    pub as_new: bool,
}

/// Routes to every destination, used without a gateway's routes.
pub(super) fn routes_everywhere() -> Routes {
    let port = Port { mac: [2, 0, 0, 0, 0, 3], mtu: u32::from(u16::MAX), up: true };
    let internal = InternalPort { port: PortId(0), kernel_mac: [2, 0, 0, 0, 0, 4] };
    let route = |prefix: Prefix| Route {
        prefix,
        metric: 0,
        kind: RouteKind::Unicast(vec![Leg { port: None, captured: true, gateway: None, weight: 1, mtu: None }]),
    };
    let everything = [[0; 4].into(), [0; 16].into()].into_iter().filter_map(|addr| Prefix::new(addr, 0));
    Routes::build(1, vec![port], Some(internal), everything.map(route).collect(), &[]).0
}

impl Scratch<'_> {
    /// Runs the first packet of a flow through the packet path and passes the observed decisions on.
    pub(super) fn observe<R>(&self, tuple: &Tuple, report: impl FnOnce(&Trace<'_>, &Copied) -> R) -> R {
        // The taken source ports depend on the endpoint, which the first run determines. So a live gateway takes two runs.
        let taken = self.live.and_then(|live| {
            self.run(tuple, None, TakenPorts::room(None), |trace, _| {
                trace.opened.as_ref().map(|hit| live.taken_ports(self.services, tuple, hit))
            })
        });
        self.run(tuple, taken.as_ref(), TakenPorts::room(taken.as_ref()), report)
    }

    /// Runs the first packet of a flow for its Service decision alone: source ports are not searched.
    pub(super) fn decide<R>(&self, tuple: &Tuple, report: impl FnOnce(&Trace<'_>) -> R) -> R {
        self.run(tuple, None, TakenPorts::room(None), |trace, _| report(trace))
    }

    /// Runs with a table of `room` flows, or of more if that is too small.
    fn run<R>(&self, tuple: &Tuple, taken: Option<&TakenPorts>, room: u32, report: impl FnOnce(&Trace<'_>, &Copied) -> R) -> R {
        let (now_ms, timeouts) = self.live.map_or((0, Timeouts::default()), |live| (live.now_ms, live.timeouts));
        let (counters, mut worker) = (Counters::new(1), WorkerState::with_timeouts(0, timeouts));
        let packet = first_packet(tuple);
        let (mut buffer, mut spare) = (vec![0; HEADROOM_MIN], vec![0; SPARE_LEN]);
        buffer.extend(&packet);
        let words: Vec<AtomicU64> = (0..Conntrack::words_needed(room)).map(|_| AtomicU64::new(0)).collect();
        let mut trace = Trace::default();
        // What is tried out takes no token of the gateway, and is not counted there.
        let with_own_port = self.services.with_detached_port(tuple);
        let services = with_own_port.as_ref().unwrap_or(self.services);
        let Some((table, copied)) = live::fill(&words, room, (services, tuple, self.as_new), self.live, taken) else {
            return if room < ROOM_MAX { self.run(tuple, taken, 2 * room, report) } else { report(&trace, &Copied::default()) };
        };
        let routes = self.routes;
        let port = arrival(services, &table, routes, tuple);
        let mut ctx = Context { now_ms, services, routes, table, filter: None, counters: &counters, worker: &mut worker };
        let mut frames = [Frame::new(&mut buffer, HEADROOM_MIN, packet.len(), port, 0)];
        let (mut verdicts, mut out) = (ArrayVec::new(), Outputs::default());
        out.spare.push(Frame::new(&mut spare, 0, 0, port, 0));
        process_observed(&mut ctx, &mut frames, &mut verdicts, &mut out, &mut trace);
        report(&trace, &copied)
    }
}
