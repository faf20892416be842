//! The same packets through nomagic and through the kernel's NAT, in the same topology: what arrives at both ends must be the same, but for differences
//! that are known and explained. Needs root.
//!
//! Clients and the endpoint are sockets that send and capture whole frames. A client of its own has a conversation of up to four packets with the
//! Service: whole ones of all lengths, with options and extension headers, damaged ones, fragments, packets of unknown connections, and ICMP errors about
//! what has arrived. Many conversations are a batch; their first packets go through both worlds, then the second ones, so that an answer fits what the
//! endpoint got. What arrives is put together where it was fragmented, related to its conversation and compared. `classes` names each difference.

mod classes;
mod compare;
mod errors;
mod generate;
mod lockstep;
mod packet;
mod seen;
mod world;

use std::time::Instant;

use classes::CLASSES;
use generate::{Conversation, Random};
use lockstep::{Findings, Lockstep, may_be_refused};
use world::World;

use crate::common::CpuLock;

/// Packets of a run. The variable `NOMAGIC_DIFFERENTIAL_PACKETS` asks for another number, and `NOMAGIC_DIFFERENTIAL_SEED` for other packets.
const PACKETS: usize = 100_000;
const SEED: u64 = 1;
/// Conversations at a time. A batch of frames may make twelve errors.
const BATCH: usize = 48;
const REFUSED_MAX: usize = 10;
/// So many unknown differences end the run.
const UNKNOWN_MAX: usize = 20;

/// Conversations from the generator.
fn batch(random: &mut Random, number: &mut usize) -> Vec<Conversation> {
    let (mut batch, mut refused) = (Vec::new(), 0);
    while batch.len() < BATCH {
        let conversation = Conversation::random(random, *number);
        let more = usize::from(conversation.steps.iter().any(|step| may_be_refused(&step.what)));
        if refused + more <= REFUSED_MAX {
            refused += more;
            *number += 1;
            batch.push(conversation);
        }
    }
    batch
}

fn from_environment<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).ok().map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
}

#[test]
fn packets_arrive_as_through_the_kernels_nat() {
    let _cpus = CpuLock::take();
    let (packets, seed) = (from_environment("NOMAGIC_DIFFERENTIAL_PACKETS", PACKETS), from_environment("NOMAGIC_DIFFERENTIAL_SEED", SEED));
    println!("{packets} packets, seed {seed}");
    let mut worlds = [World::kernel(), World::nomagic()];
    let (mut random, mut number, mut findings) = (Random(seed), 0, Findings::default());
    let begun = Instant::now();
    while findings.packets < packets && findings.unknown.len() < UNKNOWN_MAX {
        Lockstep::new(&mut worlds, &batch(&mut random, &mut number)).run(&mut findings);
        assert_eq!(worlds.each_ref().map(World::lost), [0, 0], "the captures lost frames");
    }
    println!("{findings}in {:.1?}", begun.elapsed());
    let unknown: Vec<_> = findings.unknown.iter().map(|(signature, (n, example))| format!("{n} x {signature}\n{example}")).collect();
    assert!(unknown.is_empty(), "{} unknown differences:\n{}\n{}", unknown.len(), unknown.join("\n"), worlds[1].account());
    for class in CLASSES {
        assert!(findings.classes.get(class.name).is_some_and(|n| *n > 0), "{} does not occur any more", class.name);
    }
    worlds.iter().for_each(World::check);
}

/// The documents explain each difference that is known.
#[test]
fn known_differences_are_limits() {
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let limits = words(include_str!("../../../../docs/limits.md"));
    for class in CLASSES {
        assert!(limits.contains(class.said), "{}: docs/limits.md does not say `{}`", class.name, class.said);
    }
}
