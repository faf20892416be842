//! One rule: its tests and what it does.

use super::{Frame, Path, Walk, What};
use crate::matching::{Field, Side, Test};
use crate::model::{Action, ChainId, Part, Rule};
use crate::packet::Origin;

/// The outcome of a test.
enum Answer {
    Yes,
    No,
    /// With this probability.
    Chance(f64),
    Unknown,
}

impl Walk<'_> {
    /// Works on the part at `frame`. `None`: the path has divided, and all its parts are open.
    pub(super) fn step(&mut self, mut path: Path, frame: Frame) -> Option<Path> {
        let rule = &self.rules.chains[frame.chain].rules[frame.rule];
        if frame.part == 0 && !self.may_hold(&mut path, frame, rule) {
            path.next_rule();
            return Some(path);
        }
        let Some(part) = rule.parts.get(frame.part) else {
            path.next_rule();
            return Some(path);
        };
        match part {
            Part::Test(test) => match self.answer(&path, frame.chain, test) {
                Answer::Yes => path.next_part(),
                Answer::No => path.next_rule(),
                Answer::Chance(probability) => {
                    self.divide(path, frame, probability);
                    return None;
                }
                Answer::Unknown => {
                    let mut holds = path.clone();
                    holds.next_part();
                    self.guess(holds, frame);
                    path.next_rule();
                }
            },
            Part::Mark { keep, flip } => {
                let before = path.fields.mark;
                path.fields.mark = (before & keep) ^ flip;
                if path.fields.mark != before {
                    path.note(frame, What::Mark(before, path.fields.mark));
                }
                path.next_part();
            }
            Part::Lookup { key, map } => {
                let found = path.fields.key(key).and_then(|key| self.rules.sets[*map].find(&key));
                match found.and_then(|element| element.action.as_ref()) {
                    Some(action) => self.act(&mut path, frame, action),
                    None => path.next_rule(),
                }
            }
            Part::Choose { of, choices } => {
                self.choose(path, frame, *of, choices);
                return None;
            }
            Part::Do(action) => self.act(&mut path, frame, action),
            Part::Remember(_) | Part::Note(_) => path.next_part(),
            Part::Unknown(_) => {
                path.guesses += 1;
                path.note(frame, What::Guess);
                path.next_part();
            }
        }
        Some(path)
    }

    /// Looks at all tests of a rule first, so that what is known decides before what is not. Also notes a rule that would have marked the
    /// packet if it came from elsewhere.
    fn may_hold(&self, path: &mut Path, frame: Frame, rule: &Rule) -> bool {
        let (mut failed, mut others) = (0, 0);
        for part in &rule.parts {
            match part {
                Part::Test(test @ Test::Recent { seconds, .. }) => {
                    if matches!(test, Test::Recent { .. }) && !path.events.iter().any(|event| matches!(event.what, What::Affinity(_))) {
                        path.note(frame, What::Affinity(*seconds));
                    }
                    return false;
                }
                Part::Test(test) => {
                    if matches!(self.answer(path, frame.chain, test), Answer::No) {
                        failed += 1;
                        others += usize::from(!asks_for_source(test));
                    }
                }
                Part::Mark { .. } | Part::Lookup { .. } => break,
                _ => {}
            }
        }
        if failed == 0 {
            return true;
        }
        if others == 0 && rule.parts.iter().any(|part| self.rules.marks(part)) {
            path.note(frame, What::OtherSource);
        }
        false
    }

    fn answer(&self, path: &Path, chain: ChainId, test: &Test) -> Answer {
        let fields = &path.fields;
        let holds = match test {
            Test::Field { field, not, spans } => match fields.get(*field) {
                // A rule that asks for another protocol or family does not hold, whatever else it asks.
                None => false,
                Some(value) => spans.iter().any(|span| span.contains(value)) != *not,
            },
            Test::InSet { key, not, set } => match fields.key(key) {
                None => false,
                Some(key) => self.rules.sets[*set].find(&key).is_some() != *not,
            },
            Test::Mark { mask, value, not } => (fields.mark & mask == *value) != *not,
            Test::State { bits, not } => (fields.state() & bits != 0) != *not,
            Test::Local { side, not } => {
                let address = match side {
                    Side::Source => fields.tuple.src_addr(),
                    Side::Destination => fields.tuple.dst_addr(),
                };
                self.node.is_local(address) != *not
            }
            Test::Chance(probability) if *probability >= 1.0 => true,
            Test::Chance(probability) if *probability <= 0.0 => false,
            Test::Chance(probability) => return Answer::Chance(*probability),
            Test::Recent { .. } => false,
            Test::Interface { incoming, name, not } => match self.by_interface(path, chain, *incoming, name) {
                Some(by) => by != *not,
                None => return Answer::Unknown,
            },
            Test::Constant { holds, .. } => *holds,
            Test::Unknown(_) => return Answer::Unknown,
        };
        if holds { Answer::Yes } else { Answer::No }
    }

    /// Whether a packet comes or goes by an interface. kube-proxy asks for one where it tells pods from others by their interfaces.
    fn by_interface(&self, path: &Path, chain: ChainId, incoming: bool, name: &str) -> Option<bool> {
        let own = self.packet.origin == Origin::Node;
        match (incoming, path.looped) {
            (true, true) => Some(matches!(name, "lo" | "+")),
            (true, false) if own => Some(false),
            (true, false) if name == "lo" => Some(false),
            (true, false) if self.rules.is_kube_proxys(chain) => Some(self.packet.origin == Origin::Pod),
            (false, _) if name == "lo" => Some(own && self.node.is_local(path.fields.tuple.dst_addr())),
            _ if name == "+" => Some(true),
            _ => None,
        }
    }

    /// A test that holds by chance: both ways go on.
    fn divide(&mut self, path: Path, frame: Frame, probability: f64) {
        let (mut holds, mut fails) = (path.clone(), path);
        holds.share *= probability;
        holds.note(frame, What::Chance(probability));
        holds.next_part();
        fails.share *= 1.0 - probability;
        fails.next_rule();
        // The last one is followed first, and the order of all is reversed in the end.
        self.fork(holds);
        self.fork(fails);
    }

    /// One of several by a random number. Numbers without a choice go on with the next rule.
    fn choose(&mut self, path: Path, frame: Frame, of: u64, choices: &[(crate::matching::Span, Action)]) {
        let mut left = of as f64;
        for (span, action) in choices {
            let part = (span.last - span.first + 1) as f64;
            left -= part;
            let mut chosen = path.clone();
            chosen.share *= part / of as f64;
            chosen.note(frame, What::Chance(part / of as f64));
            self.act(&mut chosen, frame, action);
            self.settle(chosen);
        }
        if left > 0.5 {
            let mut rest = path;
            rest.share *= left / of as f64;
            rest.next_rule();
            self.fork(rest);
        }
    }

    fn settle(&mut self, path: Path) {
        if path.end.is_some() { self.done.push(path) } else { self.fork(path) }
    }
}

fn asks_for_source(test: &Test) -> bool {
    match test {
        Test::Field { field, .. } => matches!(field, Field::Address { side: Side::Source, .. }),
        Test::InSet { key, .. } => key.as_slice().iter().all(|field| matches!(field, Field::Address { side: Side::Source, .. })),
        Test::Local { side, .. } => *side == Side::Source,
        Test::Interface { .. } => true,
        _ => false,
    }
}
