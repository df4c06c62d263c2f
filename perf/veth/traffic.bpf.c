// SPDX-License-Identifier: Apache-2.0
/* Both ends of a measurement on veth: `perf_generate` makes frames, `perf_sink` counts and drops them.
 *
 * Run by BPF_PROG_TEST_RUN with live frames, the generator is called once for each frame, in the kernel, and never leaves
 * it between two of them: it copies the next prepared frame over the template and sends it out of an interface. */
#include "../../bpf/bpf.h"

enum {
	FRAME_BYTES_MAX = 256,
	ETHERTYPE_AT = 12,
};

/* Set by the loader. */
const volatile u32 interface;
const volatile u32 frame_bytes;
const volatile u32 frame_count = 1;

struct frame {
	u8 bytes[FRAME_BYTES_MAX];
};

/* What is sent, round and round. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct frame);
} frames SEC(".maps");

/* How many frames the generator made, and how many the sink took. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} counts SEC(".maps");

static __always_inline u64 *count(void)
{
	u32 only = 0;

	return bpf_map_lookup_elem(&counts, &only);
}

SEC("xdp") int perf_generate(struct xdp_md *context)
{
	u64 *sent = count();

	if (!sent)
		return XDP_ABORTED;
	u32 at = *sent % frame_count;
	struct frame *frame = bpf_map_lookup_elem(&frames, &at);
	u32 bytes = frame_bytes;

	if (!frame || !bytes || bytes > FRAME_BYTES_MAX || bpf_xdp_store_bytes(context, 0, frame, bytes))
		return XDP_ABORTED;
	(*sent)++;
	return bpf_redirect(interface, 0);
}

SEC("xdp") int perf_sink(struct xdp_md *context)
{
	const u8 *data = (void *)(long)context->data;
	const void *end = (void *)(long)context->data_end;
	u64 *taken = count();

	/* ARP and the like are the kernel's. */
	if (!taken || (const void *)data + ETHERTYPE_AT + 2 > end ||
	    *(const u16 *)(data + ETHERTYPE_AT) != bpf_htons(0x0800))
		return XDP_PASS;
	(*taken)++;
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Apache-2.0";
