//! The device under smoltcp: queues of packets instead of a network interface.

use std::collections::VecDeque;

use smoltcp::{
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    time::Instant,
};

/// The device under smoltcp: packets that came, packets to send, and memory to use again.
pub(super) struct Queues {
    pub(super) arrived: VecDeque<Vec<u8>>,
    pub(super) to_send: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    pub(super) mtu: u16,
}

impl Queues {
    /// Empty ones, for packets of at most `mtu` bytes.
    pub(super) fn new(mtu: u16) -> Self {
        Self { arrived: VecDeque::new(), to_send: VecDeque::new(), spare: Vec::new(), mtu }
    }

    /// Memory for a packet.
    pub(super) fn place(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_else(|| Vec::with_capacity(usize::from(self.mtu)))
    }

    /// Takes the memory of a packet back.
    pub(super) fn recycle(&mut self, mut packet: Vec<u8>) {
        if self.spare.len() < crate::client::socket::BATCH {
            packet.clear();
            self.spare.push(packet);
        }
    }
}

impl Device for Queues {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Place<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Place<'_>)> {
        let packet = self.arrived.pop_front()?;
        Some((Arrived(packet), Place(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Place<'_>> {
        Some(Place(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(self.mtu);
        capabilities
    }
}

pub(super) struct Arrived(Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(super) struct Place<'a>(&'a mut Queues);

impl TxToken for Place<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = self.0.place();
        packet.resize(length, 0);
        let result = f(&mut packet);
        self.0.to_send.push_back(packet);
        result
    }
}
