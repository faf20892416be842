//! Accepted and rejected configurations.

use nomagic_core::services::{ConnectionsPerClient, ConnectionsPerSecond};
use nomagic_table::settings::DefaultLimits;
use nomagic_xsk::{FrameSize, Headroom, RingSize, WorkerCount};

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("nomagic.yaml"))
}

#[test]
fn an_empty_file_gives_the_defaults() {
    for text in ["", "# nothing\n\n", "---\n", "{}"] {
        assert_eq!(parse(text).unwrap(), Config::default(), "{text:?}");
    }
    let c = Config::default();
    assert_eq!((c.snat.ports, c.grace_ms, c.workers.count.get()), (PortRange { first: 1_024, last: 65_535 }, 2_000, 1));
    let listen = [c.healthz_bind_address, c.metrics_bind_address].map(|a| a.unwrap().to_string());
    assert_eq!((listen, c.bind_address_hard_fail), (["0.0.0.0:10256".into(), "127.0.0.1:10249".into()], false));
    assert_eq!((c.node_port_addresses, c.on_failure), (NodePortAddresses::Primary, FailurePolicy::Auto));
}

#[test]
fn every_field() {
    let c = parse(
        "
node: {name: gw-1, ips: [192.168.0.2, 'fd00::2', 10.1.0.1], primaryIPs: [192.168.0.2], labels: {topology.kubernetes.io/zone: a}}
clusterCIDRs: [192.168.0.0/16]
serviceCIDRs: [10.96.0.0/12]
masqueradeAll: true
localhostNodePorts: false
nodePortAddresses: [192.168.0.0/24]
interfaces: [eth0, eth1]
redirectInterfaces: ['cali*', veth?]
macAddresses: ['00:00:5E:00:01:0a']
vlans: [100, 4094]
manifests: manifests
snat: {addresses: [192.168.0.3, 'fd00::3'], ports: 40000-49999, internalAddresses: [169.254.1.1]}
workers: {cpus: [2, 3], idle: spin}
packets: {ringSize: 512, frameSize: 4096, headroom: 128, hugePages: true}
deny: {prefixes: [192.0.2.0/24, '2001:db8::7'], file: deny.txt}
conntrack: {capacity: 65536, file: /run/x/conntrack, hugePages: true}
limits: {connectionsPerSecond: 1000000, maxConnectionsPerClient: 20}
hash: {seed: 18446744073709551615}
reject: tcpReset
unusedPorts: drop
answerPing: true
mss: 1400
fragment: false
onFailure: drop
detachOnExit: true
stateDir: /tmp/state
socketGroup: 1234
graceMs: 500
healthzBindAddress: '::'
metricsBindAddress: ''
bindAddressHardFail: true
",
    )
    .unwrap();
    assert_eq!((c.healthz_bind_address, c.metrics_bind_address), (Some("[::]:10256".parse().unwrap()), None));
    assert!(c.bind_address_hard_fail);
    assert_eq!(c.workers, WorkersConfig { count: WorkerCount::from_static(2), cpus: vec![2, 3], idle: WorkerIdle::Spin });
    assert_eq!((c.hash.seed, c.conntrack.capacity, c.grace_ms), (Some(u64::MAX), 65_536, 500));
    assert_eq!((c.conntrack.file.as_deref(), c.conntrack.huge_pages), (Some(Path::new("/run/x/conntrack")), true));
    assert_eq!(c.deny.prefixes.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.0/24", "2001:db8::7/128"]);
    assert_eq!(c.deny.file.as_deref(), Some(Path::new("deny.txt")));
    assert_eq!(c.redirect_interfaces, ["cali*", "veth?"].map(|p| Pattern::parse(p).unwrap()));
    assert_eq!(c.mac_addresses.iter().map(|mac| mac.octets()).collect::<Vec<_>>(), [[0, 0, 0x5e, 0, 1, 0xa]]);
    assert_eq!(c.vlans, [100, 4094].map(VlanId::from_static));
    let limits = DefaultLimits { per_second: ConnectionsPerSecond::new(1_000_000), per_client: ConnectionsPerClient::new(20) };
    assert_eq!(c.settings(&[]).limits, limits);
    assert_eq!(c.settings(&[]).tcp_reject, nomagic_core::services::TcpReject::Reset);
    assert_eq!((c.settings(&[]).unused_ports, c.settings(&[]).answer_ping), (UnusedPorts::Drop, true));
    assert_eq!((c.settings(&[]).mss, c.settings(&[]).fragment), (nomagic_core::mss::SegmentSize::AtMost(1_400), false));
    assert_eq!(c.settings(&[]).snat.internal(false), Some("169.254.1.1".parse().unwrap()));
    assert_eq!(
        c.packets,
        PacketsConfig {
            ring_size: RingSize::from_static(512),
            frame_size: FrameSize::from_static(4096),
            headroom: Headroom::from_static(128),
            huge_pages: true
        }
    );
    let s = c.settings(&["9.9.9.9".parse().unwrap()]);
    assert_eq!((s.node.name.as_str(), s.node.zone.as_deref(), s.node.ips.len()), ("gw-1", Some("a"), 3));
    assert_eq!(s.snat.v6, ["fd00::3".parse::<IpAddr>().unwrap()]);
    assert_eq!((s.snat.port_first, s.snat.port_last), (40_000, 49_999));
}

#[test]
fn no_limit_is_the_default_and_0() {
    let limits = |text: &str| parse(text).unwrap().settings(&[]).limits;
    for text in ["", "limits: {}", "limits: {connectionsPerSecond: 0, maxConnectionsPerClient: 0}"] {
        assert_eq!(limits(text), DefaultLimits::default(), "{text}");
    }
}

#[test]
fn short_forms() {
    assert_eq!(parse("workers: 4").unwrap().workers, WorkersConfig { count: WorkerCount::from_static(4), ..WorkersConfig::default() });
    assert_eq!(parse("nodePortAddresses: primary").unwrap().node_port_addresses, NodePortAddresses::Primary);
    assert_eq!(parse("nodePortAddresses: [primary]").unwrap().node_port_addresses, NodePortAddresses::Primary);
    assert_eq!(parse("nodePortAddresses: []").unwrap().node_port_addresses, NodePortAddresses::Cidrs(vec![]));
}

#[test]
fn addresses_have_sensible_defaults() {
    let discovered: Vec<IpAddr> = ["127.0.0.1", "fe80::1", "192.168.0.2", "fd00::2"].map(|a| a.parse().unwrap()).into();
    let s = Config::default().settings(&discovered);
    assert_eq!(s.node.primary, ["192.168.0.2".parse::<IpAddr>().unwrap(), "fd00::2".parse().unwrap()]);
    assert_eq!((s.snat.v4, s.snat.v6), (vec![s.node.primary[0]], vec![s.node.primary[1]]));
    let s = parse("node: {primaryIPs: [192.168.0.2]}").unwrap().settings(&[]);
    assert_eq!((s.node.ips.clone(), s.snat.v6), (s.node.primary.clone(), vec![]));
    assert!(!s.node.name.is_empty(), "the host name");
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn errors_name_the_position_the_field_and_the_allowed_values() {
    // Text, line:column, field, parts of the message.
    let table: &[(&str, &str, &str, &[&str])] = &[
        ("masqueradeAl: true", "1:1", "masqueradeAl", &["unknown field", "masqueradeAll"]),
        ("node:\n  nam: x\n", "2:3", "node.nam", &["unknown field", "name"]),
        ("\nconntrack:\n  capacity: 99999999999\n", "3:13", "conntrack.capacity", &["99999999999", "1024 to 67108864"]),
        ("conntrack: {timeouts: {udpStream: 5}}", "1:35", "conntrack.timeouts.udpStream", &["duration", "5m"]),
        ("conntrack: {timeouts: {tcpClosing: 5s}}", "1:24", "conntrack.timeouts.tcpClosing", &["unknown field", "tcpLastAck"]),
        ("conntrack: {timeouts: {tcpClosed: 10ms}}", "1:35", "conntrack.timeouts.tcpClosed", &["10ms", "1s to 720h"]),
        ("conntrack: {file: run/conntrack}", "1:19", "conntrack.file", &["run/conntrack", "absolute path"]),
        ("conntrack: {file: /run/}", "1:19", "conntrack.file", &["/run/", "/run/nomagic/conntrack"]),
        ("snat: {share: 0}", "1:15", "snat.share", &["1 to 100"]),
        ("conntrack: {capacity: many}", "1:23", "conntrack.capacity", &["many", "whole number"]),
        ("limits: {connectionsPerSecond: 1000001}", "1:32", "limits.connectionsPerSecond", &["1000001", "0 to 1000000"]),
        ("limits: {connectionsPerSecond: 10/s}", "1:32", "limits.connectionsPerSecond", &["10/s", "whole number"]),
        ("limits: {maxConnectionsPerClient: -1}", "1:35", "limits.maxConnectionsPerClient", &["-1", "0 to 1000000"]),
        ("limits: {perClient: 1}", "1:10", "limits.perClient", &["unknown field", "maxConnectionsPerClient"]),
        ("graceMs: 99999999999999999999999", "1:10", "graceMs", &["100 to 60000"]),
        ("graceMs: -5", "1:10", "graceMs", &["-5", "100 to 60000"]),
        ("hash: {seed: -1}", "1:14", "hash.seed", &["-1", "whole number"]),
        ("hash: {seed: 18446744073709551616}", "1:14", "hash.seed", &["whole number from 0 to 18446744073709551615"]),
        ("hash: {seedFile: [a]}", "1:18", "hash.seedFile", &["string"]),
        ("deny: {prefixes: [192.0.2.0/33]}", "1:19", "deny.prefixes[0]", &["192.0.2.0/33", "a CIDR such as"]),
        ("deny: [192.0.2.0/24]", "1:7", "deny", &["mapping"]),
        ("hash: {seed: 0, seedFile: a}", "1:27", "hash.seedFile", &["`hash.seed` is set as well"]),
        ("workers: 0", "1:10", "workers", &["0", "1 to 64"]),
        ("workers: lots", "1:10", "workers", &["1 to 64"]),
        ("workers: {count: 65}", "1:18", "workers.count", &["65", "1 to 64"]),
        ("workers: {count: -1}", "1:18", "workers.count", &["-1", "1 to 64"]),
        ("workers: {idle: doze}", "1:17", "workers.idle", &["doze", "spin or sleep"]),
        ("workers: {cpus: [1, 1]}", "", "workers.cpus", &["CPU 1 is listed twice"]),
        ("workers: {count: 2, cpus: [1]}", "", "workers", &["one per worker"]),
        ("workers: {threads: 2}", "1:11", "workers.threads", &["unknown field", "count"]),
        ("clusterCIDRs: [10.0.0.0/8, 10.0.0.0/40]", "1:28", "clusterCIDRs[1]", &["10.0.0.0/40", "CIDR"]),
        ("clusterCIDRs: 10.0.0.0/8", "1:15", "clusterCIDRs", &["list"]),
        ("node: {primaryIPs: [1.2.3.4, 1.2.3.5]}", "", "node.primaryIPs", &["at most one address per family"]),
        ("snat: {ports: '70000-80000'}", "1:15", "snat.ports", &["70000-80000", "1024 to 65535"]),
        ("snat: {ports: '62000-61000'}", "1:15", "snat.ports", &["62000-61000"]),
        ("reject: rst", "1:9", "reject", &["rst", "icmp or tcpReset"]),
        ("unusedPorts: reject", "1:14", "unusedPorts", &["reject", "refuse, drop or kernel"]),
        ("mss: 100", "1:6", "mss", &["100", "keep, clamp, or a number of bytes from 536 to 65495"]),
        ("mss: little", "1:6", "mss", &["little", "keep, clamp"]),
        ("fragment: sometimes", "1:11", "fragment", &["invalid boolean", "true or false"]),
        ("answerPing: always", "1:13", "answerPing", &["invalid boolean", "true or false"]),
        ("onFailure: explode", "1:12", "onFailure", &["explode", "pass, drop or auto"]),
        ("interfaces: [eth0, 'a/b']", "1:20", "interfaces[1]", &["a/b", "1 to 15 bytes"]),
        ("interfaces: [lo]", "1:14", "interfaces[0]", &["lo", "cannot be taken over"]),
        ("interfaces: [eth0, eth0]", "", "interfaces", &["eth0 is listed twice"]),
        ("nodePortAddresses: [primary, 10.0.0.0/8]", "", "nodePortAddresses", &["must stand alone"]),
        ("redirectInterfaces: ['cali*', 'a/b']", "1:31", "redirectInterfaces[1]", &["a/b", "cali*"]),
        ("macAddresses: ['00:00:5e:00:01:0a', '01:00:5e:00:00:12']", "1:37", "macAddresses[1]", &["01:00:5e:00:00:12", "not of a group"]),
        ("macAddresses: [5]", "1:16", "macAddresses[0]", &["00:00:5e:00:01:0a"]),
        ("macAddresses: ['02:00:00:00:00:01', '02:00:00:00:00:01']", "", "macAddresses", &["02:00:00:00:00:01 is listed twice"]),
        ("vlans: [100, 4095]", "1:14", "vlans[1]", &["4095", "1 to 4094"]),
        ("vlans: [0]", "1:9", "vlans[0]", &["1 to 4094"]),
        ("vlans: 100", "1:8", "vlans", &["list of VLANs"]),
        ("packets: {ringSize: 1000}", "1:21", "packets.ringSize", &["1000", "power of two"]),
        ("packets: {ringSize: 32}", "1:21", "packets.ringSize", &["32", "64 to 16384"]),
        ("packets: {frameSize: 3000}", "1:22", "packets.frameSize", &["3000", "2048 or 4096"]),
        ("packets: {headroom: 100}", "1:21", "packets.headroom", &["100", "multiple of 64"]),
        ("snat: {internalAddresses: [1.2.3.4, 1.2.3.5]}", "", "snat.internalAddresses", &["at most one address per family"]),
        ("interfaces:\n- eth0\n- ''\n", "3:3", "interfaces[1]", &["1 to 15 bytes"]),
        ("healthzBindAddress: localhost", "1:21", "healthzBindAddress", &["localhost", "0.0.0.0:10256"]),
        ("metricsBindAddress: 10249", "1:21", "metricsBindAddress", &["10249", "IP address"]),
        ("masqueradeAll: perhaps", "1:16", "masqueradeAll", &["bool"]),
        ("node: [", "", "", &[]),
        ("a: b: c", "", "", &[]),
        ("graceMs: 500\ngraceMs: 600", "2:1", "", &["graceMs"]),
    ];
    let mut wrong = Vec::new();
    for (text, at, field, words) in table {
        let error = parse(text).expect_err(text);
        let shown = error.to_string();
        let place = format!("{}:{}", error.at.0, error.at.1);
        let right = error.at.0 > 0
            && (at.is_empty() || place == **at)
            && (field.is_empty() || error.field == *field)
            && words.iter().all(|w| error.message.contains(w))
            && !error.message.contains(" line ")
            && !error.message.contains('\n');
        if !right {
            wrong.push(format!("{text:?} should be at {at} {field} {words:?}, but: {shown}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    assert!(Config::load(&path).unwrap_err().to_string().contains("cannot be read"));
    std::fs::write(&path, "manifests: m").unwrap();
    assert_eq!(Config::load(&path).unwrap().manifests, Some(dir.path().join("m")));
    std::fs::write(&path, "hash: {seedFile: s}").unwrap();
    assert_eq!(Config::load(&path).unwrap().hash, HashConfig { seed: None, seed_file: Some(dir.path().join("s")) });
    std::fs::write(&path, "#".repeat(FILE_MAX as usize + 1)).unwrap();
    assert!(Config::load(&path).unwrap_err().to_string().contains("are allowed"));
    std::fs::write(&path, [0xff, 0xfe, 0x41]).unwrap();
    Config::load(&path).unwrap_err();
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn the_example_names_every_field_with_its_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/example/nomagic.yaml");
    let c = Config::load(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let fields = [
        "node",
        "name",
        "ips",
        "primaryIPs",
        "labels",
        "clusterCIDRs",
        "serviceCIDRs",
        "masqueradeAll",
        "localhostNodePorts",
        "nodePortAddresses",
        "keepLocal",
        "allowedExternalIPs",
        "interfaces",
        "redirectInterfaces",
        "manifests",
        "deny",
        "prefixes",
        "snat",
        "addresses",
        "ports",
        "share",
        "internalAddresses",
        "workers",
        "count",
        "cpus",
        "idle",
        "packets",
        "ringSize",
        "frameSize",
        "headroom",
        "hugePages",
        "conntrack",
        "capacity",
        "file",
        "timeouts",
        "tcpSynSent",
        "tcpSynReceived",
        "tcpEstablished",
        "tcpFinWait",
        "tcpCloseWait",
        "tcpLastAck",
        "tcpTimeWait",
        "tcpClosed",
        "tcpPickedUp",
        "udp",
        "udpStream",
        "sctpCookie",
        "sctpEstablished",
        "sctpShutdown",
        "sctpClosed",
        "sctpPickedUp",
        "hash",
        "seed",
        "seedFile",
        "reject",
        "unusedPorts",
        "answerPing",
        "mss",
        "fragment",
        "onFailure",
        "graceMs",
        "detachOnExit",
        "stateDir",
        "socketGroup",
    ];
    for field in fields {
        let shown = text.lines().any(|l| l.trim_start_matches([' ', '#']).starts_with(&format!("{field}:")));
        assert!(shown, "{field} is not in the example");
    }
    let d = Config::default();
    assert_eq!((c.conntrack.file.as_deref(), d.conntrack.file.as_deref()), (Some(Path::new("/run/nomagic/conntrack")), None));
    let same = |c: &Config| {
        (
            c.masquerade_all,
            c.localhost_node_ports,
            c.snat.ports,
            c.snat.internal_addresses.clone(),
            c.packets,
            ConntrackConfig { file: None, ..c.conntrack.clone() },
            c.hash.clone(),
            (c.reject, c.unused_ports, c.answer_ping, c.mss, c.fragment, c.on_failure),
            c.grace_ms,
            c.detach_on_exit,
            c.state_dir.clone(),
            c.socket_group.clone(),
        )
    };
    assert_eq!(same(&c), same(&d), "defaults in the example match the code");
}

#[test]
fn an_explicit_seed_of_zero_is_not_the_default() {
    assert_eq!((parse("hash: {seed: 0}").unwrap().hash.seed, parse("hash: {}").unwrap().hash.seed), (Some(0), None));
    let shown = format!("{:?}", parse("hash: {seed: 987654}").unwrap());
    assert!(!shown.contains("987654") && shown.contains("\"set\""), "{shown}");
}

#[test]
fn mangled_configurations_never_panic() {
    let example = include_str!("../../../../deploy/example/nomagic.yaml");
    let scraps =
        ["null", "-1", "1e99", "[", "]", "{}", "''", "\u{0}", "&a", "*a", "\t", ": ", "- ", "\"", "99999999999999999999999999", "é"];
    let (mut random, mut read) = (11, 0);
    let mut next = |n: usize| (nomagic_core::tuple::splitmix64(&mut random) % n as u64) as usize;
    for _ in 0..1_500 {
        let mut text: Vec<char> = example.chars().collect();
        let (at, gone, scrap) = (next(text.len()), next(6), scraps[next(scraps.len())]);
        let end = (at + gone).min(text.len());
        text.splice(at..end, scrap.chars());
        match parse(&text.into_iter().collect::<String>()) {
            Ok(config) => {
                read += 1;
                config.settings(&[]);
            }
            Err(error) => assert!(error.to_string().starts_with("nomagic.yaml:") && !error.message.is_empty(), "{error}"),
        }
    }
    assert!((150..1_500).contains(&read), "{read} of 1500 readable");
}
