//! Control messages over QUIC: what the server and the client side have in common.
//!
//! TLS 1.3 only, no 0-RTT (a request could be replayed) and no resumption (a certificate is checked at each
//! handshake). One bidirectional stream a request, so that a slow answer holds up no other.

use std::{sync::Arc, time::Duration};

use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use ring::{
    hkdf::{HKDF_SHA256, Salt},
    hmac::{self, HMAC_SHA256},
    rand::{SecureRandom, SystemRandom},
};

use super::cert::Tls;
use crate::limits;

mod client;
mod server;

pub use client::{CallError, Pool};
pub use server::{Counters, Incoming, ListenError, Responder, Server};

/// A peer that is silent for this long is gone.
const IDLE: Duration = Duration::from_secs(3);

/// The caller's side says something at least this often while it holds a connection.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Requests at a time over one connection of someone without certificate.
const STREAMS_OF_A_CLIENT: u32 = 16;

/// Requests at a time over one connection of a node.
const STREAMS_OF_A_NODE: u32 = 256;

const CONNECTION_ID_BYTES: usize = 8;

/// Why a stream is reset or a connection closed, as the other side sees it.
mod code {
    use quinn::VarInt;

    /// Nothing is wrong.
    pub(super) const DONE: VarInt = VarInt::from_u32(0);
    /// What came is not a message.
    pub(super) const MALFORMED: VarInt = VarInt::from_u32(1);
    /// No answer was made.
    pub(super) const ABANDONED: VarInt = VarInt::from_u32(2);
    /// The certificate is for no node.
    pub(super) const NOT_A_NODE: VarInt = VarInt::from_u32(3);
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE).expect("three seconds fit")))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    transport
}

/// Two requests of full size may wait unread on a connection; more is held back at the sender.
fn server_transport() -> TransportConfig {
    let mut transport = transport();
    let window = VarInt::from_u32(2 * limits::MESSAGE_BYTES_MAX as u32);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_OF_A_CLIENT))
        .stream_receive_window(window)
        .receive_window(window);
    transport
}

fn client_transport() -> TransportConfig {
    let mut transport = transport();
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    transport
}

/// Connections of a process that died without a word are still known to its peers. When it is back it tells them at
/// the first packet, by a stateless reset (RFC 9000, 10.3), instead of leaving them to their idle time-out. For that
/// the tokens of the resets must outlive the process: their key is derived from its private key.
fn endpoint_config(tls: &Tls) -> EndpointConfig {
    let Some(identity) = &tls.identity else { return EndpointConfig::default() };
    let salt = Salt::new(HKDF_SHA256, b"starnet QUIC stateless reset");
    let key = salt.extract(identity.key.secret_der());
    let key: hmac::Key = key.expand(&[], HMAC_SHA256).expect("the length is the algorithm's own").into();
    let mut config = EndpointConfig::new(Arc::new(key));
    config.cid_generator(|| Box::new(RandomIds(SystemRandom::new())));
    config
}

/// Connection identifiers that any process may have made. Those of quinn's default generator are checked against a
/// key of the process, and the next one drops the packet before it thinks of a reset.
struct RandomIds(SystemRandom);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_BYTES];
        self.0.fill(&mut id).expect("the system's random source works");
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests;
