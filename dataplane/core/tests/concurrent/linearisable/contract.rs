//! What the connection table promises, as a sequential object, and how a recorded run is told in its terms.

use super::checker::{self, Entry, Illegal};
use super::{GROUPS, Group};

/// A connection as the contract knows it: a number that no other creation has, and which of its group's source ports it holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Held {
    pub value: u32,
    pub port: u8,
}

/// What one call did and returned.
#[derive(Clone, Debug)]
pub enum Did {
    /// Made a connection live.
    Created { original: u8, held: Held },
    /// Reserved both keys, and gave them back.
    Reserved { original: u8, port: u8 },
    /// Was told that the client has a connection already.
    Exists { original: u8 },
    /// Was told that no source port is free.
    ReplyTaken { original: u8 },
    /// Was told that another creation is on its way.
    Busy { original: u8 },
    /// Looked for a client's connection.
    Original { original: u8, found: Option<Held> },
    /// Looked for the connection with a source port: its number and its client.
    Reply { port: u8, found: Option<(u32, u8)> },
    /// Ended a connection that was found before, or came too late.
    Ended { value: u32, ended: bool },
}

/// One call of one thread.
#[derive(Clone, Debug)]
pub struct Record {
    pub group: usize,
    pub call: u64,
    pub ret: u64,
    pub did: Did,
}

/// An operation of the sequential object. A call may be several, which need not happen at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    Create { original: u8, held: Held },
    Original { original: u8, found: Option<Held> },
    Reply { port: u8, found: Option<(u32, u8)> },
    Present { original: u8 },
    Taken { port: u8 },
    End { value: u32, ended: bool },
}

/// The connections of a group, by client.
type State = Vec<Option<Held>>;

fn holder(state: &State, port: u8) -> Option<(u32, u8)> {
    let at = state.iter().position(|h| h.is_some_and(|h| h.port == port))?;
    state[at].map(|held| (held.value, at as u8))
}

/// The sequential object.
fn step(state: &State, op: &Op) -> Option<State> {
    let same = |holds: bool| holds.then(|| state.clone());
    let with = |at: usize, held| {
        let mut after = state.clone();
        after[at] = held;
        Some(after)
    };
    match *op {
        Op::Create { original, held } if state[usize::from(original)].is_none() && holder(state, held.port).is_none() => {
            with(usize::from(original), Some(held))
        }
        Op::Create { .. } => None,
        Op::Original { original, found } => same(state[usize::from(original)] == found),
        Op::Reply { port, found } => same(holder(state, port) == found),
        Op::Present { original } => same(state[usize::from(original)].is_some()),
        Op::Taken { port } => same(holder(state, port).is_some()),
        Op::End { value, ended } => match state.iter().position(|h| h.is_some_and(|h| h.value == value)) {
            Some(at) if ended => with(at, None),
            None if !ended => Some(state.clone()),
            _ => None,
        },
    }
}

/// Checks a run of one group. What is wrong, if anything.
pub fn check(group: usize, records: &[Record]) -> Result<(), String> {
    let records: Vec<&Record> = records.iter().filter(|r| r.group == group).collect();
    let mut entries = Vec::new();
    for (i, record) in records.iter().enumerate() {
        let rivals = records.iter().enumerate().any(|(j, r)| i != j && creates(r) && r.call < record.ret && record.call < r.ret);
        let leaving = |port: u8| records.iter().any(|r| ends_with_port(r, port, &records) && r.call < record.ret && record.call < r.ret);
        for op in ops(record, rivals, leaving, &GROUPS[group])? {
            entries.push(Entry { call: record.call, ret: record.ret, op });
        }
    }
    let start = vec![None; GROUPS[group].originals];
    checker::order(start, &entries, step).map(|_| ()).map_err(|illegal| tell(&entries, &illegal))
}

/// Whether a call may have had an entry of its own in the index meanwhile.
fn creates(record: &Record) -> bool {
    !matches!(record.did, Did::Original { .. } | Did::Reply { .. } | Did::Ended { .. })
}

/// Whether a call ends the connection that has this source port.
fn ends_with_port(record: &Record, port: u8, records: &[&Record]) -> bool {
    let Did::Ended { value: end, ended: true } = record.did else { return false };
    records.iter().any(|r| matches!(r.did, Did::Created { held, .. } if held == Held { value: end, port }))
}

/// `rivals`: other creations overlap. `leaving`: whether a call that ends the connection with this source port overlaps.
fn ops(record: &Record, rivals: bool, leaving: impl Fn(u8) -> bool, group: &Group) -> Result<Vec<Op>, String> {
    // Ports are tried in order: those before the one that was got were taken, unless a rival was about to take them or they were about to be free.
    let taken = |before: u8| (0..before).filter(|&port| !rivals && !leaving(port)).map(|port| Op::Taken { port });
    Ok(match record.did {
        Did::Created { original, held } => taken(held.port).chain([Op::Create { original, held }]).collect(),
        Did::Reserved { original, port } => {
            taken(port).chain([Op::Reply { port, found: None }, Op::Original { original, found: None }]).collect()
        }
        Did::Exists { original } => vec![Op::Present { original }],
        Did::ReplyTaken { .. } if group.originals == 1 => return Err(format!("nobody else wants its source port: {record:?}")),
        Did::ReplyTaken { original } => taken(group.ports).chain([Op::Original { original, found: None }]).collect(),
        Did::Busy { original } if !rivals => {
            return Err(format!("client {original} was told busy, but nobody else was creating: {record:?}"));
        }
        Did::Busy { .. } => Vec::new(),
        Did::Original { original, found } => vec![Op::Original { original, found }],
        Did::Reply { port, found } => vec![Op::Reply { port, found }],
        Did::Ended { value, ended } => vec![Op::End { value, ended }],
    })
}

/// The operations around the place where no order goes on.
fn tell(entries: &[Entry<Op>], illegal: &Illegal) -> String {
    let mut left: Vec<&Entry<Op>> = (0..entries.len()).filter(|i| !illegal.longest.contains(i)).map(|i| &entries[i]).collect();
    left.sort_by_key(|e| e.call);
    let mut story =
        format!("no legal order for {} operations; the last of the longest beginning ({}):\n", entries.len(), illegal.longest.len());
    let last = illegal.longest.iter().rev().take(8).rev().map(|&i| &entries[i]);
    last.for_each(|e| story += &format!("  {}..{} {:?}\n", e.call, e.ret, e.op));
    story += "cannot be followed by any of:\n";
    left.iter().take(8).for_each(|e| story += &format!("  {}..{} {:?}\n", e.call, e.ret, e.op));
    story
}

mod tests {
    use super::*;

    /// The group whose clients share source ports.
    const SHARED: usize = GROUPS.len() - 1;

    fn run(calls: &[(u64, u64, Did)]) -> Result<(), String> {
        let records: Vec<Record> =
            calls.iter().map(|(call, ret, did)| Record { group: SHARED, call: *call, ret: *ret, did: did.clone() }).collect();
        check(SHARED, &records)
    }

    fn created(original: u8, value: u32, port: u8) -> Did {
        Did::Created { original, held: Held { value, port } }
    }

    #[test]
    fn what_is_promised() {
        assert_eq!(run(&[(0, 1, created(0, 7, 0)), (2, 3, created(1, 8, 1)), (4, 5, Did::ReplyTaken { original: 2 })]), Ok(()));
        assert_eq!(run(&[(0, 1, created(0, 7, 0)), (2, 3, Did::Ended { value: 7, ended: true }), (4, 5, created(1, 8, 0))]), Ok(()));
        assert_eq!(run(&[(0, 9, Did::Busy { original: 0 }), (1, 8, Did::Busy { original: 0 })]), Ok(()), "both may lose");
        assert_eq!(run(&[(0, 5, Did::Reserved { original: 0, port: 0 }), (1, 4, Did::ReplyTaken { original: 1 })]), Ok(()));
        assert_eq!(run(&[(0, 5, Did::Reserved { original: 1, port: 0 }), (1, 4, created(0, 7, 1))]), Ok(()));
        let (end, gone) = (Did::Ended { value: 7, ended: true }, Did::Original { original: 0, found: None });
        let leaving = [(0, 1, created(0, 7, 0)), (2, 9, end), (3, 4, gone), (5, 6, created(1, 8, 1))];
        assert_eq!(run(&leaving), Ok(()), "a port counts as taken until the call that ends its connection returns");
    }

    #[test]
    fn what_is_not() {
        let wrong = [
            vec![(0, 5, created(0, 7, 0)), (1, 6, created(1, 8, 0))],
            vec![(0, 5, created(0, 7, 0)), (1, 6, created(0, 8, 1))],
            vec![(0, 1, created(0, 7, 1))],
            vec![(0, 1, Did::Busy { original: 0 })],
            vec![(0, 1, Did::ReplyTaken { original: 0 })],
            vec![(0, 1, created(0, 7, 0)), (2, 3, Did::ReplyTaken { original: 1 })],
            vec![(0, 1, Did::Exists { original: 0 })],
            vec![(0, 1, created(0, 7, 0)), (2, 3, Did::Reserved { original: 0, port: 1 })],
            vec![(0, 1, created(0, 7, 0)), (2, 3, Did::Ended { value: 7, ended: true }), (4, 5, created(1, 8, 1))],
            vec![(0, 1, created(0, 7, 0)), (2, 9, Did::Ended { value: 7, ended: false }), (3, 8, created(1, 8, 1))],
            vec![(0, 1, created(0, 7, 0)), (2, 3, Did::Reply { port: 0, found: None })],
            vec![(0, 1, created(0, 7, 0)), (2, 9, Did::Ended { value: 7, ended: true }), (3, 8, Did::Ended { value: 7, ended: true })],
        ];
        wrong.iter().for_each(|calls| assert!(run(calls).is_err(), "{calls:?}"));
    }
}
