//! Sends a flood at a rate from a thread of its own, and sleeps between frames: the clients share its CPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nomagic_sys::packet_socket::PacketSocket;
use nomagic_sys::time::monotonic_ns;

use super::kind::Kind;
use crate::pktgen::pace::Pacer;
use crate::pktgen::template::Macs;

/// Frames between two looks at the clock.
const BURST: u32 = 64;
/// The shortest sleep.
const PAUSE: Duration = Duration::from_micros(500);

/// A running flood. Dropping it ends it.
pub struct Sender {
    ended: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    /// Starts a flood of `pps` frames a second by the interface. Call it on a thread in the interface's namespace.
    pub fn start(ifindex: u32, kind: Kind, macs: Macs, pps: u64) -> Result<Sender> {
        let socket = PacketSocket::open(ifindex).context("cannot open a packet socket")?;
        let (ended, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (own_end, own_sent) = (ended.clone(), sent.clone());
        let thread = std::thread::spawn(move || flood(&socket, kind, &macs, pps, &own_end, &own_sent));
        Ok(Sender { ended, sent, thread: Some(thread) })
    }

    /// Frames sent until now.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.ended.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn flood(socket: &PacketSocket, kind: Kind, macs: &Macs, pps: u64, ended: &AtomicBool, sent: &AtomicU64) {
    let mut pacer = Pacer::new(pps, monotonic_ns());
    let mut n = 0;
    while !ended.load(Relaxed) {
        let now = pacer.take(monotonic_ns(), BURST);
        for _ in 0..now {
            // A full queue of the cable drops the frame, as a link would. Only what was sent counts.
            if socket.send(&kind.frame(n, macs)).is_ok() {
                sent.fetch_add(1, Relaxed);
            }
            n += 1;
        }
        if now < BURST {
            std::thread::sleep(PAUSE);
        }
    }
}
