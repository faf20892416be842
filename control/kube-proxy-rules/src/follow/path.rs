//! One way of a packet through the rules.

use std::net::IpAddr;

use nomagic_core::tuple::addr_words;

use crate::matching::Fields;
use crate::model::{Base, ChainId, Hook, Ruleset};
use crate::packet::{Origin, Packet};

/// A place in a chain: the part of a rule that is next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Frame {
    pub chain: ChainId,
    pub rule: usize,
    pub part: usize,
}

impl Frame {
    /// The base chain whose policy counts at the end of this chain.
    pub(super) fn last_resort<'r>(&self, rules: &'r Ruleset, path: &Path) -> Option<&'r Base> {
        let entered = rules.hooks.get(&path.hook)?.get(path.base.checked_sub(1)?)?;
        rules.chains[*entered].base.as_ref()
    }
}

/// What a rule did, of what is worth telling.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum What {
    Jump(ChainId),
    /// The mark has changed from, to.
    Mark(u32, u32),
    /// The mark would have changed, but the source is another one.
    OtherSource,
    /// Taken by chance, with this probability.
    Chance(f64),
    Dnat(IpAddr, u16),
    Snat,
    Accept,
    Drop,
    Reject,
    /// The chain's policy drops.
    Policy,
    /// The client may be remembered; seconds.
    Affinity(Option<u32>),
    /// Not known here.
    Guess,
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Event {
    pub chain: ChainId,
    pub rule: usize,
    pub what: What,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum End {
    Drop,
    Reject,
}

#[derive(Clone, Debug)]
pub(crate) struct Path {
    pub fields: Fields,
    pub hook: Hook,
    /// Place in the hook's list of base chains: the next one.
    pub base: usize,
    pub stack: Vec<Frame>,
    pub snat: bool,
    /// A packet of the node to itself, on its second way.
    pub looped: bool,
    pub end: Option<End>,
    /// Probability of this way.
    pub share: f64,
    /// How many rules that are not known were taken to hold.
    pub guesses: usize,
    pub events: Vec<Event>,
}

impl Path {
    pub(super) fn new(packet: &Packet) -> Path {
        Path {
            fields: Fields { tuple: packet.tuple, mark: 0, dnat: false },
            hook: if packet.origin == Origin::Node { Hook::Output } else { Hook::Prerouting },
            base: 0,
            stack: Vec::new(),
            snat: false,
            looped: false,
            end: None,
            share: 1.0,
            guesses: 0,
            events: Vec::new(),
        }
    }

    pub(super) fn note(&mut self, frame: Frame, what: What) {
        self.events.push(Event { chain: frame.chain, rule: frame.rule, what });
    }

    /// Goes on behind the current rule.
    pub(super) fn next_rule(&mut self) {
        if let Some(frame) = self.stack.last_mut() {
            (frame.rule, frame.part) = (frame.rule + 1, 0);
        }
    }

    /// Goes on with the next part of the current rule.
    pub(super) fn next_part(&mut self) {
        if let Some(frame) = self.stack.last_mut() {
            frame.part += 1;
        }
    }

    pub(super) fn translate(&mut self, address: IpAddr, port: Option<u16>) {
        let (words, v6) = addr_words(address);
        if v6 == self.fields.tuple.v6 {
            self.fields.tuple.dst = words;
            self.fields.tuple.dport = port.unwrap_or(self.fields.tuple.dport);
            self.fields.dnat = true;
        }
    }
}
