//! One AF_XDP socket with its own UMEM, for one direction. Only this module touches rings.
#![allow(unsafe_code, reason = "the rings of an AF_XDP socket")]

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nomagic_sys::fds::close_on_exec;
use nomagic_sys::xdp_socket::{kick_tx, set_tx_budget};
use xsk_rs::config::{BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

/// Frames of the UMEM, and entries of each ring.
const RING: u32 = 8192;
/// Bytes of a frame; 1,792 of them are data behind XDP's headroom.
const FRAME: u32 = 2048;
pub const BATCH: usize = 64;
/// A closed socket keeps its queue for up to 100 ms, longer on a busy kernel.
const BUSY_MAX: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// The most sendto() calls for one batch: each sends 32 frames unless the budget is raised.
const KICKS_MAX: u32 = 256;

pub struct Xsk {
    umem: Umem,
    tx: TxQueue,
    rx: RxQueue,
    fill: FillQueue,
    comp: CompQueue,
    /// Frames on no ring.
    free: Vec<FrameDesc>,
    kick_due: bool,
}

impl Xsk {
    /// Binds to a queue of an interface in the calling thread's namespace, in zero-copy mode if the driver supports it.
    pub fn bind(interface: &str, queue: u32) -> Result<Xsk> {
        let mut end = Instant::now() + BUSY_MAX;
        let mut mode = BindFlags::XDP_ZEROCOPY;
        loop {
            let error = match Xsk::try_bind(interface, queue, mode)? {
                Ok(xsk) => return Ok(xsk),
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::EBUSY) if Instant::now() < end => std::thread::sleep(BUSY_PAUSE),
                Some(libc::EOPNOTSUPP | libc::EINVAL | libc::EPROTONOSUPPORT) if mode.contains(BindFlags::XDP_ZEROCOPY) => {
                    (mode, end) = (BindFlags::XDP_COPY, Instant::now() + BUSY_MAX);
                }
                _ => return Err(error).with_context(|| format!("cannot bind an AF_XDP socket to queue {queue} of {interface}")),
            }
        }
    }

    /// The inner error is the kernel's answer to the bind.
    fn try_bind(interface: &str, queue: u32, mode: BindFlags) -> Result<io::Result<Xsk>> {
        let size = QueueSize::new(RING).context("ring size")?;
        let sizes = UmemConfig::builder().frame_size(FrameSize::new(FRAME)?).fill_queue_size(size).comp_queue_size(size).build()?;
        let frames = NonZeroU32::new(RING).context("no frames")?;
        let (umem, free) = Umem::new(sizes, frames, false).context("cannot register packet memory (16 MiB; see `ulimit -l`)")?;
        let config = SocketConfig::builder()
            .rx_queue_size(size)
            .tx_queue_size(size)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(mode | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let name: Interface = interface.parse().with_context(|| format!("`{interface}` is not a valid interface name"))?;
        // SAFETY: INHIBIT_PROG_LOAD is set, and the UMEM is bound once.
        match unsafe { Socket::new(config, &umem, &name, queue) } {
            Ok((tx, rx, Some((fill, comp)))) => {
                let xsk = Xsk { umem, tx, rx, fill, comp, free, kick_due: false };
                // A child that inherits the socket keeps the queue busy as long as it lives.
                close_on_exec(xsk.socket()).context("AF_XDP socket")?;
                // Older kernels send 32 frames a call: `kick` calls again.
                let _ = set_tx_budget(xsk.socket(), RING);
                Ok(Ok(xsk))
            }
            Ok((_, _, None)) => Err(anyhow!("a new UMEM has no rings")),
            Err(e) => {
                let code = std::error::Error::source(&e).and_then(|s| s.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
                Ok(Err(io::Error::from_raw_os_error(code.unwrap_or(libc::EIO))))
            }
        }
    }

    /// The socket, for the XSK map.
    pub fn fd(&self) -> RawFd {
        self.tx.fd().as_raw_fd()
    }

    fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps its socket open. xsk-rs gives the number only.
        unsafe { BorrowedFd::borrow_raw(self.fd()) }
    }

    /// Sends up to `wanted` frames, at most [`BATCH`]. `write` fills a buffer and returns the frame's length, or 0
    /// for the end. Returns the number of frames put on the ring, which is lower while the kernel still holds the
    /// buffers.
    pub fn send(&mut self, wanted: usize, mut write: impl FnMut(&mut [u8]) -> usize) -> io::Result<usize> {
        self.complete();
        let n = wanted.min(BATCH).min(self.free.len()).min(self.tx.nb_free(BATCH as u32) as usize);
        let from = self.free.len() - n;
        let mut written = 0;
        for desc in &mut self.free[from..] {
            desc.set_options(0);
            // SAFETY: the frame is of this UMEM and on no ring.
            let mut data = unsafe { self.umem.data_mut(desc) };
            let room = data.cursor().buf_len();
            data.cursor().set_pos(room);
            let len = write(data.contents_mut());
            data.cursor().set_pos(len);
            if len == 0 {
                break;
            }
            written += 1;
        }
        // SAFETY: the frames are of this UMEM, on no other ring, and leave the free list below.
        let sent = unsafe { self.tx.produce(&self.free[from..from + written]) };
        self.free.drain(from..from + sent);
        self.kick_due |= sent > 0;
        self.kick()?;
        Ok(sent)
    }

    /// Reclaims sent frames. True when none is in flight.
    pub fn complete(&mut self) -> bool {
        let mut descs = [FrameDesc::default(); BATCH];
        loop {
            // SAFETY: the ring is this UMEM's.
            let n = unsafe { self.comp.consume(&mut descs) };
            self.free.extend_from_slice(&descs[..n]);
            if n < BATCH {
                return self.free.len() == RING as usize;
            }
        }
    }

    /// Tells the kernel to send. The rest waits for the next call.
    pub fn kick(&mut self) -> io::Result<()> {
        for _ in 0..KICKS_MAX {
            if !self.kick_due || !self.tx.needs_wakeup() {
                break;
            }
            match kick_tx(self.socket()).map_err(|e| (e.raw_os_error(), e)) {
                Ok(()) => self.kick_due = false,
                Err((Some(libc::EAGAIN), _)) => {
                    self.complete();
                }
                Err((Some(libc::EBUSY | libc::ENOBUFS), _)) => break,
                Err((_, e)) => return Err(e),
            }
        }
        Ok(())
    }

    /// Puts all free frames on the fill ring.
    pub fn refill(&mut self) -> io::Result<()> {
        if !self.free.is_empty() {
            // SAFETY: the frames are of this UMEM, on no other ring, and leave the free list below.
            let n = unsafe { self.fill.produce(&self.free) };
            self.free.drain(..n);
        }
        if self.fill.needs_wakeup() {
            self.fill.wakeup(self.rx.fd_mut(), 0)?;
        }
        Ok(())
    }

    /// Receives up to [`BATCH`] frames and passes each to `take`. Returns their number.
    pub fn receive(&mut self, mut take: impl FnMut(&[u8])) -> io::Result<usize> {
        let mut descs = [FrameDesc::default(); BATCH];
        // SAFETY: the ring is this UMEM's.
        let n = unsafe { self.rx.consume(&mut descs) };
        for desc in &descs[..n] {
            // SAFETY: the frame has just come off the ring of this UMEM, and is on no other one before `refill`.
            take(unsafe { self.umem.data(desc) }.contents());
        }
        self.free.extend_from_slice(&descs[..n]);
        if n > 0 {
            self.refill()?;
        }
        Ok(n)
    }

    /// Waits for frames. False at the time limit.
    pub fn wait(&mut self, limit_ms: i32) -> io::Result<bool> {
        self.rx.poll(limit_ms)
    }

    /// Frames that the socket lost: `(rx ring full, no buffer or frame too long)`.
    pub fn lost(&self) -> io::Result<(u64, u64)> {
        let statistics = self.rx.fd().xdp_statistics()?;
        Ok((statistics.rx_ring_full(), statistics.rx_dropped()))
    }
}
