//! The ports: their interfaces, programs and sockets, and which worker owns which queue.

mod tend;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{MapData, MapError, PerCpuArray};
use crossbeam::channel::bounded;
use nomagic_core::counters::SocketCounts;
use nomagic_core::frame::PortId;
use nomagic_sys::time::monotonic_ns;
use nomagic_sys::xdp_socket::statistics;

use crate::addressed::PortMacs;
use crate::bind::{Member, PortGroup, ring_id};
use crate::config::QUEUES_MAX;
use crate::error::EdgeError;
use crate::ethtool::{self, RssError};
use crate::link::Link;
use crate::pins::Pins;
use crate::program::{self, Constants};
use crate::published::Published;
use crate::queue::Queue;
use crate::shared::WorkerCommand;
use crate::status::{Condition, PortInfo, PortStatus, read_xdp, socket_counts};
use crate::topology::{PortPlan, Topology, spread};
use crate::workers::{ANSWER_MAX, Workers, silent};

/// Nanoseconds between queries of a NIC's receive side scaling: `ethtool -X` and `-N` send no notification.
const RSS_LOOK_NS: u64 = 5_000_000_000;

/// A port's resources, in addition to its [`PortInfo`].
pub(crate) struct Binding {
    /// Keeps the program and its maps open.
    pub ebpf: Ebpf,
    stats: PerCpuArray<MapData, u64>,
    /// A duplicate descriptor of each socket, for its statistics, by queue.
    sockets: Vec<OwnedFd>,
    /// The index of its port group, which equals its pool id.
    group: usize,
    /// The program's id while it is attached.
    program_id: u32,
    constants: Constants,
    macs: PortMacs,
    /// The program must be loaded again.
    reload_due: bool,
    retry_ns: u64,
    rss_due_ns: u64,
}

impl Binding {
    /// Loads the program of an interface.
    pub fn load(link: &Link, constants: Constants, pins: &Pins) -> Result<Binding, EdgeError> {
        let macs = PortMacs::of(link);
        let mut ebpf = load_program(link, constants, macs, pins)?;
        let stats = program::take_map(&mut ebpf, "stats")?.try_into().map_err(|e: MapError| EdgeError::map("stats", &e))?;
        let (sockets, group, program_id) = (Vec::new(), 0, 0);
        Ok(Binding { ebpf, stats, sockets, group, program_id, constants, macs, reload_due: false, retry_ns: 0, rss_due_ns: 0 })
    }

    /// Loads the program once more; it is not attached yet.
    fn reload(&mut self, link: &Link, pins: &Pins) -> Result<(), EdgeError> {
        self.ebpf = load_program(link, self.constants, self.macs, pins)?;
        Ok(())
    }

    /// Tells the program when the interface has another MAC address, or belongs to another bridge.
    fn follow_macs(&mut self, link: &Link) -> Result<(), EdgeError> {
        let macs = PortMacs::of(link);
        if macs != self.macs {
            program::set_macs(&mut self.ebpf, macs)?;
            self.macs = macs;
            tracing::info!(interface = link.name, "the interface has another MAC address: frames to it are taken now");
        }
        Ok(())
    }
}

/// Loads the program of an interface, which knows its MAC addresses before it is attached.
fn load_program(link: &Link, constants: Constants, macs: PortMacs, pins: &Pins) -> Result<Ebpf, EdgeError> {
    let mut ebpf = program::load(&link.name, constants, Some((pins, &pins.directory(&link.name))))?;
    program::set_macs(&mut ebpf, macs)?;
    Ok(ebpf)
}

/// All ports, by [`PortId`]: the interfaces in configuration order, then the internal port.
pub(crate) struct Ports {
    pins: Pins,
    infos: Vec<PortInfo>,
    bindings: Vec<Binding>,
    groups: Vec<PortGroup>,
    topology: Published<Topology>,
}

impl Ports {
    /// Creates ports whose programs are loaded but not attached, without queues.
    pub fn new(pins: Pins, links: &[Link], bindings: Vec<Binding>, groups: Vec<PortGroup>, topology: Published<Topology>) -> Ports {
        let infos = links.iter().enumerate().map(|(i, link)| unbound(PortId(i as u16), link)).collect();
        Ports { pins, infos, bindings, groups, topology }
    }

    pub fn infos(&self) -> &[PortInfo] {
        &self.infos
    }

    /// The number of UMEMs, each of which is a pool.
    pub fn pools(&self) -> usize {
        self.groups.len()
    }

    /// Each port's status and counters. Also frees unused topologies.
    pub fn status(&self) -> Result<Vec<PortStatus>, EdgeError> {
        self.topology.collect();
        let status = |(info, binding): (&PortInfo, &Binding)| {
            let sockets =
                binding.sockets.iter().map(|s| statistics(s).map_or_else(|_| SocketCounts::default(), |raw| socket_counts(&raw))).collect();
            Ok(PortStatus { info: info.clone(), xdp: read_xdp(&binding.stats)?, sockets })
        };
        self.infos.iter().zip(&self.bindings).map(status).collect()
    }

    /// Gives the queues bound at startup to the workers.
    pub fn install_all(&mut self, bound: Vec<(usize, Vec<Queue>)>, workers: &Workers) -> Result<(), EdgeError> {
        for (port, (group, queues)) in bound.into_iter().enumerate() {
            self.bindings[port].group = group;
            self.install(port, queues, workers)?;
        }
        for worker in 0..workers.len() as u16 {
            if !self.infos.iter().any(|p| p.owners.contains(&worker)) {
                tracing::warn!("worker {worker} owns no queue: there are fewer queues than workers");
            }
        }
        Ok(())
    }

    /// Attaches or replaces the programs. If one fails, newly attached ones are detached again.
    pub fn attach(&mut self, links: &[Link]) -> Result<(), EdgeError> {
        let mut created: Vec<&Link> = Vec::new();
        for (port, link) in links.iter().enumerate() {
            match self.attach_one(port, link) {
                Ok(true) => created.push(link),
                Ok(false) => {}
                Err(e) => {
                    for link in created {
                        if let Err(undo) = self.pins.remove_interface(&link.name) {
                            tracing::warn!(interface = link.name, "{undo}");
                        }
                    }
                    return Err(e);
                }
            }
        }
        Ok(())
    }

    /// Returns whether the program is newly attached, not a replacement.
    fn attach_one(&mut self, port: usize, link: &Link) -> Result<bool, EdgeError> {
        let (info, binding) = (&mut self.infos[port], &mut self.bindings[port]);
        let attachment = program::attach(&mut binding.ebpf, link, &self.pins, &self.pins.link(&link.name))?;
        (info.native, info.condition) = (attachment.native, Condition::Bound);
        binding.program_id = program::id(&mut binding.ebpf)?;
        tracing::info!(
            interface = link.name,
            native = attachment.native,
            taken_over = !attachment.created,
            zero_copy = info.zero_copy,
            queues = info.queues,
            "XDP filter attached"
        );
        Ok(attachment.created)
    }

    /// Detaches the programs from interfaces of an earlier configuration.
    pub fn forget_others(&self) {
        for name in self.pins.interfaces() {
            if !self.infos.iter().any(|p| p.name == name) {
                match self.pins.remove_interface(&name) {
                    Ok(()) => tracing::info!(interface = name, "no longer configured: XDP filter detached"),
                    Err(e) => tracing::warn!(interface = name, "no longer configured, but its pins could not be removed: {e}"),
                }
            }
        }
    }

    /// Binds all queues of an interface and gives them to the workers.
    fn bind(&mut self, port: usize, link: &Link, workers: &Workers) -> Result<(), EdgeError> {
        let queues = rx_queues(&link.name)?;
        let group = &self.groups[self.bindings[port].group];
        let bound = group.bind(PortId(port as u16), &link.name, 0..queues)?;
        self.infos[port].ifindex = link.ifindex;
        self.install(port, bound, workers)
    }

    /// Connects queues to their sockets and gives them to the workers that own them.
    fn install(&mut self, port: usize, queues: Vec<Queue>, workers: &Workers) -> Result<(), EdgeError> {
        let live: Vec<u16> = workers.all_live().map(|w| w as u16).collect();
        if live.is_empty() {
            return Err(EdgeError::Workers { what: "no live worker to own the queues".into() });
        }
        let (info, binding) = (&mut self.infos[port], &mut self.bindings[port]);
        let total = info.queues + queues.len() as u32;
        let plan = spread(total, &live, port);
        let mut parcels: Vec<Vec<Queue>> = (0..workers.len()).map(|_| Vec::new()).collect();
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
            workers.send_command(worker, WorkerCommand::Add(queues, done))?;
            answer.recv_timeout(ANSWER_MAX).map_err(|_| silent(worker))?;
        }
        self.publish_topology(workers);
        self.bindings[port].rss_due_ns = 0;
        self.follow_rss(port);
        Ok(())
    }

    /// Takes a port's queues away from the workers, closes their sockets and returns the frames on their rings to their homes.
    fn unbind(&mut self, port: usize, workers: &Workers) -> Result<(), EdgeError> {
        let id = PortId(port as u16);
        let info = &mut self.infos[port];
        let (count, mut owners) = (std::mem::take(&mut info.queues), std::mem::take(&mut info.owners));
        info.rss = Err(RssError::NotBound);
        if count == 0 {
            return Ok(());
        }
        owners.sort_unstable();
        owners.dedup();
        self.publish_topology(workers);
        let mut gone = Vec::new();
        // A dead worker's sockets were closed when its thread ended; the frames on their rings are lost with it.
        for owner in owners.into_iter().map(usize::from).filter(|&owner| workers.runs(owner)) {
            let (give, queues) = bounded(1);
            workers.send_command(owner, WorkerCommand::Remove(id, give))?;
            gone.extend(queues.recv_timeout(ANSWER_MAX).map_err(|_| silent(owner))?);
        }
        let binding = &mut self.bindings[port];
        binding.sockets.clear();
        binding.program_id = 0;
        let frames = self.groups[binding.group].frames.clone();
        let ring_ids: Vec<_> = gone.iter().map(|q: &Queue| ring_id(id, q.index)).collect();
        // The sockets close here. The kernel has released their frames when this returns.
        drop(gone);
        let mut homes: Vec<Vec<_>> = (0..workers.len()).map(|_| Vec::new()).collect();
        for token in ring_ids.into_iter().flat_map(|ring_id| frames.reclaim(ring_id)) {
            homes[frames.home(&token)].push(token);
        }
        for (home, tokens) in homes.into_iter().enumerate().filter(|(_, tokens)| !tokens.is_empty()) {
            workers.send_command(home, WorkerCommand::Reclaimed(tokens))?;
        }
        Ok(())
    }

    /// Reads the NIC's receive side scaling: at once if the queues have changed, else every few seconds.
    fn follow_rss(&mut self, port: usize) {
        let (info, binding) = (&mut self.infos[port], &mut self.bindings[port]);
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
            Ok(known) => tracing::info!(interface = info.name, entries = known.entries(), "the queues of replies are predictable"),
            Err(reason) => tracing::debug!(interface = info.name, "the queues of replies are not predictable: {reason}"),
        }
        info.rss = rss;
    }

    fn publish_topology(&self, workers: &Workers) {
        let plan = |(info, binding): (&PortInfo, &Binding)| {
            (info.queues > 0).then(|| PortPlan { pool: binding.group, owners: info.owners.clone() })
        };
        self.topology.publish(Arc::new(Topology { ports: self.infos.iter().zip(&self.bindings).map(plan).collect() }));
        workers.wake();
    }
}

/// A port that is not bound yet.
fn unbound(port: PortId, link: &Link) -> PortInfo {
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
        link: link.state,
        rebinds: 0,
        rss: Err(RssError::NotBound),
    }
}

/// The interfaces to bind.
pub(crate) fn members(links: &[Link]) -> Result<Vec<Member>, EdgeError> {
    let member = |(i, link): (usize, &Link)| {
        Ok(Member { port: PortId(i as u16), name: link.name.clone(), queues: rx_queues(&link.name)?, mtu: link.mtu })
    };
    links.iter().enumerate().map(member).collect()
}

/// Receive queues of an interface, within the limit.
fn rx_queues(interface: &str) -> Result<u32, EdgeError> {
    let queues = ethtool::rx_queues(interface).map_err(|e| EdgeError::io(format!("querying the queues of {interface}"), e))?;
    if queues > QUEUES_MAX {
        return Err(EdgeError::Config(format!(
            "{interface} has {queues} queues: at most {QUEUES_MAX} are supported (`ethtool -L {interface} combined {QUEUES_MAX}`)"
        )));
    }
    Ok(queues)
}
