//! One model of both kinds of rules: base chains at hooks, chains, rules, sets and verdict maps.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use crate::matching::{Field, Span, Test};
use crate::render;
use crate::shortcut::Shortcut;

/// A place in [`Ruleset::chains`].
pub(crate) type ChainId = usize;
/// A place in [`Ruleset::sets`].
pub(crate) type SetId = usize;

/// Everything that was read.
#[derive(Clone, Default, Debug)]
pub struct Ruleset {
    pub(crate) tables: Vec<Table>,
    pub(crate) chains: Vec<Chain>,
    pub(crate) sets: Vec<Set>,
    /// The names of the texts and what they hold, in the order of reading.
    pub(crate) sources: Vec<Source>,
    /// Base chains by hook, in the kernel's order.
    pub(crate) hooks: HashMap<Hook, Vec<ChainId>>,
}

/// A text that was read.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub format: crate::read::Format,
    /// Of an iptables-save with the nf_tables backend: `nft` lists the same tables once more.
    pub shared_with_nft: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub family: Families,
    pub name: String,
    pub iptables: bool,
    /// Another text says the same better; see [`Ruleset::read`].
    pub ignored: bool,
    pub chains: HashMap<String, ChainId>,
    pub sets: HashMap<String, SetId>,
}

/// The families of a table: `ip`, `ip6` or both (`inet`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Families {
    pub v4: bool,
    pub v6: bool,
}

impl Families {
    pub(crate) fn has(self, v6: bool) -> bool {
        if v6 { self.v6 } else { self.v4 }
    }

    /// nft's name.
    pub(crate) fn label(self) -> &'static str {
        match (self.v4, self.v6) {
            (true, true) => "inet",
            (false, _) => "ip6",
            (true, false) => "ip",
        }
    }
}

/// Where the kernel calls a base chain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl Hook {
    pub(crate) fn parse(text: &str) -> Option<Hook> {
        Some(match text.to_ascii_lowercase().as_str() {
            "prerouting" => Hook::Prerouting,
            "input" => Hook::Input,
            "forward" => Hook::Forward,
            "output" => Hook::Output,
            "postrouting" => Hook::Postrouting,
            _ => return None,
        })
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub hook: Hook,
    /// A nat chain sees a connection until one has decided about its source or destination.
    pub nat: bool,
    pub priority: i64,
    pub drops: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub table: usize,
    pub name: String,
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
    /// Of a long chain.
    pub shortcut: Option<Shortcut>,
}

#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// The rule as it was written; nft's JSON has no such text, see [`crate::render`].
    pub text: Option<String>,
    pub comment: Option<String>,
    pub parts: Vec<Part>,
}

/// A part of a rule. They are worked through in order; a test that fails ends the rule.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Part {
    Test(Test),
    /// `mark = (mark & keep) ^ flip`
    Mark {
        keep: u32,
        flip: u32,
    },
    /// Looks up a verdict; without one, the rule ends.
    Lookup {
        key: Vec<Field>,
        map: SetId,
    },
    /// One of several, by a random number below `of`.
    Choose {
        of: u64,
        choices: Vec<(Span, Action)>,
    },
    Do(Action),
    /// Remembers the client for session affinity.
    Remember(String),
    /// Counts or logs: decides nothing.
    Note(String),
    /// Not known; what follows it may or may not happen.
    Unknown(String),
}

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Action {
    Accept,
    Drop,
    /// With which answer, as it is written.
    Reject(String),
    Jump(ChainId),
    Goto(ChainId),
    Return,
    Continue,
    /// Rewrites the destination. Without an address only the port.
    Dnat(Option<IpAddr>, Option<u16>),
    /// To this node itself.
    Redirect(Option<u16>),
    Masquerade,
    Snat(String),
    /// A target that is not known: the packet may or may not go on.
    Unknown(String),
}

/// A set, or a map to verdicts.
#[derive(Clone, Default, Debug)]
pub(crate) struct Set {
    pub name: String,
    /// Elements come and go with packets; seconds that they stay.
    pub timeout_s: Option<u32>,
    pub exact: HashMap<Vec<u128>, Element>,
    pub ranges: Vec<(Vec<Span>, Element)>,
}

#[derive(Clone, Default, Debug)]
pub(crate) struct Element {
    pub action: Option<Action>,
    pub comment: Option<String>,
}

impl Set {
    pub(crate) fn find(&self, key: &[u128]) -> Option<&Element> {
        let within = |spans: &[Span]| spans.len() == key.len() && spans.iter().zip(key).all(|(span, value)| span.contains(*value));
        self.exact.get(key).or_else(|| self.ranges.iter().find(|(spans, _)| within(spans)).map(|(_, element)| element))
    }

    pub(crate) fn insert(&mut self, spans: Vec<Span>, element: Element) {
        if spans.iter().all(|span| span.first == span.last) {
            self.exact.insert(spans.iter().map(|span| span.first).collect(), element);
        } else {
            self.ranges.push((spans, element));
        }
    }

    pub(crate) fn elements(&self) -> impl Iterator<Item = (Vec<Span>, &Element)> {
        let exact = self.exact.iter().map(|(key, element)| (key.iter().map(|value| Span::one(*value)).collect(), element));
        exact.chain(self.ranges.iter().map(|(spans, element)| (spans.clone(), element)))
    }
}

/// Names a rule: table, chain, and the rule's own text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RulePlace {
    /// `ip nat KUBE-SERVICES`: family, table, chain.
    pub chain: String,
    pub rule: String,
}

impl fmt::Display for RulePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {}: `{}`", self.chain, self.rule)
    }
}

impl Ruleset {
    /// Adds a table, or finds it.
    pub(crate) fn table(&mut self, family: Families, name: &str, iptables: bool) -> usize {
        let known = self.tables.iter().position(|t| t.family == family && t.name == name && t.iptables == iptables);
        known.unwrap_or_else(|| {
            let (chains, sets) = (HashMap::new(), HashMap::new());
            self.tables.push(Table { family, name: name.into(), iptables, ignored: false, chains, sets });
            self.tables.len() - 1
        })
    }

    /// Adds a chain without rules, or finds it.
    pub(crate) fn chain(&mut self, table: usize, name: &str) -> ChainId {
        if let Some(id) = self.tables[table].chains.get(name) {
            return *id;
        }
        self.chains.push(Chain { table, name: name.into(), base: None, rules: Vec::new(), shortcut: None });
        self.tables[table].chains.insert(name.into(), self.chains.len() - 1);
        self.chains.len() - 1
    }

    /// Adds a set.
    pub(crate) fn add_set(&mut self, table: usize, set: Set) -> SetId {
        self.tables[table].sets.insert(set.name.clone(), self.sets.len());
        self.sets.push(set);
        self.sets.len() - 1
    }

    /// Family, table and name of a chain.
    pub(crate) fn chain_label(&self, id: ChainId) -> String {
        let chain = &self.chains[id];
        let table = &self.tables[chain.table];
        render::clean(&format!("{} {} {}", table.family.label(), table.name, chain.name))
    }

    /// Whether kube-proxy wrote a chain, as far as its name tells.
    pub(crate) fn is_kube_proxys(&self, id: ChainId) -> bool {
        let chain = &self.chains[id];
        let table = &self.tables[chain.table];
        if table.iptables { chain.name.starts_with("KUBE-") } else { table.name == "kube-proxy" }
    }

    /// Whether a part changes the mark, itself or by a chain that does nothing else.
    pub(crate) fn marks(&self, part: &Part) -> bool {
        match part {
            Part::Mark { .. } => true,
            Part::Do(Action::Jump(to) | Action::Goto(to)) => self.only_marks(*to),
            _ => false,
        }
    }

    /// Whether a chain does nothing but change the mark, as KUBE-MARK-MASQ does.
    pub(crate) fn only_marks(&self, chain: ChainId) -> bool {
        let parts = |rule: &Rule| rule.parts.iter().all(|part| matches!(part, Part::Mark { .. } | Part::Note(_)));
        matches!(self.chains[chain].rules.as_slice(), [only] if parts(only))
    }

    pub(crate) fn place(&self, chain: ChainId, rule: usize) -> RulePlace {
        RulePlace { chain: self.chain_label(chain), rule: self.rule_text(chain, rule) }
    }

    /// The rules in which something is not known, each once.
    pub fn unknown(&self) -> Vec<RulePlace> {
        let strange = |part: &Part| match part {
            Part::Unknown(_) | Part::Test(Test::Unknown(_)) | Part::Do(Action::Unknown(_)) => true,
            Part::Choose { choices, .. } => choices.iter().any(|(_, action)| matches!(action, Action::Unknown(_))),
            _ => false,
        };
        let mut found = Vec::new();
        for (id, chain) in self.chains.iter().enumerate().filter(|(_, chain)| !self.tables[chain.table].ignored) {
            let rules = chain.rules.iter().enumerate().filter(|(_, rule)| rule.parts.iter().any(strange));
            found.extend(rules.map(|(rule, _)| self.place(id, rule)));
        }
        found
    }

    /// Whether any chain is kube-proxy's for a family.
    pub fn has_kube_proxy(&self, v6: bool) -> bool {
        (0..self.chains.len()).any(|id| {
            let table = &self.tables[self.chains[id].table];
            table.family.has(v6) && !table.ignored && self.is_kube_proxys(id) && !self.chains[id].rules.is_empty()
        })
    }

    /// Whether kube-proxy's rules for a family are iptables ones.
    pub fn is_iptables(&self, v6: bool) -> bool {
        (0..self.chains.len()).any(|id| {
            let table = &self.tables[self.chains[id].table];
            table.iptables && table.family.has(v6) && self.is_kube_proxys(id) && !self.chains[id].rules.is_empty()
        })
    }

    /// Whether nft listed the rules of a kube-proxy in iptables mode, which nft cannot show in full, and iptables-save did not.
    pub fn lacks_iptables_save(&self) -> bool {
        self.tables
            .iter()
            .any(|table| !table.iptables && !table.ignored && table.name == "nat" && table.chains.contains_key("KUBE-SERVICES"))
    }

    /// Whether the kube-proxy is in IPVS mode: its rules only ask ipsets, and where packets go is in the kernel's IPVS.
    pub fn is_ipvs(&self) -> bool {
        let asks = |part: &Part| matches!(part, Part::Test(Test::Unknown(text)) if text.contains("--match-set KUBE-CLUSTER-IP "));
        self.chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.parts).any(asks)
    }

    /// Number of rules, of all tables that count.
    pub fn rule_count(&self) -> usize {
        self.chains.iter().filter(|chain| !self.tables[chain.table].ignored).map(|chain| chain.rules.len()).sum()
    }

    /// Leaves out what is not kube-proxy's: rules of other chains, unless they lead to kube-proxy's, and policies.
    pub fn leave_out_others(&mut self) {
        let own: Vec<bool> = (0..self.chains.len()).map(|id| self.is_kube_proxys(id)).collect();
        let leads = |part: &Part| matches!(part, Part::Do(Action::Jump(to) | Action::Goto(to)) if own[*to]);
        for (chain, _) in self.chains.iter_mut().zip(&own).filter(|(_, own)| !**own) {
            chain.rules.retain(|rule| rule.parts.iter().any(leads));
            chain.base.iter_mut().for_each(|base| base.drops = false);
        }
        self.order_hooks();
    }

    /// Whether a chain is of the type nat.
    pub(crate) fn translates(&self, id: ChainId) -> bool {
        let chain = &self.chains[id];
        let table = &self.tables[chain.table];
        chain.base.as_ref().is_some_and(|base| base.nat) || (table.iptables && table.name == "nat")
    }

    /// Sorts the base chains into the kernel's order, and prepares long chains.
    pub(crate) fn order_hooks(&mut self) {
        for chain in &mut self.chains {
            chain.shortcut = Shortcut::of(&chain.rules);
        }
        self.hooks.clear();
        for (id, chain) in self.chains.iter().enumerate().filter(|(_, chain)| !self.tables[chain.table].ignored) {
            if let Some(base) = &chain.base {
                self.hooks.entry(base.hook).or_default().push(id);
            }
        }
        for chains in self.hooks.values_mut() {
            chains.sort_by_key(|id| self.chains[*id].base.as_ref().map(|base| base.priority));
        }
    }
}
