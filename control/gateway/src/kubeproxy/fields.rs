//! Every field of KubeProxyConfiguration: its type, and what it means here (staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go).

use crate::config::timeouts::duration_ms;
use crate::config::tree::Tree;
use Kind::{Anything, Duration, Flag, Gates, Interval, Number, Text, Texts, Whole};
use Meaning::{Nothing, Taken, TakenByMode, TakenIn};
use Mode::{Iptables, Ipvs, Nftables};

/// Which of kube-proxy's dataplanes the file is written for. It decides which section counts, and some defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mode {
    Iptables,
    Ipvs,
    Nftables,
}

/// What values a field takes besides `null`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Flag,
    /// 32 bits, signed.
    Whole,
    Number,
    Text,
    /// As Go writes it; not negative.
    Duration,
    /// A duration, or a number of nanoseconds.
    Interval,
    Texts,
    /// Flags by name.
    Gates,
    Anything,
}

/// What a field means here.
pub(super) enum Meaning {
    Taken,
    /// Taken when the file is for one of these modes.
    TakenIn(&'static [Mode]),
    /// Nothing, for this reason.
    Nothing(&'static str),
    /// Taken in this detectLocalMode.
    TakenByMode(&'static str),
}

/// A field by its path.
pub(super) struct Field(pub(super) &'static str, pub(super) Kind, pub(super) Meaning);

const LOGGING: &str = "the environment variable NOMAGIC_LOG sets what is logged";
const MARK: &str = "nomagic marks no packets in the kernel: it rewrites sources itself";
const AT_ONCE: &str = "nomagic puts every change in force at once";
const IPVS_IDLE: &str = "nomagic has no IPVS sessions; conntrack.* sets how long idle connections are remembered";
const WINDOWS: &str = "for Windows only";
const CAPACITY: &str = "connections are in nomagic's own table, which has a fixed capacity, and not in the kernel's";
const REQUESTS: &str = "nomagic only keeps a few watches open";

/// All fields, in the order of the type.
pub(super) const FIELDS: &[Field] = &[
    Field("apiVersion", Text, Taken),
    Field("kind", Text, Taken),
    Field("featureGates", Gates, Nothing("nomagic has no feature gates: what is generally available in Kubernetes 1.36 is always on")),
    Field("clientConnection.kubeconfig", Text, Taken),
    Field("clientConnection.acceptContentTypes", Text, Nothing("nomagic asks the API server for JSON")),
    Field("clientConnection.contentType", Text, Nothing("nomagic asks the API server for JSON")),
    Field("clientConnection.qps", Number, Nothing(REQUESTS)),
    Field("clientConnection.burst", Whole, Nothing(REQUESTS)),
    Field("logging.format", Text, Nothing(LOGGING)),
    Field("logging.flushFrequency", Interval, Nothing(LOGGING)),
    Field("logging.verbosity", Whole, Nothing(LOGGING)),
    Field("logging.vmodule", Anything, Nothing(LOGGING)),
    Field("logging.options", Anything, Nothing(LOGGING)),
    Field("hostnameOverride", Text, Taken),
    Field("bindAddress", Text, Taken),
    Field("healthzBindAddress", Text, Taken),
    Field("metricsBindAddress", Text, Taken),
    Field("bindAddressHardFail", Flag, Taken),
    Field("enableProfiling", Flag, Nothing("nomagic serves no profiles; `perf` shows where its time goes")),
    Field("showHiddenMetricsForVersion", Text, Nothing("nomagic hides no metrics")),
    Field("mode", Text, Taken),
    Field("iptables.masqueradeBit", Whole, Nothing(MARK)),
    Field("iptables.masqueradeAll", Flag, TakenIn(&[Iptables, Ipvs])),
    Field("iptables.localhostNodePorts", Flag, TakenIn(&[Iptables])),
    Field("iptables.syncPeriod", Duration, TakenIn(&[Iptables])),
    Field("iptables.minSyncPeriod", Duration, Nothing(AT_ONCE)),
    Field("ipvs.syncPeriod", Duration, TakenIn(&[Ipvs])),
    Field("ipvs.minSyncPeriod", Duration, Nothing(AT_ONCE)),
    Field("ipvs.scheduler", Text, Nothing("nomagic always chooses endpoints by Maglev hashing")),
    Field("ipvs.excludeCIDRs", Texts, Nothing("nomagic makes and removes no IPVS services")),
    Field("ipvs.strictARP", Flag, Nothing("nomagic makes no kube-ipvs0 interface for which the kernel could answer ARP")),
    Field("ipvs.tcpTimeout", Duration, Nothing(IPVS_IDLE)),
    Field("ipvs.tcpFinTimeout", Duration, Nothing(IPVS_IDLE)),
    Field("ipvs.udpTimeout", Duration, Nothing(IPVS_IDLE)),
    Field("nftables.masqueradeBit", Whole, Nothing(MARK)),
    Field("nftables.masqueradeAll", Flag, TakenIn(&[Nftables])),
    Field("nftables.syncPeriod", Duration, TakenIn(&[Nftables])),
    Field("nftables.minSyncPeriod", Duration, Nothing(AT_ONCE)),
    Field("winkernel.networkName", Text, Nothing(WINDOWS)),
    Field("winkernel.sourceVip", Text, Nothing(WINDOWS)),
    Field("winkernel.enableDSR", Flag, Nothing(WINDOWS)),
    Field("winkernel.rootHnsEndpointName", Text, Nothing(WINDOWS)),
    Field("winkernel.forwardHealthCheckVip", Flag, Nothing(WINDOWS)),
    Field("detectLocalMode", Text, Taken),
    Field("detectLocal.bridgeInterface", Text, TakenByMode("BridgeInterface")),
    Field("detectLocal.interfaceNamePrefix", Text, TakenByMode("InterfaceNamePrefix")),
    Field("clusterCIDR", Text, TakenByMode("ClusterCIDR")),
    Field("nodePortAddresses", Texts, Taken),
    Field("oomScoreAdj", Whole, Nothing("who starts nomagic sets it (systemd: OOMScoreAdjust=)")),
    Field("conntrack.maxPerCore", Whole, Nothing(CAPACITY)),
    Field("conntrack.min", Whole, Nothing(CAPACITY)),
    Field("conntrack.tcpEstablishedTimeout", Duration, Taken),
    Field("conntrack.tcpCloseWaitTimeout", Duration, Taken),
    Field("conntrack.tcpBeLiberal", Flag, Nothing("nomagic drops no segment for its sequence number")),
    Field("conntrack.udpTimeout", Duration, Taken),
    Field("conntrack.udpStreamTimeout", Duration, Taken),
    Field("configSyncPeriod", Duration, Nothing("nomagic follows the API server's changes and lists nothing again on a timer")),
    Field("portRange", Text, Nothing("unused by kube-proxy, too")),
    Field("windowsRunAsService", Flag, Nothing(WINDOWS)),
];

impl Field {
    /// The field of this path.
    pub(super) fn named(path: &str) -> Option<&'static Field> {
        FIELDS.iter().find(|f| f.0 == path)
    }

    /// Whether fields stand below this name.
    pub(super) fn is_section(name: &str) -> bool {
        FIELDS.iter().any(|f| f.0.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
    }
}

impl Kind {
    /// Whether a value is of this kind.
    pub(super) fn takes(self, value: &Tree) -> bool {
        match (self, value) {
            (_, Tree::Null) | (Anything, _) | (Flag, Tree::Flag(_)) | (Text, Tree::Text(_)) => true,
            (Whole, Tree::Whole(n)) => i32::try_from(*n).is_ok(),
            (Interval, Tree::Whole(n)) => u32::try_from(*n).is_ok(),
            (Number, Tree::Whole(_) | Tree::Number(_)) => true,
            (Duration | Interval, Tree::Text(text)) => duration_ms(text).is_some(),
            (Texts, Tree::List(list)) => list.iter().all(|t| Text.takes(&t.value)),
            (Gates, Tree::Mapping(gates)) => gates.iter().all(|(_, gate)| Flag.takes(&gate.value)),
            _ => false,
        }
    }

    /// What values it takes, in words.
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

    /// Whether a value asks for something: `null` and the zero of its type do not.
    pub(super) fn is_set(self, value: &Tree) -> bool {
        match (self, value) {
            // A gate that is closed is as much of a wish as an open one.
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
