//! Decides whether a recorded concurrent history has a legal sequential order: J. Wing, C. Gong, "Testing and Verifying Concurrent
//! Objects" (1993), with a memory of what was tried, as G. Lowe, "Testing for Linearizability" (2017).

use std::collections::HashSet;
use std::hash::Hash;

/// One operation, with its result, and when it began and ended on a clock that all threads share.
#[derive(Clone, Debug)]
pub struct Entry<O> {
    pub call: u64,
    pub ret: u64,
    pub op: O,
}

/// No order is legal.
#[derive(PartialEq, Eq, Debug)]
pub struct Illegal {
    /// The longest legal beginning that was found: places in the history.
    pub longest: Vec<usize>,
}

/// A legal order, as places in the history. `step` says what an operation makes of a state, or that it cannot happen in it.
pub fn order<S: Clone + Eq + Hash, O>(start: S, history: &[Entry<O>], step: impl Fn(&S, &O) -> Option<S>) -> Result<Vec<usize>, Illegal> {
    let mut places: Vec<usize> = (0..history.len()).collect();
    places.sort_by_key(|&p| history[p].call);
    let mut done = vec![false; places.len()];
    let mut tried = HashSet::new();
    // What was put in order, and the state before each.
    let mut path: Vec<(usize, S)> = Vec::new();
    let (mut state, mut from) = (start, 0);
    let mut longest = Vec::new();
    while path.len() < places.len() {
        let next = candidates(history, &places, &done).into_iter().filter(|&at| at >= from).find_map(|at| {
            let after = step(&state, &history[places[at]].op)?;
            done[at] = true;
            let fresh = tried.insert((packed(&done), after.clone()));
            done[at] = false;
            fresh.then_some((at, after))
        });
        match next {
            Some((at, after)) => {
                done[at] = true;
                path.push((at, std::mem::replace(&mut state, after)));
                from = 0;
                if path.len() > longest.len() {
                    longest = path.iter().map(|&(at, _)| places[at]).collect();
                }
            }
            None => {
                let Some((at, before)) = path.pop() else { return Err(Illegal { longest }) };
                done[at] = false;
                (state, from) = (before, at + 1);
            }
        }
    }
    Ok(path.into_iter().map(|(at, _)| places[at]).collect())
}

/// What may come next: operations that are not in order yet and began before any other of these had ended.
fn candidates<O>(history: &[Entry<O>], places: &[usize], done: &[bool]) -> Vec<usize> {
    let first = done.iter().position(|d| !d).unwrap_or(done.len());
    let mut ended = u64::MAX;
    let mut found = Vec::new();
    for at in (first..places.len()).filter(|&at| !done[at]) {
        let entry = &history[places[at]];
        if entry.call > ended {
            break;
        }
        ended = ended.min(entry.ret);
        found.push(at);
    }
    found
}

/// Which operations are in order: the length of the unbroken beginning, and a bit for each after it.
fn packed(done: &[bool]) -> (usize, Vec<u64>) {
    let first = done.iter().position(|d| !d).unwrap_or(done.len());
    let last = done.iter().rposition(|d| *d).map_or(first, |p| p + 1).max(first);
    let bits = done[first..last].chunks(64).map(|c| c.iter().enumerate().fold(0, |w, (i, d)| w | (u64::from(*d) << i)));
    (first, bits.collect())
}

mod tests {
    use super::{Entry, order};
    use proptest::prelude::*;

    /// A register that can be created, read and ended, as a flow.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Op {
        Create(u8),
        Refused,
        Read(Option<u8>),
        End(u8, bool),
    }
    use Op::*;

    fn step(state: &Option<u8>, op: &Op) -> Option<Option<u8>> {
        match (*op, *state) {
            (Create(v), None) => Some(Some(v)),
            (Refused, Some(_)) => Some(*state),
            (Read(seen), _) if seen == *state => Some(*state),
            (End(v, true), Some(now)) if v == now => Some(None),
            (End(v, false), _) if *state != Some(v) => Some(*state),
            _ => None,
        }
    }

    fn legal(history: &[(u64, u64, Op)]) -> bool {
        let entries: Vec<Entry<Op>> = history.iter().map(|&(call, ret, op)| Entry { call, ret, op }).collect();
        order(None, &entries, step).is_ok()
    }

    #[test]
    fn histories_with_a_legal_order_have_one() {
        assert!(legal(&[]));
        assert!(legal(&[(0, 1, Read(None)), (2, 3, Create(1)), (4, 5, Read(Some(1))), (6, 7, End(1, true)), (8, 9, Read(None))]));
        // Whoever reads during a creation may see it or not; so may two in any order that agrees.
        assert!(legal(&[(0, 9, Create(1)), (1, 2, Read(None)), (3, 4, Read(Some(1))), (5, 10, Read(Some(1)))]));
        // Both ends began before either ended: the one that failed came second.
        assert!(legal(&[(0, 1, Create(1)), (2, 9, End(1, false)), (3, 8, End(1, true))]));
        // Ended and made again between two reads that one long read spans.
        assert!(legal(&[(0, 1, Create(1)), (2, 11, Read(None)), (3, 4, End(1, true)), (5, 6, Create(2)), (7, 8, Read(Some(2)))]));
        // The order must go back on its first choice: the refused one comes after the second creation.
        assert!(legal(&[(0, 20, Refused), (1, 2, Create(1)), (3, 4, End(1, true)), (5, 6, Read(None)), (7, 8, Create(2))]));
    }

    #[test]
    fn a_lost_creation_is_found() {
        assert!(!legal(&[(0, 1, Create(1)), (2, 3, Read(None))]));
        assert!(!legal(&[(0, 5, Create(1)), (1, 6, Create(2))]), "two of one, and none ended");
        assert!(!legal(&[(0, 9, Create(1)), (1, 2, Read(Some(1))), (3, 4, Read(None))]), "seen, then not");
    }

    #[test]
    fn a_stale_read_is_found() {
        assert!(!legal(&[(0, 1, Create(1)), (2, 3, End(1, true)), (4, 5, Read(Some(1)))]));
        assert!(!legal(&[(0, 1, Create(1)), (2, 3, End(1, true)), (4, 5, Create(2)), (6, 7, Read(Some(1)))]));
        assert!(!legal(&[(0, 1, Read(Some(1))), (2, 3, Create(1))]), "from the future");
    }

    #[test]
    fn a_double_end_is_found() {
        assert!(!legal(&[(0, 1, Create(1)), (2, 9, End(1, true)), (3, 8, End(1, true))]));
        assert!(!legal(&[(0, 1, Create(1)), (2, 9, End(1, false)), (3, 8, End(1, false)), (10, 11, Read(None))]), "nobody ended it");
        assert!(!legal(&[(0, 1, Create(1)), (2, 3, End(1, false))]));
    }

    #[test]
    fn a_refusal_without_cause_is_found() {
        assert!(!legal(&[(0, 1, Refused)]));
        assert!(!legal(&[(0, 1, Create(1)), (2, 3, End(1, true)), (4, 5, Refused)]));
    }

    /// The simple twin: tries every order there is.
    fn legal_by_trying_all(left: &[(u64, u64, Op)], state: Option<u8>) -> bool {
        left.is_empty()
            || (0..left.len()).any(|i| {
                let (call, _, op) = left[i];
                let mut rest = left.to_vec();
                rest.remove(i);
                rest.iter().all(|&(_, ret, _)| ret >= call) && step(&state, &op).is_some_and(|after| legal_by_trying_all(&rest, after))
            })
    }

    fn ops() -> impl Strategy<Value = Op> {
        prop_oneof![
            (1..3u8).prop_map(Create),
            Just(Refused),
            prop::option::of(1..3u8).prop_map(Read),
            (1..3u8, any::<bool>()).prop_map(|(v, ended)| End(v, ended)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 8 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn agrees_with_trying_all(history in prop::collection::vec((0..12u64, 1..8u64, ops()), 1..7)) {
            let history: Vec<_> = history.into_iter().map(|(call, long, op)| (call, call + long, op)).collect();
            prop_assert_eq!(legal(&history), legal_by_trying_all(&history, None), "{:?}", history);
        }

        /// Any sequential run is legal, however far its operations are stretched over each other; and the order found is a proof.
        #[test]
        fn what_was_sequential_is_legal(run in prop::collection::vec((ops(), 0..30u64, 0..30u64), 1..120)) {
            let mut state = None;
            let mut entries = Vec::new();
            for (op, before, after) in run {
                if let Some(next) = step(&state, &op) {
                    state = next;
                    let at = 100 + 10 * entries.len() as u64;
                    entries.push(Entry { call: at - before, ret: at + after, op });
                }
            }
            let found = order(None, &entries, step);
            prop_assert!(found.is_ok());
            let found = found.unwrap_or_default();
            prop_assert!(found.iter().try_fold(None, |state, &p| step(&state, &entries[p].op)).is_some());
            for (i, &earlier) in found.iter().enumerate() {
                prop_assert!(found[i..].iter().all(|&later| entries[later].ret >= entries[earlier].call));
            }
            let mut all = found;
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..entries.len()));
        }
    }
}
