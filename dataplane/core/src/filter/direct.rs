//! Connections that pass the XDP filter: those between clients and endpoints without a Service.
//!
//! A client may have a connection to an endpoint, and from the same port one to a Service that is carried to this endpoint. Without SNAT both
//! would have the same addresses and ports there, and the answers to the direct one would be captured. The kernel's conntrack gives the second one
//! another source port; so do we, for which the XDP program remembers the answers of connections that it lets pass: by the same hash as those it
//! captures, in an array of its own. A TCP connection is forgotten with its FIN or RST, and when newer ones need the place.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{BUCKET_SLOTS, ReplyFilter, slot_of};
use crate::tuple::Tuple;

/// Buckets of the array: 131,072 connections in 512 KiB. Shared with `dataplane/xsk/bpf/replies.h`.
pub const BUCKETS: usize = 8_192;
/// Words of the array.
pub const WORDS: usize = BUCKETS * BUCKET_SLOTS;

impl<'r> ReplyFilter<'r> {
    /// The same filter, with the connections that pass by: [`WORDS`] words that the XDP program writes. Others are not looked at.
    pub fn with_direct(self, words: &'r [AtomicU32]) -> ReplyFilter<'r> {
        ReplyFilter { direct: if words.len() == WORDS { words } else { &[] }, ..self }
    }

    /// Whether a connection with these answers seems to pass by.
    pub fn passes(&self, reply: &Tuple) -> bool {
        let (bucket, fingerprint) = self.direct_bucket(reply);
        bucket.iter().any(|word| word.load(Ordering::Relaxed) == fingerprint)
    }

    /// Records a connection, as the XDP program does. For tests.
    pub fn note_direct(&self, reply: &Tuple) {
        let (bucket, fingerprint) = self.direct_bucket(reply);
        let place = bucket.iter().find(|word| [0, fingerprint].contains(&word.load(Ordering::Relaxed))).or(bucket.first());
        place.into_iter().for_each(|word| word.store(fingerprint, Ordering::Relaxed));
    }

    /// The bucket of a connection, empty if there are none, and its fingerprint.
    fn direct_bucket(&self, reply: &Tuple) -> (&'r [AtomicU32], u32) {
        let (hash, fingerprint) = slot_of(reply, self.key);
        let first = (hash as usize & (BUCKETS - 1)) * BUCKET_SLOTS;
        (self.direct.get(first..first + BUCKET_SLOTS).unwrap_or(&[]), fingerprint)
    }
}
