//! Counts the flows of each client to each Service that limits them.
//!
//! A counter for each (Service, client) with flows, in a table of buckets of a cache line. A counter is a word:
//!
//! ```text
//! number of the pair << 32 | flows; 0: free
//! ```
//!
//! The number is a hash of 24 bits, keyed with the table's secret. It stands in each counted flow's state word, so the end of a flow and a
//! recovery find the counter without the Service. A number names two buckets, and its counter is in one of them.
//!
//! **Error.** Pairs with the same number share a counter. Beside n other pairs one shares it with a probability of n / 16,777,215: beside
//! 1,000 clients at their limit, one other client in 16,777 is refused too early. Nobody can choose with whom to share. There are five
//! counters for every four slots of the table, so a pair without room for its counter is rare: one in 4,000 in a table full of clients with
//! one flow each. Its flow is opened and not counted: an honest client is not refused for want of a counter.
//!
//! **What counts.** A flow counts from its opening, half-open, until it ends, or until its backend has closed it: by an RST, or by a FIN with
//! that of the client. An RST of the client alone does not end the count, since the backend may ignore it and the client go on. A flow that
//! goes on after it was closed counts again, whatever the limit: see [`Phase::is_over`](super::Phase::is_over).

use std::num::NonZeroU32;

use super::flow::{TARGET_GENERATION_ONE, phase_of};
use super::region::Region;
use crate::sync::{
    AtomicU64,
    Ordering::{Acquire, Relaxed},
};
use crate::tuple::{AddrWords, fast_range};

/// Attempts to change a counter that other workers change at the same time.
const TRIES: u32 = 64;
const FLOWS_MASK: u64 = 0xffff_ffff;
/// Where a state word has the number.
const NUMBER_AT: u32 = 8;
const NUMBER_MASK: u32 = (1 << 24) - 1;

/// The number of a client of a Service that limits its clients' flows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CountedClient(NonZeroU32);

/// The counted client in a state word; `None`: the flow is not counted.
pub(super) fn counted_of(state: u64) -> Option<CountedClient> {
    NonZeroU32::new((state >> NUMBER_AT) as u32 & NUMBER_MASK).map(CountedClient)
}

/// A state word with another counted client.
pub(super) fn with_counted(state: u64, counted: Option<CountedClient>) -> u64 {
    (state & !(u64::from(NUMBER_MASK) << NUMBER_AT)) | (counted.map_or(0, CountedClient::number) << NUMBER_AT)
}

impl CountedClient {
    fn number(self) -> u64 {
        u64::from(self.0.get())
    }
}

/// What became of a new flow's count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientCount {
    /// The flow is counted.
    Counted,
    /// Its client has as many flows as it may have. Nothing is counted.
    AtLimit,
    /// There is no room for the client's counter. Nothing is counted.
    NoRoom,
}

/// The flows of clients by Service: see [`Conntrack::clients`](super::Conntrack::clients).
#[derive(Clone, Copy)]
pub struct Clients<'r> {
    pub(super) region: Region<'r>,
}

impl<'r> Clients<'r> {
    /// The number of a client of this Service (see [`crate::services::ClientLimit`]). A client is an IPv4 address or the first 64 bits of an
    /// IPv6 address, since hosts choose the others.
    pub fn client(&self, service: u64, client: AddrWords, v6: bool) -> CountedClient {
        let address = if v6 { client[0] } else { client[1] };
        let hash = self.region.seed.hash_words(&[service, address, u64::from(v6)]);
        CountedClient(NonZeroU32::MIN.saturating_add(fast_range((hash >> 32) as u32, NUMBER_MASK)))
    }

    /// How many flows are counted for a client.
    pub fn flows(&self, client: CountedClient) -> u64 {
        self.counters(client).map(|counter| flows_of(counter.load(Relaxed), client)).sum()
    }

    /// Counts a new flow of a client, who may have `most`. Of several workers that find no counter of the client at the same moment each may
    /// make one; then some flows more than `most` are possible until one of these is free again.
    pub fn take(&self, client: CountedClient, most: u64) -> ClientCount {
        for _ in 0..TRIES {
            let (mut flows, mut own) = (0, None);
            for counter in self.counters(client) {
                let word = counter.load(Relaxed);
                if word >> 32 == client.number() {
                    flows += word & FLOWS_MASK;
                    own = own.or(Some((counter, word)));
                }
            }
            if flows >= most {
                return ClientCount::AtLimit;
            }
            let free = || self.free_counter(client).map(|counter| (counter, 0));
            let Some((counter, word)) = own.or_else(free) else { return ClientCount::NoRoom };
            let new = (client.number() << 32) | ((word & FLOWS_MASK) + 1);
            if counter.compare_exchange(word, new, Relaxed, Relaxed).is_ok() {
                return ClientCount::Counted;
            }
        }
        ClientCount::NoRoom
    }

    /// Reverses [`Clients::take`] when a counted flow ends or was not created.
    pub fn give_back(&self, client: CountedClient) {
        // Search again: another worker may have made a counter in a free place while the one found first was freed.
        for _ in 0..TRIES {
            let one_less = |word: u64| match flows_of(word, client) {
                0 => None,
                1 => Some(0),
                _ => Some(word - 1),
            };
            if self.counters(client).any(|counter| counter.fetch_update(Relaxed, Relaxed, one_less).is_ok()) {
                return;
            }
        }
    }

    /// Adjusts the count when a flow ends, whose `target` word this is.
    pub(super) fn end(&self, client: CountedClient, target: &AtomicU64) {
        // No change of the phase succeeds after this one, so what it was is what it was counted by.
        if !phase_of(target.fetch_add(TARGET_GENERATION_ONE, Acquire)).is_over() {
            self.give_back(client);
        }
    }

    /// Sets a client's count to that of another table with the same seed. This table must be the caller's alone.
    pub(super) fn copy(&self, from: &Clients<'_>, client: CountedClient) {
        (0..self.flows(client)).for_each(|_| self.give_back(client));
        let flows = from.flows(client);
        if let Some(counter) = self.free_counter(client).filter(|_| flows > 0) {
            counter.store((client.number() << 32) | flows, Relaxed);
        }
    }

    /// A free counter in the emptier one of a client's buckets.
    fn free_counter(&self, client: CountedClient) -> Option<&'r AtomicU64> {
        let buckets = self.buckets(client).into_iter().map(|bucket| bucket.iter().filter(|counter| counter.load(Relaxed) == 0));
        let mut emptier = buckets.max_by_key(|free| free.clone().count())?;
        emptier.next()
    }

    /// The places where a client's counter may be.
    fn counters(&self, client: CountedClient) -> impl Iterator<Item = &'r AtomicU64> + use<'r> {
        self.buckets(client).into_iter().flatten()
    }

    /// The buckets where a client's counter may be; the second one is empty if they are the same.
    fn buckets(&self, client: CountedClient) -> [&'r [AtomicU64]; 2] {
        let buckets = self.region.client_counters();
        let place = |hash: u32| fast_range(hash, buckets.len() as u32) as usize;
        let hash = client.0.get().wrapping_mul(0x9e37_79b1);
        let [first, second] = [place(hash), place((hash ^ (hash >> 15)).wrapping_mul(0x85eb_ca77))];
        [&buckets[first], if first == second { &[] } else { &buckets[second] }]
    }
}

/// The flows that a counter has, if it is the client's.
fn flows_of(word: u64, client: CountedClient) -> u64 {
    if word >> 32 == client.number() { word & FLOWS_MASK } else { 0 }
}

#[cfg(test)]
mod tests;
