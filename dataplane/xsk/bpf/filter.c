// SPDX-License-Identifier: Apache-2.0
//
// The XDP filter: takes the frames that are nomagic's and passes everything else.
//
// One instance runs on each interface. Taken: packets to Services (address, port, protocol), to whole cluster IPs and
// Service ranges, to SNAT addresses within their port range, and replies announced by fingerprint. Taken frames go to the
// AF_XDP socket of their queue while the worker that owns the queue is alive; see take() for what happens when it is not.
// Fragments, ICMP, SCTP and whatever cannot be read stay with the kernel.
//
// Maps and constants are shared with src/filter.rs, src/program.rs and nomagic_core::filter. A change of a map's layout
// needs a new LAYOUT there.

#include <linux/bpf.h>
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_redirect_map)(void *map, __u64 key, __u64 flags) = (void *)51;
static __u64 (*bpf_ktime_get_coarse_ns)(void) = (void *)160;

#define VLAN_TAGS_MAX 2
#define IPV6_EXTENSIONS_MAX 8
#define QUEUES_MAX 256
#define WORKERS_MAX 64
#define BUCKET_SLOTS 16

// ---------------------------------------------------------------------------------------------------------- maps

// An address as nomagic_core::tuple has it: big-endian words in host order, IPv4 in the last one.
struct address {
	__u32 words[4];
	__u32 family; // 4 or 6
};

struct service {
	__u32 words[4];
	__u16 port;
	__u8 proto;
	__u8 family;
};

// Longest prefix match compares bytes in network order.
struct prefix {
	__u32 bits;
	__u8 family[4]; // 0, 0, 0, 4 or 6: always part of the match
	__be32 addr[4]; // IPv4 in the first one
};

struct port_range {
	__u16 first;
	__u16 last;
};

struct settings {
	__u32 layout;
	__u32 on_failure; // XDP_PASS or XDP_DROP
	__u64 fresh_ns;
	__u64 grace_ns;
};

// The places of `stats`; the order is that of XdpCounters in src/status.rs.
enum stat {
	PASS_NOT_OURS,
	PASS_NOT_IP,
	PASS_FRAGMENT,
	PASS_ICMP,
	PASS_OTHER_PROTOCOL,
	PASS_UNREADABLE,
	PASS_NEVER_STARTED,
	FAILED_OPEN,
	TAKEN,
	DROPPED_NO_SOCKET,
	DROPPED_STALE,
	FAILED_CLOSED,
	STAT_COUNT,
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct service);
	__type(value, __u32);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct address);
	__type(value, __u32);
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct prefix);
	__type(value, __u32);
} service_cidrs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct address);
	__type(value, struct port_range);
} snat SEC(".maps");

struct bucket {
	__u32 fingerprints[BUCKET_SLOTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); // set when loaded: a power of two
	__type(key, __u32);
	__type(value, struct bucket);
} replies SEC(".maps");

// CLOCK_MONOTONIC in ns, one a worker; 0: never started.
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

// Those below are each interface's own.

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, QUEUES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} xsks SEC(".maps");

// Queue to worker.
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

volatile const __u32 reply_mask = 0;       // buckets - 1
volatile const __u32 reply_seed = 0;
volatile const __u32 take_everything = 0;  // the internal port: all unicast frames are nomagic's

// ------------------------------------------------------------------------------------------------------- parsing

struct tuple {
	__u32 src[4];
	__u32 dst[4];
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 family; // 4 or 6
};

// What is left of the frame. `at` only ever moves forward, and each read is checked against `end`.
struct cursor {
	void *at;
	void *end;
};

#define READ(type, cursor, ptr)                      \
	type *ptr = (cursor)->at;                    \
	if ((void *)(ptr + 1) > (cursor)->end)       \
		return PASS_UNREADABLE

struct ethernet {
	__u8 dst[6];
	__u8 src[6];
	__be16 type;
} __attribute__((packed));

struct vlan_tag {
	__be16 tci;
	__be16 type;
};

struct ipv4 {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_len;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 proto;
	__be16 checksum;
	__be32 src;
	__be32 dst;
};

struct ipv6 {
	__be32 version_class_flow;
	__be16 payload_len;
	__u8 next;
	__u8 hop_limit;
	__be32 src[4];
	__be32 dst[4];
};

struct ipv6_extension {
	__u8 next;
	__u8 len;       // fragment header: reserved
	__be16 detail;  // fragment header: offset and flags; routing header: type and segments left
};

struct ports {
	__be16 source;
	__be16 dest;
};

#define TO_HOST_16(x) __builtin_bswap16(x)
#define TO_HOST_32(x) __builtin_bswap32(x)
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian machines"
#endif

// Every parser returns TAKEN when it could read all, else the counter that names why the frame is passed.

INLINE enum stat parse_ports(struct cursor *c, __u8 proto, struct tuple *t)
{
	if (proto == 1 || proto == 58)
		return PASS_ICMP; // errors about our flows: to be matched by the packet they quote
	if (proto != 6 && proto != 17)
		return PASS_OTHER_PROTOCOL;
	READ(struct ports, c, ports);
	t->proto = proto;
	t->sport = TO_HOST_16(ports->source);
	t->dport = TO_HOST_16(ports->dest);
	return TAKEN;
}

INLINE enum stat parse_ipv4(struct cursor *c, struct tuple *t)
{
	READ(struct ipv4, c, ip);
	__u32 header_len = (ip->version_ihl & 0x0f) * 4;
	if (ip->version_ihl >> 4 != 4 || header_len < sizeof(*ip))
		return PASS_UNREADABLE;
	if (TO_HOST_16(ip->fragment) & 0x3fff)
		return PASS_FRAGMENT;
	t->family = 4;
	t->src[3] = TO_HOST_32(ip->src);
	t->dst[3] = TO_HOST_32(ip->dst);
	c->at += header_len;
	return parse_ports(c, ip->proto, t);
}

INLINE enum stat parse_ipv6(struct cursor *c, struct tuple *t)
{
	READ(struct ipv6, c, ip);
	if ((TO_HOST_32(ip->version_class_flow) >> 28) != 6)
		return PASS_UNREADABLE;
	t->family = 6;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		t->src[i] = TO_HOST_32(ip->src[i]);
		t->dst[i] = TO_HOST_32(ip->dst[i]);
	}
	__u8 next = ip->next;
	c->at += sizeof(*ip);
#pragma unroll
	for (int i = 0; i < IPV6_EXTENSIONS_MAX; i++) {
		if (next != 0 && next != 60 && next != 43 && next != 44)
			return parse_ports(c, next, t);
		READ(struct ipv6_extension, c, extension);
		__u16 detail = TO_HOST_16(extension->detail);
		__u32 len = (extension->len + 1) * 8;
		if (next == 43 && (detail & 0xff) != 0)
			return PASS_OTHER_PROTOCOL; // not at its destination yet
		if (next == 44) {
			if (detail & 0xfff9)
				return PASS_FRAGMENT;
			len = 8;
		}
		next = extension->next;
		c->at += len;
	}
	return PASS_UNREADABLE;
}

INLINE enum stat parse(struct cursor *c, struct tuple *t)
{
	READ(struct ethernet, c, eth);
	__be16 type = eth->type;
	c->at += sizeof(*eth);
#pragma unroll
	for (int i = 0; i < VLAN_TAGS_MAX; i++) {
		if (type != TO_HOST_16(0x8100) && type != TO_HOST_16(0x88a8) && type != TO_HOST_16(0x9100))
			break;
		READ(struct vlan_tag, c, tag);
		type = tag->type;
		c->at += sizeof(*tag);
	}
	if (type == TO_HOST_16(0x0800))
		return parse_ipv4(c, t);
	if (type == TO_HOST_16(0x86dd))
		return parse_ipv6(c, t);
	return PASS_NOT_IP;
}

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

INLINE __u32 mix(__u32 h, __u32 word)
{
	h = (h ^ word) * 0x85ebca6b;
	h ^= h >> 15;
	return ((h << 13) | (h >> 19)) * 0xc2b2ae35;
}

// nomagic_core::filter::slot_of.
INLINE int is_announced_reply(const struct tuple *t)
{
	__u32 h = reply_seed ^ 0x9e3779b9;
	if (t->family == 6) {
		h = mix(h, t->src[0]);
		h = mix(h, t->src[1]);
		h = mix(h, t->src[2]);
	}
	h = mix(h, t->src[3]);
	if (t->family == 6) {
		h = mix(h, t->dst[0]);
		h = mix(h, t->dst[1]);
		h = mix(h, t->dst[2]);
	}
	h = mix(h, t->dst[3]);
	h = mix(h, ((__u32)t->sport << 16) | t->dport);
	h = mix(h, t->proto);
	__u32 place = (h ^ (h >> 16)) & reply_mask;
	__u32 f = (h * 0x27d4eb2f) ^ reply_seed;
	f ^= f >> 15;
	f *= 0x165667b1;
	f ^= f >> 13;
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
		int action = bpf_redirect_map(&xsks, queue, XDP_DROP);
		return count(action == XDP_REDIRECT ? TAKEN : DROPPED_NO_SOCKET, action);
	}
	if (age <= (__s64)s->grace_ns)
		return count(DROPPED_STALE, XDP_DROP);
	if (s->on_failure == XDP_DROP)
		return count(FAILED_CLOSED, XDP_DROP);
	return count(FAILED_OPEN, XDP_PASS);
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
		return take(ctx);
	}
	struct tuple t = {};
	enum stat verdict = parse(&c, &t);
	if (verdict != TAKEN)
		return count(verdict, XDP_PASS);
	if (!is_ours(&t))
		return count(PASS_NOT_OURS, XDP_PASS);
	return take(ctx);
}

// None of the helpers above asks for a GPL-compatible program.
char LICENSE[] SEC("license") = "Apache-2.0";
