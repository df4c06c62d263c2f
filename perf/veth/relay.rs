//! The neighbours of a relay that is measured: the control centre, the node before it and the node after it, as far as
//! the relay can tell. Sessions are set up through it over QUIC as real ones are, so it is a node like any other.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use starnet::{
    dataplane::conntrack::CtIndex,
    rpc::{
        cert::{CONTROLLER_DNS_NAME, ServerIdentity, Tls, node_dns_name},
        messages::{
            LinkEnd, Neighbour, Neighbours, NodeInfo, Register, Request, Response, Roles, SessionId, SessionKind,
            SetUp, Setup,
        },
        quic::{Incoming, Pool, Server},
        token::{self, Claims, SigningKey},
    },
    wire::{
        ethernet, ip4,
        relay::{self, HopKey, Kind},
        udp,
    },
};
use tokio::sync::mpsc::Receiver;

use crate::{
    Outcome,
    frames::{Addresses, FRAME_BYTES_MAX, Frames, datagram, scatter},
};

/// Name of the relay, and of the files of its certificate.
const RELAY: &str = "relay";
const UPSTREAM: &str = "upstream";
const DOWNSTREAM: &str = "downstream";

/// Ports of control messages.
const CONTROLLER_PORT: u16 = 4600;
const UPSTREAM_PORT: u16 = 4601;
const DOWNSTREAM_PORT: u16 = 4602;

/// For each answer of the relay.
const PATIENCE: Duration = Duration::from_secs(10);

const MTU: u16 = 1400;
const GENERATION: u16 = 1;
const BOOT_EPOCH: u64 = 1;
const KEY: HopKey = [7; 16];

/// Where the neighbours are.
#[derive(Args)]
pub(crate) struct Neighbourhood {
    #[command(flatten)]
    addresses: Addresses,
    /// Folder of certificates: ca, controller, upstream, downstream
    #[arg(long)]
    pki: PathBuf,
    /// Address of the control messages of all three; the control centre's port is 4600
    #[arg(long)]
    control: Ipv4Addr,
    /// Where the relay's packets come from
    #[arg(long)]
    upstream: SocketAddrV4,
    /// Where it sends them
    #[arg(long)]
    downstream: SocketAddrV4,
    /// Sessions; the frames take them in turn, in an order that no prefetcher guesses
    #[arg(long, default_value_t = 1)]
    sessions: u32,
}

impl Neighbourhood {
    /// Stays until killed: the relay goes on reporting.
    pub(crate) fn run(&self, file: &Path) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.serve(file))
    }

    async fn serve(&self, file: &Path) -> Outcome {
        let signing = SigningKey::generate();
        let neighbours = Neighbours {
            nodes: vec![self.node(UPSTREAM, UPSTREAM_PORT), self.node(DOWNSTREAM, DOWNSTREAM_PORT)],
            token_key: signing.public(),
        };
        let (_controller, mut from_relay) =
            Server::listen(self.at(CONTROLLER_PORT), &self.tls("controller", CONTROLLER_DNS_NAME)?)?;
        let (upstream, _) = Server::listen(self.at(UPSTREAM_PORT), &self.node_tls(UPSTREAM)?)?;
        let (_downstream, setups) = Server::listen(self.at(DOWNSTREAM_PORT), &self.node_tls(DOWNSTREAM)?)?;
        let pool = Pool::sharing(&upstream, &self.node_tls(UPSTREAM)?)?;
        tokio::spawn(answer_setups(setups, self.downstream));

        let relay = registered(&mut from_relay, &neighbours).await?;
        tokio::spawn(answer_reports(from_relay, neighbours));
        let now = token::unix_seconds();
        let claims = Claims {
            client: "perf".into(),
            expires: now + 86_400,
            not_before: now,
            exits: None,
            paths_max: 1,
            sessions_max: self.sessions,
        };
        let token = token::issue(&claims, &signing);
        let mut sessions = Vec::new();
        for number in 0..self.sessions {
            sessions.push(self.set_up(&pool, &relay, &token, number).await?);
        }
        self.frames(&relay, &sessions)?.save(file)?;
        std::future::pending().await
    }

    async fn set_up(
        &self,
        pool: &Pool,
        relay: &NodeInfo,
        token: &str,
        number: u32,
    ) -> Result<SetUp, Box<dyn std::error::Error>> {
        let mut session: SessionId = [0; 16];
        session[..4].copy_from_slice(&number.to_be_bytes());
        let setup = Request::Setup(Setup {
            token: token.into(),
            entry: UPSTREAM.into(),
            session,
            kind: SessionKind::Tunnel { inside: Ipv4Addr::new(100, 64, 0, 2), inside6: None },
            mtu: MTU,
            path: 0,
            route: vec![RELAY.into(), DOWNSTREAM.into()],
            upstream: LinkEnd {
                data: self.upstream,
                ct_index: CtIndex::new(0, number),
                generation: GENERATION,
                source_port: relay.data.port(),
            },
            boot_epoch: BOOT_EPOCH,
        });
        let mut attempts = 0;
        loop {
            match pool.call(&ServerIdentity::Node(RELAY.into()), relay.control, &setup, PATIENCE).await? {
                Response::SetUp(set_up) => return Ok(set_up),
                // It may not have read yet who its neighbours are.
                Response::Failed(_) if attempts < 20 => attempts += 1,
                other => return Err(format!("the relay sets no session up: {other:?}").into()),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Data on its way up, sequence after sequence. A relay keeps no window: they are good again and again.
    fn frames(&self, relay: &NodeInfo, sessions: &[SetUp]) -> Result<Frames, String> {
        const INNER_AT: usize = RELAY_AT + relay::HEADER_BYTES;
        const RELAY_AT: usize = ethernet::HEADER_BYTES + ip4::HEADER_BYTES + udp::HEADER_BYTES;

        let Addresses { mac, source_mac, size, count } = self.addresses;
        if !(INNER_AT + ip4::HEADER_BYTES + udp::HEADER_BYTES..=FRAME_BYTES_MAX).contains(&size) {
            return Err(format!("relay frames cannot have {size} bytes"));
        }
        let mut frames = Frames::new(size);
        for number in 0..count {
            let session = &sessions[scatter(number, self.sessions) as usize];
            let frame = frames.add();
            ethernet::emit(frame, mac.0, source_mac.0);
            let packet = &mut frame[ethernet::HEADER_BYTES..];
            let total = packet.len() as u16;
            ip4::emit(packet, *self.upstream.ip(), *relay.data.ip(), ip4::UDP, total, 64);
            let datagram_bytes = total - ip4::HEADER_BYTES as u16;
            let ports = (session.downstream.source_port, relay.data.port());
            udp::emit(&mut packet[ip4::HEADER_BYTES..], ports.0, ports.1, datagram_bytes);
            datagram(&mut frame[INNER_AT..], (Ipv4Addr::new(100, 64, 0, 2), 5000), (Ipv4Addr::new(203, 0, 113, 1), 9));
            let header = relay::Header {
                kind: Kind::DataUp,
                path: 0,
                generation: session.downstream.generation,
                ct_index: session.downstream.ct_index.0,
                sequence: u64::from(number / self.sessions) + 1,
            };
            relay::emit_between_nodes(&mut frame[RELAY_AT..], &header, &session.key);
        }
        Ok(frames)
    }

    fn at(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.control, port)
    }

    fn node(&self, name: &str, port: u16) -> Neighbour {
        let data = if name == UPSTREAM { self.upstream } else { self.downstream };
        let roles = Roles { entry: true, relay: true, exit: true };
        let node = NodeInfo { name: name.into(), control: self.at(port), data, roles, boot_epoch: BOOT_EPOCH };
        Neighbour { node, probe_key: KEY }
    }

    fn node_tls(&self, name: &str) -> Result<Tls, Box<dyn std::error::Error>> {
        self.tls(name, &node_dns_name(name))
    }

    fn tls(&self, files: &str, dns_name: &str) -> Result<Tls, Box<dyn std::error::Error>> {
        let file = |extension| self.pki.join(format!("{files}.{extension}"));
        Ok(Tls::load(&self.pki.join("ca.pem"), &file("pem"), &file("key"), dns_name)?)
    }
}

/// Waits until the relay presents itself.
async fn registered(requests: &mut Receiver<Incoming>, neighbours: &Neighbours) -> Result<NodeInfo, String> {
    while let Some(Incoming { request, responder, .. }) = requests.recv().await {
        if let Request::Register(Register { node, .. }) = request {
            responder.respond(Response::Neighbours(neighbours.clone()));
            return Ok(node);
        }
    }
    Err("the relay did not register".into())
}

async fn answer_reports(mut requests: Receiver<Incoming>, neighbours: Neighbours) {
    while let Some(Incoming { responder, .. }) = requests.recv().await {
        responder.respond(Response::Neighbours(neighbours.clone()));
    }
}

/// The node after the relay: agrees to everything.
async fn answer_setups(mut requests: Receiver<Incoming>, data: SocketAddrV4) {
    let mut slots = 0;
    while let Some(Incoming { request, responder, .. }) = requests.recv().await {
        let Request::Setup(setup) = request else { continue };
        let source_port = setup.upstream.data.port();
        let downstream = LinkEnd { data, ct_index: CtIndex::new(0, slots), generation: GENERATION, source_port };
        slots += 1;
        let exit_address = Ipv4Addr::new(203, 0, 113, 2);
        responder.respond(Response::SetUp(SetUp {
            downstream,
            key: KEY,
            exit_address,
            exit_address6: None,
            boot_epoch: BOOT_EPOCH,
        }));
    }
}
