//! The choice of the connection that ends: single cases, comparison with a naive model, and real tasks.

use super::*;

fn peer(n: u8) -> Peer {
    Peer::of([10, 0, 0, n].into())
}

fn connections(connections_max: usize, peer_connections_max: usize) -> Connections<u64> {
    Connections::new(Limits { connections_max, peer_connections_max })
}

/// Admits clients one after another and returns the number of the connection that each displaced.
fn admit_all(c: &mut Connections<u64>, peers: &[u8]) -> Vec<Option<u64>> {
    let from = c.sequence + 1;
    peers.iter().zip(from..).map(|(p, n)| c.admit(peer(*p), n).expect("admitted").displaced).collect()
}

#[test]
fn at_the_limit_the_oldest_connection_is_displaced() {
    let mut c = connections(3, 3);
    assert_eq!(admit_all(&mut c, &[1, 2, 3]), [None; 3]);
    assert_eq!(admit_all(&mut c, &[4, 5, 6, 7]), [Some(1), Some(2), Some(3), Some(4)]);
    assert_eq!(c.len(), 3);
    assert_eq!(c.remove(5), Some(5));
    assert_eq!((c.remove(5), c.remove(1)), (None, None), "gone is gone");
    assert_eq!(admit_all(&mut c, &[8]), [None]);
}

#[test]
fn the_peer_with_the_most_connections_loses_its_oldest() {
    let mut c = connections(5, 5);
    // The honest client, peer 9, came first: by age alone it would go first.
    admit_all(&mut c, &[9, 1, 2, 2, 1]);
    // 1 and 2 have two each, so the older one of them goes; then 2 has the most, then 3 and 2.
    assert_eq!(admit_all(&mut c, &[3, 3, 3]), [Some(2), Some(3), Some(6)]);
    assert!(c.by_id.contains_key(&1), "the honest one stays");
}

#[test]
fn a_peer_at_its_own_limit_displaces_itself() {
    let mut c = connections(10, 2);
    assert_eq!(admit_all(&mut c, &[1, 2, 2, 2, 2, 1]), [None, None, None, Some(2), Some(3), None]);
    assert_eq!(c.len(), 4);
}

#[test]
fn connections_waiting_for_the_server_are_not_displaced() {
    let mut c = connections(3, 2);
    admit_all(&mut c, &[1, 1, 2]);
    (1..=2).for_each(|id| c.set_turn(id, Turn::Server));
    assert_eq!(c.admit(peer(1), 0), None, "the peer's two places wait for the server");
    assert_eq!(c.admit(peer(3), 6).unwrap().displaced, Some(3));
    let id = c.by_id.iter().find(|(_, connection)| connection.end == 6).map(|(id, _)| *id).unwrap();
    c.set_turn(id, Turn::Server);
    assert_eq!(c.admit(peer(4), 7), None);
    assert_eq!(c.make_room(), None);
    // The response is made. The wait for the client to read it begins now.
    [2, 1].into_iter().for_each(|id| c.set_turn(id, Turn::Client));
    assert_eq!(c.admit(peer(4), 8).unwrap().displaced, Some(2));
    assert_eq!(c.make_room(), Some(1), "one each: the turn of 1 began before 8 came");
}

#[test]
fn readers_are_displaced_after_those_that_do_not_read() {
    let mut c = connections(3, 3);
    admit_all(&mut c, &[1, 1, 1]);
    c.set_turn(3, Turn::Server);
    [1, 3].into_iter().for_each(|id| c.renew(id));
    let displaced = [2, 1].map(Some);
    assert_eq!([c.admit(peer(1), 8), c.admit(peer(1), 9)].map(|a| a.unwrap().displaced), displaced);
    assert!(c.by_id[&3].waits_since.is_none(), "only a client whose turn it is can be late");
}

#[test]
fn an_ipv6_prefix_is_one_peer_and_ipv4_is_ipv4() {
    let of = |text: &str| Peer::of(text.parse().unwrap());
    assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:0:0:1"));
    assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
    assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
}

/// The same rule without indices: a list in order of age, searched each time.
#[derive(Default)]
struct Naive {
    places: Vec<(u64, Peer, Turn, u64)>,
}

impl Naive {
    fn admit(&mut self, limits: Limits, peer: Peer, id: u64) -> Option<Option<u64>> {
        let of = |places: &[(u64, Peer, Turn, u64)], p| places.iter().filter(|(_, q, ..)| *q == p).count();
        let own = of(&self.places, peer) >= limits.peer_connections_max;
        let mut displaced = None;
        if own || self.places.len() >= limits.connections_max {
            let mut candidates: Vec<_> =
                self.places.iter().copied().filter(|(_, p, turn, _)| *turn == Turn::Client && (!own || *p == peer)).collect();
            let most = candidates.iter().map(|(_, p, ..)| of(&self.places, *p)).max()?;
            candidates.retain(|(_, p, ..)| of(&self.places, *p) == most);
            candidates.sort_by_key(|(.., since)| *since);
            displaced = Some(candidates[0].0);
            self.places.retain(|(id, ..)| Some(*id) != displaced);
        }
        self.places.push((id, peer, Turn::Client, id));
        Some(displaced)
    }
}

#[test]
fn the_table_agrees_with_a_naive_model() {
    let limits = Limits { connections_max: 12, peer_connections_max: 5 };
    let (mut c, mut naive) = (Connections::new(limits), Naive::default());
    let (mut displaced, mut refused, mut seed) = (0, 0, 1_u64);
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..60_000 {
        let now = c.sequence + 1;
        match random(10) {
            0..3 => {
                let peer = peer(random(6) as u8);
                let (got, expected) = (c.admit(peer, now), naive.admit(limits, peer, now));
                assert_eq!(got.as_ref().map(|a| a.displaced), expected);
                displaced += u64::from(expected.flatten().is_some());
                refused += u64::from(expected.is_none());
            }
            what if !naive.places.is_empty() => {
                let n = random(naive.places.len() as u64) as usize;
                let id = naive.places[n].0;
                if what == 9 {
                    assert_eq!(c.remove(id), Some(id));
                    naive.places.remove(n);
                } else {
                    let turn = if what == 8 { Turn::Client } else { Turn::Server };
                    c.set_turn(id, turn);
                    (naive.places[n].2, naive.places[n].3) = (turn, now);
                }
            }
            _ => {}
        }
        assert_eq!(c.len(), naive.places.len());
        assert!(c.len() <= limits.connections_max && c.by_peer.values().all(|n| *n <= limits.peer_connections_max));
        assert_eq!(c.by_peer.values().sum::<usize>(), c.len());
    }
    assert!(displaced > 1_000 && refused > 100, "{displaced} {refused}");
}

#[tokio::test]
async fn a_permit_is_withdrawn_for_a_newcomer_and_counted() {
    let permits = Permits::new(Limits { connections_max: 2, peer_connections_max: 2 });
    let mut first = permits.acquire(peer(1)).unwrap();
    let second = permits.acquire(peer(2)).unwrap();
    let not_yet = tokio::time::timeout(std::time::Duration::from_millis(10), first.withdrawn()).await;
    assert!(not_yet.is_err());
    let third = permits.acquire(peer(3)).unwrap();
    first.withdrawn().await;
    drop(first);
    second.turns().set(Turn::Server);
    third.turns().set(Turn::Server);
    assert!(permits.acquire(peer(4)).is_none() && !permits.withdraw_one());
    third.count_timed_out();
    permits.count_accept_failure();
    let counts = Counts { connected: 2, accepted: 4, displaced: 1, refused: 1, timed_out: 1, accept_failures: 1 };
    assert_eq!(permits.counts(), counts);
    drop((second, third));
    assert_eq!(permits.counts().connected, 0);
}
