// SPDX-License-Identifier: Apache-2.0
//
// The sink's filter: takes the generator's frames (or, for a replay, all TCP and UDP), counts them by CPU, and hands them to the AF_XDP
// socket of their queue. Everything else goes to the kernel.

#include "payload.h"

struct counts {
	__u64 frames;
	__u64 bytes;
	// Frames with no socket to go to.
	__u64 unserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counts);
	__uint(max_entries, 1);
} counted SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 64);
} xsks SEC(".maps");

// Counted here and dropped: no socket sees the frames.
const volatile __u32 count_only = 0;
// All TCP and UDP, not only what has the payload header.
const volatile __u32 any_payload = 0;

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	__u32 zero = 0;
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u8 *payload = l4_payload(data, end);
	if (!payload || !(any_payload || is_ours(payload, end)))
		return XDP_PASS;
	struct counts *counts = bpf_map_lookup_elem(&counted, &zero);
	if (!counts)
		return XDP_ABORTED;
	counts->frames++;
	counts->bytes += ctx->data_end - ctx->data;
	if (count_only)
		return XDP_DROP;
	int action = bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_DROP);
	if (action != XDP_REDIRECT)
		counts->unserved++;
	return action;
}

char LICENSE[] SEC("license") = "Apache-2.0";
