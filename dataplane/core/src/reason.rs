//! Why a packet was not simply forwarded. Each value is a counter, a metric label and a word in `explain`.

/// Defines the enum, its label and its sentence in one place.
macro_rules! reasons {
    ($( $variant:ident = $label:literal, $text:literal; )*) => {
        /// Why a frame was dropped, rejected, given to the kernel or held.
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
        }
    };
}

reasons! {
    // Frames that cannot be read.
    EthernetTruncated = "ethernet_truncated", "the frame ends inside its Ethernet header";
    VlanTooDeep = "vlan_too_deep", "more than two VLAN tags";
    Ipv4Malformed = "ipv4_malformed", "the IPv4 header contradicts itself or the frame's length";
    Ipv6Malformed = "ipv6_malformed", "the IPv6 header or an extension header contradicts the frame's length";
    Ipv6ExtensionChain = "ipv6_extension_chain", "more IPv6 extension headers than the limit";
    TcpMalformed = "tcp_malformed", "the TCP header contradicts itself or the packet's length";
    TcpFlags = "tcp_flags", "TCP flags, or an SCTP chunk, that no connection starts with";
    UdpMalformed = "udp_malformed", "the UDP header contradicts the packet's length";
    SctpMalformed = "sctp_malformed", "the SCTP header or its first chunk is cut short";
    Martian = "martian", "a source address that no host may send from";

    // Frames that are the kernel's.
    NotIp = "not_ip", "neither IPv4 nor IPv6";
    NotOurs = "not_ours", "no Service has this address, port and protocol";
    NoFlow = "no_flow", "looks like a reply, but no connection is known for it";
    Icmp = "icmp", "ICMP is left to the kernel";
    Fragment = "fragment", "an IP fragment without its first one, or of a protocol whose checksum covers all of them: left to the kernel";
    Ipv6Routing = "ipv6_routing", "an IPv6 routing header with segments left, left to the kernel";
    OtherProtocol = "other_protocol", "a transport protocol that Services cannot name";
    NodePortDisabled = "node_port_disabled", "node ports are not served on this address";

    // Decisions about Services.
    NoEndpoints = "no_endpoints", "the Service has no usable endpoint";
    NoLocalEndpoints = "no_local_endpoints", "the traffic policy is Local and this node has no endpoint";
    SourceRange = "source_range", "the client is outside the Service's loadBalancerSourceRanges";
    UnusedServicePort = "unused_service_port", "the cluster IP is a Service's, but not this port or protocol";
    UnallocatedServiceAddress = "unallocated_service_address", "an address of the Service range that no Service has";

    // Connections.
    MidFlowSnat = "mid_flow_snat", "the middle of an unknown connection that would need a new source port";
    SnatShare = "snat_share", "the client or the Service holds its share of the source ports towards this endpoint";
    ConntrackFull = "conntrack_full", "the connection table is full";
    ConntrackBusy = "conntrack_busy", "another worker was creating the same connection at this moment";
    SnatPortsExhausted = "snat_ports_exhausted", "no free source port towards this backend";
    SnatAddressMissing = "snat_address_missing", "no SNAT address of this family is configured";
    ReplyKeyTaken = "reply_key_taken", "another connection already owns the way back from this backend";
    ReplyFilterFull = "reply_filter_full", "no room to announce the replies of this connection to the XDP filter";

    // The way on.
    TtlExceeded = "ttl_exceeded", "the TTL or hop limit ran out here";
    TooBig = "too_big", "larger than the MTU of the way on";
    NoRoute = "no_route", "the kernel's routes name no way to the destination";
    Unreachable = "unreachable", "the kernel's routes say unreachable, prohibit or blackhole";
    NextHopKernel = "next_hop_kernel", "the way on leads through an interface that is not nomagic's, or to this node itself";
    NeighbourPending = "neighbour_pending", "waiting for the next hop's link-layer address";
    NeighbourTimeout = "neighbour_timeout", "the next hop never answered";
    HoldFull = "hold_full", "too many frames are waiting already";
    NoHeadroom = "no_headroom", "no room before the frame for its new link-layer header";
    PortDown = "port_down", "the port on the way on is down or not bound";
    TxFull = "tx_full", "the transmit ring of the way on stayed full";
    HandoverFull = "handover_full", "the worker that owns the port on the way on does not keep up";
    WorkerGone = "worker_gone", "the worker that owns the port on the way on is dead or stuck";
    FrameTooLong = "frame_too_long", "longer than a frame of the port on the way on can be";
    NoInternalPort = "no_internal_port", "there is no way back to the kernel";
    PoolEmpty = "pool_empty", "no free frame to build or copy into";
    Shutdown = "shutdown", "the process ended while the frame was waiting";
}

impl Reason {
    /// Number of reasons: the length of a counter array.
    pub const COUNT: usize = Reason::ALL.len();

    /// The counter's place.
    pub fn index(self) -> usize {
        self as usize
    }
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
