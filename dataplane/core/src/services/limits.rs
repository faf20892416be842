//! Limits of the flows that a Service takes: how many new ones a second, and how many of one client at a time.
//!
//! The rate is a token bucket of each Service port that all workers and all tables share. The flows of each client are counted in the
//! connection table, see [`clients`](crate::conntrack::Clients).

use std::sync::Arc;

use super::{Frontend, ServicePort, Services};
use crate::hash::identity_of;
use crate::sync::{AtomicU64, Ordering::Relaxed};
use crate::tuple::Tuple;

/// Defines a limit: a number from 1 to a maximum.
macro_rules! limit {
    ($(#[$doc:meta])* $name:ident, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub struct $name(u32);

        impl $name {
            /// The highest limit.
            pub const MAX: u32 = $max;

            /// The limit of this number; `None` for 0 and above the maximum.
            pub fn new(number: u64) -> Option<$name> {
                u32::try_from(number).ok().filter(|n| (1..=$name::MAX).contains(n)).map($name)
            }

            /// The number.
            pub fn get(self) -> u32 {
                self.0
            }
        }
    };
}

limit! {
    /// New flows a second that one Service port takes.
    ConnectionsPerSecond, 1_000_000
}

limit! {
    /// Flows that one client may have to one Service at a time.
    ConnectionsPerClient, 1_000_000
}

/// The limits of a Service port.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Limits {
    /// Of new flows; `None`: no limit.
    pub rate: Option<RateLimit>,
    /// Of one client's flows; `None`: no limit.
    pub per_client: Option<ClientLimit>,
}

impl Limits {
    /// Whether there are none.
    #[inline(always)]
    pub fn is_off(&self) -> bool {
        self.rate.is_none() & self.per_client.is_none()
    }
}

/// A limit of one client's flows to a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientLimit {
    /// The most flows.
    pub most: ConnectionsPerClient,
    /// The Service's identity, the same in every table and every process: all its ports count together.
    pub service: u64,
}

impl ClientLimit {
    /// The limit of this Service.
    pub fn new(most: ConnectionsPerClient, namespace: &str, name: &str) -> ClientLimit {
        ClientLimit { most, service: identity_of(0, &[namespace, name]) }
    }
}

/// A limit of new flows to a Service port, with the bucket that enforces it.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// The most flows a second, and the most at once.
    pub most: ConnectionsPerSecond,
    /// Shared by all tables that have the Service port.
    pub bucket: Arc<TokenBucket>,
}

/// Limits are equal if their rates are: the bucket is state.
impl PartialEq for RateLimit {
    fn eq(&self, other: &RateLimit) -> bool {
        self.most == other.most
    }
}

impl Eq for RateLimit {}

impl Services {
    /// A copy of the table in which this packet's Service port has a bucket of its own, see [`RateLimit::detached`], and counts for itself what it
    /// refuses. `None`: the packet is for no Service port.
    pub fn with_detached_port(&self, tuple: &Tuple) -> Option<Services> {
        let (addr, port, proto) = (tuple.dst_addr(), tuple.dport, tuple.proto);
        let frontend = self.frontend(addr, port, proto)?;
        let limits = Limits { rate: frontend.port.limits.rate.as_ref().map(RateLimit::detached), ..frontend.port.limits.clone() };
        let owner = Arc::new(ServicePort { limits, refused: Arc::default(), ..(*frontend.port).clone() });
        let mut services = self.clone();
        services.set_frontend(addr, port, proto, Some(Frontend { port: owner, ..frontend.clone() }));
        Some(services)
    }
}

const SECOND_NS: u64 = 1_000_000_000;
const MS_NS: u64 = 1_000_000;

impl RateLimit {
    /// A limit with a full bucket of its own.
    pub fn new(most: ConnectionsPerSecond) -> RateLimit {
        RateLimit { most, bucket: Arc::default() }
    }

    /// Takes a token. False: there is none.
    pub fn take(&self, now_ms: u64) -> bool {
        let now_ns = now_ms.saturating_mul(MS_NS);
        // Without the `max`, an idle bucket would hold more than a second's tokens.
        let full_at = |full_at_ns: u64| full_at_ns.max(now_ns).saturating_add(self.interval_ns());
        self.bucket
            .0
            .fetch_update(Relaxed, Relaxed, |old| Some(full_at(old)).filter(|new| *new <= now_ns.saturating_add(SECOND_NS)))
            .is_ok()
    }

    /// Gives a token back that was not used.
    pub fn give_back(&self) {
        let _ = self.bucket.0.fetch_update(Relaxed, Relaxed, |old| Some(old.saturating_sub(self.interval_ns())));
    }

    /// The same limit with a bucket of its own, as full as this one is now.
    pub fn detached(&self) -> RateLimit {
        RateLimit { most: self.most, bucket: Arc::new(TokenBucket(AtomicU64::new(self.bucket.0.load(Relaxed)))) }
    }

    /// Rounded down: the highest rates are exceeded by less than 0.1 %.
    fn interval_ns(&self) -> u64 {
        SECOND_NS / u64::from(self.most.get())
    }
}

/// A token bucket that holds a second's tokens, as the time at which it will be full, nanoseconds (the virtual scheduling algorithm of ITU-T
/// I.371). So 0 is a full one, an idle one fills up without being looked at, and a limit may change while it is in use.
#[derive(Default, Debug)]
pub struct TokenBucket(AtomicU64);

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(n: u64) -> RateLimit {
        RateLimit::new(ConnectionsPerSecond::new(n).unwrap())
    }

    fn taken(limit: &RateLimit, attempts: u64, now_ms: u64) -> u64 {
        (0..attempts).filter(|_| limit.take(now_ms)).count() as u64
    }

    #[test]
    fn a_limit_is_a_number_within_bounds() {
        for (number, allowed) in [(0, false), (1, true), (1_000_000, true), (1_000_001, false), (1 << 32, false), (u64::MAX, false)] {
            assert_eq!(ConnectionsPerSecond::new(number).map(|l| u64::from(l.get())), allowed.then_some(number));
            assert_eq!(ConnectionsPerClient::new(number).map(|l| u64::from(l.get())), allowed.then_some(number));
        }
    }

    #[test]
    fn a_bucket_gives_a_seconds_tokens_at_once_and_then_the_rate() {
        for rate in [1, 2, 3, 7, 100, 999, 70_000] {
            let limit = limit(rate);
            let at_once = |now_ms| taken(&limit, 2 * rate, now_ms);
            assert!((rate..=rate + rate / 1_000).contains(&at_once(5)), "{rate}: at once");
            let later: u64 = (6..=3_005).map(|now_ms| taken(&limit, rate, now_ms)).sum();
            assert!(later.abs_diff(3 * rate) <= 1 + rate / 1_000, "{rate}: {later} in three seconds");
            assert!((rate..=rate + rate / 1_000).contains(&at_once(1_000_000)), "{rate}: an idle bucket is full, and no fuller");
        }
    }

    #[test]
    fn a_token_that_is_given_back_is_there_again() {
        let limit = limit(3);
        assert_eq!(taken(&limit, 9, 5), 3);
        limit.give_back();
        assert_eq!(taken(&limit, 9, 5), 1);
    }

    #[test]
    fn a_bucket_is_shared_by_copies_and_not_by_detached_ones() {
        let limit = limit(4);
        let (copy, detached) = (limit.clone(), limit.detached());
        assert_eq!((taken(&limit, 3, 5), taken(&copy, 9, 5), taken(&detached, 9, 5)), (3, 1, 4));
        assert_eq!(taken(&limit.detached(), 9, 5), 0, "it begins as full as the other one is");
        let other_rate = RateLimit { most: ConnectionsPerSecond::new(8).unwrap(), bucket: limit.bucket };
        assert_eq!((taken(&other_rate, 9, 5), taken(&other_rate, 9, 505)), (0, 4), "a changed limit continues the bucket");
    }

    #[test]
    fn several_workers_together_stay_within_the_rate() {
        let limit = limit(1_000);
        let took = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| taken(&limit, 1_000, 5))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum::<u64>()
        });
        assert_eq!(took, 1_000);
    }

    #[test]
    fn the_largest_time_does_not_overflow() {
        let limit = limit(2);
        assert!(limit.take(u64::MAX) && limit.take(u64::MAX));
        assert!(!limit.take(0));
    }

    #[test]
    fn ports_of_a_service_count_together_and_services_apart() {
        let most = ConnectionsPerClient::new(5).unwrap();
        let of = |namespace, name| ClientLimit::new(most, namespace, name).service;
        assert_eq!(of("n", "a"), of("n", "a"));
        assert_ne!(of("n", "a"), of("n", "b"));
        assert_ne!(of("na", ""), of("n", "a"));
    }
}
