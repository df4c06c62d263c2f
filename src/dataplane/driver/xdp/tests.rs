//! The driver on veth pairs, in network namespaces without a name, which vanish with the test's thread. Needs root.

use std::{
    fs::File,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
    sync::mpsc,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, send, setsockopt, socket,
        sockopt,
    },
};

use super::*;
use crate::{
    dataplane::gateway::Realm,
    limits::FRAME_HEADROOM,
    wire::{ethernet, ip4, udp},
};

const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const FIRST: u16 = 40000;
const FRAMES: u32 = 1024;
/// Long enough never to pass where the driver works.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two namespaces: the test's thread is in ours, `peer` is the other.
struct Bench {
    ours: File,
    peer: File,
}

/// Runs a test in a thread that is in a namespace of its own.
fn on_bench(test: impl FnOnce(Bench) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        let fresh = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests make network namespaces: run them as root");
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let (peer, ours) = (fresh(), fresh());
        test(Bench { ours, peer });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A closed link lives on for as long as a process that another test is just forking still has its descriptor.
#[track_caller]
fn assert_detached(interface: &str) {
    let deadline = Instant::now() + PATIENCE;
    while let Some(program) = link::find(interface).unwrap().program {
        assert!(Instant::now() < deadline, "{program:?} is still on {interface}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Transmits in batches of a sweep; returns how many packets the driver took.
fn take(driver: &mut XdpDriver, packets: &[Transmit]) -> usize {
    let mut refused = 0;
    for batch in packets.chunks(PACKET_SLOTS) {
        let mut places = Bitmap::default();
        driver.transmit(batch, &mut places);
        refused += places.count();
    }
    packets.len() - refused
}

#[track_caller]
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2 is needed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Bench {
    /// A veth pair: NAME here, NAMEp at the peer; queues of each end.
    fn veth(&self, name: &str, (ours, peers): (u32, u32)) {
        ip(&format!(
            "link add {name} numrxqueues {ours} numtxqueues {ours} type veth \
             peer name {name}p numrxqueues {peers} numtxqueues {peers}"
        ));
        ip(&format!("link set {name}p netns /proc/{}/fd/{}", std::process::id(), self.peer.as_raw_fd()));
        ip(&format!("link set {name} up"));
        self.at_peer(|| ip(&format!("link set {name}p up")));
    }

    fn at_peer<T>(&self, run: impl FnOnce() -> T) -> T {
        setns(&self.peer, CloneFlags::CLONE_NEWNET).unwrap();
        let result = run();
        setns(&self.ours, CloneFlags::CLONE_NEWNET).unwrap();
        result
    }

    /// A raw socket on the peer's end.
    fn peer_socket(&self, name: &str) -> OwnedFd {
        self.at_peer(|| {
            let (family, kind) = (AddressFamily::Packet, SockType::Raw);
            let socket =
                socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll).unwrap();
            setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).unwrap();
            let name = format!("{name}p");
            let address = libc::sockaddr_ll {
                sll_family: libc::AF_PACKET as u16,
                sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
                sll_ifindex: nix::net::if_::if_nametoindex(name.as_str()).unwrap() as i32,
                sll_hatype: 0,
                sll_pkttype: 0,
                sll_halen: 0,
                sll_addr: [0; 8],
            };
            // SAFETY: a whole sockaddr_ll and its length.
            let address = unsafe {
                <SockaddrStorage as nix::sys::socket::SockaddrLike>::from_raw(
                    (&raw const address).cast(),
                    Some(size_of::<libc::sockaddr_ll>() as u32),
                )
            };
            nix::sys::socket::bind(socket.as_raw_fd(), &address.unwrap()).unwrap();
            socket
        })
    }
}

fn attach(name: &str) -> AttachedInterface {
    try_attach(name).unwrap_or_else(|error| panic!("{error}"))
}

fn try_attach(name: &str) -> Result<AttachedInterface, Error> {
    AttachedInterface::attach(name, &Reserved::new(&[OURS], FIRST..=49999), Realm::Neither)
}

fn open(worker: usize, workers: usize, interfaces: &mut [AttachedInterface]) -> XdpDriver {
    XdpDriver::open(worker, workers, interfaces, FRAMES).unwrap_or_else(|error| panic!("{error}")).0
}

/// A UDP packet from the peer to `port` of ours; the number is in the source port and the payload.
fn datagram(destination: ethernet::Mac, number: u16, port: u16) -> Vec<u8> {
    let payload = vec![number as u8; 20 + usize::from(number) % 1400];
    let mut bytes = vec![0; 42 + payload.len()];
    ethernet::emit(&mut bytes, destination, [2; 6]);
    ip4::emit(&mut bytes[14..], PEER, OURS, ip4::UDP, (28 + payload.len()) as u16, 64);
    udp::emit(&mut bytes[34..], number, port, (8 + payload.len()) as u16);
    bytes[42..].copy_from_slice(&payload);
    bytes
}

fn ours(number: u16) -> Vec<u8> {
    datagram([4; 6], number, FIRST + number % 1000)
}

fn send_from_peer(socket: &OwnedFd, packet: &[u8]) {
    assert_eq!(send(socket.as_raw_fd(), packet, MsgFlags::empty()).unwrap(), packet.len());
}

/// All that a raw socket at the peer gets that is `count` of our packets.
fn receive_at_peer(socket: &OwnedFd, drivers: &mut [&mut XdpDriver], count: usize) -> Vec<Vec<u8>> {
    let start = Instant::now();
    let (mut packets, mut buffer) = (Vec::new(), [0; 2048]);
    while packets.len() < count {
        assert!(start.elapsed() < PATIENCE, "{} of {count} packets arrived", packets.len());
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            // The kernel at either end says things of its own: neighbour discovery and the like.
            Ok(length) if buffer[..6] == [9; 6] => packets.push(buffer[..length].to_vec()),
            Ok(_) => {}
            Err(_) => drivers.iter_mut().for_each(|driver| driver.replenish()),
        }
    }
    packets
}

fn receive(driver: &mut XdpDriver, count: usize) -> Vec<Received> {
    let start = Instant::now();
    let mut all = Vec::new();
    while all.len() < count {
        assert!(start.elapsed() < PATIENCE, "{} of {count} packets arrived", all.len());
        let mut batch = [Received::default(); 100];
        let length = driver.receive(&mut batch);
        driver.replenish();
        all.extend_from_slice(&batch[..length]);
        if length == 0 {
            driver.wait(Duration::from_millis(100));
        }
    }
    all
}

fn bytes(driver: &mut XdpDriver, packet: &Received) -> Vec<u8> {
    driver.frames().frame(packet.frame)[usize::from(packet.offset)..][..usize::from(packet.length)].to_vec()
}

/// Moves a packet within its frame, and marks it as to be sent to the peer.
fn readdress(driver: &mut XdpDriver, packet: &mut Received, offset: usize) {
    let from = usize::from(packet.offset);
    let frame = driver.frames().frame(packet.frame);
    frame.copy_within(from..from + usize::from(packet.length), offset);
    frame[offset..offset + 6].fill(9);
    packet.offset = offset as u16;
}

#[test]
fn packets_come_in_and_go_out_on_two_interfaces_wherever_in_the_frame_they_start() {
    on_bench(|bench| {
        bench.veth("e0", (1, 1));
        bench.veth("e1", (1, 1));
        let peers = [bench.peer_socket("e0"), bench.peer_socket("e1")];
        let mut interfaces = [attach("e0"), attach("e1")];
        let mut driver = open(0, 1, &mut interfaces);
        assert_eq!((interfaces[0].mode(), driver.bind_mode()), (AttachMode::Native, BindMode::Copy));
        assert_eq!(interfaces[1].bind_mode(), Some(BindMode::Copy));
        // Several times round the rings, and every frame is used.
        for round in 0..30 {
            let sent: Vec<_> = (0..200).map(|n| ours(round * 200 + n)).collect();
            for (n, packet) in sent.iter().enumerate() {
                send_from_peer(&peers[n % 2], packet);
            }
            let mut received = receive(&mut driver, 200);
            let mut got: Vec<_> =
                received.iter().map(|packet| (packet.interface, bytes(&mut driver, packet))).collect();
            got.sort_by_key(|(_, packet)| u16::from_be_bytes([packet[34], packet[35]]));
            for (n, (packet, (interface, bytes))) in sent.iter().zip(&got).enumerate() {
                assert_eq!((usize::from(*interface), packet), (n % 2, bytes));
            }
            for (n, packet) in received.iter_mut().enumerate() {
                packet.interface ^= 1;
                let shift = [0, 38, 24][n % 3];
                readdress(
                    &mut driver,
                    packet,
                    if n % 2 == 0 { FRAME_HEADROOM - shift } else { FRAME_HEADROOM + shift },
                );
            }
            assert_eq!(take(&mut driver, &received), 200);
            driver.flush();
            for (peer, interface) in peers.iter().zip(0..) {
                let from_other =
                    got.iter().filter(|(from, _)| *from != interface).map(|(_, packet)| packet[6..].to_vec());
                let mut expected: Vec<_> = from_other.collect();
                let back = receive_at_peer(peer, &mut [&mut driver], 100);
                let mut back: Vec<_> = back.into_iter().map(|packet| packet[6..].to_vec()).collect();
                expected.sort();
                back.sort();
                assert!(back == expected);
            }
        }
        let verdicts = interfaces[0].verdicts().unwrap();
        assert_eq!(verdicts[Verdict::XskUdp as usize], 3000);
        assert_eq!(driver.held, 0);
        assert_eq!(driver.statistics(), DriverStatistics::default());
    });
}

#[test]
fn what_is_not_ours_still_reaches_the_kernels_sockets() {
    on_bench(|bench| {
        bench.veth("e0", (1, 1));
        ip("addr add 192.0.2.1/24 dev e0");
        ip("link set e0 address 02:00:00:00:00:01");
        let peer = bench.peer_socket("e0");
        let mut interfaces = [attach("e0")];
        let mut driver = open(0, 1, &mut interfaces);
        let server = UdpSocket::bind((OURS, 5353)).unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        send_from_peer(&peer, &datagram([2, 0, 0, 0, 0, 1], 7, 5353));
        send_from_peer(&peer, &datagram([2, 0, 0, 0, 0, 1], 7, FIRST));
        let mut buffer = [0; 100];
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&[7; 27][..], (PEER, 7).into()));
        assert_eq!(receive(&mut driver, 1).len(), 1);
    });
}

#[test]
fn two_workers_share_an_interface_by_queue() {
    on_bench(|bench| {
        bench.veth("e0", (2, 2));
        let peer = bench.peer_socket("e0");
        let mut interfaces = [attach("e0")];
        assert_eq!(interfaces[0].queues().count(), 2);
        let mut drivers = [open(0, 2, &mut interfaces), open(1, 2, &mut interfaces)];
        // The peer's kernel spreads flows over its queues by hash; 100 of them do not all fall on one.
        (0..100).for_each(|n| send_from_peer(&peer, &ours(n)));
        let start = Instant::now();
        let mut got = [0; 2];
        while got.iter().sum::<usize>() < 100 {
            assert!(start.elapsed() < PATIENCE, "{got:?} packets arrived");
            for (driver, got) in drivers.iter_mut().zip(&mut got) {
                let mut batch = [Received::default(); PACKET_SLOTS];
                let count = driver.receive(&mut batch);
                for packet in &mut batch[..count] {
                    readdress(driver, packet, FRAME_HEADROOM);
                }
                assert_eq!(take(driver, &batch[..count]), count);
                driver.flush();
                *got += count;
            }
        }
        assert!(got[0] > 0 && got[1] > 0, "{got:?}");
        let [first, second] = &mut drivers;
        receive_at_peer(&peer, &mut [first, second], 100);
    });
}

#[test]
fn one_worker_serves_every_queue_of_an_interface() {
    on_bench(|bench| {
        bench.veth("e0", (3, 3));
        let peer = bench.peer_socket("e0");
        let mut interfaces = [attach("e0")];
        let mut driver = open(0, 1, &mut interfaces);
        (0..100).for_each(|n| send_from_peer(&peer, &ours(n)));
        receive(&mut driver, 100).iter().for_each(|packet| driver.release(packet.frame));
        assert_eq!(driver.receive(&mut []), 0);
    });
}

#[test]
fn a_full_transmit_ring_leaves_the_rest_with_the_caller_and_goes_on_when_the_link_is_back() {
    on_bench(|bench| {
        bench.veth("e0", (1, 1));
        let peer = bench.peer_socket("e0");
        let mut interfaces = [attach("e0")];
        let (mut driver, _) = XdpDriver::open(0, 1, &mut interfaces, 12 * FRAMES).unwrap();
        ip("link set e0 down");
        let more = RING_ENTRIES as usize + 10;
        let packets: Vec<_> = (0..more)
            .map(|n| {
                let frame = driver.allocate().unwrap();
                driver.frames().frame(frame)[100..200].fill(9);
                driver.frames().frame(frame)[110..114].copy_from_slice(&(n as u32).to_be_bytes());
                Transmit { frame, offset: 100, length: 100, interface: 0 }
            })
            .collect();
        assert_eq!(take(&mut driver, &packets), RING_ENTRIES as usize);
        driver.flush();
        assert_eq!(take(&mut driver, &packets[RING_ENTRIES as usize..]), 0);
        assert_eq!(driver.held, 10);
        packets[RING_ENTRIES as usize..].iter().for_each(|packet| driver.release(packet.frame));
        ip("link set e0 up");
        let arrived = receive_at_peer(&peer, &mut [&mut driver], RING_ENTRIES as usize);
        for (n, packet) in arrived.iter().enumerate() {
            assert_eq!(packet[10..14], (n as u32).to_be_bytes());
        }
        driver.replenish();
        assert_eq!(driver.sockets[0].frames() + driver.memory.free(), 12 * FRAMES as usize);
    });
}

#[test]
fn a_flood_is_dropped_below_us_and_counted_and_the_rings_recover() {
    on_bench(|bench| {
        bench.veth("e0", (1, 1));
        let peer = bench.peer_socket("e0");
        let mut interfaces = [attach("e0")];
        let mut driver = open(0, 1, &mut interfaces);
        for _ in 0..3 {
            let before = driver.statistics();
            (0..2000).for_each(|n| send_from_peer(&peer, &ours(n)));
            // The fill ring may be short by less than a batch when the flood comes.
            let given = FRAMES as usize / 2 - 32;
            receive(&mut driver, given).iter().for_each(|packet| driver.release(packet.frame));
            let after = driver.statistics();
            assert!(after.fill_empty + after.rx_dropped > before.fill_empty + before.rx_dropped);
            // What was refilled in the meantime may have caught some more.
            let mut rest = [Received::default(); PACKET_SLOTS];
            while let count @ 1.. = driver.receive(&mut rest) {
                rest[..count].iter().for_each(|packet| driver.release(packet.frame));
                driver.replenish();
            }
        }
        assert_eq!(driver.held, 0);
    });
}

#[test]
fn without_native_xdp_the_generic_mode_carries_packets() {
    on_bench(|bench| {
        // veth refuses native XDP where its peer has more TX queues than it has RX queues.
        bench.veth("e0", (1, 2));
        let peer = bench.peer_socket("e0");
        let mut interfaces = [attach("e0")];
        assert_eq!(interfaces[0].mode(), AttachMode::Generic);
        let mut driver = open(0, 1, &mut interfaces);
        send_from_peer(&peer, &ours(1));
        let mut packet = receive(&mut driver, 1)[0];
        assert_eq!(bytes(&mut driver, &packet), ours(1));
        readdress(&mut driver, &mut packet, FRAME_HEADROOM);
        assert_eq!(take(&mut driver, &[packet]), 1);
        driver.flush();
        receive_at_peer(&peer, &mut [&mut driver], 1);
    });
}

#[test]
fn dropping_everything_frees_the_interface_for_the_next_process() {
    on_bench(|bench| {
        bench.veth("e0", (1, 1));
        for _ in 0..3 {
            let mut interfaces = [attach("e0")];
            let driver = open(0, 1, &mut interfaces);
            assert!(link::find("e0").unwrap().program.is_some());
            let Err(error) = try_attach("e0") else { panic!("attached twice") };
            assert!(matches!(error, Error::Served { .. }), "{error}");
            drop(interfaces);
            drop(driver);
            assert_detached("e0");
        }
    });
}

#[test]
fn a_queue_that_is_in_use_is_named() {
    on_bench(|bench| {
        bench.veth("e0", (1, 1));
        let mut interfaces = [attach("e0")];
        let _driver = open(0, 1, &mut interfaces);
        let Err(error) = XdpDriver::open(0, 1, &mut interfaces, FRAMES) else { panic!("bound twice") };
        assert!(matches!(error, Error::QueueBusy { queue: 0, .. }), "{error}");
    });
}

#[test]
fn a_program_left_behind_is_swept_but_one_of_someone_else_is_not() {
    on_bench(|bench| {
        bench.veth("e0", (1, 1));
        let index = link::find("e0").unwrap().index;
        for mode in [AttachMode::Native, AttachMode::Generic] {
            let reserved = Reserved::new(&[], FIRST..=FIRST);
            let mut program = program::Program::load(&reserved, Realm::Neither).unwrap();
            let fd = std::os::fd::AsFd::as_fd(program.xdp().fd().unwrap()).as_raw_fd();
            link::set_program(index, fd, mode).unwrap();
            drop(program);
            let left = link::find("e0").unwrap().program.unwrap();
            assert_eq!(left.1, mode);
            drop(attach("e0"));
            assert_detached("e0");
        }

        let mut foreign = program::load_as(b"another_xdp");
        let xdp: &mut aya::programs::Xdp = foreign.program_mut("another_xdp").unwrap().try_into().unwrap();
        xdp.load().unwrap();
        xdp.attach("e0", aya::programs::XdpMode::Driver).unwrap();
        let Err(error) = try_attach("e0") else { panic!("attached over another program") };
        assert!(matches!(&error, Error::ForeignProgram { program, .. } if program == "another_xdp"), "{error}");
        assert!(link::find("e0").unwrap().program.is_some(), "the other program must stay");
    });
}

#[test]
fn an_interface_that_cannot_be_served_is_refused_with_what_to_do() {
    on_bench(|bench| {
        let error = try_attach("none").unwrap_err().to_string();
        assert!(error.contains("interface none") && error.contains("ip link"), "{error}");
        bench.veth("e0", (1, 1));
        let mut interfaces = [attach("e0")];
        let error = XdpDriver::open(0, 2, &mut interfaces, FRAMES).unwrap_err().to_string();
        assert!(error.contains("ethtool -L e0 combined 2"), "{error}");
        drop(interfaces);
        ip("link set e0 mtu 9000");
        let error = try_attach("e0").unwrap_err().to_string();
        assert!(error.contains("ip link set dev e0 mtu 1778"), "{error}");
        assert_detached("e0");
    });
}

#[test]
fn a_waker_ends_the_workers_sleep() {
    on_bench(|bench| {
        bench.veth("e0", (1, 1));
        let mut interfaces = [attach("e0")];
        let (mut driver, waker) = XdpDriver::open(0, 1, &mut interfaces, FRAMES).unwrap();
        let (done, is_done) = mpsc::channel();
        let worker = std::thread::spawn(move || {
            for _ in 0..3 {
                driver.wait(PATIENCE * 10);
                done.send(()).unwrap();
            }
        });
        for _ in 0..3 {
            waker.wake();
            is_done.recv_timeout(PATIENCE).expect("the worker wakes up");
        }
        worker.join().unwrap();
    });
}

#[test]
fn frames_lie_in_huge_pages_only_where_there_are_some() {
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap_or_default();
    let memory = FrameMemory::new(FRAMES_A_HUGE_PAGE, Pages::Huge).unwrap();
    if free.trim() == "0" {
        assert_eq!(memory.pages(), Pages::Small);
    }
    assert_eq!(FrameMemory::new(FRAMES_A_HUGE_PAGE, Pages::Small).unwrap().pages(), Pages::Small);
}
