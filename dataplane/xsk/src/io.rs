//! A worker's queues, frames and peers: everything between a verdict and a ring.

use std::sync::Arc;

use arrayvec::ArrayVec;
use nomagic_core::frame::{OUTPUT_MAX, PortId};
use nomagic_core::reason::Reason;

use crate::hold::OwnedFrame;
use crate::lanes::{Handed, Peer};
use crate::pool::{CopyError, FrameAccount, FramePool};
use crate::queue::{Origin, Queue};
use crate::shared::WorkerShared;
use crate::topology::Topology;
use crate::umem::{SEGMENTS_MAX, Token};

/// Maximum number of frames taken from one peer per round.
const TAKE_OVER_MAX: usize = 256;

/// How frames leave through a port.
#[derive(Debug)]
enum Exit {
    /// Not at all: the port is not bound.
    Closed,
    /// Through the worker's own queues, as indices into its list.
    Own { pool: usize, queues: Vec<usize> },
    /// Through the workers that own the port's queues.
    Peers { pool: usize, workers: Vec<u16> },
}

/// A worker's input and output.
pub(crate) struct WorkerIo {
    id: u16,
    pub shared: Arc<WorkerShared>,
    pub pools: Vec<FramePool>,
    /// Free frames lent to the packet path with each batch, by pool.
    pub spares: Vec<ArrayVec<Token, OUTPUT_MAX>>,
    pub queues: Vec<Queue>,
    /// By worker; this worker's entry is `None`.
    peers: Vec<Option<Peer>>,
    /// By port.
    exits: Vec<Exit>,
    pub now_ns: u64,
}

impl WorkerIo {
    /// Starts without queues.
    pub fn new(id: u16, shared: Arc<WorkerShared>, pools: Vec<FramePool>, peers: Vec<Option<Peer>>) -> WorkerIo {
        let spares = pools.iter().map(|_| ArrayVec::new()).collect();
        WorkerIo { id, shared, pools, spares, queues: Vec::new(), peers, exits: Vec::new(), now_ns: 0 }
    }

    /// Computes each port's exit.
    pub fn plan(&mut self, topology: &Topology) {
        let exit = |port: usize| {
            let port = PortId(port as u16);
            let Some(plan) = topology.port(port) else { return Exit::Closed };
            let own: Vec<usize> = (0..self.queues.len()).filter(|&q| self.queues[q].port == port).collect();
            match own.is_empty() {
                false => Exit::Own { pool: plan.pool, queues: own },
                // This worker owns queues that have not arrived yet, so it cannot send on the port.
                true if plan.owners.contains(&self.id) => Exit::Closed,
                true => Exit::Peers { pool: plan.pool, workers: plan.owners.clone() },
            }
        };
        self.exits = (0..topology.ports.len()).map(exit).collect();
        for pool in &self.pools {
            let id = usize::from(pool.id());
            let queues = self.queues.iter_mut().filter(|q| q.pool == id);
            let count = queues.count() as u32;
            // If frames are too few for full rings, half of them go to the fill rings and half stay for sending.
            self.queues.iter_mut().filter(|q| q.pool == id).for_each(|q| q.limit_fill(pool.total() / (2 * count)));
        }
    }

    pub fn add(&mut self, queues: Vec<Queue>) {
        self.queues.extend(queues);
    }

    /// Removes the queues of a port, with the frames on their rings.
    pub fn remove(&mut self, port: PortId) -> Vec<Queue> {
        let (gone, kept): (Vec<Queue>, Vec<Queue>) = self.queues.drain(..).partition(|q| q.port == port);
        self.queues = kept;
        for queue in &gone {
            let (fill, tx) = queue.outstanding();
            self.pools[queue.pool].leave_behind(fill + tx);
        }
        gone
    }

    /// Takes back the frames of a closed queue's rings.
    pub fn reclaim(&mut self, tokens: Vec<Token>) {
        for token in tokens {
            self.pools[usize::from(token.pool())].take_over(&token);
            self.free(token);
        }
    }

    /// Sends a frame through a port; a frame that cannot be sent is counted and freed.
    pub fn send(&mut self, packet: OwnedFrame, port: PortId, origin: Origin) {
        let len = packet.total_len();
        if let Err((token, reason)) = self.dispatch(packet, port, origin) {
            self.free(token);
            self.failed(origin, reason, len);
        }
    }

    fn dispatch(&mut self, packet: OwnedFrame, port: PortId, origin: Origin) -> Result<(), (Token, Reason)> {
        let bytes = packet.total_len();
        let OwnedFrame { token, start, len, queue, .. } = packet;
        match self.exits.get(usize::from(port.0)) {
            None | Some(Exit::Closed) => Err((token, Reason::PortDown)),
            Some(Exit::Own { pool, queues }) => {
                let (pool, q) = (*pool, queues[queue as usize % queues.len()]);
                if self.queues[q].down {
                    return Err((token, Reason::PortDown));
                }
                let token = self.fit(token, pool, start, len)?;
                self.stage(q, token, origin)
            }
            Some(Exit::Peers { pool, workers }) => {
                let (pool, worker) = (*pool, workers[queue as usize % workers.len()]);
                let token = self.fit(token, pool, start, len)?;
                self.hand_over(usize::from(worker), Handed { token, port, queue, origin }, bytes)
            }
        }
    }

    /// Sets the frame's data range, and moves the frame into the pool of the outgoing port.
    fn fit(&mut self, mut token: Token, target: usize, start: usize, len: usize) -> Result<Token, (Token, Reason)> {
        let home = usize::from(token.pool());
        if home != target {
            return self.copy(token, target, start, len);
        }
        if !self.pools[home].place(&mut token, start, len) {
            return Err((token, Reason::FrameTooLong));
        }
        Ok(token)
    }

    /// Copies a packet into another pool and frees the original.
    fn copy(&mut self, mut token: Token, target: usize, start: usize, len: usize) -> Result<Token, (Token, Reason)> {
        let home = usize::from(token.pool());
        let Ok([home, target]) = self.pools.get_disjoint_mut([home, target]) else { return Err((token, Reason::PortDown)) };
        let copied = {
            let mut tail = ArrayVec::new();
            let head = &home.bytes_and_tail(&mut token, &mut tail)[start..start + len];
            let pieces: ArrayVec<&[u8], SEGMENTS_MAX> = std::iter::once(head).chain(tail).collect();
            target.copy_from(&pieces)
        };
        match copied {
            Ok(copy) => {
                home.give(token);
                self.shared.io.copied.count(copy.total_len());
                Ok(copy)
            }
            Err(CopyError::Empty) => Err((token, Reason::PoolEmpty)),
            Err(CopyError::TooLong) => Err((token, Reason::FrameTooLong)),
        }
    }

    fn stage(&mut self, q: usize, token: Token, origin: Origin) -> Result<(), (Token, Reason)> {
        if let Err(token) = self.queues[q].stage(token, origin) {
            self.flush_queue(q);
            self.queues[q].stage(token, origin).map_err(|token| (token, Reason::TxFull))?;
        }
        Ok(())
    }

    fn hand_over(&mut self, worker: usize, handed: Handed, len: usize) -> Result<(), (Token, Reason)> {
        let Some(peer) = self.peers.get_mut(worker).and_then(Option::as_mut) else { return Err((handed.token, Reason::WorkerGone)) };
        if !peer.alive(self.now_ns) {
            return Err((handed.token, Reason::WorkerGone));
        }
        let pool = &mut self.pools[usize::from(handed.token.pool())];
        pool.hand_over(&handed.token);
        peer.hand_over(handed).map_err(|handed| {
            pool.take_over(&handed.token);
            (handed.token, Reason::HandoverFull)
        })?;
        self.shared.io.handed_over.count(len);
        Ok(())
    }

    /// Sends frames handed over by peers, and takes returned frames back. Returns the number of handed-over frames.
    pub fn drain_handovers(&mut self) -> usize {
        let mut frames = 0;
        for worker in 0..self.peers.len() {
            while let Some(token) = self.peers[worker].as_ref().and_then(Peer::returned) {
                self.pools[usize::from(token.pool())].take_over(&token);
                self.free(token);
            }
            for _ in 0..TAKE_OVER_MAX {
                let Some(handed) = self.peers[worker].as_ref().and_then(Peer::handed) else { break };
                frames += 1;
                self.send_handed(handed);
            }
        }
        if frames > 0 {
            self.flush();
        }
        frames
    }

    fn send_handed(&mut self, handed: Handed) {
        let Handed { token, port, queue, .. } = handed;
        let len = token.total_len();
        self.pools[usize::from(token.pool())].take_over(&token);
        self.shared.io.handed_in.count(len);
        let staged = match self.exits.get(usize::from(port.0)) {
            Some(Exit::Own { queues, .. }) => {
                let q = queues[queue as usize % queues.len()];
                if self.queues[q].down { Err((token, Reason::PortDown)) } else { self.stage(q, token, Origin::Handed) }
            }
            _ => Err((token, Reason::PortDown)),
        };
        if let Err((token, reason)) = staged {
            self.free(token);
            self.failed(Origin::Handed, reason, len);
        }
    }

    /// Takes back frames from the lanes to dead or stuck workers.
    pub fn reclaim_from_dead_peers(&mut self) {
        for worker in 0..self.peers.len() {
            let now_ns = self.now_ns;
            while let Some(handed) = self.peers[worker].as_ref().filter(|p| !p.alive(now_ns)).and_then(Peer::take_back) {
                let len = handed.token.total_len();
                self.pools[usize::from(handed.token.pool())].take_over(&handed.token);
                self.failed(handed.origin, Reason::WorkerGone, len);
                self.free(handed.token);
            }
        }
    }

    /// Returns other workers' frames and wakes sleeping peers.
    pub fn return_foreign_frames(&mut self) {
        for pool in &mut self.pools {
            while let Some((token, home)) = pool.stray() {
                pool.hand_over(&token);
                let Some(peer) = self.peers.get_mut(home).and_then(Option::as_mut) else {
                    debug_assert!(false, "a foreign frame that belongs to this worker");
                    break;
                };
                if let Err(token) = peer.send_home(token) {
                    debug_assert!(false, "the ring of returning frames has room for all of them");
                    pool.take_over(&token);
                    pool.give(token);
                    break;
                }
            }
        }
        self.peers.iter_mut().flatten().for_each(Peer::wake);
    }

    /// Whether a peer has left frames for this worker.
    pub fn waiting(&self) -> bool {
        self.peers.iter().flatten().any(Peer::waiting)
    }

    /// Refills the spare frames.
    pub fn refill_spares(&mut self, pool: usize) {
        while !self.spares[pool].is_full()
            && let Some(token) = self.pools[pool].take()
        {
            self.spares[pool].push(token);
        }
    }

    /// Puts all staged frames onto the tx rings.
    pub fn flush(&mut self) {
        (0..self.queues.len()).for_each(|q| self.flush_queue(q));
    }

    fn flush_queue(&mut self, q: usize) {
        let queue = &mut self.queues[q];
        let pool = &mut self.pools[queue.pool];
        let unsent = queue.flush(pool, &self.shared.sends);
        let reason = if queue.down { Reason::PortDown } else { Reason::TxFull };
        for frame in unsent {
            self.failed(frame.origin, reason, frame.len);
        }
    }

    /// Corrects the counters for a frame that could not be sent.
    fn failed(&self, origin: Origin, reason: Reason, len: usize) {
        let WorkerShared { counters, io, .. } = &*self.shared;
        match origin {
            Origin::Forward => counters.forward_failed(reason, len),
            Origin::Kernel(judged) => counters.kernel_failed(judged, reason, len),
            Origin::Made => return io.made_failed.add(1),
            Origin::Handed => {
                io.handed_failed.count(len);
                counters.reasons.handed.of(reason).add(1);
            }
        }
        self.shared.record_drop(self.now_ns, reason, len);
    }

    pub fn free(&mut self, token: Token) {
        self.pools[usize::from(token.pool())].give(token);
    }

    /// Makes the kernel send the frames on the tx rings.
    pub fn kick(&mut self) {
        for queue in &mut self.queues {
            queue.kick(&mut self.pools[queue.pool], &self.shared.sends);
        }
    }

    /// Checks whether ports that were down are up again.
    pub fn probe(&mut self) {
        for queue in &mut self.queues {
            queue.probe(&mut self.pools[queue.pool], &self.shared.sends);
        }
    }

    /// The locations of a pool's frames, except those held.
    pub fn account(&self, pool: usize) -> FrameAccount {
        let mut account = FrameAccount {
            total: self.pools[pool].total(),
            free: self.pools[pool].free(),
            in_hand: self.spares[pool].len() as u32,
            away: self.pools[pool].away(),
            ..FrameAccount::default()
        };
        for queue in self.queues.iter().filter(|q| q.pool == pool) {
            let (fill, tx) = queue.outstanding();
            account.fill += fill;
            account.tx += tx;
        }
        account
    }
}

#[cfg(test)]
mod tests;
