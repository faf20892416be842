//! Redirect ports: interfaces that come and go (the host's ends of pods' cables, tunnels).
//!
//! They have no sockets. The same filter runs on them, but what it takes is redirected into the kernel's end of the internal pair and
//! arrives on the internal port. One program and one set of maps serve all of them; each has a pinned link of its own.

use std::collections::{BTreeMap, BTreeSet};

use aya::Ebpf;
use aya::maps::{MapData, MapError, PerCpuArray};
use nomagic_core::counters::XdpCounts;

use crate::config::{QUEUES_MAX, REDIRECTS_MAX};
use crate::error::EdgeError;
use crate::link::Link;
use crate::pins::Pins;
use crate::program::{self, Constants};
use crate::status::{Condition, RedirectStatus, read_xdp};

/// The redirect ports and what they share.
pub(crate) struct Redirects {
    pins: Pins,
    constants: Constants,
    loaded: Option<Loaded>,
    ports: BTreeMap<String, RedirectStatus>,
}

struct Loaded {
    ebpf: Ebpf,
    stats: PerCpuArray<MapData, u64>,
    owner: Option<u16>,
}

impl Redirects {
    /// None yet; `constants` are those of the redirect ports' program.
    pub fn new(pins: Pins, constants: Constants) -> Redirects {
        Redirects { pins, constants, loaded: None, ports: BTreeMap::new() }
    }

    /// Each port, by name.
    pub fn status(&self) -> Vec<RedirectStatus> {
        self.ports.values().cloned().collect()
    }

    /// What their program did on all of them.
    pub fn counters(&self) -> Result<XdpCounts, EdgeError> {
        self.loaded.as_ref().map_or(Ok(XdpCounts::default()), |loaded| read_xdp(&loaded.stats))
    }

    /// Makes exactly these interfaces redirect ports: attaches what is new, detaches what is gone. An interface that another program
    /// holds, or that cannot be attached to, is left alone and reported. `owner`: the worker that owns the internal port's queue, and so answers
    /// for them. Returns whether anything has changed.
    pub fn follow(&mut self, names: &BTreeSet<String>, owner: Option<u16>) -> bool {
        let before = self.ports.clone();
        if let Err(e) = self.follow_all(names, owner) {
            tracing::error!("redirect ports: {e}");
        }
        self.ports != before
    }

    fn follow_all(&mut self, names: &BTreeSet<String>, owner: Option<u16>) -> Result<(), EdgeError> {
        // What an earlier process has left counts too.
        let known: BTreeSet<String> = self.ports.keys().cloned().chain(self.pins.redirects()).collect();
        for gone in known.difference(names) {
            self.pins.remove_redirect(gone)?;
            self.ports.remove(gone);
            tracing::info!(interface = gone, "no redirect port any more");
        }
        if names.is_empty() {
            return Ok(());
        }
        self.load(owner)?;
        for name in names.iter().take(REDIRECTS_MAX) {
            self.follow_one(name);
        }
        if names.len() > REDIRECTS_MAX {
            tracing::error!("{} interfaces match, {REDIRECTS_MAX} can be redirect ports: the others are left to the kernel", names.len());
        }
        Ok(())
    }

    /// Loads the program once, and keeps it told who owns the internal port.
    fn load(&mut self, owner: Option<u16>) -> Result<(), EdgeError> {
        let loaded = match &mut self.loaded {
            Some(loaded) => loaded,
            none => {
                let mut ebpf = program::load("redirect ports", self.constants, Some((&self.pins, &self.pins.redirect_directory())))?;
                let stats = program::take_map(&mut ebpf, "stats")?.try_into().map_err(|e: MapError| EdgeError::map("stats", &e))?;
                none.insert(Loaded { ebpf, stats, owner: None })
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
        let status = match attach(&self.pins, &mut loaded.ebpf, name, known) {
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
                other => tracing::warn!(interface = name, "this redirect port is {other}: its traffic is the kernel's"),
            }
        }
        self.ports.insert(name.into(), status);
    }
}

/// The port as it is, or attached now.
fn attach(pins: &Pins, ebpf: &mut Ebpf, name: &str, known: Option<&RedirectStatus>) -> Result<RedirectStatus, EdgeError> {
    let link = Link::query(name)?;
    let id = program::id(ebpf)?;
    if let Some(known) = known
        && known.ifindex == link.ifindex
        && link.xdp.is_some_and(|xdp| xdp.program_id == id)
    {
        return Ok(known.clone());
    }
    let pin = pins.redirect_link(name);
    if !pin.exists() {
        program::check_free(&link, None)?;
    }
    let attachment = program::attach(ebpf, &link, pins, &pin)?;
    Ok(RedirectStatus { name: name.into(), ifindex: link.ifindex, native: attachment.native, condition: Condition::Bound })
}
