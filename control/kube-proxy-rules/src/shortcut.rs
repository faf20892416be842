//! Which rules of a long chain a packet can meet at all. kube-proxy's iptables mode has chains with a rule for each address of each
//! Service; nearly all of them ask for one destination.

use std::collections::HashMap;

use crate::matching::{Field, Fields, Side, Test};
use crate::model::{Part, Rule};

/// Chains up to this length are followed rule by rule.
const SHORT: usize = 32;

/// The rules of a chain by the destination that they ask for.
#[derive(Clone, Default, Debug)]
pub(crate) struct Shortcut {
    by_address: HashMap<u128, Vec<usize>>,
    by_port: HashMap<u128, Vec<usize>>,
    /// The rules that ask for neither.
    others: Vec<usize>,
}

impl Shortcut {
    /// `None`: the chain is short.
    pub(crate) fn of(rules: &[Rule]) -> Option<Shortcut> {
        if rules.len() <= SHORT {
            return None;
        }
        let mut found = Shortcut::default();
        for (place, rule) in rules.iter().enumerate() {
            let (address, port) = (one(rule, is_address), one(rule, is_port));
            match (address, port) {
                (Some(address), _) => found.by_address.entry(address).or_default().push(place),
                (None, Some(port)) => found.by_port.entry(port).or_default().push(place),
                (None, None) => found.others.push(place),
            }
        }
        Some(found)
    }

    /// The first rule from `start` on that the packet can meet; `end` if there is none.
    pub(crate) fn next(&self, fields: &Fields, start: usize, end: usize) -> usize {
        let address = Field::Address { side: Side::Destination, v6: fields.tuple.v6 };
        let port = Field::Port { side: Side::Destination, of: None };
        let lists = [
            fields.get(address).and_then(|value| self.by_address.get(&value)),
            fields.get(port).and_then(|value| self.by_port.get(&value)),
            Some(&self.others),
        ];
        let first = |list: &Vec<usize>| list.get(list.partition_point(|place| *place < start)).copied();
        lists.into_iter().flatten().filter_map(first).min().unwrap_or(end)
    }
}

fn is_address(field: Field) -> bool {
    matches!(field, Field::Address { side: Side::Destination, .. })
}

fn is_port(field: Field) -> bool {
    matches!(field, Field::Port { side: Side::Destination, .. })
}

/// The one value of a field that a rule asks for, before it does anything.
fn one(rule: &Rule, wanted: fn(Field) -> bool) -> Option<u128> {
    let tests = rule.parts.iter().take_while(|part| matches!(part, Part::Test(_) | Part::Note(_)));
    tests.into_iter().find_map(|part| match part {
        Part::Test(Test::Field { field, not: false, spans }) if wanted(*field) => match spans.as_slice() {
            [span] if span.first == span.last => Some(span.first),
            _ => None,
        },
        _ => None,
    })
}
