//! Why a packet was not simply forwarded. Each value is a counter, a metric label and a word in `explain`.

use crate::counters::Labels;

/// What becomes of a frame that has a reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disposition {
    /// Given back to the kernel.
    Kernel,
    /// Dropped, and perhaps rejected.
    Drop,
}

/// Defines the enum, its label, its dispositions and its sentence in one place.
macro_rules! reasons {
    ($( $variant:ident = $label:literal, $( $disposition:ident )|+, $text:literal; )*) => {
        /// Why a frame was dropped, rejected or given to the kernel.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub enum Reason { $( #[doc = $text] $variant, )* }

        impl Reason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Reason] = &[ $( Reason::$variant, )* ];

            /// The metric label: lower case, words joined by `_`.
            pub fn label(self) -> &'static str {
                match self { $( Reason::$variant => $label, )* }
            }

            /// One sentence for people.
            pub fn text(self) -> &'static str {
                match self { $( Reason::$variant => $text, )* }
            }

            /// What may become of a frame for this reason.
            pub fn dispositions(self) -> &'static [Disposition] {
                match self { $( Reason::$variant => &[ $( Disposition::$disposition, )+ ], )* }
            }
        }
    };
}

reasons! {
    // Frames that cannot be read.
    EthernetTruncated = "ethernet_truncated", Drop, "the frame ends inside its Ethernet header";
    VlanTooDeep = "vlan_too_deep", Drop, "more than two VLAN tags";
    Ipv4Malformed = "ipv4_malformed", Drop, "the IPv4 header contradicts itself or the frame's length";
    Ipv6Malformed = "ipv6_malformed", Drop, "the IPv6 header or an extension header contradicts the frame's length";
    TcpMalformed = "tcp_malformed", Drop, "the TCP header contradicts itself or the packet's length";
    TcpFlags = "tcp_flags", Drop, "TCP flags, or an SCTP chunk, that no connection starts with";
    UdpMalformed = "udp_malformed", Drop, "the UDP header contradicts the packet's length";
    SctpMalformed = "sctp_malformed", Drop, "the SCTP header or its first chunk is cut short";
    FragmentMalformed = "fragment_malformed", Drop, "a fragment that is empty, ends beyond 65,535 bytes, or cannot be followed by another one";
    FragmentTiny = "fragment_tiny", Drop, "fragments so small that the transport header is not in the first one, or with too many gaps between them";
    FragmentOverlap = "fragment_overlap", Drop, "a fragment with bytes that another one has already brought, or a fragment of the same datagram as these";
    Martian = "martian", Drop, "a source address that no host may send from";
    OwnSource = "own_source", Drop, "from outside, but with an address of this node as its source";
    ServiceSource = "service_source", Drop, "from outside, but with a Service's address and port, a cluster IP, or the address that it is for as its source";
    ReversePath = "reverse_path", Drop, "from a source whose route leads elsewhere, or that has none, by an interface with `rp_filter`";

    // Frames that are the kernel's. They are dropped where giving them back would lead them here again.
    NotIp = "not_ip", Kernel | Drop, "neither IPv4 nor IPv6";
    Ipv4Options = "ipv4_options", Kernel | Drop, "an IPv4 source route, or IPv4 options that cannot be read: left to the kernel";
    LinkLocalSource = "link_local_source", Kernel | Drop, "a link-local source address, which is no client's of a Service: left to the kernel";
    NotOurs = "not_ours", Kernel | Drop, "no Service has this address, port and protocol";
    ReplyPort = "reply_port", Drop, "looks like a reply, but came in by a port that does not lead to the endpoint";
    NoFlow = "no_flow", Kernel | Drop, "looks like a reply, but no connection is known for it";
    Icmp = "icmp", Kernel | Drop, "ICMP, but no error about a connection that is known here: left to the kernel";
    IcmpQuote = "icmp_quote", Kernel | Drop, "an ICMP error whose quote is cut short, or is not of a packet that its receiver sent: left to the kernel";
    Fragment = "fragment", Kernel | Drop, "a fragment of a protocol that Services cannot name, or with two fragment headers: left to the kernel";
    FragmentTimeout = "fragment_timeout", Kernel | Drop, "a later fragment whose first one did not come in time: left to the kernel, or dropped if the address is a Service's alone";
    FragmentHoldFull = "fragment_hold_full", Kernel | Drop, "a later fragment that waited for its first one and made room for others: left to the kernel, or dropped if the address is a Service's alone";
    Ipv6ExtensionChain = "ipv6_extension_chain", Kernel | Drop, "more IPv6 extension headers than the limit, left to the kernel";
    Ipv6Routing = "ipv6_routing", Kernel | Drop, "an IPv6 routing header with segments left, left to the kernel";
    OtherProtocol = "other_protocol", Kernel | Drop, "a transport protocol that Services cannot name";

    // Decisions about Services.
    NoEndpoints = "no_endpoints", Drop, "the Service has no usable endpoint";
    NoLocalEndpoints = "no_local_endpoints", Drop, "the traffic policy is Local and this node has no endpoint";
    SourceRange = "source_range", Drop, "the client is outside the Service's loadBalancerSourceRanges";
    UnusedServicePort = "unused_service_port", Drop, "the cluster IP is a Service's, but not this port or protocol";
    UnallocatedServiceAddress = "unallocated_service_address", Drop, "an address of the Service range that no Service has";
    UnusedExternalPort = "unused_external_port", Drop, "the load balancer or external IP is a Service's, but not this port or protocol, and the kernel would send the packet back";
    PingLimit = "ping_limit", Drop, "more pings to Services' addresses than the limit, or than one sender's share";

    // Connections.
    MidFlowSnat = "mid_flow_snat", Drop, "the middle of an unknown connection that would need a new source port";
    SnatShare = "snat_share", Drop, "the client or the Service holds its share of the source ports towards this endpoint";
    ServiceRateLimited = "service_rate_limited", Drop, "the Service port has taken as many new connections as it may in a second";
    ClientConnectionLimit = "client_connection_limit", Drop, "the client has as many connections to the Service as it may have at a time";
    ConntrackFull = "conntrack_full", Drop, "the connection table is full";
    ConntrackBusy = "conntrack_busy", Drop, "another worker was creating the same connection at this moment";
    SnatPortsExhausted = "snat_ports_exhausted", Drop, "no free source port towards this backend";
    SnatAddressMissing = "snat_address_missing", Drop, "no SNAT address of this family is configured";
    ReplyKeyTaken = "reply_key_taken", Drop, "another connection already owns the way back from this backend";
    ReplyFilterFull = "reply_filter_full", Drop, "no room to announce the replies of this connection to the XDP filter";

    // ICMP errors about connections.
    IcmpPort = "icmp_port", Drop, "an ICMP error about a connection, but it came in by a port that does not lead where the quoted packet went";
    IcmpSequence = "icmp_sequence", Drop, "an ICMP error that quotes a TCP segment which the connection has not sent";
    IcmpChecksum = "icmp_checksum", Drop, "an ICMP error about a connection, with a wrong checksum";
    IcmpLimit = "icmp_limit", Drop, "more ICMP errors than the limit of their class, or of one client";

    // The way on.
    TtlExceeded = "ttl_exceeded", Drop, "the TTL or hop limit ran out here";
    TooBig = "too_big", Drop, "larger than the MTU of the way on, and not to be fragmented: it says DF, is IPv6, or `fragment` is false";
    TooManyFragments = "too_many_fragments", Drop, "larger than the MTU of the way on, and would become more fragments than the limit";
    NoRoute = "no_route", Drop, "the kernel's routes name no way to the destination";
    Unreachable = "unreachable", Drop, "the kernel's routes say unreachable";
    RouteProhibited = "route_prohibited", Drop, "the kernel's routes say prohibit";
    RouteBlackhole = "route_blackhole", Drop, "the kernel's routes say blackhole";
    NextHopKernel = "next_hop_kernel", Drop, "the way on leads through an interface that is not nomagic's, or to this node itself";
    NeighbourTimeout = "neighbour_timeout", Drop, "the next hop never answered";
    HoldFull = "hold_full", Drop, "too many frames are waiting already";
    PortDown = "port_down", Drop, "the port on the way on is down or not bound";
    TxFull = "tx_full", Drop, "the transmit ring of the way on stayed full";
    HandoverFull = "handover_full", Drop, "the worker that owns the port on the way on does not keep up";
    WorkerGone = "worker_gone", Drop, "the worker that owns the port on the way on is dead or stuck";
    FrameTooLong = "frame_too_long", Drop, "longer than the packet buffers that one packet may have: 17, or one where kernel or driver cannot use several";
    NoInternalPort = "no_internal_port", Drop, "there is no way back to the kernel";
    PoolEmpty = "pool_empty", Drop, "no free frame to build or copy into";
    Shutdown = "shutdown", Drop, "the process ended while the frame was waiting";
}

impl Reason {
    /// Number of reasons: the length of a counter array.
    pub const COUNT: usize = Reason::ALL.len();

    /// The counter's place.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Reasons for which a frame may be given back to the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelReasons;

/// Reasons for which a frame may be dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DropReasons;

macro_rules! reason_labels {
    ($( $labels:ident, $disposition:ident; )*) => {$(
        impl Labels for $labels {
            type LabelValue = Reason;
            const NAME: &'static str = "reason";
            const ALL: &'static [Reason] = Reason::ALL;

            fn index(reason: Reason) -> usize {
                reason.index()
            }

            fn label(reason: Reason) -> &'static str {
                reason.label()
            }

            fn holds(reason: Reason) -> bool {
                reason.dispositions().contains(&Disposition::$disposition)
            }
        }
    )*};
}

reason_labels! {
    KernelReasons, Kernel;
    DropReasons, Drop;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_metric_words_and_in_counter_order() {
        let mut seen = std::collections::HashSet::new();
        for (i, r) in Reason::ALL.iter().enumerate() {
            assert_eq!(r.index(), i);
            assert!(seen.insert(r.label()), "{} twice", r.label());
            assert!(r.label().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
            assert!(!r.text().is_empty());
        }
    }
}
