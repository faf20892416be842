// SPDX-License-Identifier: Apache-2.0
//
// Keys, values and constants of the programs, shared with src/filter.rs, src/program.rs and src/status.rs.

#pragma once

#include "bpf.h"

#define VLAN_IDS 4096

// An address as in nomagic_core::tuple: big-endian words in host order, IPv4 in the last one.
struct address {
	__u32 words[4];
	__u32 family; // 4 or 6
};

struct service {
	__u32 words[4];
	__u16 port;
	__u8 proto;
	__u8 family;
};

// Longest prefix match compares bytes in network order.
struct prefix {
	__u32 bits;
	__u8 family[4]; // 0, 0, 0, 4 or 6: always part of the match
	__be32 addr[4]; // IPv4 in the first one
};

// Values in `services`. ON_KERNEL_ADDRESS: its address is in `kernel_addresses`.
#define PLAIN_RULE 1
#define ON_KERNEL_ADDRESS 2

// Values in `addresses`. WHOLE_ADDRESS: every port is captured. OUTER_ADDRESS: a load balancer or external IP; with it, the index of the interface by
// which the kernel may send a packet for it to a router, ANY_INTERFACE for several ones, or 0.
#define WHOLE_ADDRESS 1
#define OUTER_ADDRESS 0x80000000u
#define ANY_INTERFACE 0x7fffffffu

// The indices of `stats`. nomagic_core::counters::XdpCounts lists the counters in the same order; a test compares them.
enum stat {
	PASS_NOT_OURS,
	PASS_OTHER_MAC,
	PASS_VLAN,
	PASS_NOT_IP,
	PASS_IPV4_CHECKSUM,
	PASS_FRAGMENT,
	PASS_ICMP,
	PASS_OTHER_PROTOCOL,
	PASS_UNREADABLE,
	PASS_NEVER_STARTED,
	FAILED_OPEN,
	TAKEN,
	DROPPED_NO_SOCKET,
	DROPPED_STALE,
	FAILED_CLOSED,
	DENIED,
	STAT_COUNT,
};
