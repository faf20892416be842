// SPDX-License-Identifier: Apache-2.0
//
// The XDP filter: captures nomagic's frames and passes all others.
//
// One instance runs on each interface. It captures
//   - packets to Services (address, port, protocol), and to cluster IPs and Service ranges as a whole, but for addresses that are the kernel's;
//   - replies, and packets of direct connections, that are announced by fingerprint;
//   - what the kernel may send back to a router: packets to load balancer and external IPs that are for no Service's port;
//   - ICMP errors that quote a packet that nomagic has sent on.
// All fragments of a datagram go the same way, see is_fragment_ours(). Of these frames it drops those whose source is in the deny list; whatever else
// such a source sends goes to the kernel. So do other ICMP, unreadable frames, frames with a wrong IPv4 header checksum, and frames of others: to other
// MAC addresses, to groups and in other VLANs. Each outcome is counted. The answers of connections that pass are remembered, so that no flow gets the
// same answers (direct.h).
//
// Captured frames go to the AF_XDP socket of their queue while the worker that owns the queue is alive; see take() for the other case. On a redirect
// port (a pod's interface, a tunnel) they are redirected to the kernel's end of the internal pair, and arrive at the other end's socket.

#include "direct.h"
#include "maps.h"
#include "parse.h"
#include "quote.h"
#include "replies.h"

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

// What is known of an address: its value in `addresses`, WHOLE_ADDRESS in a Service range, or 0. Nothing of the node's own addresses.
INLINE __u32 known_address(const __u32 words[4], __u8 family)
{
	struct address addr = {
		.words = { words[0], words[1], words[2], words[3] },
		.family = family,
	};
	__u32 *found = bpf_map_lookup_elem(&addresses, &addr);
	__u32 known = found ? *found : 0;
	if (!known) {
		struct prefix key = whole_address(words, family);
		if (!bpf_map_lookup_elem(&service_cidrs, &key))
			return 0;
		known = WHOLE_ADDRESS;
	}
	return bpf_map_lookup_elem(&kernel_addresses, &addr) ? 0 : known;
}

// Whether the kernel may send packets for an address that only Services have out of the interface that they came in by, to a router. Behind redirect
// ports nobody knows.
INLINE int leads_back(const struct xdp_md *ctx, __u32 known)
{
	__u32 interface = known & ANY_INTERFACE;
	return !redirect_to && known & OUTER_ADDRESS && (interface == ANY_INTERFACE || interface == ctx->ingress_ifindex);
}

// Cluster IPs as a whole, and Service ranges: nomagic rejects packets to unused ports and addresses there. And what the kernel would send back.
INLINE int is_service_address(const struct xdp_md *ctx, const struct tuple *t)
{
	__u32 known = known_address(t->dst, t->family);
	return known == WHOLE_ADDRESS || leads_back(ctx, known);
}

// Whether a packet whose ports are unknown, for this reason, is for a Service's address, and is refused or answered there. Or is an answer from there that
// a router sends back, as it does not know the receiver. The workers look more closely, and leave the others to the kernel.
INLINE int is_unserved(const struct xdp_md *ctx, const struct tuple *t, enum stat reason)
{
	if (!t->family || reason == PASS_IPV4_CHECKSUM || !(refuse_unused || answer_ping))
		return 0;
	__u32 known = known_address(t->dst, t->family);
	if (!known)
		return reason == PASS_ICMP && refuse_unused && !redirect_to && known_address(t->src, t->family);
	if (answer_ping && reason == PASS_ICMP)
		return 1;
	return known == WHOLE_ADDRESS ? refuse_unused && !redirect_to : leads_back(ctx, known);
}

// nomagic_core::deny: the longest prefix that contains the source.
INLINE struct denied *denied_by(const struct tuple *t)
{
	__u32 zero = 0;
	__u32 *count = bpf_map_lookup_elem(&denied_count, &zero);
	if (!count || !*count)
		return 0;
	struct prefix key = whole_address(t->src, t->family);
	return bpf_map_lookup_elem(&denied, &key);
}

// Counts the packet for the prefix. Only for frames that are captured otherwise: a denied 0.0.0.0/0 must not cut off ssh.
INLINE int is_denied(const struct tuple *t)
{
	struct denied *found = denied_by(t);
	if (!found)
		return 0;
	__sync_fetch_and_add(&found->packets, 1);
	return 1;
}

// Sets the hash of a packet that is not.
INLINE int is_ours(struct xdp_md *ctx, const struct tuple *t, __u64 *hash)
{
	if (is_service(ctx, t))
		return 1;
	*hash = reply_hash(t);
	return is_announced(*hash) || is_service_address(ctx, t);
}

// Whether a datagram may be nomagic's, as far as its addresses and protocol tell.
INLINE int may_be_ours(const struct xdp_md *ctx, const struct tuple *t)
{
	struct service key = {
		.words = { t->dst[0], t->dst[1], t->dst[2], t->dst[3] },
		.proto = t->proto,
		.family = t->family,
	};
	if (bpf_map_lookup_elem(&service_protocols, &key) || is_service_address(ctx, t))
		return 1;
	// nomagic_core::filter::source_place.
	__u32 place = ((t->src[0] ^ t->src[1] ^ t->src[2] ^ t->src[3]) * 0x9e3779b1u) >> 16;
	__u64 *replies_come = bpf_map_lookup_elem(&reply_sources, &place);
	return replies_come && *replies_come;
}

// Whether a fragment is captured; `ours`: it is a first one that is nomagic's. The first fragment of a datagram that comes decides about all, but for
// a first one with ports: that it is nomagic's is always right. A later one that comes before it is captured if it may be nomagic's, and so is then the
// first one, whatever its ports: its worker says that it is not nomagic's, and the kernel gets them all.
INLINE int is_fragment_ours(const struct xdp_md *ctx, const struct tuple *t, int ours)
{
	struct fragment key = fragment_key(t);
	// What comes of a denied source without its first fragment is the kernel's.
	int is_denied_source = denied_by(t) != 0;
	if (ours) {
		if (!is_denied_source)
			expect_rest(&key);
		return 1;
	}
	enum fate fate = fate_of(&key);
	if (fate == UNDECIDED && !is_denied_source && may_be_ours(ctx, t)) {
		fate = t->piece == FIRST_FRAGMENT ? PASSED : CAPTURED;
		__u32 value = fate_time() << FATE_BITS | fate;
		// Another queue may have one of the others at this moment.
		if (bpf_map_update_elem(&fragments, &key, &value, BPF_NOEXIST))
			fate = fate_of(&key);
	}
	return fate == CAPTURED && !(is_denied_source && t->piece == FIRST_FRAGMENT);
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

// Redirects to the socket of this queue while the queue's worker is alive.
INLINE int take(struct xdp_md *ctx)
{
	__u32 zero = 0, queue = ctx->rx_queue_index;
	__u32 *owner = bpf_map_lookup_elem(&owners, &queue);
	struct settings *s = bpf_map_lookup_elem(&settings, &zero);
	if (!owner || !s)
		return count(PASS_NEVER_STARTED, XDP_PASS);
	switch (life_of(owner, s)) {
	case NEVER_STARTED:
		return count(PASS_NEVER_STARTED, XDP_PASS);
	case ALIVE: {
		int action = redirect_to ? bpf_redirect(redirect_to, 0) : bpf_redirect_map(&xsks, queue, XDP_DROP);
		return count(action == XDP_REDIRECT ? TAKEN : DROPPED_NO_SOCKET, action);
	}
	case STALE:
		return count(DROPPED_STALE, XDP_DROP);
	default:
		return s->on_failure == XDP_DROP ? count(FAILED_CLOSED, XDP_DROP) : count(FAILED_OPEN, XDP_PASS);
	}
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

// Takes a packet, unless its source is denied.
INLINE int capture(struct xdp_md *ctx, const struct tuple *t)
{
	return is_denied(t) ? count(DENIED, XDP_DROP) : take(ctx);
}

// An ICMP error is for the sender of the packet that it quotes, and captured if a packet to that sender is: an announced reply, or one to a Service. All
// other ICMP is the kernel's, but for what is_unserved().
INLINE int filter_icmp(struct xdp_md *ctx, struct cursor *c, const struct tuple *t)
{
	struct tuple back = {};
	__u64 hash;
	int ours = parse_quote((void *)(long)ctx->data, c, t, &back) == TAKEN && is_ours(ctx, &back, &hash);
	return ours || is_unserved(ctx, t, PASS_ICMP) ? capture(ctx, t) : count(PASS_ICMP, XDP_PASS);
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

// With SEGMENTS the kernel also delivers packets that lie in several buffers (jumbo frames). Their headers are in the first, which is all that is read.
#ifdef SEGMENTS
#define SECTION "xdp.frags"
#else
#define SECTION "xdp"
#endif

SEC(SECTION)
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
	if (verdict == PASS_ICMP)
		return filter_icmp(ctx, &c, &t);
	if (verdict != TAKEN)
		return is_unserved(ctx, &t, verdict) ? capture(ctx, &t) : count(verdict, XDP_PASS);
	__u64 hash = 0;
	int ours = t.piece != LATER_FRAGMENT && (is_ours(ctx, &t, &hash) || would_be_answered_to_a_flow(&t));
	if (t.piece != WHOLE)
		ours = is_fragment_ours(ctx, &t, ours);
	if (!ours) {
		if (t.piece != LATER_FRAGMENT)
			note_direct(&t, hash);
		return count(t.piece == WHOLE ? PASS_NOT_OURS : PASS_FRAGMENT, XDP_PASS);
	}
	if (is_denied(&t))
		return count(DENIED, XDP_DROP);
	return take(ctx);
}

// None of the helpers above requires a GPL-compatible program.
char LICENSE[] SEC("license") = "Apache-2.0";
