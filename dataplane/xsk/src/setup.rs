//! Memory shared by all workers and read by the XDP programs: the reply filter and the heartbeats.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

use aya::Ebpf;
use nomagic_core::conntrack::Conntrack;
use nomagic_core::filter::{BUCKET_SLOTS, REPLY_SOURCES, ReplyFilter, ReplyKey, direct};
use nomagic_core::tuple::Tuple;
use nomagic_sys::memory;
use nomagic_sys::time::monotonic_ns;

use crate::config::EdgeConfig;
use crate::error::EdgeError;
use crate::limits::WorkerCount;
use crate::region::ConntrackMemory;
use crate::reply_key;

pub(crate) struct SharedMemory {
    pub table: Conntrack<'static>,
    pub replies: ReplyFilter<'static>,
    pub heartbeats: &'static [AtomicU64],
}

/// Maps the BPF arrays into this process. Afterwards the reply filter announces the replies of the table's flows, and nothing else.
pub(crate) fn share_memory(
    config: &EdgeConfig,
    ebpf: &mut Ebpf,
    table: &ConntrackMemory,
    key: ReplyKey,
) -> Result<SharedMemory, EdgeError> {
    let mapped = |map: &'static str, e| EdgeError::io(format!("mapping the BPF array {map}"), e);
    let map_fd = |ebpf: &Ebpf, map: &'static str| match ebpf.map(map) {
        Some(aya::maps::Map::Array(data)) => data.fd().as_fd().try_clone_to_owned().map_err(|e| mapped(map, e)),
        _ => Err(EdgeError::Map { map: map.into(), detail: "missing in the embedded object".into() }),
    };
    let fd = map_fd(ebpf, "replies")?;
    let places = config.reply_buckets as usize * BUCKET_SLOTS;
    let words = memory::bpf_words32(fd.as_fd(), places + BUCKET_SLOTS + direct::WORDS).map_err(|e| mapped("replies", e))?;
    let owners = memory::anonymous32(places).map_err(|e| EdgeError::io("memory for the reply filter's owners", e))?;
    // Touches every page, so that no worker waits for a page fault.
    owners.iter().for_each(|owner| owner.store(0, Relaxed));
    let (words, more) = words.split_at(places);
    let (of_key, passing) = more.split_at(BUCKET_SLOTS);
    let replies = ReplyFilter::new(words, owners, key)
        .map(|filter| filter.with_direct(passing))
        .ok_or_else(|| EdgeError::Config(format!("{} reply buckets: not a power of two", config.reply_buckets)))?;
    let fd = map_fd(ebpf, "reply_sources")?;
    let sources = memory::bpf_words64(fd.as_fd(), REPLY_SOURCES).map_err(|e| mapped("reply_sources", e))?;
    let replies = replies.with_sources(sources);
    match table.taken_over {
        Some(_) => announce(table.conntrack, replies, key, monotonic_ns() / 1_000_000),
        None => replies.clear(),
    }
    reply_key::leave(key, of_key);
    let fd = map_fd(ebpf, "heartbeats")?;
    let heartbeats = memory::bpf_words64(fd.as_fd(), WorkerCount::MAX as usize).map_err(|e| mapped("heartbeats", e))?;
    Ok(SharedMemory { table: table.conntrack, replies, heartbeats })
}

/// Announces the replies of the recovered flows. The previous process's pinned program still reads the filter, and drops announced frames
/// until a worker runs. So entries that stay valid are never removed meanwhile: otherwise a reply would reach the kernel and, with the
/// backend's address as its source, the client, which would reset the connection.
fn announce(table: Conntrack<'_>, replies: ReplyFilter<'_>, key: ReplyKey, now_ms: u64) {
    let [words, owners] = [0, 1].map(|_| (0..replies.capacity()).map(|_| AtomicU32::new(0)).collect::<Vec<_>>());
    let Some(wanted) = ReplyFilter::new(&words, &owners, key) else { return };
    let mut refused = 0;
    // First the flows that are never evicted. If a bucket is full for the others, these would have had to make room anyway.
    for kept in [true, false] {
        table.for_each(|hit, flow| {
            let stays = hit.phase.eviction_rank(now_ms.saturating_sub(hit.seen_ms)).is_none();
            let announces = |tuple: &Tuple| wanted.insert(tuple, hit.slot());
            let fits = || announces(&flow.reply()) && (!flow.is_direct() || announces(&flow.original()));
            if flow.announced && stays == kept && !fits() {
                wanted.remove(&flow.reply());
                table.end(hit);
                refused += 1;
            }
        });
    }
    if refused > 0 {
        tracing::warn!("{refused} connections did not fit into the reply filter and were ended");
    }
    replies.become_like(&wanted);
    table.for_each(|_, flow| replies.note_source(&flow.reply()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use nomagic_core::conntrack::{Direction, Flow, Phase};
    use nomagic_core::tuple::Proto;
    use nomagic_core_fixtures::{REPLY_KEY, Replies};

    /// Opens a UDP connection whose client confirms the answer, or not.
    fn open(table: Conntrack<'_>, client_port: u16, confirms: bool) -> Flow {
        let addr = |last: u64| [0, 0x0a00_0000 + last];
        let mut flow = Flow {
            proto: Proto::Udp,
            v6: false,
            announced: true,
            client: addr(1),
            client_port,
            service: addr(2),
            service_port: 80,
            backend: addr(3),
            backend_port: 8080,
            source: addr(1),
            source_port: client_port,
            stats: 0,
            counted: None,
        };
        let asked = Phase::first(Proto::Udp, 0);
        let confirmed = asked.after(Direction::Reply, 0, false).after(Direction::Original, 0, false);
        let phase = if confirms { confirmed } else { asked };
        let hash = table.hash(&flow.original());
        let pending = table.reserve(&mut flow, hash, phase, 1_000, std::iter::once(client_port)).unwrap();
        table.commit(pending).unwrap();
        flow
    }

    #[test]
    fn flows_that_must_make_room_in_a_full_bucket_find_none_after_a_restart() {
        let words: Vec<AtomicU64> = (0..Conntrack::words_needed(64)).map(|_| AtomicU64::new(0)).collect();
        let table = Conntrack::format(&words, 64, 1, [0, 0]).unwrap();
        (0..12).for_each(|port| assert!(!open(table, port, false).replaces_source()));
        let confirmed: Vec<Flow> = (12..24).map(|port| open(table, port, true)).collect();
        let before = Replies::new(1);
        before.words.iter().for_each(|word| word.store(7, Relaxed));
        announce(table, before.filter(), REPLY_KEY, 1_001);
        assert_eq!((table.live(), before.filter().len()), (16, 16));
        assert!(confirmed.iter().all(|flow| before.filter().contains(&flow.reply())));
        let slots: Vec<u32> = before.filter().owners(0).collect();
        assert_eq!(slots.len(), 16);
        for slot in slots {
            let (_, flow) = table.flow_in(slot).expect("a live one");
            assert!(before.filter().contains(&flow.reply()));
        }
    }
}
