//! How a NIC spreads what it receives over its queues, as far as that is known: by its hash, or by rules that we gave it.

use super::{
    port_rules::{Classes, PortRules, Steered},
    rss::{End, Rss, RssByPort, Tuple},
};

/// What is known of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Spread {
    /// What its hash does; `None`: it does not tell.
    pub rss: Option<Rss>,
    /// Rules of ours, which come before the hash.
    pub rules: Option<PortRules>,
}

impl Spread {
    /// That of a NIC without rules of ours.
    pub fn by_hash(rss: Rss) -> Self {
        Self { rss: Some(rss), rules: None }
    }

    /// The queue by the port at one end of `tuple`, whatever port it has there. `None`: the port makes no difference, or
    /// it is not known which.
    pub fn by_port(&self, tuple: &Tuple, end: End) -> Option<QueueByPort<'_>> {
        match self.rules.as_ref().and_then(|rules| rules.steers(tuple)) {
            Some(Steered::BySource(classes)) => (end == End::Source).then_some(QueueByPort::Class(classes)),
            Some(Steered::ToOwner) => None,
            None => self.rss.as_ref()?.by_port(tuple, end).map(QueueByPort::Hash),
        }
    }
}

/// Tells queues by ports.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub enum QueueByPort<'a> {
    Hash(RssByPort<'a>),
    Class(Classes),
}

impl QueueByPort<'_> {
    /// The queue at which a packet with `port` arrives.
    pub fn queue(&self, port: u16) -> usize {
        match self {
            Self::Hash(rss) => rss.queue(port),
            Self::Class(classes) => classes.queue(port),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;
    use crate::{
        dataplane::rss::{Inputs, KEY_BYTES},
        wire::ip4,
    };

    #[test]
    fn rules_come_before_the_hash_where_they_are_about_a_packet() {
        let ours = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 40_000);
        let rules = PortRules { hops: Some((ours, Classes::among(2))), outside: vec![*ours.ip()], count: 0 };
        let rss = Rss::new(&[7; KEY_BYTES], vec![0, 1], Inputs::ALL);
        let by_port = |rss: &Option<Rss>, to: (Ipv4Addr, u16), end| {
            let spread = Spread { rss: rss.clone(), rules: Some(rules.clone()) };
            match spread.by_port(&Tuple::v4(ip4::UDP, (Ipv4Addr::new(198, 51, 100, 7), 53), to), end) {
                Some(QueueByPort::Class(_)) => "class",
                Some(QueueByPort::Hash(_)) => "hash",
                None => "none",
            }
        };
        let (hop, answer, other) = ((*ours.ip(), 40_000), (*ours.ip(), 40_001), (Ipv4Addr::new(192, 0, 2, 2), 40_001));
        assert_eq!([hop, answer, other].map(|to| by_port(&rss, to, End::Source)), ["class", "none", "hash"]);
        assert_eq!([hop, answer, other].map(|to| by_port(&rss, to, End::Destination)), ["none", "none", "hash"]);
        assert_eq!([hop, answer, other].map(|to| by_port(&None, to, End::Source)), ["class", "none", "none"]);
    }
}
