//! The requirements of docs/NAT.md with real packets: a real node as a gateway in network namespaces, and raw sockets for
//! its hosts. One file an RFC, tests named after its requirements. What takes hours is tested on a virtual clock, in
//! `src/sim/nat`.
//!
//! Gateways are few and shared: a test has its turn with one, and ports that no other test uses.

#[allow(dead_code, reason = "the oracle uses the rest")]
#[path = "../oracle/packet.rs"]
mod packet;
mod rfc4787;
mod rfc5382;
mod rfc5508;
mod rfc6888;
mod rfc7857;
#[allow(dead_code, reason = "the oracle uses the rest")]
#[path = "../oracle/rig.rs"]
mod rig;
#[allow(dead_code, reason = "the oracle uses the rest")]
#[path = "../oracle/script.rs"]
mod script;
mod shipped;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard, Once, PoisonError},
    time::{Duration, Instant},
};

use packet::{Host, Names, Packet, Point};
use rig::{Rig, Side};

/// As it is without a word in its file.
const DEFAULT: &str = "";
/// Timers that a test can wait for.
const IMPATIENT: &str = "[nat]\ntimers = { udp_s = 2, icmp_s = 2, tcp_opening_s = 2, tcp_closing_s = 2 }\n";
/// Little for each host, and a network that is reached as it is.
const LIMITED: &str = "exempt = [\"203.0.113.20/32\"]\n[nat]\nports_a_host = 2\nbindings_a_host = 4\nparity = false\n";
/// Two outside addresses, and ports in blocks.
const POOL: &str = "addresses = [\"203.0.113.1\", \"203.0.113.2\"]\nports = \"40000-59999\"\n[nat]\nport_block = 64\n";
/// Only who was spoken to may answer.
const FILTERING: &str = "[nat]\nfiltering = \"address-dependent\"\n";

/// One address with eight ports for each protocol, so that they run out; the network that is reached as it is needs none.
const TINY: &str = "exempt = [\"203.0.113.20/32\"]\naddresses = [\"203.0.113.2\"]\nports = \"40000-40007\"\n\
                    [nat]\nparity = false\n";
/// Two addresses with four, and timers that a test can wait for.
const TINY_POOL: &str = "exempt = [\"203.0.113.20/32\"]\naddresses = [\"203.0.113.2\", \"203.0.113.3\"]\n\
                         ports = \"40000-40003\"\n[nat]\nparity = false\ntimers = { icmp_s = 2 }\n";

/// How long silence lasts that counts as an end.
const QUIET: Duration = Duration::from_millis(15);
/// After this long something that should happen has failed to.
const PATIENCE: Duration = Duration::from_secs(45);

/// Whoever runs a test has its turn with all gateways.
static GATEWAYS: Mutex<BTreeMap<&str, Rig>> = Mutex::new(BTreeMap::new());

fn gateways() -> MutexGuard<'static, BTreeMap<&'static str, Rig>> {
    GATEWAYS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The namespaces and processes of a static would outlive this process.
extern "C" fn take_down() {
    gateways().clear();
}

/// A turn with a gateway, and ports of one's own.
struct Turn {
    gateways: MutexGuard<'static, BTreeMap<&'static str, Rig>>,
    tables: &'static str,
    names: Names,
}

impl Turn {
    /// With the gateway that has these lines in its file.
    fn with(tables: &'static str) -> Self {
        static AT_EXIT: Once = Once::new();
        static NEXT: Mutex<u16> = Mutex::new(2000);
        // SAFETY: the function is called once, at the end, when no test runs any more.
        AT_EXIT.call_once(|| assert_eq!(unsafe { nix::libc::atexit(take_down) }, 0));
        let mut gateways = gateways();
        gateways.entry(tables).or_insert_with(|| Rig::starnet(tables));
        let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
        *next += 100;
        Self { gateways, tables, names: Names { base: *next, mappings: Vec::new() } }
    }

    fn rig(&self) -> &Rig {
        &self.gateways[self.tables]
    }

    /// True while the node runs.
    fn is_running(&mut self) -> bool {
        self.gateways.get_mut(self.tables).is_some_and(Rig::is_running)
    }

    /// A port of the gateway's that no mapping has: others of the same gateway have many.
    fn unused_port(&self) -> Point {
        let is_unused = |port: &u16| {
            let shown = self.rig().ask(&format!("show nat flows --port {port} --json"));
            !shown.contains(&format!(":{port}\""))
        };
        Host::Gateway.port((45_000..).find(is_unused).expect("there are many"))
    }

    /// Bytes on the wire, and all that comes of them.
    fn put(&self, side: Side, packet: &[u8]) -> Vec<(Side, Vec<u8>)> {
        self.rig().send(side, packet);
        script::settle(self.rig(), QUIET)
    }

    /// A host inside sends; what comes of it in words, each up to its first comma, checksums right.
    fn inside(&mut self, packet: &Packet) -> Vec<String> {
        self.send(Side::Inside, packet)
    }

    /// Somebody outside sends.
    fn outside(&mut self, packet: &Packet) -> Vec<String> {
        self.send(Side::Outside, packet)
    }

    fn send(&mut self, side: Side, packet: &Packet) -> Vec<String> {
        let bytes = packet.bytes(&self.names).expect("its mapping was made");
        let came = self.put(side, &bytes);
        self.told(&came)
    }

    fn told(&mut self, came: &[(Side, Vec<u8>)]) -> Vec<String> {
        let tell = |(side, packet): &(Side, Vec<u8>)| {
            let words = self.names.describe(packet);
            assert!(!words.contains("wrong"), "{words}");
            format!("{side:?}: {}", words.split(", ").next().expect("a first part"))
        };
        came.iter().map(tell).collect()
    }

    /// The packet in fragments, in this order; what comes of them, put together.
    fn fragments(&mut self, side: Side, packet: Packet, id: u16, order: &[usize]) -> Vec<String> {
        let packet = packet.with(|packet| (packet.id, packet.is_dont_fragment) = (id, false));
        let parts = packet::fragments(&packet.bytes(&self.names).expect("its mapping was made"), 800);
        order.iter().for_each(|at| self.rig().send(side, &parts[*at]));
        let came = script::settle(self.rig(), QUIET);
        let sides: Vec<Side> = came.iter().map(|(side, _)| *side).collect();
        let whole = packet::reassemble(came.into_iter().map(|(_, packet)| packet).collect());
        self.told(&whole.into_iter().zip(sides).map(|(packet, side)| (side, packet)).collect::<Vec<_>>())
    }

    /// How servers see the sender of a packet that goes out.
    fn seen(&mut self, packet: &Packet) -> (Ipv4Addr, u16) {
        let bytes = packet.bytes(&self.names).expect("a packet");
        let came = self.put(Side::Inside, &bytes);
        let [(Side::Outside, out)] = &came[..] else { panic!("not one packet went out: {came:02x?}") };
        let port = if out[9] == 1 { 24 } else { 20 };
        (Ipv4Addr::new(out[12], out[13], out[14], out[15]), u16::from_be_bytes([out[port], out[port + 1]]))
    }
}

/// The UDP packet with another last byte of an address (at 15 or 19), and no UDP checksum.
fn renumbered(mut packet: Vec<u8>, at: usize, byte: u8) -> Vec<u8> {
    // RFC 1624: the checksum follows the change.
    let change = u32::from(!packet[at]) + 0xff00 + u32::from(byte);
    let sum = u32::from(!u16::from_be_bytes([packet[10], packet[11]])) + change;
    let folded = (sum & 0xffff) + (sum >> 16);
    let field = !((folded & 0xffff) + (folded >> 16)) as u16;
    packet[10..12].copy_from_slice(&field.to_be_bytes());
    packet[at] = byte;
    packet[26..28].fill(0);
    packet
}

/// Polls until it is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "waited in vain for {what}");
    }
}

/// A question of A to S.
fn question() -> Packet {
    Packet::udp(Host::A.own(1), Host::S.port(53), b"question")
}

/// An answer to whoever has the first mapping.
fn answer() -> Packet {
    Packet::udp(Host::S.port(53), packet::mapped(0), b"answer")
}
