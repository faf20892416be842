// SPDX-License-Identifier: Apache-2.0
//
// Parses a frame like nomagic_core::parse, but only addresses and ports.

#pragma once

#include "types.h"

#define IPV6_EXTENSIONS_MAX 16

volatile const __u64 vlans[VLAN_IDS / 64] = {};     // a bit for each VLAN that belongs to the port; bit 0: priority tags

struct tuple {
	__u32 src[4];
	__u32 dst[4];
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 family; // 4 or 6
	__u8 piece;  // enum piece
	__u8 tcp_flags; // 0: no TCP, or cut short
	__u32 fragment_id;
};

enum piece {
	WHOLE,
	FIRST_FRAGMENT,
	LATER_FRAGMENT, // without ports
};

// The rest of the frame. `at` only moves forward, and each read is checked against `end`.
struct cursor {
	void *at;
	void *end;
};

#define READ(type, cursor, ptr)                      \
	type *ptr = (cursor)->at;                    \
	if ((void *)(ptr + 1) > (cursor)->end)       \
		return PASS_UNREADABLE

struct ethernet {
	__u8 dst[6];
	__u8 src[6];
	__be16 type;
} __attribute__((packed));

// The destination of a frame as `struct port_macs` has it. Not of a packed structure, which would be read byte by byte.
#define MAC_OF_FRAME(frame) (*(const __u32 *)(frame) | (__u64)((const __u16 *)(frame))[2] << 32)

struct vlan_tag {
	__be16 tci;
	__be16 type;
};

struct ipv4 {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_len;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 proto;
	__be16 checksum;
	__be32 src;
	__be32 dst;
};

struct ipv6 {
	__be32 version_class_flow;
	__be16 payload_len;
	__u8 next;
	__u8 hop_limit;
	__be32 src[4];
	__be32 dst[4];
};

struct ipv6_extension {
	__u8 next;
	__u8 len;       // fragment header: reserved
	__be16 detail;  // fragment header: offset and flags; routing header: type and segments left
};

struct ipv6_fragment {
	__u8 next;
	__u8 reserved;
	__be16 detail;
	__be32 id;
};

struct ports {
	__be16 source;
	__be16 dest;
};

#define TO_HOST_16(x) __builtin_bswap16(x)
#define TO_HOST_32(x) __builtin_bswap32(x)
#define TO_NETWORK_16(x) __builtin_bswap16(x)
#define TO_NETWORK_32(x) __builtin_bswap32(x)
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian machines"
#endif

#define TCP_FLAGS_AT 13
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

// Every parser returns TAKEN if it could read everything, else the counter with the reason for passing the frame.

INLINE enum stat parse_ports(struct cursor *c, __u8 proto, struct tuple *t)
{
	t->proto = proto;
	if (proto == 1 || proto == 58)
		return PASS_ICMP; // for errors, see quote.h
	if (proto != 6 && proto != 17 && proto != 132)
		return PASS_OTHER_PROTOCOL;
	if (t->piece == LATER_FRAGMENT)
		return TAKEN;
	READ(struct ports, c, ports);
	t->sport = TO_HOST_16(ports->source);
	t->dport = TO_HOST_16(ports->dest);
	const __u8 *tcp = c->at;
	if (proto == 6 && (void *)(tcp + TCP_FLAGS_AT + 1) <= c->end)
		t->tcp_flags = tcp[TCP_FLAGS_AT] & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK);
	return TAKEN;
}

#define IPV4_HEADER_MAX 60

// The checksum of an IPv4 header, options included: the ones' complement sum of all its words is 0xffff (RFC 1071). In 32-bit words: the order of
// bytes and the width do not matter to it. What the options say is read by nomagic_core::parse alone: lengths that add up are not for the verifier.
INLINE enum stat check_ipv4(const struct ipv4 *ip, __u32 header_len, const void *end)
{
	const __u32 *words = (const __u32 *)ip;
	__u64 sum = 0;
#pragma unroll
	for (int i = 0; i < (int)sizeof(*ip) / 4; i++)
		sum += words[i];
	if (header_len > sizeof(*ip)) {
#pragma unroll
		for (int i = sizeof(*ip) / 4; i < IPV4_HEADER_MAX / 4; i++) {
			if (i * 4u >= header_len)
				continue;
			if ((const void *)(words + i + 1) > end)
				return PASS_UNREADABLE;
			sum += words[i];
		}
	}
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum == 0xffff ? TAKEN : PASS_IPV4_CHECKSUM;
}

INLINE enum stat parse_ipv4(struct cursor *c, struct tuple *t)
{
	READ(struct ipv4, c, ip);
	__u32 header_len = (ip->version_ihl & 0x0f) * 4;
	if (ip->version_ihl >> 4 != 4 || header_len < sizeof(*ip))
		return PASS_UNREADABLE;
	__u16 fragment = TO_HOST_16(ip->fragment) & 0x3fff;
	if (fragment) {
		t->piece = fragment & 0x1fff ? LATER_FRAGMENT : FIRST_FRAGMENT;
		t->fragment_id = TO_HOST_16(ip->id);
	}
	t->family = 4;
	t->src[3] = TO_HOST_32(ip->src);
	t->dst[3] = TO_HOST_32(ip->dst);
	// All that is needed later is read before the checks: then the verifier goes on from all their ends in one state.
	__u8 proto = *(const volatile __u8 *)&ip->proto;
	c->at += header_len;
	enum stat sound = check_ipv4(ip, header_len, c->end);
	return sound == TAKEN ? parse_ports(c, proto, t) : sound;
}

INLINE enum stat parse_ipv6(struct cursor *c, struct tuple *t)
{
	READ(struct ipv6, c, ip);
	if ((TO_HOST_32(ip->version_class_flow) >> 28) != 6)
		return PASS_UNREADABLE;
	t->family = 6;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		t->src[i] = TO_HOST_32(ip->src[i]);
		t->dst[i] = TO_HOST_32(ip->dst[i]);
	}
	__u8 next = ip->next;
	c->at += sizeof(*ip);
#pragma unroll
	for (int i = 0; i <= IPV6_EXTENSIONS_MAX; i++) {
		if (next != 0 && next != 60 && next != 43 && next != 44)
			return parse_ports(c, next, t);
		READ(struct ipv6_extension, c, extension);
		__u16 detail = TO_HOST_16(extension->detail);
		__u32 len = (extension->len + 1) * 8;
		if (next == 43 && (detail & 0xff) != 0)
			return PASS_OTHER_PROTOCOL; // it has not reached its final destination yet
		if (next == 44) {
			READ(struct ipv6_fragment, c, fragment);
			if (detail & 0xfff9) {
				if (t->piece != WHOLE)
					return PASS_FRAGMENT;
				t->piece = detail & 0xfff8 ? LATER_FRAGMENT : FIRST_FRAGMENT;
				t->fragment_id = TO_HOST_32(fragment->id);
			}
			len = 8;
			if (t->piece == LATER_FRAGMENT)
				return parse_ports(c, extension->next, t);
		}
		next = extension->next;
		c->at += len;
	}
	return PASS_UNREADABLE;
}

INLINE enum stat parse(struct cursor *c, struct tuple *t)
{
	READ(struct ethernet, c, eth);
	__be16 type = eth->type;
	c->at += sizeof(*eth);
	if (type == TO_HOST_16(0x8100)) {
		READ(struct vlan_tag, c, tag);
		__u16 id = TO_HOST_16(tag->tci) & (VLAN_IDS - 1);
		if (!(vlans[id / 64] >> id % 64 & 1))
			return PASS_VLAN;
		type = tag->type;
		c->at += sizeof(*tag);
	}
	if (type == TO_HOST_16(0x0800))
		return parse_ipv4(c, t);
	if (type == TO_HOST_16(0x86dd))
		return parse_ipv6(c, t);
	if (type == TO_HOST_16(0x8100) || type == TO_HOST_16(0x88a8) || type == TO_HOST_16(0x9100))
		return PASS_VLAN; // a second tag, or one that is no customer VLAN's
	return PASS_NOT_IP;
}
