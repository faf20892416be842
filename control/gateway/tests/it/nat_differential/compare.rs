//! What became of a packet in one world, and in both.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use nomagic_core_fixtures::reassemble;

use super::generate::{Conversation, Side, Step, What};
use super::packet::{Form, Id, LINK_LEN, Role, Special, addresses, is_fragment};
use super::seen::{Seen, id_of, quote_of};
use super::world::{is_gateways, is_snat};

/// What arrived of one packet, or because of it.
#[derive(Default)]
pub struct Outcome {
    /// Whole packets, and the side where they have arrived.
    packets: Vec<(Side, Vec<u8>)>,
    /// Fragments that are no whole datagram.
    pieces: Vec<(Side, Vec<u8>)>,
}

/// Relates what arrived to the conversations of a batch. Returns also the fragments that belong to none of them, and errors about these: what has waited
/// in vain for another fragment goes on seconds afterwards.
///
/// # Panics
/// If something else belongs to none of them.
pub fn outcomes<'a>(batch: &[Conversation], arrived: &'a [Vec<Vec<u8>>; 2]) -> (Vec<Outcome>, Vec<&'a [u8]>) {
    let mut late = Vec::new();
    let mut outcomes: Vec<_> = batch.iter().map(|_| Outcome::default()).collect();
    let mut fragments: BTreeMap<(usize, usize, Vec<u8>), Vec<Vec<u8>>> = BTreeMap::new();
    for (side, packets) in [Side::Client, Side::Endpoint].into_iter().zip(arrived) {
        for packet in packets {
            let Some(place) = owner(batch, packet) else {
                let quoted = quote_of(packet).is_some_and(|quote| quote.len() > 44 && is_fragment(quote));
                assert!(quoted || is_fragment(packet), "nobody's packet at {side:?}: {}", hex(packet));
                late.push(packet.as_slice());
                continue;
            };
            if is_fragment(packet) {
                let datagram = if packet[0] >> 4 == 6 {
                    [&packet[8..40], &packet[44..48]].concat()
                } else {
                    [&packet[12..20], &packet[4..6]].concat()
                };
                fragments.entry((place, side as usize, datagram)).or_default().push([&[0; LINK_LEN], &packet[..]].concat());
            } else {
                outcomes[place].packets.push((side, packet.clone()));
            }
        }
    }
    for ((place, side, _), pieces) in fragments {
        let side = [Side::Client, Side::Endpoint][side];
        match reassemble(&as_received(&pieces)) {
            Some(whole) => outcomes[place].packets.push((side, whole[LINK_LEN..].to_vec())),
            None => outcomes[place].pieces.extend(pieces.into_iter().map(|piece| (side, piece[LINK_LEN..].to_vec()))),
        }
    }
    (outcomes, late)
}

/// The conversation of a packet: by the number of the packet that it quotes, by its client, or by its own number, which the gateway's own errors choose
/// as they like.
fn owner(batch: &[Conversation], packet: &[u8]) -> Option<usize> {
    let (src, dst) = addresses(packet);
    let of = |id: Id| batch.iter().position(|c| c.id == id && c.v6() == src.is_ipv6());
    let by_client = || batch.iter().position(|c: &Conversation| [src, dst].contains(&c.client.0));
    let quoted = quote_of(packet).and_then(id_of);
    let own = id_of(packet).filter(|_| quoted.is_none() || !is_gateways(src));
    quoted.and_then(of).or_else(by_client).or_else(|| own.and_then(of))
}

/// The fragments that a receiver keeps: one whose bytes are all there already is none (RFC 5722; inet_frag_queue_insert in Linux).
fn as_received(pieces: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let range = |piece: &[u8]| {
        let word = |at: usize| usize::from(u16::from_be_bytes([piece[at], piece[at + 1]]));
        match piece[LINK_LEN] >> 4 {
            6 => (word(56) & 0xfff8, (word(56) & 0xfff8) + word(18) - 8),
            _ => ((word(20) & 0x1fff) * 8, (word(20) & 0x1fff) * 8 + word(16) - 20),
        }
    };
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for piece in pieces {
        let (start, end) = range(piece);
        if !kept.iter().any(|other| range(other).0 <= start && end <= range(other).1) {
            kept.push(piece.clone());
        }
    }
    kept
}

impl Outcome {
    /// Notes the last packet, but for ICMP, that has arrived at each side.
    pub fn remember(&self, arrived: &mut [Option<Vec<u8>>; 2]) {
        for (side, packet) in &self.packets {
            if Seen::read(packet, *side, None).is_some_and(|seen| seen.error.is_none()) {
                arrived[*side as usize] = Some(packet.clone());
            }
        }
    }

    /// What arrived, in terms that do not depend on who translated. `sent`: the last packets that both sides have sent.
    pub fn seen(&self, conversation: &Conversation, number: usize, sent: &[Option<Vec<u8>>; 2]) -> Vec<Seen> {
        let is_error = matches!(conversation.steps[number].what, What::Error(_));
        let read = |(side, packet): &(Side, Vec<u8>)| {
            let seen = Seen::read(packet, *side, sent[*side as usize].as_deref());
            let mut seen = seen.unwrap_or_else(|| panic!("an unreadable packet at {side:?}: {}", hex(packet)));
            if *side == Side::Endpoint && conversation.snat && is_snat(seen.src.0) && seen.src.1 >= 1_024 {
                // Any port of the range.
                seen.src.1 = 1_024;
            }
            if !is_error && seen.error.is_some() {
                // The gateway's own, with a header of its own.
                (seen.ttl, seen.tos, seen.dont_fragment) = (0, 0, false);
            }
            seen
        };
        let mut seen: Vec<_> = self.packets.iter().map(read).collect();
        seen.sort_by_key(|seen| (seen.side as usize, seen.protocol));
        seen
    }
}

/// A packet, and what became of it in both worlds.
pub struct Case<'c> {
    pub conversation: &'c Conversation,
    pub number: usize,
    /// As nomagic got it.
    pub frames: &'c [Vec<u8>],
    pub kernel: &'c [Seen],
    pub nomagic: &'c [Seen],
}

impl Case<'_> {
    pub fn step(&self) -> &Step {
        &self.conversation.steps[self.number]
    }

    /// The packet, unless it is an ICMP error.
    pub fn form(&self) -> Option<&Form> {
        if let What::Packet(form) = &self.step().what { Some(form) } else { None }
    }

    /// What differs if one packet has arrived in each world.
    pub fn fields(&self) -> Vec<&'static str> {
        match (self.kernel, self.nomagic) {
            ([kernel], [nomagic]) => kernel.differing(nomagic),
            _ => vec!["number of packets"],
        }
    }

    /// The kind that the packet counts for.
    pub fn kind(&self) -> String {
        let Conversation { proto, .. } = self.conversation;
        let family = if self.conversation.v6() { "IPv6" } else { "IPv4" };
        let what = match &self.step().what {
            What::Error(error) => {
                let from = if error.by_router { "a router" } else { "the receiver" };
                let checksum = if error.right_checksum { "" } else { ", wrong checksum" };
                let checksum = if error.in_pieces { format!("{checksum}, in pieces") } else { checksum.to_owned() };
                let checksum = if error.ttl < 2 { format!("{checksum}, ttl {}", error.ttl) } else { checksum };
                return format!("{family}: ICMP error of type {} by {from}, quote {:?}{checksum}", error.kind, error.quote);
            }
            What::Packet(form) => match (&form.special, form.role) {
                (_, Role::Stray(stray)) => format!("of an unknown connection, {stray:?}"),
                (Special::Nothing, _) => "plain".into(),
                (Special::Length(len), _) => format!("{len} bytes"),
                (Special::Hops, _) => format!("hops {}", form.ttl),
                (Special::Options(name, _), _) => format!("options {name}"),
                (Special::Extensions(name, headers), _) => format!("extension headers {name}, {}", headers.len()),
                (Special::NoChecksum, _) => "no checksum".into(),
                (Special::Damage(damage), _) => format!("damage {damage:?}"),
                (Special::Trailer(_), _) => "trailer".into(),
                (Special::Fragments { cut, .. }, _) => format!("fragments {cut:?}{}", if form.ttl < 2 { ", their TTL ends" } else { "" }),
            },
        };
        format!("{family}: {what} ({proto})")
    }

    /// What names an unknown difference.
    pub fn signature(&self) -> String {
        let brief = |seen: &[Seen]| -> String {
            let words = seen.iter().map(|seen| match &seen.error {
                Some(error) => format!("ICMP {}/{} at {:?}", error.kind, error.code, seen.side),
                None => format!("protocol {} at {:?}", seen.protocol, seen.side),
            });
            words.collect::<Vec<_>>().join(", ")
        };
        let snat = if self.conversation.snat { "with SNAT" } else { "without SNAT" };
        format!(
            "{} from the {:?}, {snat}: kernel [{}], nomagic [{}]: {:?}",
            self.kind(),
            self.step().from,
            brief(self.kernel),
            brief(self.nomagic),
            self.fields()
        )
    }

    /// The whole case, for people.
    pub fn show(&self, raw: [&Outcome; 2]) -> String {
        let mut text = format!("conversation {:?}\nstep {}\n", self.conversation, self.number);
        self.frames.iter().for_each(|frame| _ = writeln!(text, "  sent {}", hex(frame)));
        for (name, raw, seen) in [("the kernel", raw[0], self.kernel), ("nomagic", raw[1], self.nomagic)] {
            _ = writeln!(text, "  {name}: {seen:x?}");
            raw.packets.iter().for_each(|(side, packet)| _ = writeln!(text, "    at {side:?} {}", hex(packet)));
            raw.pieces.iter().for_each(|(side, packet)| _ = writeln!(text, "    a piece at {side:?} {}", hex(packet)));
        }
        text
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
