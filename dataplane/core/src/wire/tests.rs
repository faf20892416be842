//! Every name against etherparse: what that writes into a header is read here by the field's name.

use etherparse::{Ethernet2Header, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options};
use etherparse::{Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, SingleVlanHeader, TcpHeader, UdpHeader, VlanId, icmpv4};

use super::*;

#[test]
fn ethernet_and_tags() {
    let header =
        Ethernet2Header { source: [1, 2, 3, 4, 5, 6], destination: [7, 8, 9, 10, 11, 12], ether_type: etherparse::EtherType::IPV6 };
    let bytes = header.to_bytes();
    assert_eq!(bytes.len(), ethernet::HEADER_LEN);
    assert_eq!((ethernet::field::SOURCE.read(&bytes), ethernet::field::DESTINATION.read(&bytes)), (header.source, header.destination));
    assert_eq!(ethernet::field::ADDRESSES.read(&bytes)[..], bytes[..12]);
    assert_eq!((ethernet::field::TYPE.u16(&bytes), u16::from(etherparse::EtherType::IPV4)), (ethertype::IPV6, ethertype::IPV4));
    let tag = SingleVlanHeader {
        pcp: etherparse::VlanPcp::try_new(5).unwrap(),
        drop_eligible_indicator: false,
        vlan_id: VlanId::try_new(0x123).unwrap(),
        ether_type: etherparse::EtherType::IPV4,
    };
    let bytes = tag.to_bytes();
    assert_eq!(bytes.len(), vlan::TAG_LEN);
    assert_eq!((vlan::field::TCI.u16(&bytes), vlan::field::TYPE.u16(&bytes)), (0xa123, ethertype::IPV4));
    let numbers = [
        etherparse::EtherType::VLAN_TAGGED_FRAME,
        etherparse::EtherType::PROVIDER_BRIDGING,
        etherparse::EtherType::VLAN_DOUBLE_TAGGED_FRAME,
    ];
    assert_eq!(ethertype::VLAN, numbers.map(u16::from));
}

#[test]
fn ipv4_fields() {
    let mut header = Ipv4Header {
        total_len: 0x1234,
        identification: 0x5678,
        dont_fragment: true,
        fragment_offset: IpFragOffset::try_new(0x1abc).unwrap(),
        time_to_live: 77,
        protocol: IpNumber::SCTP,
        header_checksum: 0x9abc,
        source: [10, 1, 2, 3],
        destination: [192, 168, 4, 5],
        ..Ipv4Header::default()
    };
    use ipv4::field::*;
    let bytes = header.to_bytes();
    assert_eq!((bytes.len(), VERSION_IHL.u8(&bytes)), (ipv4::HEADER_LEN, ipv4::WITHOUT_OPTIONS));
    assert_eq!((TOTAL_LEN.u16(&bytes), ID.u16(&bytes), CHECKSUM.u16(&bytes)), (0x1234, 0x5678, 0x9abc));
    assert_eq!(FRAGMENT.u16(&bytes), ipv4::DONT_FRAGMENT | 0x1abc);
    assert_eq!(FRAGMENT.u16(&bytes) & ipv4::FRAGMENT_OFFSET, 0x1abc);
    assert_eq!((TTL.u8(&bytes), PROTOCOL.u8(&bytes)), (77, protocol::SCTP));
    assert_eq!((SOURCE.read(&bytes), DESTINATION.read(&bytes)), (header.source, header.destination));
    assert_eq!(ADDRESSES.u64(&bytes), (u64::from(SOURCE.u32(&bytes)) << 32) | u64::from(DESTINATION.u32(&bytes)));
    (header.dont_fragment, header.more_fragments, header.fragment_offset) = (false, true, IpFragOffset::ZERO);
    header.options = Ipv4Options::try_from(&[1u8; 12][..]).unwrap();
    let bytes = header.to_bytes();
    assert_eq!(FRAGMENT.u16(&bytes), ipv4::MORE_FRAGMENTS);
    assert_eq!((ipv4::version(bytes[0]), ipv4::header_len(VERSION_IHL.u8(&bytes))), (4, bytes.len()));
}

#[test]
fn ipv6_fields_and_extension_headers() {
    let header = Ipv6Header {
        traffic_class: 0xab,
        flow_label: etherparse::Ipv6FlowLabel::try_new(0xcdef1).unwrap(),
        payload_length: 0x1234,
        next_header: IpNumber::UDP,
        hop_limit: 77,
        source: *b"source16bytes..s",
        destination: *b"destination.....",
    };
    let bytes = header.to_bytes();
    use ipv6::field as ip;
    assert_eq!((bytes.len(), ipv6::version(ip::VERSION.u8(&bytes))), (ipv6::HEADER_LEN, 6));
    assert_eq!(ip::VERSION_CLASS_FLOW.u32(&bytes), 0x6abc_def1);
    assert_eq!((ip::PAYLOAD_LEN.u16(&bytes), ip::NEXT_HEADER.u8(&bytes), ip::HOP_LIMIT.u8(&bytes)), (0x1234, protocol::UDP, 77));
    assert_eq!((ip::SOURCE.read(&bytes), ip::DESTINATION.read(&bytes)), (header.source, header.destination));
    assert_eq!(ip::ADDRESS_WORDS.map(|word| word.read(&bytes)).concat(), [header.source, header.destination].concat());

    let options = Ipv6RawExtHeader::new_raw(IpNumber::TCP, &[0, 9, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]).unwrap().to_bytes();
    use ipv6_extension::field as extension;
    assert_eq!(extension::NEXT_HEADER.u8(&options), protocol::TCP);
    assert_eq!(ipv6_extension::header_len(extension::LEN.u8(&options)), options.len());
    // RFC 8200, 4.4: next header, length, routing type, segments left.
    assert_eq!(extension::SEGMENTS_LEFT.u8(&options), 9);

    let offset = IpFragOffset::try_new(0x1abc).unwrap();
    let bytes = Ipv6FragmentHeader::new(IpNumber::TCP, offset, true, 0x1234_5678).to_bytes();
    use ipv6_fragment::{HEADER_LEN, MORE_FRAGMENTS, field as fragment};
    assert_eq!((bytes.len(), fragment::NEXT_HEADER.u8(&bytes), fragment::ID.u32(&bytes)), (HEADER_LEN, protocol::TCP, 0x1234_5678));
    let word = fragment::OFFSET.u16(&bytes);
    assert_eq!((word & MORE_FRAGMENTS, word & ipv6_fragment::OFFSET, word), (1, 0x1abc << 3, (0x1abc << 3) | 1));
}

#[test]
fn transport_fields() {
    let mut header = TcpHeader::new(0x1234, 0x5678, 0x9abc_def0, 1024);
    (header.acknowledgment_number, header.checksum) = (0x0fed_cba9, 0x1357);
    let flags = |set: fn(&mut TcpHeader)| {
        let mut header = header.clone();
        set(&mut header);
        tcp::field::FLAGS.u8(&header.to_bytes())
    };
    assert_eq!([flags(|h| h.fin = true), flags(|h| h.syn = true), flags(|h| h.rst = true)], [tcp::FIN, tcp::SYN, tcp::RST]);
    assert_eq!(flags(|h| h.ack = true), tcp::ACK);
    let bytes = header.to_bytes();
    assert_eq!((ports::field::SOURCE.u16(&bytes), ports::field::DESTINATION.u16(&bytes)), (0x1234, 0x5678));
    assert_eq!(ports::field::BOTH.u32(&bytes), 0x1234_5678);
    assert_eq!((tcp::field::SEQUENCE.u32(&bytes), tcp::field::ACKNOWLEDGMENT.u32(&bytes)), (0x9abc_def0, 0x0fed_cba9));
    assert_eq!((tcp::field::CHECKSUM.u16(&bytes), bytes.len()), (0x1357, tcp::HEADER_LEN));
    header.set_options(&[etherparse::TcpOptionElement::MaximumSegmentSize(9)]).unwrap();
    let bytes = header.to_bytes();
    assert_eq!(tcp::header_len(tcp::field::DATA_OFFSET.u8(&bytes)), bytes.len());

    let bytes = UdpHeader { source_port: 0x1234, destination_port: 0x5678, length: 0x9abc, checksum: 0xdef0 }.to_bytes();
    assert_eq!((ports::field::BOTH.u32(&bytes), bytes.len()), (0x1234_5678, udp::HEADER_LEN));
    assert_eq!((udp::field::LEN.u16(&bytes), udp::field::CHECKSUM.u16(&bytes)), (0x9abc, 0xdef0));
}

#[test]
fn icmp_fields() {
    let needed = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
    let bytes = Icmpv4Header { icmp_type: Icmpv4Type::DestinationUnreachable(needed), checksum: 0x1357 }.to_bytes();
    assert_eq!((bytes.len(), icmp::field::TYPE.u8(&bytes), icmp::field::CODE.u8(&bytes)), (icmp::HEADER_LEN, 3, 4));
    assert_eq!((icmp::field::CHECKSUM.u16(&bytes), icmp::field::NEXT_HOP_MTU.u16(&bytes)), (0x1357, 1400));
    let bytes = Icmpv6Header { icmp_type: Icmpv6Type::PacketTooBig { mtu: 70_000 }, checksum: 0x1357 }.to_bytes();
    assert_eq!((bytes.len(), icmpv6::field::TYPE.u8(&bytes), icmpv6::field::CODE.u8(&bytes)), (icmpv6::HEADER_LEN, 2, 0));
    assert_eq!((icmpv6::field::CHECKSUM.u16(&bytes), icmpv6::field::MTU.u32(&bytes)), (0x1357, 70_000));
}

#[test]
fn numbers_of_protocols() {
    let numbers = [
        (protocol::HOP_BY_HOP, IpNumber::IPV6_HEADER_HOP_BY_HOP),
        (protocol::ICMP, IpNumber::ICMP),
        (protocol::TCP, IpNumber::TCP),
        (protocol::UDP, IpNumber::UDP),
        (protocol::ROUTING, IpNumber::IPV6_ROUTE_HEADER),
        (protocol::FRAGMENT, IpNumber::IPV6_FRAGMENTATION_HEADER),
        (protocol::ICMPV6, IpNumber::IPV6_ICMP),
        (protocol::DESTINATION_OPTIONS, IpNumber::IPV6_DESTINATION_OPTIONS),
        (protocol::SCTP, IpNumber::SCTP),
    ];
    numbers.into_iter().for_each(|(ours, theirs)| assert_eq!(ours, theirs.0));
}

#[test]
fn a_field_is_read_where_the_data_reaches() {
    let field: Field<2> = Field::at(3);
    assert_eq!((field.get(&[0, 1, 2, 3, 4]), field.get(&[0, 1, 2, 3]), field.get(&[])), (Some([3, 4]), None, None));
    assert_eq!((field.start(), field.range(), field.after(14).range()), (3, 3..5, 17..19));
    let mut header = [0; 6];
    field.write(&mut header, [7, 8]);
    assert_eq!((header, field.read(&header), field.u16(&header)), ([0, 0, 0, 7, 8, 0], [7, 8], 0x0708));
}
