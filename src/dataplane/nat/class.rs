//! How long an idle binding is kept: by protocol and, of TCP, by what its connections do.

use crate::{Nanos, SECOND, wire::ip4};

/// By which timer a binding ages. The worker publishes it, the control core reads it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Class {
    /// UDP.
    Udp,
    /// ICMP queries.
    Icmp,
    /// TCP, no handshake complete.
    TcpOpening,
    /// TCP, a connection open.
    TcpEstablished,
    /// TCP, all connections over.
    TcpClosing,
}

impl Class {
    /// All of them, by number.
    const ALL: [Self; 5] = [Self::Udp, Self::Icmp, Self::TcpOpening, Self::TcpEstablished, Self::TcpClosing];

    /// That of a new binding.
    pub fn first(protocol: u8) -> Self {
        match protocol {
            ip4::TCP => Self::TcpOpening,
            ip4::ICMP => Self::Icmp,
            _ => Self::Udp,
        }
    }

    /// As the worker published it; what it cannot have published ages as UDP.
    #[inline]
    pub fn from_number(number: u8) -> Self {
        Self::ALL.get(usize::from(number)).copied().unwrap_or(Self::Udp)
    }
}

/// The timers. The defaults are what the RFCs ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timers {
    /// RFC 4787 REQ-5: at least two minutes, five by default.
    pub udp: Nanos,
    /// RFC 5508 REQ-2: at least a minute.
    pub icmp: Nanos,
    /// RFC 7857 section 2.2, partially open: four minutes.
    pub tcp_opening: Nanos,
    /// RFC 5382 REQ-5: at least two hours and four minutes.
    pub tcp_established: Nanos,
    /// RFC 5382 REQ-5, RFC 7857 section 2.2: four minutes.
    pub tcp_closing: Nanos,
    /// Packets from outside keep a binding alive, too (RFC 4787 REQ-6: not by default, for a stranger could do it).
    pub is_refreshed_from_outside: bool,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            udp: 300 * SECOND,
            icmp: 60 * SECOND,
            tcp_opening: 240 * SECOND,
            tcp_established: (2 * 60 + 4) * 60 * SECOND,
            tcp_closing: 240 * SECOND,
            is_refreshed_from_outside: false,
        }
    }
}

impl Timers {
    /// How long a binding of this class may be idle.
    #[inline]
    pub fn of(&self, class: Class) -> Nanos {
        match class {
            Class::Udp => self.udp,
            Class::Icmp => self.icmp,
            Class::TcpOpening => self.tcp_opening,
            Class::TcpEstablished => self.tcp_established,
            Class::TcpClosing => self.tcp_closing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_survives_its_publication() {
        for class in Class::ALL {
            assert_eq!(Class::from_number(class as u8), class);
        }
    }
}
