//! Binding AF_XDP sockets: groups of ports, each on one UMEM.
//!
//! The kernel gives a UMEM one mode, zero-copy or copy, for all its sockets. So ports form groups: interfaces that offer zero-copy,
//! those that do not, and the internal port. Within a group frames go from port to port without a copy.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nomagic_core::frame::{BATCH_MAX, OUTPUT_MAX, PortId};
use nomagic_sys::fds::close_on_exec;
use nomagic_sys::xdp_socket::set_tx_budget;
use rustix::io::Errno;
use xsk_rs::Socket;
use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};

use crate::config::{EdgeConfig, QUEUES_MAX};
use crate::error::{EdgeError, os_error};
use crate::queue::{Queue, QueueParts, Rings, socket_of};
use crate::umem::{FrameSizes, Frames, Place, PoolId};

/// How long a queue may stay busy: a socket that was just closed lets go of it within 100 ms.
const BUSY_MAX: Duration = Duration::from_secs(1);
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Entries of the rings of a socket that only owns a UMEM.
const OWNER_RING: u32 = 64;

/// A port to be bound.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its place in the list of ports.
    pub port: PortId,
    /// Its interface.
    pub name: String,
    /// Its receive queues, all of which are bound.
    pub queues: u32,
}

/// Ports on one UMEM.
pub struct Group {
    /// The shared memory.
    pub frames: Arc<Frames>,
    /// The mode.
    pub zero_copy: bool,
    ring_size: u32,
    /// A socket on an interface that stays. The kernel binds further sockets to a UMEM only while its first one is bound.
    _owner: Mutex<Option<Rings>>,
}

/// The groups of all ports, and the bound queues of each.
#[derive(Default)]
pub struct Bound {
    /// By pool id.
    pub groups: Vec<Group>,
    /// By port: its group, and its queues.
    pub ports: Vec<(usize, Vec<Queue>)>,
}

/// Names a queue's rings: a queue is bound once at a time, so no two have the same.
pub fn place(port: PortId, queue: u32) -> Place {
    1 + port.0 * QUEUES_MAX as u16 + queue as u16
}

/// Binds all queues of the interfaces (`outside`) and of the internal port (`inside`).
pub fn bind_ports(config: &EdgeConfig, outside: &[Member], inside: &[Member]) -> Result<Bound, EdgeError> {
    let mut bound = Bound::default();
    let mut ports: Vec<Option<(usize, Vec<Queue>)>> = outside.iter().chain(inside).map(|_| None).collect();
    let mut bind_all = |bound: &mut Bound, mode: BindFlags, owner: Option<&str>, members: &[&Member]| {
        let id = bound.groups.len();
        let group = Group::open(id as PoolId, config, mode, owner, members)?;
        let mut refused = Vec::new();
        let mut used = false;
        for member in members {
            match group.bind(member.port, &member.name, 0..member.queues) {
                Err(EdgeError::Bind { source, .. }) if group.zero_copy && is_unsupported(&source) => refused.push((member.port, source)),
                queues => {
                    used = true;
                    ports[usize::from(member.port.0)] = Some((id, queues?));
                }
            }
        }
        if used {
            bound.groups.push(group);
        }
        Ok::<_, EdgeError>(refused)
    };
    let mut copied: Vec<&Member> = outside.iter().collect();
    if config.zero_copy {
        let refused = bind_all(&mut bound, BindFlags::XDP_ZEROCOPY, None, &copied)?;
        copied.retain(|m| refused.iter().any(|(port, _)| *port == m.port));
        for (port, source) in refused {
            let interface = &outside[usize::from(port.0)].name;
            tracing::warn!(interface, "zero-copy is not offered here ({source}): the kernel copies each frame once in and once out");
        }
    }
    // A veth offers no zero-copy. Both ends of the internal pair stay, so they own the UMEMs.
    let kernel_side = config.internal.as_ref().map(|pair| pair.kernel_side.as_str());
    for (owner, members) in [(kernel_side, copied), (None, inside.iter().collect())] {
        if !members.is_empty() {
            bind_all(&mut bound, BindFlags::XDP_COPY, owner, &members)?;
        }
    }
    bound.ports = ports.into_iter().flatten().collect();
    Ok(bound)
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::OPNOTSUPP | Errno::INVAL | Errno::PROTONOSUPPORT))
}

/// Frames for each worker: a full fill ring and a full tx ring for each queue that it may own, as many on their way to other workers
/// as a lane takes, a batch in hand, and what is held.
fn share(config: &EdgeConfig, members: &[&Member]) -> u32 {
    let queues: u32 = members.iter().map(|m| m.queues.div_ceil(config.workers.get())).sum();
    let held = (config.hold_frames_max as u32).div_ceil(config.workers.get());
    (queues * 2 + 1).saturating_mul(config.ring_size.get()).saturating_add(2 * BATCH_MAX as u32 + OUTPUT_MAX as u32 + held)
}

impl Group {
    fn open(id: PoolId, config: &EdgeConfig, mode: BindFlags, owner: Option<&str>, members: &[&Member]) -> Result<Group, EdgeError> {
        let sizes = FrameSizes {
            share: share(config, members),
            frame: config.frame_size.get(),
            headroom: config.headroom.get(),
            ring: config.ring_size.get(),
            huge_pages: config.huge_pages,
        };
        let frames = Frames::new(id, config.workers.get(), sizes)?;
        let owner = owner.map(|name| bind_socket(&frames, name, 0, OWNER_RING, mode)).transpose()?;
        Ok(Group {
            frames,
            zero_copy: mode.contains(BindFlags::XDP_ZEROCOPY),
            ring_size: config.ring_size.get(),
            _owner: Mutex::new(owner),
        })
    }

    /// Binds queues of an interface.
    pub fn bind(&self, port: PortId, interface: &str, queues: Range<u32>) -> Result<Vec<Queue>, EdgeError> {
        let mode = if self.zero_copy { BindFlags::XDP_ZEROCOPY } else { BindFlags::XDP_COPY };
        let bind = |queue| {
            let bound = Queue::new(QueueParts {
                port,
                index: queue,
                pool: usize::from(self.frames.id()),
                place: place(port, queue),
                ring_size: self.ring_size,
                rings: bind_socket(&self.frames, interface, queue, self.ring_size, mode)?,
            });
            if let Err(e) = set_tx_budget(bound.fd(), self.ring_size) {
                tracing::debug!(interface, queue, "the kernel sends 32 frames a call: {e}");
            }
            Ok(bound)
        };
        queues.map(bind).collect()
    }
}

pub(crate) fn bind_socket(frames: &Frames, name: &str, queue: u32, ring: u32, mode: BindFlags) -> Result<Rings, EdgeError> {
    let invalid = |e: &dyn std::fmt::Display| EdgeError::Config(format!("socket on {name}: {e}"));
    let size = QueueSize::new(ring).map_err(|e| invalid(&e))?;
    let config = SocketConfig::builder()
        .rx_queue_size(size)
        .tx_queue_size(size)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(mode | BindFlags::XDP_USE_NEED_WAKEUP)
        .build();
    let interface: Interface = name.parse().map_err(|e: std::ffi::NulError| invalid(&e))?;
    let deadline = Instant::now() + BUSY_MAX;
    loop {
        // SAFETY: INHIBIT_PROG_LOAD is set, as sharing a UMEM asks for, and each queue is bound once.
        let error = match unsafe { Socket::new(config, frames.umem(), &interface, queue) } {
            Ok((tx, rx, Some((fill, comp)))) => {
                // libxdp leaves that out.
                close_on_exec(socket_of(&tx)).map_err(|e| EdgeError::io(format!("socket on {name}"), e))?;
                return Ok(Rings { tx, rx, fill, comp });
            }
            Ok((_, _, None)) => Errno::BUSY,
            Err(e) => os_error(&e).unwrap_or(Errno::IO),
        };
        match error {
            Errno::BUSY if Instant::now() < deadline => std::thread::sleep(BUSY_PAUSE),
            Errno::PERM | Errno::ACCESS => {
                return Err(EdgeError::Privileges { what: format!("binding an AF_XDP socket to {name}") });
            }
            _ => return Err(EdgeError::Bind { interface: name.into(), queue, source: error.into() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PORTS_MAX;
    use crate::limits::{InterfaceName, RingSize, WorkerCount};
    use std::collections::HashSet;

    #[test]
    fn every_queue_has_a_place_of_its_own() {
        let all = (0..PORTS_MAX as u16).flat_map(|port| (0..QUEUES_MAX).map(move |queue| place(PortId(port), queue)));
        let places: HashSet<Place> = all.collect();
        assert_eq!(places.len(), PORTS_MAX * QUEUES_MAX as usize);
        assert!(!places.contains(&0), "0 is no ring");
    }

    #[test]
    fn shares_cover_the_rings() {
        let mut config = EdgeConfig::new("/run/x", ["a", "b"].map(InterfaceName::from_static).into());
        config.ring_size = RingSize::from_static(64);
        let member = |queues| Member { port: PortId(0), name: "a".into(), queues };
        let (one, four) = (member(1), member(4));
        let overhead = 2 * 64 + 16 + 1024;
        assert_eq!(share(&config, &[&one, &four]), (2 * 5 + 1) * 64 + overhead);
        config.workers = WorkerCount::from_static(2);
        assert_eq!(share(&config, &[&one, &four]), (2 * 3 + 1) * 64 + overhead - 512);
    }
}
