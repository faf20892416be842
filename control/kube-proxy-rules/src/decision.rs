//! What the rules do with a packet.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use nomagic_api::explain::Verdict;

use crate::follow::{End, Path, Walk, What};
use crate::model::{ChainId, RulePlace, Ruleset};
use crate::{names, words};

/// What the rules do with the first packet of a connection.
#[derive(Clone, PartialEq, Debug)]
pub struct Decision {
    /// The most likely outcome, in the words of nomagic's `explain`.
    pub verdict: Verdict,
    /// Other outcomes with their shares of the connections, if rules that decide by chance leave some out.
    pub others: Vec<(Verdict, f64)>,
    /// Where connections go, by address.
    pub backends: Vec<Backend>,
    /// Whether the source is replaced although no destination is.
    pub snat: bool,
    /// `namespace/name` of the Service, as far as comments and names of chains tell.
    pub service: Option<String>,
    /// For how many seconds a client stays at its endpoint (session affinity); 0: not said.
    pub affinity_s: Option<u32>,
    /// False if a rule that is not known here, or a limit, may change the answer.
    pub certain: bool,
    /// A limit ended the search: there are too many rules or ways, or they lead in circles.
    pub limited: bool,
    /// Rules in which something is not known, and which this packet may meet.
    pub unknown: Vec<RulePlace>,
    /// Rules that are not kube-proxy's, and that decided where the packet goes.
    pub foreign: Vec<RulePlace>,
    /// Rules that are not kube-proxy's, and that replaced the source.
    pub foreign_sources: Vec<RulePlace>,
    /// What decided, in order.
    pub steps: Vec<Step>,
}

/// An endpoint that the rules may choose.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Backend {
    pub to: SocketAddr,
    /// Of all connections, between 0 and 1.
    pub share: f64,
    /// Whether the client's address is replaced (masquerade).
    pub snat: bool,
}

/// A rule that decided, in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    pub text: String,
    /// `None`: said of several rules, or of none.
    pub place: Option<RulePlace>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{} [{}: {}]", self.text, place.chain, place.rule),
            None => f.write_str(&self.text),
        }
    }
}

/// The end of one way: what happens, to which backend, with which source.
pub(crate) type Outcome = (Verdict, Option<SocketAddr>, bool);

impl Path {
    pub(crate) fn outcome(&self, rules: &Ruleset) -> Outcome {
        let verdict = match self.end {
            Some(End::Drop) => return (Verdict::Drop, None, false),
            Some(End::Reject) => return (Verdict::Reject, None, false),
            None if self.fields.dnat => {
                let to = SocketAddr::new(self.fields.tuple.dst_addr(), self.fields.tuple.dport);
                return (Verdict::Forward, Some(to), self.snat);
            }
            None if self.events.iter().any(|event| event.what == What::Accept && names::is_health_check(rules, event)) => Verdict::Local,
            None => Verdict::Pass,
        };
        (verdict, None, self.snat)
    }
}

impl Decision {
    pub(crate) fn of(walk: &Walk<'_>) -> Decision {
        let rules = walk.rules;
        let known: Vec<&Path> = walk.done.iter().filter(|path| path.guesses == 0).collect();
        let main: Vec<&Path> = if known.is_empty() { walk.done.iter().collect() } else { known };
        let whole: f64 = main.iter().map(|path| path.share).sum::<f64>().max(f64::MIN_POSITIVE);
        let (mut verdicts, mut outcomes): (Vec<(Verdict, f64)>, Vec<Outcome>) = (Vec::new(), Vec::new());
        let mut backends: BTreeMap<SocketAddr, Backend> = BTreeMap::new();
        for path in &main {
            let (outcome, share) = (path.outcome(rules), path.share / whole);
            match verdicts.iter_mut().find(|(verdict, _)| *verdict == outcome.0) {
                Some((_, sum)) => *sum += share,
                None => verdicts.push((outcome.0, share)),
            }
            if let Some(to) = outcome.1 {
                let backend = backends.entry(to).or_insert(Backend { to, share: 0.0, snat: outcome.2 });
                backend.share += share;
                backend.snat |= outcome.2;
            }
            outcomes.push(outcome);
        }
        verdicts.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let verdict = verdicts.first().map_or(Verdict::Pass, |(verdict, _)| *verdict);
        let same = |path: &Path| outcomes.contains(&path.outcome(rules));
        let mut decision = Decision {
            verdict,
            others: verdicts.into_iter().skip(1).collect(),
            backends: backends.into_values().collect(),
            snat: outcomes.iter().any(|(_, to, snat)| to.is_none() && *snat),
            service: main.first().and_then(|path| names::service(rules, &path.events, &walk.packet.tuple)),
            affinity_s: main.iter().flat_map(|path| &path.events).find_map(|event| match event.what {
                What::Affinity(seconds) => Some(seconds.unwrap_or(0)),
                _ => None,
            }),
            certain: !walk.cut && walk.done.iter().all(|path| path.guesses == 0 || same(path)) && main.iter().all(|path| path.guesses == 0),
            limited: walk.cut,
            unknown: places(walk, |_, what| what == What::Guess),
            foreign: places(walk, |chain, what| match what {
                What::Dnat(..) | What::Drop | What::Reject | What::Policy => !rules.is_kube_proxys(chain),
                // It keeps the packet from kube-proxy's chains.
                What::Accept => !rules.is_kube_proxys(chain) && rules.translates(chain),
                _ => false,
            }),
            foreign_sources: places(walk, |chain, what| what == What::Snat && !rules.is_kube_proxys(chain)),
            steps: Vec::new(),
        };
        decision.steps = words::steps(walk, &main, &decision);
        decision
    }

    /// Whether the source is replaced for an endpoint that is not the client itself. `None`: for some.
    pub fn masquerades(&self, client: IpAddr) -> Option<bool> {
        let mut others = self.backends.iter().filter(|backend| backend.to.ip() != client).map(|backend| backend.snat);
        match others.next() {
            None => Some(self.backends.iter().any(|backend| backend.snat) || (self.backends.is_empty() && self.snat)),
            Some(first) => others.all(|snat| snat == first).then_some(first),
        }
    }
}

/// The rules of events that are wanted, each once.
fn places(walk: &Walk<'_>, wanted: impl Fn(ChainId, What) -> bool) -> Vec<RulePlace> {
    let events = walk.done.iter().flat_map(|path| &path.events);
    let found: BTreeSet<(usize, usize)> = events.filter(|e| wanted(e.chain, e.what)).map(|e| (e.chain, e.rule)).collect();
    found.into_iter().map(|(chain, rule)| walk.rules.place(chain, rule)).collect()
}
