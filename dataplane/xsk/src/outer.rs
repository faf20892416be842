//! Tells the XDP filter which load balancer and external IPs there are, and by which interface the kernel may send their packets to a router.
//!
//! The filter captures only those that come in by that interface: the kernel would send them back. It cannot ask the kernel's routes itself: the
//! helper for that (`bpf_fib_lookup`) is for programs under the GPL. Whether a packet does go back depends on rules about it, too; the workers know.

use std::net::IpAddr;

use nomagic_core::routes::Routes;
use nomagic_core::services::{OuterAddresses, Services, UnusedPorts};

use crate::error::EdgeError;
use crate::filter::{FilterMaps, WayOut};

/// What the filter knows.
#[derive(Default)]
pub(crate) struct OuterWays {
    seen: Option<Seen>,
    left_out: usize,
}

struct Seen {
    addresses: OuterAddresses,
    /// The generation of the routes.
    routes: u64,
    interfaces: Vec<u32>,
}

impl OuterWays {
    /// Brings the filter up to date. Cheap if nothing has changed. `interfaces` are the indices of the ports' interfaces, without the internal port's.
    pub fn follow(&mut self, filter: &mut FilterMaps, services: &Services, routes: &Routes, interfaces: Vec<u32>) -> Result<(), EdgeError> {
        let seen = self.seen.take().filter(|seen| self.left_out == 0 && seen.routes == routes.generation && seen.interfaces == interfaces);
        let changed: Vec<IpAddr> = match &seen {
            Some(seen) => services.outer().differences(&seen.addresses).collect(),
            None => filter.outer().chain(services.outer().iter()).collect(),
        };
        let wanted = |addr: &IpAddr| wanted(services, routes, &interfaces, *addr);
        // Those that go make room.
        changed.iter().filter(|addr| wanted(addr).is_none()).try_for_each(|addr| filter.forget_outer(*addr))?;
        let left_out_before = std::mem::take(&mut self.left_out);
        for addr in &changed {
            if let Some(way) = wanted(addr) {
                self.left_out += usize::from(!filter.set_outer(*addr, way)?);
            }
        }
        if self.left_out != left_out_before {
            tracing::warn!(
                "the XDP filter has no room for {} load balancer and external IPs: packets for their unused ports go to the kernel",
                self.left_out
            );
        }
        self.seen = Some(Seen { addresses: services.outer().clone(), routes: routes.generation, interfaces });
        Ok(())
    }

    /// Compares everything the next time.
    pub fn forget(&mut self) {
        self.seen = None;
    }

    /// How many addresses the filter has no room for.
    pub fn left_out(&self) -> usize {
        self.left_out
    }
}

/// What the filter must know of an address; `None`: nothing.
fn wanted(services: &Services, routes: &Routes, interfaces: &[u32], addr: IpAddr) -> Option<WayOut> {
    if !services.outer().contains(&addr) {
        return None;
    }
    let way = if services.unused_ports == UnusedPorts::Kernel { WayOut::Never } else { way_out(routes, interfaces, addr) };
    (services.answer_ping || way != WayOut::Never).then_some(way)
}

fn way_out(routes: &Routes, interfaces: &[u32], addr: IpAddr) -> WayOut {
    let by = routes.ports_to_routers(addr).filter_map(|port| interfaces.get(usize::from(port.0)).copied());
    by.fold(WayOut::Never, |way, ifindex| match way {
        WayOut::Never => WayOut::By(ifindex),
        WayOut::By(known) if known == ifindex => way,
        WayOut::By(_) | WayOut::Several => WayOut::Several,
    })
}
