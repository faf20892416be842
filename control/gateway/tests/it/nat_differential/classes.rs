//! Differences that are known, each with the sentence of `docs/limits.md` that explains it.

use nomagic_core::tuple::Proto;

use super::compare::Case;
use super::errors::{ErrorForm, QuoteForm};
use super::generate::{Side, What};
use super::packet::{Cut, Damage, LINK_LEN, Role, Special, Stray, is_later_fragment};
use super::seen::{Checksum, Seen};
use super::world::is_gateways;

/// A known difference.
pub struct Class {
    pub name: &'static str,
    /// A part of `docs/limits.md`.
    pub said: &'static str,
    pub is: fn(&Case<'_>) -> bool,
}

/// What is late belongs to no conversation any more, and is counted apart: fragments that nomagic gives up, and what the kernel says of those that it
/// gives up itself, in both worlds. It says so of fragments to its own address.
const LATE_FRAGMENT: &str = "late_fragment";
const MISSING_FRAGMENT: &str = "missing_fragment_reported";

/// The class of a packet that arrived late; `None`: it has none.
pub fn late(nomagic: bool, packet: &[u8]) -> Option<&'static str> {
    let seen = Seen::read(packet, Side::Client, None);
    let error = seen.filter(|seen| is_gateways(seen.src.0)).and_then(|seen| seen.error).map(|error| (error.kind, error.code));
    match (nomagic, error) {
        // Fragments, or what the kernel says where they cannot go on: their TTL ends, or they are too big.
        (true, None | Some((2 | 3 | 11, 0) | (3, 4))) => Some(LATE_FRAGMENT),
        // Fragment reassembly time exceeded.
        (_, Some((3 | 11, 1))) => Some(MISSING_FRAGMENT),
        _ => None,
    }
}

/// The first that fits counts.
pub const CLASSES: &[Class] = &[
    Class { name: "own_error_source", said: "What nomagic itself says about the way comes from its SNAT address", is: own_error_source },
    Class { name: "own_error_about_sctp", said: "The CRC of a quoted SCTP packet is right", is: own_error_about_sctp },
    Class { name: "options_unreadable", said: "The kernel answers IPv4 options that cannot be read", is: options_unreadable },
    Class { name: "options_not_filled_in", said: "no address and no time is filled in", is: options_not_filled_in },
    Class { name: "unknown_hop_by_hop_option", said: "hop-by-hop options are not read", is: unknown_hop_by_hop_option },
    Class {
        name: "damage_carried",
        said: "A packet with a wrong TCP, UDP or SCTP checksum is carried, and stays wrong",
        is: damage_carried,
    },
    Class { name: "udp_surplus", said: "UDP datagrams with bytes behind them (RFC 9868) are carried", is: udp_surplus },
    Class { name: "refused_in_silence", said: "is dropped in silence; the kernel's NAT leaves it to the node", is: refused_in_silence },
    Class { name: "tiny_first_fragment", said: "A first fragment without the whole transport header is dropped", is: tiny_first_fragment },
    Class {
        name: "first_fragment_again",
        said: "Bytes of the first fragment that come again in another one end the datagram",
        is: first_fragment_again,
    },
    Class {
        name: "error_about_first_fragment",
        said: "A fragment that cannot go on is reported by itself",
        is: error_about_first_fragment,
    },
    Class { name: "overlap_with_known_bytes", said: "A fragment whose bytes have all come is dropped alone", is: overlap_with_known_bytes },
    Class { name: LATE_FRAGMENT, said: "A later fragment waits 4 s at most for its first one", is: |_| false },
    Class { name: MISSING_FRAGMENT, said: "Nobody is told that fragments are missing", is: |_| false },
    Class { name: "reset_instead_of_snat", said: "cannot be picked up if the connection needs SNAT", is: reset_instead_of_snat },
    Class { name: "reset_of_unknown", said: "so is the sender of a FIN or SYN+ACK of an unknown connection", is: reset_of_unknown },
    Class { name: "sctp_picked_up", said: "SCTP associations are picked up in the middle", is: sctp_picked_up },
    Class { name: "error_in_pieces", said: "errors that are themselves fragmented", is: error_in_pieces },
    Class {
        name: "error_type_not_translated",
        said: "Not translated: redirects, source quench, unknown types",
        is: error_type_not_translated,
    },
    Class { name: "error_about_unknown_passed_on", said: "no known flow: left to the kernel", is: error_about_unknown_passed_on },
    Class {
        name: "error_with_other_sequence",
        said: "if a TCP connection may have sent the quoted segment",
        is: error_with_other_sequence,
    },
    Class { name: "time_exceeded_by_router", said: "Time exceeded from a router keeps that router's address", is: time_exceeded_by_router },
    Class { name: "error_about_sctp", said: "The CRC of a quoted SCTP packet is right", is: error_about_sctp },
];

/// Whether something differs, and nothing but these.
fn only(case: &Case<'_>, names: &[&str]) -> bool {
    let fields = case.fields();
    !fields.is_empty() && fields.iter().all(|field| names.contains(field))
}

fn special<'c>(case: &'c Case<'_>) -> Option<&'c Special> {
    case.form().map(|form| &form.special)
}

fn error<'c>(case: &'c Case<'_>) -> Option<&'c ErrorForm> {
    if let What::Error(error) = &case.step().what { Some(error) } else { None }
}

/// One packet of the conversation at the other side.
fn carried<'s>(case: &Case<'_>, seen: &'s [Seen]) -> Option<&'s Seen> {
    let [seen] = seen else { return None };
    (seen.side != case.step().from && seen.error.is_none() && seen.protocol == case.conversation.proto as u8).then_some(seen)
}

/// One ICMP error of the gateway to the sender.
fn answered<'s>(case: &Case<'_>, seen: &'s [Seen]) -> Option<&'s Seen> {
    let [seen] = seen else { return None };
    (seen.side == case.step().from && seen.error.is_some()).then_some(seen)
}

/// One packet that ends the conversation, from the Service.
fn reset(case: &Case<'_>, seen: &[Seen]) -> bool {
    let [seen] = seen else { return false };
    let from_service = seen.side == Side::Client && seen.error.is_none() && seen.dst == case.conversation.client;
    from_service && seen.protocol == case.conversation.proto as u8 && seen.checksum == Checksum::Right
}

/// The kernel's NAT translates also what the gateway itself says, so that it seems to come from the Service.
fn own_error_source(case: &Case<'_>) -> bool {
    let own = answered(case, case.nomagic).is_some_and(|seen| is_gateways(seen.src.0));
    own && special(case).is_some_and(|special| !matches!(special, Special::Options(..))) && only(case, &["source"])
}

/// The kernel's NAT writes a CRC of what is quoted.
fn own_error_about_sctp(case: &Case<'_>) -> bool {
    let own = answered(case, case.nomagic).is_some_and(|seen| is_exact(seen) && is_gateways(seen.src.0));
    own && case.conversation.proto == Proto::Sctp && only(case, &["source", "quote"])
}

fn options_unreadable(case: &Case<'_>) -> bool {
    let own = answered(case, case.nomagic).is_some_and(|seen| is_gateways(seen.src.0));
    own && matches!(special(case), Some(Special::Options(..))) && only(case, &["source"])
}

fn options_not_filled_in(case: &Case<'_>) -> bool {
    let Some(Special::Options(_, sent)) = special(case) else { return false };
    carried(case, case.nomagic).is_some_and(|seen| seen.options == *sent) && only(case, &["options"])
}

fn unknown_hop_by_hop_option(case: &Case<'_>) -> bool {
    let unknown = matches!(special(case), Some(Special::Extensions("unknown option", _)));
    unknown && answered(case, case.kernel).is_some() && carried(case, case.nomagic).is_some()
}

/// What the kernel does with what conntrack calls invalid: it is not translated, and dropped on its way on; to the node's own address, it is answered.
fn invalid(case: &Case<'_>) -> bool {
    let to_node = case.step().from == Side::Endpoint && case.conversation.snat;
    case.kernel.is_empty() || (to_node && answered(case, case.kernel).is_some_and(|seen| is_gateways(seen.src.0)))
}

fn damage_carried(case: &Case<'_>) -> bool {
    let damaged = matches!(special(case), Some(Special::Damage(Damage::TransportChecksum)));
    let still = |seen: &Seen| matches!(seen.checksum, Checksum::Wrong(_));
    damaged && invalid(case) && carried(case, case.nomagic).is_some_and(still)
}

fn udp_surplus(case: &Case<'_>) -> bool {
    let short = matches!(special(case), Some(Special::Damage(Damage::UdpLenShort)));
    short && invalid(case) && carried(case, case.nomagic).is_some_and(|seen| seen.checksum == Checksum::Right)
}

fn refused_in_silence(case: &Case<'_>) -> bool {
    let wrong = matches!(special(case), Some(Special::Damage(_) | Special::Fragments { cut: Cut::Contained, .. }));
    let to_node = case.step().from == Side::Endpoint && case.conversation.snat;
    let of_node = |seen: &Seen| seen.side == Side::Endpoint && seen.error.is_some() && is_gateways(seen.src.0);
    wrong
        && to_node
        && case.kernel.len() == case.nomagic.len() + 1
        && case.kernel.iter().all(|seen| case.nomagic.contains(seen) || of_node(seen))
}

fn cut<'c>(case: &'c Case<'_>) -> Option<&'c Cut> {
    if let Some(Special::Fragments { cut, .. }) = special(case) { Some(cut) } else { None }
}

fn tiny_first_fragment(case: &Case<'_>) -> bool {
    cut(case) == Some(&Cut::Tiny) && !case.kernel.is_empty() && case.nomagic.is_empty()
}

fn first_fragment_again(case: &Case<'_>) -> bool {
    // What overlaps begins in the first fragment.
    let first = match cut(case) {
        Some(Cut::Contained) => !is_later_fragment(&case.frames[0][LINK_LEN..]),
        other => other == Some(&Cut::Overlaps),
    };
    let goes_on = carried(case, case.kernel).or(answered(case, case.kernel)).is_some();
    first && goes_on && case.nomagic.is_empty()
}

/// nomagic quotes the first fragment, the kernel all of the datagram, once it has it.
fn error_about_first_fragment(case: &Case<'_>) -> bool {
    // Of a part of the first one it is another packet.
    let quoted = |seen: &Seen| is_exact(seen) || cut(case) == Some(&Cut::Contained);
    let own = |seen: &Seen| seen.side == case.step().from && is_gateways(seen.src.0) && quoted(seen);
    let Some(error) = case.nomagic.first() else { return false };
    cut(case).is_some() && case.nomagic.iter().all(own) && case.kernel.iter().all(|seen| same_error(seen, error))
}

/// Whether an error quotes what was sent.
fn is_exact(seen: &Seen) -> bool {
    seen.error.as_ref().is_some_and(|error| error.quote.iter().all(|byte| *byte == 0))
}

/// Whether two errors differ in source and quote alone.
fn same_error(one: &Seen, other: &Seen) -> bool {
    one.differing(other).iter().all(|field| ["source", "quote", "quoted length"].contains(field))
}

fn overlap_with_known_bytes(case: &Case<'_>) -> bool {
    cut(case) == Some(&Cut::Overlaps) && case.kernel.is_empty() && carried(case, case.nomagic).is_some()
}

fn stray(case: &Case<'_>) -> Option<Stray> {
    if let Some(Role::Stray(stray)) = case.form().map(|form| form.role) { Some(stray) } else { None }
}

fn reset_instead_of_snat(case: &Case<'_>) -> bool {
    let data = stray(case) == Some(Stray::Data) && case.conversation.snat;
    // The kernel picks up no SCTP associations.
    let picked_up = carried(case, case.kernel).is_some() != (case.conversation.proto == Proto::Sctp);
    data && picked_up && reset(case, case.nomagic)
}

fn reset_of_unknown(case: &Case<'_>) -> bool {
    matches!(stray(case), Some(Stray::Fin | Stray::SynAck)) && case.kernel.is_empty() && reset(case, case.nomagic)
}

fn sctp_picked_up(case: &Case<'_>) -> bool {
    let sctp = case.conversation.proto == Proto::Sctp && stray(case) == Some(Stray::Data);
    sctp && case.kernel.is_empty() && carried(case, case.nomagic).is_some()
}

fn error_in_pieces(case: &Case<'_>) -> bool {
    let Some(error) = error(case).filter(|error| error.in_pieces) else { return false };
    let of_pieces = error.ttl < 2 && case.nomagic.iter().all(|seen| seen.side == case.step().from && is_gateways(seen.src.0));
    case.kernel.len() <= 1 && (case.nomagic.is_empty() || as_it_came(case) || of_pieces)
}

fn error_type_not_translated(case: &Case<'_>) -> bool {
    let types: &[u8] = if case.conversation.v6() { &[1, 2, 3, 4] } else { &[3, 11, 12] };
    error(case).is_some_and(|error| !types.contains(&error.kind)) && (case.nomagic.is_empty() || as_it_came(case))
}

/// Whether the kernel has sent an error of the endpoint's side to the client as it came.
fn as_it_came(case: &Case<'_>) -> bool {
    let [seen] = case.nomagic else { return false };
    case.step().from == Side::Endpoint
        && !case.conversation.snat
        && seen.side == Side::Client
        && seen.error.is_some()
        && !is_gateways(seen.src.0)
}

fn error_about_unknown_passed_on(case: &Case<'_>) -> bool {
    use QuoteForm::*;
    let unknown = [Ports, CutInHeader, WrongSourcePort, WrongDestinationPort, WrongSource, WrongDestination, LaterFragment];
    error(case).is_some_and(|error| unknown.contains(&error.quote)) && case.kernel.is_empty() && as_it_came(case)
}

fn error_with_other_sequence(case: &Case<'_>) -> bool {
    let other = error(case).is_some_and(|error| error.quote == QuoteForm::WrongSequence);
    other && case.conversation.proto == Proto::Tcp && case.kernel.len() == 1 && case.nomagic.is_empty()
}

fn is_time_exceeded(case: &Case<'_>) -> bool {
    error(case).is_some_and(|error| error.by_router && error.kind == if case.conversation.v6() { 3 } else { 11 })
}

fn time_exceeded_by_router(case: &Case<'_>) -> bool {
    let [seen] = case.nomagic else { return false };
    is_time_exceeded(case) && seen.src.0 == super::world::router(case.conversation.v6(), case.step().from) && only(case, &["source"])
}

fn error_about_sctp(case: &Case<'_>) -> bool {
    let fields: &[&str] = if is_time_exceeded(case) { &["source", "quote"] } else { &["quote"] };
    error(case).is_some() && case.conversation.proto == Proto::Sctp && only(case, fields)
}
