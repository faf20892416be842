//! Memory that all workers share, and that the XDP programs read: the reply filter and the heartbeats.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, AtomicU64};

use aya::Ebpf;
use nomagic_core::conntrack::Conntrack;
use nomagic_core::filter::{BUCKET_SLOTS, ReplyFilter};
use nomagic_sys::memory;

use crate::config::EdgeConfig;
use crate::error::EdgeError;
use crate::limits::WorkerCount;
use crate::region::Table;

/// What all workers read and write.
pub(crate) struct Memory {
    pub table: Conntrack<'static>,
    pub replies: ReplyFilter<'static>,
    pub heartbeats: &'static [AtomicU64],
}

/// The reply filter's seed, for the XDP program and the workers alike.
pub(crate) fn reply_seed(seed: u64) -> u32 {
    (seed ^ (seed >> 32)) as u32
}

/// The BPF arrays that are mapped into this process. The reply filter announces what the table's connections need, and nothing else.
pub(crate) fn share_memory(config: &EdgeConfig, ebpf: &mut Ebpf, table: &Table) -> Result<Memory, EdgeError> {
    let mapped = |map: &'static str, e| EdgeError::io(format!("mapping the BPF array {map}"), e);
    let map_fd = |ebpf: &Ebpf, map: &'static str| match ebpf.map(map) {
        Some(aya::maps::Map::Array(data)) => data.fd().as_fd().try_clone_to_owned().map_err(|e| mapped(map, e)),
        _ => Err(EdgeError::Map { map: map.into(), detail: "missing in the embedded object".into() }),
    };
    let fd = map_fd(ebpf, "replies")?;
    let places = config.reply_buckets as usize * BUCKET_SLOTS;
    let words = memory::bpf_words32(fd.as_fd(), places).map_err(|e| mapped("replies", e))?;
    let seed = reply_seed(table.conntrack.seed());
    let replies = ReplyFilter::new(words, seed)
        .ok_or_else(|| EdgeError::Config(format!("{} reply buckets: not a power of two", config.reply_buckets)))?;
    match table.taken_over {
        Some(_) => announce(table.conntrack, replies, places, seed),
        None => replies.clear(),
    }
    let fd = map_fd(ebpf, "heartbeats")?;
    let heartbeats = memory::bpf_words64(fd.as_fd(), WorkerCount::MAX as usize).map_err(|e| mapped("heartbeats", e))?;
    Ok(Memory { table: table.conntrack, replies, heartbeats })
}

/// Announces the replies of the connections that were taken over. The pinned program of the process before still reads the filter, and drops what it
/// announces until a worker is there: so what was announced and still is stays in its place all the time. Else a reply would reach the
/// kernel and, with the backend's address as its sender, the client, which would reset the connection.
fn announce(table: Conntrack<'_>, replies: ReplyFilter<'_>, places: usize, seed: u32) {
    let words: Vec<AtomicU32> = (0..places).map(|_| AtomicU32::new(0)).collect();
    let Some(wanted) = ReplyFilter::new(&words, seed) else { return };
    let mut refused = 0;
    table.for_each(|hit, flow| {
        if flow.announced && !wanted.insert(&flow.reply()) {
            table.end(hit);
            refused += 1;
        }
    });
    if refused > 0 {
        tracing::warn!("{refused} connections found no room in the reply filter and were ended");
    }
    replies.become_like(&wanted);
}
