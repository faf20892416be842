//! Conflicts between Services: an address, port and protocol (or a health check port) has one holder; other claims on it wait.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use nomagic_core::services::AddressKind;

use crate::objects::NamespacedName;

/// A Service's precedence: by age, then by name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Precedence {
    /// `metadata.creationTimestamp`
    pub(super) created_s: i64,
    /// The Service.
    pub(super) key: NamespacedName,
}

/// A claim's precedence. The lowest is the holder's.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Rank {
    /// The kind of the address comes first: a Service's owner can choose external IPs freely, node ports and load balancer addresses less so, and
    /// cluster IPs are given out by the API server.
    pub(super) kind: KindRank,
    pub(super) precedence: Arc<Precedence>,
    /// The position among the claims of the Service.
    pub(super) place: u32,
}

/// Kinds of addresses in order of precedence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum KindRank {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
}

impl From<AddressKind> for KindRank {
    fn from(kind: AddressKind) -> KindRank {
        match kind {
            AddressKind::ClusterIp => KindRank::ClusterIp,
            AddressKind::NodePort => KindRank::NodePort,
            AddressKind::LoadBalancer => KindRank::LoadBalancer,
            AddressKind::ExternalIp => KindRank::ExternalIp,
        }
    }
}

/// All claims.
#[derive(Debug)]
pub(super) struct Claims<K, V, S> {
    /// In order of rank.
    by_key: HashMap<K, Vec<(Rank, V)>, S>,
    /// Keys with several claims.
    contested: BTreeSet<K>,
}

impl<K, V, S: Default> Default for Claims<K, V, S> {
    fn default() -> Claims<K, V, S> {
        Claims { by_key: HashMap::default(), contested: BTreeSet::new() }
    }
}

impl<K: Copy + Eq + Ord + Hash, V, S: BuildHasher> Claims<K, V, S> {
    /// Adds a claim, or changes its value. `same`: compares the old value with the new one. False when nothing changed.
    pub(super) fn put(&mut self, key: K, rank: &Rank, value: V, same: impl FnOnce(&V, &V) -> bool) -> bool {
        let claims = self.by_key.entry(key).or_default();
        match claims.binary_search_by(|(r, _)| r.cmp(rank)) {
            Ok(at) if same(&claims[at].1, &value) => return false,
            Ok(at) => claims[at].1 = value,
            Err(at) => claims.insert(at, (rank.clone(), value)),
        }
        if claims.len() > 1 {
            self.contested.insert(key);
        }
        true
    }

    /// Removes a claim. False when there was none.
    pub(super) fn remove(&mut self, key: K, rank: &Rank) -> bool {
        let Some(claims) = self.by_key.get_mut(&key) else { return false };
        let Ok(at) = claims.binary_search_by(|(r, _)| r.cmp(rank)) else { return false };
        claims.remove(at);
        if claims.len() < 2 {
            self.contested.remove(&key);
        }
        if claims.is_empty() {
            self.by_key.remove(&key);
        }
        true
    }

    /// The claim of the holder.
    pub(super) fn holder(&self, key: &K) -> Option<&(Rank, V)> {
        self.by_key.get(key)?.first()
    }

    /// All waiting claims: `(key, holder, waiting claim)`, in order.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (&K, &(Rank, V), &(Rank, V))> {
        self.contested.iter().filter_map(|key| self.by_key.get_key_value(key)).flat_map(|(key, claims)| {
            let (holder, others) = claims.split_at(claims.len().min(1));
            holder.iter().flat_map(move |holder| others.iter().map(move |other| (key, holder, other)))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::hash::RandomState;

    use super::*;

    fn rank(kind: KindRank, created_s: i64, name: &str) -> Rank {
        let key = NamespacedName { namespace: "n".into(), name: name.into() };
        Rank { kind, precedence: Arc::new(Precedence { created_s, key }), place: 0 }
    }

    #[test]
    fn the_first_in_line_holds_and_the_next_follows() {
        let mut claims: Claims<u16, &str, RandomState> = Claims::default();
        let (first, last) = (KindRank::ClusterIp, KindRank::ExternalIp);
        let ranks = [rank(first, 1, "a"), rank(first, 1, "b"), rank(first, 2, "a"), rank(last, 0, "a")];
        for (i, name) in [(3, "fourth"), (1, "second"), (0, "first"), (2, "third")] {
            assert!(claims.put(80, &ranks[i], name, |a, b| a == b));
        }
        assert!(!claims.put(80, &ranks[1], "second", |a, b| a == b));
        let waiting = |c: &Claims<u16, &'static str, RandomState>| c.waiting().map(|(_, h, w)| (h.1, w.1)).collect::<Vec<_>>();
        assert_eq!(waiting(&claims), [("first", "second"), ("first", "third"), ("first", "fourth")]);
        assert!(claims.remove(80, &ranks[0]) && !claims.remove(80, &ranks[0]) && !claims.remove(81, &ranks[1]));
        assert_eq!(claims.holder(&80).unwrap().1, "second");
        assert!(claims.remove(80, &ranks[1]) && claims.remove(80, &ranks[2]));
        assert!(waiting(&claims).is_empty());
        assert_eq!(claims.holder(&80).unwrap().1, "fourth");
        assert!(claims.remove(80, &ranks[3]) && claims.holder(&80).is_none());
    }
}
