//! The ring of events, under every interleaving that loom finds.

use std::net::IpAddr;

use loom::sync::Arc;
use nomagic_core::events::{Event, EventKind, EventRing};
use nomagic_core::frame::PortId;
use nomagic_core::reason::Reason;
use nomagic_core::tuple::{Proto, Tuple};

use crate::table::model;

/// All words of an event differ from those of another number.
fn event(number: u8) -> Event {
    let addr = |last: u8| IpAddr::from([192, 0, number, last]);
    let packet = Tuple::new(Proto::Udp, addr(1), u16::from(number), addr(2), 53);
    let (port, bytes) = (PortId(u16::from(number)), u32::from(number));
    Event { at_ms: u64::from(number), kind: EventKind::Dropped(Reason::NoEndpoints), packet, rewritten: packet, port, bytes }
}

/// One thread overwrites the only place while another one reads it: what is read is whole, and what was missed is counted.
#[test]
fn a_reader_sees_whole_events() {
    model(|| {
        let ring = Arc::new(EventRing::new(1));
        ring.record(&event(1));
        let writer = ring.clone();
        let writes = loom::thread::spawn(move || writer.record(&event(2)));
        let mut heard = 0;
        let seen = ring.read(0, 9, |found| {
            assert_eq!(found, event(found.at_ms as u8));
            heard += 1;
        });
        assert_eq!(heard + seen.missed, seen.next);
        writes.join().expect("it does not panic");
        assert_eq!(ring.end(), 2);
    });
}
