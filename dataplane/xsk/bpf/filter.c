// SPDX-License-Identifier: Apache-2.0
//
// The XDP filter: captures nomagic's frames and passes all others.
//
// One instance runs on each interface. It captures packets to Services (address, port, protocol), to cluster IPs and Service ranges as a
// whole (but for addresses that are the kernel's), and replies announced by fingerprint. Of these it drops those whose source is in the deny list; whatever else such a source sends goes
// to the kernel. Captured frames go to the AF_XDP socket of their queue while the worker that owns the queue is alive; see
// take() for the other case. On a redirect port (a pod's interface, a tunnel) they are redirected to the kernel's end of the internal pair,
// and arrive at the other end's socket. Later fragments follow their first fragment if it arrived before them. ICMP and unreadable frames go to
// the kernel, and so do frames of others: to other MAC addresses, to
// groups and in other VLANs. The kernel also gets frames with a wrong IPv4 header checksum, and counts them.

#include "maps.h"
#include "parse.h"

// ------------------------------------------------------------------------------------------------------ matching

// Whether the node has a socket for exactly this connection: its own, from before the Service had the port, or from that port. Listeners and
// unconnected UDP sockets do not count: there the Service comes first, as in kube-proxy.
INLINE int has_socket(struct xdp_md *ctx, const struct tuple *t)
{
	struct bpf_sock_tuple key = {};
	__u32 size = sizeof(key.ipv4);
	if (t->family == 4) {
		key.ipv4.saddr = TO_NETWORK_32(t->src[3]);
		key.ipv4.daddr = TO_NETWORK_32(t->dst[3]);
		key.ipv4.sport = TO_NETWORK_16(t->sport);
		key.ipv4.dport = TO_NETWORK_16(t->dport);
	} else {
		size = sizeof(key.ipv6);
#pragma unroll
		for (int i = 0; i < 4; i++) {
			key.ipv6.saddr[i] = TO_NETWORK_32(t->src[i]);
			key.ipv6.daddr[i] = TO_NETWORK_32(t->dst[i]);
		}
		key.ipv6.sport = TO_NETWORK_16(t->sport);
		key.ipv6.dport = TO_NETWORK_16(t->dport);
	}
	// The two types of sockets must not be read by one instruction, which the verifier refuses: the different instructions without effect keep the compiler from merging.
	int connected = 0;
	if (t->proto == 6) {
		struct bpf_sock *sock = bpf_skc_lookup_tcp(ctx, &key, size, BPF_F_CURRENT_NETNS, 0);
		if (!sock)
			return 0;
		connected = sock->state != BPF_TCP_LISTEN;
		asm volatile("%0 += 0" : "+r"(connected));
		bpf_sk_release(sock);
	} else if (t->proto == 17) {
		struct bpf_sock *sock = bpf_sk_lookup_udp(ctx, &key, size, BPF_F_CURRENT_NETNS, 0);
		if (!sock)
			return 0;
		connected = sock->state == BPF_TCP_ESTABLISHED;
		asm volatile("%0 ^= 0" : "+r"(connected));
		bpf_sk_release(sock);
	}
	return connected;
}

INLINE int is_service(struct xdp_md *ctx, const struct tuple *t)
{
	struct service key = {
		.words = { t->dst[0], t->dst[1], t->dst[2], t->dst[3] },
		.port = t->dport,
		.proto = t->proto,
		.family = t->family,
	};
	__u32 *rule = bpf_map_lookup_elem(&services, &key);
	if (!rule)
		return 0;
	return *rule != ON_KERNEL_ADDRESS || !has_socket(ctx, t);
}

// The key that finds the longest prefix of an address.
INLINE struct prefix whole_address(const __u32 words[4], __u8 family)
{
	struct prefix key = { .bits = 32 + 128, .family = { 0, 0, 0, family } };
	if (family == 4) {
		key.bits = 32 + 32;
		key.addr[0] = TO_HOST_32(words[3]);
	} else {
#pragma unroll
		for (int i = 0; i < 4; i++)
			key.addr[i] = TO_HOST_32(words[i]);
	}
	return key;
}

// Cluster IPs as a whole, and Service ranges: nomagic rejects packets to unused ports and addresses there. Not to the node's own addresses.
INLINE int is_service_address(const struct tuple *t, const struct address *dst)
{
	if (!bpf_map_lookup_elem(&addresses, dst)) {
		struct prefix key = whole_address(t->dst, t->family);
		if (!bpf_map_lookup_elem(&service_cidrs, &key))
			return 0;
	}
	return !bpf_map_lookup_elem(&kernel_addresses, dst);
}

// nomagic_core::deny. Counts the packet for the longest prefix that contains its source. Only for frames that are captured otherwise: a denied
// 0.0.0.0/0 must not cut off ssh.
INLINE int is_denied(const struct tuple *t)
{
	__u32 zero = 0;
	__u32 *count = bpf_map_lookup_elem(&denied_count, &zero);
	if (!count || !*count)
		return 0;
	struct prefix key = whole_address(t->src, t->family);
	struct denied *found = bpf_map_lookup_elem(&denied, &key);
	if (!found)
		return 0;
	__sync_fetch_and_add(&found->packets, 1);
	return 1;
}

INLINE __u64 two(__u32 high, __u32 low)
{
	return ((__u64)high << 32) | low;
}

// SipHash-1-3: nomagic_core::siphash.
struct sip {
	__u64 v0, v1, v2, v3;
};

#define ROTATE(x, bits) (((x) << (bits)) | ((x) >> (64 - (bits))))

INLINE void sip_round(struct sip *s)
{
	s->v0 += s->v1;
	s->v2 += s->v3;
	s->v1 = ROTATE(s->v1, 13) ^ s->v0;
	s->v3 = ROTATE(s->v3, 16) ^ s->v2;
	s->v0 = ROTATE(s->v0, 32) + s->v3;
	s->v2 += s->v1;
	s->v3 = ROTATE(s->v3, 21) ^ s->v0;
	s->v1 = ROTATE(s->v1, 17) ^ s->v2;
	s->v2 = ROTATE(s->v2, 32);
}

INLINE void sip_word(struct sip *s, __u64 word)
{
	s->v3 ^= word;
	sip_round(s);
	s->v0 ^= word;
}

// nomagic_core::filter::slot_of.
INLINE int is_announced_reply(const struct tuple *t)
{
	__u64 k0 = reply_key[0], k1 = reply_key[1];
	struct sip s = {
		k0 ^ 0x736f6d6570736575ull,
		k1 ^ 0x646f72616e646f6dull,
		k0 ^ 0x6c7967656e657261ull,
		k1 ^ 0x7465646279746573ull,
	};
	__u64 last = two((__u32)t->sport >> 8, ((__u32)t->sport << 24) | ((__u32)t->dport << 8) | t->proto);
	if (t->family == 6) {
		sip_word(&s, two(t->src[0], t->src[1]));
		sip_word(&s, two(t->src[2], t->src[3]));
		sip_word(&s, two(t->dst[0], t->dst[1]));
		sip_word(&s, two(t->dst[2], t->dst[3]));
		last |= 39ull << 56;
	} else {
		sip_word(&s, two(t->src[3], t->dst[3]));
		last |= 15ull << 56;
	}
	sip_word(&s, last);
	s.v2 ^= 0xff;
	sip_round(&s);
	sip_round(&s);
	sip_round(&s);
	__u64 h = s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
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

INLINE int is_ours(struct xdp_md *ctx, const struct tuple *t)
{
	struct address dst = {
		.words = { t->dst[0], t->dst[1], t->dst[2], t->dst[3] },
		.family = t->family,
	};
	return is_service(ctx, t) || is_announced_reply(t) || is_service_address(t, &dst);
}

INLINE struct fragment fragment_key(const struct tuple *t)
{
	struct fragment key = { .id = t->fragment_id, .proto = t->proto };
#pragma unroll
	for (int i = 0; i < 4; i++) {
		key.src[i] = t->src[i];
		key.dst[i] = t->dst[i];
	}
	return key;
}

// Whether a later fragment's first one was captured.
INLINE int is_rest_of_ours(const struct tuple *t)
{
	struct fragment key = fragment_key(t);
	return bpf_map_lookup_elem(&fragments, &key) != 0;
}

// A first fragment adds an entry for the later ones.
INLINE void expect_rest(const struct tuple *t)
{
	struct fragment key = fragment_key(t);
	__u32 known = 1;
	bpf_map_update_elem(&fragments, &key, &known, BPF_ANY);
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

// Redirects to the socket of this queue while the queue's worker is alive. If its heartbeat is stale, the frame is dropped for a grace
// period: a lost frame is only sent again, while a connection that reaches another NAT in the middle would be reset. After that the
// configuration decides.
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

// Returns a packet that the kernel sent into the internal port and no worker takes: redirects it out of the kernel's end, as if it had come
// from outside. The kernel then treats it as without nomagic, because only the node's own packets are routed here. Packets to addresses
// that are always routed here are not returned: they would loop until their TTL expires.
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
	// Back to the interface it was received on. XDP_TX would need an XDP program on the peer.
	return differs ? bpf_redirect(ctx->ingress_ifindex, 0) : XDP_PASS;
}

// Whether a frame is addressed to this interface alone. XDP runs before the kernel compares: a NIC in promiscuous mode and a switch that floods
// deliver others' frames too, and each gateway on the segment would serve them.
INLINE int is_addressed_here(const struct xdp_md *ctx, const void *frame)
{
	if (*(const __u8 *)frame & 1) // broadcast and groups
		return 0;
	__u64 dst = MAC_OF_FRAME(frame);
	__u32 zero = 0, ifindex = ctx->ingress_ifindex;
	struct port_macs *port = redirect_to ? bpf_map_lookup_elem(&redirect_macs, &ifindex) : bpf_map_lookup_elem(&macs, &zero);
	if (port && (dst == port->own || dst == port->other || port->other == ANY_UNICAST))
		return 1;
	int found = 0;
#pragma unroll
	for (int i = 0; i < MORE_MACS_MAX; i++)
		found |= more_macs[i] == dst;
	return found;
}

SEC("xdp")
int nomagic_filter(struct xdp_md *ctx)
{
	struct cursor c = { (void *)(long)ctx->data, (void *)(long)ctx->data_end };
	struct ethernet *eth = c.at;
	if ((void *)(eth + 1) > c.end)
		return count(PASS_UNREADABLE, XDP_PASS);
	if (take_everything) {
		if (eth->dst[0] & 1) // group addresses: ARP, neighbour and router discovery of the kernel's own end
			return count(PASS_NOT_OURS, XDP_PASS);
		int action = take(ctx);
		return action == XDP_PASS ? give_back(ctx) : action;
	}
	if (!is_addressed_here(ctx, c.at))
		return count(PASS_OTHER_MAC, XDP_PASS);
	struct tuple t = {};
	enum stat verdict = parse(&c, &t);
	if (verdict != TAKEN)
		return count(verdict, XDP_PASS);
	if (!(t.piece == LATER_FRAGMENT ? is_rest_of_ours(&t) : is_ours(ctx, &t)))
		return count(t.piece == WHOLE ? PASS_NOT_OURS : PASS_FRAGMENT, XDP_PASS);
	if (is_denied(&t))
		return count(DENIED, XDP_DROP);
	if (t.piece == FIRST_FRAGMENT)
		expect_rest(&t);
	return take(ctx);
}

// None of the helpers above requires a GPL-compatible program.
char LICENSE[] SEC("license") = "Apache-2.0";
