//! The side that answers.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use quinn::{Connection, Endpoint, RecvStream, SendStream, ServerConfig, VarInt, crypto::rustls::QuicServerConfig};
use rustls::{pki_types::CertificateDer, server::WebPkiClientVerifier};
use tokio::sync::{mpsc, oneshot};

use super::{STREAMS_OF_A_NODE, code, endpoint_config, server_transport};
use crate::{
    control::interface::Caller,
    rpc::{
        cert::{self, Tls},
        codec,
        messages::{ALPN, Request, Response},
    },
};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 4096;

/// Connections at a time from one address.
const CONNECTIONS_OF_AN_ADDRESS: u32 = 64;

/// Requests that wait for the one who answers them.
const REQUESTS_WAITING: usize = 256;

/// A request that takes longer to arrive is not waited for.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// What is told to the others at the end must get out in this time.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// A request, who asks, and the way to answer.
#[derive(Debug)]
pub struct Incoming {
    /// By certificate, or by validated address.
    pub caller: Caller,
    /// What is asked.
    pub request: Request,
    /// Takes the answer.
    pub responder: Responder,
}

/// The way back of one request. Dropping it without an answer resets the stream.
#[derive(Debug)]
pub struct Responder(oneshot::Sender<Response>);

impl Responder {
    /// Answers. Never blocks; an answer that nobody waits for any more is dropped.
    pub fn respond(self, response: Response) {
        let _ = self.0.send(response);
    }

    /// True where nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }
}

/// What happened at a server, for `show` and for tests.
#[derive(Debug, Default)]
pub struct Counters {
    /// First packets answered by a Retry: the source has to show that it is there.
    pub retries: AtomicU64,
    /// Connections that were opened.
    pub connections: AtomicU64,
    /// Connections refused because there were too many.
    pub refused: AtomicU64,
    /// Handshakes that failed: wrong authority, wrong protocol, no time.
    pub handshakes_failed: AtomicU64,
    /// Requests passed on.
    pub requests: AtomicU64,
    /// Streams reset because no request came over them.
    pub malformed: AtomicU64,
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is in use, or not one of ours.
    #[error("cannot listen on {address}/udp for control messages: {cause}")]
    Bind {
        /// Where.
        address: SocketAddrV4,
        /// What the system says.
        cause: io::Error,
    },
    /// The certificate or key cannot be used.
    #[error("cannot serve TLS: {0}")]
    Tls(String),
}

/// Listens for requests until it is closed.
#[derive(Debug)]
pub struct Server {
    pub(super) endpoint: Endpoint,
    counters: Arc<Counters>,
}

impl Server {
    /// Listens on `address` (port 0: any). Requests come out of the returned channel, which ends after
    /// [`Server::close`]. To be called within a tokio runtime, which then does the work.
    ///
    /// # Errors
    /// Where the address cannot be bound, or `tls` has no identity.
    pub fn listen(address: SocketAddrV4, tls: &Tls) -> Result<(Self, mpsc::Receiver<Incoming>), ListenError> {
        let config = server_config(tls)?;
        let endpoint = UdpSocket::bind(address)
            .and_then(|socket| {
                let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("there is no tokio runtime"))?;
                Endpoint::new(endpoint_config(tls), Some(config), socket, runtime)
            })
            .map_err(|cause| ListenError::Bind { address, cause })?;
        let counters = Arc::new(Counters::default());
        let (sender, receiver) = mpsc::channel(REQUESTS_WAITING);
        tokio::spawn(accept(endpoint.clone(), sender, Arc::clone(&counters)));
        Ok((Self { endpoint, counters }, receiver))
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// What happened so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Tells every peer that this is the end and stops, at most half a second later.
    pub async fn close(&self) {
        self.endpoint.close(code::DONE, b"shutting down");
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await;
    }
}

fn server_config(tls: &Tls) -> Result<ServerConfig, ListenError> {
    let wrong = |error: &dyn std::fmt::Display| ListenError::Tls(error.to_string());
    let identity = tls.identity.as_ref().ok_or_else(|| wrong(&"there is no certificate"))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&tls.roots), cert::provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(&error))?;
    let mut config = rustls::ServerConfig::builder_with_provider(cert::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(|error| wrong(&error))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    let crypto = QuicServerConfig::try_from(config).map_err(|error| wrong(&error))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    // A caller without certificate is known by its address alone: it must not change under a connection.
    config.migration(false).transport_config(Arc::new(server_transport()));
    Ok(config)
}

async fn accept(endpoint: Endpoint, requests: mpsc::Sender<Incoming>, counters: Arc<Counters>) {
    let places = Arc::new(Places::default());
    while let Some(incoming) = endpoint.accept().await {
        // RFC 9000, 8.1.2: nothing is kept for a source that may be forged.
        if !incoming.remote_address_validated() {
            counters.retries.fetch_add(1, Relaxed);
            if incoming.retry().is_err() {
                counters.refused.fetch_add(1, Relaxed);
            }
            continue;
        }
        let IpAddr::V4(address) = incoming.remote_address().ip() else {
            incoming.refuse();
            continue;
        };
        let Some(place) = Places::take(&places, address) else {
            counters.refused.fetch_add(1, Relaxed);
            tracing::debug!(%address, "refused: too many connections");
            incoming.refuse();
            continue;
        };
        let (requests, counters) = (requests.clone(), Arc::clone(&counters));
        tokio::spawn(async move {
            let _place = place;
            match incoming.accept() {
                Ok(connecting) => match connecting.await {
                    Ok(connection) => serve(connection, address, requests, &counters).await,
                    Err(error) => {
                        counters.handshakes_failed.fetch_add(1, Relaxed);
                        tracing::debug!(%address, %error, "handshake failed");
                    }
                },
                Err(error) => {
                    counters.handshakes_failed.fetch_add(1, Relaxed);
                    tracing::debug!(%address, %error, "not accepted");
                }
            }
        });
    }
}

/// Takes the requests of one connection until it ends.
async fn serve(connection: Connection, address: Ipv4Addr, requests: mpsc::Sender<Incoming>, counters: &Arc<Counters>) {
    counters.connections.fetch_add(1, Relaxed);
    let Some(caller) = caller_of(&connection, address) else {
        counters.handshakes_failed.fetch_add(1, Relaxed);
        tracing::warn!(%address, "refused: its certificate is for no node");
        connection.close(code::NOT_A_NODE, b"the certificate is for no node");
        return;
    };
    if matches!(caller, Caller::Node(_)) {
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS_OF_A_NODE));
    }
    tracing::debug!(%address, ?caller, "connected");
    while let Ok((send, receive)) = connection.accept_bi().await {
        let (caller, requests, counters) = (caller.clone(), requests.clone(), Arc::clone(counters));
        tokio::spawn(answer(send, receive, caller, requests, counters));
    }
}

/// Who is at the other end; `None` where it has a certificate that is for no node.
fn caller_of(connection: &Connection, address: Ipv4Addr) -> Option<Caller> {
    let Some(identity) = connection.peer_identity() else { return Some(Caller::Client(address)) };
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    cert::node_of(chain.first()?).map(Caller::Node)
}

/// One stream: takes the request, passes it on, sends the answer.
async fn answer(
    mut send: SendStream,
    mut receive: RecvStream,
    caller: Caller,
    requests: mpsc::Sender<Incoming>,
    counters: Arc<Counters>,
) {
    let frame = receive.read_to_end(codec::frame_bytes_max::<Request>());
    let request = match tokio::time::timeout(REQUEST_TIMEOUT, frame).await {
        Ok(Ok(frame)) => codec::decode::<Request>(&frame).map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the request did not arrive in time".to_owned()),
    };
    let request = match request {
        Ok(request) => request,
        Err(error) => {
            counters.malformed.fetch_add(1, Relaxed);
            tracing::debug!(?caller, error, "stream reset");
            let _ = receive.stop(code::MALFORMED);
            let _ = send.reset(code::MALFORMED);
            return;
        }
    };
    counters.requests.fetch_add(1, Relaxed);
    let (sender, mut response) = oneshot::channel();
    let incoming = Incoming { caller, request, responder: Responder(sender) };
    // The receiver of the answer goes with this task: where the caller gives up, `is_abandoned` says so.
    let response = tokio::select! {
        passed_on = requests.send(incoming) => match passed_on {
            Ok(()) => tokio::select! {
                response = &mut response => response.ok(),
                _ = send.stopped() => None,
            },
            Err(_) => None,
        },
        _ = send.stopped() => None,
    };
    match response.map(|response| codec::encode(&response)) {
        Some(Ok(frame)) => {
            if send.write_all(&frame).await.is_ok() {
                let _ = send.finish();
            }
        }
        Some(Err(error)) => {
            tracing::error!(%error, "an answer cannot be sent");
            let _ = send.reset(code::ABANDONED);
        }
        None => {
            let _ = send.reset(code::ABANDONED);
        }
    }
}

/// Connections by address.
#[derive(Debug, Default)]
struct Places(Mutex<HashMap<Ipv4Addr, u32>>);

/// One connection's place, given back when dropped.
struct Place {
    places: Arc<Places>,
    address: Ipv4Addr,
}

impl Places {
    fn take(places: &Arc<Self>, address: Ipv4Addr) -> Option<Place> {
        let mut taken = places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().map(|count| *count as usize).sum::<usize>() >= CONNECTIONS_MAX {
            return None;
        }
        let count = taken.entry(address).or_default();
        if *count >= CONNECTIONS_OF_AN_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Place { places: Arc::clone(places), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_gets_only_so_many_places_and_gives_them_back() {
        let places = Arc::new(Places::default());
        let [one, two] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
        let mut held: Vec<Place> = (0..CONNECTIONS_OF_AN_ADDRESS).filter_map(|_| Places::take(&places, one)).collect();
        assert_eq!(held.len(), CONNECTIONS_OF_AN_ADDRESS as usize);
        assert!(Places::take(&places, one).is_none());
        assert!(Places::take(&places, two).is_some());
        held.pop();
        assert!(Places::take(&places, one).is_some());
        held.clear();
        assert!(places.0.lock().unwrap().is_empty());
    }
}
