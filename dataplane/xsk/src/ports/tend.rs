//! Looking after the ports: lost, found again, changed.
//!
//! Each port is compared with what the kernel says of its interface, and what has changed is mended: an interface that was deleted and made
//! again is bound anew, new queues are bound, a program that was taken off is put back. The other ports go on.

use nomagic_core::frame::PortId;
use nomagic_sys::time::monotonic_ns;

use super::{Ports, rx_queues};
use crate::error::EdgeError;
use crate::link::{Link, describe_program};
use crate::program;
use crate::status::Condition;
use crate::workers::Workers;

/// Nanoseconds after which a port that could not be bound is tried again.
const RETRY_NS: u64 = 1_000_000_000;

impl Ports {
    /// Looks after the ports; to be called a few times a second, and when an interface has changed. What had to be done is logged and
    /// shows in [`Ports::infos`]. Returns whether anything did.
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
                    lost => tracing::error!(interface, "the port is {lost}; the other ports go on"),
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
                self.unbind(port, workers)?;
                return Ok(Condition::Missing);
            }
            link => link?,
        };
        let same = link.ifindex == info.ifindex && info.queues > 0;
        if !same && monotonic_ns() < self.bindings[port].retry_ns {
            return Ok(info.condition.clone());
        }
        if !same {
            self.unbind(port, workers)?;
            self.bind(port, &link, workers)?;
            self.infos[port].rebinds += 1;
        } else {
            self.follow_queues(port, &link, workers)?;
        }
        self.follow_rss(port);
        let info = &mut self.infos[port];
        (info.mac, info.mtu) = (link.mac, link.mtu);
        self.keep_attached(port, &link)
    }

    /// Binds queues that are new. The kernel lets nobody take queues away from under a socket.
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
        // veth runs no program on queues that are newer than it (Linux 6.18), and passes over an update by the same one.
        let binding = &mut self.bindings[port];
        if binding.reload_due {
            binding.ebpf = program::load(&link.name, binding.constants, Some((&self.pins, &self.pins.directory(&link.name))))?;
            program::attach(&mut binding.ebpf, link, &self.pins, &self.pins.link(&link.name))?;
            binding.program_id = program::id(&mut binding.ebpf)?;
            binding.reload_due = false;
        }
        Ok(())
    }

    /// Puts the program back where it was taken off, and tells when another has taken its place.
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
