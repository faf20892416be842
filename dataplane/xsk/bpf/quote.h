// SPDX-License-Identifier: Apache-2.0
//
// Reads the packet that an ICMP error quotes, like nomagic_core::icmp: only addresses and ports.

#pragma once

#include "parse.h"

#define QUOTED_EXTENSIONS_MAX 8 // nomagic_core::icmp

struct icmp {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 rest;
};

// What an error quotes of the transport header at least.
struct quoted_transport {
	struct ports ports;
	__be32 rest;
};

// Unreachable, time exceeded, parameter problem; too big has a type of its own in ICMPv6.
INLINE int is_icmp_error(const struct icmp *icmp, __u8 family)
{
	__u8 type = icmp->type;
	return family == 4 ? type == 3 || type == 11 || type == 12 : type >= 1 && type <= 4;
}

// All of these fill `back` with the tuple of a packet to the quoted one's sender: source and destination are swapped.

INLINE enum stat quoted_ports(struct cursor *c, __u8 proto, struct tuple *back)
{
	if (proto != 6 && proto != 17 && proto != 132)
		return PASS_OTHER_PROTOCOL;
	READ(struct quoted_transport, c, transport);
	back->proto = proto;
	back->sport = TO_HOST_16(transport->ports.dest);
	back->dport = TO_HOST_16(transport->ports.source);
	return TAKEN;
}

// Lengths and checksum in the quoted header do not count.
INLINE enum stat quoted_ipv4(struct cursor *c, struct tuple *back)
{
	READ(struct ipv4, c, ip);
	__u32 header_len = (ip->version_ihl & 0x0f) * 4;
	if (ip->version_ihl >> 4 != 4 || header_len < sizeof(*ip))
		return PASS_UNREADABLE;
	if (TO_HOST_16(ip->fragment) & 0x1fff)
		return PASS_FRAGMENT;
	back->src[3] = TO_HOST_32(ip->dst);
	back->dst[3] = TO_HOST_32(ip->src);
	__u8 proto = ip->proto;
	c->at += header_len;
	return quoted_ports(c, proto, back);
}

INLINE enum stat quoted_ipv6(struct cursor *c, struct tuple *back)
{
	READ(struct ipv6, c, ip);
	if ((TO_HOST_32(ip->version_class_flow) >> 28) != 6)
		return PASS_UNREADABLE;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		back->src[i] = TO_HOST_32(ip->dst[i]);
		back->dst[i] = TO_HOST_32(ip->src[i]);
	}
	__u8 next = ip->next;
	c->at += sizeof(*ip);
#pragma unroll
	for (int i = 0; i < QUOTED_EXTENSIONS_MAX; i++) {
		if (next != 0 && next != 60 && next != 43 && next != 44)
			return quoted_ports(c, next, back);
		READ(struct ipv6_extension, c, extension);
		__u16 detail = TO_HOST_16(extension->detail);
		if (next == 43 && (detail & 0xff) != 0)
			return PASS_OTHER_PROTOCOL;
		if (next == 44 && (detail & 0xfff8) != 0)
			return PASS_FRAGMENT;
		c->at += next == 44 ? 8 : (extension->len + 1) * 8;
		next = extension->next;
	}
	return PASS_UNREADABLE;
}

// The furthest that parse() goes: the longest extension headers, and what is in front of them.
#define ICMP_OFFSET_MAX (IPV6_EXTENSIONS_MAX * 2048 + 64)

// Reads what follows an IP header whose packet, `outer`, is not TCP, UDP or SCTP. TAKEN: it is an error about a packet that was sent from the
// address that the error is for. `start`: the frame.
INLINE enum stat parse_quote(void *start, struct cursor *c, const struct tuple *outer, struct tuple *back)
{
	if (outer->piece != WHOLE || outer->proto != (outer->family == 4 ? 1 : 58))
		return PASS_ICMP;
	// The verifier forgets how parse() came here, as a difference of pointers may be any number. Else it would go through the quote once for each
	// way through the outer headers: ten times the steps.
	__u64 offset = c->at - start;
	asm volatile("" : "+r"(offset));
	if (offset > ICMP_OFFSET_MAX)
		return PASS_ICMP;
	c->at = start + offset;
	READ(struct icmp, c, icmp);
	if (!is_icmp_error(icmp, outer->family))
		return PASS_ICMP;
	c->at += sizeof(*icmp);
	back->family = outer->family;
	enum stat quote = outer->family == 4 ? quoted_ipv4(c, back) : quoted_ipv6(c, back);
	if (quote != TAKEN)
		return quote;
	__u32 differs = 0;
#pragma unroll
	for (int i = 0; i < 4; i++)
		differs |= outer->dst[i] ^ back->dst[i];
	return differs ? PASS_ICMP : TAKEN;
}
