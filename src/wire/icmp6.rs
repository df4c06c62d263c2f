//! ICMP for IPv6 (RFC 4443). Type, code, checksum and identifier are where [`icmp`](super::icmp) has them.

/// Destination unreachable.
pub const UNREACHABLE: u8 = 1;
/// Packet too big.
pub const PACKET_TOO_BIG: u8 = 2;
/// Time exceeded.
pub const TIME_EXCEEDED: u8 = 3;
/// Parameter problem.
pub const PARAMETER_PROBLEM: u8 = 4;
/// Echo request.
pub const ECHO_REQUEST: u8 = 128;
/// Echo reply.
pub const ECHO_REPLY: u8 = 129;

/// Code of "no route to destination".
pub const CODE_NO_ROUTE: u8 = 0;
/// Code of "communication administratively prohibited".
pub const CODE_PROHIBITED: u8 = 1;
/// Code of "address unreachable".
pub const CODE_ADDRESS: u8 = 3;
/// Code of "port unreachable".
pub const CODE_PORT: u8 = 4;
/// Code of a parameter problem: "erroneous header field encountered".
pub const CODE_ERRONEOUS_HEADER: u8 = 0;
/// Code of a parameter problem: "unrecognized next header type encountered".
pub const CODE_UNKNOWN_NEXT_HEADER: u8 = 1;

/// Offset of the MTU in "packet too big".
pub const MTU: usize = 4;

/// True for a message that quotes the packet it is about.
#[inline]
pub fn is_error(kind: u8) -> bool {
    matches!(kind, UNREACHABLE | PACKET_TOO_BIG | TIME_EXCEEDED | PARAMETER_PROBLEM)
}
