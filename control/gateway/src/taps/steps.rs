//! The decisions about a watched packet, in words.

use nomagic_core::conntrack::Remembered;
use nomagic_core::frame::{Verdict, Wait};
use nomagic_core::observe::FlowFate;
use nomagic_core::reject::{Answer, Error};
use nomagic_core::routes::Resolution;
use nomagic_core::services::{AddressKind, ClientClass, SnatCause, Source};
use nomagic_core::tap::{Decided, Notes, Outcome};
use nomagic_core::tuple::words_addr;
use nomagic_core::wire::tcp;
use nomagic_table::objects::addr;
use nomagic_xsk::TapPacket;

use super::TapNames;
use crate::flows::state_of;

/// The steps of a packet, in the order of the packet path.
pub(super) fn of(names: &TapNames<'_>, packet: &TapPacket, service: Option<&str>) -> Vec<String> {
    let notes = &packet.notes;
    let mut steps = vec![received(names, packet)];
    steps.extend(known(packet, service));
    if let Some(decided) = &notes.decided {
        steps.push(decision(decided, notes.remembered, service));
    }
    steps.extend(notes.remembered.and_then(remembered));
    steps.extend(notes.next_hop.map(|resolution| way(names, &resolution)));
    steps.extend(source(notes));
    steps.extend(opened(notes));
    steps.extend(notes.rejected.map(|(_, answer, sent)| told(answer, sent)));
    steps.push(verdict(names, packet));
    steps
}

fn flags(notes: &Notes) -> String {
    let names = [(tcp::SYN, "SYN"), (tcp::FIN, "FIN"), (tcp::RST, "RST"), (tcp::ACK, "ACK")];
    names.iter().filter(|(flag, _)| notes.tcp_flags & flag != 0).map(|(_, name)| format!(" {name}")).collect()
}

fn received(names: &TapNames<'_>, packet: &TapPacket) -> String {
    let again = if packet.resubmitted { ", which was held until now," } else { "" };
    let what = packet.notes.packet.map_or("a frame that is no packet of a connection".into(), |t| {
        let ends = (addr::socket(t.src_addr(), t.sport), addr::socket(t.dst_addr(), t.dport));
        format!("{}{} {} -> {}", t.proto, flags(&packet.notes), ends.0, ends.1)
    });
    format!("Worker {} takes {what}{again} of {} bytes from {}.", packet.worker, packet.received.len, names.port(packet.port))
}

fn known(packet: &TapPacket, service: Option<&str>) -> Option<String> {
    let (phase, seen_ms, fate) = packet.notes.known?;
    let idle_ms = (packet.at_ns / 1_000_000).saturating_sub(seen_ms);
    let whose = if packet.notes.is_reply { "a reply of the" } else { "of the" };
    let of = service.map_or(String::new(), |service| format!(" to {service}"));
    let flow = format!("It is {whose} known flow{of}, which is {} and was last seen {idle_ms} ms ago", state_of(phase));
    Some(match fate {
        FlowFate::Continues => format!("{flow}: it goes where the flow goes."),
        FlowFate::TimedOut => format!("{flow}: too long ago, the flow ends."),
        FlowFate::Replaced => format!("{flow}: the flow is closed, and the packet opens a new one from the same port."),
    })
}

fn decision(decided: &Decided, client: Option<Remembered>, service: Option<&str>) -> String {
    let of = match &decided.matched {
        None => String::new(),
        Some((_, kind, client)) => {
            format!(" {} is {} of {};", client_text(*client), kind_text(*kind), service.unwrap_or("a Service"))
        }
    };
    match &decided.outcome {
        Outcome::Pass(reason) => format!("No flow is known, and no Service is concerned: {}.", reason.text()),
        Outcome::Drop(reason) => format!("No flow is known.{of} dropped: {}.", reason.text()),
        Outcome::Reject(reason) => format!("No flow is known.{of} refused: {}.", reason.text()),
        // The hash names another one, perhaps.
        Outcome::Forward { backend, candidates, .. } if client == Some(Remembered::Kept) => format!(
            "No flow is known.{of} {candidates} endpoint(s) may answer. The Service has session affinity: the client's earlier connections went to {}, \
             and so does this one.",
            addr::socket(backend.addr, backend.port)
        ),
        Outcome::Forward { backend, candidates, slot, .. } => format!(
            "No flow is known.{of} {candidates} endpoint(s) may answer, and the hash of the addresses and ports names slot {slot} of the Maglev table: {}.",
            addr::socket(backend.addr, backend.port)
        ),
    }
}

fn client_text(client: ClientClass) -> &'static str {
    match client {
        ClientClass::Pod => "The client is a pod, and the destination",
        ClientClass::Node => "The client is this node, and the destination",
        ClientClass::External => "The client is outside of the cluster, and the destination",
    }
}

fn kind_text(kind: AddressKind) -> &'static str {
    match kind {
        AddressKind::ClusterIp => "a cluster IP",
        AddressKind::NodePort => "a node port",
        AddressKind::ExternalIp => "an external IP",
        AddressKind::LoadBalancer => "a load balancer IP",
    }
}

fn remembered(remembered: Remembered) -> Option<String> {
    match remembered {
        Remembered::Nothing => Some("The Service has session affinity, and the client is new: the hash decides.".into()),
        Remembered::EndpointGone => Some("The Service has session affinity, but the client's endpoint is gone: the hash decides.".into()),
        Remembered::Kept => None,
    }
}

fn way(names: &TapNames<'_>, resolution: &Resolution) -> String {
    match resolution {
        Resolution::Hop(id) => match names.routes.hop(*id) {
            Some(hop) => {
                let mac = hop.dst_mac().map(|byte| format!("{byte:02x}")).join(":");
                format!("The way on is {}, to the MAC address {mac}.", names.port(hop.port))
            }
            None => "The way on has changed since.".into(),
        },
        Resolution::Kernel { .. } => "The way on leads over the kernel.".into(),
        Resolution::Ask(wanted) => {
            format!("The next hop is {} on {}; its MAC address is not known yet.", wanted.addr, names.port(wanted.port))
        }
        Resolution::Nowhere(reason) => format!("There is no way on: {}.", reason.text()),
    }
}

fn source(notes: &Notes) -> Option<String> {
    let v6 = notes.packet.is_some_and(|packet| packet.v6);
    let cause = match notes.decided.as_ref().map(|decided| &decided.outcome) {
        Some(Outcome::Forward { snat, .. }) => *snat,
        _ => None,
    };
    Some(match notes.source? {
        Ok(Source::Client) => "The endpoint sees the client's own address.".into(),
        Ok(Source::Replaced(words)) => {
            let why = match cause {
                _ if notes.needs_internal => "answers come back only to the address that the kernel routes to nomagic",
                Some(SnatCause::Hairpin) => "the endpoint is the client itself",
                Some(SnatCause::Masquerade) => "the Service's address and the client's place ask for it (masquerade)",
                None => "the way on asks for it",
            };
            format!("The endpoint sees {} in place of the client: {why}.", words_addr(words, v6))
        }
        Err(reason) => format!("There is no source address for it: {}.", reason.text()),
    })
}

fn opened(notes: &Notes) -> Option<String> {
    let (original, new) = notes.flow().filter(|_| notes.opened)?;
    let (from, to) = (addr::socket(new.src_addr(), new.sport), addr::socket(new.dst_addr(), new.dport));
    Some(format!("A new flow is known: {} goes on as {from} -> {to}.", addr::socket(original.src_addr(), original.sport)))
}

fn told(answer: Answer, sent: bool) -> String {
    let what = match answer {
        Answer::Reset => "a TCP reset",
        Answer::Abort => "an SCTP ABORT",
        Answer::Icmp(Error::PortUnreachable) => "ICMP port unreachable",
        Answer::Icmp(Error::TimeExceeded) => "ICMP time exceeded",
        Answer::Icmp(Error::TooBig(_)) => "ICMP packet too big",
        Answer::Icmp(_) => "ICMP unreachable",
    };
    if sent {
        format!("Its sender gets {what}.")
    } else {
        format!("Its sender is not told ({what}): a limit is reached, or such a packet is never answered.")
    }
}

fn verdict(names: &TapNames<'_>, packet: &TapPacket) -> String {
    match packet.verdict {
        Verdict::Forward(port, _) => format!("Forwarded by {}.", names.port(port)),
        Verdict::Fragment(port, _, mtu) => format!("Forwarded by {} in fragments of at most {mtu} bytes.", names.port(port)),
        Verdict::Kernel(reason) => format!("Left to the kernel: {}.", reason.text()),
        Verdict::Drop(reason) => format!("Dropped: {}.", reason.text()),
        Verdict::Hold(Wait::Neighbour(_)) => "Held until the next hop answers.".into(),
        Verdict::Hold(Wait::Fragments(_)) => "Held until the other fragments are there.".into(),
    }
}
