//! Which bytes of a fragmented datagram have come.
//!
//! Finds overlaps (RFC 5722: the whole datagram is dropped; the kernel does so for IPv4, too) and the end of each datagram, after which its
//! identification may be used again. Each worker has its own: a NIC gives all later fragments of a datagram to one queue, and the end of the first
//! one, which it may give to another, is known from [`Fragments`](crate::conntrack::Fragments). What is forgotten early costs no more than the
//! check: the receiver makes it as well.

use arrayvec::ArrayVec;

use crate::conntrack::{Datagram, FRAGMENTS_AGE_MAX_S};

/// Datagrams at a time.
const DATAGRAMS_MAX: usize = 512;
const WAYS: usize = 4;
const SETS: usize = DATAGRAMS_MAX / WAYS;
/// Ranges of bytes with gaps between them at the most. A datagram of 65,535 bytes has 119 fragments on a link with an MTU of 576.
pub const RANGES_MAX: usize = 64;
/// How long an unfinished datagram is remembered, milliseconds.
const AGE_MAX_MS: u64 = FRAGMENTS_AGE_MAX_S * 1_000;

/// What a fragment is to its datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coverage {
    /// It brings bytes that are new.
    New,
    /// It brings nothing new.
    Repeated,
    /// It contradicts another one, or one has before: the datagram is spoiled.
    Overlaps,
    /// There are too many gaps.
    Scattered,
}

#[derive(Clone, Debug)]
struct Entry {
    datagram: Datagram,
    since_ms: u64,
    /// Known from the last fragment.
    len: Option<u16>,
    spoiled: bool,
    /// Fragments that are held.
    held: u16,
    /// Disjoint, not adjacent, in order: `(begin, end)`.
    ranges: ArrayVec<(u16, u16), RANGES_MAX>,
}

/// The datagrams that are under way.
#[derive(Debug)]
pub struct Datagrams {
    sets: Vec<ArrayVec<Entry, WAYS>>,
}

impl Default for Datagrams {
    fn default() -> Datagrams {
        Datagrams { sets: (0..SETS).map(|_| ArrayVec::new()).collect() }
    }
}

impl Entry {
    fn new(datagram: Datagram, now_ms: u64) -> Entry {
        Entry { datagram, since_ms: now_ms, len: None, spoiled: false, held: 0, ranges: ArrayVec::new() }
    }

    fn spoil(&mut self) -> Coverage {
        self.spoiled = true;
        Coverage::Overlaps
    }

    fn add(&mut self, (begin, end): (u16, u16), last: bool) -> Coverage {
        if self.spoiled {
            return Coverage::Overlaps;
        }
        let furthest = self.ranges.last().map_or(0, |range| range.1);
        let contradicts =
            if last { self.len.is_some_and(|len| len != end) || furthest > end } else { self.len.is_some_and(|len| end > len) };
        if contradicts {
            return self.spoil();
        }
        if last {
            self.len = Some(end);
        }
        // The ranges from here on end behind the new one's begin.
        let at = self.ranges.partition_point(|range| range.1 <= begin);
        match self.ranges.get(at) {
            Some(range) if range.0 <= begin && end <= range.1 => return Coverage::Repeated,
            Some(range) if range.0 < end => return self.spoil(),
            _ => {}
        }
        let joins_left = at > 0 && self.ranges[at - 1].1 == begin;
        let joins_right = self.ranges.get(at).is_some_and(|range| range.0 == end);
        match (joins_left, joins_right) {
            (true, true) => {
                let right = self.ranges.remove(at);
                self.ranges[at - 1].1 = right.1;
            }
            (true, false) => self.ranges[at - 1].1 = end,
            (false, true) => self.ranges[at].0 = begin,
            (false, false) if self.ranges.is_full() => return Coverage::Scattered,
            (false, false) => self.ranges.insert(at, (begin, end)),
        }
        Coverage::New
    }

    /// The first fragment ended here: another worker may have it. False if that contradicts the others.
    fn add_first(&mut self, end: u16) -> bool {
        // The others of the datagram repeat it.
        self.ranges.first().is_some_and(|range| range.0 == 0 && end <= range.1) || self.add((0, end), false) != Coverage::Overlaps
    }

    fn is_complete(&self) -> bool {
        !self.spoiled && self.held == 0 && self.len.is_some_and(|len| self.ranges[..] == [(0, len)])
    }
}

impl Datagrams {
    /// Adds a later fragment of `range` in its datagram; none follows the `last` one. `first_end`: where the first one ended, if known.
    pub fn add(&mut self, datagram: Datagram, range: (u16, u16), last: bool, first_end: Option<u16>, now_ms: u64) -> Coverage {
        let entry = self.entry(datagram, now_ms);
        if first_end.is_some_and(|end| !entry.add_first(end)) {
            return Coverage::Overlaps;
        }
        entry.add(range, last)
    }

    /// A fragment that was added and held comes again. `first_end` as for [`Datagrams::add`].
    pub fn release(&mut self, datagram: Datagram, first_end: Option<u16>) -> Coverage {
        let Some(entry) = self.find(datagram) else { return Coverage::New };
        entry.held = entry.held.saturating_sub(1);
        if first_end.is_some_and(|end| !entry.add_first(end)) || entry.spoiled { Coverage::Overlaps } else { Coverage::New }
    }

    /// A fragment that was added is held.
    pub fn hold(&mut self, datagram: Datagram) {
        if let Some(entry) = self.find(datagram) {
            entry.held = entry.held.saturating_add(1);
        }
    }

    /// Forgets a datagram that has come whole, and of which none is held. False if it has not.
    pub fn finish(&mut self, datagram: Datagram) -> bool {
        let set = &mut self.sets[set_of(datagram)];
        let complete = set.iter().position(|entry| entry.datagram == datagram && entry.is_complete());
        complete.map(|place| set.swap_remove(place)).is_some()
    }

    fn find(&mut self, datagram: Datagram) -> Option<&mut Entry> {
        self.sets[set_of(datagram)].iter_mut().find(|entry| entry.datagram == datagram)
    }

    /// The datagram's entry. A new one takes the place of one that is too old, or else of the oldest.
    fn entry(&mut self, datagram: Datagram, now_ms: u64) -> &mut Entry {
        let set = &mut self.sets[set_of(datagram)];
        let is_old = |entry: &Entry| now_ms.saturating_sub(entry.since_ms) > AGE_MAX_MS;
        let known = set.iter().position(|entry| entry.datagram == datagram);
        let place = match known {
            Some(place) if !is_old(&set[place]) => place,
            Some(place) => {
                set[place] = Entry::new(datagram, now_ms);
                place
            }
            None if set.is_full() => {
                let oldest = (0..WAYS).min_by_key(|&place| set[place].since_ms).unwrap_or(0);
                set[oldest] = Entry::new(datagram, now_ms);
                oldest
            }
            None => {
                set.push(Entry::new(datagram, now_ms));
                set.len() - 1
            }
        };
        &mut set[place]
    }
}

fn set_of(datagram: Datagram) -> usize {
    // The lower half finds the entry in the shared table.
    (datagram.number() >> 32) as usize % SETS
}

#[cfg(test)]
mod tests;
