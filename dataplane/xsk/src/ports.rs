//! The life of the ports: bound, lost, found again.
//!
//! [`Edge::tend`] compares each port with what the kernel says of its interface, and mends what has changed: an interface that was
//! deleted and made again is bound anew, new queues are bound, a program that was taken off is put back. The other ports go on.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{MapData, MapError, PerCpuArray};
use crossbeam::channel::bounded;
use nomagic_core::frame::PortId;
use nomagic_sys::time::monotonic_ns;

use crate::bind::{Group, place};
use crate::edge::Edge;
use crate::error::EdgeError;
use crate::ethtool::{self, RssError};
use crate::link::{Link, describe_program};
use crate::program::{self, Constants};
use crate::queue::Queue;
use crate::shared::Command;
use crate::status::{Condition, PortInfo};
use crate::topology::{PortPlan, Topology, spread};

/// How long a worker may take to answer: it looks once a round.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Nanoseconds after which a port that could not be bound is tried again.
const RETRY_NS: u64 = 1_000_000_000;
/// Nanoseconds between looks at a NIC's receive side scaling: `ethtool -X` and `-N` tell nobody.
const RSS_LOOK_NS: u64 = 5_000_000_000;

/// What a port is made of, beside what it tells about itself.
pub(crate) struct Binding {
    /// Keeps the program and its maps open.
    pub ebpf: Ebpf,
    pub stats: PerCpuArray<MapData, u64>,
    /// A second descriptor of each socket, for its statistics, by queue.
    pub sockets: Vec<OwnedFd>,
    /// Its group's number, which is that of its pool.
    pub group: usize,
    /// The program's number while it is attached.
    pub program_id: u32,
    constants: Constants,
    /// The program must be loaded once more.
    reload_due: bool,
    retry_ns: u64,
    rss_due_ns: u64,
}

impl Binding {
    /// Loads the program of an interface.
    pub fn load(link: &Link, constants: Constants, pins: &crate::pins::Pins) -> Result<Binding, EdgeError> {
        let mut ebpf = program::load(&link.name, constants, Some((pins, &pins.directory(&link.name))))?;
        let stats = program::take_map(&mut ebpf, "stats")?.try_into().map_err(|e: MapError| EdgeError::map("stats", &e))?;
        Ok(Binding { ebpf, stats, sockets: Vec::new(), group: 0, program_id: 0, constants, reload_due: false, retry_ns: 0, rss_due_ns: 0 })
    }
}

/// A port before it is bound.
pub(crate) fn port_info(port: PortId, link: &Link) -> PortInfo {
    PortInfo {
        id: port,
        name: link.name.clone(),
        ifindex: link.ifindex,
        mac: link.mac,
        mtu: link.mtu,
        native: false,
        zero_copy: false,
        queues: 0,
        owners: Vec::new(),
        condition: Condition::Missing,
        rebinds: 0,
        rss: Err(RssError::NotBound),
    }
}

impl Edge {
    /// Looks after the ports; to be called a few times a second, and when an interface has changed. What had to be done is logged and
    /// shows in [`Edge::ports`]. Returns whether anything did.
    pub fn tend(&mut self) -> bool {
        let mut changed = false;
        for port in 0..self.ports.len() {
            let before = self.ports[port].clone();
            let condition = self.tend_port(port).unwrap_or_else(|e| {
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
            self.ports[port].condition = condition;
            changed |= self.ports[port] != before;
        }
        changed
    }

    fn tend_port(&mut self, port: usize) -> Result<Condition, EdgeError> {
        let info = &self.ports[port];
        let link = match Link::query(&info.name) {
            Err(EdgeError::NoInterface { .. }) => {
                self.unbind(port)?;
                return Ok(Condition::Missing);
            }
            link => link?,
        };
        let same = link.ifindex == info.ifindex && info.queues > 0;
        if !same && monotonic_ns() < self.bindings[port].retry_ns {
            return Ok(info.condition.clone());
        }
        if !same {
            self.unbind(port)?;
            self.bind(port, &link)?;
            self.ports[port].rebinds += 1;
        } else {
            self.follow_queues(port, &link)?;
        }
        self.follow_rss(port);
        let info = &mut self.ports[port];
        (info.mac, info.mtu) = (link.mac, link.mtu);
        self.keep_attached(port, &link)
    }

    /// Binds queues that are new. The kernel lets nobody take queues away from under a socket.
    fn follow_queues(&mut self, port: usize, link: &Link) -> Result<(), EdgeError> {
        let bound = self.ports[port].queues;
        let queues = rx_queues(&link.name)?;
        if queues > bound {
            tracing::info!(interface = link.name, bound, queues, "new queues are bound");
            let group = &self.groups[self.bindings[port].group];
            let new = group.bind(PortId(port as u16), &link.name, bound..queues)?;
            self.install(port, new)?;
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

    /// Looks how the NIC spreads what it receives: at once when the queues are others, else every few seconds.
    fn follow_rss(&mut self, port: usize) {
        let (info, binding) = (&mut self.ports[port], &mut self.bindings[port]);
        let now_ns = monotonic_ns();
        if now_ns < binding.rss_due_ns {
            return;
        }
        binding.rss_due_ns = now_ns + RSS_LOOK_NS;
        let rss = ethtool::rss(&info.name, &info.owners).map(Arc::new);
        if rss == info.rss {
            return;
        }
        match &rss {
            Ok(known) => tracing::info!(interface = info.name, entries = known.entries(), "the queues of answers can be told beforehand"),
            Err(reason) => tracing::debug!(interface = info.name, "the queues of answers cannot be told beforehand: {reason}"),
        }
        info.rss = rss;
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
                self.ports[port].native = attachment.native;
                Ok(Condition::Bound)
            }
        }
    }

    /// Binds all queues of an interface and gives them to the workers.
    fn bind(&mut self, port: usize, link: &Link) -> Result<(), EdgeError> {
        let queues = rx_queues(&link.name)?;
        let group: &Group = &self.groups[self.bindings[port].group];
        let bound = group.bind(PortId(port as u16), &link.name, 0..queues)?;
        self.ports[port].ifindex = link.ifindex;
        self.install(port, bound)
    }

    /// Leads queues to their sockets and gives them to the workers that own them from now on.
    pub(crate) fn install(&mut self, port: usize, queues: Vec<Queue>) -> Result<(), EdgeError> {
        let workers: Vec<u16> = (0..self.workers.len() as u16).filter(|&w| self.live(usize::from(w))).collect();
        if workers.is_empty() {
            return Err(EdgeError::Workers { what: "there is none alive to own the queues".into() });
        }
        let (info, binding) = (&mut self.ports[port], &mut self.bindings[port]);
        let total = info.queues + queues.len() as u32;
        let plan = spread(total, &workers, port);
        let mut parcels: Vec<Vec<Queue>> = self.workers.iter().map(|_| Vec::new()).collect();
        for queue in queues {
            let owner = plan[queue.index as usize];
            program::connect_queue(&mut binding.ebpf, queue.index, queue.fd(), u32::from(owner))?;
            binding.sockets.push(queue.fd().try_clone_to_owned().map_err(|e| EdgeError::io("duplicating a socket", e))?);
            info.owners.push(owner);
            parcels[usize::from(owner)].push(queue);
        }
        info.queues = total;
        info.zero_copy = self.groups[binding.group].zero_copy;
        for (worker, queues) in parcels.into_iter().enumerate().filter(|(_, queues)| !queues.is_empty()) {
            let (done, answer) = bounded(1);
            self.tell(worker, Command::Add(queues, done))?;
            answer.recv_timeout(ANSWER_MAX).map_err(|_| silent(worker))?;
        }
        self.publish_topology();
        self.bindings[port].rss_due_ns = 0;
        self.follow_rss(port);
        Ok(())
    }

    /// Takes a port's queues away from the workers, closes their sockets and brings the frames home that these held.
    fn unbind(&mut self, port: usize) -> Result<(), EdgeError> {
        let id = PortId(port as u16);
        let info = &mut self.ports[port];
        let (count, mut owners) = (std::mem::take(&mut info.queues), std::mem::take(&mut info.owners));
        info.rss = Err(RssError::NotBound);
        if count == 0 {
            return Ok(());
        }
        owners.sort_unstable();
        owners.dedup();
        self.publish_topology();
        let mut gone = Vec::new();
        // A dead worker's sockets were closed when it ended; what they held is lost with it.
        for owner in owners.into_iter().map(usize::from).filter(|&owner| self.workers[owner].shared.alive.load(Relaxed)) {
            let (give, queues) = bounded(1);
            self.tell(owner, Command::Remove(id, give))?;
            gone.extend(queues.recv_timeout(ANSWER_MAX).map_err(|_| silent(owner))?);
        }
        let binding = &mut self.bindings[port];
        binding.sockets.clear();
        binding.program_id = 0;
        let frames = self.groups[binding.group].frames.clone();
        let places: Vec<_> = gone.iter().map(|q: &Queue| place(id, q.index)).collect();
        // The sockets close here; the kernel has let go of their frames when this is done.
        drop(gone);
        let mut homes: Vec<Vec<_>> = self.workers.iter().map(|_| Vec::new()).collect();
        for token in places.into_iter().flat_map(|place| frames.reclaim(place)) {
            homes[frames.home(&token)].push(token);
        }
        for (home, tokens) in homes.into_iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
            self.tell(home, Command::Reclaimed(tokens))?;
        }
        Ok(())
    }

    fn tell(&self, worker: usize, command: Command) -> Result<(), EdgeError> {
        let handle = &self.workers[worker];
        handle.commands.send_timeout(command, ANSWER_MAX).map_err(|_| silent(worker))?;
        handle.shared.waker.wake();
        Ok(())
    }

    pub(crate) fn publish_topology(&self) {
        let plan = |i: usize| {
            let info = &self.ports[i];
            (info.queues > 0).then(|| PortPlan { pool: self.bindings[i].group, owners: info.owners.clone() })
        };
        self.topology.publish(Arc::new(Topology { ports: (0..self.ports.len()).map(plan).collect() }));
        self.wake();
    }
}

fn silent(worker: usize) -> EdgeError {
    EdgeError::Workers { what: format!("worker {worker} does not answer") }
}

/// Receive queues of an interface, within the limit.
pub(crate) fn rx_queues(interface: &str) -> Result<u32, EdgeError> {
    use crate::config::QUEUES_MAX;
    let queues = ethtool::rx_queues(interface).map_err(|e| EdgeError::io(format!("asking for the queues of {interface}"), e))?;
    if queues > QUEUES_MAX {
        return Err(EdgeError::Config(format!(
            "{interface} has {queues} queues: {QUEUES_MAX} at the most (`ethtool -L {interface} combined {QUEUES_MAX}`)"
        )));
    }
    Ok(queues)
}
