//! RFC 5382: NAT behavioral requirements for TCP.
