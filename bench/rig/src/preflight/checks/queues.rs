//! Queues: how many, what comes to which, how long, and which CPU handles their interrupts.

use std::collections::BTreeSet;

use crate::preflight::cpus::CpuSet;
use crate::preflight::facts::{Machine, Wanted};
use crate::preflight::finding::{Finding, State};
use crate::preflight::nic::Nic;

/// Microseconds of interrupt coalescing that a latency would show.
const COALESCE_US_MAX: u32 = 50;

/// One queue for each worker: each queue belongs to one worker, and one without a queue has nothing to do.
pub fn count(wanted: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, workers) = ("queues", wanted.workers);
    let text = format!("{workers}, one for each worker");
    let (queues, maximum) = match &nic.queues {
        Ok(queues) => *queues,
        Err(why) => return Finding::unknown(name, why.clone(), text).remedy("one queue, most likely: --workers 1"),
    };
    let found = format!("{queues}{}", maximum.map_or(String::new(), |m| format!(" of {m}")));
    let remedy = match maximum {
        Some(maximum) if maximum < workers => format!("--workers {maximum}: the card has no more queues"),
        _ if nic.separate_queues => format!("ethtool -L {} rx {workers} tx {workers}", nic.name),
        _ => format!("ethtool -L {} combined {workers}", nic.name),
    };
    match queues.cmp(&workers) {
        std::cmp::Ordering::Equal => Finding::new(name, State::Ok, found, text),
        // Works: a worker has several queues, or has to hand its frames over.
        _ if queues > workers && queues % workers == 0 => Finding::new(name, State::Warning, found, text).remedy(remedy),
        _ => Finding::new(name, State::Missing, found, text).remedy(remedy),
    }
}

/// The indirection table names each queue, and no other.
pub fn spread(wanted: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, text) = ("RSS table", format!("all of the queues 0 to {}", wanted.workers.saturating_sub(1)));
    if nic.queue_count() == Some(1) && wanted.workers == 1 {
        return Finding::new(name, State::Ok, "one queue: nothing to spread", text);
    }
    match &nic.rss {
        Err(why) => Finding::unknown(name, why.clone(), text),
        Ok(rss) => {
            let found: CpuSet = rss.queues.iter().copied().collect();
            let good = rss.queues == (0..wanted.workers).collect::<BTreeSet<u32>>();
            Finding::judged(name, good, State::Missing, format!("queues {found}"), text)
                .remedy(format!("ethtool -X {} equal {}", nic.name, wanted.workers))
        }
    }
}

/// Flows between two addresses differ in their ports only.
pub fn udp_hash(wanted: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, text) = ("RSS of UDP", "by addresses and ports (sdfn), IPv4 and IPv6");
    if nic.queue_count() == Some(1) && wanted.workers == 1 {
        return Finding::new(name, State::Ok, "one queue: nothing to spread", text);
    }
    let [v4, v6] = &nic.udp_ports_hashed;
    let word = |told: &Result<bool, String>| match told {
        Ok(true) => "ports",
        Ok(false) => "no ports",
        Err(_) => "not known",
    };
    let state = match (v4, v6) {
        (Ok(true), Ok(true)) => State::Ok,
        (Ok(false), _) | (_, Ok(false)) => State::Missing,
        _ => State::Unknown,
    };
    let (dev, found) = (&nic.name, format!("IPv4 {}, IPv6 {}", word(v4), word(v6)));
    Finding::new(name, state, found, text)
        .remedy(format!("ethtool -N {dev} rx-flow-hash udp4 sdfn; ethtool -N {dev} rx-flow-hash udp6 sdfn"))
}

/// Short rings lose frames in bursts.
pub fn rings(_: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, text) = ("rings", "2048 entries or more each, or the card's maximum");
    let [rx, tx] = match &nic.rings {
        Ok(rings) => *rings,
        Err(why) => return Finding::unknown(name, why.clone(), text),
    };
    let enough = |(now, maximum): (u32, u32)| now >= maximum.min(2048);
    Finding::judged(name, enough(rx) && enough(tx), State::Warning, format!("rx {} of {}, tx {} of {}", rx.0, rx.1, tx.0, tx.1), text)
        .remedy(format!("ethtool -G {} rx {} tx {}", nic.name, rx.1.min(2048), tx.1.min(2048)))
}

/// An interrupt that waits for more frames is latency; one that adapts is another latency in each run.
pub fn coalescing(_: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, text) = ("coalescing", format!("not adaptive, {COALESCE_US_MAX} us at the most"));
    let (adaptive, usecs) = match &nic.coalesce {
        Ok(told) => *told,
        Err(why) => return Finding::unknown(name, why.clone(), text),
    };
    let found = match (adaptive, usecs) {
        (None, None) => return Finding::unknown(name, "the driver does not tell", text),
        (Some(true), _) => "adaptive".to_owned(),
        (_, Some(us)) => format!("rx-usecs {us}"),
        (Some(false), None) => "not adaptive".to_owned(),
    };
    let good = adaptive != Some(true) && usecs.is_none_or(|us| us <= COALESCE_US_MAX);
    Finding::judged(name, good, State::Warning, found, text)
        .remedy(format!("ethtool -C {} adaptive-rx off adaptive-tx off rx-usecs 8    # say the value beside every latency", nic.name))
}

/// The kernel's share of a queue (NAPI) runs where its interrupt is handled: on a CPU of its own, and not on a worker's, which never pauses.
pub fn interrupts(wanted: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, text) = ("queue interrupts", "each on one CPU, none of the workers'");
    if wanted.cpus.is_empty() {
        return Finding::unknown(name, "no CPUs named (--cpus)", text);
    }
    let Some(irqs) = &nic.irqs else { return Finding::unknown(name, "the device's interrupts are not known", text) };
    let workers = wanted.cpus.0.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let remedy = format!(
        "bench/rigs/tune-gateway.sh apply --interface {} --worker-cpus {workers} --irq-cpus LIST    # LIST: as many others of the NIC's node",
        nic.name
    );
    let mut used = CpuSet::default();
    for irq in irqs {
        let Some(cpus) = &irq.cpus else { return Finding::unknown(name, format!("/proc/irq/{} cannot be read", irq.number), text) };
        let shared = cpus.both(&wanted.cpus);
        if !shared.is_empty() {
            let found = format!("{} ({}) may be handled on {cpus}: a worker's", irq.number, irq.name);
            return Finding::new(name, State::Warning, found, text).remedy(remedy);
        }
        if cpus.0.len() > 1 {
            return Finding::new(name, State::Warning, format!("{} ({}) moves between {cpus}", irq.number, irq.name), text).remedy(remedy);
        }
        used.0.extend(&cpus.0);
    }
    let found = format!("{} on CPUs {used}", irqs.len());
    if used.0.len() < irqs.len().min(wanted.workers as usize) {
        return Finding::new(name, State::Warning, format!("{found}: queues share one"), text).remedy(remedy);
    }
    Finding::new(name, State::Ok, found, text)
}

/// Rules that send chosen flows elsewhere than RSS would.
pub fn ntuple(_: &Wanted, _: &Machine, nic: &Nic) -> Finding {
    let (name, text) = ("ntuple filters", "off, or on without rules");
    match nic.features.as_ref().map(|f| f.get("ntuple-filters").copied()) {
        Err(why) => Finding::unknown(name, why.clone(), text),
        Ok(None) => Finding::unknown(name, "ethtool -k does not name them", text),
        Ok(Some(false)) => Finding::new(name, State::Ok, "off", text),
        Ok(Some(true)) => Finding::new(name, State::Warning, "on", text)
            .remedy(format!("ethtool -n {0}    # shows its rules; without need: ethtool -K {0} ntuple off", nic.name)),
    }
}
