// SPDX-License-Identifier: Apache-2.0
//
// The counter at the far end: counts the generator's frames and their latency where a network card's frames would come in, and drops
// them. It is a tc program, not an XDP one: on a veth an XDP program would have frames of sockets copied first, which would be charged to
// who sent them.

#include "payload.h"

#define TC_ACT_OK 0
#define TC_ACT_SHOT 2
// Latency in 32 steps for each power of two of nanoseconds: 3 %.
#define STEP_BITS 5
#define LATENCIES (40 << STEP_BITS)
#define RUNS 2

struct counts {
	__u64 frames;
	__u64 bytes;
};

// By the lowest bit of the run, so that two kinds of traffic are told apart.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counts);
	__uint(max_entries, RUNS);
} counted SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, LATENCIES);
} latencies SEC(".maps");

// Userspace writes this while frames come.
struct watch {
	// Sends UDP frames over IPv4 back to where they came from, so that their flows have two directions.
	__u32 reflect;
	// Waits for the first frame to an IPv4 address in this range; 0: for none.
	__u32 low;
	__u32 high;
	__u32 pad;
	__u64 first_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct watch);
	__uint(max_entries, 1);
} watches SEC(".maps");

INLINE __u32 log2_of(__u64 value)
{
	__u32 log = 0;
#pragma unroll
	for (int bits = 32; bits; bits /= 2) {
		if (value >> bits) {
			value >>= bits;
			log += bits;
		}
	}
	return log;
}

INLINE void count_latency(__u8 *payload)
{
	__u64 ns = bpf_ktime_get_ns() - BE64(*(__u64 *)(payload + 10));
	__u32 log = log2_of(ns);
	__u32 place = log < STEP_BITS ? (__u32)ns : ((log - STEP_BITS + 1) << STEP_BITS) + (__u32)((ns >> (log - STEP_BITS)) & ((1 << STEP_BITS) - 1));
	if (place >= LATENCIES)
		place = LATENCIES - 1;
	__u64 *n = bpf_map_lookup_elem(&latencies, &place);
	if (n)
		(*n)++;
}

INLINE void look(struct watch *watch, __u8 *data)
{
	__u32 to = BE32(*(__u32 *)(data + ETH_LEN + 16));
	if (data[12] == 0x08 && to >= watch->low && to <= watch->high)
		watch->first_ns = bpf_ktime_get_ns();
}

// Both checksums stay right: nothing but the order of what is summed changes.
INLINE int reflect(struct __sk_buff *skb)
{
	__u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + ETH_LEN + 28 > end || data[12] != 0x08 || data[ETH_LEN + 9] != UDP)
		return TC_ACT_SHOT;
	__u32 *ip = (__u32 *)(data + ETH_LEN + 12), from = ip[0];
	__u16 *ports = (__u16 *)(data + ETH_LEN + 20), port = ports[0];
	ip[0] = ip[1];
	ip[1] = from;
	ports[0] = ports[1];
	ports[1] = port;
#pragma unroll
	for (int i = 0; i < 6; i++) {
		__u8 mac = data[i];
		data[i] = data[6 + i];
		data[6 + i] = mac;
	}
	return bpf_redirect(skb->ifindex, 0);
}

SEC("classifier")
int count(struct __sk_buff *skb)
{
	__u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u8 *payload = l4_payload(data, end);
	if (!payload || !is_ours(payload, end))
		return TC_ACT_OK;
	__u32 run = (payload[3] >> 4) & 1;
	struct counts *counts = bpf_map_lookup_elem(&counted, &run);
	if (!counts)
		return TC_ACT_OK;
	counts->frames++;
	counts->bytes += skb->len;
	count_latency(payload);
	__u32 zero = 0;
	struct watch *watch = bpf_map_lookup_elem(&watches, &zero);
	if (!watch)
		return TC_ACT_SHOT;
	if (watch->high && !watch->first_ns)
		look(watch, data);
	return watch->reflect ? reflect(skb) : TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
