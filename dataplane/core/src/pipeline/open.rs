//! New flows: which packets may open one, and with which source address and port.

use super::evict::make_room;
use super::source_ports::{SourcePorts, TRIED_FIRST};
use super::{Context, Onward, withdraw};
use crate::conntrack::{EndpointPorts, Flow, Hit, NoPort, Phase, Refused};
use crate::frame::NextHopId;
use crate::parse::Packet;
use crate::reason::Reason;
use crate::services::{Backend, SnatCause, Source};
use crate::tuple::{Proto, Tuple, addr_words};
use crate::wire::tcp;

/// Evictions for one new flow: for a slot, and for an index entry of each of its two keys.
const ROOM_TRIES: u32 = 3;

/// Chooses the source address of a new flow towards its backend.
pub(super) fn choose_source(ctx: &Context<'_>, packet: &Packet, snat: Option<SnatCause>, needs_internal: bool) -> Result<Source, Reason> {
    let (range, v6) = (&ctx.services.snat, packet.tuple.v6);
    let addr = match snat {
        _ if needs_internal => range.internal(v6).ok_or(Reason::NextHopKernel)?,
        Some(_) => range.addr(v6).ok_or(Reason::SnatAddressMissing)?,
        None => return Ok(Source::Client),
    };
    Ok(Source::Replaced(addr_words(addr).0))
}

/// Whether a packet may open a flow. The rules are those of the kernel's conntrack: mid-stream connections are picked up, a lone RST, FIN or
/// SYN+ACK is invalid. In addition a mid-stream connection that needs SNAT is refused, since its earlier source port is unknown.
pub(super) fn may_open(packet: &Packet, source: Source) -> Result<(), Reason> {
    if packet.tuple.proto == Proto::Udp {
        return Ok(());
    }
    match packet.tcp_flags & (tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST) {
        tcp::SYN => Ok(()),
        tcp::ACK if source == Source::Client => Ok(()),
        tcp::ACK => Err(Reason::MidFlowSnat),
        _ => Err(Reason::TcpFlags),
    }
}

/// Prefetches the memory of the likely reply key as soon as the backend is known. Some hundred instructions pass before it is used.
#[inline]
pub(super) fn prefetch_reply_key(ctx: &Context<'_>, packet: &Packet, hash: u64, backend: &Backend, snat: Option<SnatCause>) {
    let Ok(source) = choose_source(ctx, packet, snat, false) else { return };
    let (src, sport) = (addr_words(backend.addr).0, backend.port);
    let dport = SourcePorts::new(ctx, packet, hash, source).next().unwrap_or(packet.tuple.sport);
    let dst = if let Source::Replaced(addr) = source { addr } else { packet.tuple.src };
    let reply = Tuple { src, dst, sport, dport, ..packet.tuple };
    ctx.table.prefetch_key(&reply);
    if let (Some(filter), Source::Client) = (&ctx.filter, source) {
        filter.prefetch(&reply);
    }
}

/// Creates the flow.
#[inline(always)]
pub(super) fn open(
    ctx: &mut Context<'_>,
    packet: &Packet,
    hash: u64,
    backend: &Backend,
    source: Source,
    onward: &Onward,
) -> Result<Hit, Reason> {
    let t = &packet.tuple;
    let mut flow = Flow {
        proto: t.proto,
        v6: t.v6,
        // Captured by a rule when the source is replaced; otherwise the filter must learn the reply.
        announced: source == Source::Client && ctx.filter.is_some(),
        client: t.src,
        client_port: t.sport,
        service: t.dst,
        service_port: t.dport,
        backend: addr_words(backend.addr).0,
        backend_port: backend.port,
        source: if let Source::Replaced(addr) = source { addr } else { t.src },
        source_port: t.sport,
        stats: backend.stats,
    };
    let phase = Phase::first(t.proto, packet.tcp_flags);
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
        return create(ctx, hash, &mut flow, phase, ports, onward.id);
    }
    create(ctx, hash, &mut flow, phase, ports, onward.id)
}

/// Creates the flow with the first free one of these source ports.
#[inline(always)]
fn create(
    ctx: &mut Context<'_>,
    hash: u64,
    flow: &mut Flow,
    phase: Phase,
    ports: impl Iterator<Item = u16> + Clone,
    hop: NextHopId,
) -> Result<Hit, Reason> {
    flow.source_port = ports.clone().next().unwrap_or(flow.source_port);
    let first_choice = flow.source_port;
    let endpoint = if flow.replaces_source() { Some(take_share(ctx, flow)?) } else { None };
    let range = ctx.services.snat.port_first..=ctx.services.snat.port_last;
    let given_back = endpoint.into_iter().flat_map(EndpointPorts::given_back).filter(move |port| range.contains(port));
    let ports = ports.clone().take(TRIED_FIRST).chain(given_back).chain(ports.skip(TRIED_FIRST));
    let hit = reserve(ctx, hash, flow, phase, ports, hop);
    if endpoint.is_some() && flow.source_port != first_choice {
        ctx.counters.conntrack.snat_searched.add(1);
    }
    if let (Err(reason), Some(endpoint)) = (&hit, endpoint) {
        match reason {
            Reason::SnatPortsExhausted => ctx.table.snat_ports().give_back_unfound(flow, endpoint),
            _ => ctx.table.snat_ports().give_back(flow),
        }
    }
    hit
}

/// Counts a source port for a flow before the search for one.
#[inline(always)]
fn take_share<'c>(ctx: &Context<'c>, flow: &Flow) -> Result<EndpointPorts<'c>, Reason> {
    ctx.table.snat_ports().take(flow, ctx.services.snat.holder_max()).map_err(|none| match none {
        NoPort::Share => Reason::SnatShare,
        NoPort::Exhausted => Reason::SnatPortsExhausted,
    })
}

/// Reserves both keys of a flow, announces its reply and sets it live.
#[inline(always)]
fn reserve(
    ctx: &mut Context<'_>,
    hash: u64,
    flow: &mut Flow,
    phase: Phase,
    ports: impl Iterator<Item = u16> + Clone,
    hop: NextHopId,
) -> Result<Hit, Reason> {
    let replaced = flow.replaces_source();
    let mut tries = 0;
    let pending = loop {
        match ctx.table.reserve(flow, hash, phase, ctx.now_ms, ports.clone()) {
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
    ctx.table.set_hop(&pending, ctx.routes.generation, hop);
    if created.announced && !ctx.filter.is_none_or(|f| f.insert(&created.reply())) {
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
