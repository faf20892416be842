//! Redirect ports: interfaces that come and go (the host's ends of pods' veth pairs, tunnels).
//!
//! They have no sockets. The same filter runs on them, but it redirects captured frames to the kernel's end of the internal pair, and they
//! arrive on the internal port. All of them share one program and one set of maps; each has its own pinned link.

use std::collections::{BTreeMap, BTreeSet};

use aya::Ebpf;
use aya::maps::{MapData, MapError, PerCpuArray};
use nomagic_core::counters::XdpCounts;

use crate::addressed::PortMacs;
use crate::config::{QUEUES_MAX, REDIRECTS_MAX};
use crate::error::EdgeError;
use crate::link::Link;
use crate::pins::Pins;
use crate::program::{self, Constants};
use crate::status::{Condition, RedirectStatus, read_xdp};

/// The redirect ports and their shared program.
pub(crate) struct Redirects {
    pins: Pins,
    constants: Constants,
    loaded: Option<LoadedProgram>,
    ports: BTreeMap<String, RedirectStatus>,
}

struct LoadedProgram {
    ebpf: Ebpf,
    stats: PerCpuArray<MapData, u64>,
    owner: Option<u16>,
    /// What the program knows, by interface index.
    macs: BTreeMap<u32, PortMacs>,
}

impl LoadedProgram {
    /// Tells the program the MAC addresses of an interface.
    fn follow_macs(&mut self, link: &Link) -> Result<(), EdgeError> {
        let macs = PortMacs::of_redirect(link);
        if self.macs.get(&link.ifindex) != Some(&macs) {
            program::set_redirect_macs(&mut self.ebpf, link.ifindex, Some(macs))?;
            self.macs.insert(link.ifindex, macs);
        }
        Ok(())
    }

    /// Forgets interfaces other than these.
    fn forget_others(&mut self, kept: &BTreeSet<u32>) -> Result<(), EdgeError> {
        let gone: Vec<u32> = self.macs.keys().copied().filter(|ifindex| !kept.contains(ifindex)).collect();
        for ifindex in gone {
            program::set_redirect_macs(&mut self.ebpf, ifindex, None)?;
            self.macs.remove(&ifindex);
        }
        Ok(())
    }
}

impl Redirects {
    /// Starts without ports; `constants` are those of the redirect ports' program.
    pub fn new(pins: Pins, constants: Constants) -> Redirects {
        Redirects { pins, constants, loaded: None, ports: BTreeMap::new() }
    }

    /// The constants of their program.
    pub fn constants(&self) -> &Constants {
        &self.constants
    }

    /// Each port, by name.
    pub fn status(&self) -> Vec<RedirectStatus> {
        self.ports.values().cloned().collect()
    }

    /// Their program's counters, summed over all of them.
    pub fn counters(&self) -> Result<XdpCounts, EdgeError> {
        self.loaded.as_ref().map_or(Ok(XdpCounts::default()), |loaded| read_xdp(&loaded.stats))
    }

    /// Makes exactly these interfaces redirect ports: attaches new ones, detaches removed ones. An interface that another program holds, or
    /// that cannot be attached to, is left alone and reported. `owner` is the worker that owns the internal port's queue; the redirect
    /// ports follow its heartbeat. Returns whether anything changed.
    pub fn follow(&mut self, names: &BTreeSet<String>, owner: Option<u16>) -> bool {
        let before = self.ports.clone();
        if let Err(e) = self.follow_all(names, owner) {
            tracing::error!("redirect ports: {e}");
        }
        self.ports != before
    }

    fn follow_all(&mut self, names: &BTreeSet<String>, owner: Option<u16>) -> Result<(), EdgeError> {
        // Includes the redirect ports of an earlier process.
        let known: BTreeSet<String> = self.ports.keys().cloned().chain(self.pins.redirects()).collect();
        for gone in known.difference(names) {
            self.pins.remove_redirect(gone)?;
            self.ports.remove(gone);
            tracing::info!(interface = gone, "no longer a redirect port");
        }
        // Before others are added: there is room for twice the limit.
        let kept = self.ports.values().map(|port| port.ifindex).collect();
        self.loaded.as_mut().map_or(Ok(()), |loaded| loaded.forget_others(&kept))?;
        if names.is_empty() {
            return Ok(());
        }
        self.load(owner)?;
        for name in names.iter().take(REDIRECTS_MAX) {
            self.follow_one(name);
        }
        if names.len() > REDIRECTS_MAX {
            tracing::error!(
                "{} interfaces match, but at most {REDIRECTS_MAX} can be redirect ports: the others are left to the kernel",
                names.len()
            );
        }
        Ok(())
    }

    /// Loads the program once, and keeps its queue owner up to date.
    fn load(&mut self, owner: Option<u16>) -> Result<(), EdgeError> {
        let loaded = match &mut self.loaded {
            Some(loaded) => loaded,
            none => {
                let mut ebpf = program::load("redirect ports", self.constants, Some((&self.pins, &self.pins.redirect_directory())))?;
                let stats = program::take_map(&mut ebpf, "stats")?.try_into().map_err(|e: MapError| EdgeError::map("stats", &e))?;
                none.insert(LoadedProgram { ebpf, stats, owner: None, macs: BTreeMap::new() })
            }
        };
        if let Some(owner) = owner
            && loaded.owner != Some(owner)
        {
            (0..QUEUES_MAX).try_for_each(|queue| program::set_owner(&mut loaded.ebpf, queue, u32::from(owner)))?;
            loaded.owner = Some(owner);
        }
        Ok(())
    }

    fn follow_one(&mut self, name: &str) {
        let Some(loaded) = &mut self.loaded else { return };
        let known = self.ports.get(name);
        let status = match attach(&self.pins, loaded, name, known) {
            Ok(status) => status,
            Err(EdgeError::NoInterface { .. }) => {
                self.ports.remove(name);
                return;
            }
            Err(e) => {
                let condition = match e {
                    EdgeError::XdpBusy { program, .. } => Condition::Held { program },
                    e => Condition::Failed { error: e.to_string() },
                };
                RedirectStatus { name: name.into(), ifindex: 0, native: false, condition }
            }
        };
        if known.is_none_or(|known| *known != status) {
            match &status.condition {
                Condition::Bound => tracing::info!(interface = name, native = status.native, "redirect port"),
                other => tracing::warn!(interface = name, "this redirect port is {other}: its traffic is left to the kernel"),
            }
        }
        self.ports.insert(name.into(), status);
    }
}

/// Attaches the port's program unless it is attached already.
fn attach(pins: &Pins, loaded: &mut LoadedProgram, name: &str, known: Option<&RedirectStatus>) -> Result<RedirectStatus, EdgeError> {
    let link = Link::query(name)?;
    let id = program::id(&mut loaded.ebpf)?;
    if let Some(known) = known
        && known.ifindex == link.ifindex
        && link.xdp.is_some_and(|xdp| xdp.program_id == id)
    {
        loaded.follow_macs(&link)?;
        return Ok(known.clone());
    }
    let pin = pins.redirect_link(name);
    if !pin.exists() {
        program::check_free(&link, None)?;
    }
    loaded.follow_macs(&link)?;
    let attachment = program::attach(&mut loaded.ebpf, &link, pins, &pin)?;
    Ok(RedirectStatus { name: name.into(), ifindex: link.ifindex, native: attachment.native, condition: Condition::Bound })
}
