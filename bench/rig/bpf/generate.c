// SPDX-License-Identifier: Apache-2.0
//
// The live-frames generator: BPF_PROG_TEST_RUN runs it once a frame, and it makes each frame another one.
//
// `steps` is the order of flows and sizes that the profile gives, `flows` their headers as src/pktgen/template.rs writes them, without
// lengths, sequence numbers, time and checksums: those are filled in here, as Template::finish does.

#include "common.h"

#define TEMPLATE_LEN 96
#define STEPS_MAX (1 << 18)

struct flow {
	__u8 bytes[TEMPLATE_LEN];
	__u32 ip_sum;
	__u32 l4_sum;
	__u32 sequence;
	// The IP protocol in the low byte, and flags.
	__u32 kind;
};

// A TCP flow sends nothing but SYNs.
#define ALWAYS_SYN 0x100
// Each frame has another source: the template has port 0 and an address that ends in 16 zero bits.
#define FRESH 0x200

struct step {
	__u32 flow;
	__u32 len;
};

// Times are in 1/1024 ns from start_ns on. Userspace writes this only while the program does not run.
struct state {
	__u64 frames;
	__u64 bytes;
	__u64 failed;
	// Frames that were due and will not be caught up.
	__u64 forgone;
	__u64 start_ns;
	// No frame after this time, and no more than so many. Without a start the first frame sets both times.
	__u64 until_ns;
	__u64 duration_ns;
	__u64 limit;
	// From frame to frame; 0: as fast as possible.
	__u64 interval;
	// What may be due and is still caught up with; what is older is forgone.
	__u64 behind_max;
	// Looks at the clock at all.
	__u64 paced;
	// When the next frame is due, and from when on it may go.
	__u64 due;
	__u64 next;
	// When the latest frame was made.
	__u64 last_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct flow);
	__uint(max_entries, 1);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct step);
	__uint(max_entries, STEPS_MAX);
} steps SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct state);
	__uint(max_entries, 1);
} states SEC(".maps");

const volatile __u32 out_ifindex = 0;
const volatile __u32 step_count = 1;
const volatile __u32 ip_version = 4;

#define FIRST_PORT 1024
#define FRACTION 10
#define MILLISECOND (1000000ull << FRACTION)

INLINE __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

INLINE void store16(void *at, __u16 value)
{
	*(__u16 *)at = BE16(value);
}

// A pointer to `n` bytes at an offset, or 0.
#define AT(offset, n) ((void *)(long)ctx->data + (offset) + (n) <= (void *)(long)ctx->data_end ? (void *)(long)ctx->data + (offset) : 0)

INLINE int fill(struct xdp_md *ctx, struct state *state, struct flow *flow, __u32 len)
{
	__u64 *words = (__u64 *)flow->bytes;
#pragma unroll
	for (int i = 0; i < TEMPLATE_LEN / 8; i++) {
		__u64 *to = AT(i * 8, 8);
		// What is left is less than 8 bytes: the end of the time, which is written below, or padding.
		if (!to)
			break;
		*to = words[i];
	}
	__u32 tcp = (flow->kind & 0xff) == TCP;
	__u32 l4 = ETH_LEN + (ip_version == 4 ? 20 : 40);
	__u32 payload = l4 + (tcp ? 20 : 8);
	__u16 l4_len = len - l4;
	__u32 sequence = flow->sequence++;
	// 2^30 sources.
	__u16 host = flow->kind & FRESH ? 1 + ((sequence >> 15) & 0x7fff) : 0;
	__u16 port = flow->kind & FRESH ? FIRST_PORT + (sequence & 0x7fff) : 0;
	if (ip_version == 4) {
		__u8 *ip = AT(ETH_LEN, 20);
		if (!ip)
			return -1;
		store16(ip + 2, len - ETH_LEN);
		store16(ip + 10, fold(flow->ip_sum + len - ETH_LEN + host));
		if (host)
			store16(ip + 14, host);
	} else {
		__u8 *ip = AT(ETH_LEN, 40);
		if (!ip)
			return -1;
		store16(ip + 4, l4_len);
		if (host)
			store16(ip + 22, host);
	}
	__u64 now = bpf_ktime_get_ns();
	state->last_ns = now;
	__u8 *p = AT(payload & 0x7f, PAYLOAD_LEN);
	__u8 *h = AT(l4 & 0x7f, 20);
	if (!p || !h)
		return -1;
	*(__u32 *)(p + 6) = BE32(sequence);
	*(__u64 *)(p + 10) = BE64(now);
	if (port)
		store16(h, port);
	__u32 sum = flow->l4_sum + host + port + l4_len + (sequence >> 16) + (sequence & 0xffff);
	sum += (now >> 48) + ((now >> 32) & 0xffff) + ((now >> 16) & 0xffff) + (now & 0xffff);
	if (tcp) {
		__u16 flags = flow->kind & ALWAYS_SYN || sequence == 0 ? 0x5002 : 0x5018;
		*(__u32 *)(h + 4) = BE32(sequence);
		store16(h + 12, flags);
		store16(h + 16, fold(sum + (sequence >> 16) + (sequence & 0xffff) + flags));
	} else {
		__u16 checksum = fold(sum + l4_len);
		store16(h + 4, l4_len);
		store16(h + 6, checksum ? checksum : 0xffff);
	}
	return 0;
}

// Whether it is time for a frame. What is due is caught up with at 4/3 of the rate, but for bursts of up to a millisecond.
INLINE int its_time(struct state *state)
{
	__u64 ns = bpf_ktime_get_ns(), interval = state->interval;
	if (!state->start_ns) {
		state->start_ns = ns;
		state->until_ns = ns + state->duration_ns;
	}
	if (state->frames >= state->limit || ns >= state->until_ns)
		return 0;
	if (!interval)
		return 1;
	__u64 now = (ns - state->start_ns) << FRACTION;
	if (now < state->due || now < state->next)
		return 0;
	if (now - state->due > state->behind_max) {
		__u64 skipped = (now - state->due - state->behind_max) / interval;
		state->forgone += skipped;
		state->due += skipped * interval;
	}
	state->due += interval;
	if (now > MILLISECOND && state->next < now - MILLISECOND)
		state->next = now - MILLISECOND;
	state->next += interval - interval / 4;
	return 1;
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct state *state = bpf_map_lookup_elem(&states, &zero);
	if (!state)
		return XDP_ABORTED;
	if (state->paced && !its_time(state))
		return XDP_DROP;
	__u32 place = state->frames % step_count;
	state->frames++;
	struct step *step = bpf_map_lookup_elem(&steps, &place);
	struct flow *flow = step ? bpf_map_lookup_elem(&flows, &step->flow) : 0;
	if (!flow)
		goto failed;
	__u32 len = step->len;
	__u32 now = ctx->data_end - ctx->data;
	if (len != now && bpf_xdp_adjust_tail(ctx, (int)len - (int)now))
		goto failed;
	if (fill(ctx, state, flow, len))
		goto failed;
	state->bytes += len;
	return bpf_redirect(out_ifindex, 0);
failed:
	state->failed++;
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Apache-2.0";
