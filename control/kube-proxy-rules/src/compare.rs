//! Holds a decision of the rules against what is expected of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use nomagic_api::explain::Verdict;

use crate::decision::{Backend, Decision};
use crate::words::{label, percent};

/// How far an endpoint's share may be from the even one, of the even one. iptables' probabilities have eleven digits.
const SHARE_TOLERANCE: f64 = 0.02;

/// What should happen to a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Expected {
    pub verdict: Verdict,
    pub backends: BTreeSet<SocketAddr>,
    /// Whether the client's address is replaced for endpoints that are not the client itself.
    pub snat: bool,
    /// Seconds of session affinity.
    pub affinity_s: Option<u32>,
}

/// A way in which a decision differs.
#[derive(Clone, PartialEq, Debug)]
pub enum Difference {
    /// The rules' verdict, and the expected one.
    Verdict { rules: Verdict, expected: Verdict },
    /// Endpoints that only the rules use.
    Stale(Vec<SocketAddr>),
    /// Endpoints that the rules do not use.
    Missing(Vec<SocketAddr>),
    /// An endpoint's address with another port: the rules' and the expected one.
    OtherPort { rules: SocketAddr, expected: SocketAddr },
    /// The rules replace the client's address, and should not.
    Masqueraded(Vec<SocketAddr>),
    /// The rules keep the client's address, and should not.
    NotMasqueraded(Vec<SocketAddr>),
    /// A client that is its own endpoint keeps its address, and gets no answer.
    Hairpin(SocketAddr),
    /// Endpoints do not get even shares.
    Shares(Vec<(SocketAddr, f64)>),
    /// Some connections end otherwise.
    Lost(Verdict, f64),
    /// Session affinity: of the rules, and the expected one; seconds.
    Affinity { rules: Option<u32>, expected: Option<u32> },
}

impl Difference {
    /// A sentence without its period.
    pub fn text(&self) -> String {
        match self {
            Difference::Verdict { rules, expected } => format!("the rules say {}, the table says {}", label(*rules), label(*expected)),
            Difference::Stale(all) => format!("only the rules have {} {}", endpoints(all.len()), listed(all)),
            Difference::Missing(all) => format!("the rules lack {} {}", endpoints(all.len()), listed(all)),
            Difference::OtherPort { rules, expected } => format!("the rules lead to {rules} instead of {expected}: the port differs"),
            Difference::Masqueraded(all) => {
                format!("the rules replace the client's address (SNAT) for {}, the table keeps it", listed(all))
            }
            Difference::NotMasqueraded(all) => {
                format!("the rules keep the client's address for {}, the table replaces it (SNAT)", listed(all))
            }
            Difference::Hairpin(to) => format!("the rules keep the client's address although the endpoint {to} is the client itself"),
            Difference::Shares(all) => {
                let shares: Vec<String> = all.iter().take(LISTED_MAX).map(|(to, share)| format!("{to} {}", percent(*share))).collect();
                format!("the rules do not spread evenly: {}", shares.join(", "))
            }
            Difference::Lost(verdict, share) => {
                format!("with {} of the connections the rules do not reach an endpoint: {}", percent(*share), label(*verdict))
            }
            Difference::Affinity { rules, expected } => {
                let words = |of: &Option<u32>| of.map_or("no session affinity".into(), |s| format!("session affinity of {s} s"));
                format!("the rules have {}, the table has {}", words(rules), words(expected))
            }
        }
    }
}

/// Maximum number of endpoints in a sentence.
const LISTED_MAX: usize = 6;

fn endpoints(count: usize) -> &'static str {
    if count == 1 { "the endpoint" } else { "the endpoints" }
}

fn listed(all: &[SocketAddr]) -> String {
    let shown: Vec<String> = all.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    let more = all.len().saturating_sub(LISTED_MAX);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

/// All differences. `client` is the packet's source. `local` and `pass` are the same here, because not all rules tell kube-proxy's health
/// check server from other servers of the node.
pub fn compare(decision: &Decision, expected: &Expected, client: IpAddr) -> Vec<Difference> {
    let same = |verdict| if verdict == Verdict::Local { Verdict::Pass } else { verdict };
    if same(decision.verdict) != same(expected.verdict) {
        return vec![Difference::Verdict { rules: decision.verdict, expected: expected.verdict }];
    }
    if expected.verdict != Verdict::Forward {
        return Vec::new();
    }
    let mut found = compare_endpoints(decision, expected);
    found.extend(compare_sources(decision, expected, client));
    found.extend(compare_shares(decision));
    // An affinity without a stated time agrees with any.
    let agree = match (decision.affinity_s, expected.affinity_s) {
        (Some(0), Some(_)) => true,
        (rules, expected) => rules == expected,
    };
    if !agree {
        found.push(Difference::Affinity { rules: decision.affinity_s, expected: expected.affinity_s });
    }
    found
}

fn compare_endpoints(decision: &Decision, expected: &Expected) -> Vec<Difference> {
    let rules: BTreeSet<SocketAddr> = decision.backends.iter().map(|backend| backend.to).collect();
    let mut stale: Vec<SocketAddr> = rules.difference(&expected.backends).copied().collect();
    let mut missing: BTreeMap<IpAddr, Vec<SocketAddr>> = BTreeMap::new();
    for to in expected.backends.difference(&rules) {
        missing.entry(to.ip()).or_default().push(*to);
    }
    let mut found = Vec::new();
    stale.retain(|to| match missing.get_mut(&to.ip()).and_then(Vec::pop) {
        Some(wanted) => {
            found.push(Difference::OtherPort { rules: *to, expected: wanted });
            false
        }
        None => true,
    });
    let missing: Vec<SocketAddr> = missing.into_values().flatten().collect();
    found.extend((!stale.is_empty()).then_some(Difference::Stale(stale)));
    found.extend((!missing.is_empty()).then_some(Difference::Missing(missing)));
    found
}

fn compare_sources(decision: &Decision, expected: &Expected, client: IpAddr) -> Vec<Difference> {
    let known = decision.backends.iter().filter(|backend| expected.backends.contains(&backend.to));
    let (own, others): (Vec<&Backend>, Vec<&Backend>) = known.partition(|backend| backend.to.ip() == client);
    let wrong: Vec<SocketAddr> = others.iter().filter(|backend| backend.snat != expected.snat).map(|backend| backend.to).collect();
    let mut found: Vec<Difference> = own.iter().filter(|backend| !backend.snat).map(|backend| Difference::Hairpin(backend.to)).collect();
    if !wrong.is_empty() {
        found.push(if expected.snat { Difference::NotMasqueraded(wrong) } else { Difference::Masqueraded(wrong) });
    }
    found
}

fn compare_shares(decision: &Decision) -> Vec<Difference> {
    let mut found: Vec<Difference> =
        decision.others.iter().filter(|(_, share)| *share > 1e-6).map(|(v, share)| Difference::Lost(*v, *share)).collect();
    let reached: f64 = decision.backends.iter().map(|backend| backend.share).sum();
    let even = reached / decision.backends.len().max(1) as f64;
    if decision.backends.iter().any(|backend| (backend.share - even).abs() > even * SHARE_TOLERANCE) {
        found.push(Difference::Shares(decision.backends.iter().map(|backend| (backend.to, backend.share)).collect()));
    }
    found
}
