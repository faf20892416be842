//! Every field of KubeProxyConfiguration (staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go): its type, and whether nomagic supports
//! it.

use crate::config::timeouts::duration_ms;
use crate::config::tree::Tree;
use FieldType::{Anything, Duration, Flag, Gates, Interval, Number, Text, Texts, Whole};
use ProxyMode::{Iptables, Ipvs, Nftables};
use Support::{InModes, Supported, Unsupported, WithDetectMode};

/// kube-proxy's `mode`. It selects the section that applies, and some defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ProxyMode {
    Iptables,
    Ipvs,
    Nftables,
}

/// The values that a field accepts, in addition to `null`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FieldType {
    Flag,
    /// `int32`
    Whole,
    Number,
    Text,
    /// `metav1.Duration`; not negative.
    Duration,
    /// `logsapi.TimeOrMetaDuration`: a duration, or a number of nanoseconds.
    Interval,
    Texts,
    /// `map[string]bool`
    Gates,
    Anything,
}

/// Whether nomagic supports a field.
pub(super) enum Support {
    Supported,
    /// Supported in these modes.
    InModes(&'static [ProxyMode]),
    /// Not supported, for this reason.
    Unsupported(&'static str),
    /// Supported with this detectLocalMode.
    WithDetectMode(&'static str),
}

/// Path, type and support of a field.
pub(super) struct FieldSpec(pub(super) &'static str, pub(super) FieldType, pub(super) Support);

const LOGGING: &str = "the environment variable NOMAGIC_LOG sets what is logged";
const MARK: &str = "nomagic sets no packet marks in the kernel: it rewrites source addresses itself";
const AT_ONCE: &str = "nomagic applies every change at once";
const IPVS_IDLE: &str = "nomagic has no IPVS sessions; conntrack.* sets how long idle connections are remembered";
const WINDOWS: &str = "for Windows only";
const CAPACITY: &str = "nomagic tracks connections in its own table of fixed capacity, not in the kernel's";
const REQUESTS: &str = "nomagic only keeps a few watches open";

/// All fields, in the order of the Go type.
pub(super) const FIELDS: &[FieldSpec] = &[
    FieldSpec("apiVersion", Text, Supported),
    FieldSpec("kind", Text, Supported),
    FieldSpec(
        "featureGates",
        Gates,
        Unsupported("nomagic has no feature gates: features that are generally available in Kubernetes 1.36 are always on"),
    ),
    FieldSpec("clientConnection.kubeconfig", Text, Supported),
    FieldSpec("clientConnection.acceptContentTypes", Text, Unsupported("nomagic asks the API server for JSON")),
    FieldSpec("clientConnection.contentType", Text, Unsupported("nomagic asks the API server for JSON")),
    FieldSpec("clientConnection.qps", Number, Unsupported(REQUESTS)),
    FieldSpec("clientConnection.burst", Whole, Unsupported(REQUESTS)),
    FieldSpec("logging.format", Text, Unsupported(LOGGING)),
    FieldSpec("logging.flushFrequency", Interval, Unsupported(LOGGING)),
    FieldSpec("logging.verbosity", Whole, Unsupported(LOGGING)),
    FieldSpec("logging.vmodule", Anything, Unsupported(LOGGING)),
    FieldSpec("logging.options", Anything, Unsupported(LOGGING)),
    FieldSpec("hostnameOverride", Text, Supported),
    FieldSpec("bindAddress", Text, Supported),
    FieldSpec("healthzBindAddress", Text, Supported),
    FieldSpec("metricsBindAddress", Text, Supported),
    FieldSpec("bindAddressHardFail", Flag, Supported),
    FieldSpec("enableProfiling", Flag, Unsupported("nomagic has no profiling endpoint; use `perf`")),
    FieldSpec("showHiddenMetricsForVersion", Text, Unsupported("nomagic hides no metrics")),
    FieldSpec("mode", Text, Supported),
    FieldSpec("iptables.masqueradeBit", Whole, Unsupported(MARK)),
    FieldSpec("iptables.masqueradeAll", Flag, InModes(&[Iptables, Ipvs])),
    FieldSpec("iptables.localhostNodePorts", Flag, InModes(&[Iptables])),
    FieldSpec("iptables.syncPeriod", Duration, InModes(&[Iptables])),
    FieldSpec("iptables.minSyncPeriod", Duration, Unsupported(AT_ONCE)),
    FieldSpec("ipvs.syncPeriod", Duration, InModes(&[Ipvs])),
    FieldSpec("ipvs.minSyncPeriod", Duration, Unsupported(AT_ONCE)),
    FieldSpec("ipvs.scheduler", Text, Unsupported("nomagic always chooses endpoints by Maglev hashing")),
    FieldSpec("ipvs.excludeCIDRs", Texts, Unsupported("nomagic neither creates nor removes IPVS services")),
    FieldSpec(
        "ipvs.strictARP",
        Flag,
        Unsupported("nomagic creates no kube-ipvs0 interface, so there are no addresses on it to answer ARP for"),
    ),
    FieldSpec("ipvs.tcpTimeout", Duration, Unsupported(IPVS_IDLE)),
    FieldSpec("ipvs.tcpFinTimeout", Duration, Unsupported(IPVS_IDLE)),
    FieldSpec("ipvs.udpTimeout", Duration, Unsupported(IPVS_IDLE)),
    FieldSpec("nftables.masqueradeBit", Whole, Unsupported(MARK)),
    FieldSpec("nftables.masqueradeAll", Flag, InModes(&[Nftables])),
    FieldSpec("nftables.syncPeriod", Duration, InModes(&[Nftables])),
    FieldSpec("nftables.minSyncPeriod", Duration, Unsupported(AT_ONCE)),
    FieldSpec("winkernel.networkName", Text, Unsupported(WINDOWS)),
    FieldSpec("winkernel.sourceVip", Text, Unsupported(WINDOWS)),
    FieldSpec("winkernel.enableDSR", Flag, Unsupported(WINDOWS)),
    FieldSpec("winkernel.rootHnsEndpointName", Text, Unsupported(WINDOWS)),
    FieldSpec("winkernel.forwardHealthCheckVip", Flag, Unsupported(WINDOWS)),
    FieldSpec("detectLocalMode", Text, Supported),
    FieldSpec("detectLocal.bridgeInterface", Text, WithDetectMode("BridgeInterface")),
    FieldSpec("detectLocal.interfaceNamePrefix", Text, WithDetectMode("InterfaceNamePrefix")),
    FieldSpec("clusterCIDR", Text, WithDetectMode("ClusterCIDR")),
    FieldSpec("nodePortAddresses", Texts, Supported),
    FieldSpec("oomScoreAdj", Whole, Unsupported("set it in the service manager (systemd: OOMScoreAdjust=)")),
    FieldSpec("conntrack.maxPerCore", Whole, Unsupported(CAPACITY)),
    FieldSpec("conntrack.min", Whole, Unsupported(CAPACITY)),
    FieldSpec("conntrack.tcpEstablishedTimeout", Duration, Supported),
    FieldSpec("conntrack.tcpCloseWaitTimeout", Duration, Supported),
    FieldSpec("conntrack.tcpBeLiberal", Flag, Unsupported("nomagic never drops a segment because of its sequence number")),
    FieldSpec("conntrack.udpTimeout", Duration, Supported),
    FieldSpec("conntrack.udpStreamTimeout", Duration, Supported),
    FieldSpec("configSyncPeriod", Duration, Unsupported("nomagic watches the API server and never re-lists on a timer")),
    FieldSpec("portRange", Text, Unsupported("not used by kube-proxy either")),
    FieldSpec("windowsRunAsService", Flag, Unsupported(WINDOWS)),
];

impl FieldSpec {
    pub(super) fn by_path(path: &str) -> Option<&'static FieldSpec> {
        FIELDS.iter().find(|f| f.0 == path)
    }

    /// Whether the name is a section that contains fields.
    pub(super) fn is_section(name: &str) -> bool {
        FIELDS.iter().any(|f| f.0.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
    }
}

impl FieldType {
    /// Whether a value has this type.
    pub(super) fn accepts(self, value: &Tree) -> bool {
        match (self, value) {
            (_, Tree::Null) | (Anything, _) | (Flag, Tree::Flag(_)) | (Text, Tree::Text(_)) => true,
            (Whole, Tree::Whole(n)) => i32::try_from(*n).is_ok(),
            (Interval, Tree::Whole(n)) => u32::try_from(*n).is_ok(),
            (Number, Tree::Whole(_) | Tree::Number(_)) => true,
            (Duration | Interval, Tree::Text(text)) => duration_ms(text).is_some(),
            (Texts, Tree::List(list)) => list.iter().all(|t| Text.accepts(&t.value)),
            (Gates, Tree::Mapping(gates)) => gates.iter().all(|(_, gate)| Flag.accepts(&gate.value)),
            _ => false,
        }
    }

    /// The accepted values, for messages.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Flag => "true or false",
            Whole => "a whole number of 32 bits",
            Number => "a number",
            Text => "text (a number or a flag needs quotes)",
            Duration => "a duration such as 30s or 1h30m",
            Interval => "a duration such as 5s, or a number of nanoseconds",
            Texts => "a list of texts",
            Gates => "a mapping of names to true or false",
            Anything => "anything",
        }
    }

    /// Whether a value is set: neither `null` nor the type's zero value.
    pub(super) fn is_set(self, value: &Tree) -> bool {
        match (self, value) {
            // `false` disables a feature gate, so it is not a zero value here.
            (Gates, Tree::Mapping(gates)) => !gates.is_empty(),
            _ => !is_zero(value),
        }
    }
}

fn is_zero(value: &Tree) -> bool {
    match value {
        Tree::Null => true,
        Tree::Flag(flag) => !flag,
        Tree::Whole(n) => *n == 0,
        Tree::Number(n) => *n == 0.0,
        Tree::Text(text) => text.is_empty() || duration_ms(text) == Some(0),
        Tree::List(list) => list.is_empty(),
        Tree::Mapping(entries) => entries.iter().all(|(_, value)| is_zero(&value.value)),
    }
}
