/* SPDX-License-Identifier: Apache-2.0 */
/* Sends to the AF_XDP socket of the receiving queue what belongs to starnet, and all else to the kernel, so that
 * ssh, QUIC, ARP and everything else on the interface keep working:
 *
 *   UDP and TCP to one of our addresses, destination port in the reserved range
 *   ICMP echo replies to one of our addresses, identifier in the range
 *   ICMP errors to one of our addresses that quote a packet of ours: source address ours, and source port (or
 *     identifier of an echo request) in the range
 *
 * It decides; it does not validate. Checksums and everything behind the fields it reads are the worker's business. What
 * it cannot read (cut short, no IPv4, behind a VLAN tag) and fragments that carry no ports are the kernel's.
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
	PASS_NOT_IPV4,
	PASS_MALFORMED,
	PASS_ADDRESS,
	PASS_FRAGMENT,
	PASS_PROTOCOL,
	PASS_PORT,
	PASS_ICMP_TYPE,
	PASS_ICMP_IDENTIFIER,
	PASS_ICMP_QUOTE,
	VERDICTS,
};

/* The reserved range, host byte order, set by the loader. Empty until then. */
const volatile u16 port_first = 1;
const volatile u16 port_last = 0;

/* Our addresses, network byte order. The value says nothing. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, u32);
	__type(value, u8);
} addresses SEC(".maps");

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
	FRAGMENT_OFFSET = 0x1fff,
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
};

static __always_inline int is_our_address(u32 address)
{
	return bpf_map_lookup_elem(&addresses, &address) != 0;
}

static __always_inline int is_our_port(u16 port)
{
	u16 number = bpf_ntohs(port);

	return number >= port_first && number <= port_last;
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
	if (!is_our_address(ip->source) || ip->fragment & bpf_htons(FRAGMENT_OFFSET))
		return PASS_ICMP_QUOTE;
	if (ip->protocol == PROTOCOL_UDP || ip->protocol == PROTOCOL_TCP) {
		const struct ports *ports = transport;

		return is_our_port(ports->source) ? XSK_ICMP_ERROR : PASS_ICMP_QUOTE;
	}
	if (ip->protocol == PROTOCOL_ICMP) {
		const struct icmp *icmp = transport;

		return icmp->type == ICMP_ECHO_REQUEST && is_our_port(icmp->identifier) ? XSK_ICMP_ERROR
											: PASS_ICMP_QUOTE;
	}
	return PASS_ICMP_QUOTE;
}

/* `bytes` is by the IP header: Ethernet may have padded the packet, so `end` alone does not tell. */
static __always_inline enum verdict classify_icmp(const struct icmp *icmp, u32 bytes, const void *end)
{
	if (bytes < sizeof(*icmp) || (const void *)(icmp + 1) > end)
		return PASS_MALFORMED;
	switch (icmp->type) {
	case ICMP_ECHO_REPLY:
		return is_our_port(icmp->identifier) ? XSK_ICMP_QUERY : PASS_ICMP_IDENTIFIER;
	case ICMP_UNREACHABLE:
	case ICMP_TIME_EXCEEDED:
	case ICMP_PARAMETER_PROBLEM:
		return classify_quote((const void *)(icmp + 1), bytes - sizeof(*icmp), end);
	default:
		return PASS_ICMP_TYPE;
	}
}

static __always_inline enum verdict classify(const void *data, const void *end)
{
	const struct ethernet *ethernet = data;
	const struct ip4 *ip = (const void *)(ethernet + 1);

	if ((const void *)ip > end)
		return PASS_MALFORMED;
	if (ethernet->type != bpf_htons(ETHERTYPE_IP4))
		return PASS_NOT_IPV4;

	u32 header = ip4_header_bytes(ip, end);

	if (!header)
		return PASS_MALFORMED;
	u32 total = bpf_ntohs(ip->total_length);

	if (total < header || (const void *)ip + total > end)
		return PASS_MALFORMED;
	if (!is_our_address(ip->destination))
		return PASS_ADDRESS;
	if (ip->fragment & bpf_htons(FRAGMENT_OFFSET))
		return PASS_FRAGMENT;

	const void *transport = (const void *)ip + header;
	u32 bytes = total - header;
	const struct ports *ports = transport;

	switch (ip->protocol) {
	case PROTOCOL_UDP:
		if (bytes < UDP_HEADER_BYTES || transport + UDP_HEADER_BYTES > end)
			return PASS_MALFORMED;
		return is_our_port(ports->destination) ? XSK_UDP : PASS_PORT;
	case PROTOCOL_TCP:
		if (bytes < TCP_HEADER_BYTES || transport + TCP_HEADER_BYTES > end)
			return PASS_MALFORMED;
		return is_our_port(ports->destination) ? XSK_TCP : PASS_PORT;
	case PROTOCOL_ICMP:
		return classify_icmp(transport, bytes, end);
	default:
		return PASS_PROTOCOL;
	}
}

SEC("xdp") int starnet_xdp(struct xdp_md *context)
{
	u32 verdict = classify((void *)(long)context->data, (void *)(long)context->data_end);
	u64 *count = bpf_map_lookup_elem(&verdicts, &verdict);

	if (count)
		(*count)++;
	if (verdict <= XSK_ICMP_ERROR)
		return bpf_redirect_map(&sockets, context->rx_queue_index, XDP_PASS);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Apache-2.0";
