//! How a NIC spreads what it receives over its queues, as far as that is known: by its hash, or by rules that we gave it.

use super::{
    port_rules::{Classes, PortRules},
    rss::{End, Rss, RssByPort, Tuple},
};

/// What is known of it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the types say it")]
pub enum Spread {
    Rss(Rss),
    Rules(PortRules),
}

impl Spread {
    /// The queue by the port at one end of `tuple`, whatever port it has there. `None`: the port makes no difference, or
    /// it is not known which.
    pub fn by_port(&self, tuple: &Tuple, end: End) -> Option<QueueByPort<'_>> {
        match self {
            Self::Rss(rss) => Some(QueueByPort::Hash(rss.by_port(tuple, end)?)),
            Self::Rules(rules) => Some(QueueByPort::Class(rules.classes_of(tuple, end)?)),
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
