//! The taps that clients of the control socket have opened: for `nomagic capture` and `nomagic trace --packets`.

mod steps;

use std::time::{Duration, Instant};

use nomagic_api::taps::{LASTS_MAX_S, PACKET_SCHEMA, READ_EVERY_S, TapPage, TapRequest, TappedFrame, TappedPacket};
use nomagic_core::frame::{PortId, Verdict};
use nomagic_core::routes::Routes;
use nomagic_core::services::Services;
use nomagic_core::tap::Notes;
use nomagic_table::objects::addr;
use nomagic_xsk::{Edge, SNAP_LEN_MAX, Snap, TAPS_MAX, TapOptions, TapPacket, TapReader};

use crate::clock::WallClock;
use crate::flows::{Selection, service_name};

/// Packets in a page at the most.
const PAGE_PACKETS_MAX: usize = 2_048;
/// Bytes of packets in a page at the most, but for its last packet.
const PAGE_BYTES_MAX: usize = 8 << 20;
/// Packets that a tap may watch in a second at the most.
const PACKETS_PER_S_MAX: u32 = 1_000_000;

/// All open taps, the oldest first.
#[derive(Default, Debug)]
pub struct Taps {
    /// The number of the tap that was opened last.
    last_id: u64,
    open: Vec<OpenTap>,
}

#[derive(Debug)]
struct OpenTap {
    id: u64,
    reader: TapReader,
    read_at: Instant,
    ends: Instant,
}

/// What names the things in a packet's story.
pub struct TapNames<'n> {
    pub services: &'n Services,
    pub routes: &'n Routes,
    pub ports: &'n [String],
    pub clock: WallClock,
}

impl Taps {
    /// Opens a tap, and returns its number. If there are too many, the oldest one ends.
    ///
    /// # Errors
    /// The field of the request, and what it may be.
    pub fn open(&mut self, edge: &Edge, request: &TapRequest) -> Result<u64, String> {
        let options = options(request)?;
        self.tend();
        if self.open.len() == TAPS_MAX {
            self.open.remove(0);
        }
        self.last_id += 1;
        let ends = Instant::now() + options.lasts;
        self.open.push(OpenTap { id: self.last_id, reader: edge.tap(options), read_at: Instant::now(), ends });
        Ok(self.last_id)
    }

    /// What a tap has seen since it was read last.
    ///
    /// # Errors
    /// If there is no such tap.
    pub fn read(&mut self, id: u64, names: &TapNames<'_>) -> Result<TapPage, String> {
        let gone = || {
            format!(
                "tap {id} has ended: it was not read for {READ_EVERY_S} s, or {TAPS_MAX} newer ones were opened; no more are open at a time"
            )
        };
        let tap = self.open.iter_mut().find(|tap| tap.id == id).ok_or_else(gone)?;
        tap.read_at = Instant::now();
        let over = tap.ends <= tap.read_at;
        let (mut page, mut bytes, mut drained) = (TapPage::default(), 0, false);
        while page.packets.len() < PAGE_PACKETS_MAX && bytes < PAGE_BYTES_MAX {
            let Some(packet) = tap.reader.next() else {
                drained = true;
                break;
            };
            bytes += packet.received.bytes.len() + packet.sent.as_ref().map_or(0, |(_, snap)| snap.bytes.len());
            page.packets.push(names.shown(packet));
        }
        let counts = tap.reader.counts();
        (page.matched, page.limited, page.missed) = (counts.matched, counts.limited, counts.missed);
        page.ended = over && drained;
        if page.ended {
            self.close(id);
        }
        Ok(page)
    }

    /// Ends a tap. One that has ended already is none.
    pub fn close(&mut self, id: u64) {
        self.open.retain(|tap| tap.id != id);
    }

    /// Ends the taps whose readers have gone.
    pub fn tend(&mut self) {
        self.open.retain(|tap| tap.read_at.elapsed() < Duration::from_secs(READ_EVERY_S));
    }
}

fn options(request: &TapRequest) -> Result<TapOptions, String> {
    let TapRequest { filter, snap_len, packets_per_s, lasts_s } = request;
    let within = |name: &str, value: u64, most: u64| match (1..=most).contains(&value) {
        true => Ok(()),
        false => Err(format!("{name} {value}: not from 1 to {most}")),
    };
    within("snap_len", u64::from(*snap_len), SNAP_LEN_MAX as u64)?;
    within("packets_per_s", u64::from(*packets_per_s), u64::from(PACKETS_PER_S_MAX))?;
    within("lasts_s", *lasts_s, LASTS_MAX_S)?;
    if filter.state.is_some() {
        return Err("state: packets are not selected by the state of their flow".into());
    }
    let filter = Selection::parse(filter)?.packets();
    Ok(TapOptions { filter, snap_len: *snap_len as usize, packets_per_s: *packets_per_s, lasts: Duration::from_secs(*lasts_s) })
}

impl TapNames<'_> {
    fn port(&self, port: PortId) -> String {
        match self.ports.get(usize::from(port.0)) {
            _ if port == PortId::NONE => "kernel".into(),
            Some(name) => name.clone(),
            None => format!("port {}", port.0),
        }
    }

    fn frame(&self, port: PortId, snap: Snap) -> TappedFrame {
        TappedFrame { interface: self.port(port), len: snap.len as u32, bytes: snap.bytes }
    }

    fn service(&self, notes: &Notes) -> Option<String> {
        let decided = notes.decided.as_ref().and_then(|decided| decided.matched.as_ref());
        let by_address = || {
            let (original, _) = notes.flow()?;
            self.services.frontend(original.dst_addr(), original.dport, original.proto)
        };
        decided.map(|(port, ..)| service_name(port)).or_else(|| by_address().map(|frontend| service_name(&frontend.port)))
    }

    fn shown(&self, packet: TapPacket) -> TappedPacket {
        let service = self.service(&packet.notes);
        let steps = steps::of(self, &packet, service.as_deref());
        let TapPacket { at_ns, worker, port, received, sent, answer, verdict, notes, .. } = packet;
        let flow = notes.flow();
        let ends = flow.map(|(original, new)| {
            let snat = (new.src, new.sport) != (original.src, original.sport);
            (addr::socket(new.dst_addr(), new.dport), snat.then(|| addr::socket(new.src_addr(), new.sport)))
        });
        let (backend, snat) = ends.unzip();
        TappedPacket {
            schema: PACKET_SCHEMA,
            time: self.clock.time(at_ns),
            time_ns: self.clock.unix_ns(at_ns),
            worker,
            verdict: verdict_name(&verdict, &notes).to_owned(),
            reason: match verdict {
                Verdict::Drop(reason) | Verdict::Kernel(reason) => Some(reason.label().to_owned()),
                Verdict::Forward(..) | Verdict::Fragment(..) | Verdict::Hold(_) => None,
            },
            proto: notes.packet.map(|packet| packet.proto.name().to_owned()),
            source: notes.packet.map(|packet| addr::socket(packet.src_addr(), packet.sport)),
            destination: notes.packet.map(|packet| addr::socket(packet.dst_addr(), packet.dport)),
            service,
            backend,
            snat: snat.flatten(),
            steps,
            received: self.frame(port, received),
            sent: sent.map(|(port, snap)| self.frame(port, snap)),
            answer: answer.map(|(port, snap)| self.frame(port, snap)),
        }
    }
}

fn verdict_name(verdict: &Verdict, notes: &Notes) -> &'static str {
    match verdict {
        Verdict::Forward(..) => "forward",
        Verdict::Fragment(..) => "fragment",
        Verdict::Kernel(_) => "kernel",
        Verdict::Drop(_) if notes.rejected.is_some() => "reject",
        Verdict::Drop(_) => "drop",
        Verdict::Hold(_) => "hold",
    }
}

#[cfg(test)]
mod tests;
