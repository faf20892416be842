//! Names of Services, as kube-proxy writes them into comments and names of chains.

use nomagic_core::tuple::Tuple;

use crate::follow::{Event, What};
use crate::matching::{Fields, number};
use crate::model::{ChainId, Part, Ruleset};
use crate::render::clean;

/// Which of a Service's addresses a rule is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    ClusterIp,
    ExternalIp,
    LoadBalancerIp,
    NodePort,
    /// One that clients outside may use.
    External,
    Any,
}

/// The Service that a way is about: of the first event that names one. `tuple` is the packet's before any translation.
pub(crate) fn service(rules: &Ruleset, events: &[Event], tuple: &Tuple) -> Option<String> {
    events.iter().find_map(|event| of_event(rules, event, tuple))
}

/// `namespace/name` of the Service that an event's rule, the element of its map, or the chain that it leads to, names.
pub(crate) fn of_event(rules: &Ruleset, event: &Event, tuple: &Tuple) -> Option<String> {
    if !rules.is_kube_proxys(event.chain) {
        return None;
    }
    let rule = rules.chains[event.chain].rules.get(event.rule);
    let fields = Fields { tuple: *tuple, mark: 0, dnat: false };
    let element = rule.into_iter().flat_map(|rule| &rule.parts).find_map(|part| match part {
        Part::Lookup { key, map } => rules.sets[*map].find(&fields.key(key)?)?.comment.as_deref(),
        _ => None,
    });
    let comment = element.or_else(|| rule.and_then(|rule| rule.comment.as_deref()));
    let to = match event.what {
        What::Jump(to) => of_chain(&rules.chains[to].name),
        _ => None,
    };
    to.or_else(|| comment.and_then(of_comment)).or_else(|| of_chain(&rules.chains[event.chain].name))
}

/// `shop/web` of `shop/web:http cluster IP` and the like.
pub(crate) fn of_comment(comment: &str) -> Option<String> {
    let word = comment.split_whitespace().find(|word| {
        let mut parts = word.split('/');
        let name =
            |part: Option<&str>| part.is_some_and(|p| !p.is_empty() && p.chars().all(|c| c.is_ascii_alphanumeric() || "-.:".contains(c)));
        name(parts.next()) && name(parts.next()) && parts.next().is_none()
    })?;
    Some(clean(word.split(':').next().unwrap_or(word)))
}

/// `shop/web` of nftables' `service-ULMVA6XW-shop/web/tcp/http`.
fn of_chain(chain: &str) -> Option<String> {
    let (_, rest) = chain.split_once('-')?;
    let (hash, rest) = rest.split_once('-')?;
    let mut parts = rest.split('/');
    let (Some(namespace), Some(name), Some(_)) = (parts.next(), parts.next(), parts.next()) else { return None };
    (hash.len() == 8).then(|| clean(&format!("{namespace}/{name}")))
}

/// What kind of address a rule that leads to a Service is about.
pub(crate) fn kind(rules: &Ruleset, event: &Event, to: ChainId, tuple: &Tuple) -> Kind {
    let chain = &rules.chains[event.chain];
    let rule = chain.rules.get(event.rule);
    let comment = rule.and_then(|rule| rule.comment.as_deref()).unwrap_or_default();
    let map = rule.and_then(|rule| {
        rule.parts.iter().find_map(|part| match part {
            Part::Lookup { map, .. } => Some(rules.sets[*map].name.as_str()),
            _ => None,
        })
    });
    match (comment, map) {
        _ if chain.name == "KUBE-NODEPORTS" || map.is_some_and(|map| map.ends_with("nodeports")) => Kind::NodePort,
        (text, _) if text.ends_with("cluster IP") => Kind::ClusterIp,
        (text, _) if text.ends_with("external IP") => Kind::ExternalIp,
        (text, _) if text.ends_with("loadbalancer IP") => Kind::LoadBalancerIp,
        (_, Some("firewall-ips")) => Kind::LoadBalancerIp,
        (_, Some(_)) if has_cluster_ip(rules, event.chain, tuple) => Kind::ClusterIp,
        _ if rules.chains[to].name.starts_with("external-") => Kind::External,
        _ => Kind::Any,
    }
}

/// Whether nftables' set of cluster IPs has the packet's destination.
fn has_cluster_ip(rules: &Ruleset, chain: ChainId, tuple: &Tuple) -> bool {
    let set = rules.tables[rules.chains[chain].table].sets.get("cluster-ips");
    set.is_some_and(|set| rules.sets[*set].find(&[number(tuple.dst_addr())]).is_some())
}

/// A rule that lets through what is for the proxy's health check server.
pub(crate) fn is_health_check(rules: &Ruleset, event: &Event) -> bool {
    let chain = &rules.chains[event.chain];
    chain.name == "KUBE-NODEPORTS"
        && chain.rules.get(event.rule).and_then(|r| r.comment.as_deref()).is_some_and(|c| c.ends_with("health check node port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_services() {
        let comments = [
            ("ns1/svc1:p80 cluster IP", Some("ns1/svc1")),
            ("ns1/svc1 has no endpoints", Some("ns1/svc1")),
            ("masquerade traffic for ns1/svc1:p80 external destinations", Some("ns1/svc1")),
            ("kubernetes service portals", None),
            ("", None),
            ("a/b/c 10.0.0.0/", None),
        ];
        for (comment, service) in comments {
            assert_eq!(of_comment(comment).as_deref(), service, "{comment}");
        }
        let chains = [
            ("service-ULMVA6XW-ns1/svc1/tcp/p80", Some("ns1/svc1")),
            ("external-ULMVA6XW-ns1/svc-2/udp/", Some("ns1/svc-2")),
            ("endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80", Some("ns1/svc1")),
            ("service-endpoints-check", None),
            ("KUBE-SVC-XPGD46QRK7WJZT7O", None),
        ];
        for (chain, service) in chains {
            assert_eq!(of_chain(chain).as_deref(), service, "{chain}");
        }
    }
}
