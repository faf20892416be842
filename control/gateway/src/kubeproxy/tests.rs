//! Translation of kube-proxy's files, warnings and errors, and hostile input.

use fields::{FIELDS, FieldSpec, FieldType, ProxyMode, Support};
use nomagic_table::index::Index;
use nomagic_table::objects::{Kind, read};
use nomagic_table::problem::Origin;
use proptest::prelude::*;

use super::*;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
const EXAMPLE: &str = include_str!("../../../../deploy/example/kube-proxy.yaml");

fn parse(rest: &str) -> Result<DropIn, ConfigError> {
    DropIn::parse(&format!("{HEAD}{rest}"), Path::new("kp.yaml"))
}

fn good(rest: &str) -> DropIn {
    parse(rest).unwrap_or_else(|e| panic!("{rest}: {e}"))
}

fn applied(rest: &str, discovered: &[&str]) -> Config {
    let mut config = Config::default();
    good(rest).apply(&mut config, &discovered.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>());
    config
}

fn ranges(cidrs: &[Prefix]) -> Vec<String> {
    cidrs.iter().map(ToString::to_string).collect()
}

#[test]
fn the_kubeadm_default_gives_no_warning() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/example/kube-proxy.yaml");
    let d = DropIn::load(&path).unwrap();
    assert_eq!(d.warnings, [], "every field that is set is supported");
    assert_eq!(d.kubeconfig.as_deref(), Some(Path::new("/var/lib/kube-proxy/kubeconfig.conf")));
    assert_eq!(ranges(&d.cluster_cidrs), ["192.168.0.0/16", "fd00:192:168::/48"]);
    assert_eq!(d.node_port_addresses, NodePortAddresses::Cidrs(vec![]), "iptables mode: all addresses");
    let listen = (d.healthz_bind_address.to_string(), d.metrics_bind_address.to_string());
    assert_eq!(listen, ("0.0.0.0:10256".into(), "127.0.0.1:10249".into()));
    assert_eq!((d.node_name, d.primary, d.idle, d.sync_period_ms), (None, None, IdleTimeouts::default(), 30_000));
}

#[test]
fn every_supported_field() {
    let d = good(
        "
clientConnection: {kubeconfig: kube.conf}
hostnameOverride: ' GW-1 '
bindAddress: 010.0.0.1
bindAddressHardFail: true
healthzBindAddress: 10.0.0.1:1234
metricsBindAddress: 'fd00::1'
clusterCIDR: 10.244.0.0/16
detectLocalMode: ClusterCIDR
nodePortAddresses: [10.0.0.0/8, 'fd00::/64']
mode: nftables
nftables: {masqueradeAll: true, syncPeriod: 1m}
conntrack: {tcpEstablishedTimeout: 2h, tcpCloseWaitTimeout: 30m0s, udpTimeout: 10s, udpStreamTimeout: 1m30s}
",
    );
    assert_eq!(d.warnings, []);
    assert_eq!((d.kubeconfig, d.node_name.as_deref()), (Some("kube.conf".into()), Some("gw-1")));
    assert_eq!((d.primary, d.bind_address_hard_fail), (Some("10.0.0.1".parse().unwrap()), true));
    assert_eq!(d.healthz_bind_address, "10.0.0.1:1234".parse().unwrap());
    assert_eq!(d.metrics_bind_address, "[fd00::1]:10249".parse().unwrap());
    assert_eq!(ranges(&d.cluster_cidrs), ["10.244.0.0/16"]);
    let NodePortAddresses::Cidrs(cidrs) = &d.node_port_addresses else { panic!("{:?}", d.node_port_addresses) };
    assert_eq!(ranges(cidrs), ["10.0.0.0/8", "fd00::/64"]);
    assert_eq!((d.masquerade_all, d.localhost_node_ports, d.sync_period_ms), (true, false, 60_000));
    let idle = IdleTimeouts {
        tcp_established_ms: Some(7_200_000),
        tcp_close_wait_ms: Some(1_800_000),
        udp_ms: Some(10_000),
        udp_stream_ms: Some(90_000),
    };
    assert_eq!(d.idle, idle);
}

#[test]
fn the_mode_selects_the_section() {
    let sections = "
iptables: {masqueradeAll: true, syncPeriod: 1s, localhostNodePorts: true}
ipvs: {syncPeriod: 2s}
nftables: {syncPeriod: 3s}
";
    let of = |mode: &str| good(&format!("mode: {mode}\n{sections}"));
    let taken = |d: &DropIn| (d.masquerade_all, d.sync_period_ms, d.localhost_node_ports);
    assert_eq!(taken(&of("iptables")), (true, 1_000, true));
    assert_eq!(taken(&of("''")), (true, 1_000, true));
    assert_eq!(taken(&of("ipvs")), (true, 2_000, false));
    assert_eq!(taken(&of("nftables")), (false, 3_000, false));
    let fields = |d: DropIn| d.warnings.into_iter().map(|w| w.field).collect::<Vec<_>>();
    assert_eq!(fields(of("''")), ["ipvs.syncPeriod", "nftables.syncPeriod"]);
    assert_eq!(fields(of("ipvs")), ["mode", "iptables.syncPeriod", "iptables.localhostNodePorts", "nftables.syncPeriod"]);
    let foreign = ["iptables.masqueradeAll", "iptables.syncPeriod", "iptables.localhostNodePorts", "ipvs.syncPeriod"];
    assert_eq!(fields(of("nftables")), foreign);
    assert_eq!(good("mode: nftables").node_port_addresses, NodePortAddresses::Primary);
    assert_eq!(good("mode: nftables\nnodePortAddresses: []").node_port_addresses, NodePortAddresses::Primary);
    assert_eq!(good("mode: ipvs").node_port_addresses, NodePortAddresses::Cidrs(vec![]));
    assert_eq!(good("nodePortAddresses: [primary]").node_port_addresses, NodePortAddresses::Primary);
}

#[test]
fn the_servers_follow_the_family_of_the_bind_address() {
    let listen = |rest: &str| {
        let d = good(rest);
        [d.healthz_bind_address.to_string(), d.metrics_bind_address.to_string()]
    };
    assert_eq!(listen("bindAddress: '::'"), ["[::]:10256", "[::1]:10249"]);
    assert_eq!(listen("bindAddress: 'fd00::1'\nhealthzBindAddress: 0.0.0.0"), ["0.0.0.0:10256", "[::1]:10249"]);
    assert_eq!(listen("metricsBindAddress: '[::]:80'"), ["0.0.0.0:10256", "[::]:80"]);
}

#[test]
fn apply_to_the_configuration() {
    let c = applied("", &["10.0.0.1"]);
    let plain = Config {
        node_port_addresses: NodePortAddresses::Cidrs(vec![]),
        kubernetes: Some(Kubernetes::InCluster),
        detect_local: DetectLocal::ClusterCidrs,
        local_traffic: LocalTrafficConfig { services: true, own_addresses: true },
        ..Config::default()
    };
    assert_eq!(c, plain, "an empty file sets only kube-proxy's own defaults and the in-cluster API server");
    let c = applied(
        "clientConnection: {kubeconfig: a.conf}\nhealthzBindAddress: 10.0.0.1\nbindAddressHardFail: true\nconntrack: {tcpCloseWaitTimeout: 8s}
iptables: {syncPeriod: 5s}",
        &[],
    );
    assert_eq!(c.kubernetes, Some(Kubernetes::Kubeconfig { path: "a.conf".into(), context: None }));
    assert_eq!((c.healthz_bind_address, c.bind_address_hard_fail), ("10.0.0.1:10256".parse().ok(), true));
    assert_eq!((c.conntrack.timeouts.tcp_close_wait, c.sync_period_ms), (8_000, 5_000));
    let c = applied(
        "hostnameOverride: gw\nbindAddress: 10.0.0.9\nclusterCIDR: 10.1.0.0/16\nconntrack: {udpTimeout: 5s, udpStreamTimeout: 6s, tcpEstablishedTimeout: 7s}
iptables: {masqueradeAll: true, localhostNodePorts: false}",
        &["10.0.0.1", "fe80::1", "fd00::1", "fd00::2"],
    );
    assert_eq!(c.node.name.as_deref(), Some("gw"));
    assert_eq!(
        c.node.primary_ips,
        ["10.0.0.9", "fd00::1"].map(|a| a.parse::<IpAddr>().unwrap()),
        "the other family uses the discovered address"
    );
    assert_eq!((ranges(&c.cluster_cidrs), c.masquerade_all, c.localhost_node_ports), (vec!["10.1.0.0/16".into()], true, false));
    let t = c.conntrack.timeouts;
    assert_eq!((t.udp, t.udp_stream, t.tcp_established), (5_000, 6_000, 7_000));
    assert_eq!(t.tcp_syn_sent, Config::default().conntrack.timeouts.tcp_syn_sent);
    let c = applied("bindAddress: 'fd00::9'", &["10.0.0.1", "fd00::1"]);
    assert_eq!(c.settings(&[]).node.primary, ["10.0.0.1", "fd00::9"].map(|a| a.parse::<IpAddr>().unwrap()));
}

#[test]
fn the_bind_address_takes_precedence_over_the_node_object() {
    let node = serde_json::json!({
        "metadata": {"name": "gw"},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.5"}, {"type": "InternalIP", "address": "fd00::5"}]},
    });
    let index = Index::of([read(Kind::Node, node, &Origin::default()).unwrap()]);
    let ips = |list: &[&str]| list.iter().map(|a| a.parse::<IpAddr>().unwrap()).collect::<Vec<_>>();
    for (bind, expected) in
        [("10.0.0.9", ["10.0.0.9", "fd00::5"]), ("'fd00::9'", ["10.0.0.5", "fd00::9"]), ("0.0.0.0", ["10.0.0.5", "fd00::5"])]
    {
        let c = applied(&format!("hostnameOverride: gw\nbindAddress: {bind}"), &["10.0.0.1", "fd00::1"]);
        let settings = c.settings_for(&[], &index);
        assert_eq!((settings.node.primary, settings.snat.v4, settings.snat.v6), (ips(&expected), ips(&expected[..1]), ips(&expected[1..])));
    }
}

#[test]
fn detection_of_local_pods() {
    let node = |cidrs: &[&str]| {
        let node = serde_json::json!({"metadata": {"name": "gw"}, "spec": {"podCIDRs": cidrs}});
        Index::of([read(Kind::Node, node, &Origin::default()).unwrap()])
    };
    let settings = |text: &str, index: &Index| applied(&format!("hostnameOverride: gw\n{text}"), &[]).settings_for(&[], index);
    let pods = |s: &nomagic_table::settings::Settings| (ranges(&s.cluster_cidrs), s.knows_pods(false), s.knows_pods(true));
    let some = node(&["10.1.2.0/24"]);
    // As in kube-proxy: without pod ranges no client counts as a pod.
    assert_eq!(pods(&settings("", &some)), (vec![], false, false));
    let by_node = "detectLocalMode: NodeCIDR\nclusterCIDR: 10.0.0.0/8";
    assert_eq!(pods(&settings(by_node, &some)), (vec!["10.1.2.0/24".into()], true, false));
    assert_eq!(
        pods(&settings(by_node, &node(&["10.1.3.0/24", "fd00:1::/64"]))),
        (vec!["10.1.3.0/24".into(), "fd00:1::/64".into()], true, true)
    );
    assert_eq!(pods(&settings(by_node, &node(&[]))), (vec![], false, false));
    assert_eq!(good(by_node).warnings[0].field, "clusterCIDR");
    for (text, named, other) in [
        ("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}", "cni0", "cni01"),
        ("detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}", "cali17", "xcali"),
    ] {
        let c = applied(text, &[]);
        let DetectLocal::Interfaces(patterns) = &c.detect_local else { panic!("{:?}", c.detect_local) };
        assert!(patterns[0].matches(named) && !patterns[0].matches(other) && c.redirect_interfaces == *patterns);
        assert_eq!(pods(&settings(text, &some)), (vec![], true, true), "pods are recognised by their routes, even if there are none yet");
        assert_eq!(good(text).warnings, []);
    }
}

/// A value of the field's type that counts as set.
fn set_value(field: &FieldSpec) -> &'static str {
    match field.1 {
        FieldType::Flag => "true",
        FieldType::Whole => "-5",
        FieldType::Number => "0.5",
        FieldType::Text => "words",
        FieldType::Duration => "1h30m",
        FieldType::Interval => "5000000",
        FieldType::Texts => "[10.0.0.0/8]",
        FieldType::Gates => "{Some: false}",
        FieldType::Anything => "{json: {infoBufferSize: '5'}}",
    }
}

fn one_field(path: &str, value: &str) -> String {
    match path.split_once('.') {
        Some((section, name)) => format!("{section}:\n  {name}: {value}\n"),
        None => format!("{path}: {value}\n"),
    }
}

#[test]
fn every_unsupported_field_has_its_warning() {
    let mut golden = String::new();
    for field in FIELDS {
        let Support::Unsupported(reason) = field.2 else { continue };
        let d = good(&one_field(field.0, set_value(field)));
        assert_eq!(d.warnings.len(), 1, "{}: {:?}", field.0, d.warnings);
        assert_eq!((d.warnings[0].field.as_str(), d.warnings[0].message.as_str()), (field.0, reason));
        assert_eq!(d.warnings[0].at.0, if field.0.contains('.') { 4 } else { 3 }, "{}", field.0);
        golden += &format!("{}\n", d.warnings[0]);
        for nothing in ["null", "", "~"] {
            assert_eq!(good(&one_field(field.0, nothing)).warnings, [], "{}: {nothing}", field.0);
        }
    }
    assert_eq!(golden, include_str!("warnings.txt"), "actual:\n{golden}");
}

#[test]
fn the_table_has_every_field_once() {
    let names: std::collections::BTreeSet<_> = FIELDS.iter().map(|f| f.0).collect();
    assert_eq!(names.len(), FIELDS.len());
    for field in FIELDS {
        let shown = EXAMPLE.lines().any(|l| l.trim_start().starts_with(&format!("{}:", field.0.rsplit('.').next().unwrap())));
        let left_out = ["featureGates", "logging.format", "logging.vmodule", "windowsRunAsService"];
        assert!(shown || left_out.contains(&field.0), "{} is in kubeadm's file", field.0);
    }
    let in_iptables_mode = |f: &&FieldSpec| matches!(&f.2, Support::InModes(modes) if modes.contains(&ProxyMode::Iptables));
    assert_eq!(FIELDS.iter().filter(in_iptables_mode).count(), 3);
}

#[test]
fn unknown_fields_are_reported() {
    let d = good("ipvs: {schedular: rr}\nclusterCidr: 10.0.0.0/8\n\"a\\nb\": 1\n");
    let seen: Vec<_> = d.warnings.iter().map(ToString::to_string).collect();
    let why = "unknown field, ignored: misspelt, or from another version of kube-proxy";
    let expected = [
        format!("kp.yaml:3:19: ipvs.schedular: {why}"),
        format!("kp.yaml:4:14: clusterCidr: {why}"),
        format!("kp.yaml:5:9: \"a\\nb\": {why}"),
    ];
    assert_eq!(seen, expected);
    let flood: String = (0..500).map(|i| format!("unknown{i}: 1\n")).collect();
    let warnings = good(&flood).warnings;
    assert_eq!(warnings.len(), 101);
    assert!(warnings[100].message.starts_with("400 more fields"), "{}", warnings[100]);
    let long = good(&format!("{}: 1", "x".repeat(900))).warnings;
    assert!(long[0].to_string().len() < 300, "{}", long[0]);
}

#[test]
fn errors_name_the_position_the_field_and_the_allowed_values() {
    // Text after apiVersion and kind, line:column, field, parts of the message.
    let table: &[(&str, &str, &str, &[&str])] = &[
        ("iptables: {masqueradeBit: '14'}", "3:27", "iptables.masqueradeBit", &["whole number", "the text 14"]),
        ("conntrack:\n  maxPerCore: 3000000000", "4:15", "conntrack.maxPerCore", &["32 bits", "3000000000"]),
        ("bindAddressHardFail: 'true'", "3:22", "bindAddressHardFail", &["true or false"]),
        ("hostnameOverride: 123", "3:19", "hostnameOverride", &["text", "123"]),
        ("hostnameOverride: 'a b'", "3:19", "hostnameOverride", &["a b", "253"]),
        ("hostnameOverride: ' '", "3:19", "hostnameOverride", &["without blanks"]),
        ("configSyncPeriod: 15", "3:19", "configSyncPeriod", &["duration", "15"]),
        ("ipvs: {tcpTimeout: -1s}", "3:20", "ipvs.tcpTimeout", &["duration", "-1s"]),
        ("conntrack: {udpTimeout: 500ms}", "3:25", "conntrack.udpTimeout", &["500ms", "1s to 720h"]),
        ("conntrack: {tcpEstablishedTimeout: 1000h}", "3:36", "conntrack.tcpEstablishedTimeout", &["1000h", "720h"]),
        ("featureGates: {A: yes please}", "3:15", "featureGates", &["mapping of names"]),
        ("nodePortAddresses: 10.0.0.0/8", "3:20", "nodePortAddresses", &["list"]),
        ("nodePortAddresses: [10.0.0.0/8, here]", "3:33", "nodePortAddresses[1]", &["here", "primary"]),
        ("nodePortAddresses: [10.0.0.0/8, primary]", "3:33", "nodePortAddresses[1]", &["alone"]),
        ("clusterCIDR: 10.0.0.0", "3:14", "clusterCIDR", &["10.0.0.0", "CIDR"]),
        ("clusterCIDR: 10.0.0.0/8,", "3:14", "clusterCIDR", &["CIDR"]),
        ("clusterCIDR: 10.0.0.0/8,11.0.0.0/8", "3:14", "clusterCIDR", &["11.0.0.0/8", "one per family"]),
        ("bindAddress: eth0", "3:14", "bindAddress", &["eth0", "IP address"]),
        ("healthzBindAddress: ':10256'", "3:21", "healthzBindAddress", &["0.0.0.0:10256"]),
        ("healthzBindAddress: 'fd00::1:99999'", "3:21", "healthzBindAddress", &["[::]:10256"]),
        ("metricsBindAddress: '0.0.0.0:0'", "3:21", "metricsBindAddress", &["0.0.0.0:0"]),
        ("metricsBindAddress: '[10.0.0.1]:80'", "3:21", "metricsBindAddress", &["10.0.0.1"]),
        ("mode: kernelspace", "3:7", "mode", &["kernelspace", "nftables"]),
        ("mode: [iptables]", "3:7", "mode", &["text"]),
        ("detectLocalMode: BridgeInterface", "3:18", "detectLocalMode", &["needs detectLocal.bridgeInterface"]),
        ("detectLocalMode: InterfaceNamePrefix", "3:18", "detectLocalMode", &["needs detectLocal.interfaceNamePrefix"]),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: sixteen-bytes-xx}",
            "4:32",
            "detectLocal.bridgeInterface",
            &["sixteen-bytes-xx", "15 bytes"],
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: 'ca*'}",
            "4:36",
            "detectLocal.interfaceNamePrefix",
            &["ca*", "beginning"],
        ),
        ("detectLocalMode: Guess", "3:18", "detectLocalMode", &["Guess", "InterfaceNamePrefix"]),
        ("ipvs: rr", "3:7", "ipvs", &["mapping"]),
        ("iptables: [", "", "", &[]),
        ("mode: ipvs\nmode: iptables", "4:1", "", &["mode"]),
    ];
    for (text, at, field, words) in table {
        let error = parse(text).expect_err(text);
        let place = format!("{}:{}", error.at.0, error.at.1);
        assert!(error.at.0 > 0 && (at.is_empty() || place == **at), "{text:?} should be at {at}: {error}");
        assert!(field.is_empty() || error.field == *field, "{text:?}: {error}");
        assert!(words.iter().all(|w| error.message.contains(w)), "{text:?} {words:?}: {error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn files_of_another_kind_are_rejected() {
    let refused = |text: &str, words: &[&str]| {
        let error = DropIn::parse(text, Path::new("kp.yaml")).expect_err(text).to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{text:?}: {error}");
    };
    refused("", &["apiVersion", "missing", "kubeproxy.config.k8s.io/v1alpha1"]);
    refused("{}", &["apiVersion", "missing"]);
    refused("- a", &["mapping", "KubeProxyConfiguration"]);
    refused("just words", &["mapping"]);
    refused("apiVersion: kubeproxy.config.k8s.io/v1alpha1", &["kind", "missing", "KubeProxyConfiguration"]);
    refused("apiVersion: kubeproxy.config.k8s.io/v1beta1\nkind: KubeProxyConfiguration", &["v1beta1", "v1alpha1", "kp.yaml:1:13"]);
    refused("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeletConfiguration", &["kp.yaml:2:7", "KubeletConfiguration"]);
    refused("apiVersion: 1\nkind: KubeProxyConfiguration", &["apiVersion"]);
    refused("node: {name: gw}\ninterfaces: [eth0]", &["apiVersion", "missing"]);
    refused(&format!("{HEAD}---\n{HEAD}"), &["document"]);
    refused(&format!("{HEAD}---\nmode: ipvs\n"), &["document"]);
}

#[test]
fn json_is_accepted() {
    let text = "{\n\t\"apiVersion\": \"kubeproxy.config.k8s.io/v1alpha1\",\n\t\"kind\": \"KubeProxyConfiguration\",\n\t\"clusterCIDR\": \"10.0.0.0/8\",\n\t\"ipvs\": {\"strictARP\": true}\n}\n";
    let d = DropIn::parse(text, Path::new("kp.json")).unwrap();
    assert_eq!(
        (ranges(&d.cluster_cidrs), d.warnings[0].field.as_str(), d.warnings[0].at.0),
        (vec!["10.0.0.0/8".into()], "ipvs.strictARP", 5)
    );
}

#[test]
fn huge_and_hostile_files_end_in_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kp.yaml");
    std::fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
    assert!(DropIn::load(&path).unwrap_err().to_string().contains("are allowed"));
    DropIn::load(dir.path()).unwrap_err();
    assert!(DropIn::load(&dir.path().join("none")).unwrap_err().to_string().contains("cannot be read"));
    let many = (0..1_025).map(|_| "10.0.0.0/8").collect::<Vec<_>>().join(", ");
    assert!(parse(&format!("nodePortAddresses: [{many}]")).unwrap_err().message.contains("1025 entries"));
    parse(&format!("logging: {{options: {}1{}}}", "[".repeat(100_000), "]".repeat(100_000))).unwrap_err();
    parse(&"a: &a [x, x]\n".repeat(2)).unwrap_err();
    let bomb = "l0: &l0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned()
        + &(1..9).map(|i| format!("l{i}: &l{i} [{}]\n", vec![format!("*l{}", i - 1); 10].join(","))).collect::<String>();
    parse(&bomb).unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn garbage_never_panics(text in "\\PC{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = DropIn::parse(&text, Path::new("kp.yaml"));
        let _ = DropIn::parse(&String::from_utf8_lossy(&bytes), Path::new("kp.yaml"));
        let _ = parse(&text);
    }

    #[test]
    fn mangled_files_give_a_result_or_a_one_line_error(at in any::<prop::sample::Index>(), gone in 0usize..12, scrap in prop::sample::select(vec![
        "null", "-1", "1e99", "[", "]", "{}", "''", "\u{0}", "&a", "*a", "\t", ": ", "- ", "\"", "99999999999999999999999999", "é", "\n", "---\n", "1s", "true",
    ])) {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        let at = at.index(text.len());
        let end = (at + gone).min(text.len());
        text.splice(at..end, scrap.chars());
        match DropIn::parse(&text.into_iter().collect::<String>(), Path::new("kp.yaml")) {
            Ok(d) => {
                d.apply(&mut Config::default(), &[]);
                prop_assert!(d.warnings.iter().all(|w| w.at.0 > 0 && !w.to_string().contains('\n')));
            }
            Err(e) => prop_assert!(e.to_string().starts_with("kp.yaml:") && !e.message.is_empty() && !e.to_string().contains('\n'), "{e}"),
        }
    }

    #[test]
    fn any_value_in_any_field(field in prop::sample::select(FIELDS.iter().map(|f| f.0).collect::<Vec<_>>()), value in prop::sample::select(vec![
        "true", "-7", "3.5", "1e300", ".nan", "text", "10.0.0.0/8", "'::1'", "10s", "[]", "[[1]]", "{a: {b: 1}}", "~", "0x10", "18446744073709551616", "!!binary aGk=", "|\n  x",
    ])) {
        match parse(&one_field(field, value)) {
            Ok(d) => d.apply(&mut Config::default(), &[]),
            Err(e) => prop_assert!(e.at.0 > 0, "{e}"),
        }
    }
}
