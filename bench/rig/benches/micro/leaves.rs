//! The leaves: parsing and rewriting headers, Maglev tables.

use std::hint::black_box;
use std::time::Instant;

use etherparse::SlicedPacket;
use nomagic_core::fast_parse::Plain;
use nomagic_core::frame::NextHopId;
use nomagic_core::maglev::Maglev;
use nomagic_core::parse::parse;
use nomagic_core::rewrite::rewrite_plain;
use nomagic_core::services::Pool;
use nomagic_core::tuple::{HashSeed, Proto, Tuple, fast_range, splitmix64};

use super::rig::{FRAMES, Filled, Rig, backends, eight_workers};
use super::rows::Row;

pub struct Parse {
    pub filled: Filled,
    pub etherparse: bool,
}

impl Row for Parse {
    fn round(&mut self, rig: &mut Rig) -> f64 {
        rig.write_headers(|random| self.filled.header(splitmix64(random) as u32 >> 8));
        let mut read = 0;
        let took = rig.time_batches(FRAMES, |_, batch| {
            for frame in batch.iter() {
                read += if self.etherparse {
                    let packet = SlicedPacket::from_ethernet(frame.head()).expect("a packet");
                    usize::from(black_box(packet).transport.is_some())
                } else {
                    usize::from(black_box(Plain::read(frame)).is_some())
                };
            }
        });
        assert_eq!(read, FRAMES);
        took.as_nanos() as f64 / FRAMES as f64
    }
}

/// Rewriting headers of known connections, parsed and looked up beforehand.
pub struct Rewrite {
    pub filled: Filled,
}

impl Row for Rewrite {
    fn round(&mut self, rig: &mut Rig) -> f64 {
        let (table, flows) = (self.filled.table, self.filled.flows);
        rig.write_headers(|random| self.filled.header(fast_range(splitmix64(random) as u32, flows)));
        let mut packets = Vec::with_capacity(FRAMES);
        rig.time_batches(FRAMES, |_, batch| {
            packets.extend(batch.iter().map(|frame| {
                let (plain, packet) = (Plain::read(frame).expect("a plain frame"), parse(frame).expect("a packet"));
                let hit = table.lookup(&packet.tuple, table.hash(&packet.tuple)).expect("a known connection");
                (plain, packet.tuple.key(), hit)
            }));
        });
        let hop = *rig.routes.hop(NextHopId(1)).expect("a next hop");
        let mut packets = packets.iter();
        let took = rig.time_batches(FRAMES, |_, batch| {
            for (frame, (plain, key, hit)) in batch.iter_mut().zip(&mut packets) {
                black_box(match plain.v6 {
                    true => rewrite_plain::<true>(frame.head_mut(), plain.covered(), key, hit, &hop),
                    false => rewrite_plain::<false>(frame.head_mut(), plain.covered(), key, hit, &hop),
                });
            }
        });
        took.as_nanos() as f64 / FRAMES as f64
    }
}

pub struct Pick {
    pool: Pool,
}

impl Pick {
    pub fn new() -> Pick {
        Pick { pool: Pool::new(backends(false, 100), &HashSeed::new(1)).expect("backends") }
    }
}

impl Row for Pick {
    fn round(&mut self, rig: &mut Rig) -> f64 {
        let hashes: Vec<u64> = (0..FRAMES).map(|_| splitmix64(&mut rig.random)).collect();
        let start = Instant::now();
        let sum: u32 = hashes.iter().map(|&h| self.pool.maglev.pick(h).1).fold(0, u32::wrapping_add);
        black_box(sum);
        start.elapsed().as_nanos() as f64 / FRAMES as f64
    }
}

/// Which destination ports bring answers to a worker.
pub struct Predict {
    pub v6: bool,
    /// Ports tested for each answer.
    pub ports: u16,
}

impl Row for Predict {
    fn round(&mut self, rig: &mut Rig) -> f64 {
        let rss = eight_workers();
        let random = &mut rig.random;
        let reply = |r: u64| Tuple {
            src: if self.v6 { [0xfd01 << 48, r & 0xff] } else { [0, 0xc0a8_0000 | (r & 0xff)] },
            dst: if self.v6 { [0xfd02 << 48, 1] } else { [0, 0x0a00_0001] },
            sport: (r >> 8) as u16,
            dport: (r >> 24) as u16,
            proto: Proto::Udp,
            v6: self.v6,
        };
        let replies: Vec<Tuple> = (0..FRAMES).map(|_| reply(splitmix64(random))).collect();
        let start = Instant::now();
        let mut found = 0;
        for reply in &replies {
            let answers = rss.answers(reply, 3).expect("a worker with a queue");
            found += (0..self.ports).filter(|i| answers.come_back(reply.dport.wrapping_add(i.wrapping_mul(2_803)))).count();
        }
        black_box(found);
        start.elapsed().as_nanos() as f64 / FRAMES as f64
    }
}

/// Slots of the tables.
pub const SLOTS: u32 = 65_537;

/// Filling a table of [`SLOTS`] for 100 backends.
pub struct Build;

impl Row for Build {
    fn round(&mut self, _rig: &mut Rig) -> f64 {
        let backends = Pool::new(backends(false, 100), &HashSeed::new(1)).expect("backends").backends;
        let start = Instant::now();
        black_box(Maglev::with_size(&backends, &HashSeed::new(1), SLOTS));
        start.elapsed().as_nanos() as f64
    }
}

/// Quality of a table of 100 backends.
pub struct Evenness {
    /// The fullest backend's slots over the average.
    pub max_over_average: f64,
    /// Share of slots of other backends that move when one is removed.
    pub moved: f64,
    /// With weights of 1 to 4: the largest relative difference of a share from its weight.
    pub weighted: f64,
}

impl Evenness {
    pub fn measure() -> Evenness {
        let seed = HashSeed::new(1);
        let mut all = Pool::new(backends(false, 100), &seed).expect("backends").backends.to_vec();
        let table = Maglev::with_size(&all, &seed, SLOTS).expect("a table");
        let max = table.shares(100).into_iter().max().unwrap_or(0);
        let gone = 41;
        let rest: Vec<_> = all.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, b)| b.clone()).collect();
        let after = Maglev::with_size(&rest, &seed, SLOTS).expect("a table");
        let moved = (0..SLOTS).filter(|&s| {
            let (was, is) = (table.backend(s) as usize, after.backend(s) as usize);
            was != gone && all[was].addr != rest[is].addr
        });
        let moved = moved.count();
        all.iter_mut().enumerate().for_each(|(i, b)| b.weight = 1 + i as u16 % 4);
        let weights: u32 = all.iter().map(|b| u32::from(b.weight)).sum();
        let weighted = Maglev::with_size(&all, &seed, SLOTS).expect("a table").shares(100).into_iter().zip(&all).map(|(share, b)| {
            let wanted = f64::from(SLOTS) * f64::from(b.weight) / f64::from(weights);
            (f64::from(share) - wanted).abs() / wanted
        });
        Evenness {
            max_over_average: f64::from(max) * 100.0 / f64::from(SLOTS),
            moved: moved as f64 / f64::from(SLOTS),
            weighted: weighted.fold(0.0, f64::max),
        }
    }
}
