//! Names for what is on the wire: where each header's fields are, their masks and flags, and the numbers of protocols.
//!
//! The parsers ([`parse`](mod@crate::parse), [`fast_parse`](crate::fast_parse)) and the writers ([`rewrite`](crate::rewrite), [`reject`](crate::reject))
//! find every field by these names. The unit tests hold them against etherparse; the XDP filter, which reads the same headers in C
//! (dataplane/xsk/bpf/parse.h), is held against [`parse`](crate::parse::parse) by the tests of nomagic-xsk.

mod field;

pub use field::Field;

/// EtherTypes (IEEE 802 numbers).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// Tags: 802.1Q, 802.1ad, and what was in use before 802.1ad.
    pub const VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];
}

/// Numbers in the protocol field of IPv4 and the next header fields of IPv6 (IANA, "Protocol Numbers").
pub mod protocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Ethernet header (IEEE 802.3).
pub mod ethernet {
    /// Bytes, without tags.
    pub const HEADER_LEN: usize = 14;
    /// In the first byte of an address: a group address, multicast or broadcast.
    pub const GROUP: u8 = 0x01;

    /// Fields.
    pub mod field {
        use super::super::Field;

        /// Destination address.
        pub const DESTINATION: Field<6> = Field::at(0);
        /// Source address.
        pub const SOURCE: Field<6> = Field::at(6);
        /// Destination and source address.
        pub const ADDRESSES: Field<12> = Field::at(0);
        /// EtherType.
        pub const TYPE: Field<2> = Field::at(12);
    }
}

/// VLAN tag (IEEE 802.1Q): what follows the EtherType that announces it.
pub mod vlan {
    /// Bytes.
    pub const TAG_LEN: usize = 4;

    /// Fields.
    pub mod field {
        use super::super::Field;

        /// Priority, drop eligibility and VLAN identifier.
        pub const TCI: Field<2> = Field::at(0);
        /// EtherType of what follows the tag.
        pub const TYPE: Field<2> = Field::at(2);
    }
}

/// IPv4 header (RFC 791).
pub mod ipv4 {
    /// Bytes without options.
    pub const HEADER_LEN: usize = 20;
    /// [`field::VERSION_IHL`] of a header without options.
    pub const WITHOUT_OPTIONS: u8 = 0x45;
    /// In [`field::FRAGMENT`]: don't fragment.
    pub const DONT_FRAGMENT: u16 = 0x4000;
    /// In [`field::FRAGMENT`]: more fragments follow.
    pub const MORE_FRAGMENTS: u16 = 0x2000;
    /// In [`field::FRAGMENT`]: offset in the packet, in units of 8 bytes.
    pub const FRAGMENT_OFFSET: u16 = 0x1fff;

    /// Kinds of options (RFC 791, 3.1): those of one byte, and source routes.
    pub mod option {
        /// In a kind: the option is in all fragments, not only in the first one.
        pub const COPIED: u8 = 0x80;
        /// End of the list.
        pub const END: u8 = 0;
        /// No operation.
        pub const NOP: u8 = 1;
        /// Loose source and record route.
        pub const LOOSE_SOURCE_ROUTE: u8 = 131;
        /// Strict source and record route.
        pub const STRICT_SOURCE_ROUTE: u8 = 137;
    }

    /// Version in [`field::VERSION_IHL`].
    #[inline(always)]
    pub const fn version(version_ihl: u8) -> u8 {
        version_ihl >> 4
    }

    /// Bytes of header and options, by [`field::VERSION_IHL`].
    #[inline(always)]
    pub const fn header_len(version_ihl: u8) -> usize {
        (version_ihl & 0x0f) as usize * 4
    }

    /// Fields.
    pub mod field {
        use super::super::Field;

        /// Version, and length of the header in units of 4 bytes.
        pub const VERSION_IHL: Field<1> = Field::at(0);
        /// Bytes of header and payload.
        pub const TOTAL_LEN: Field<2> = Field::at(2);
        /// Identification, the same for all fragments of a packet.
        pub const ID: Field<2> = Field::at(4);
        /// Flags and fragment offset.
        pub const FRAGMENT: Field<2> = Field::at(6);
        /// Time to live.
        pub const TTL: Field<1> = Field::at(8);
        /// Protocol of the payload.
        pub const PROTOCOL: Field<1> = Field::at(9);
        /// Header checksum.
        pub const CHECKSUM: Field<2> = Field::at(10);
        /// Source address.
        pub const SOURCE: Field<4> = Field::at(12);
        /// Destination address.
        pub const DESTINATION: Field<4> = Field::at(16);
        /// Source and destination address.
        pub const ADDRESSES: Field<8> = Field::at(12);
    }
}

/// IPv6 header (RFC 8200, section 3).
pub mod ipv6 {
    /// Bytes without extension headers.
    pub const HEADER_LEN: usize = 40;

    /// Version in the first byte of [`field::VERSION_CLASS_FLOW`].
    #[inline(always)]
    pub const fn version(first: u8) -> u8 {
        first >> 4
    }

    /// Fields.
    pub mod field {
        use super::super::Field;

        /// Version, traffic class and flow label.
        pub const VERSION_CLASS_FLOW: Field<4> = Field::at(0);
        /// The byte of [`VERSION_CLASS_FLOW`] that holds the version.
        pub const VERSION: Field<1> = Field::at(0);
        /// Bytes after this header.
        pub const PAYLOAD_LEN: Field<2> = Field::at(4);
        /// What follows this header.
        pub const NEXT_HEADER: Field<1> = Field::at(6);
        /// Hop limit.
        pub const HOP_LIMIT: Field<1> = Field::at(7);
        /// Source address.
        pub const SOURCE: Field<16> = Field::at(8);
        /// Destination address.
        pub const DESTINATION: Field<16> = Field::at(24);
        /// Source and destination address, two words each.
        pub const ADDRESS_WORDS: [Field<8>; 4] = [Field::at(8), Field::at(16), Field::at(24), Field::at(32)];
    }
}

/// IPv6 extension headers: hop-by-hop options, destination options and routing headers (RFC 8200, sections 4.3 to 4.6).
pub mod ipv6_extension {
    /// Bytes, by [`field::LEN`]: units of 8 bytes, the first not counted.
    #[inline(always)]
    pub const fn header_len(len: u8) -> usize {
        (len as usize + 1) * 8
    }

    /// Fields.
    pub mod field {
        use super::super::Field;

        /// What follows this header.
        pub const NEXT_HEADER: Field<1> = Field::at(0);
        /// Length, see [`super::header_len`].
        pub const LEN: Field<1> = Field::at(1);
        /// Routing headers: addresses still to be visited.
        pub const SEGMENTS_LEFT: Field<1> = Field::at(3);
    }
}

/// IPv6 fragment header (RFC 8200, section 4.5).
pub mod ipv6_fragment {
    /// Bytes.
    pub const HEADER_LEN: usize = 8;
    /// In [`field::OFFSET`]: more fragments follow.
    pub const MORE_FRAGMENTS: u16 = 0x0001;
    /// In [`field::OFFSET`]: offset in the packet, in bytes.
    pub const OFFSET: u16 = 0xfff8;

    /// Fields.
    pub mod field {
        use super::super::Field;

        /// What follows this header, in the first fragment.
        pub const NEXT_HEADER: Field<1> = Field::at(0);
        /// Offset and the flag for more fragments.
        pub const OFFSET: Field<2> = Field::at(2);
        /// Identification, the same for all fragments of a packet.
        pub const ID: Field<4> = Field::at(4);
    }
}

/// The first four bytes of TCP, UDP and SCTP alike.
pub mod ports {
    /// Fields.
    pub mod field {
        use super::super::Field;

        /// Source port.
        pub const SOURCE: Field<2> = Field::at(0);
        /// Destination port.
        pub const DESTINATION: Field<2> = Field::at(2);
        /// Source and destination port.
        pub const BOTH: Field<4> = Field::at(0);
    }
}

/// TCP header (RFC 9293, section 3.1).
pub mod tcp {
    /// Bytes without options.
    pub const HEADER_LEN: usize = 20;
    /// In [`field::FLAGS`]: FIN.
    pub const FIN: u8 = 0x01;
    /// In [`field::FLAGS`]: SYN.
    pub const SYN: u8 = 0x02;
    /// In [`field::FLAGS`]: RST.
    pub const RST: u8 = 0x04;
    /// In [`field::FLAGS`]: ACK.
    pub const ACK: u8 = 0x10;

    /// Bytes of header and options, by [`field::DATA_OFFSET`].
    #[inline(always)]
    pub const fn header_len(data_offset: u8) -> usize {
        (data_offset >> 4) as usize * 4
    }

    /// Fields.
    pub mod field {
        use super::super::Field;

        /// Sequence number.
        pub const SEQUENCE: Field<4> = Field::at(4);
        /// Acknowledgment number.
        pub const ACKNOWLEDGMENT: Field<4> = Field::at(8);
        /// Length of the header, see [`super::header_len`].
        pub const DATA_OFFSET: Field<1> = Field::at(12);
        /// Flags.
        pub const FLAGS: Field<1> = Field::at(13);
        /// Checksum.
        pub const CHECKSUM: Field<2> = Field::at(16);
    }
}

/// UDP header (RFC 768).
pub mod udp {
    /// Bytes.
    pub const HEADER_LEN: usize = 8;

    /// Fields.
    pub mod field {
        use super::super::Field;

        /// Bytes of header and payload.
        pub const LEN: Field<2> = Field::at(4);
        /// Checksum; 0: none.
        pub const CHECKSUM: Field<2> = Field::at(6);
    }
}

/// SCTP common header and the first chunk's header (RFC 9260, section 3).
pub mod sctp {
    /// Bytes of the common header.
    pub const HEADER_LEN: usize = 12;
    /// Bytes of a chunk's header.
    pub const CHUNK_HEADER_LEN: usize = 4;

    /// Chunk types.
    pub mod chunk {
        /// INIT.
        pub const INIT: u8 = 1;
        /// INIT ACK.
        pub const INIT_ACK: u8 = 2;
        /// ABORT.
        pub const ABORT: u8 = 6;
        /// SHUTDOWN.
        pub const SHUTDOWN: u8 = 7;
        /// SHUTDOWN ACK.
        pub const SHUTDOWN_ACK: u8 = 8;
        /// ERROR.
        pub const ERROR: u8 = 9;
        /// COOKIE ECHO.
        pub const COOKIE_ECHO: u8 = 10;
        /// COOKIE ACK.
        pub const COOKIE_ACK: u8 = 11;
        /// SHUTDOWN COMPLETE.
        pub const SHUTDOWN_COMPLETE: u8 = 14;
    }

    /// Flag of ABORT and SHUTDOWN COMPLETE: the verification tag is the one that the receiver itself has sent.
    pub const TAG_REFLECTED: u8 = 1;

    /// Fields.
    pub mod field {
        use super::super::Field;

        /// Verification tag.
        pub const VERIFICATION_TAG: Field<4> = Field::at(4);
        /// CRC32c, least significant byte first.
        pub const CHECKSUM: Field<4> = Field::at(8);
        /// Type of the first chunk.
        pub const CHUNK_TYPE: Field<1> = Field::at(12);
    }
}

/// ICMP header of an error message (RFC 792).
pub mod icmp {
    /// Bytes in front of the packet that an error message quotes.
    pub const HEADER_LEN: usize = 8;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 8;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;

    /// Fields.
    pub mod field {
        use super::super::Field;

        /// Type.
        pub const TYPE: Field<1> = Field::at(0);
        /// Code.
        pub const CODE: Field<1> = Field::at(1);
        /// Checksum over the message.
        pub const CHECKSUM: Field<2> = Field::at(2);
        /// Fragmentation needed (RFC 1191): the next hop's MTU.
        pub const NEXT_HOP_MTU: Field<2> = Field::at(6);
    }
}

/// ICMPv6 header of an error message (RFC 4443).
pub mod icmpv6 {
    /// Bytes in front of the packet that an error message quotes.
    pub const HEADER_LEN: usize = 8;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Packet too big.
    pub const TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;
    /// Echo request.
    pub const ECHO_REQUEST: u8 = 128;
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 129;

    /// Fields.
    pub mod field {
        use super::super::Field;

        /// Type.
        pub const TYPE: Field<1> = Field::at(0);
        /// Code.
        pub const CODE: Field<1> = Field::at(1);
        /// Checksum over a pseudo header and the message.
        pub const CHECKSUM: Field<2> = Field::at(2);
        /// Packet too big: the next hop's MTU.
        pub const MTU: Field<4> = Field::at(4);
    }
}

#[cfg(test)]
mod tests;
