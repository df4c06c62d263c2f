//! A gateway between two raw sockets: what is put on the wire on one side, and what comes out on either.
//!
//! Three namespaces, `inside` - `gateway` - `outside`, joined by veth. The ends in `inside` and `outside` have no address and
//! no kernel behind them: the script is every host there, at one MAC address.

use std::{
    fs::{self, File},
    io::Write,
    mem,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::{
        signal::{Signal, kill},
        socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
    },
    unistd::Pid,
};
use tempfile::TempDir;

use crate::packet::Host;

/// MAC addresses: of every host of the script, and of the gateway's two interfaces.
const HOSTS: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
const GATEWAY: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Inside,
    Outside,
}

/// A gateway, until dropped.
pub(crate) struct Rig {
    name: String,
    sockets: [OwnedFd; 2],
    process: Option<Child>,
    is_t_exempt: bool,
    folder: TempDir,
}

impl Rig {
    /// Linux as a good router is set up: masquerade, invalid packets dropped, connections begin with a SYN, no service
    /// outside.
    pub(crate) fn nft() -> Self {
        let rig = Self::wired("nft");
        rig.gateway("sysctl -qw net.ipv4.ip_forward=1 net.netfilter.nf_conntrack_tcp_loose=0");
        let mut nft = rig.in_gateway("nft -f -").stdin(Stdio::piped()).spawn().unwrap();
        let rules = "table ip oracle {
            chain nat { type nat hook postrouting priority srcnat; oifname \"outside\" masquerade; }
            chain forward { type filter hook forward priority filter; ct state invalid drop; }
            chain input { type filter hook input priority filter; iifname \"outside\" drop; }
        }\n";
        nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(nft.wait().unwrap().success(), "nft refuses the rules");
        rig
    }

    /// starnet as a gateway, with its defaults but for `tables` of its configuration.
    pub(crate) fn starnet(tables: &str) -> Self {
        let mut rig = Self::wired("starnet");
        rig.is_t_exempt = tables.contains("exempt");
        let folder = rig.folder.path();
        let (config, log) = (folder.join("node.toml"), folder.join("node.log"));
        let text = format!(
            "[node]\nname = \"{}\"\naddress = \"{}\"\nports = \"40000-59999\"\npin = false\nsocket = \"node.sock\"\n\
             [gateway]\ninside = [\"inside\"]\noutside = [\"outside\"]\n{tables}[limits]\nbindings = 65536\n",
            rig.name,
            Host::Gateway.address()
        );
        fs::write(&config, text).unwrap();
        let words = format!("{} node --config {}", env!("CARGO_BIN_EXE_starnet"), config.display());
        let mut command = rig.in_gateway(&words);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        rig.process = Some(command.spawn().unwrap());
        let until = Instant::now() + Duration::from_secs(60);
        while !fs::read_to_string(&log).unwrap().contains(" running ") {
            let said = fs::read_to_string(&log).unwrap();
            assert!(Instant::now() < until, "starnet does not start: {said}");
            assert!(rig.process.as_mut().unwrap().try_wait().unwrap().is_none(), "starnet ended: {said}");
            thread::sleep(Duration::from_millis(20));
        }
        rig
    }

    /// What the gateway has to say of itself, to understand a test that failed.
    pub(crate) fn story(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("node.log")).unwrap_or_default();
        if self.process.is_none() {
            return log;
        }
        let shown = ["show drops", "show workers", "show nat summary"].map(|view| self.try_ask(view));
        format!("its log:\n{log}\n{}", shown.join("\n"))
    }

    fn wired(kind: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("oracle-{kind}-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let namespace = |part: &str| format!("{name}.{part}");
        for part in ["inside", "gateway", "outside"] {
            shell(&format!("ip netns add {}", namespace(part)));
        }
        for (number, part) in ["inside", "outside"].into_iter().enumerate() {
            shell(&format!(
                "ip link add name raw netns {} address {} type veth peer name {part} netns {} address {}",
                namespace(part),
                mac(HOSTS),
                namespace("gateway"),
                mac(GATEWAY[number])
            ));
            shell(&format!("ip netns exec {} sysctl -qw net.ipv6.conf.all.disable_ipv6=1", namespace(part)));
            for (place, end) in [(part, "raw"), ("gateway", part)] {
                // Without its own checksum a packet is useless to AF_XDP and to the script.
                shell(&format!("ip netns exec {} ethtool -K {end} tx off", namespace(place)));
                shell(&format!("ip -n {} link set {end} up", namespace(place)));
            }
        }
        // So that what fits inside can be too big for the way out.
        for place in ["gateway outside", "outside raw"] {
            let (part, end) = place.split_once(' ').expect("two words");
            shell(&format!("ip -n {} link set {end} mtu 1400", namespace(part)));
        }
        let sockets = ["inside", "outside"].map(|part| raw_socket(&namespace(part)));
        let rig = Self { name, sockets, process: None, is_t_exempt: false, folder: tempfile::tempdir().unwrap() };
        rig.gateway(
            "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv4.icmp_ratelimit=0 net.ipv4.icmp_msgs_per_sec=100000",
        );
        rig.gateway("ip link set lo up");
        // For pools; nobody speaks to them otherwise.
        rig.gateway("ip address add 203.0.113.2/32 dev lo");
        rig.gateway("ip address add 203.0.113.3/32 dev lo");
        for (host, device) in [(Host::GatewayInside, "inside"), (Host::Gateway, "outside")] {
            rig.gateway(&format!("ip address add {}/24 dev {device}", host.address()));
        }
        let hosts = [
            (Host::A, "inside"),
            (Host::B, "inside"),
            (Host::S, "outside"),
            (Host::T, "outside"),
            (Host::R, "outside"),
        ];
        for (host, device) in hosts {
            rig.gateway(&format!(
                "ip neighbour add {} lladdr {} dev {device} nud permanent",
                host.address(),
                mac(HOSTS)
            ));
        }
        rig
    }

    /// Runs a command in the gateway; it must succeed.
    fn gateway(&self, words: &str) {
        checked(words, self.in_gateway(words).output().unwrap());
    }

    fn in_gateway(&self, words: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}.gateway", self.name)]).args(words.split_whitespace());
        command
    }

    /// What starnet says on its operator's socket.
    pub(crate) fn ask(&self, words: &str) -> String {
        let socket = self.folder.path().join("node.sock");
        let words = format!("{} {words} --socket {}", env!("CARGO_BIN_EXE_starnet"), socket.display());
        let output = self.in_gateway(&words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        checked(&words, output);
        said
    }

    /// The same, or why it says nothing.
    fn try_ask(&self, words: &str) -> String {
        let socket = self.folder.path().join("node.sock");
        let words = format!("{} {words} --socket {}", env!("CARGO_BIN_EXE_starnet"), socket.display());
        match self.in_gateway(&words).output() {
            Ok(output) => {
                [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat()
            }
            Err(error) => error.to_string(),
        }
    }

    /// True while starnet runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// True where packets to T are not translated, and so never wait for a mapping.
    pub(crate) fn is_t_exempt(&self) -> bool {
        self.is_t_exempt
    }

    /// Puts an IP packet on the wire.
    pub(crate) fn send(&self, side: Side, packet: &[u8]) {
        let frame = [&GATEWAY[side as usize][..], &HOSTS, &[8, 0], packet].concat();
        let sent = nix::unistd::write(&self.sockets[side as usize], &frame).unwrap();
        assert_eq!(sent, frame.len());
    }

    /// All IP packets that come out, until none does for `quiet`.
    pub(crate) fn receive(&self, quiet: Duration) -> Vec<(Side, Vec<u8>)> {
        let mut came = Vec::new();
        let mut until = Instant::now() + quiet;
        let mut buffer = [0; 2048];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut waiting = [0, 1].map(|side: usize| PollFd::new(self.sockets[side].as_fd(), PollFlags::POLLIN));
            let timeout = PollTimeout::try_from(left.as_millis() as i32 + i32::from(!left.is_zero())).unwrap();
            if poll(&mut waiting, timeout).unwrap() == 0 {
                return came;
            }
            for side in [Side::Inside, Side::Outside] {
                while let Ok(length) = nix::unistd::read(&self.sockets[side as usize], &mut buffer) {
                    let frame = &buffer[..length];
                    // Our own frames come back to us as sent ones; the others are ARP and such.
                    if length >= 34 && frame[..6] == HOSTS && frame[12..14] == [8, 0] {
                        let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
                        came.push((side, frame[14..length.min(14 + total)].to_vec()));
                        until = Instant::now() + quiet;
                    }
                }
            }
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // `ip netns exec` has become the program: it ends as it does for an operator, and takes its sockets along.
            let _ = kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM);
            let _ = process.wait();
        }
        for part in ["inside", "gateway", "outside"] {
            let _ = Command::new("ip").args(["netns", "delete", &format!("{}.{part}", self.name)]).output();
        }
    }
}

/// A packet socket on the interface `raw` of a namespace, which does not block.
fn raw_socket(namespace: &str) -> OwnedFd {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    let open = move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
        // SAFETY: plain integers, for which all zeroes are valid.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = nix::net::if_::if_nametoindex("raw").unwrap() as i32;
        // SAFETY: the address is a sockaddr_ll of the length that is given, and lives through the call.
        let result = unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        socket
    };
    thread::spawn(open).join().unwrap()
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn shell(words: &str) {
    let mut words_apart = words.split_whitespace();
    let output = Command::new(words_apart.next().unwrap()).args(words_apart).output().unwrap();
    checked(words, output);
}

fn checked(words: &str, output: Output) {
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
}
