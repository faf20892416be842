//! Binds AF_XDP sockets in port groups, each on one UMEM.
//!
//! The kernel gives a UMEM one mode, zero-copy or copy, for all its sockets. So ports form groups: interfaces with zero-copy, interfaces
//! without it, and the internal port. Frames are not copied between ports of a group.
#![allow(unsafe_code, reason = "sockets that share a UMEM")]

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
use crate::umem::{FrameSizes, Frames, PoolId, RingId};

/// How long binding retries a busy queue. The kernel releases the queue of a closed socket within 100 ms.
const BUSY_MAX: Duration = Duration::from_secs(1);
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// An Ethernet header with a VLAN tag, bytes.
const ETHERNET_AND_TAG: u32 = 18;
/// XDP_PACKET_HEADROOM of linux/bpf.h, bytes.
const XDP_HEADROOM: u32 = 256;
/// Ring entries of a socket that only owns a UMEM.
const OWNER_RING: u32 = 64;

/// A port to be bound.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its index in the list of ports.
    pub port: PortId,
    pub name: String,
    /// Its receive queues; all of them are bound.
    pub queues: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// A port group: ports on one UMEM.
pub struct PortGroup {
    pub frames: Arc<Frames>,
    pub zero_copy: bool,
    mode: BindFlags,
    ring_size: u32,
    /// A socket on an interface that is never removed. The kernel binds further sockets to a UMEM only while the first one is bound.
    _owner: Mutex<Option<Rings>>,
}

/// All port groups, and the bound queues of each port.
#[derive(Default)]
pub struct Bound {
    /// By pool id.
    pub groups: Vec<PortGroup>,
    /// By port: its group and its queues.
    pub ports: Vec<(usize, Vec<Queue>)>,
}

/// Identifies a queue's rings. A queue is bound once at a time, so the id is unique.
pub fn ring_id(port: PortId, queue: u32) -> RingId {
    1 + port.0 * QUEUES_MAX as u16 + queue as u16
}

/// Binds all queues of the interfaces (`outside`) and of the internal port (`inside`).
pub fn bind_ports(config: &EdgeConfig, outside: &[Member], inside: &[Member]) -> Result<Bound, EdgeError> {
    let mut bound = Bound::default();
    let mut ports: Vec<Option<(usize, Vec<Queue>)>> = outside.iter().chain(inside).map(|_| None).collect();
    let mut bind_all = |bound: &mut Bound, mode: BindFlags, owner: Option<&str>, members: &[&Member]| {
        let id = bound.groups.len();
        let mode = mode | if segmented(config, mode, members) { BindFlags::XDP_USE_SG } else { BindFlags::empty() };
        let group = PortGroup::open(id as PoolId, config, mode, owner, members)?;
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
            tracing::warn!(interface, "zero-copy is not supported here ({source}): the kernel copies each frame on receive and on send");
        }
    }
    // A veth has no zero-copy mode. Neither end of the internal pair is ever removed, so they own the UMEMs.
    let kernel_side = config.internal.as_ref().map(|pair| pair.kernel_side.as_str());
    for (owner, members) in [(kernel_side, copied), (None, inside.iter().collect())] {
        if !members.is_empty() {
            bind_all(&mut bound, BindFlags::XDP_COPY, owner, &members)?;
        }
    }
    bound.ports = ports.into_iter().flatten().collect();
    Ok(bound)
}

/// Whether a packet may have several frames. Costs nothing in copy mode. A driver with zero-copy may be without it, so there only if the MTU requires it.
fn segmented(config: &EdgeConfig, mode: BindFlags, members: &[&Member]) -> bool {
    let fits = |member: &&Member| member.mtu + ETHERNET_AND_TAG <= config.frame_size.get() - XDP_HEADROOM - config.headroom.get();
    config.segments && (mode.contains(BindFlags::XDP_COPY) || !members.iter().all(fits))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::OPNOTSUPP | Errno::INVAL | Errno::PROTONOSUPPORT))
}

/// Frames per worker: a full fill ring and a full tx ring for each queue it may own, a full lane's frames in transit to other workers, one
/// batch in hand, and the held frames and fragments.
fn share(config: &EdgeConfig, members: &[&Member]) -> u32 {
    let queues: u32 = members.iter().map(|m| m.queues.div_ceil(config.workers.get())).sum();
    let held = (config.hold_frames_max as u32).div_ceil(config.workers.get()) + config.fragments_held_max() as u32;
    (queues * 2 + 1).saturating_mul(config.ring_size.get()).saturating_add(2 * BATCH_MAX as u32 + OUTPUT_MAX as u32 + held)
}

impl PortGroup {
    fn open(id: PoolId, config: &EdgeConfig, mode: BindFlags, owner: Option<&str>, members: &[&Member]) -> Result<PortGroup, EdgeError> {
        let sizes = FrameSizes {
            share: share(config, members),
            frame: config.frame_size.get(),
            headroom: config.headroom.get(),
            ring: config.ring_size.get(),
            huge_pages: config.huge_pages,
            segmented: mode.contains(BindFlags::XDP_USE_SG),
        };
        let frames = Frames::new(id, config.workers.get(), sizes)?;
        let owner = owner.map(|name| bind_socket(&frames, name, 0, OWNER_RING, mode)).transpose()?;
        Ok(PortGroup {
            frames,
            zero_copy: mode.contains(BindFlags::XDP_ZEROCOPY),
            mode,
            ring_size: config.ring_size.get(),
            _owner: Mutex::new(owner),
        })
    }

    /// Binds an interface's queues in this range.
    pub fn bind(&self, port: PortId, interface: &str, queues: Range<u32>) -> Result<Vec<Queue>, EdgeError> {
        let bind = |queue| {
            let bound = Queue::new(QueueParts {
                port,
                index: queue,
                pool: usize::from(self.frames.id()),
                ring_id: ring_id(port, queue),
                ring_size: self.ring_size,
                rings: bind_socket(&self.frames, interface, queue, self.ring_size, self.mode)?,
            });
            if let Err(e) = set_tx_budget(bound.fd(), self.ring_size) {
                tracing::debug!(interface, queue, "the kernel sends at most 32 frames per call: {e}");
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
        // SAFETY: INHIBIT_PROG_LOAD is set, as a shared UMEM requires, and each queue is bound once.
        let error = match unsafe { Socket::new(config, frames.umem(), &interface, queue) } {
            Ok((tx, rx, Some((fill, comp)))) => {
                // libxdp does not set close-on-exec.
                close_on_exec(socket_of(&tx)).map_err(|e| EdgeError::io(format!("socket on {name}"), e))?;
                return Ok(Rings { tx, rx, fill, comp });
            }
            Ok((_, _, None)) => Errno::BUSY,
            Err(e) => os_error(&e).unwrap_or(Errno::IO),
        };
        match error {
            Errno::BUSY if Instant::now() < deadline => std::thread::sleep(BUSY_PAUSE),
            Errno::PERM | Errno::ACCESS => {
                return Err(EdgeError::privileges(format!("binding an AF_XDP socket to {name}")));
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
    fn every_queue_has_a_unique_ring_id() {
        let all = (0..PORTS_MAX as u16).flat_map(|port| (0..QUEUES_MAX).map(move |queue| ring_id(PortId(port), queue)));
        let ids: HashSet<RingId> = all.collect();
        assert_eq!(ids.len(), PORTS_MAX * QUEUES_MAX as usize);
        assert!(!ids.contains(&0), "0 means not on a ring");
    }

    #[test]
    fn packets_have_several_frames_where_it_costs_nothing_or_the_mtu_requires_it() {
        let mut config = EdgeConfig::new("/run/x", [InterfaceName::from_static("a")].into());
        let member = |mtu| Member { port: PortId(0), name: "a".into(), queues: 1, mtu };
        let (small, large) = (member(1_774), member(1_775));
        let (copy, zero_copy) = (BindFlags::XDP_COPY, BindFlags::XDP_ZEROCOPY);
        assert!(segmented(&config, copy, &[&small]) && segmented(&config, zero_copy, &[&small, &large]));
        assert!(!segmented(&config, zero_copy, &[&small, &small]));
        config.segments = false;
        assert!(!segmented(&config, copy, &[&large]) && !segmented(&config, zero_copy, &[&large]));
    }

    #[test]
    fn shares_cover_the_rings() {
        let mut config = EdgeConfig::new("/run/x", ["a", "b"].map(InterfaceName::from_static).into());
        config.ring_size = RingSize::from_static(64);
        let member = |queues| Member { port: PortId(0), name: "a".into(), queues, mtu: 1500 };
        let (one, four) = (member(1), member(4));
        let overhead = 2 * 64 + 16 + 2 * 1024;
        assert_eq!(share(&config, &[&one, &four]), (2 * 5 + 1) * 64 + overhead);
        config.workers = WorkerCount::from_static(2);
        assert_eq!(share(&config, &[&one, &four]), (2 * 3 + 1) * 64 + overhead - 2 * 512);
    }
}
