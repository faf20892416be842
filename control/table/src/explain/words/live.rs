//! Sentences about the state of a running gateway.

use nomagic_core::conntrack::{AGE_MODULUS_MS, Direction, Flow, Hit, PhaseKind};
use nomagic_core::frame::{NextHopId, Wanted};
use nomagic_core::observe::FlowFate;
use nomagic_core::routes::{NextHop, Resolution};
use nomagic_core::services::{Backend, SnatRange};
use nomagic_core::tuple::{AddrWords, Tuple, words_addr};

use crate::explain::live::LiveState;
use crate::explain::today::Today;
use crate::objects::addr::socket;

fn end(addr: AddrWords, v6: bool, port: u16) -> String {
    socket(words_addr(addr, v6), port)
}

/// A duration in seconds, rounded for reading.
fn seconds(ms: u64) -> String {
    if ms < 10_000 { format!("{}.{} s", ms / 1_000, ms % 1_000 / 100) } else { format!("{} s", ms / 1_000) }
}

fn phase(kind: PhaseKind) -> &'static str {
    match kind {
        PhaseKind::SynSent => "half-open: only the client's first packet was seen",
        PhaseKind::SynReceived => "half-open: the endpoint has answered, the client has not confirmed",
        PhaseKind::Established => "established",
        PhaseKind::FinWait => "closing: one side has sent its FIN",
        PhaseKind::CloseWait => "half-closed: one side is done",
        PhaseKind::LastAck => "closing: both sides have sent their FIN",
        PhaseKind::TimeWait => "closed",
        PhaseKind::Closed => "reset",
        PhaseKind::PickedUp => "picked up mid-stream, only the client was seen so far",
        PhaseKind::PickedUpReply => "picked up mid-stream, only the endpoint was seen so far",
        PhaseKind::Unreplied => "unanswered",
        PhaseKind::Replied => "answered",
        PhaseKind::Confirmed => "answered, and continued by the client",
        PhaseKind::Stream => "a stream in both directions",
    }
}

/// Describes the packet's flow and what happens to it.
pub(in crate::explain) fn known_flow(live: &LiveState<'_>, flow: &Flow, hit: &Hit, fate: FlowFate) -> String {
    let (client, service) = (end(flow.client, flow.v6, flow.client_port), end(flow.service, flow.v6, flow.service_port));
    let backend = end(flow.backend, flow.v6, flow.backend_port);
    let (idle_ms, timeout_ms) = (live.now_ms.saturating_sub(hit.seen_ms), live.timeouts.table().of(hit.phase));
    let state = format!("{}, its last packet came {} ago", phase(hit.phase.kind()), seconds(idle_ms));
    let whose = match hit.direction {
        Direction::Original => format!("The gateway knows this flow: it goes to {backend}"),
        Direction::Reply => format!("The packet is a reply in a known flow: {client} has asked {service}, and {backend} answers"),
    };
    match fate {
        FlowFate::Continues => format!(
            "{whose}. It is {state}, and without another one it ends in {}. The packet follows that flow; Services and endpoints are not consulted again.",
            seconds(timeout_ms.saturating_sub(idle_ms))
        ),
        FlowFate::TimedOut => {
            format!(
                "{whose}. But it is {state}, and {} are allowed: it has timed out and ends now, and the packet opens a new flow.",
                seconds(timeout_ms)
            )
        }
        FlowFate::Replaced => format!("{whose}. But it is {state}: it ends now, and the packet opens a new flow."),
    }
}

/// Says since when a flow exists, as far as its record tells.
pub(in crate::explain) fn age(age_ms: Option<u64>, remainder_ms: u64) -> String {
    match age_ms {
        Some(age_ms) => format!("It was opened {} ago.", seconds(age_ms)),
        None => format!(
            "It was opened {} ago, or that long and a multiple of {} before: a flow's record holds its time of creation modulo {} only.",
            seconds(remainder_ms),
            seconds(AGE_MODULUS_MS),
            seconds(AGE_MODULUS_MS)
        ),
    }
}

/// Of a flow without a Service.
pub(in crate::explain) const DIRECT: &str = "The client addresses the endpoint itself, so no Service chose it.";

/// Says where a new connection with the same addresses and ports would go.
pub(in crate::explain) fn today(backend: &str, today: &Today) -> String {
    let opened = format!("{backend} was chosen when the flow was opened");
    match (&today.otherwise, &today.endpoint) {
        (None, _) if today.by_affinity => {
            format!("{opened}. A new connection of this client would go there too: its session affinity names that endpoint.")
        }
        (None, _) => format!("{opened}. A new connection from the same address and port would go there too, by the hash."),
        (Some(why), Some(other)) => format!("{opened}, and the flow stays there. A new connection would go to {other}: {why}."),
        (Some(why), None) => format!("{opened}, and the flow stays there. A new connection would reach no endpoint: {why}."),
    }
}

/// Why a candidate is not chosen any more, if not by affinity.
pub(in crate::explain) fn other_slot(with_affinity: bool) -> String {
    let also = if with_affinity { ", or the client's session affinity chose then and has expired" } else { "" };
    format!(
        "the endpoint is still a candidate, but endpoints have come or gone since, and the hash's slot in the Maglev table is another's now{also}"
    )
}

/// Describes the rewriting of a known flow's packet.
pub(in crate::explain) fn known_rewrite(tuple: &Tuple, hit: &Hit) -> String {
    let ends = |t: &Tuple| (end(t.src, t.v6, t.sport), end(t.dst, t.v6, t.dport));
    let ((old_src, old_dst), (src, dst)) = (ends(tuple), ends(&hit.new));
    let source = if old_src == src { "the source stays as it is".into() } else { format!("the source {old_src} to {src}") };
    let destination =
        if old_dst == dst { "the destination stays as it is".into() } else { format!("The destination {old_dst} is rewritten to {dst}") };
    format!("{destination}, {source}.")
}

/// Describes the affinity state of the client.
pub(in crate::explain) fn remembered(age_s: u64, endpoint: Option<&Backend>, kept: bool) -> String {
    match endpoint {
        Some(b) if kept => {
            format!("The client opened its last connection to this port {age_s} s ago, to {}: it goes there again.", socket(b.addr, b.port))
        }
        Some(b) => {
            format!(
                "The client opened its last connection to this port {age_s} s ago, to {}: its affinity has expired.",
                socket(b.addr, b.port)
            )
        }
        None => format!("The client opened its last connection to this port {age_s} s ago, but that endpoint is no longer a candidate."),
    }
}

pub(in crate::explain) const NOBODY_REMEMBERS: &str = "The gateway does not remember this client, so its hash decides.";

/// Describes the route to the rewritten packet's destination. `None`: there is no route, and the verdict gives the reason.
pub(in crate::explain) fn next_hop(live: &LiveState<'_>, resolution: &Resolution) -> Option<String> {
    match resolution {
        Resolution::Hop(id) => by_hop(live, *id),
        Resolution::Kernel { captured: true } => {
            Some("The route there uses no port of the gateway: the kernel forwards the packet, and replies come back through a captured interface.".into())
        }
        Resolution::Kernel { captured: false } => Some(
            "The route there uses no port of the gateway: the kernel forwards the packet. Replies come back to an address that the kernel routes to the gateway, \
             and to clients behind interfaces where the gateway captures answers."
                .into(),
        ),
        Resolution::Ask(Wanted { port, addr }) => Some(format!(
            "The next hop is {addr} on {}. Its MAC address is not known yet: it is being resolved, and the packet is held until the answer arrives.",
            live.port_name(*port)
        )),
        Resolution::Nowhere(_) => None,
    }
}

fn by_hop(live: &LiveState<'_>, id: NextHopId) -> Option<String> {
    if live.routes.kernel_hop().is_some_and(|(_, kernel)| kernel == id) {
        return Some("The route there uses no port of the gateway: the kernel forwards the packet.".into());
    }
    let hop: &NextHop = live.routes.hop(id)?;
    let mac = hop.dst_mac().map(|byte| format!("{byte:02x}")).join(":");
    Some(format!("The packet leaves through {}, to the MAC address {mac}.", live.port_name(hop.port)))
}

/// Describes the use of the source ports towards an endpoint.
pub(in crate::explain) fn ports_in_use(range: &SnatRange, in_use: usize) -> String {
    let limits = range.limits();
    let limit = |holder: &str, most: u64| if most == u64::MAX { String::new() } else { format!(" One {holder} may hold {most} of them.") };
    let limits = [limit("client", limits.client), limit("Service", limits.service)].concat();
    format!("{in_use} of the {} source ports towards this endpoint are in use.{limits}", range.ports().len())
}

/// The reason for replacing the client's address with the internal one.
pub(in crate::explain) const WHY_INTERNAL: &str =
    "the endpoint is reached through the kernel, and its replies come back only to this address";

pub(in crate::explain) const TABLE_FULL: &str = "The connection table is full. This flow must evict a closed or unconfirmed flow or an idle UDP flow; \
    if there is none, the packet is dropped (conntrack_full).";

pub(in crate::explain) const HELD: &str =
    "The packet is held, not dropped: when the next hop answers, it is processed again as a first packet.";
