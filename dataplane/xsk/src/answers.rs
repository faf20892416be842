//! Captures answers that the kernel sends out of ports and redirect ports, so that endpoints behind the kernel see their clients' addresses.
//!
//! Such an endpoint is on the node's own network, or a pod behind an interface that nomagic does not look at. Its answer leaves the node by the
//! kernel's route to the client. One program (bpf/answers.c) on the egress of each port redirects it into the internal port. The links are
//! pinned like those of the XDP programs. Where the kernel has no TCX (before Linux 6.6) these endpoints see `snat.internalAddresses` instead.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{Array, MapError, PerCpuArray};
use aya::programs::links::{FdLink, LinkError, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use nomagic_core::filter::ReplyKey;
use nomagic_sys::time::monotonic_ns;
use rustix::io::Errno;

use crate::error::{EdgeError, chain, os_error};
use crate::pins::Pins;
use crate::program::take_map;
use crate::reply_key;
use crate::status::AnswerCounts;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/answers.o"));

const PROGRAM: &str = "nomagic_answers";
/// Maps of the XDP filter that the program reads.
const SHARED_MAPS: [&str; 3] = ["replies", "heartbeats", "settings"];
const OWNER: &str = "answers_owner";
const COUNTS: &str = "answers_count";
/// Nanoseconds between attempts to attach.
const RETRY_NS: u64 = 1_000_000_000;

/// Constants compiled into the program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnswerConstants {
    pub reply_buckets: u32,
    pub reply_key: ReplyKey,
    /// Interface index of the kernel's end of the internal pair.
    pub redirect_to: u32,
}

/// The program, and the interfaces that it is attached to.
pub(crate) struct Answers {
    pins: Pins,
    loaded: Loaded,
    owner: Option<u16>,
    interfaces: BTreeMap<String, Attempt>,
}

struct Loaded {
    /// Keeps the program and its maps open.
    ebpf: Ebpf,
    owners: Array<aya::maps::MapData, u32>,
    counts: PerCpuArray<aya::maps::MapData, u64>,
}

/// The last attempt to attach to an interface.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Attempt {
    ifindex: u32,
    result: Result<(), String>,
    at_ns: u64,
}

impl Answers {
    /// Loads the program, without interfaces.
    pub fn load(pins: Pins, constants: AnswerConstants) -> Result<Answers, EdgeError> {
        let (mask, key) = (constants.reply_buckets - 1, constants.reply_key.0);
        let mut loader = EbpfLoader::new();
        loader.btf(None);
        loader.override_global("reply_mask", &mask, true);
        loader.override_global("reply_key", &key, true);
        loader.override_global("redirect_to", &constants.redirect_to, true);
        loader.map_max_entries("replies", reply_key::entries(constants.reply_buckets));
        for map in SHARED_MAPS {
            loader.map_pin_path(map, pins.shared(map));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|e| failed(&e))?;
        program(&mut ebpf)?.load().map_err(|e| failed(&e))?;
        let owners = take_map(&mut ebpf, OWNER)?.try_into().map_err(|e: MapError| EdgeError::map(OWNER, &e))?;
        let counts = take_map(&mut ebpf, COUNTS)?.try_into().map_err(|e: MapError| EdgeError::map(COUNTS, &e))?;
        Ok(Answers { pins, loaded: Loaded { ebpf, owners, counts }, owner: None, interfaces: BTreeMap::new() })
    }

    /// Whether answers that leave by this interface are captured.
    pub fn sees(&self, interface: &str) -> bool {
        self.interfaces.get(interface).is_some_and(|attempt| attempt.result.is_ok())
    }

    /// What the program has done on all interfaces.
    pub fn counts(&self) -> Result<AnswerCounts, EdgeError> {
        let read = |place| {
            let values = self.loaded.counts.get(&place, 0).map_err(|e| EdgeError::map(COUNTS, &e))?;
            Ok::<u64, EdgeError>(values.iter().sum())
        };
        Ok(AnswerCounts { taken: read(0)?, dropped: read(1)?, unseen_ports: Vec::new() })
    }

    /// Attaches the program to exactly these interfaces (name and index). `owner` is the worker of the internal port's queue, whose heartbeat
    /// the program goes by. What fails is logged, and tried again a second later. Returns whether anything changed.
    pub fn follow(&mut self, wanted: &BTreeMap<String, u32>, owner: Option<u16>) -> bool {
        let before: Vec<String> = self.seen();
        if let Err(e) = self.follow_all(wanted, owner) {
            tracing::error!("answers of the node's own endpoints: {e}");
        }
        self.seen() != before
    }

    fn seen(&self) -> Vec<String> {
        self.interfaces.iter().filter(|(_, attempt)| attempt.result.is_ok()).map(|(name, _)| name.clone()).collect()
    }

    fn follow_all(&mut self, wanted: &BTreeMap<String, u32>, owner: Option<u16>) -> Result<(), EdgeError> {
        if let Some(owner) = owner
            && self.owner != Some(owner)
        {
            self.loaded.owners.set(0, u32::from(owner), 0).map_err(|e| EdgeError::map(OWNER, &e))?;
            self.owner = Some(owner);
        }
        // Includes those of an earlier process.
        let pinned = self.pins.answers().into_iter();
        for gone in self.interfaces.keys().cloned().chain(pinned).filter(|name| !wanted.contains_key(name)).collect::<Vec<_>>() {
            self.pins.remove_answers(&gone)?;
            self.interfaces.remove(&gone);
        }
        let now_ns = monotonic_ns();
        for (name, ifindex) in wanted {
            let known = self.interfaces.get(name);
            let due = |known: &Attempt| known.ifindex != *ifindex || known.result.is_err() && now_ns >= known.at_ns + RETRY_NS;
            if known.is_some_and(|known| !due(known)) {
                continue;
            }
            let result = attach(&mut self.loaded.ebpf, &self.pins, name).map_err(|e| e.to_string());
            if let Err(e) = &result
                && known.is_none_or(|known| known.result != result)
            {
                tracing::warn!(
                    interface = name,
                    "{e}: endpoints of this node behind the kernel see snat.internalAddresses, not the addresses of clients there"
                );
            }
            self.interfaces.insert(name.clone(), Attempt { ifindex: *ifindex, result, at_ns: now_ns });
        }
        Ok(())
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier, EdgeError> {
    let missing = || EdgeError::Program { interface: "answers".into(), detail: format!("the embedded object has no program {PROGRAM}") };
    ebpf.program_mut(PROGRAM).ok_or_else(missing)?.try_into().map_err(|_| missing())
}

fn failed(error: &(dyn std::error::Error + 'static)) -> EdgeError {
    match os_error(error) {
        Some(Errno::PERM | Errno::ACCESS) => EdgeError::privileges("loading the program for answers"),
        _ => EdgeError::Program { interface: "answers".into(), detail: chain(error) },
    }
}

/// Attaches the program through the pinned link of an earlier process, or with a new link.
fn attach(ebpf: &mut Ebpf, pins: &Pins, interface: &str) -> Result<(), EdgeError> {
    let path = pins.answers_link(interface);
    let program = program(ebpf)?;
    if replace_pinned(program, &path, interface)? {
        return Ok(());
    }
    pins.remove(&path)?;
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(interface, TcAttachType::Egress, options).map_err(|e| refused(interface, &e))?;
    let link: FdLink =
        program.take_link(id).map_err(|e| refused(interface, &e))?.try_into().map_err(|e: LinkError| refused(interface, &e))?;
    link.pin(&path).map_err(|e| EdgeError::io(format!("pinning {}: {}", path.display(), chain(&e)), std::io::ErrorKind::Other.into()))?;
    Ok(())
}

/// Replaces the program of the pinned link. False if there is no link, or it is not on this interface: the one of its time is gone or has
/// another name.
fn replace_pinned(program: &mut SchedClassifier, path: &Path, interface: &str) -> Result<bool, EdgeError> {
    let pinned = match PinnedLink::from_pin(path) {
        Ok(pinned) => pinned,
        Err(LinkError::SyscallError(e)) if Errno::from_io_error(&e.io_error) == Some(Errno::NOENT) => return Ok(false),
        Err(e) => return Err(refused(interface, &e)),
    };
    let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(|e| refused(interface, &e))?;
    match program.attach_to_link(link) {
        Ok(_) => {}
        Err(e) if os_error(&e) == Some(Errno::NOLINK) => return Ok(false),
        Err(e) => return Err(refused(interface, &e)),
    }
    let own = program.info().map_err(|e| refused(interface, &e))?.id();
    let (_, attached) = SchedClassifier::query_tcx(interface, TcAttachType::Egress).map_err(|e| refused(interface, &e))?;
    Ok(attached.iter().any(|program| program.id() == own))
}

fn refused(interface: &str, error: &(dyn std::error::Error + 'static)) -> EdgeError {
    let text = chain(error);
    let detail = match os_error(error) {
        Some(Errno::INVAL) => format!("{text}; capturing what leaves an interface needs Linux 6.6"),
        _ => text,
    };
    EdgeError::Program { interface: interface.into(), detail }
}
