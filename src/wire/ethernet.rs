//! Ethernet II.

use super::read_u16;

/// Bytes of the header; the frame check sequence never reaches us.
pub const HEADER_BYTES: usize = 14;

/// EtherType of IPv4.
pub const TYPE_IP4: u16 = 0x0800;

/// EtherType of IPv6.
pub const TYPE_IP6: u16 = 0x86dd;

/// A MAC address.
pub type Mac = [u8; 6];

/// The EtherType, or `None` where the frame is too short for one.
#[inline]
pub fn ether_type(frame: &[u8]) -> Option<u16> {
    (frame.len() >= HEADER_BYTES).then(|| read_u16(frame, 12))
}

/// Writes the header of a frame that carries IPv4. `frame` must hold at least [`HEADER_BYTES`].
#[inline]
pub fn emit(frame: &mut [u8], destination: Mac, source: Mac) {
    emit_as(frame, destination, source, TYPE_IP4);
}

/// Writes the header of a frame that carries what `ether_type` says. `frame` must hold at least [`HEADER_BYTES`].
#[inline]
pub fn emit_as(frame: &mut [u8], destination: Mac, source: Mac, ether_type: u16) {
    let header: &mut [u8; HEADER_BYTES] = frame.first_chunk_mut().expect("the caller has room for a header");
    header[..6].copy_from_slice(&destination);
    header[6..12].copy_from_slice(&source);
    header[12..].copy_from_slice(&ether_type.to_be_bytes());
}
