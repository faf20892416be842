//! Sentences for the steps of a decision, with the words of nomagic's `explain`.

use nomagic_api::explain::Verdict;

use crate::decision::{Backend, Decision, Step};
use crate::follow::{Event, Path, Walk, What};
use crate::matching::{Field, Side, Test};
use crate::model::{Action, ChainId, Part, Ruleset};
use crate::names::{self, Kind};
use crate::render;

/// Maximum number of endpoints that a sentence lists.
const LISTED_MAX: usize = 12;

/// The steps that all ways have in common, the choice between them, and what only some have.
pub(crate) fn steps(walk: &Walk<'_>, main: &[&Path], decision: &Decision) -> Vec<Step> {
    let words = Words { walk, decision };
    let Some(first) = main.first() else { return vec![plain("No rule was followed.".into())] };
    let same = |place: usize| main.iter().all(|path| path.events.get(place) == first.events.get(place));
    let shared = if main.len() == 1 { first.events.len() } else { (0..first.events.len()).take_while(|place| same(*place)).count() };
    let mut steps = words.sentences(&first.events[..shared]);
    if main.len() > 1 {
        let chosen = first.events[shared..].iter().find(|event| matches!(event.what, What::Chance(_)));
        steps.extend(words.choice(chosen));
        steps.extend(words.exceptions(main, shared));
        let everywhere = |event: &Event| main.iter().all(|path| path.events[shared..].contains(event));
        let rest: Vec<Event> = first.events[shared..].iter().copied().filter(everywhere).collect();
        steps.extend(words.sentences(&rest));
    }
    if let Some(seconds) = decision.affinity_s {
        steps.push(plain(affinity(seconds)));
    }
    steps.extend(words.guesses());
    if matches!(decision.verdict, Verdict::Pass) && decision.others.is_empty() {
        steps.push(plain("No rule changes its destination: the kernel processes it as if there were no Service.".into()));
    }
    if walk.cut {
        steps.push(plain("The rules are too many, or lead in circles: not all ways were followed.".into()));
    }
    steps
}

fn plain(text: String) -> Step {
    Step { text, place: None }
}

fn affinity(seconds: u32) -> String {
    match seconds {
        0 => "Session affinity: a client that was here before stays at its endpoint.".into(),
        _ => format!("Session affinity: a client that was here in the last {seconds} seconds stays at its endpoint."),
    }
}

/// `33.3 %`
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

struct Words<'w> {
    walk: &'w Walk<'w>,
    decision: &'w Decision,
}

impl Words<'_> {
    fn rules(&self) -> &Ruleset {
        self.walk.rules
    }

    /// What becomes of the source is not worth telling of a packet that goes nowhere.
    fn forwarded(&self) -> Option<()> {
        (self.decision.verdict == Verdict::Forward).then_some(())
    }

    fn sentences(&self, events: &[Event]) -> Vec<Step> {
        let mut steps = Vec::new();
        for event in events {
            let text = match event.what {
                // The rule that leads to the mark says why.
                What::Jump(to) if self.rules().only_marks(to) => self.mark(event),
                What::Mark(..) if self.rules().only_marks(event.chain) => None,
                _ => self.sentence(event),
            };
            let place = Some(self.rules().place(event.chain, event.rule));
            steps.extend(text.map(|text| Step { text, place }));
        }
        steps
    }

    fn sentence(&self, event: &Event) -> Option<String> {
        let tuple = &self.walk.packet.tuple;
        match event.what {
            What::Jump(to) => self.jump(event, to),
            What::Mark(..) => self.mark(event),
            What::OtherSource => {
                self.forwarded()?;
                let client = self.source(event)?;
                Some(format!("The source stays as it is (no SNAT): {}.", client.denied()))
            }
            What::Dnat(address, port) => {
                let to = std::net::SocketAddr::new(address, port);
                Some(format!("The destination {} is rewritten to {to}.", std::net::SocketAddr::new(tuple.dst_addr(), tuple.dport)))
            }
            What::Snat => Some(match self.is_hairpin(event) {
                true => "The source is rewritten to an address of this node (SNAT): the endpoint chosen is the client itself.".into(),
                false => "The source is rewritten to an address of this node (SNAT).".into(),
            }),
            What::Reject => {
                let why = self.why(event).unwrap_or_default();
                let by = if self.resets(event) { "a TCP reset" } else { "ICMP \"port unreachable\"" };
                Some(format!("The client is notified at once, by {by}: connection refused{why}."))
            }
            What::Drop => Some(format!("The packet is dropped silently{}.", self.why(event).unwrap_or_default())),
            What::Policy => Some("The packet is dropped silently: no rule of the chain accepts it, and its policy is to drop.".into()),
            What::Accept if names::is_health_check(self.rules(), event) => {
                Some("The port is a healthCheckNodePort: the packet is for kube-proxy's health check server.".into())
            }
            What::Accept if !self.rules().is_kube_proxys(event.chain) => {
                Some("A rule that is not kube-proxy's lets the packet pass.".into())
            }
            What::Accept | What::Chance(_) | What::Affinity(_) | What::Guess => None,
        }
    }

    /// A rule that leads to another chain, if it says something about the packet.
    fn jump(&self, event: &Event, to: ChainId) -> Option<String> {
        let tuple = &self.walk.packet.tuple;
        if let Some(client) = self.source(event) {
            let local = self.rules().chains[to].name.starts_with("KUBE-SVL") || self.rules().chains[to].name.starts_with("local-");
            let where_to = if local { "only endpoints on this node may answer" } else { "endpoints on all nodes are candidates" };
            let ranges = names::kind(self.rules(), event, to, tuple) == Kind::LoadBalancerIp;
            return Some(if ranges {
                format!("{}: it may use the load balancer IP.", upper(&client.held()))
            } else {
                format!("{}: {where_to}.", upper(&client.held()))
            });
        }
        if self.rules().chains[to].name.starts_with("KUBE-SVL") || self.rules().chains[to].name.starts_with("local-") {
            return Some("externalTrafficPolicy or internalTrafficPolicy is Local: only endpoints on this node may answer.".into());
        }
        if !self.names_port(event) {
            return None;
        }
        let service = names::of_event(self.rules(), event, tuple);
        let of = service.map_or(String::new(), |service| format!(" of Service {service}"));
        let (address, port) = (tuple.dst_addr(), format!("port {}/{}", tuple.dport, tuple.proto));
        Some(match names::kind(self.rules(), event, to, tuple) {
            Kind::ClusterIp => format!("{address} is the cluster IP{of}, {port}."),
            Kind::ExternalIp => format!("{address} is an external IP{of}, {port}."),
            Kind::LoadBalancerIp => format!("{address} is a load balancer IP{of}, {port}."),
            Kind::NodePort => format!("{}/{} is a node port{of}.", tuple.dport, tuple.proto),
            Kind::External => format!("{address} is an external IP or a load balancer IP{of}, {port}."),
            Kind::Any if of.is_empty() => format!("{address} is an address of a Service, {port}."),
            Kind::Any => format!("{address} is an address{of}, {port}."),
        })
    }

    fn mark(&self, event: &Event) -> Option<String> {
        self.forwarded()?;
        // The mark is taken away where the source is rewritten.
        if let What::Mark(before, after) = event.what
            && after & before == after
        {
            return None;
        }
        let why = match self.source(event) {
            Some(client) => format!(": {}", client.held()),
            None => match self.rules().chains[event.chain].rules.get(event.rule).and_then(|rule| rule.comment.as_deref()) {
                Some(text) if text.contains("external destinations") => ": the address is one for clients outside".into(),
                _ if self.rules().chains[event.chain].name.starts_with("external-") => ": the address is one for clients outside".into(),
                _ => String::new(),
            },
        };
        Some(format!("The source will be rewritten (SNAT), by a mark{why}."))
    }

    /// What a rule asks about the client.
    fn source(&self, event: &Event) -> Option<Client> {
        let rule = self.rules().chains[event.chain].rules.get(event.rule)?;
        rule.parts.iter().find_map(|part| match part {
            Part::Test(Test::Field { field: field @ Field::Address { side: Side::Source, .. }, not, spans }) => {
                let text = render::values(*field, spans);
                let text = match spans.as_slice() {
                    [one] if one.first == one.last => text,
                    [_] if self.asks_for_pods(event) => format!("in the pods' range {text}"),
                    [_] => format!("in {text}"),
                    _ => format!("in one of {text}"),
                };
                Some(Client { text, not: *not })
            }
            Part::Test(Test::Local { side: Side::Source, not }) => Some(Client { text: "the node itself".into(), not: *not }),
            Part::Test(Test::Interface { incoming: true, name, not }) => {
                Some(Client { text: format!("a pod behind the interface {}", render::clean(name)), not: *not })
            }
            _ => None,
        })
    }

    /// kube-proxy asks for a range of sources to know pods, except where it keeps clients away from a load balancer IP.
    fn asks_for_pods(&self, event: &Event) -> bool {
        let name = &self.rules().chains[event.chain].name;
        self.rules().is_kube_proxys(event.chain) && !name.starts_with("firewall-") && !name.starts_with("KUBE-FW")
    }

    /// Whether a rule asks for a destination port, itself or by a map.
    fn names_port(&self, event: &Event) -> bool {
        let port = |field: &Field| matches!(field, Field::Port { side: Side::Destination, .. });
        self.rules().chains[event.chain].rules.get(event.rule).is_some_and(|rule| {
            rule.parts.iter().any(|part| match part {
                Part::Test(Test::Field { field, .. }) => port(field),
                Part::Lookup { key, .. } => key.iter().any(port),
                _ => false,
            })
        })
    }

    fn resets(&self, event: &Event) -> bool {
        let reset = |part: &Part| matches!(part, Part::Do(Action::Reject(with)) if with.contains("reset"));
        self.rules().chains[event.chain].rules.get(event.rule).is_some_and(|rule| rule.parts.iter().any(reset))
    }

    fn is_hairpin(&self, event: &Event) -> bool {
        let rule = self.rules().chains[event.chain].rules.get(event.rule);
        rule.is_some_and(|rule| rule.parts.iter().any(|part| matches!(part, Part::Test(Test::InSet { key, .. }) if key.len() > 2)))
    }

    /// Why a packet is refused, by the rule's comment or its chain.
    fn why(&self, event: &Event) -> Option<String> {
        let chain = &self.rules().chains[event.chain];
        if !self.rules().is_kube_proxys(event.chain) {
            return Some(" (by a rule that is not kube-proxy's)".into());
        }
        let rule = chain.rules.get(event.rule)?;
        let map = rule.parts.iter().find_map(|part| match part {
            Part::Lookup { key, map } => Some((key, &self.rules().sets[*map])),
            _ => None,
        });
        let comment = rule.comment.as_deref().unwrap_or_default();
        let text = match (chain.name.as_str(), map) {
            (_, Some((_, map))) if map.name.starts_with("no-endpoint") && event.what == What::Drop => {
                "the Service has no endpoints on this node"
            }
            ("reject-chain", _) => "the Service has no endpoints",
            (name, _) if name.starts_with("firewall-") => "the client is outside of loadBalancerSourceRanges",
            ("KUBE-PROXY-FIREWALL", _) => "the client is outside of loadBalancerSourceRanges",
            ("cluster-ips-check", _) if event.what == What::Reject => "not a port of the Service with this cluster IP",
            ("cluster-ips-check", _) => "in the range of cluster IPs, but no Service has it",
            _ if comment.ends_with("has no endpoints") => "the Service has no endpoints",
            _ if comment.ends_with("has no local endpoints") => "the Service has no endpoints on this node",
            ("KUBE-FIREWALL", _) => "loopback addresses are for the node itself",
            _ => return None,
        };
        Some(format!(" ({text})"))
    }

    /// The sentence about the endpoints and their shares.
    fn choice(&self, event: Option<&Event>) -> Option<Step> {
        let backends = &self.decision.backends;
        let count = backends.len();
        let even = backends.iter().all(|backend| (backend.share - 1.0 / count as f64).abs() < 0.001);
        let one = |backend: &Backend| if even { backend.to.to_string() } else { format!("{} ({})", backend.to, percent(backend.share)) };
        let mut shown: Vec<String> = backends.iter().take(LISTED_MAX).map(one).collect();
        if count > LISTED_MAX {
            shown.push(format!("and {} more", count - LISTED_MAX));
        }
        let shares = match count {
            0 => return None,
            1 => "one endpoint".to_owned(),
            _ if even => format!("one of {count} endpoints by a random number, each with {}", percent(1.0 / count as f64)),
            _ => format!("one of {count} endpoints by a random number, with uneven shares"),
        };
        let text = format!("The destination is rewritten to {shares}: {}.", shown.join(", "));
        Some(Step { text, place: event.map(|event| self.rules().place(event.chain, event.rule)) })
    }

    /// What only some of the endpoints' ways have: the client itself as the endpoint.
    fn exceptions(&self, main: &[&Path], shared: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        let mixed = self.decision.backends.iter().any(|backend| backend.snat) && self.decision.backends.iter().any(|backend| !backend.snat);
        for path in main.iter().filter(|_| mixed) {
            let (_, Some(to), true) = path.outcome(self.rules()) else { continue };
            let rest = &path.events[shared..];
            let Some(event) = rest.iter().rev().find(|event| matches!(event.what, What::Snat)) else { continue };
            let text = format!("If it is {to}, the source is rewritten to an address of this node (SNAT).");
            steps.push(Step { text, place: Some(self.rules().place(event.chain, event.rule)) });
        }
        for (verdict, share) in &self.decision.others {
            steps.push(plain(format!("With {} of the connections the rules end otherwise: {}.", percent(*share), label(*verdict))));
        }
        steps
    }

    fn guesses(&self) -> Vec<Step> {
        let text = match self.decision.certain {
            true => "This rule asks or does something that is not known here; the answer is the same either way.",
            false => "This rule asks or does something that is not known here, and may change the answer.",
        };
        self.decision.unknown.iter().map(|place| Step { text: text.into(), place: Some(place.clone()) }).collect()
    }
}

/// What a rule asks about the client.
struct Client {
    text: String,
    not: bool,
}

impl Client {
    fn say(&self, is: bool) -> String {
        format!("the client is {}{}", if is { "" } else { "not " }, self.text)
    }

    fn held(&self) -> String {
        self.say(!self.not)
    }

    fn denied(&self) -> String {
        self.say(self.not)
    }
}

fn upper(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().collect::<String>() + letters.as_str())
}

/// An outcome in capitals, as `explain` prints it.
pub(crate) fn label(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Forward => "FORWARD",
        Verdict::Reject => "REJECT",
        Verdict::Drop => "DROP",
        Verdict::Local => "LOCAL",
        Verdict::Pass => "PASS",
        Verdict::Hold => "HOLD",
    }
}
