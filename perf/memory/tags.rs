//! What makes a tag of 16 bytes cheapest, on the two kinds of hops that a node has? For benchmarks only.
//!
//! Keys are as they lie in a node's memory: that of a client's hop in the line of its slot, which is read anyway; those of hops
//! between nodes, of which a node has a few dozen, with their schedules.

use starnet::{
    dataplane::{conntrack::NodeKey, node_keys::NodeKeys, prefetch::prefetch, tags::Tags},
    wire::relay::{Header, HopKey, Kind, Tagged, tag},
};

/// Headers a batch.
const BATCH: usize = 256;

/// Hops of a busy node: more than any cache holds.
const MANY: usize = 1 << 20;

/// Nodes that it has hops to: each has two keys.
const NODES: usize = 32;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Slot {
    key: HopKey,
}

/// Prints one line of JSON: clocks a tag.
pub(crate) fn run(rounds: usize) {
    let few = figures(BATCH, rounds);
    let many = figures(MANY, rounds);
    println!("{}", serde_json::json!({"few": few, "many": many}));
}

fn figures(hops: usize, rounds: usize) -> serde_json::Value {
    let key = |n: usize| ((n as u128 + 1) * 0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let slots: Vec<Slot> = (0..hops).map(|n| Slot { key: key(n) }).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut choose = || -> Vec<usize> {
        let next = |_| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as usize % hops
        };
        (0..BATCH).map(next).collect()
    };
    let batches: Vec<Vec<usize>> = (0..rounds).map(|_| choose()).collect();
    let headers: Vec<Tagged> = (0..BATCH).map(header).collect();
    let one_by_one = timed(&batches, |batch| {
        batch.iter().for_each(|hop| prefetch(&slots[*hop]));
        batch.iter().zip(&headers).fold(0, |sum, (hop, header)| sum ^ tag(*header, &slots[*hop].key))
    });
    let mut tags = Tags::new();
    let together = timed(&batches, |batch| {
        batch.iter().for_each(|hop| prefetch(&slots[*hop]));
        batch.iter().zip(&headers).for_each(|(hop, header)| {
            tags.push(*header, &slots[*hop].key);
        });
        tags.make().iter().fold(0, |sum, tag| sum ^ tag)
    });
    let mut keys = NodeKeys::new(&key(0));
    (0..2 * NODES).for_each(|n| keys.set(NodeKey(n as u16), &key(n)));
    let of_nodes = timed(&batches, |batch| {
        let number = |hop: &usize| NodeKey((hop % (2 * NODES)) as u16);
        batch.iter().zip(&headers).fold(0, |sum, (hop, header)| sum ^ keys.tag(number(hop), *header))
    });
    serde_json::json!({
        "SipHash, one by one": one_by_one,
        "SipHash, eight at a time": together,
        "AES, keys of 32 nodes": of_nodes,
    })
}

fn header(n: usize) -> Tagged {
    let (sequence, ct_index) = (n as u64 * 3, n as u32);
    Header { kind: Kind::DataUp, path: 1, generation: 7, ct_index, sequence }.tagged()
}

/// Clocks a tag, the median over batches.
fn timed(batches: &[Vec<usize>], mut make: impl FnMut(&[usize]) -> u64) -> f64 {
    let clock = quanta::Clock::new();
    let mut spent: Vec<u64> = batches
        .iter()
        .map(|batch| {
            let start = clock.raw();
            std::hint::black_box(make(batch));
            clock.raw() - start
        })
        .collect();
    spent.sort_unstable();
    spent[spent.len() / 2] as f64 / BATCH as f64
}
