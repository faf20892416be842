// SPDX-License-Identifier: Apache-2.0
//
// Recognises announced replies, and knows whether a worker takes them. Shared by the programs; nomagic_core::filter writes the fingerprints.

#pragma once

#include "parse.h"

#define BUCKET_SLOTS 16
#define WORKERS_MAX 64
#define DIRECT_BUCKETS 8192 // nomagic_core::filter::direct::BUCKETS

struct settings {
	__u32 layout;
	__u32 on_failure; // XDP_PASS or XDP_DROP
	__u64 fresh_ns;
	__u64 grace_ns;
};

struct bucket {
	__u32 fingerprints[BUCKET_SLOTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); // set at load time: a power of two of buckets, the key (src/reply_key.rs), and DIRECT_BUCKETS
	__type(key, __u32);
	__type(value, struct bucket);
} replies SEC(".maps");

// CLOCK_MONOTONIC in ns, one per worker; 0: never started.
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

// What became of a datagram's first captured or passed fragment, and so becomes of the others. Later fragments carry no ports: they are recognised by
// the fields that they share with the first one. LRU: the oldest entries are evicted.
struct fragment {
	__u32 src[4];
	__u32 dst[4];
	__u32 id;
	__u32 proto;
};

enum fate {
	UNDECIDED,
	PASSED,
	CAPTURED,
};

// An entry is `time << FATE_BITS | fate`, in units of 2^29 ns (0.54 s), and counts for 5 s: identifications are used again.
#define FATE_BITS 2
#define FATE_UNIT_SHIFT 29
#define FATE_AGE_MAX 10
#define FATE_TIME_MASK ((1u << (32 - FATE_BITS)) - 1)

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct fragment);
	__type(value, __u32);
} fragments SEC(".maps");

volatile const __u32 reply_mask = 0;       // buckets - 1
volatile const __u64 reply_key[2] = {};

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
CHECKED_ONCE __u64 reply_hash(const struct tuple *t)
{
	if (!t)
		return 0;
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
	return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}

INLINE __u32 fingerprint_of(__u64 hash)
{
	__u32 f = hash >> 32;
	return f ? f : 1; // 0: an empty place
}

CHECKED_ONCE int is_announced(__u64 hash)
{
	__u32 place = (__u32)hash & reply_mask;
	__u32 f = fingerprint_of(hash);
	struct bucket *bucket = bpf_map_lookup_elem(&replies, &place);
	if (!bucket)
		return 0;
	int found = 0;
#pragma unroll
	for (int i = 0; i < BUCKET_SLOTS; i++)
		found |= bucket->fingerprints[i] == f;
	return found;
}

INLINE int is_announced_reply(const struct tuple *t)
{
	return is_announced(reply_hash(t));
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

INLINE __u32 fate_time(void)
{
	return (bpf_ktime_get_coarse_ns() >> FATE_UNIT_SHIFT) & FATE_TIME_MASK;
}

INLINE enum fate fate_of(const struct fragment *key)
{
	__u32 *known = bpf_map_lookup_elem(&fragments, key);
	if (!known)
		return UNDECIDED;
	__u32 value = *known;
	// The coarse clock of this CPU may lag.
	if (((fate_time() + 1 - (value >> FATE_BITS)) & FATE_TIME_MASK) <= FATE_AGE_MAX + 1)
		return value & ((1 << FATE_BITS) - 1);
	bpf_map_delete_elem(&fragments, key);
	return UNDECIDED;
}

// A first fragment is captured, and so are the others from now on.
INLINE void expect_rest(const struct fragment *key)
{
	__u32 value = fate_time() << FATE_BITS | CAPTURED;
	bpf_map_update_elem(&fragments, key, &value, BPF_ANY);
}

// Whether a worker takes frames now.
enum life {
	NEVER_STARTED,
	ALIVE,
	STALE,  // within the grace period: a lost frame is only sent again, while a connection that reaches another NAT in the middle would be reset
	FAILED, // for longer: the configuration decides
};

INLINE enum life life_of(const __u32 *worker, const struct settings *s)
{
	volatile __u64 *heartbeat = bpf_map_lookup_elem(&heartbeats, worker);
	__u64 beat = heartbeat ? *heartbeat : 0;
	if (!beat)
		return NEVER_STARTED;
	__s64 age = bpf_ktime_get_coarse_ns() - beat; // slightly negative when the coarse clock lags
	if (age <= (__s64)s->fresh_ns)
		return ALIVE;
	return age <= (__s64)s->grace_ns ? STALE : FAILED;
}
