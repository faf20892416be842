//! The memory of the connection table with any damage: what recovery makes of it is a sound table, whatever was in the words.

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use nomagic_core::conntrack::{Conntrack, Expected, Flow, Phase, Recovered, Refused, recover};
use nomagic_core::services::PortLimits;
use nomagic_core::tuple::{Proto, Tuple};

use crate::input::Input;

const BOOT: [u64; 2] = [7, 8];
const DAMAGE_MAX: usize = 400;
/// Words of the header.
const HEADER_WORDS: usize = 64;
/// Words of its first line.
const FIXED_WORDS: usize = 8;
/// More words than index, flows and sequence numbers have for each connection.
const NEAR_WORDS: usize = 32;
/// Words that hold the counts of source ports, at the end.
const COUNT_WORDS: usize = 96;
const WORDS_OF_A_FLOW: usize = 16;
const NOW_MS: u64 = 1_000;

/// Runs one input: a table with some flows, damage, recovery.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let capacity = input.one(&[64u32, 16, 4]);
    let words: Vec<AtomicU64> = (0..Conntrack::words_needed(capacity)).map(|_| AtomicU64::new(0)).collect();
    let table = Conntrack::format(&words, capacity, u64::from(input.byte()), BOOT).expect("room");
    for _ in 0..input.below(96) {
        let flow = flow(&mut input);
        if create(&table, flow).is_ok() && flow.replaces_source() {
            table.snat_ports().take(&flow, PortLimits::NONE).expect("no limits");
        }
    }
    let (created, detached) = (table.live(), input.byte() & 1 == 1);
    if detached {
        table.detach();
    }
    let mut damaged = false;
    for _ in 0..DAMAGE_MAX {
        if input.is_empty() {
            break;
        }
        damage(&words, capacity, &mut input);
        damaged = true;
    }
    let before: Vec<u64> = words.iter().map(|word| word.load(Relaxed)).collect();
    match recover(&words, Expected { capacity, boot_id: BOOT }, NOW_MS, |flow| (flow.client_port % 16 != 3).then_some(5)) {
        Err(error) => {
            assert!(damaged, "{error}");
            assert!(words.iter().zip(before).all(|(word, before)| word.load(Relaxed) == before), "{error}: changed");
        }
        Ok((table, recovered)) => {
            // A nearly full table this small may not fit into its index in another order: a key whose two buckets are the same has only
            // eight places.
            let crowded = created * 4 > u64::from(capacity) * 3;
            let lost = created.checked_sub(u64::from(recovered.connections + recovered.unwanted));
            assert!(
                damaged || recovered.detached == detached && (lost == Some(0) || crowded && lost.is_some()),
                "{recovered:?} of {created}"
            );
            assert_sound(&words, &table, &recovered);
        }
    }
}

/// One of a few thousand flows.
fn flow(input: &mut Input<'_>) -> Flow {
    let (kind, n) = (input.byte(), input.byte());
    let v6 = kind & 1 == 1;
    let addr = |last: u8| if v6 { [0xfd00 << 48, u64::from(last)] } else { [0, 0x0a00_0000 | u64::from(last)] };
    let (client, port) = (addr(n >> 4), 40_000 + u16::from(n & 15));
    let (source, source_port) = if kind & 2 == 2 { (addr(200), 61_000 + u16::from(n)) } else { (client, port) };
    let proto = [Proto::Tcp, Proto::Udp, Proto::Sctp, Proto::Tcp][usize::from(kind >> 2 & 3)];
    let (service, backend) = (addr(100 + (kind >> 4 & 3)), addr(110 + (kind >> 6)));
    let ports = (port, 80, 8_080, source_port);
    let (client_port, service_port, backend_port, source_port) = ports;
    Flow {
        proto,
        v6,
        announced: false,
        client,
        client_port,
        service,
        service_port,
        backend,
        backend_port,
        source,
        source_port,
        stats: 1,
        counted: None,
    }
}

fn create(table: &Conntrack<'_>, mut flow: Flow) -> Result<(), Refused> {
    let (hash, port, phase) = (table.hash(&flow.original()), flow.source_port, Phase::first(flow.proto, 2));
    let pending = table.reserve(&mut flow, hash, phase, 0, std::iter::once(port))?;
    table.commit(pending).map(|_| ())
}

/// Changes a word, or copies a whole flow over another.
fn damage(words: &[AtomicU64], capacity: u32, input: &mut Input<'_>) {
    let near = HEADER_WORDS + (NEAR_WORDS * capacity as usize).min(words.len() - HEADER_WORDS);
    let place = |input: &mut Input<'_>| match input.below(16) {
        0 => input.below(FIXED_WORDS),
        1..=2 => FIXED_WORDS + input.below(HEADER_WORDS - FIXED_WORDS),
        3 => words.len() - 1 - input.below(COUNT_WORDS),
        4 => input.u32() as usize % words.len(),
        _ => HEADER_WORDS + usize::from(input.u16()) % (near - HEADER_WORDS),
    };
    let at = place(input);
    let old = words[at].load(Relaxed);
    let value = match input.below(8) {
        0 => input.u64(),
        1 => words[place(input)].load(Relaxed),
        2 => old ^ (1 << input.below(64)),
        3 => u64::from(input.byte()),
        4 => (old & !0xff) | u64::from(input.byte() % 6),
        5 => u64::MAX,
        6 => old.wrapping_add(1),
        _ => {
            let (from, to) = (place(input) & !(WORDS_OF_A_FLOW - 1), at & !(WORDS_OF_A_FLOW - 1));
            for i in 0..WORDS_OF_A_FLOW {
                if let (Some(from), Some(to)) = (words.get(from + i), words.get(to + i)) {
                    to.store(from.load(Relaxed), Relaxed);
                }
            }
            return;
        }
    };
    words[at].store(value, Relaxed);
}

/// The table is a map, no place is lost, and it can be emptied: the counts are right.
fn assert_sound(words: &[AtomicU64], table: &Conntrack<'_>, recovered: &Recovered) {
    let find = |key: &Tuple| table.lookup(key, table.hash(key));
    let (mut flows, mut keys) = (Vec::new(), HashSet::new());
    table.for_each(|hit, flow| flows.push((*hit, *flow)));
    assert_eq!((table.live(), recovered.connections as usize), (flows.len() as u64, flows.len()));
    for (hit, flow) in &flows {
        assert!(keys.insert(flow.original()) && keys.insert(flow.reply()), "two flows of one key: {flow:?}");
        for key in [flow.original(), flow.reply()] {
            let found = find(&key).unwrap_or_else(|| panic!("not found by {key}"));
            assert_eq!((table.flow(&found), found.cached_hop(1)), (Some(*flow), None));
        }
        assert!(hit.seen_ms <= NOW_MS && flow.stats == 5);
    }
    let with_snat = flows.iter().filter(|(_, flow)| flow.replaces_source()).count() as u64;
    let ports = table.snat_ports();
    assert_eq!(ports.in_use(), with_snat);
    assert!(ports.largest_shares().client <= with_snat && ports.fullest_endpoint() <= with_snat);
    table.sweep(2 * table.capacity(), 1, |_| false, |_, _, _| panic!("nothing ends"));
    fill(table);
    assert!(flows.iter().all(|(_, flow)| find(&flow.original()).is_some() && find(&flow.reply()).is_some()));
    table.for_each(|hit, _| assert!(table.end(hit).is_some()));
    let shares = ports.largest_shares();
    assert_eq!((table.live(), ports.in_use(), shares.client, shares.service, ports.fullest_endpoint()), (0, 0, 0, 0, 0));
    assert_eq!(crate::index_entries(words), 0, "entries that name nobody");
    fill(table);
}

/// Creates flows until every place is taken. Some find no room in the index of so small a table; others do.
fn fill(table: &Conntrack<'_>) {
    for i in 0..16 * u64::from(table.capacity()) {
        let (client, port) = ([0, 0xac10_0000 + i], 1_000);
        let stranger = Flow {
            proto: Proto::Udp,
            v6: false,
            announced: false,
            client,
            client_port: port,
            service: [0, 1],
            service_port: 53,
            backend: [0, 2],
            backend_port: 53,
            source: client,
            source_port: port,
            stats: 1,
            counted: None,
        };
        // Refused where there is no room in the index, or at the end.
        let _ = create(table, stranger);
    }
    assert_eq!(table.live(), u64::from(table.capacity()), "a place was lost or given twice");
}
