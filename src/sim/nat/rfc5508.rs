//! RFC 5508: NAT behavioral requirements for ICMP.
