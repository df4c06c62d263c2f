/* SPDX-License-Identifier: Apache-2.0 */
/* The few pieces of the BPF ABI that our program needs, so that it builds with nothing but clang:
 * neither libbpf's nor the kernel's headers have to be installed. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

/* include/uapi/linux/bpf.h: map types, verdicts, and the context of an XDP program. */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_XSKMAP = 17,
};

enum {
	BPF_F_NO_PREALLOC = 1, /* a flag of maps, without which there is no LPM_TRIE */
	BPF_ANY = 0,
};

enum xdp_action {
	XDP_ABORTED = 0,
	XDP_DROP = 1,
	XDP_PASS = 2,
};

struct xdp_md {
	u32 data;
	u32 data_end;
	u32 data_meta;
	u32 ingress_ifindex;
	u32 rx_queue_index;
	u32 egress_ifindex;
};

/* A map is described to the loader by BTF: numbers as array lengths, types as pointers. */
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define SEC(name) __attribute__((section(name), used))

#define __always_inline inline __attribute__((always_inline))

/* Helpers are called by number. */
static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*const bpf_redirect)(u32 interface, u64 flags) = (void *)23;
static long (*const bpf_redirect_map)(void *map, u64 key, u64 flags) = (void *)51;
static long (*const bpf_xdp_store_bytes)(struct xdp_md *context, u32 at, const void *from, u32 bytes) = (void *)190;

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "network byte order is the other one");
#define bpf_htons(x) __builtin_bswap16(x)
#define bpf_ntohs(x) __builtin_bswap16(x)
