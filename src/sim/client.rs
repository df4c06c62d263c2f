//! A client: opens a session, keeps it alive, wraps and unwraps packets. Its data plane is that of the real client.

use std::net::SocketAddrV4;

use super::packets;
use crate::{
    Nanos,
    client::{
        drops::{Drops, Reason},
        inside::Inside,
        session::{Due, Received, Session},
    },
    rpc::messages::{Failure, Open, Opened, Response},
    wire::relay,
};

#[derive(Debug)]
pub(super) struct Client {
    /// Where it sends from.
    pub(super) address: SocketAddrV4,
    pub(super) inside: Inside,
    /// The Open that is under way or was answered.
    pub(super) open: Option<Open>,
    pub(super) opened: Option<Result<Opened, Failure>>,
    pub(super) session: Option<Session>,
    pub(super) is_lost: bool,
    /// Inner packets that came, each with when.
    pub(super) received: Vec<(Nanos, Vec<u8>)>,
    pub(super) drops: Drops,
}

impl Client {
    pub(super) fn new(address: SocketAddrV4, inside: Inside) -> Self {
        Self {
            address,
            inside,
            open: None,
            opened: None,
            session: None,
            is_lost: false,
            received: Vec::new(),
            drops: Drops::default(),
        }
    }

    /// The entry's answer. True where a session begins.
    pub(super) fn on_response(&mut self, response: Response, now: Nanos) -> bool {
        if self.opened.is_some() {
            return false; // the answer to a retry
        }
        match response {
            Response::Opened(opened) => {
                if opened.entry.source_port != 0 {
                    self.address.set_port(opened.entry.source_port);
                }
                self.session = Some(Session::new(&opened, self.inside, now));
                self.opened = Some(Ok(opened));
                true
            }
            Response::Failed(failure) => {
                self.opened = Some(Err(failure));
                false
            }
            other => panic!("an entry does not answer {other:?}"),
        }
    }

    fn wrap(&self, datagram: &[u8]) -> Vec<u8> {
        let Some(Ok(opened)) = &self.opened else { panic!("no session is open") };
        packets::udp(self.address, opened.entry.data, datagram)
    }

    /// The packet that carries `inner` to the entry.
    pub(super) fn send(&mut self, inner: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0; relay::HEADER_BYTES];
        datagram.extend_from_slice(inner);
        self.session.as_mut().expect("no session is open").seal(&mut datagram);
        self.wrap(&datagram)
    }

    /// What time demands: a packet to send, and when to look again.
    pub(super) fn poll(&mut self, now: Nanos) -> (Option<Vec<u8>>, Option<Nanos>) {
        let Some(session) = &mut self.session else { return (None, None) };
        let packet = match session.poll(now) {
            Due::Nothing => None,
            Due::KeepAlive(datagram) => Some(datagram),
            Due::Lost => {
                self.is_lost = true;
                return (None, None);
            }
        };
        let deadline = session.deadline();
        (packet.map(|datagram| self.wrap(&datagram)), Some(deadline))
    }

    /// A packet from the network.
    pub(super) fn on_packet(&mut self, packet: &[u8], now: Nanos) {
        let (Some(session), Some(Ok(opened))) = (&mut self.session, &self.opened) else { return };
        let Some((source, destination, datagram)) = packets::parse_udp(packet) else {
            panic!("the entry sends well-formed packets");
        };
        assert_eq!((source, destination), (opened.entry.data, self.address));
        match session.receive(datagram, now) {
            Ok(Received::KeepAlive) => {}
            Ok(Received::Packet(range)) => self.received.push((now, datagram[range].to_vec())),
            Err(reason) => self.drops.count(reason),
        }
    }

    /// The UDP payloads that came, in order.
    pub(super) fn payloads(&self) -> Vec<Vec<u8>> {
        let payload = |(_, packet): &(Nanos, Vec<u8>)| Some(packets::parse_udp(packet)?.2.to_vec());
        self.received.iter().filter_map(payload).collect()
    }

    /// Drops for any reason.
    pub(super) fn dropped(&self) -> u64 {
        Reason::ALL.iter().map(|reason| self.drops.get(*reason)).sum()
    }
}
