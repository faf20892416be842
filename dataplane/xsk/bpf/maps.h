// SPDX-License-Identifier: Apache-2.0
//
// The filter's maps, shared with src/filter.rs, src/program.rs and src/status.rs. A change of their layout needs a new LAYOUT in
// src/program.rs.

#pragma once

#include "types.h"

#define QUEUES_MAX 256
#define MORE_MACS_MAX 8

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 524288);
	__type(key, struct service);
	__type(value, __u32); // PLAIN_RULE or ON_KERNEL_ADDRESS
} services SEC(".maps");

// The addresses and protocols of `services`, with port 0: a fragment without ports may be for one of these.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 524288);
	__type(key, struct service);
	__type(value, __u32);
} service_protocols SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct address);
	__type(value, __u32); // WHOLE_ADDRESS or OUTER_ADDRESS
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct prefix);
	__type(value, __u32);
} service_cidrs SEC(".maps");

// Addresses that are the kernel's but for the ports in `services`: the node's own, and those of Services that are not served here.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct address);
	__type(value, __u32);
} kernel_addresses SEC(".maps");

// Not 0 if a source has this place (nomagic_core::filter::source_place) that replies were announced of: a fragment without ports may be a reply.
#define REPLY_SOURCES 65536

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, REPLY_SOURCES);
	__type(key, __u32);
	__type(value, __u64);
} reply_sources SEC(".maps");

struct denied {
	__u64 packets;          // dropped
	__u64 command_until_ns; // not read here: the control plane's note for the next process (src/denied.rs)
};

// The deny list, by source. One place more than the limit: before Linux 6.13 a full trie refuses to replace a value.
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536 + 1);
	__type(key, struct prefix);
	__type(value, struct denied);
} denied SEC(".maps");

// Prefixes in `denied`; if it is 0, the look-up is skipped. Not in `settings`: another layout would make the pins of the previous version unusable.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} denied_count SEC(".maps");

// Each interface has its own instance of the following maps.

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, QUEUES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

// The worker that owns each queue.
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

// The MAC addresses of an interface, first byte lowest, as MAC_OF_FRAME() reads them.
struct port_macs {
	__u64 own;
	__u64 other; // of the bridge or bond that it belongs to; NO_MAC; or ANY_UNICAST
};

// No frame has these: an address has 48 bits.
#define NO_MAC (~0ull)
#define ANY_UNICAST (~0ull - 1)

// Never pinned: each loaded program has its own, filled before it is attached.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct port_macs);
} macs SEC(".maps");

// The same for redirect ports, which share a program, by interface index; with room for those that are just being replaced.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct port_macs);
} redirect_macs SEC(".maps");

volatile const __u64 more_macs[MORE_MACS_MAX] = {}; // configured ones, else NO_MAC
volatile const __u32 take_everything = 0;  // the internal port: all unicast frames are nomagic's
volatile const __u32 refuse_unused = 0;    // what the kernel would send back from addresses that only Services have is captured
volatile const __u32 answer_ping = 0;      // ICMP to these addresses is captured
volatile const __u32 redirect_to = 0;      // a redirect port: captured frames go to this interface instead of a socket
// The internal port: addresses that the kernel always routes into it. Packets to them are not passed back to the kernel, because they would
// loop.
volatile const __u32 internal_v4 = 0;
volatile const __u32 internal_v6[4] = {};
