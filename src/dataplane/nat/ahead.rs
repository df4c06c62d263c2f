//! Asks for the memory that NAT is about to read, for a whole batch before its first packet is looked at.
//!
//! One packet's way to its binding is a chain of reads that each wait for the one before: table, binding, stamp. Those of
//! a batch can be waited for together. What is done here is a guess from bytes that nobody has checked: it may ask for
//! the wrong memory, and nothing else comes of it.

use super::{Binding, BindingKey, Endpoint, remote_end};
use crate::{
    dataplane::{
        command::Command,
        conntrack::NO_BINDING,
        context::Context,
        driver::Frames,
        packet::{Bitmap, Packet},
        prefetch::prefetch,
    },
    limits::PACKET_SLOTS,
    wire::{ip4, read_u16, read_u32, tcp},
};

/// In fewer packets there is little to overlap.
const FEW_PACKETS: usize = 4;

/// Fewer bindings stay in the cache by themselves.
const FEW_BINDINGS: usize = 2048;

/// For commands that are about to be applied: where new bindings are written, and the packets that wait for them.
pub(in crate::dataplane) fn new_flows<'a>(
    context: &Context,
    frames: &mut Frames,
    commands: impl Iterator<Item = &'a Command> + Clone,
) {
    let new = commands.filter_map(|command| match command {
        Command::SetBindingAndResume { index, binding, waiting } => Some((*index, binding, *waiting)),
        _ => None,
    });
    new.clone().for_each(|(index, binding, waiting)| {
        context.bindings.prefetch_new(binding);
        ask_for(context, Some(index));
        context.waiting.prefetch(waiting);
    });
    for packet in new.filter_map(|(_, _, waiting)| context.waiting.get(waiting)) {
        packet.ip(frames).first().into_iter().for_each(prefetch);
    }
}

/// For packets from inside that start at `l3`. Those whose binding was just made for them need none of it.
pub(in crate::dataplane) fn from_inside(context: &Context, frames: &mut Frames, batch: Bitmap) {
    if batch.count() < FEW_PACKETS || context.bindings.used() < FEW_BINDINGS {
        return;
    }
    let bindings = &context.bindings;
    let mut hashes = [0u32; PACKET_SLOTS];
    batch.for_each(|slot| {
        let packet = &context.packets[slot];
        if packet.binding == NO_BINDING
            && let Some((protocol, (address, port), to)) = ends(packet, frames)
        {
            let remote = context.is_endpoint_dependent.then(|| remote_end(protocol, to));
            let key = BindingKey { owner: packet.owner(), protocol, address, port, remote };
            hashes[slot] = bindings.hash(&key);
            bindings.prefetch_inside(hashes[slot]);
        }
    });
    batch.for_each(|slot| ask_for(context, bindings.candidate(hashes[slot])));
}

/// For packets from outside that start at `l3`.
pub(in crate::dataplane) fn from_outside(context: &Context, frames: &mut Frames, batch: Bitmap) {
    if batch.count() < FEW_PACKETS || context.bindings.used() < FEW_BINDINGS {
        return;
    }
    let bindings = &context.bindings;
    let mut ports = [(0u8, 0u8, 0u16); PACKET_SLOTS];
    batch.for_each(|slot| {
        if let Some((protocol, _, (address, port))) = ends(&context.packets[slot], frames)
            && let Some(number) = bindings.outside().number_of(address)
        {
            ports[slot] = (number, protocol, port);
            bindings.prefetch_outside(number, protocol, port);
        }
    });
    batch.for_each(|slot| {
        let (number, protocol, port) = ports[slot];
        ask_for(context, bindings.at_port(number, protocol, port));
    });
}

/// Asks for a binding's line, and for that of its stamp.
#[inline]
fn ask_for(context: &Context, index: Option<u32>) {
    let Some(index) = index else { return };
    context.bindings.prefetch(index);
    if let Some(stamp) = context.published.bindings.get(index as usize) {
        prefetch(stamp);
    }
}

/// Protocol, source and destination of a packet that begins as most do: without options, TCP or UDP.
#[inline]
fn ends(packet: &Packet, frames: &mut Frames) -> Option<(u8, Endpoint, Endpoint)> {
    let bytes = packet.ip(frames).first_chunk::<{ ip4::HEADER_BYTES + 4 }>()?;
    let protocol = bytes[ip4::PROTOCOL];
    let is_plain = bytes[0] == 0x45 && matches!(protocol, ip4::TCP | ip4::UDP);
    let end = |address, port| (read_u32(bytes, address).into(), read_u16(bytes, ip4::HEADER_BYTES + port));
    is_plain.then(|| (protocol, end(ip4::SOURCE, tcp::SOURCE), end(ip4::DESTINATION, tcp::DESTINATION)))
}

const _: () = assert!(size_of::<Binding>() == 64, "one line is asked for");
