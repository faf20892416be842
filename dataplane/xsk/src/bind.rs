//! Binding AF_XDP sockets: all queues of a group of ports on one UMEM.
//!
//! The kernel gives a UMEM one mode, zero-copy or copy, for all its sockets. So ports form groups: the interfaces are one, the
//! internal port is another.

use std::io;
use std::time::{Duration, Instant};

use nomagic_core::frame::{BATCH_MAX, OUTPUT_MAX, PortId};
use xsk_rs::Socket;
use xsk_rs::config::{BindFlags, Interface, LibxdpFlags, QueueSize, SocketConfig};

use crate::error::{EdgeError, os_error};
use crate::pool::{Pool, PoolId};
use crate::queue::Queue;
use crate::sys;

/// How long a queue may stay busy: a socket that was just closed lets go of it within 100 ms.
const BUSY_MAX: Duration = Duration::from_secs(1);
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// A port of a group.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its place in the list of ports.
    pub port: PortId,
    /// Its interface.
    pub name: String,
    /// Its receive queues, all of which are bound.
    pub queues: u32,
}

/// Sizes of a group's memory.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Entries of each ring.
    pub ring: u32,
    /// Bytes of a frame.
    pub frame: u32,
    /// Frames that may be held beside those on the rings.
    pub held: u32,
}

/// A group with all its sockets bound.
pub struct Group {
    /// Its frames.
    pub pool: Pool,
    /// Its queues, port by port.
    pub queues: Vec<Queue>,
    /// The mode.
    pub zero_copy: bool,
}

/// Binds all queues of the members, zero-copy if asked for and offered by all of them, else in copy mode.
pub fn bind_group(id: PoolId, members: &[Member], sizes: Sizes, zero_copy: bool) -> Result<Group, EdgeError> {
    if zero_copy {
        match bind_all(id, members, sizes, BindFlags::XDP_ZEROCOPY) {
            Err(EdgeError::Bind { interface, source, .. }) if is_unsupported(&source) => {
                tracing::warn!(
                    interface,
                    "zero-copy is not offered here ({source}): this group of ports copies each frame once in and once out"
                );
            }
            bound => return bound,
        }
    }
    bind_all(id, members, sizes, BindFlags::XDP_COPY)
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::EPROTONOSUPPORT))
}

fn bind_all(id: PoolId, members: &[Member], sizes: Sizes, mode: BindFlags) -> Result<Group, EdgeError> {
    let rings: u32 = members.iter().map(|m| m.queues).sum();
    // A full fill ring and a full tx ring for each queue, a batch in hand, and what is held.
    let frames = rings * 2 * sizes.ring + 2 * BATCH_MAX as u32 + OUTPUT_MAX as u32 + sizes.held;
    let pool = Pool::new(id, frames, sizes.frame, sizes.ring)?;
    let mut queues = Vec::new();
    for member in members {
        for queue in 0..member.queues {
            queues.push(bind_one(&pool, member, queue, sizes.ring, mode)?);
        }
    }
    Ok(Group { pool, queues, zero_copy: mode.contains(BindFlags::XDP_ZEROCOPY) })
}

fn bind_one(pool: &Pool, member: &Member, queue: u32, ring: u32, mode: BindFlags) -> Result<Queue, EdgeError> {
    let invalid = |e: &dyn std::fmt::Display| EdgeError::Config(format!("socket on {}: {e}", member.name));
    let size = QueueSize::new(ring).map_err(|e| invalid(&e))?;
    let config = SocketConfig::builder()
        .rx_queue_size(size)
        .tx_queue_size(size)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(mode | BindFlags::XDP_USE_NEED_WAKEUP)
        .build();
    let interface: Interface = member.name.parse().map_err(|e: std::ffi::NulError| invalid(&e))?;
    let deadline = Instant::now() + BUSY_MAX;
    loop {
        // SAFETY: INHIBIT_PROG_LOAD is set, as sharing a UMEM asks for, and each queue is bound once.
        let error = match unsafe { Socket::new(config, pool.umem(), &interface, queue) } {
            Ok((tx, rx, Some(fill_and_comp))) => {
                let bound = Queue::new(member.port, queue, usize::from(pool.id()), ring, (tx, rx), fill_and_comp);
                if let Err(e) = sys::set_tx_budget(bound.fd(), ring) {
                    tracing::debug!(interface = member.name, queue, "the kernel sends 32 frames a call: {e}");
                }
                return Ok(bound);
            }
            Ok((_, _, None)) => io::Error::from_raw_os_error(libc::EBUSY),
            Err(e) => io::Error::from_raw_os_error(os_error(&e).unwrap_or(libc::EIO)),
        };
        match error.raw_os_error() {
            Some(libc::EBUSY) if Instant::now() < deadline => std::thread::sleep(BUSY_PAUSE),
            Some(libc::EPERM | libc::EACCES) => {
                return Err(EdgeError::Privileges { what: format!("binding an AF_XDP socket to {}", member.name) });
            }
            _ => return Err(EdgeError::Bind { interface: member.name.clone(), queue, source: error }),
        }
    }
}
