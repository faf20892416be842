//! New flows: which packets may open one, and with which source address and port.

use super::evict::{announce, make_room, reclaim_port};
use super::source_ports::{SourcePorts, TRIED_FIRST};
use super::ways::Onward;
use super::{Context, limits, withdraw};
use crate::conntrack::{CountedClient, EndpointPorts, Flow, Hit, NoPort, Phase, Refused};
use crate::frame::NextHopId;
use crate::parse::Packet;
use crate::reason::Reason;
use crate::services::{Backend, Limits, SnatCause, Source};
use crate::tuple::{Proto, Tuple, addr_words};
use crate::wire::tcp;

/// Evictions for one new flow: for a slot, and for an index entry of each of its two keys.
const ROOM_TRIES: u32 = 3;

/// Whether a new flow needs a source address that the kernel routes to the internal port: answers of an endpoint behind the kernel to any other
/// address would pass nomagic by.
pub(super) fn needs_internal(ctx: &Context<'_>, packet: &Packet, snat: Option<SnatCause>, onward: &Onward) -> bool {
    onward.hidden && (snat.is_some() || !ctx.routes.sees_answers_to(packet.tuple.src_addr()))
}

/// Chooses the source address of a new flow towards its backend.
pub(super) fn choose_source(
    ctx: &Context<'_>,
    packet: &Packet,
    hash: u64,
    snat: Option<SnatCause>,
    needs_internal: bool,
) -> Result<Source, Reason> {
    let (range, v6) = (&ctx.services.snat, packet.tuple.v6);
    let addr = match snat {
        _ if needs_internal => range.internal(v6).ok_or(Reason::NextHopKernel)?,
        Some(_) => range.addr_for(v6, hash.rotate_left(16)).ok_or(Reason::SnatAddressMissing)?,
        None => return Ok(Source::Client),
    };
    Ok(Source::Replaced(addr_words(addr).0))
}

/// Whether a packet may open a flow. The rules are those of the kernel's conntrack: mid-stream connections are picked up, a lone RST, FIN or
/// SYN+ACK is invalid. In addition a mid-stream connection whose source is `replaced` is refused, since its earlier source port is unknown.
pub(super) fn may_open(packet: &Packet, replaced: bool) -> Result<(), Reason> {
    if packet.tuple.proto == Proto::Udp {
        return Ok(());
    }
    match packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST) {
        tcp::SYN => Ok(()),
        tcp::ACK if !replaced => Ok(()),
        tcp::ACK => Err(Reason::MidFlowSnat),
        _ => Err(Reason::TcpFlags),
    }
}

/// Prefetches the memory of the likely reply key as soon as the backend is known. Some hundred instructions pass before it is used.
#[inline]
pub(super) fn prefetch_reply_key(ctx: &Context<'_>, packet: &Packet, hash: u64, backend: &Backend, snat: Option<SnatCause>) {
    let Ok(source) = choose_source(ctx, packet, hash, snat, false) else { return };
    let (src, sport) = (addr_words(backend.addr).0, backend.port);
    let dport = SourcePorts::new(ctx, packet, hash, source).next().unwrap_or(packet.tuple.sport);
    let dst = if let Source::Replaced(addr) = source { addr } else { packet.tuple.src };
    let reply = Tuple { src, dst, sport, dport, ..packet.tuple };
    ctx.table.prefetch_key(&reply);
    if let Some(filter) = &ctx.filter {
        filter.prefetch(&reply, true);
    }
}

/// What is known of a new flow beside its addresses.
#[derive(Clone, Copy)]
struct Opening {
    /// Hash of the original key.
    hash: u64,
    phase: Phase,
    /// The next hop of the client's packets.
    hop: NextHopId,
}

/// Creates the flow, within the limits of its Service.
#[inline(always)]
pub(super) fn open(
    ctx: &mut Context<'_>,
    packet: &Packet,
    hash: u64,
    limits: &Limits,
    backend: &Backend,
    source: Source,
    onward: &Onward,
) -> Result<Hit, Reason> {
    let counted = limits::take(ctx, limits, &packet.tuple)?;
    let hit = open_counted(ctx, packet, hash, counted, backend, source, onward);
    if hit.is_err() && !limits.is_off() {
        limits::give_back(ctx, limits, counted);
    }
    hit
}

/// Creates the flow, which is counted for this client.
#[inline(always)]
fn open_counted(
    ctx: &mut Context<'_>,
    packet: &Packet,
    hash: u64,
    counted: Option<CountedClient>,
    backend: &Backend,
    source: Source,
    onward: &Onward,
) -> Result<Hit, Reason> {
    let t = &packet.tuple;
    let mut flow = Flow {
        proto: t.proto,
        v6: t.v6,
        // The filter learns the reply of each flow. A rule for the source ports would capture the node's own connections.
        announced: ctx.filter.is_some(),
        client: t.src,
        client_port: t.sport,
        service: t.dst,
        service_port: t.dport,
        backend: addr_words(backend.addr).0,
        backend_port: backend.port,
        source: if let Source::Replaced(addr) = source { addr } else { t.src },
        source_port: t.sport,
        stats: backend.stats,
        counted,
    };
    let opening = Opening { hash, phase: Phase::first(t.proto, packet.tcp_flags), hop: onward.id };
    let ports = SourcePorts::new(ctx, packet, hash, source);
    if source != Source::Client
        && let Some(rss) = ctx.routes.rss(onward.hop.port)
        && let Some(answers) = rss.answers(&flow.reply(), ctx.worker.number)
    {
        let mut ports = ports.leading(answers).chain(ports).peekable();
        // Most likely not the port that `prefetch_reply_key` guessed.
        if let Some(port) = ports.peek() {
            ctx.table.prefetch_key(&Flow { source_port: *port, ..flow }.reply());
        }
        return create(ctx, opening, &mut flow, ports);
    }
    // The client's own port may be that of its connection to the endpoint itself. It is tried last: answers that nobody asked for, forged for all
    // ports of a client, must not keep it from the endpoint.
    let (filter, own) = (ctx.filter, flow);
    let passes = move |port: u16| filter.is_some_and(|filter| filter.passes(&Flow { source_port: port, ..own }.reply()));
    if source == Source::Client && ports.may_choose() && passes(t.sport) {
        return create(ctx, opening, &mut flow, ports.filter(move |port| !passes(*port)).chain(std::iter::once(t.sport)));
    }
    create(ctx, opening, &mut flow, ports)
}

/// Creates the flow with the first free one of these source ports.
#[inline(always)]
fn create(ctx: &mut Context<'_>, opening: Opening, flow: &mut Flow, ports: impl Iterator<Item = u16> + Clone) -> Result<Hit, Reason> {
    flow.source_port = ports.clone().next().unwrap_or(flow.source_port);
    if flow.replaces_source() { with_source_port(ctx, opening, flow, ports) } else { reserve(ctx, opening, flow, ports) }
}

/// Creates a flow with SNAT: within the shares of its client and its Service, and with the port of a flow that makes room if all are taken.
fn with_source_port(
    ctx: &mut Context<'_>,
    opening: Opening,
    flow: &mut Flow,
    ports: impl Iterator<Item = u16> + Clone,
) -> Result<Hit, Reason> {
    let first_choice = flow.source_port;
    let endpoint = take_share(ctx, flow, ports.clone())?;
    let set = ctx.services.snat.ports();
    let given_back = endpoint.given_back().filter(move |port| set.contains(*port));
    let likely = ports.clone().take(TRIED_FIRST).chain(given_back);
    let mut hit = reserve(ctx, opening, flow, likely);
    if hit.is_err_and(is_exhausted)
        && let Some(port) = reclaim_port(ctx, flow, ports.clone(), None)
    {
        hit = reserve(ctx, opening, flow, std::iter::once(port));
    }
    if hit.is_err_and(is_exhausted) {
        hit = reserve(ctx, opening, flow, ports.skip(TRIED_FIRST));
    }
    if flow.source_port != first_choice {
        ctx.counters.conntrack.snat_searched.add(1);
    }
    if let Err(reason) = &hit {
        match reason {
            Reason::SnatPortsExhausted => ctx.table.snat_ports().give_back_unfound(flow, endpoint),
            _ => ctx.table.snat_ports().give_back(flow),
        }
    }
    hit
}

fn is_exhausted(reason: Reason) -> bool {
    reason == Reason::SnatPortsExhausted
}

/// Counts a source port for a flow before the search for one. At a limit, a flow of the same holder makes room.
#[inline(always)]
fn take_share<'c>(ctx: &mut Context<'c>, flow: &Flow, ports: impl Iterator<Item = u16>) -> Result<EndpointPorts<'c>, Reason> {
    let limits = ctx.services.snat.limits();
    let refused = match ctx.table.snat_ports().take(flow, limits) {
        Ok(endpoint) => return Ok(endpoint),
        Err(refused) => refused,
    };
    let reason = match refused {
        NoPort::ClientShare | NoPort::ServiceShare => Reason::SnatShare,
        NoPort::Exhausted => Reason::SnatPortsExhausted,
    };
    reclaim_port(ctx, flow, ports, Some(refused)).ok_or(reason)?;
    ctx.table.snat_ports().take(flow, limits).map_err(|_| reason)
}

/// Reserves both keys of a flow, announces its reply and sets it live.
#[inline(always)]
fn reserve(ctx: &mut Context<'_>, opening: Opening, flow: &mut Flow, ports: impl Iterator<Item = u16> + Clone) -> Result<Hit, Reason> {
    let replaced = flow.replaces_source();
    let mut tries = 0;
    let pending = loop {
        match ctx.table.reserve(flow, opening.hash, opening.phase, ctx.now_ms, ports.clone()) {
            Ok(pending) => break pending,
            Err(refused) => {
                if tries == ROOM_TRIES || !make_room(ctx, refused, flow) {
                    return Err(reason(refused, replaced));
                }
                tries += 1;
            }
        }
    };
    let created = pending.flow;
    ctx.table.set_hop(&pending, ctx.routes.generation, opening.hop);
    if created.announced && !announce(ctx, created, pending.slot()) {
        ctx.table.abort(pending);
        return Err(Reason::ReplyFilterFull);
    }
    ctx.table.commit(pending).map_err(|_| {
        withdraw(ctx.filter, created);
        Reason::ConntrackBusy
    })
}

/// The drop reason for a refused flow.
fn reason(refused: Refused, replaced: bool) -> Reason {
    match refused {
        Refused::Full | Refused::Crowded(_) => Reason::ConntrackFull,
        Refused::Busy | Refused::Exists => Reason::ConntrackBusy,
        Refused::ReplyTaken if replaced => Reason::SnatPortsExhausted,
        Refused::ReplyTaken => Reason::ReplyKeyTaken,
    }
}
