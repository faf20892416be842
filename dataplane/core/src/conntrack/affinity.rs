//! Session affinity: the endpoint that a client was last sent to.
//!
//! A bounded table next to the flows, in buckets of a cache line: four entries of two words. An entry is the hash of (Service port,
//! client), and a value xor that key: the endpoint's identity and the second of its last use. A reader that meets a value of another key
//! decodes an endpoint that does not exist. Expired entries are free; in a full bucket the least recently used entry is replaced.

use super::region::Region;
use crate::sync::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use crate::tuple::AddrWords;

/// Entries of a bucket.
const ENTRIES: usize = 4;
/// Words of a bucket.
pub(super) const BUCKET_WORDS: usize = 2 * ENTRIES;
/// Attempts to change an entry before a flow goes where its own hash says.
const TRIES: u32 = 8;
// The value: the endpoint's identity (40 bits) << 24 | second of the last use (24 bits, half a year).
const SECOND_BITS: u32 = 24;
const SECOND_MASK: u64 = (1 << SECOND_BITS) - 1;
/// How far a worker's clock may be behind another's, seconds: workers read it once a batch.
pub(super) const BEHIND_MAX_S: u64 = 2;
/// Bits of an endpoint's identity.
pub const IDENTITY_BITS: u32 = 64 - SECOND_BITS;

/// A client of a Service port with session affinity.
#[derive(Clone, Copy, Debug)]
pub struct Sticky {
    /// The Service port, see [`crate::services::Affinity::id`].
    pub id: u64,
    /// The client's address.
    pub client: AddrWords,
    /// True for IPv6.
    pub v6: bool,
    /// How long a client is remembered after its last new flow, seconds.
    pub timeout_s: u32,
}

/// What affinity knew of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remembered {
    /// Nothing: the client is new, or its time is over.
    Nothing,
    /// Its endpoint, which is kept.
    Kept,
    /// Its endpoint, which is not usable any more; another one takes its place.
    EndpointGone,
}

/// The clients' endpoints: see [`Conntrack::affinity`](super::Conntrack::affinity).
#[derive(Clone, Copy)]
pub struct Affinity<'r> {
    pub(super) region: Region<'r>,
}

impl Affinity<'_> {
    /// The endpoint for a client's new flow, by its identity: the remembered one if it is `usable` and its time is not over, else `chosen`, which
    /// is remembered from now on. When two workers choose for one client at once, the second takes the first one's choice.
    pub fn stick(&self, sticky: &Sticky, now_ms: u64, usable: impl Fn(u64) -> bool, chosen: u64) -> (u64, Remembered) {
        let (key, bucket) = self.affinity_bucket(sticky);
        let now = second(now_ms);
        let age = |value: u64| age_s(now, value);
        for _ in 0..TRIES {
            let Some((place, claimed)) = find_or_claim(bucket, key, age) else { continue };
            let value = &bucket[2 * place + 1];
            let old = value.load(Relaxed);
            let known = old ^ key;
            let in_time = age(known) < u64::from(sticky.timeout_s);
            let keep = in_time && usable(known >> SECOND_BITS);
            let identity = if keep { known >> SECOND_BITS } else { chosen };
            let new = ((identity << SECOND_BITS) | now) ^ key;
            if new == old || value.compare_exchange(old, new, Release, Relaxed).is_ok() {
                let remembered = match keep {
                    true => Remembered::Kept,
                    // The value of a claimed entry belonged to another client.
                    false if in_time && !claimed => Remembered::EndpointGone,
                    false => Remembered::Nothing,
                };
                return (identity, remembered);
            }
        }
        (chosen, Remembered::Nothing)
    }

    /// The endpoint that is remembered for a client, and the seconds since its last new flow, whether its time is over or not. Changes nothing.
    pub fn remembered(&self, sticky: &Sticky, now_ms: u64) -> Option<(u64, u64)> {
        let (key, bucket) = self.affinity_bucket(sticky);
        let place = (0..ENTRIES).find(|place| bucket[2 * place].load(Acquire) == key)?;
        let known = bucket[2 * place + 1].load(Relaxed) ^ key;
        Some((known >> SECOND_BITS, age_s(second(now_ms), known)))
    }

    fn affinity_bucket(&self, sticky: &Sticky) -> (u64, &[AtomicU64; BUCKET_WORDS]) {
        let key = self.region.seed.hash_words(&[sticky.id, sticky.client[0], sticky.client[1], u64::from(sticky.v6)]) | 1;
        (key, self.region.affinity(key))
    }
}

/// A time as values have it.
fn second(now_ms: u64) -> u64 {
    (now_ms / 1_000) & SECOND_MASK
}

/// Seconds since the last use in a value. What a worker whose clock is ahead has just written is new, not half a year old.
fn age_s(now: u64, value: u64) -> u64 {
    match now.wrapping_sub(value) & SECOND_MASK {
        ahead if ahead > SECOND_MASK - BEHIND_MAX_S => 0,
        age => age,
    }
}

/// The key's entry, and whether it was claimed just now: a key without an entry gets the first empty one, or the one used longest ago. `None`:
/// another worker was faster.
///
/// Of two workers with one key, the second sees the first one's key or tries for the same place. (Only when the bucket is full and a third worker
/// uses one of its entries at that moment may two choose different places; then the client has two endpoints until one entry is replaced.)
fn find_or_claim(bucket: &[AtomicU64; BUCKET_WORDS], key: u64, age: impl Fn(u64) -> u64) -> Option<(usize, bool)> {
    let read = || -> [u64; ENTRIES] { std::array::from_fn(|place| bucket[2 * place].load(Relaxed)) };
    let keys = read();
    if let Some(place) = keys.iter().position(|&k| k == key) {
        return Some((place, false));
    }
    let age_of = |place: &usize| match keys[*place] {
        0 => u64::MAX,
        other => age(bucket[2 * place + 1].load(Acquire) ^ other),
    };
    let place = (0..ENTRIES).max_by_key(|place| (age_of(place), std::cmp::Reverse(*place)))?;
    // A value that already belongs to another key has no age.
    if read() != keys {
        return None;
    }
    bucket[2 * place].compare_exchange(keys[place], key, Relaxed, Relaxed).is_ok().then_some((place, true))
}
