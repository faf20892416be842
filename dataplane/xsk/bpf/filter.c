// SPDX-License-Identifier: Apache-2.0
//
// The XDP filter: takes the frames that are nomagic's and passes everything else.
//
// One instance runs on each interface. Taken: packets to Services (address, port, protocol), to whole cluster IPs and
// Service ranges, to SNAT addresses within their port range, and replies announced by fingerprint. Taken frames go to the
// AF_XDP socket of their queue while the worker that owns the queue is alive; see take() for what happens when it is not. On a redirect
// port (a pod's interface, a tunnel) they go into the kernel's end of the internal pair, and come out at the other end's socket.
// Later fragments follow their first one, when it came before them. ICMP and whatever cannot be read stay with the kernel.

#include "maps.h"
#include "parse.h"

// ------------------------------------------------------------------------------------------------------ matching

INLINE int is_service(const struct tuple *t)
{
	struct service key = {
		.words = { t->dst[0], t->dst[1], t->dst[2], t->dst[3] },
		.port = t->dport,
		.proto = t->proto,
		.family = t->family,
	};
	return bpf_map_lookup_elem(&services, &key) != 0;
}

// Cluster IPs whole, and Service ranges: what nobody has there is nomagic's to refuse.
INLINE int is_service_address(const struct tuple *t, const struct address *dst)
{
	if (bpf_map_lookup_elem(&addresses, dst))
		return 1;
	struct prefix key = { .bits = 32 + 128, .family = { 0, 0, 0, t->family } };
	if (t->family == 4) {
		key.bits = 32 + 32;
		key.addr[0] = TO_HOST_32(t->dst[3]);
	} else {
#pragma unroll
		for (int i = 0; i < 4; i++)
			key.addr[i] = TO_HOST_32(t->dst[i]);
	}
	return bpf_map_lookup_elem(&service_cidrs, &key) != 0;
}

INLINE int is_snat_reply(const struct tuple *t, const struct address *dst)
{
	struct port_range *range = bpf_map_lookup_elem(&snat, dst);
	return range && t->dport >= range->first && t->dport <= range->last;
}

#define MIX 0x9e3779b97f4a7c15ull
#define FINISH 0x94d049bb133111ebull

INLINE __u64 mix(__u64 h, __u64 word)
{
	h = (h ^ word) * MIX;
	return h ^ (h >> 32);
}

INLINE __u64 two(__u32 high, __u32 low)
{
	return ((__u64)high << 32) | low;
}

// nomagic_core::filter::slot_of.
INLINE int is_announced_reply(const struct tuple *t)
{
	__u64 h = reply_seed ^ MIX;
	if (t->family == 6) {
		h = mix(h, two(t->src[0], t->src[1]));
		h = mix(h, two(t->src[2], t->src[3]));
		h = mix(h, two(t->dst[0], t->dst[1]));
		h = mix(h, two(t->dst[2], t->dst[3]));
	} else {
		h = mix(h, two(t->src[3], t->dst[3]));
	}
	h = mix(h, two(((__u32)t->sport << 16) | t->dport, t->proto));
	h *= FINISH;
	h ^= h >> 29;
	__u32 place = (__u32)h & reply_mask;
	__u32 f = h >> 32;
	if (f == 0)
		f = 1;

	struct bucket *bucket = bpf_map_lookup_elem(&replies, &place);
	if (!bucket)
		return 0;
	int found = 0;
#pragma unroll
	for (int i = 0; i < BUCKET_SLOTS; i++)
		found |= bucket->fingerprints[i] == f;
	return found;
}

INLINE int is_ours(const struct tuple *t)
{
	struct address dst = {
		.words = { t->dst[0], t->dst[1], t->dst[2], t->dst[3] },
		.family = t->family,
	};
	return is_service(t) || is_announced_reply(t) || is_snat_reply(t, &dst) || is_service_address(t, &dst);
}

// A first fragment leaves word for those after it.
INLINE int is_ours_in_pieces(const struct tuple *t)
{
	struct fragment key = { .id = t->fragment_id, .proto = t->proto };
#pragma unroll
	for (int i = 0; i < 4; i++) {
		key.src[i] = t->src[i];
		key.dst[i] = t->dst[i];
	}
	if (t->piece == LATER_FRAGMENT)
		return bpf_map_lookup_elem(&fragments, &key) != 0;
	if (!is_ours(t))
		return 0;
	__u32 known = 1;
	bpf_map_update_elem(&fragments, &key, &known, BPF_ANY);
	return 1;
}

// -------------------------------------------------------------------------------------------------------- action

INLINE int count(enum stat stat, int action)
{
	__u32 place = stat;
	__u64 *counter = bpf_map_lookup_elem(&stats, &place);
	if (counter)
		*counter += 1;
	return action;
}

// To the socket of this queue, while the queue's worker is alive. When its heartbeat is stale the frame is dropped for a
// grace period: a half-known connection that reaches another NAT would be reset, a lost frame is only sent again.
// After that the configuration decides.
INLINE int take(struct xdp_md *ctx)
{
	__u32 zero = 0, queue = ctx->rx_queue_index;
	__u32 *owner = bpf_map_lookup_elem(&owners, &queue);
	struct settings *s = bpf_map_lookup_elem(&settings, &zero);
	if (!owner || !s)
		return count(PASS_NEVER_STARTED, XDP_PASS);
	volatile __u64 *heartbeat = bpf_map_lookup_elem(&heartbeats, owner);
	__u64 beat = heartbeat ? *heartbeat : 0;
	if (!beat)
		return count(PASS_NEVER_STARTED, XDP_PASS);
	__s64 age = bpf_ktime_get_coarse_ns() - beat; // slightly negative when the coarse clock lags
	if (age <= (__s64)s->fresh_ns) {
		int action = redirect_to ? bpf_redirect(redirect_to, 0) : bpf_redirect_map(&xsks, queue, XDP_DROP);
		return count(action == XDP_REDIRECT ? TAKEN : DROPPED_NO_SOCKET, action);
	}
	if (age <= (__s64)s->grace_ns)
		return count(DROPPED_STALE, XDP_DROP);
	if (s->on_failure == XDP_DROP)
		return count(FAILED_CLOSED, XDP_DROP);
	return count(FAILED_OPEN, XDP_PASS);
}

// What the kernel has sent into the internal port and no worker takes: back out of the kernel's end, as if it had come from outside. There
// it goes on as without nomagic, since only what the node itself sends is led here; except for the addresses that always lead here, which
// would go round until their TTL is used up.
INLINE int give_back(struct xdp_md *ctx)
{
	struct cursor c = { (void *)(long)ctx->data, (void *)(long)ctx->data_end };
	struct tuple t = {};
	parse(&c, &t); // addresses are read even where ports are not
	if (!t.family)
		return XDP_PASS;
	__u32 differs = t.family == 4 ? t.dst[3] ^ internal_v4 : 0;
#pragma unroll
	for (int i = 0; i < 4; i++)
		differs |= t.family == 6 ? t.dst[i] ^ internal_v6[i] : 0;
	// Out of the interface that it came by. XDP_TX would wait at a peer that has no XDP program.
	return differs ? bpf_redirect(ctx->ingress_ifindex, 0) : XDP_PASS;
}

SEC("xdp")
int nomagic_filter(struct xdp_md *ctx)
{
	struct cursor c = { (void *)(long)ctx->data, (void *)(long)ctx->data_end };
	if (take_everything) {
		struct ethernet *eth = c.at;
		if ((void *)(eth + 1) > c.end)
			return count(PASS_UNREADABLE, XDP_PASS);
		if (eth->dst[0] & 1) // group addresses: ARP, neighbour and router discovery of the kernel's own end
			return count(PASS_NOT_OURS, XDP_PASS);
		int action = take(ctx);
		return action == XDP_PASS ? give_back(ctx) : action;
	}
	struct tuple t = {};
	enum stat verdict = parse(&c, &t);
	if (verdict != TAKEN)
		return count(verdict, XDP_PASS);
	if (t.piece != WHOLE)
		return is_ours_in_pieces(&t) ? take(ctx) : count(PASS_FRAGMENT, XDP_PASS);
	if (!is_ours(&t))
		return count(PASS_NOT_OURS, XDP_PASS);
	return take(ctx);
}

// None of the helpers above asks for a GPL-compatible program.
char LICENSE[] SEC("license") = "Apache-2.0";
