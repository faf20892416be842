//! Redirect ports: interfaces that come and go (the host's ends of pods' cables, tunnels).
//!
//! They have no sockets. The same filter runs on them, but what it takes is redirected into the kernel's end of the internal pair and
//! arrives on the internal port. One program and one set of maps serve all of them; each has a pinned link of its own.

use std::collections::{BTreeMap, BTreeSet};

use aya::Ebpf;
use aya::maps::{MapData, MapError, PerCpuArray};
use nomagic_core::counters::XdpCounts;

use crate::config::{QUEUES_MAX, REDIRECTS_MAX};
use crate::edge::Edge;
use crate::error::EdgeError;
use crate::link::Link;
use crate::program::{self, Constants};
use crate::status::{Condition, RedirectStatus, read_xdp};

/// The redirect ports and what they share.
pub(crate) struct Redirects {
    constants: Constants,
    /// Port number of the internal port, whose queue's owner answers for them.
    internal: usize,
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
    pub fn new(constants: Constants, internal: usize) -> Redirects {
        Redirects { constants, internal, loaded: None, ports: BTreeMap::new() }
    }

    /// Each port, by name.
    pub fn status(&self) -> Vec<RedirectStatus> {
        self.ports.values().cloned().collect()
    }

    /// What their program did on all of them.
    pub fn counters(&self) -> Result<XdpCounts, EdgeError> {
        self.loaded.as_ref().map_or(Ok(XdpCounts::default()), |loaded| read_xdp(&loaded.stats))
    }
}

impl Edge {
    /// Makes exactly these interfaces redirect ports: attaches what is new, detaches what is gone. An interface that another program
    /// holds, or that cannot be attached to, is left alone and reported. Returns whether anything has changed. Cheap when nothing did;
    /// to be called when interfaces have come or gone, and now and then.
    pub fn redirect(&mut self, names: &BTreeSet<String>) -> bool {
        let Some(mut redirects) = self.redirects.take() else { return false };
        let before = redirects.ports.clone();
        if let Err(e) = self.redirect_all(&mut redirects, names) {
            tracing::error!("redirect ports: {e}");
        }
        let changed = redirects.ports != before;
        self.redirects = Some(redirects);
        changed
    }

    fn redirect_all(&self, redirects: &mut Redirects, names: &BTreeSet<String>) -> Result<(), EdgeError> {
        // What an earlier process has left counts too.
        let known: BTreeSet<String> = redirects.ports.keys().cloned().chain(self.pins.redirects()).collect();
        for gone in known.difference(names) {
            self.pins.remove_redirect(gone)?;
            redirects.ports.remove(gone);
            tracing::info!(interface = gone, "no redirect port any more");
        }
        if names.is_empty() {
            return Ok(());
        }
        self.load_redirect(redirects)?;
        for name in names.iter().take(REDIRECTS_MAX) {
            self.redirect_one(redirects, name);
        }
        if names.len() > REDIRECTS_MAX {
            tracing::error!("{} interfaces match, {REDIRECTS_MAX} can be redirect ports: the others are left to the kernel", names.len());
        }
        Ok(())
    }

    /// Loads the program once, and keeps it told who owns the internal port.
    fn load_redirect(&self, redirects: &mut Redirects) -> Result<(), EdgeError> {
        if redirects.loaded.is_none() {
            let mut ebpf = program::load("redirect ports", redirects.constants, Some((&self.pins, &self.pins.redirect_directory())))?;
            let stats = program::take_map(&mut ebpf, "stats")?.try_into().map_err(|e: MapError| EdgeError::map("stats", &e))?;
            redirects.loaded = Some(Loaded { ebpf, stats, owner: None });
        }
        let owner = self.ports.get(redirects.internal).and_then(|p| p.owners.first().copied());
        if let (Some(loaded), Some(owner)) = (&mut redirects.loaded, owner)
            && loaded.owner != Some(owner)
        {
            (0..QUEUES_MAX).try_for_each(|queue| program::set_owner(&mut loaded.ebpf, queue, u32::from(owner)))?;
            loaded.owner = Some(owner);
        }
        Ok(())
    }

    fn redirect_one(&self, redirects: &mut Redirects, name: &str) {
        let Some(loaded) = &mut redirects.loaded else { return };
        let known = redirects.ports.get(name);
        let status = match attach(self, &mut loaded.ebpf, name, known) {
            Ok(status) => status,
            Err(EdgeError::NoInterface { .. }) => {
                redirects.ports.remove(name);
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
        redirects.ports.insert(name.into(), status);
    }
}

/// The port as it is, or attached now.
fn attach(edge: &Edge, ebpf: &mut Ebpf, name: &str, known: Option<&RedirectStatus>) -> Result<RedirectStatus, EdgeError> {
    let link = Link::query(name)?;
    let id = program::id(ebpf)?;
    if let Some(known) = known
        && known.ifindex == link.ifindex
        && link.xdp.is_some_and(|xdp| xdp.program_id == id)
    {
        return Ok(known.clone());
    }
    let pin = edge.pins.redirect_link(name);
    if !pin.exists() {
        program::check_free(&link, None)?;
    }
    let attachment = program::attach(ebpf, &link, &edge.pins, &pin)?;
    Ok(RedirectStatus { name: name.into(), ifindex: link.ifindex, native: attachment.native, condition: Condition::Bound })
}
