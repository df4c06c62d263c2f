/* SPDX-License-Identifier: Apache-2.0 */
/* Sends to the AF_XDP socket of the receiving queue what belongs to starnet, and all else to the kernel, so that
 * ssh, QUIC, ARP and everything else on the interface keep working:
 *
 *   UDP and TCP to one of our addresses, destination port in the reserved range or forwarded
 *   ICMP echo and timestamp replies to one of our addresses, identifier in the range
 *   ICMP errors to one of our addresses that quote a packet of ours: source address ours, and source port (or
 *     identifier of such a request) in the range or forwarded
 *   fragments without ports to one of our addresses, if the node translates, unless the fragment that had the
 *     ports was the kernel's
 *   on an inside interface of a gateway: what its hosts want routed on, that is, all unicast that is not for
 *     this machine itself
 *   on an outside interface of a gateway: what comes from networks that are exempt from translation, and is
 *     not for this machine itself
 *
 * The same of IPv6, where the node translates that: UDP, TCP, echo replies and errors to its outside addresses (forwarded
 * ports included), and fragments of them, what inside hosts want routed on (the NAT64 prefix included), and what comes from exempt networks.
 * Neighbour discovery, multicast and what is of one link alone are the kernel's, and so is what is for us and has
 * extension headers other than one that makes it a fragment.
 *
 * It decides; it does not validate. Checksums and everything behind the fields it reads are the worker's business. What
 * it cannot read (cut short, no IP, behind a VLAN tag) is the kernel's.
 *
 * Where no socket is bound to the queue the packet goes to the kernel too.
 */
#include "bpf.h"

/* One counter each. The order is known to `Verdict` in src/dataplane/driver/xdp/program.rs. */
enum verdict {
	XSK_UDP,
	XSK_TCP,
	XSK_ICMP_QUERY,
	XSK_ICMP_ERROR,
	XSK_FRAGMENT,
	XSK_ROUTED,
	XSK_EXEMPT,
	PASS_NOT_IPV4,
	PASS_MALFORMED,
	PASS_ADDRESS,
	PASS_FRAGMENT,
	PASS_PROTOCOL,
	PASS_PORT,
	PASS_ICMP_TYPE,
	PASS_ICMP_IDENTIFIER,
	PASS_ICMP_QUOTE,
	PASS_LOCAL,
	PASS_NOT_UNICAST,
	VERDICTS,
};

/* Which side of the gateway the interface is on: `Realm` in src/dataplane/gateway.rs. */
enum realm { NEITHER, INSIDE, OUTSIDE };
const volatile u8 realm = NEITHER;

/* The node translates: fragments without ports may be its. */
const volatile u8 takes_fragments = 0;

/* The node translates IPv6: without that the kernel has all of it. */
const volatile u8 takes_ip6 = 0;

/* Addresses and ports in keys are in network byte order; where the value is a u8 it says nothing. */

/* Ports and ICMP identifiers, host byte order, both ends included. */
struct range {
	u16 first;
	u16 last;
};

/* Our addresses, and what is reserved of each. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 128);
	__type(key, u32);
	__type(value, struct range);
} addresses SEC(".maps");

struct forwarded {
	u32 address;
	u16 port;
	u8 protocol;
	u8 zero;
};

/* Ports of our addresses outside the reserved range that a gateway forwards to inside hosts. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct forwarded);
	__type(value, u8);
} forwarded SEC(".maps");

/* Every address of this machine, those of networks and broadcasts included: not to be routed on. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, u32);
	__type(value, u8);
} local SEC(".maps");

struct prefix {
	u32 length;
	u32 address;
};

/* Networks that a gateway routes to and from without translation. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix);
	__type(value, u8);
} exempt SEC(".maps");

struct ip6_address {
	u32 words[4];
};

/* The same four of IPv6. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 128);
	__type(key, struct ip6_address);
	__type(value, struct range);
} addresses6 SEC(".maps");

struct forwarded6 {
	struct ip6_address address;
	u16 port;
	u8 protocol;
	u8 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct forwarded6);
	__type(value, u8);
} forwarded6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct ip6_address);
	__type(value, u8);
} local6 SEC(".maps");

struct prefix6 {
	u32 length;
	struct ip6_address address;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1024);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix6);
	__type(value, u8);
} exempt6 SEC(".maps");

/* What fragments of one packet have in common (RFC 791). */
struct packet_id {
	u32 source;
	u32 destination;
	u16 identification;
	u8 protocol;
	u8 zero;
};

/* Packets whose first fragment went to the kernel of late: their other fragments follow it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct packet_id);
	__type(value, u8);
} kernel_fragments SEC(".maps");

/* The same of IPv6 (RFC 8200). */
struct packet_id6 {
	struct ip6_address source;
	struct ip6_address destination;
	u32 identification;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct packet_id6);
	__type(value, u8);
} kernel_fragments6 SEC(".maps");

/* The AF_XDP socket of each receive queue of the interface. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 256);
	__type(key, u32);
	__type(value, u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS);
	__type(key, u32);
	__type(value, u64);
} verdicts SEC(".maps");

struct ethernet {
	u8 destination[6];
	u8 source[6];
	u16 type;
} __attribute__((packed));

struct ip4 {
	u8 version_and_header_words;
	u8 service;
	u16 total_length;
	u16 identification;
	u16 fragment;
	u8 ttl;
	u8 protocol;
	u16 checksum;
	u32 source;
	u32 destination;
} __attribute__((packed));

struct ip6 {
	u32 version_class_and_label;
	u16 payload_length;
	u8 next_header;
	u8 hop_limit;
	struct ip6_address source;
	struct ip6_address destination;
} __attribute__((packed));

struct ip6_fragment {
	u8 next_header;
	u8 zero;
	u16 place; /* offset in units of eight bytes in the upper 13 bits, "more" in the lowest */
	u32 identification;
} __attribute__((packed));

/* The start of UDP and of TCP. */
struct ports {
	u16 source;
	u16 destination;
} __attribute__((packed));

struct icmp {
	u8 type;
	u8 code;
	u16 checksum;
	u16 identifier;
	u16 sequence;
} __attribute__((packed));

enum {
	ETHERTYPE_IP4 = 0x0800,
	ETHERTYPE_IP6 = 0x86dd,
	FRAGMENT_OFFSET = 0x1fff,
	MORE_FRAGMENTS = 0x2000,
	MULTICAST_FIRST = 224, /* first byte of the addresses from 224.0.0.0 on: multicast, reserved, broadcast */
	PROTOCOL_ICMP = 1,
	PROTOCOL_TCP = 6,
	PROTOCOL_UDP = 17,
	UDP_HEADER_BYTES = 8,
	TCP_HEADER_BYTES = 20,
	QUOTED_BYTES = 8, /* RFC 792: a quote has at least this much behind the quoted header */
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_ECHO_REQUEST = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
	ICMP_TIMESTAMP_REQUEST = 13,
	ICMP_TIMESTAMP_REPLY = 14,
	PROTOCOL_FRAGMENT6 = 44,
	PROTOCOL_ICMP6 = 58,
	FRAGMENT_OFFSET6 = 0xfff8,
	ICMP6_UNREACHABLE = 1,
	ICMP6_PARAMETER_PROBLEM = 4,
	ICMP6_ECHO_REQUEST = 128,
	ICMP6_ECHO_REPLY = 129,
};

/* A length of a header. The verifier of Linux 6.1 knows nothing more of a number whose bytes were swapped, and lets nothing be
 * added to a pointer that has no bounds; the mask, which the compiler must not find needless, gives them back. */
static __always_inline u32 length(u16 field)
{
	u64 length = bpf_ntohs(field);

	asm volatile("%0 &= 0xffff" : "+r"(length));
	return length;
}

/* What is reserved of an address; none: it is not ours. */
static __always_inline const struct range *our_range(u32 address)
{
	return bpf_map_lookup_elem(&addresses, &address);
}

static __always_inline int is_reserved(const struct range *range, u16 port)
{
	u16 number = bpf_ntohs(port);

	return number >= range->first && number <= range->last;
}

/* A port of UDP or TCP at one of our addresses: is it NAT's? */
static __always_inline int is_our_port(const struct range *range, u8 protocol, u32 address, u16 port)
{
	struct forwarded key = { .address = address, .port = port, .protocol = protocol };

	return is_reserved(range, port) || bpf_map_lookup_elem(&forwarded, &key);
}

static __always_inline int is_local(u32 address)
{
	return bpf_map_lookup_elem(&local, &address) != 0;
}

/* Multicast and the like, by the address's first byte. */
static __always_inline int is_unicast(u32 address)
{
	return (address & 0xff) < MULTICAST_FIRST;
}

/* Bytes of an IPv4 header, options included, or 0 where there is none at `ip`. */
static __always_inline u32 ip4_header_bytes(const struct ip4 *ip, const void *end)
{
	if ((const void *)(ip + 1) > end || ip->version_and_header_words >> 4 != 4)
		return 0;
	u32 bytes = (ip->version_and_header_words & 0xf) * 4;

	return bytes < sizeof(*ip) ? 0 : bytes;
}

/* The packet an ICMP error is about begins at `ip` and `bytes` of it are quoted; is it one we sent? */
static __always_inline enum verdict classify_quote(const struct ip4 *ip, u32 bytes, const void *end)
{
	u32 header = ip4_header_bytes(ip, end);
	const void *transport = (const void *)ip + header;

	if (!header || header + QUOTED_BYTES > bytes || transport + QUOTED_BYTES > end)
		return PASS_MALFORMED;
	const struct range *range = our_range(ip->source);

	if (!range || ip->fragment & bpf_htons(FRAGMENT_OFFSET))
		return PASS_ICMP_QUOTE;
	if (ip->protocol == PROTOCOL_UDP || ip->protocol == PROTOCOL_TCP) {
		const struct ports *ports = transport;

		return is_our_port(range, ip->protocol, ip->source, ports->source) ? XSK_ICMP_ERROR : PASS_ICMP_QUOTE;
	}
	if (ip->protocol == PROTOCOL_ICMP) {
		const struct icmp *icmp = transport;

		int is_query = icmp->type == ICMP_ECHO_REQUEST || icmp->type == ICMP_TIMESTAMP_REQUEST;

		return is_query && is_reserved(range, icmp->identifier) ? XSK_ICMP_ERROR : PASS_ICMP_QUOTE;
	}
	return PASS_ICMP_QUOTE;
}

/* `bytes` is by the IP header: Ethernet may have padded the packet, so `end` alone does not tell. */
static __always_inline enum verdict classify_icmp(const struct range *range, const struct icmp *icmp, u32 bytes,
						  const void *end)
{
	if (bytes < sizeof(*icmp) || (const void *)(icmp + 1) > end)
		return PASS_MALFORMED;
	switch (icmp->type) {
	case ICMP_ECHO_REPLY:
	case ICMP_TIMESTAMP_REPLY:
		return is_reserved(range, icmp->identifier) ? XSK_ICMP_QUERY : PASS_ICMP_IDENTIFIER;
	case ICMP_UNREACHABLE:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETER_PROBLEM:
		return classify_quote((const void *)(icmp + 1), bytes - sizeof(*icmp), end);
	default:
		return PASS_ICMP_TYPE;
	}
}

/* A packet to one of our addresses; its transport header and all of its `bytes` are at `transport`. */
static __always_inline enum verdict classify_ours(const struct range *range, const struct ip4 *ip,
						  const void *transport, u32 bytes, const void *end)
{
	const struct ports *ports = transport;

	switch (ip->protocol) {
	case PROTOCOL_UDP:
		if (bytes < UDP_HEADER_BYTES || transport + UDP_HEADER_BYTES > end)
			return PASS_MALFORMED;
		return is_our_port(range, PROTOCOL_UDP, ip->destination, ports->destination) ? XSK_UDP : PASS_PORT;
	case PROTOCOL_TCP:
		if (bytes < TCP_HEADER_BYTES || transport + TCP_HEADER_BYTES > end)
			return PASS_MALFORMED;
		return is_our_port(range, PROTOCOL_TCP, ip->destination, ports->destination) ? XSK_TCP : PASS_PORT;
	case PROTOCOL_ICMP:
		return classify_icmp(range, transport, bytes, end);
	default:
		return PASS_PROTOCOL;
	}
}

/* A fragment of a packet to one of our addresses. The first one has the ports and decides for the others, which
 * usually come after it; one that comes before it is ours, and a worker keeps or drops it. */
static __always_inline enum verdict classify_fragment(const struct range *range, const struct ip4 *ip,
						      const void *transport, u32 bytes, const void *end)
{
	struct packet_id id = {
		.source = ip->source,
		.destination = ip->destination,
		.identification = ip->identification,
		.protocol = ip->protocol,
	};

	if (ip->fragment & bpf_htons(FRAGMENT_OFFSET)) {
		int is_kernels = !takes_fragments || bpf_map_lookup_elem(&kernel_fragments, &id);

		return is_kernels ? PASS_FRAGMENT : XSK_FRAGMENT;
	}
	enum verdict verdict = classify_ours(range, ip, transport, bytes, end);

	if (takes_fragments && verdict >= PASS_NOT_IPV4) {
		u8 nothing = 0;

		bpf_map_update_elem(&kernel_fragments, &id, &nothing, BPF_ANY);
	}
	return verdict;
}

/* A packet to none of our addresses. */
static __always_inline enum verdict classify_transit(const struct ethernet *ethernet, const struct ip4 *ip)
{
	if (realm == NEITHER)
		return PASS_ADDRESS;
	if (ethernet->destination[0] & 1 || !is_unicast(ip->destination))
		return PASS_NOT_UNICAST;
	if (is_local(ip->destination))
		return PASS_LOCAL;
	if (realm == INSIDE)
		return XSK_ROUTED;

	struct prefix source = { .length = 32, .address = ip->source };

	return bpf_map_lookup_elem(&exempt, &source) ? XSK_EXEMPT : PASS_ADDRESS;
}

/* What is reserved of an address of IPv6; none: it is not ours. */
static __always_inline const struct range *our_range6(struct ip6_address address)
{
	return bpf_map_lookup_elem(&addresses6, &address);
}

/* A port of UDP or TCP at one of our addresses of IPv6: is it NAT's? */
static __always_inline int is_our_port6(const struct range *range, u8 protocol, struct ip6_address address, u16 port)
{
	struct forwarded6 key = { .address = address, .port = port, .protocol = protocol };

	return is_reserved(range, port) || bpf_map_lookup_elem(&forwarded6, &key);
}

/* fe80::/10, by the first two bytes. */
static __always_inline int is_link_local6(struct ip6_address address)
{
	return (address.words[0] & 0xc0ff) == 0x80fe;
}

static __always_inline int is_multicast6(struct ip6_address address)
{
	return (address.words[0] & 0xff) == 0xff;
}

/* The packet an ICMPv6 error is about begins at `ip` and `bytes` of it are quoted; is it one we sent? */
static __always_inline enum verdict classify_quote6(const struct ip6 *ip, u32 bytes, const void *end)
{
	const void *transport = ip + 1;

	if (bytes < sizeof(*ip) + QUOTED_BYTES || transport + QUOTED_BYTES > end)
		return PASS_MALFORMED;
	const struct range *range = our_range6(ip->source);

	if (!range)
		return PASS_ICMP_QUOTE;
	if (ip->next_header == PROTOCOL_UDP || ip->next_header == PROTOCOL_TCP) {
		const struct ports *ports = transport;

		return is_our_port6(range, ip->next_header, ip->source, ports->source) ? XSK_ICMP_ERROR : PASS_ICMP_QUOTE;
	}
	if (ip->next_header == PROTOCOL_ICMP6) {
		const struct icmp *icmp = transport;

		return icmp->type == ICMP6_ECHO_REQUEST && is_reserved(range, icmp->identifier) ? XSK_ICMP_ERROR
												 : PASS_ICMP_QUOTE;
	}
	return PASS_ICMP_QUOTE;
}

/* A packet to one of our addresses; the header of its `protocol` and all of its `bytes` are at `transport`. */
static __always_inline enum verdict classify_ours6(const struct range *range, const struct ip6 *ip, u8 protocol,
						   const void *transport, u32 bytes, const void *end)
{
	const struct ports *ports = transport;
	const struct icmp *icmp = transport;

	switch (protocol) {
	case PROTOCOL_UDP:
		if (bytes < UDP_HEADER_BYTES || transport + UDP_HEADER_BYTES > end)
			return PASS_MALFORMED;
		return is_our_port6(range, PROTOCOL_UDP, ip->destination, ports->destination) ? XSK_UDP : PASS_PORT;
	case PROTOCOL_TCP:
		if (bytes < TCP_HEADER_BYTES || transport + TCP_HEADER_BYTES > end)
			return PASS_MALFORMED;
		return is_our_port6(range, PROTOCOL_TCP, ip->destination, ports->destination) ? XSK_TCP : PASS_PORT;
	case PROTOCOL_ICMP6:
		if (bytes < sizeof(*icmp) || (const void *)(icmp + 1) > end)
			return PASS_MALFORMED;
		if (icmp->type == ICMP6_ECHO_REPLY)
			return is_reserved(range, icmp->identifier) ? XSK_ICMP_QUERY : PASS_ICMP_IDENTIFIER;
		if (icmp->type < ICMP6_UNREACHABLE || icmp->type > ICMP6_PARAMETER_PROBLEM)
			return PASS_ICMP_TYPE;
		return classify_quote6((const void *)(icmp + 1), bytes - sizeof(*icmp), end);
	default:
		return PASS_PROTOCOL;
	}
}

/* As of IPv4: the first one decides for the others. */
static __always_inline enum verdict classify_fragment6(const struct range *range, const struct ip6 *ip, u32 bytes,
						       const void *end)
{
	const struct ip6_fragment *fragment = (const void *)(ip + 1);

	if (bytes < sizeof(*fragment) || (const void *)(fragment + 1) > end)
		return PASS_MALFORMED;
	struct packet_id6 id = {
		.source = ip->source,
		.destination = ip->destination,
		.identification = fragment->identification,
	};

	if (fragment->place & bpf_htons(FRAGMENT_OFFSET6))
		return bpf_map_lookup_elem(&kernel_fragments6, &id) ? PASS_FRAGMENT : XSK_FRAGMENT;
	enum verdict verdict =
		classify_ours6(range, ip, fragment->next_header, fragment + 1, bytes - sizeof(*fragment), end);

	if (verdict >= PASS_NOT_IPV4) {
		u8 nothing = 0;

		bpf_map_update_elem(&kernel_fragments6, &id, &nothing, BPF_ANY);
	}
	return verdict;
}

static __always_inline enum verdict classify6(const struct ethernet *ethernet, const void *end)
{
	const struct ip6 *ip = (const void *)(ethernet + 1);

	if (!takes_ip6)
		return PASS_NOT_IPV4;
	if ((const void *)(ip + 1) > end || (ip->version_class_and_label & 0xf0) != 0x60)
		return PASS_MALFORMED;
	u32 bytes = length(ip->payload_length);

	if ((const void *)(ip + 1) + bytes > end)
		return PASS_MALFORMED;
	if (ethernet->destination[0] & 1 || is_multicast6(ip->destination))
		return PASS_NOT_UNICAST;
	if (is_link_local6(ip->destination) || is_link_local6(ip->source))
		return PASS_LOCAL;
	const struct range *range = our_range6(ip->destination);

	if (range) {
		enum verdict verdict = ip->next_header == PROTOCOL_FRAGMENT6 ?
					       classify_fragment6(range, ip, bytes, end) :
					       classify_ours6(range, ip, ip->next_header, ip + 1, bytes, end);

		if (realm != INSIDE)
			return verdict;
		/* An outside address is local, too; by its NAT's ports one inside host reaches another. */
		if (verdict < PASS_NOT_IPV4)
			return XSK_ROUTED;
	}
	if (realm == NEITHER)
		return PASS_ADDRESS;

	struct ip6_address destination = ip->destination;

	if (bpf_map_lookup_elem(&local6, &destination))
		return PASS_LOCAL;
	if (realm == INSIDE)
		return XSK_ROUTED;

	struct prefix6 source = { .length = 128, .address = ip->source };

	return bpf_map_lookup_elem(&exempt6, &source) ? XSK_EXEMPT : PASS_ADDRESS;
}

static __always_inline enum verdict classify(const void *data, const void *end)
{
	const struct ethernet *ethernet = data;
	const struct ip4 *ip = (const void *)(ethernet + 1);

	if ((const void *)ip > end)
		return PASS_MALFORMED;
	if (ethernet->type == bpf_htons(ETHERTYPE_IP6))
		return classify6(ethernet, end);
	if (ethernet->type != bpf_htons(ETHERTYPE_IP4))
		return PASS_NOT_IPV4;

	u32 header = ip4_header_bytes(ip, end);

	if (!header)
		return PASS_MALFORMED;
	u32 total = length(ip->total_length);

	if (total < header || (const void *)ip + total > end)
		return PASS_MALFORMED;
	const struct range *range = our_range(ip->destination);

	if (!range)
		return classify_transit(ethernet, ip);

	const void *transport = (const void *)ip + header;

	if (ip->fragment & bpf_htons(FRAGMENT_OFFSET | MORE_FRAGMENTS))
		return classify_fragment(range, ip, transport, total - header, end);
	return classify_ours(range, ip, transport, total - header, end);
}

SEC("xdp") int starnet_xdp(struct xdp_md *context)
{
	u32 verdict = classify((void *)(long)context->data, (void *)(long)context->data_end);
	u64 *count = bpf_map_lookup_elem(&verdicts, &verdict);

	if (count)
		(*count)++;
	if (verdict < PASS_NOT_IPV4)
		return bpf_redirect_map(&sockets, context->rx_queue_index, XDP_PASS);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Apache-2.0";
