//! Damages made by hand: each is found, and named.

use nomagic_core::tuple::Proto;
use nomagic_kube_proxy_rules::parity::Judgement;

use crate::data::{Dumps, Mode, read};
use crate::mirror::Mirror;

/// Three Services with two endpoints each: policies Cluster, external Local, internal Local.
const THREE: &str = "up-ipt-internal-external-masquerade-base.0";
const EMPTY: &str = "up-nft-no-endpoints-reject.0";
const AFFINITY: &str = "x-affinity-flows.0";
const RANGES: &str = "x-ranges-port-scoped.0";

/// A change of the texts' lines.
enum Edit {
    /// Lines that contain all of these lose them.
    Delete(&'static [&'static str]),
    /// In lines that contain the first, the second becomes the third.
    Replace(&'static str, &'static str, &'static str),
    /// A line before the first one that contains this.
    Before(&'static str, &'static str),
}
use Edit::{Before, Delete, Replace};

impl Edit {
    fn apply(&self, text: &str) -> String {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        match self {
            Delete(words) => lines.retain(|line| !words.iter().all(|word| line.contains(word))),
            Replace(which, from, to) => {
                lines.iter_mut().filter(|line| line.contains(which)).for_each(|line| *line = line.replace(from, to));
            }
            Before(which, new) => {
                if let Some(place) = lines.iter().position(|line| line.contains(which)) {
                    lines.insert(place, (*new).to_owned());
                }
            }
        }
        lines.join("\n") + "\n"
    }
}

struct Damage {
    name: &'static str,
    step: &'static str,
    mode: Mode,
    edit: Edit,
    /// A finding at this address has these words, in its differences or its explanation.
    at: &'static str,
    words: &'static [&'static str],
}

const LB: &str = "1.2.3.4:80";

#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn iptables() -> Vec<Damage> {
    let of = |name, edit, at, words| Damage { name, step: THREE, mode: Mode::Iptables, edit, at, words };
    vec![
        of(
            "a stale endpoint",
            Replace("KUBE-SEP-TOIS", "10.180.1.1:80", "10.180.9.9:80"),
            "172.30.0.41:80",
            &["only the rules have the endpoint 10.180.9.9:80", "No EndpointSlice of the Service has 10.180.9.9:80", "stale"],
        ),
        of(
            "a missing endpoint",
            Replace(
                "KUBE-SVC-XPGD46QRK7WJZT7O -m comment --comment \"ns1/svc1:p80 -> 10.180.1.1:80\"",
                "KUBE-SEP-TOIS5JUHRKSSXDL7",
                "KUBE-SEP-SXIVWICOYRO3J4NJ",
            ),
            "172.30.0.41:80",
            &["the rules lack the endpoint 10.180.1.1:80", "older"],
        ),
        of(
            "a wrong probability",
            Replace("-> 10.180.0.1:80\" -m statistic", "0.50000000000", "0.90000000000"),
            "172.30.0.41:80",
            &["do not spread evenly", "10.180.0.1:80 90.0 %", "damaged"],
        ),
        of(
            "the last alternative is missing",
            Delete(&["-A KUBE-SVC-XPGD46QRK7WJZT7O", "-> 10.180.1.1:80"]),
            "172.30.0.41:80",
            &["with 50.0 % of the connections the rules do not reach an endpoint: PASS", "the rules lack the endpoint 10.180.1.1:80"],
        ),
        of(
            "a missing masquerade",
            Delete(&["-A KUBE-SVC-XPGD46QRK7WJZT7O", "KUBE-MARK-MASQ"]),
            "172.30.0.41:80",
            &["the rules keep the client's address for 10.180.0.1:80, 10.180.1.1:80, the table replaces it (SNAT)", "clusterCIDR"],
        ),
        of(
            "a masquerade too many",
            Before("-A KUBE-EXT-GNZBNJ2PO5MGZ6GT", "-A KUBE-EXT-GNZBNJ2PO5MGZ6GT -j KUBE-MARK-MASQ"),
            "5.6.7.8:80",
            &["the rules replace the client's address (SNAT) for 10.180.0.2:80", "externalTrafficPolicy"],
        ),
        of(
            "no masquerade in the end",
            Delete(&["-A POSTROUTING", "KUBE-POSTROUTING"]),
            "192.168.0.2:3001",
            &["the rules keep the client's address"],
        ),
        of(
            "a foreign rule before",
            Before("-A PREROUTING", "-A PREROUTING -d 172.30.0.41/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.99.0.9:8080"),
            "172.30.0.41:80",
            &["only the rules have the endpoint 10.99.0.9:8080", "not kube-proxy's", "ip nat PREROUTING: `-d 172.30.0.41/32 -p tcp"],
        ),
        of(
            "a foreign rule that drops",
            Before("-A FORWARD", "-A FORWARD -d 10.180.0.0/16 -j DROP"),
            "172.30.0.42:80",
            &["the rules say DROP, the table says FORWARD", "ip filter FORWARD: `-d 10.180.0.0/16 -j DROP`"],
        ),
        of(
            "a missing node port",
            Delete(&["-A KUBE-NODEPORTS", "--dport 3001"]),
            "192.168.0.2:3001",
            &["the rules say PASS, the table says FORWARD", "do not have this node port"],
        ),
        of(
            "a port that is wrong",
            Replace("KUBE-SEP-TOIS", "10.180.1.1:80", "10.180.1.1:8080"),
            "172.30.0.41:80",
            &["the rules lead to 10.180.1.1:8080 instead of 10.180.1.1:80: the port differs"],
        ),
        of(
            "a rule of another node's view",
            Replace("KUBE-SVL-GNZBNJ2PO5MGZ6GT -m comment", "KUBE-SEP-RS4RBKLTHTF2IUXJ", "KUBE-SEP-J7UNSSMXXN3UTZD6"),
            "5.6.7.8:80",
            &["only the rules have the endpoint 10.180.1.2:80", "runs on node node-b.example", "that node's rules"],
        ),
        of(
            "no hairpin",
            Delete(&["-A KUBE-SEP-SXIVWICOYRO3J4NJ", "KUBE-MARK-MASQ"]),
            "172.30.0.41:80",
            &["although the endpoint 10.180.0.1:80 is the client itself"],
        ),
        of(
            "the node's own packets are not led to Services",
            Delete(&["-A OUTPUT", "service portals", "-j KUBE-SERVICES"]),
            "172.30.0.41:80",
            &["the rules say PASS, the table says FORWARD", "do not have this address and port"],
        ),
        of(
            "a rule that is not known",
            Before("-A FORWARD", "-A FORWARD -m set --match-set blocked src -j DROP"),
            "172.30.0.41:80",
            &["cannot be told", "--match-set blocked src"],
        ),
        of(
            "a circle",
            Before("-A KUBE-SVC-XPGD46QRK7WJZT7O", "-A KUBE-SVC-XPGD46QRK7WJZT7O -j KUBE-EXT-XPGD46QRK7WJZT7O"),
            "172.30.0.41:80",
            &["cannot be told", "circles"],
        ),
        Damage {
            step: AFFINITY,
            ..of(
                "an affinity lost",
                Delete(&["--rcheck"]),
                "172.30.0.41:80",
                &["the rules have no session affinity, the table has session affinity of 10800 s"],
            )
        },
        Damage {
            step: AFFINITY,
            ..of(
                "another affinity",
                Replace("--rcheck", "10800", "60"),
                "172.30.0.41:80",
                &["session affinity of 60 s, the table has session affinity of 10800 s"],
            )
        },
    ]
}

#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn nftables() -> Vec<Damage> {
    let of = |name, edit, at, words| Damage { name, step: THREE, mode: Mode::Nftables, edit, at, words };
    vec![
        of(
            "a stale endpoint",
            Replace("service-ULMVA6XW-ns1/svc1/tcp/p80\",\"expr\"", "10.180.1.1", "10.180.9.9"),
            "172.30.0.41:80",
            &["only the rules have the endpoint 10.180.9.9:80", "the rules lack the endpoint 10.180.1.1:80"],
        ),
        of(
            "an alternative is missing",
            Replace("service-ULMVA6XW-ns1/svc1/tcp/p80\",\"expr\"", "\"mod\":2", "\"mod\":3"),
            "172.30.0.41:80",
            &["with 33.3 % of the connections"],
        ),
        of(
            "a Service is missing",
            Replace(
                "\"name\":\"service-ips\"",
                "[{\"concat\":[\"1.2.3.4\",\"tcp\",80]},{\"goto\":{\"target\":\"external-ULMVA6XW-ns1/svc1/tcp/p80\"}}],",
                "",
            ),
            LB,
            &["the rules say PASS, the table says FORWARD", "older than the Service"],
        ),
        of("a missing masquerade", Delete(&["external-ULMVA6XW-ns1/svc1/tcp/p80", "mangle"]), LB, &["the rules keep the client's address"]),
        of(
            "a foreign chain before",
            Before(
                "\"chain\":\"nat-prerouting\"",
                "{\"table\":{\"family\":\"ip\",\"name\":\"edge\"}},{\"chain\":{\"family\":\"ip\",\"table\":\"edge\",\"name\":\"early\",\"type\":\"nat\",\"hook\":\"prerouting\",\"prio\":-110,\"policy\":\"accept\"}},{\"rule\":{\"family\":\"ip\",\"table\":\"edge\",\"chain\":\"early\",\"expr\":[{\"match\":{\"op\":\"==\",\"left\":{\"payload\":{\"protocol\":\"ip\",\"field\":\"daddr\"}},\"right\":\"172.30.0.41\"}},{\"dnat\":{\"addr\":\"10.99.0.9\",\"port\":8080}}]}},",
            ),
            "172.30.0.41:80",
            &["10.99.0.9:8080", "chain ip edge early: `ip daddr 172.30.0.41 dnat to 10.99.0.9:8080`"],
        ),
        of(
            "a rule of another node's view",
            Replace("local-42NFTM6N-ns2/svc2/tcp/p80\",\"expr\"", "10.180.0.2", "10.180.1.2"),
            "5.6.7.8:80",
            &["runs on node node-b.example"],
        ),
        Damage {
            step: EMPTY,
            ..of(
                "a missing reject",
                Replace("\"name\":\"no-endpoint-services\"", "\"1.2.3.4\"", "\"1.2.3.5\""),
                LB,
                &["the rules say PASS, the table says REJECT", "no rule does"],
            )
        },
        Damage {
            step: EMPTY,
            ..of(
                "refused, but no Service",
                Replace("\"name\":\"no-endpoint-services\"", "\"1.2.3.4\"", "\"1.2.3.5\""),
                "1.2.3.5:80",
                &["the rules say REJECT, the table says PASS", "No Service of the objects"],
            )
        },
        Damage {
            step: RANGES,
            ..of(
                "source ranges that are missing",
                Replace("\"chain\":\"firewall-check\"", "@firewall-ips", "@no-endpoint-services"),
                LB,
                &["the rules say FORWARD, the table says DROP", "loadBalancerSourceRanges"],
            )
        },
        Damage {
            step: RANGES,
            ..of(
                "source ranges that are too wide",
                Replace("firewall-ULMVA6XW", "\"len\":25", "\"len\":24"),
                LB,
                &["the rules say FORWARD, the table says DROP"],
            )
        },
    ]
}

fn all() -> Vec<Damage> {
    let mut all = iptables();
    all.extend(nftables());
    all
}

#[test]
fn each_damage_is_found_and_named() {
    let dumps = Dumps::load();
    let mut wrong = Vec::new();
    let damages = all();
    for Damage { name, step, mode, edit, at, words } in &damages {
        let texts = dumps.texts(step, *mode);
        let sound = read(&texts);
        let mirror = Mirror::of(&sound, (*step == RANGES).then_some("203.0.113.0/25"));
        let before = mirror.check(&sound);
        assert!(before.findings.is_empty() && before.packets > 10, "{name}: {:#?}", before.findings);
        // The first text: both families in nftables, IPv4 in iptables.
        let mut damaged = texts.clone();
        damaged[0] = edit.apply(&texts[0]);
        assert_ne!(damaged, texts, "{name}: nothing was damaged");
        let report = mirror.check(&read(&damaged));
        let said = |finding: &nomagic_kube_proxy_rules::parity::Finding| {
            let differences: Vec<String> = finding.differences.iter().map(|difference| difference.text()).collect();
            format!("{}; {}", differences.join("; "), finding.words)
        };
        let found = report.findings.iter().filter(|finding| finding.to.to_string() == *at).map(said);
        let found: Vec<String> = found.collect();
        if !words.iter().all(|word| found.iter().any(|text| text.contains(word))) {
            wrong.push(format!("{name} ({}): {words:?} not in {found:#?} of {} findings", mode.label(), report.findings.len()));
        }
    }
    println!("{} damages, {} not named", damages.len(), wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(damages.len() >= 20);
}

#[test]
fn a_service_that_only_the_rules_have() {
    let texts = Dumps::load().texts(THREE, Mode::Iptables);
    let rules = read(&texts);
    let mut mirror = Mirror::of(&rules, None);
    mirror.forget("172.30.0.41", 80, Proto::Tcp);
    let report = mirror.check(&rules);
    assert!(report.differing() > 0 && report.undecided() == 0);
    let finding = report.findings.iter().find(|f| f.judgement == Judgement::Differs).unwrap();
    assert!(finding.words.contains("No Service of the objects"), "{finding:?}");
    assert_eq!(finding.service.as_deref(), Some("ns1/svc1"));
    assert_eq!(finding.senders, ["pods", "outside", "the node"]);
}
