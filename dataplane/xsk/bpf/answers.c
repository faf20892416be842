// SPDX-License-Identifier: Apache-2.0
//
// Captures answers that the kernel sends out of a port or a redirect port: those of endpoints on the node's own network, and of pods behind
// interfaces that nomagic does not look at. Without it such an endpoint could see nothing of its client but an address that the kernel routes
// to nomagic. Runs where packets leave an interface (TCX, Linux 6.6). What a worker sends by AF_XDP does not pass here.
//
// An ICMP error about a packet to such an endpoint is an answer as well: the kernel makes it, of a closed port for example.
//
// An answer is redirected into the kernel's end of the internal pair, like the answer of a pod behind a redirect port. Everything else passes
// untouched, and other programs on the interface decide about it.

#include <linux/pkt_cls.h>

#include "parse.h"
#include "quote.h"
#include "replies.h"

// Ethernet with a tag, IPv6 with some extension headers, ports.
#define HEADERS_LEN 128

enum answers {
	ANSWERS_TAKEN,
	ANSWERS_DROPPED,
	ANSWERS_COUNT,
};

// The worker of the internal port's queue.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} answers_owner SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ANSWERS_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} answers_count SEC(".maps");

volatile const __u32 redirect_to = 0; // the kernel's end of the internal pair

INLINE int count(enum answers place, int action)
{
	__u32 key = place;
	__u64 *counter = bpf_map_lookup_elem(&answers_count, &key);
	if (counter)
		*counter += 1;
	return action;
}

// TAKEN: `t` is the tuple of an answer, if it is one; of an ICMP error, that of a packet that its receiver would get back.
INLINE enum stat parse_skb(struct __sk_buff *skb, struct tuple *t)
{
	void *start = (void *)(long)skb->data;
	struct cursor c = { start, (void *)(long)skb->data_end };
	enum stat verdict = parse(&c, t);
	if (verdict != PASS_ICMP)
		return verdict;
	struct tuple outer = *t;
	*t = (struct tuple){};
	return parse_quote(start, &c, &outer, t);
}

SEC("classifier")
int nomagic_answers(struct __sk_buff *skb)
{
	if (skb->vlan_present)
		return TC_ACT_UNSPEC;
	struct tuple t = {};
	enum stat verdict = parse_skb(skb, &t);
	if (verdict == PASS_UNREADABLE) {
		// Headers of a forwarded packet may lie in pages. Not before: it copies the headers of every packet that shares its memory.
		__u32 len = skb->len;
		if (bpf_skb_pull_data(skb, len < HEADERS_LEN ? len : HEADERS_LEN))
			return TC_ACT_UNSPEC;
		t = (struct tuple){};
		verdict = parse_skb(skb, &t);
	}
	if (verdict != TAKEN)
		return TC_ACT_UNSPEC;
	// The kernel sends fragments in order.
	struct fragment datagram = fragment_key(&t);
	if (!(t.piece == LATER_FRAGMENT ? fate_of(&datagram) == CAPTURED : is_announced_reply(&t)))
		return TC_ACT_UNSPEC;
	__u32 zero = 0;
	__u32 *owner = bpf_map_lookup_elem(&answers_owner, &zero);
	struct settings *s = bpf_map_lookup_elem(&settings, &zero);
	if (!owner || !s)
		return TC_ACT_UNSPEC;
	switch (life_of(owner, s)) {
	case NEVER_STARTED:
		return TC_ACT_UNSPEC;
	case ALIVE:
		if (t.piece == FIRST_FRAGMENT)
			expect_rest(&datagram);
		return count(ANSWERS_TAKEN, bpf_redirect(redirect_to, 0));
	case STALE:
		return count(ANSWERS_DROPPED, TC_ACT_SHOT);
	default:
		return s->on_failure == XDP_DROP ? count(ANSWERS_DROPPED, TC_ACT_SHOT) : TC_ACT_UNSPEC;
	}
}

// None of the helpers above requires a GPL-compatible program.
char LICENSE[] SEC("license") = "Apache-2.0";
