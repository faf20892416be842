//! New connections with SNAT towards one endpoint, by how many of its source ports are taken.

use std::sync::Arc;

use nomagic_core::conntrack::{Conntrack, Direction, Phase};
use nomagic_core::services::{Action, Pool};
use nomagic_core::tuple::Proto;

use super::rig::{FRAMES, Filled, PacketKind, Rig, backends, run};
use super::rows::Row;

const PORT_FIRST: u16 = 61_000;
/// Ports towards the endpoint: the upper end of the range, to fill it in a short time.
const PORTS: u32 = 65_536 - PORT_FIRST as u32;
/// Connections that find the ports so full: few against the last hundredth of them.
const NEWCOMERS: usize = 16;
/// How often the ports are filled in a round.
const FILLS: u32 = 16;

/// Opens a few connections when this part of the ports is taken by others, who have given none back. At 100 %: refuses them, after another one has
/// looked at all ports.
pub struct Crowded {
    filled: Filled,
    percent: u32,
}

impl Crowded {
    pub fn new(percent: u32) -> Crowded {
        let mut filled = Filled::empty(PacketKind::Snat, 1 << 13);
        filled.services.snat.port_first = PORT_FIRST;
        let pool = Arc::new(Pool::new(backends(false, 1), &filled.services.seed).expect("a backend"));
        let all: Vec<_> = filled.services.frontends().map(|(addr, port, proto, f)| (addr, port, proto, f.clone())).collect();
        for (addr, port, proto, mut frontend) in all {
            frontend.external = Action::Forward { pool: pool.clone(), snat: true };
            filled.services.set_frontend(addr, port, proto, Some(frontend));
        }
        Crowded { filled, percent }
    }
}

impl Row for Crowded {
    fn round(&mut self, rig: &mut Rig) -> f64 {
        let f = &self.filled;
        let (mut next, mut ns, taken) = (0, 0, PORTS * self.percent / 100);
        for _ in 0..FILLS {
            Conntrack::format(f.words, f.table.capacity(), 5, [0, 0]).expect("room for the table");
            f.filter.clear();
            // Several passes: a newcomer may get the port of an unconfirmed connection instead of a free one.
            while let Some(left @ 1..) = taken.checked_sub(f.table.snat_ports().in_use() as u32) {
                write_headers(f, rig, &mut next);
                rig.time_batches(FRAMES.min(left as usize), |parts, batch| assert!(run(f, parts, batch) > 0, "no port for anybody"));
                confirm_all(f);
            }
            write_headers(f, rig, &mut next);
            if self.percent == 100 {
                rig.time_batches(1, |parts, batch| assert_eq!(run(f, parts, batch), 0));
            }
            let mut opened = 0;
            ns += rig.time_batches(NEWCOMERS, |parts, batch| opened += run(f, parts, batch)).as_nanos();
            assert_eq!(opened, if self.percent < 100 { NEWCOMERS } else { 0 });
        }
        ns as f64 / f64::from(FILLS * NEWCOMERS as u32)
    }
}

/// Marks all flows as confirmed: nobody may have their ports.
fn confirm_all(f: &Filled) {
    let steps = [Direction::Reply, Direction::Original];
    let confirmed = steps.into_iter().fold(Phase::first(Proto::Udp, 0), |phase, direction| phase.after(direction, 0, true));
    f.table.for_each(|hit, _| f.table.touch(hit, confirmed, hit.seen_ms));
}

fn write_headers(f: &Filled, rig: &mut Rig, next: &mut u32) {
    rig.write_headers(|_| {
        *next += 1;
        f.header(*next)
    });
}
