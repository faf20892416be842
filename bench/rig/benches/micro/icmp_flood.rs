//! Packets of established TCP connections beside forged ICMP errors of a sender who is not on their way: as many errors as packets, a million of each
//! a second by the clock of the packet path. The errors come in by the clients' port.

use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use nomagic_core::frame::{BATCH_MAX, Frame, Outputs, Verdict};
use nomagic_core::pipeline::{Context, process};
use nomagic_core::tuple::{Tuple, fast_range, splitmix64};
use nomagic_core_fixtures::{ACK, CLIENTS, IcmpSpec, PODS, SYN, Spec, World, ip, services, spec};

use super::rig::{FRAME_BYTES, FRAMES, Rig};
use super::rows::Row;

/// Clients, and the connections of each.
const HOSTS: u32 = 200;
const CONNECTIONS: u32 = 64;
const SERVICE: &str = "10.96.0.1:80";
const START: usize = 256;
/// Longest frame: an error with the first 28 bytes of what it quotes.
const FRAME_MAX: usize = 14 + 20 + 8 + 28;
/// Chunks of [`FRAMES`] in a round.
const CHUNKS: usize = 32;
/// A million packets a second.
const PACKETS_A_MS: u64 = 1_000;
/// Milliseconds between two errors that are not forged.
const HONEST_EVERY_MS: u64 = 10;

/// What the forged errors are about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flood {
    Off,
    /// Connections that do not exist: the ports of real clients are guessed.
    NoFlow,
    /// A client's connections whose addresses and ports are known: the sequence numbers are guessed.
    Guesses,
}

/// What a row tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A packet of the others, in batches of their own between those of the flood; the floor is the same without a flood.
    Packet,
    /// A forged error, in these batches.
    Error,
    /// A packet with its forged error, in the same batch; the floor is a packet without a flood.
    Both,
}

/// Time of the others' packets and of the errors, in a round.
#[derive(Default)]
struct Spent {
    packets: Duration,
    errors: Duration,
}

/// A table of established connections and its traffic.
pub struct IcmpFlood {
    world: World,
    /// As clients send, and as a router reports about what went to the endpoint.
    packets: Vec<Vec<u8>>,
    honest: Vec<Vec<u8>>,
    /// "Fragmentation needed" about a packet to a client.
    forged: Vec<u8>,
    flood: Flood,
    told: Told,
    sent: usize,
}

impl IcmpFlood {
    pub fn new(flood: Flood, told: Told) -> IcmpFlood {
        let mut world = World::new(services(), 2 * HOSTS * CONNECTIONS);
        let (mut packets, mut honest) = (Vec::new(), Vec::new());
        for i in 0..HOSTS * CONNECTIONS {
            let client = format!("203.0.113.{}:{}", 1 + i % HOSTS, 1_024 + i / HOSTS);
            let syn = Spec { payload: 0, ..spec("tcp", &client, SERVICE, SYN) };
            let went = world.connect(&syn).expect("a connection").tuple;
            let next = Spec { flags: ACK, sequence: syn.sequence + 1, acknowledgment: 70_001, payload: 10, ..syn };
            packets.push(next.frame());
            honest.push(too_big(&between(&went, &next), "192.168.9.9"));
        }
        // About what the Service's address sends to the first client: the numbers are filled in.
        let to_client = Spec {
            src: SERVICE.parse().expect("an address"),
            dst: "203.0.113.1:1024".parse().expect("an address"),
            ..spec("tcp", SERVICE, SERVICE, ACK)
        };
        let forged = too_big(&to_client, "198.51.100.1");
        IcmpFlood { world, packets, honest, forged, flood, told, sent: 0 }
    }

    /// One round of the others' packets beside a flood; all must go on, and so must the honest errors.
    fn carry(&mut self, flood: Flood, mixed: bool, random: &mut u64) -> Spent {
        let IcmpFlood { world, packets, honest, forged, sent, .. } = self;
        let (mut spent, mut carried) = (Spent::default(), Carried::default());
        let mut buffers = vec![0; 2 * FRAMES * FRAME_BYTES];
        let began_ms = world.now_ms;
        let mut honest_due_ms = began_ms;
        world.with(|ctx| {
            for chunk in 0..CHUNKS {
                // The others' frames and the flood's take turns.
                let mut lens = [0; 2 * FRAMES];
                for (at, buffer) in buffers.chunks_exact_mut(FRAME_BYTES).enumerate() {
                    let frame = &mut buffer[START..START + FRAME_MAX];
                    lens[at] = if at % 2 == 0 {
                        let packet = &packets[fast_range(splitmix64(random) as u32, packets.len() as u32) as usize];
                        frame[..packet.len()].copy_from_slice(packet);
                        packet.len()
                    } else {
                        frame[..forged.len()].copy_from_slice(forged);
                        forge(frame, flood, random);
                        forged.len()
                    };
                }
                for (batch, buffers) in buffers.chunks_exact_mut(BATCH_MAX * FRAME_BYTES).enumerate() {
                    let done = (chunk * FRAMES + batch * BATCH_MAX / 2) as u64;
                    ctx.now_ms = began_ms + done / PACKETS_A_MS;
                    let lens = &lens[batch * BATCH_MAX..];
                    if mixed {
                        spent.packets += carried.run(ctx, buffers, |at| flood != Flood::Off || at % 2 == 0, lens);
                    } else {
                        spent.packets += carried.run(ctx, buffers, |at| at % 2 == 0, lens);
                        if flood != Flood::Off {
                            spent.errors += carried.run(ctx, buffers, |at| at % 2 == 1, lens);
                        }
                    }
                }
                while honest_due_ms <= ctx.now_ms {
                    honest_due_ms += HONEST_EVERY_MS;
                    // About any connection but those of the client that is guessed at.
                    *sent += 1;
                    let host = 1 + *sent as u32 % (HOSTS - 1);
                    let error = &honest[host as usize];
                    assert!(one(ctx, error), "{flood:?}: an honest error was lost after {} ms", ctx.now_ms - began_ms);
                }
            }
        });
        world.now_ms = began_ms + (CHUNKS * FRAMES) as u64 / PACKETS_A_MS;
        assert_eq!(carried.packets, CHUNKS * FRAMES, "{flood:?}: packets of the others were lost");
        // A client's share of a second and of a burst, see `ErrorClass`.
        assert!(carried.errors <= 400, "{flood:?}: {} forged errors went on", carried.errors);
        spent
    }
}

/// What went on in a round.
#[derive(Default)]
struct Carried {
    packets: usize,
    errors: usize,
}

impl Carried {
    /// Runs the wanted frames of a batch, and returns the time.
    fn run(&mut self, ctx: &mut Context<'_>, buffers: &mut [u8], wanted: impl Fn(usize) -> bool, lens: &[usize]) -> Duration {
        let mut batch: ArrayVec<Frame<'_>, BATCH_MAX> = ArrayVec::new();
        let list = buffers.chunks_exact_mut(FRAME_BYTES).zip(lens).enumerate().filter(|(at, _)| wanted(*at));
        batch.extend(list.map(|(at, (buffer, len))| Frame::new(buffer, START, *len, CLIENTS, at as u64)));
        let mut verdicts = ArrayVec::new();
        let start = Instant::now();
        process(ctx, &mut batch, &mut verdicts, &mut Outputs::default());
        let took = start.elapsed();
        for (frame, verdict) in batch.iter().zip(&verdicts) {
            let went = usize::from(matches!(verdict, Verdict::Forward(..)));
            if frame.token % 2 == 0 { self.packets += went } else { self.errors += went }
        }
        took
    }
}

impl Row for IcmpFlood {
    fn round(&mut self, rig: &mut Rig) -> f64 {
        let spent = self.carry(self.flood, self.told == Told::Both, &mut rig.random);
        let took = if self.told == Told::Error { spent.errors } else { spent.packets };
        took.as_nanos() as f64 / (CHUNKS * FRAMES) as f64
    }

    fn floor(&mut self, rig: &mut Rig) -> Option<f64> {
        let measured = self.flood != Flood::Off && self.told != Told::Error;
        measured.then(|| self.carry(Flood::Off, false, &mut rig.random).packets.as_nanos() as f64 / (CHUNKS * FRAMES) as f64)
    }
}

/// Submits one frame by the endpoints' port. True when it goes on.
fn one(ctx: &mut Context<'_>, bytes: &[u8]) -> bool {
    let mut buffer = [0; FRAME_BYTES];
    buffer[START..START + bytes.len()].copy_from_slice(bytes);
    let mut verdicts = ArrayVec::new();
    process(ctx, &mut [Frame::new(&mut buffer, START, bytes.len(), PODS, 0)], &mut verdicts, &mut Outputs::default());
    matches!(verdicts[0], Verdict::Forward(..))
}

/// A client's packet as it goes to the endpoint.
fn between(went: &Tuple, packet: &Spec) -> Spec {
    Spec { src: (went.src_addr(), went.sport).into(), dst: (went.dst_addr(), went.dport).into(), ..*packet }
}

/// "Fragmentation needed" about a packet, from a router.
fn too_big(packet: &Spec, from: &str) -> Vec<u8> {
    let error = IcmpSpec { from: ip(from), to: packet.src.ip(), kind: 3, code: 4, rest: [0, 0, 5, 0x78] };
    error.frame(&packet.frame()[14..14 + 28])
}

/// Fills a guess into a forged error: offsets are those of the quoted packet's fields behind 42 bytes of headers. The ICMP checksum is kept right,
/// so that every check is made.
fn forge(frame: &mut [u8], flood: Flood, random: &mut u64) {
    let guess = splitmix64(random);
    // The sender of the error: any.
    frame[28..30].copy_from_slice(&(guess as u16).to_be_bytes());
    if flood == Flood::NoFlow {
        // The client's address and its port: none of those that are used.
        frame[42 + 19] = 1 + (guess >> 16) as u8 % HOSTS as u8;
        frame[42 + 22..42 + 24].copy_from_slice(&(0x8000 | (guess >> 24) as u16).to_be_bytes());
    } else {
        // One of the first client's connections, and its sequence number.
        let port = 1_024 + (guess >> 24) as u16 % CONNECTIONS as u16;
        frame[42 + 22..42 + 24].copy_from_slice(&port.to_be_bytes());
        frame[42 + 24..42 + 28].copy_from_slice(&((guess >> 32) as u32).to_be_bytes());
    }
    for (range, field) in [(14..34, 24), (34..FRAME_MAX, 36)] {
        frame[field..field + 2].fill(0);
        let sum = nomagic_core::checksum::checksum(&frame[range]);
        frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}
