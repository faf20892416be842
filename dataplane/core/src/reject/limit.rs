//! Limits of the rate of rejects, and of ICMP errors that pass through (see [`icmp`](crate::icmp)).
//!
//! Two limits hold, as in Linux (net/ipv4/icmp.c: `icmp_ratelimit` by destination, `icmp_msgs_per_sec` for all). Each [`Class`] of rejects has a
//! token bucket of its own, so a port scan leaves those of the other classes alone. And each sender has a share of each class, so that
//! the rejects of one sender are not at the expense of another one's. Linux never limits "fragmentation needed"; here everything has a limit,
//! and connections that both sides have confirmed have one that forged packets do not reach.
//!
//! The shares are token buckets in a table of fixed size, found by a keyed hash. Senders may meet in a bucket, but none can choose whom to meet:
//! the key is secret, and the places change every minute. A sender has two buckets, one in each row, and is over its share when both are empty.
//! Of a single scanning address one other sender in 262,144 notices anything.

use std::marker::PhantomData;
use std::net::IpAddr;

use crate::counters::Labels;
use crate::tuple::{AddrWords, addr_words};

/// Classes of frames, each with limits of its own.
pub trait Limited: Labels<LabelValue = Self> {
    /// The limit of all frames of this class.
    fn limit(self) -> Rate;
    /// One sender's share of it.
    fn share(self) -> Rate;
}

/// What a reject is about. Each class has limits of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Class {
    /// Packet too big, in a connection that both sides have confirmed: no forged address leads here.
    TooBigConfirmed,
    /// Packet too big, in a UDP flow that was answered. Forged packets can get there, at some expense.
    TooBigAnswered,
    /// Packet too big, otherwise.
    TooBig,
    /// Time exceeded.
    TimeExceeded,
    /// Rejected by the Service: port unreachable, or a reset.
    Unreachable,
    /// A reset to the sender of a segment in the middle of an unknown connection.
    Reset,
    /// Resets to both ends of a connection that ended by its idle timeout.
    Idle,
    /// Answers to pings. They are no rejects.
    Ping,
}

/// Tokens a second, and the most that a bucket holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// Tokens a second.
    pub per_second: u64,
    /// Tokens of a full bucket.
    pub burst: u64,
}

impl Class {
    /// All classes.
    pub const ALL: [Class; 8] = [
        Class::TooBigConfirmed,
        Class::TooBigAnswered,
        Class::TooBig,
        Class::TimeExceeded,
        Class::Unreachable,
        Class::Reset,
        Class::Idle,
        Class::Ping,
    ];

    /// The limit of one worker's rejects of this class.
    ///
    /// 1,000 a second is the kernel's `icmp_msgs_per_sec`. Resets are ten times as many: they are no longer than the segments that they answer,
    /// the kernel does not limit its own, and after a restart every connection needs one. So are "too big" in known flows, of which every one may
    /// need one when an MTU shrinks.
    pub const fn limit(self) -> Rate {
        match self {
            Class::TooBigConfirmed | Class::TooBigAnswered | Class::Reset | Class::Idle => Rate { per_second: 10_000, burst: 2_000 },
            Class::TooBig | Class::TimeExceeded | Class::Unreachable | Class::Ping => Rate { per_second: 1_000, burst: 200 },
        }
    }

    /// A sender's share of it: a tenth of the rate, a tenth or a quarter of the burst. The kernel allows a destination one ICMP error a second after
    /// six at once; here many clients may be behind one address.
    pub const fn share(self) -> Rate {
        match self {
            Class::TooBigConfirmed | Class::TooBigAnswered | Class::Reset | Class::Idle => Rate { per_second: 1_000, burst: 200 },
            Class::TooBig | Class::TimeExceeded | Class::Unreachable | Class::Ping => Rate { per_second: 100, burst: 50 },
        }
    }
}

impl Limited for Class {
    fn limit(self) -> Rate {
        Class::limit(self)
    }

    fn share(self) -> Rate {
        Class::share(self)
    }
}

impl Labels for Class {
    type LabelValue = Class;
    const NAME: &'static str = "class";
    const ALL: &'static [Class] = &Class::ALL;

    fn index(class: Class) -> usize {
        class as usize
    }

    fn label(class: Class) -> &'static str {
        match class {
            Class::TooBigConfirmed => "too_big_confirmed",
            Class::TooBigAnswered => "too_big_answered",
            Class::TooBig => "too_big",
            Class::TimeExceeded => "time_exceeded",
            Class::Unreachable => "unreachable",
            Class::Reset => "reset",
            Class::Idle => "idle",
            Class::Ping => "ping",
        }
    }

    /// Answers to pings have counters of their own.
    fn holds(class: Class) -> bool {
        class != Class::Ping
    }
}

/// A token bucket: the time at which it will be full, microseconds (the virtual scheduling algorithm of ITU-T I.371). So 0 is a full one, and idle
/// ones fill up without being looked at.
#[derive(Clone, Copy, Default, Debug)]
struct Bucket(u64);

impl Bucket {
    fn has_token(self, rate: Rate, now_us: u64) -> bool {
        self.0.saturating_sub(now_us) <= (rate.burst - 1) * interval_us(rate)
    }

    fn take(&mut self, rate: Rate, now_us: u64) {
        self.0 = self.0.max(now_us) + interval_us(rate);
    }
}

const fn interval_us(rate: Rate) -> u64 {
    1_000_000 / rate.per_second
}

/// Rows of the table of shares: buckets of a sender.
const ROWS: usize = 2;
/// Buckets in a row, for each class.
const ROW_LEN: usize = 512;
const PLACE_BITS: u32 = ROW_LEN.trailing_zeros();
const _: () = assert!(ROW_LEN.is_power_of_two());

/// A bucket's part of a share.
const fn part(share: Rate) -> Rate {
    Rate { per_second: share.per_second / ROWS as u64, burst: share.burst / ROWS as u64 }
}

/// Limits what one worker sends of some classes: of rejects, unless they are named.
#[derive(Debug)]
pub struct Limiter<C = Class> {
    classes: Box<[Bucket]>,
    /// By class, row and place.
    shares: Box<[[[Bucket; ROW_LEN]; ROWS]]>,
    of: PhantomData<C>,
}

impl<C: Limited> Limiter<C> {
    /// Takes a token of a class for the sender with this [`sender_hash`]. False, and nothing taken, when the sender or the class has none left.
    pub fn take(&mut self, class: C, sender_hash: u64, now_ms: u64) -> bool {
        let (limit, part, now_us) = (class.limit(), part(class.share()), now_ms.saturating_mul(1_000));
        let (bucket, rows) = (&mut self.classes[C::index(class)], &mut self.shares[C::index(class)]);
        let place = |row: u32| (sender_hash >> (row * PLACE_BITS)) as usize % ROW_LEN;
        let [first, second] = rows;
        let (first, second) = (&mut first[place(0)], &mut second[place(1)]);
        let fuller = if first.0 <= second.0 { first } else { second };
        let allowed = fuller.has_token(part, now_us) && bucket.has_token(limit, now_us);
        if allowed {
            fuller.take(part, now_us);
            bucket.take(limit, now_us);
        }
        allowed
    }
}

impl<C: Limited> Default for Limiter<C> {
    fn default() -> Limiter<C> {
        let shares = vec![[[Bucket::default(); ROW_LEN]; ROWS]; C::ALL.len()];
        Limiter { classes: vec![Bucket::default(); C::ALL.len()].into(), shares: shares.into(), of: PhantomData }
    }
}

/// How long a sender keeps its places, milliseconds.
const PLACES_MS: u64 = 60_000;

/// The hash of a sender: of its IPv4 address, or of the first 64 bits of its IPv6 address, since hosts choose the others. `hash` is keyed with a secret.
pub fn sender_hash(sender: IpAddr, now_ms: u64, hash: impl FnOnce(&[u64]) -> u64) -> u64 {
    let (words, v6): (AddrWords, bool) = addr_words(sender);
    hash(&[if v6 { words[0] } else { words[1] }, ((now_ms / PLACES_MS) << 1) | u64::from(v6)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuple::HashSeed;
    use std::net::Ipv4Addr;

    fn hash(sender: &str, now_ms: u64) -> u64 {
        sender_hash(sender.parse().unwrap(), now_ms, |words| HashSeed::new(11).hash_words(words))
    }

    /// A scanner's and some other sender's hash.
    const SCANNER: u64 = 0;
    const OTHER: u64 = u64::MAX;

    /// Takes at this many a second for some time. How many were allowed?
    fn takes(limiter: &mut Limiter, class: Class, mut sender: impl FnMut(u64) -> u64, per_second: u64, ms: std::ops::Range<u64>) -> u64 {
        let attempts = (ms.end - ms.start) * per_second / 1_000;
        (0..attempts).filter(|i| limiter.take(class, sender(*i), ms.start + i * 1_000 / per_second)).count() as u64
    }

    #[test]
    fn a_bucket_allows_a_burst_and_then_a_rate() {
        let rate = Rate { per_second: 100, burst: 5 };
        let mut bucket = Bucket::default();
        let mut take = |now_us| {
            let has = bucket.has_token(rate, now_us);
            if has {
                bucket.take(rate, now_us);
            }
            has
        };
        assert_eq!((0..50).filter(|_| take(7)).count(), 5, "a bucket that was never used is full");
        assert_eq!((1..=1_000_000).step_by(1_000).filter(|us| take(7 + us)).count(), 99);
        assert_eq!((0..50).filter(|_| take(10_000_000)).count(), 5, "so is an idle one, and no fuller");
    }

    #[test]
    fn a_class_and_a_sender_have_the_limits_that_are_written_down() {
        for class in Class::ALL {
            let (limit, share, mut limiter) = (class.limit(), class.share(), Limiter::default());
            let earned = |rate: Rate| rate.burst + rate.per_second * 9_999 / 1_000;
            let one = takes(&mut limiter, class, |_| SCANNER, 20_000, 0..10_000);
            assert!(one.abs_diff(earned(share)) <= 2, "{class:?}: {one} of a sender");
            let mut limiter = Limiter::default();
            let all = takes(&mut limiter, class, |i| hash(&Ipv4Addr::from(i as u32).to_string(), 0), 20_000, 0..10_000);
            assert!(all.abs_diff(earned(limit)) <= 2, "{class:?}: {all} of all");
        }
    }

    #[test]
    fn one_sender_does_not_take_a_class() {
        for class in Class::ALL {
            let mut limiter = Limiter::default();
            let mut told = 0;
            for ms in 0..10_000 {
                (0..20).for_each(|_| _ = limiter.take(class, SCANNER, ms));
                told += u64::from(ms % 100 == 99 && limiter.take(class, OTHER, ms));
            }
            assert_eq!(told, 100, "{class:?}");
        }
    }

    #[test]
    fn a_class_does_not_take_another() {
        for flooded in Class::ALL {
            let mut limiter = Limiter::default();
            takes(&mut limiter, flooded, |i| hash(&Ipv4Addr::from(i as u32).to_string(), 0), 100_000, 0..2_000);
            assert!(!limiter.take(flooded, OTHER, 1_999), "{flooded:?} is used up");
            for class in Class::ALL.into_iter().filter(|class| *class != flooded) {
                assert!((0..class.share().burst).all(|_| limiter.take(class, OTHER, 1_999)), "{class:?} beside {flooded:?}");
                assert!(!limiter.take(class, OTHER, 1_999));
            }
        }
    }

    #[test]
    fn what_is_not_allowed_costs_nothing() {
        // Of the class, by a sender over its share.
        let (class, mut limiter) = (Class::Unreachable, Limiter::default());
        assert_eq!((0..10_000).filter(|_| limiter.take(class, SCANNER, 5)).count() as u64, class.share().burst);
        let others = (1..100).flat_map(|i| [hash(&format!("10.0.0.{i}"), 0); 50]);
        assert_eq!(others.filter(|h| limiter.take(class, *h, 5)).count() as u64, class.limit().burst - class.share().burst);
        // And of a sender, by a class that is used up: its whole burst is there when the class has filled up.
        assert!((0..100).all(|_| !limiter.take(class, OTHER, 5)));
        assert_eq!((0..1_000).filter(|_| limiter.take(class, OTHER, 205)).count() as u64, class.share().burst);
    }

    #[test]
    fn a_sender_is_over_its_share_only_when_both_its_buckets_are_empty() {
        let class = Class::TooBig;
        let half = class.share().burst / 2;
        for (neighbour, left) in [(OTHER << PLACE_BITS, half), (OTHER >> (64 - PLACE_BITS), half), (0, 2 * half), (OTHER, 0)] {
            let mut limiter = Limiter::default();
            while limiter.take(class, neighbour, 0) {}
            assert_eq!((0..100).filter(|_| limiter.take(class, OTHER, 0)).count() as u64, left, "{neighbour:#x}");
        }
    }

    #[test]
    fn senders_are_told_apart_by_address_or_by_64_bits_of_it() {
        assert_ne!(hash("10.0.0.1", 0), hash("10.0.0.2", 0));
        assert_ne!(hash("::10.0.0.1", 0), hash("10.0.0.1", 0));
        assert_eq!(hash("fd00:a::1", 0), hash("fd00:a::2:3:4:5", 0), "one host has them all");
        assert_ne!(hash("fd00:a::1", 0), hash("fd00:a:0:1::1", 0));
        // Where they are, nobody knows for long.
        assert_eq!(hash("10.0.0.1", 0), hash("10.0.0.1", PLACES_MS - 1));
        assert_ne!(hash("10.0.0.1", 0), hash("10.0.0.1", PLACES_MS));
        let other_key = sender_hash("10.0.0.1".parse().unwrap(), 0, |words| HashSeed::new(12).hash_words(words));
        assert_ne!(other_key, hash("10.0.0.1", 0));
    }

    /// Ten scanners, which could use up the class, beside 20,000 others, each of which is told once.
    #[test]
    fn senders_spread_over_the_table() {
        let mut limiter = Limiter::default();
        let scanners: Vec<u64> = (0..10).map(|i| hash(&format!("203.0.113.{i}"), 0)).collect();
        let share = Class::Reset.share().burst;
        scanners.iter().for_each(|scanner| (0..share).for_each(|_| _ = limiter.take(Class::Reset, *scanner, 0)));
        let over = |hash: &u64| {
            !limiter.shares[Class::Reset as usize].iter().enumerate().any(|(row, buckets)| {
                buckets[(hash >> (row as u32 * PLACE_BITS)) as usize % ROW_LEN].has_token(part(Class::Reset.share()), 0)
            })
        };
        assert!(scanners.iter().all(over));
        let refused = (0..20_000u32).map(|i| hash(&Ipv4Addr::from(0x0a00_0000 + i).to_string(), 0)).filter(over).count();
        // (10 / 512)^2 of 20,000 are 8.
        assert!(refused < 30, "{refused} of 20,000");
    }
}
