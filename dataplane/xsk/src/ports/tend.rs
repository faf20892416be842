//! Periodic checks and repairs of the ports.
//!
//! Each port is compared with the kernel's state of its interface, and differences are repaired: an interface that was deleted and created
//! again is bound again, new queues are bound, a detached program is attached again. Other ports are not affected.

use nomagic_core::frame::PortId;
use nomagic_sys::time::monotonic_ns;

use super::{Ports, rx_queues};
use crate::error::EdgeError;
use crate::link::{Link, LinkState, describe_program};
use crate::program;
use crate::status::Condition;
use crate::workers::Workers;

/// Nanoseconds between attempts to bind a port.
const RETRY_NS: u64 = 1_000_000_000;

impl Ports {
    /// Checks and repairs the ports. Call it a few times a second, and after an interface has changed. Repairs are logged and visible in
    /// [`Ports::infos`]. Returns whether anything changed.
    pub fn tend(&mut self, workers: &Workers) -> bool {
        let mut changed = false;
        for port in 0..self.infos.len() {
            let before = self.infos[port].clone();
            let condition = self.tend_port(port, workers).unwrap_or_else(|e| {
                self.bindings[port].retry_ns = monotonic_ns() + RETRY_NS;
                Condition::Failed { error: e.to_string() }
            });
            if condition != before.condition {
                let interface = &before.name;
                match &condition {
                    Condition::Bound => tracing::info!(interface, "the port is bound again"),
                    lost => tracing::error!(interface, "the port is {lost}; other ports are not affected"),
                }
            }
            self.infos[port].condition = condition;
            changed |= self.infos[port] != before;
        }
        changed
    }

    fn tend_port(&mut self, port: usize, workers: &Workers) -> Result<Condition, EdgeError> {
        let info = &self.infos[port];
        let link = match Link::query(&info.name) {
            Err(EdgeError::NoInterface { .. }) => {
                self.infos[port].link = LinkState::Down;
                self.unbind(port, workers)?;
                return Ok(Condition::Missing);
            }
            link => link?,
        };
        self.follow_link(port, &link);
        let info = &self.infos[port];
        let same = link.ifindex == info.ifindex && info.queues > 0;
        if !same && monotonic_ns() < self.bindings[port].retry_ns {
            return Ok(info.condition.clone());
        }
        self.bindings[port].follow_macs(&link)?;
        if same {
            self.follow_queues(port, &link, workers)?;
        } else {
            self.unbind(port, workers)?;
            self.bind(port, &link, workers)?;
            self.infos[port].rebinds += 1;
        }
        self.follow_rss(port);
        let info = &mut self.infos[port];
        (info.mac, info.mtu) = (link.mac, link.mtu);
        self.keep_attached(port, &link)
    }

    /// Records the state of the link. A port without carrier stays bound.
    fn follow_link(&mut self, port: usize, link: &Link) {
        let info = &mut self.infos[port];
        if link.state == info.link {
            return;
        }
        let interface = &info.name;
        match link.state {
            LinkState::Up => tracing::info!(interface, "the link is up"),
            LinkState::Down => tracing::error!(interface, "the link is down: `ip link set dev {interface} up`"),
            LinkState::NoCarrier => tracing::error!(interface, "the link has no carrier: check the cable and the other end"),
        }
        info.link = link.state;
    }

    /// Binds new queues. The kernel removes no queue that has a socket.
    fn follow_queues(&mut self, port: usize, link: &Link, workers: &Workers) -> Result<(), EdgeError> {
        let bound = self.infos[port].queues;
        let queues = rx_queues(&link.name)?;
        if queues > bound {
            tracing::info!(interface = link.name, bound, queues, "new queues are bound");
            let group = &self.groups[self.bindings[port].group];
            let new = group.bind(PortId(port as u16), &link.name, bound..queues)?;
            self.install(port, new, workers)?;
            self.bindings[port].reload_due = true;
        }
        // veth runs no program on queues added after it was attached (Linux 6.18), and ignores an update by the same program.
        let binding = &mut self.bindings[port];
        if binding.reload_due {
            binding.reload(link, &self.pins)?;
            program::attach(&mut binding.ebpf, link, &self.pins, &self.pins.link(&link.name))?;
            binding.program_id = program::id(&mut binding.ebpf)?;
            binding.reload_due = false;
        }
        Ok(())
    }

    /// Attaches the program again if it was detached, and reports another program in its place.
    fn keep_attached(&mut self, port: usize, link: &Link) -> Result<Condition, EdgeError> {
        let binding = &mut self.bindings[port];
        match Link::query(&link.name)?.xdp {
            Some(attached) if attached.program_id == binding.program_id => Ok(Condition::Bound),
            Some(other) => Ok(Condition::Held { program: describe_program(other.program_id) }),
            None => {
                let attachment = program::attach(&mut binding.ebpf, link, &self.pins, &self.pins.link(&link.name))?;
                binding.program_id = program::id(&mut binding.ebpf)?;
                self.infos[port].native = attachment.native;
                Ok(Condition::Bound)
            }
        }
    }
}
