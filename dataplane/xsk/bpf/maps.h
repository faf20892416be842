// SPDX-License-Identifier: Apache-2.0
//
// The filter's maps, shared with src/filter.rs, src/program.rs, src/status.rs and nomagic_core::filter. A change of their
// layout needs a new LAYOUT in src/program.rs.

#pragma once

#include "bpf.h"

#define QUEUES_MAX 256
#define WORKERS_MAX 64
#define BUCKET_SLOTS 16

// An address as nomagic_core::tuple has it: big-endian words in host order, IPv4 in the last one.
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

struct port_range {
	__u16 first;
	__u16 last;
};

struct settings {
	__u32 layout;
	__u32 on_failure; // XDP_PASS or XDP_DROP
	__u64 fresh_ns;
	__u64 grace_ns;
};

// The places of `stats`: nomagic_core::counters::XdpCounts lists them in the same order, which a test compares.
enum stat {
	PASS_NOT_OURS,
	PASS_NOT_IP,
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
	STAT_COUNT,
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct service);
	__type(value, __u32);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct address);
	__type(value, __u32);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct prefix);
	__type(value, __u32);
} service_cidrs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct address);
	__type(value, struct port_range);
} snat SEC(".maps");

struct bucket {
	__u32 fingerprints[BUCKET_SLOTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); // set when loaded: a power of two
	__type(key, __u32);
	__type(value, struct bucket);
} replies SEC(".maps");

// CLOCK_MONOTONIC in ns, one a worker; 0: never started.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, WORKERS_MAX);
	__type(key, __u32);
	__type(value, __u64);
} heartbeats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

// Those below are each interface's own.

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, QUEUES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

// Later fragments carry no ports: those whose first fragment was taken are known by what they share with it. The oldest make room.
struct fragment {
	__u32 src[4];
	__u32 dst[4];
	__u32 id;
	__u32 proto;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct fragment);
	__type(value, __u32);
} fragments SEC(".maps");

// Queue to worker.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, QUEUES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} owners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, STAT_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} stats SEC(".maps");

volatile const __u32 reply_mask = 0;       // buckets - 1
volatile const __u32 reply_seed = 0;
volatile const __u32 take_everything = 0;  // the internal port: all unicast frames are nomagic's
volatile const __u32 redirect_to = 0;      // a redirect port: taken frames go to this interface instead of a socket
// The internal port: the kernel routes these addresses into it, whoever sends there. It does not get such packets back.
volatile const __u32 internal_v4 = 0;
volatile const __u32 internal_v6[4] = {};
