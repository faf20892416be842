//! Frames in sequence: flows of clients and backends, honest and forged, while routes, Services, time and processes change.
//!
//! An input is a sequence of steps, see [`Run::step`]. Each batch of frames goes through two worlds, see [`twin`]; after each step everything
//! in [`model`] must hold.

mod frames;
mod model;
mod scene;
mod twin;

use std::net::{IpAddr, SocketAddr};

use nomagic_core::frame::{PortId, Verdict};
use nomagic_core::tuple::{Proto, Tuple, splitmix64};
use nomagic_core_fixtures::{ACK, CLIENTS, INTERNAL, PODS, SYN, SYN_ACK, Spec};

use crate::input::Input;
use frames::{Sent, build, disguise, flags, fragments, icmp};
use model::{Model, Step, next_number};
use scene::{PROTOS, client, routes_in, service, services_in};
use twin::{Live, Twin, WORKERS};

const STEPS_MAX: usize = 300;
const TALKS_MAX: usize = 24;
const HELD_MAX: usize = 8;
const BATCH_MAX: usize = 8;
const CAPACITIES: [u32; 8] = [64, 4, 5, 8, 16, 24, 100, 512];
const FILTER_BUCKETS: [usize; 4] = [16, 1, 2, 4];
/// How far time goes in one step, milliseconds.
const TIMES_MS: [u64; 12] = [1, 90, 300, 1_000, 2_100, 5_100, 10_000, 31_000, 61_000, 121_000, 301_000, 90_000_000];
/// Numbers that are not the right ones, by their distance.
const WRONG: [u32; 6] = [1, u32::MAX, 1 << 15, 1 << 17, 1 << 31, 0x2345_6789];

/// A connection as its ends see it.
#[derive(Clone, Copy)]
struct Talk {
    proto: Proto,
    port: PortId,
    client: SocketAddr,
    service: SocketAddr,
    /// The backend, and the peer that it sees.
    backend: Option<(SocketAddr, SocketAddr)>,
    client_next: u32,
    backend_next: u32,
}

/// A frame of a connection, and what its sender learns when it gets through.
struct Packet {
    sent: Sent,
    talk: Option<usize>,
    from_backend: bool,
    /// The sender's next number; `None`: it has forged this one.
    next: Option<u32>,
}

struct Run<'i> {
    input: Input<'i>,
    twin: Twin,
    model: Model,
    talks: Vec<Talk>,
    held: Vec<Sent>,
    /// The flows after the last step.
    flows: Vec<Live>,
    now_ms: u64,
    /// The worker that gets the next batch, and how far its clock is behind.
    worker: usize,
    behind_ms: u64,
    generation: u64,
    random: u64,
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (capacity, buckets, state) = (input.one(&CAPACITIES), input.one(&FILTER_BUCKETS), input.byte());
    let random = u64::from(input.byte());
    let twin = Twin::new(&services_in(state.into()), capacity, buckets);
    let mut run = Run {
        input,
        twin,
        model: Model::new(),
        talks: Vec::new(),
        held: Vec::new(),
        flows: Vec::new(),
        now_ms: 10_000,
        worker: 0,
        behind_ms: 0,
        generation: 1,
        random,
    };
    run.twin.set_routes(|| routes_in(0, 1));
    for _ in 0..STEPS_MAX {
        if run.input.is_empty() {
            break;
        }
        run.step();
    }
    run.finish();
}

impl Run<'_> {
    fn step(&mut self) {
        match self.input.below(32) {
            kind @ 0..=17 => {
                let packets = self.packets(kind);
                self.exchange(packets);
            }
            18 => {
                let count = 2 + self.input.below(BATCH_MAX - 1);
                let mut batch = Vec::new();
                while batch.len() < count {
                    let kind = self.input.below(18);
                    batch.extend(self.packets(kind));
                }
                self.exchange(batch);
            }
            19..=20 => self.flood(),
            21..=23 => self.now_ms += self.input.one(&TIMES_MS),
            24 => (self.worker, self.behind_ms) = (self.input.below(WORKERS), self.input.one(&[0, 0, 1, 255, 400])),
            25 => self.change_routes(),
            26 => {
                let services = services_in(self.input.byte().into());
                self.twin.each(|world| world.services = services.clone());
            }
            27 => self.sweep(),
            28 => self.end(),
            29 => self.submit_again(),
            30 => self.restart(),
            _ => self.handshake(),
        }
    }

    /// One frame, or the fragments of one.
    fn packets(&mut self, kind: usize) -> Vec<Packet> {
        let one = match kind {
            0..=3 => self.open(),
            4..=9 => self.of_client(),
            10..=15 => self.of_backend(),
            16 => self.message(),
            _ => self.raw(),
        };
        let Some(packet) = one else { return Vec::new() };
        vec![packet]
    }

    /// A client's first packet.
    fn open(&mut self) -> Option<Packet> {
        let (which, what, port) = (self.input.byte(), self.input.byte(), self.input.byte());
        let v6 = which & 0x80 != 0;
        let proto = PROTOS[usize::from(what >> 4) % 3];
        let (in_port, addr) = client(usize::from(which) % 6, v6);
        let sport = 40_000 + u16::from(port % 32);
        let dport = if port < 0xf0 { 80 } else { 81 };
        let addrs = (SocketAddr::new(addr, sport), SocketAddr::new(service(usize::from(what & 15), v6), dport));
        let known = self.talks.iter().position(|talk| (talk.proto, talk.client, talk.service) == (proto, addrs.0, addrs.1));
        let first = splitmix64(&mut self.random) as u32;
        let talk = Talk { proto, port: in_port, client: addrs.0, service: addrs.1, backend: None, client_next: first, backend_next: 0 };
        let place = match known {
            Some(place) => {
                self.talks[place].client_next = first;
                place
            }
            None if self.talks.len() < TALKS_MAX => {
                self.talks.push(talk);
                self.talks.len() - 1
            }
            None => {
                let place = usize::from(port) % TALKS_MAX;
                self.talks[place] = talk;
                place
            }
        };
        Some(self.packet(place, false, SYN, 0))
    }

    fn talk(&mut self) -> Option<usize> {
        let n = self.input.byte();
        (!self.talks.is_empty()).then(|| usize::from(n) % self.talks.len())
    }

    fn of_client(&mut self) -> Option<Packet> {
        let (talk, flags, payload) = (self.talk()?, flags(self.input.byte()), self.input.one(&[0, 0, 1, 32, 700, 1_440]));
        Some(self.packet(talk, false, flags, payload))
    }

    fn of_backend(&mut self) -> Option<Packet> {
        let (talk, flags, payload) = (self.talk()?, flags(self.input.byte()), self.input.one(&[0, 0, 1, 32, 700, 1_440]));
        self.talks[talk].backend?;
        Some(self.packet(talk, true, flags, payload))
    }

    /// A packet of a connection, disguised or not.
    fn packet(&mut self, talk: usize, from_backend: bool, flags: u8, payload: usize) -> Packet {
        let (mut packet, spec) = self.plain_packet(talk, from_backend, flags, payload);
        disguise(&mut packet.sent, &spec, &mut self.input);
        packet
    }

    /// A packet of a connection, with right numbers or others.
    fn plain_packet(&mut self, talk: usize, from_backend: bool, flags: u8, payload: usize) -> (Packet, Spec) {
        let of = self.talks[talk];
        let (mut sequence, mut acknowledgment) =
            if from_backend { (of.backend_next, of.client_next) } else { (of.client_next, of.backend_next) };
        let how = self.input.byte();
        let mut forged = false;
        if how & 0xc0 == 0xc0 {
            let distance = self.input.one(&WRONG);
            let both = [&mut sequence, &mut acknowledgment];
            both.into_iter().enumerate().filter(|(i, _)| how >> i & 1 == 1).for_each(|(_, number)| *number = number.wrapping_add(distance));
            forged = true;
        }
        let (src, dst) = match of.backend {
            Some((backend, peer)) if from_backend => (backend, peer),
            _ => (of.client, of.service),
        };
        let ttl = [64, 64, 64, 64, 64, 2, 1, 0][usize::from(how >> 2 & 7)];
        let spec = Spec { proto: of.proto, src, dst, flags, ttl, payload, sequence, acknowledgment };
        let port = match (from_backend, how >> 5 & 1) {
            (false, _) => of.port,
            (true, 0) => self.port_of(src.ip()),
            (true, _) => [CLIENTS, PODS, INTERNAL][self.input.below(3)],
        };
        let (sent, next) = (Sent::new(port, build(&spec, port)), (!forged).then(|| next_number(sequence, flags, payload)));
        (Packet { sent, talk: Some(talk), from_backend, next }, spec)
    }

    /// The port that a backend's packets come in by.
    fn port_of(&self, backend: IpAddr) -> PortId {
        [PODS, CLIENTS, INTERNAL].into_iter().find(|port| self.twin.routes().leads_by(backend, *port)).unwrap_or(PODS)
    }

    /// An ICMP message, or fragments.
    fn message(&mut self) -> Option<Packet> {
        let place = self.talk()?;
        let (what, id) = (self.input.byte(), self.input.byte());
        let (packet, _) = self.plain_packet(place, what & 1 == 1 && self.talks[place].backend.is_some(), ACK, 64);
        let (talk, bytes) = (self.talks[place], &packet.sent.bytes);
        let made = match what >> 1 & 3 {
            0 => icmp(talk.client, talk.service, id, &bytes[14..bytes.len().min(70)]),
            n => fragments(bytes, u16::from(id % 4))?[usize::from(n) & 1].clone(),
        };
        Some(Packet { sent: Sent::new(packet.sent.port, made), talk: None, from_backend: false, next: None })
    }

    /// Any bytes.
    fn raw(&mut self) -> Option<Packet> {
        let (port, len) = (self.input.below(4), self.input.byte());
        let bytes = self.input.bytes(len.into()).to_vec();
        Some(Packet { sent: Sent::new(PortId(port as u16), bytes), talk: None, from_backend: false, next: None })
    }

    /// Gives a batch to a worker, checks what comes out, and lets the senders learn from it.
    fn exchange(&mut self, packets: Vec<Packet>) {
        if packets.is_empty() {
            return;
        }
        let batch: Vec<Sent> = packets.iter().map(|packet| packet.sent.clone()).collect();
        let verdicts = self.process(&batch, true);
        for (packet, verdict) in packets.iter().zip(verdicts) {
            if let (Some(place), Verdict::Forward(..) | Verdict::Fragment(..)) = (packet.talk, verdict) {
                self.learn(place, packet);
            }
        }
    }

    fn process(&mut self, batch: &[Sent], whole: bool) -> Vec<Verdict> {
        let now_ms = self.now_ms - self.behind_ms;
        let outcome = self.twin.process(self.worker, now_ms, batch);
        let before = self.look();
        self.model.check(
            &mut self.twin,
            &Step { now_ms, batch, outcome: &outcome, before: &before, after: &self.flows, whole },
            self.now_ms,
        );
        for (sent, (verdict, _)) in batch.iter().zip(&outcome.done) {
            if matches!(verdict, Verdict::Hold(_)) && self.held.len() < HELD_MAX {
                self.held.push(Sent { resubmitted: true, ..sent.clone() });
            }
        }
        outcome.done.iter().map(|(verdict, _)| *verdict).collect()
    }

    /// A packet got through: the other end knows its numbers now.
    fn learn(&mut self, place: usize, packet: &Packet) {
        let talk = &mut self.talks[place];
        if packet.from_backend {
            talk.backend_next = packet.next.unwrap_or(talk.backend_next);
            return;
        }
        talk.client_next = packet.next.unwrap_or(talk.client_next);
        let Some(original) = Tuple::new(talk.proto, talk.client.ip(), talk.client.port(), talk.service.ip(), talk.service.port()) else {
            return;
        };
        let Some(hit) = self.twin.lookup(&original) else { return };
        let (backend, peer) = (SocketAddr::new(hit.new.dst_addr(), hit.new.dport), SocketAddr::new(hit.new.src_addr(), hit.new.sport));
        if talk.backend != Some((backend, peer)) {
            talk.backend_next = splitmix64(&mut self.random) as u32;
        }
        talk.backend = Some((backend, peer));
    }

    /// A whole handshake, so that later steps meet established connections.
    fn handshake(&mut self) {
        let Some(syn) = self.open() else { return };
        let place = syn.talk;
        self.exchange(vec![syn]);
        let Some(place) = place.filter(|place| self.talks[*place].backend.is_some()) else { return };
        for (from_backend, flags) in [(true, SYN_ACK), (false, ACK), (true, ACK)] {
            let packet = self.packet(place, from_backend, flags, 0);
            self.exchange(vec![packet]);
        }
    }

    /// First packets from forged addresses.
    fn flood(&mut self) {
        let (what, count) = (self.input.byte(), 1 + self.input.byte() % 64);
        let proto = PROTOS[usize::from(what >> 4) % 3];
        let service = SocketAddr::new(service(usize::from(what & 15), false), 80);
        for i in 0..count {
            let random = splitmix64(&mut self.random);
            let src = SocketAddr::new([10, 0, (random >> 8) as u8 & 3, random as u8].into(), (random >> 32) as u16);
            let spec = Spec { proto, src, dst: service, flags: SYN, ttl: 64, payload: 0, sequence: random as u32, acknowledgment: 0 };
            self.process(&[Sent::new(CLIENTS, build(&spec, CLIENTS))], i + 1 == count);
        }
    }

    /// Looks at the flows. Returns those before.
    fn look(&mut self) -> Vec<Live> {
        std::mem::replace(&mut self.flows, self.twin.flows())
    }

    fn change_routes(&mut self) {
        let state = self.input.byte().into();
        self.generation += 1;
        let generation = self.generation;
        self.twin.set_routes(|| routes_in(state, generation));
    }

    fn sweep(&mut self) {
        let (places, now_ms) = (self.input.one(&[u32::MAX, 1, 3, 16]), self.now_ms - self.behind_ms);
        self.twin.sweep(self.worker, now_ms, places);
        for live in self.look() {
            let (expired, stays) = (self.model.expired(&live, now_ms), self.flows.contains(&live));
            assert!(expired || stays, "the sweep has ended {live:?}");
            assert!(!expired || places != u32::MAX || !stays, "the sweep has missed {live:?}");
        }
        self.model.tables(&mut self.twin, &self.flows, self.now_ms);
    }

    fn end(&mut self) {
        let n = self.input.byte();
        if self.flows.is_empty() {
            return;
        }
        let live = self.flows[usize::from(n) % self.flows.len()];
        assert!(self.twin.end(&live.flow.original()));
        let before = self.look();
        assert!(before.iter().filter(|other| **other != live).eq(&self.flows), "more than one flow has ended");
        self.model.tables(&mut self.twin, &self.flows, self.now_ms);
    }

    fn submit_again(&mut self) {
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.process(&held, true);
        }
    }

    fn restart(&mut self) {
        let in_order = self.input.byte() & 1 == 1;
        self.twin.restart(self.now_ms, in_order);
        self.look();
        self.model.tables(&mut self.twin, &self.flows, self.now_ms);
    }

    /// Ends all flows: nothing is left of them.
    fn finish(mut self) {
        for live in &self.flows {
            assert!(self.twin.end(&live.flow.original()));
        }
        self.look();
        assert!(self.flows.is_empty());
        assert_eq!(crate::index_entries(&self.twin.world().table_words), 0, "entries that name nobody");
        self.model.tables(&mut self.twin, &[], self.now_ms);
        let shares = self.twin.world().with(|ctx| (ctx.table.snat_ports().largest_shares(), ctx.table.snat_ports().fullest_endpoint()));
        assert_eq!((shares.0.client, shares.0.service, shares.1), (0, 0, 0));
    }
}
