use super::super::tests::{create, find, flow, region};
use super::*;
use crate::conntrack::{Direction, NoPort, Phase};
use crate::frame::NextHopId;
use crate::services::SnatRange;
use crate::tuple::Proto;
use crate::wire::tcp;

const LARGE: u32 = 1_024;
const SMALL: u32 = 16;

fn table(words: &[crate::sync::AtomicU64], capacity: u32) -> Conntrack<'_> {
    Conntrack::format(words, capacity, 5, [0, 0]).unwrap()
}

#[test]
fn a_copied_flow_is_the_same_in_all_that_counts() {
    let (living, copy) = (region(LARGE), region(SMALL));
    let (living, copy) = (table(&living, LARGE), table(&copy, SMALL));
    for i in 0..4 {
        let f = flow(i);
        let hit = create(&living, f, 1_000).unwrap();
        living.touch(&hit, hit.phase.after(Direction::Reply, tcp::SYN | tcp::ACK, true), 9_000);
        living.cache_hop(&find(&living, &f.original()).unwrap(), 7, NextHopId(3));
        let before = find(&living, &f.reply()).unwrap();
        assert_eq!(copy_flow(&living, &before, &copy), Some(f));
        for key in [f.original(), f.reply()] {
            let (a, b) = (find(&living, &key).unwrap(), find(&copy, &key).unwrap());
            assert_eq!((a.direction, a.new, a.phase, a.seen_ms, a.stats), (b.direction, b.new, b.phase, b.seen_ms, b.stats));
            assert_eq!([7, 8].map(|g| a.cached_hop(g)), [7, 8].map(|g| b.cached_hop(g)));
            assert_eq!(
                living.sequences().phase_after(&a, 0, None, 9_500),
                copy.sequences().phase_after(&b, 0, None, 9_500),
                "the age of a UDP flow"
            );
        }
        assert!(copy_flow(&living, &before, &copy).is_none(), "twice");
    }
    assert_eq!((living.live(), copy.live()), (4, 4));
    let hit = find(&living, &flow(0).original()).unwrap();
    copy.end(&find(&copy, &flow(0).original()).unwrap());
    assert!(living.flow(&hit).is_some(), "what happens to the copy does not happen to the flow");
    living.end(&hit);
    assert!(copy_flow(&living, &hit, &copy).is_none(), "ended meanwhile");
}

/// A flow from another client port to the same endpoint, with SNAT.
fn with_snat(i: u16) -> Flow {
    Flow { proto: Proto::Tcp, source: [0, 0x0a63_0001], source_port: 61_000 + i, client_port: 5_000 + i, ..flow(0) }
}

fn open(table: &Conntrack<'_>, mut f: Flow, most: PortLimits) -> Result<(), NoPort> {
    table.snat_ports().take(&f, most)?;
    let (hash, port, phase) = (table.hash(&f.original()), f.source_port, Phase::first(f.proto, tcp::SYN));
    let pending = table.reserve(&mut f, hash, phase, 0, std::iter::once(port)).unwrap();
    table.commit(pending).map(|_| ()).map_err(|_| NoPort::Exhausted)
}

#[test]
fn port_counts_are_copied_with_their_limits() {
    let range = SnatRange { port_first: 61_000, port_last: 61_009, share_percent: 50, ..SnatRange::default() };
    let (living, copy) = (region(LARGE), region(LARGE / 2));
    let (living, copy) = (table(&living, LARGE), table(&copy, LARGE / 2));
    let most = range.limits();
    for i in 0..most.service as u16 - 1 {
        open(&living, with_snat(i), most).unwrap();
    }
    let next = with_snat(8);
    copy_port_counts(&living, &[next], &copy);
    assert!(copy.snat_ports().take(&next, most).is_ok(), "one more may be had");
    copy_port_counts(&living, &[next], &copy);
    open(&living, with_snat(7), most).unwrap();
    copy_port_counts(&living, &[next], &copy);
    assert_eq!(
        (living.snat_ports().take(&next, most).err(), copy.snat_ports().take(&next, most).err()),
        (Some(NoPort::ServiceShare), Some(NoPort::ServiceShare))
    );
    assert_eq!(copy.snat_ports().fullest_endpoint(), living.snat_ports().fullest_endpoint());
    // One that finds all ports taken says so, and the copy knows.
    let ports = living.snat_ports().take(&next, PortLimits::NONE).unwrap();
    living.snat_ports().give_back_unfound(&next, ports);
    copy_port_counts(&living, &[next], &copy);
    assert_eq!(
        (living.snat_ports().take(&next, PortLimits::NONE).err(), copy.snat_ports().take(&next, PortLimits::NONE).err()),
        (Some(NoPort::Exhausted), Some(NoPort::Exhausted))
    );
}

#[test]
fn affinity_is_copied_with_its_age() {
    let (living, copy) = (region(LARGE), region(SMALL));
    let (living, copy) = (table(&living, LARGE), table(&copy, SMALL));
    let sticky = Sticky { id: 1, client: [0, 5], v6: false, timeout_s: 100 };
    assert_eq!(copy_affinity(&living, &sticky, 1_000_000, &copy), None);
    living.affinity().stick(&sticky, 1_000_000, |_| true, 9);
    for (later_s, kept) in [(0, 9), (99, 9), (100, 7)] {
        let now_ms = 1_000_000 + later_s * 1_000;
        copy.affinity().stick(&sticky, 0, |_| false, 1);
        assert_eq!(copy_affinity(&living, &sticky, now_ms, &copy), Some((9, later_s)));
        assert_eq!(living.affinity().remembered(&sticky, now_ms), Some((9, later_s)), "asking does not prolong it");
        assert_eq!(copy.affinity().stick(&sticky, now_ms, |_| true, 7).0, kept, "after {later_s} s");
    }
}
