// SPDX-License-Identifier: Apache-2.0
//
// Connections between clients and endpoints that pass: see nomagic_core::filter::direct.

#pragma once

#include "replies.h"

INLINE struct tuple reversed(const struct tuple *t)
{
	struct tuple r = { .sport = t->dport, .dport = t->sport, .proto = t->proto, .family = t->family };
#pragma unroll
	for (int i = 0; i < 4; i++) {
		r.src[i] = t->dst[i];
		r.dst[i] = t->src[i];
	}
	return r;
}

// Remembers connections that pass by, from client to endpoint directly, by the fingerprints of their answers: those of a flow from the same port
// to the same endpoint would be the same (nomagic_core::filter::direct). A TCP connection is remembered from its SYN+ACK to a FIN or RST. If two CPUs
// write to a bucket at the same time, one of the connections may be forgotten. These buckets come after those of the announced replies and the key.
CHECKED_ONCE int note_direct(const struct tuple *t, __u64 hash)
{
	if (!t)
		return 0;
	__u64 ends = t->tcp_flags & (TCP_FIN | TCP_RST);
	if (t->proto == 6 && !ends && (t->tcp_flags & (TCP_SYN | TCP_ACK)) != (TCP_SYN | TCP_ACK))
		return 0;
	__u32 place = reply_mask + 2 + ((__u32)hash & (DIRECT_BUCKETS - 1));
	__u32 f = fingerprint_of(hash);
	struct bucket *bucket = bpf_map_lookup_elem(&replies, &place);
	if (!bucket)
		return 0;
	// Any, an empty one, or its own. Without branches, which would double the verifier's states at each place.
	__u64 at = hash >> 28 & (BUCKET_SLOTS - 1), known = 0;
#pragma clang loop unroll(disable)
	for (__u64 i = 0; i < BUCKET_SLOTS; i++) {
		__u64 word = bucket->fingerprints[i];
		__u64 empty = (word - 1) >> 63, same = ((word ^ f) - 1) >> 63;
		asm volatile("" : "+r"(empty), "+r"(same));
		__u64 here = (empty & ~known) | same;
		at ^= (at ^ i) & -(here & 1);
		known |= same;
	}
	if (ends ? known : !known)
		bucket->fingerprints[at & (BUCKET_SLOTS - 1)] = ends ? 0 : f;
	return 0;
}

// Whether a packet opens a connection to an endpoint itself whose answers would be taken for those of a flow: nomagic gives it another source
// port (pipeline/direct.rs), and announces its other packets.
INLINE int would_be_answered_to_a_flow(const struct tuple *t)
{
	if (t->tcp_flags != TCP_SYN)
		return 0;
	struct tuple answer = reversed(t);
	return is_announced_reply(&answer);
}
