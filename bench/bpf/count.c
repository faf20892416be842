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
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Apache-2.0";
