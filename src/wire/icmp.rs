//! ICMP for IPv4 (RFC 792), and which messages a NAT translates how (RFC 5508).

/// Bytes of the header of every message we handle.
pub const HEADER_BYTES: usize = 8;

/// Offset of the type.
pub const TYPE: usize = 0;
/// Offset of the code.
pub const CODE: usize = 1;
/// Offset of the checksum.
pub const CHECKSUM: usize = 2;
/// Offset of a query's identifier.
pub const IDENTIFIER: usize = 4;
/// Offset of the next-hop MTU in "fragmentation needed" (RFC 1191).
pub const NEXT_HOP_MTU: usize = 6;

/// Echo reply.
pub const ECHO_REPLY: u8 = 0;
/// Destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// Echo request.
pub const ECHO_REQUEST: u8 = 8;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;
/// Timestamp request.
pub const TIMESTAMP_REQUEST: u8 = 13;
/// Timestamp reply.
pub const TIMESTAMP_REPLY: u8 = 14;

/// Code of "net unreachable".
pub const CODE_NET: u8 = 0;
/// Code of "host unreachable".
pub const CODE_HOST: u8 = 1;
/// Code of "port unreachable".
pub const CODE_PORT: u8 = 3;
/// Code of "fragmentation needed and DF set".
pub const CODE_FRAGMENTATION_NEEDED: u8 = 4;
/// Code of "communication administratively prohibited".
pub const CODE_PROHIBITED: u8 = 13;

/// True for a question that has an identifier, by which its answer is known.
#[inline]
pub fn is_request(kind: u8) -> bool {
    matches!(kind, ECHO_REQUEST | TIMESTAMP_REQUEST)
}

/// True for the answer to one.
#[inline]
pub fn is_reply(kind: u8) -> bool {
    matches!(kind, ECHO_REPLY | TIMESTAMP_REPLY)
}

/// True for a message that quotes the packet it is about.
#[inline]
pub fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
}
