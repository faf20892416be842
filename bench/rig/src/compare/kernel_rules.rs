//! Rules for the Services of [`workload`](super::workload), in the shape that kube-proxy of Kubernetes 1.34 writes
//! for cluster IPs: nftables with verdict maps, iptables with chains.

use std::fmt::Write as _;

use super::workload::{CLUSTER_CIDR, ENDPOINTS_EACH, SERVICE_CIDR, cluster_ip, endpoint, ports};

/// A name for a Service port or an endpoint, as long as kube-proxy's hashes.
fn hash(service: u32, port: u16, endpoint: Option<u32>) -> String {
    let mut word = String::new();
    let mut value = u64::from(service) << 32 | u64::from(port) << 8 | endpoint.map_or(0, |e| u64::from(e) + 1);
    // A reversible mix: different inputs have different names.
    value = value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    for _ in 0..16 {
        word.push(char::from(b"ABCDEFGHIJKLMNOP"[(value & 15) as usize]));
        value >>= 4;
    }
    word
}

/// A complete ruleset for `nft -f`.
pub fn nftables(services: u32, generation: u32) -> String {
    let mut out = String::from("add table ip kube-proxy\n");
    for (chain, hook) in [
        ("filter-prerouting-pre-dnat", "filter hook prerouting priority -110"),
        ("filter-forward", "filter hook forward priority -110"),
        ("filter-input", "filter hook input priority -110"),
        ("filter-output", "filter hook output priority -110"),
        ("nat-prerouting", "nat hook prerouting priority -100"),
        ("nat-output", "nat hook output priority -100"),
        ("nat-postrouting", "nat hook postrouting priority 100"),
    ] {
        let _ = writeln!(out, "add chain ip kube-proxy {chain} {{ type {hook} ; }}");
    }
    for chain in [
        "services",
        "mark-for-masquerade",
        "masquerading",
        "cluster-ips-check",
        "firewall-check",
        "service-endpoints-check",
        "nodeport-endpoints-check",
    ] {
        let _ = writeln!(out, "add chain ip kube-proxy {chain}");
    }
    for map in ["service-ips", "no-endpoint-services", "firewall-ips"] {
        let _ = writeln!(out, "add map ip kube-proxy {map} {{ type ipv4_addr . inet_proto . inet_service : verdict ; }}");
    }
    for map in ["service-nodeports", "no-endpoint-nodeports"] {
        let _ = writeln!(out, "add map ip kube-proxy {map} {{ type inet_proto . inet_service : verdict ; }}");
    }
    for set in ["cluster-ips", "nodeport-ips"] {
        let _ = writeln!(out, "add set ip kube-proxy {set} {{ type ipv4_addr ; }}");
    }
    for (chain, rule) in [
        ("filter-prerouting-pre-dnat", "ct state new jump firewall-check"),
        ("filter-forward", "ct state new jump service-endpoints-check"),
        ("filter-forward", "ct state new jump cluster-ips-check"),
        ("filter-input", "ct state new jump nodeport-endpoints-check"),
        ("filter-input", "ct state new jump service-endpoints-check"),
        ("filter-output", "ct state new jump service-endpoints-check"),
        ("filter-output", "ct state new jump firewall-check"),
        ("nat-prerouting", "jump services"),
        ("nat-output", "jump services"),
        ("nat-postrouting", "jump masquerading"),
        ("mark-for-masquerade", "mark set mark or 0x4000"),
        ("masquerading", "mark and 0x4000 == 0 return"),
        ("masquerading", "mark set mark xor 0x4000"),
        ("masquerading", "masquerade fully-random"),
        ("services", "ip daddr . meta l4proto . th dport vmap @service-ips"),
        ("services", "ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports"),
        ("firewall-check", "ip daddr . meta l4proto . th dport vmap @firewall-ips"),
        ("service-endpoints-check", "ip daddr . meta l4proto . th dport vmap @no-endpoint-services"),
        ("nodeport-endpoints-check", "ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports"),
        ("cluster-ips-check", "ip daddr @cluster-ips reject"),
    ] {
        let _ = writeln!(out, "add rule ip kube-proxy {chain} {rule}");
    }
    let _ = writeln!(out, "add rule ip kube-proxy cluster-ips-check ip daddr {SERVICE_CIDR} drop");
    for service in 0..services {
        out += &nftables_service(service, generation);
    }
    out
}

fn nftables_chain(service: u32, port: u16, name: &str, protocol: &str) -> String {
    format!("service-{}-bench/svc-{service}/{}/{name}", &hash(service, port, None)[..8], protocol.to_ascii_lowercase())
}

/// One Service's part of [`nftables`].
fn nftables_service(service: u32, generation: u32) -> String {
    let (mut out, ip) = (String::new(), cluster_ip(service));
    let _ = writeln!(out, "add element ip kube-proxy cluster-ips {{ {ip} }}");
    for (name, port, protocol) in ports(service) {
        let l4 = protocol.to_ascii_lowercase();
        let chain = nftables_chain(service, port, name, protocol);
        let _ = writeln!(out, "add chain ip kube-proxy {chain}");
        for n in 0..ENDPOINTS_EACH {
            let to = endpoint(service, n, generation);
            let own = nftables_endpoint(service, port, name, protocol, n, generation);
            let _ = writeln!(out, "add chain ip kube-proxy {own}");
            let _ = writeln!(out, "add rule ip kube-proxy {own} ip saddr {to} jump mark-for-masquerade");
            let _ = writeln!(out, "add rule ip kube-proxy {own} meta l4proto {l4} dnat to {to}:{port}");
        }
        let _ = writeln!(
            out,
            "add rule ip kube-proxy {chain} ip daddr {ip} {l4} dport {port} ip saddr != {CLUSTER_CIDR} jump mark-for-masquerade"
        );
        out += &nftables_choice(service, port, name, protocol, generation);
        let _ = writeln!(out, "add element ip kube-proxy service-ips {{ {ip} . {l4} . {port} : goto {chain} }}");
    }
    out
}

fn nftables_endpoint(service: u32, port: u16, name: &str, protocol: &str, n: u32, generation: u32) -> String {
    let to = endpoint(service, n, generation);
    format!(
        "endpoint-{}-bench/svc-{service}/{}/{name}__{to}/{port}",
        &hash(service, port, Some(n + ENDPOINTS_EACH * generation))[..8],
        protocol.to_ascii_lowercase()
    )
}

fn nftables_choice(service: u32, port: u16, name: &str, protocol: &str, generation: u32) -> String {
    let own = |n| format!("{n} : goto {}", nftables_endpoint(service, port, name, protocol, n, generation));
    let ways: Vec<String> = (0..ENDPOINTS_EACH).map(own).collect();
    let chain = nftables_chain(service, port, name, protocol);
    format!("add rule ip kube-proxy {chain} numgen random mod {ENDPOINTS_EACH} vmap {{ {} }}\n", ways.join(", "))
}

/// kube-proxy's transaction when one Service's endpoints are replaced: new endpoint chains, and a new Service chain.
pub fn nftables_change(service: u32, generation: u32) -> String {
    let mut out = String::new();
    for (name, port, protocol) in ports(service) {
        let chain = nftables_chain(service, port, name, protocol);
        let _ = writeln!(out, "flush chain ip kube-proxy {chain}");
    }
    out + &nftables_service(service, generation)
}

/// Rules for `iptables-restore`, tables filter and nat.
pub fn iptables(services: u32, generation: u32) -> String {
    let mut out = String::from(
        "*filter\n:KUBE-SERVICES - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n:KUBE-FORWARD - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n\
         :KUBE-FIREWALL - [0:0]\n\
         -A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL\n\
         -A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS\n\
         -A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL\n\
         -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
         -A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES\n\
         -A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n",
    );
    let all = || (0..services).flat_map(|s| ports(s).map(move |p| (s, p)));
    for (service, (_, port, _)) in all() {
        let _ = writeln!(out, ":KUBE-SVC-{} - [0:0]", hash(service, port, None));
        for n in 0..ENDPOINTS_EACH {
            let _ = writeln!(out, ":KUBE-SEP-{} - [0:0]", hash(service, port, Some(n)));
        }
    }
    out += "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
            -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
            -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
            -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
            -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
            -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
            -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n";
    for (service, (name, port, protocol)) in all() {
        out += &iptables_service(service, name, port, protocol, generation);
    }
    out += "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype \
            --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n";
    out
}

fn iptables_service(service: u32, name: &str, port: u16, protocol: &str, generation: u32) -> String {
    let (mut out, ip, l4) = (String::new(), cluster_ip(service), protocol.to_ascii_lowercase());
    let comment = format!("-m comment --comment \"bench/svc-{service}:{name}");
    let chain = format!("KUBE-SVC-{}", hash(service, port, None));
    let _ = writeln!(out, "-A KUBE-SERVICES {comment} cluster IP\" -m {l4} -p {l4} -d {ip} --dport {port} -j {chain}");
    out += &iptables_masquerade(&chain, &comment, &l4, port, ip);
    out + &iptables_endpoints(service, name, port, protocol, generation)
}

fn iptables_masquerade(chain: &str, comment: &str, l4: &str, port: u16, ip: std::net::Ipv4Addr) -> String {
    format!("-A {chain} {comment} cluster IP\" -m {l4} -p {l4} -d {ip} --dport {port} ! -s {CLUSTER_CIDR} -j KUBE-MARK-MASQ\n")
}

fn iptables_endpoints(service: u32, name: &str, port: u16, protocol: &str, generation: u32) -> String {
    let (mut out, l4) = (String::new(), protocol.to_ascii_lowercase());
    let comment = format!("-m comment --comment \"bench/svc-{service}:{name}");
    let chain = format!("KUBE-SVC-{}", hash(service, port, None));
    for n in 0..ENDPOINTS_EACH {
        let (own, to) = (format!("KUBE-SEP-{}", hash(service, port, Some(n))), endpoint(service, n, generation));
        // Each endpoint takes its share of the remaining probability; the last one takes the rest.
        let left = ENDPOINTS_EACH - n;
        let chance =
            if left > 1 { format!(" -m statistic --mode random --probability {:.10}", 1.0 / f64::from(left)) } else { String::new() };
        let _ = writeln!(out, "-A {chain} {comment} -> {to}:{port}\"{chance} -j {own}");
        let _ = writeln!(out, "-A {own} {comment}\" -s {to} -j KUBE-MARK-MASQ");
        let _ = writeln!(out, "-A {own} {comment}\" -m {l4} -p {l4} -j DNAT --to-destination {to}:{port}");
    }
    out
}

/// kube-proxy's input for `iptables-restore --noflush` when one Service's endpoints are replaced (a partial sync).
pub fn iptables_change(service: u32, generation: u32) -> String {
    let mut chains = String::from("*nat\n");
    let mut rules = String::new();
    for (name, port, protocol) in ports(service) {
        let chain = format!("KUBE-SVC-{}", hash(service, port, None));
        let _ = writeln!(chains, ":{chain} - [0:0]");
        for n in 0..ENDPOINTS_EACH {
            let _ = writeln!(chains, ":KUBE-SEP-{} - [0:0]", hash(service, port, Some(n)));
        }
        let comment = format!("-m comment --comment \"bench/svc-{service}:{name}");
        rules += &iptables_masquerade(&chain, &comment, &protocol.to_ascii_lowercase(), port, cluster_ip(service));
        rules += &iptables_endpoints(service, name, port, protocol, generation);
    }
    chains + &rules + "COMMIT\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_service_port_and_endpoint_has_rules_of_its_own() {
        let (nft, ipt) = (nftables(100, 0), iptables(100, 0));
        let count = |text: &str, word: &str| text.matches(word).count();
        // 100 UDP ports and one TCP port, three endpoints each.
        assert_eq!(
            (count(&nft, " dnat to "), count(&nft, "vmap { 0 : goto"), count(&nft, "add element ip kube-proxy service-ips")),
            (303, 101, 101)
        );
        assert_eq!((count(&ipt, "-j DNAT"), count(&ipt, "--mode random"), count(&ipt, "-A KUBE-SERVICES ")), (303, 202, 102));
        let chains: HashSet<&str> = ipt.lines().filter(|l| l.starts_with(":KUBE-S")).collect();
        assert_eq!(chains.len(), 101 * 4 + 1 /* KUBE-SERVICES of both tables */);
    }

    #[test]
    fn a_change_leads_to_the_new_endpoints_only() {
        let (old, new) = (endpoint(7, 1, 0).to_string(), endpoint(7, 1, 1).to_string());
        for text in [nftables_change(7, 1), iptables_change(7, 1)] {
            assert!(text.contains(&format!("{new}:5300")) && !text.contains(&format!("{old}:")), "{text}");
        }
    }
}
