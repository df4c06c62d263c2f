//! The mirror against the real kernel, in network namespaces that exist for one test. Needs root.

use std::{
    net::Ipv4Addr,
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::dataplane::{forwarding::Route, route_table::NOWHERE};

/// Longer than the kernel takes for anything; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace without a name: that of a thread, which does what it is told. It is gone with the thread.
struct Namespace {
    jobs: mpsc::Sender<Job>,
    thread_id: i32,
}

impl Namespace {
    fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("this test needs root");
            // /sys shows the interfaces of the namespace it was mounted in.
            for arguments in [&["--make-rprivate", "/"][..], &["-t", "sysfs", "sysfs", "/sys"]] {
                assert!(Command::new("mount").args(arguments).status().unwrap().success());
            }
            ready.send(nix::unistd::gettid().as_raw()).unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        Self { jobs, thread_id: started.recv().expect("the namespace could not be made") }
    }

    /// Runs `job` in the namespace.
    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, result) = mpsc::channel();
        self.jobs.send(Box::new(move || answer.send(job()).unwrap())).unwrap();
        result.recv().expect("the job panicked")
    }

    /// Runs lines of `ip` commands in the namespace.
    fn ip(&self, lines: impl Into<String>) {
        let lines = lines.into();
        self.run(move || {
            let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
            io::Write::write_all(&mut ip.stdin.take().unwrap(), lines.as_bytes()).unwrap();
            assert!(ip.wait().unwrap().success(), "ip refused one of: {lines}");
        });
    }

    /// Two namespaces joined by a veth pair: `e0` with 10.0.0.1/24 here, `p0` with 10.0.0.2/24 there.
    fn pair() -> (Self, Self) {
        let (here, there) = (Self::new(), Self::new());
        here.ip(format!(
            "link set lo up
             link add e0 address 02:00:00:00:00:01 type veth peer name p0 address 02:00:00:00:00:02 netns {}
             addr add 10.0.0.1/24 dev e0
             link set e0 up",
            there.thread_id
        ));
        there.ip("addr add 10.0.0.2/24 dev p0\nlink set p0 up");
        (here, there)
    }

    fn mirror(&self, receive_buffer: i32) -> Mirrored {
        let (events, inbox) = mpsc::channel();
        let sink = move |event| events.send(event).unwrap();
        let start = move || {
            KernelMirror::start_with(&["e0".into()], receive_buffer, (nics::ask(), Box::new(ntuple::OfKernel)), sink)
        };
        let (handle, interfaces) = self.run(start).unwrap();
        Mirrored { handle, interfaces, inbox, routes: Vec::new() }
    }
}

struct Mirrored {
    handle: KernelHandle,
    interfaces: Vec<Interface>,
    inbox: mpsc::Receiver<KernelEvent>,
    routes: Vec<Route>,
}

impl Mirrored {
    /// Waits for an event that `select` takes.
    fn wait<T>(&mut self, what: &str, select: impl Fn(&KernelEvent) -> Option<T>) -> T {
        loop {
            let event = self.inbox.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("never heard of {what}"));
            if let KernelEvent::Routes(routes) = &event {
                self.routes.clone_from(routes);
            }
            if let Some(selected) = select(&event) {
                return selected;
            }
        }
    }

    /// Waits until the mirrored routes are `expected`, in any order.
    fn wait_for_routes(&mut self, expected: &[Route]) {
        let is_expected =
            |routes: &[Route]| routes.len() == expected.len() && expected.iter().all(|r| routes.contains(r));
        if !is_expected(&self.routes) {
            self.wait(&format!("{expected:?}"), |event| match event {
                KernelEvent::Routes(routes) => is_expected(routes).then_some(()),
                _ => None,
            });
        }
    }

    fn wait_for_interface(&mut self, what: &str, is_it: impl Fn(&Interface) -> bool) {
        self.wait(what, |event| match event {
            KernelEvent::Interface { interface: 0, now } => is_it(now).then_some(()),
            _ => None,
        });
    }

    fn wait_for_neighbour(&mut self, address: [u8; 4]) -> Option<[u8; 6]> {
        let wanted = std::net::IpAddr::from(address);
        self.wait("the neighbour", |event| match event {
            KernelEvent::NeighbourUp { interface: 0, address, mac } if *address == wanted => Some(Some(*mac)),
            KernelEvent::NeighbourGone { interface: 0, address } if *address == wanted => Some(None),
            _ => None,
        })
    }
}

fn route(prefix: &str, gateway: Option<[u8; 4]>, metric: u32) -> Route {
    Route { prefix: prefix.parse().unwrap(), gateway: gateway.map(Ipv4Addr::from), interface: 0, metric }
}

fn nowhere(prefix: &str) -> Route {
    Route { interface: NOWHERE, ..route(prefix, None, 0) }
}

const LINK: &str = "10.0.0.0/24";

#[test]
fn routes_appear_change_and_vanish_as_in_the_kernel() {
    let (here, _there) = Namespace::pair();
    here.ip("link add other type veth peer name unused\naddr add 10.9.0.1/24 dev other\nlink set other up");
    let mut mirrored = here.mirror(RECEIVE_BUFFER);
    let other = nowhere("10.9.0.0/24");
    mirrored.wait_for_routes(&[route(LINK, None, 0), other]);
    here.ip("route add default via 10.0.0.254 metric 100
         route add default via 10.0.0.253 metric 200
         route add 192.0.2.0/24 dev e0 metric 5
         route add blackhole 198.51.100.0/24
         route add 203.0.113.0/24 dev e0 table 77");
    let default = route("0.0.0.0/0", Some([10, 0, 0, 254]), 100);
    let second = route("0.0.0.0/0", Some([10, 0, 0, 253]), 200);
    let on_link = route("192.0.2.0/24", None, 5);
    let forbidden = nowhere("198.51.100.0/24");
    mirrored.wait_for_routes(&[route(LINK, None, 0), other, default, second, on_link, forbidden]);
    here.ip("route del default metric 100\nroute replace default via 10.0.0.252 metric 200");
    let second = route("0.0.0.0/0", Some([10, 0, 0, 252]), 200);
    mirrored.wait_for_routes(&[route(LINK, None, 0), other, second, on_link, forbidden]);
    // With an interface's last address the kernel drops all its routes, and says so of none.
    here.ip("addr del 10.0.0.1/24 dev e0");
    mirrored.wait_for_routes(&[other, forbidden]);
}

#[test]
fn a_namespace_that_never_had_a_route_is_mirrored_and_its_first_one_is_told() {
    let here = Namespace::new();
    here.ip("link add e0 type veth peer name p0");
    let mut mirrored = here.mirror(RECEIVE_BUFFER);
    mirrored.wait_for_routes(&[]);
    here.ip("link set e0 up\nlink set p0 up\naddr add 10.0.0.1/24 dev e0");
    mirrored.wait_for_routes(&[route(LINK, None, 0)]);
}

#[test]
fn of_a_multipath_route_the_next_hops_on_our_interface_are_used() {
    let (here, _there) = Namespace::pair();
    here.ip(
        "link add other type veth peer name unused\naddr add 10.9.0.1/24 dev other\nlink set other up\nlink set unused up
         route add 192.0.2.0/24 nexthop via 10.9.0.2 dev other nexthop via 10.0.0.2 dev e0 nexthop via 10.0.0.3 dev e0",
    );
    let mut mirrored = here.mirror(RECEIVE_BUFFER);
    let ways = [2, 3].map(|last| route("192.0.2.0/24", Some([10, 0, 0, last]), 0));
    mirrored.wait_for_routes(&[route(LINK, None, 0), nowhere("10.9.0.0/24"), ways[0], ways[1]]);
}

#[test]
fn a_link_that_goes_down_takes_its_routes_along_and_comes_back() {
    let (here, there) = Namespace::pair();
    let mut mirrored = here.mirror(RECEIVE_BUFFER);
    let interface = mirrored.interfaces[0];
    assert_eq!((interface.mac, interface.mtu), ([2, 0, 0, 0, 0, 1], 1500));
    here.ip("link set e0 mtu 1400");
    mirrored.wait_for_interface("the MTU", |now| now.mtu == 1400);
    here.ip("link set e0 down");
    mirrored.wait_for_interface("link down", |now| !now.is_up);
    mirrored.wait_for_routes(&[]);
    here.ip("link set e0 up");
    mirrored.wait_for_interface("link up", |now| now.is_up);
    mirrored.wait_for_routes(&[route(LINK, None, 0)]);
    there.ip("link set p0 down");
    mirrored.wait_for_interface("loss of carrier", |now| !now.is_up);
    there.ip("link set p0 up");
    mirrored.wait_for_interface("carrier", |now| now.is_up);
    here.ip("link set e0 address 02:00:00:00:00:09");
    mirrored.wait_for_interface("the MAC address", |now| now.mac == [2, 0, 0, 0, 0, 9]);
    here.ip("link del e0");
    mirrored.wait_for_interface("removal", |now| !now.is_up);
}

#[test]
fn a_peer_is_resolved_and_a_missing_one_reported() {
    let (here, _there) = Namespace::pair();
    // Ask three times at short intervals, not three times a second apart.
    here.run(|| std::fs::write("/proc/sys/net/ipv4/neigh/e0/retrans_time_ms", "50").unwrap());
    let mut mirrored = here.mirror(RECEIVE_BUFFER);
    mirrored.handle.resolve(0, Ipv4Addr::new(10, 0, 0, 2).into());
    assert_eq!(mirrored.wait_for_neighbour([10, 0, 0, 2]), Some([2, 0, 0, 0, 0, 2]));
    mirrored.handle.resolve(0, Ipv4Addr::new(10, 0, 0, 77).into());
    assert_eq!(mirrored.wait_for_neighbour([10, 0, 0, 77]), None);
    // The kernel has no news about it: the mirror answers.
    mirrored.handle.resolve(0, Ipv4Addr::new(10, 0, 0, 2).into());
    assert_eq!(mirrored.wait_for_neighbour([10, 0, 0, 2]), Some([2, 0, 0, 0, 0, 2]));
    here.ip("neigh del 10.0.0.2 dev e0");
    assert_eq!(mirrored.wait_for_neighbour([10, 0, 0, 2]), None);
    mirrored.handle.resolve(0, Ipv4Addr::new(10, 0, 0, 2).into());
    assert_eq!(mirrored.wait_for_neighbour([10, 0, 0, 2]), Some([2, 0, 0, 0, 0, 2]), "forgotten, not gone");
    // No interface has this number; the mirror lives on.
    mirrored.handle.resolve(9, Ipv4Addr::new(10, 0, 0, 2).into());
    here.ip("neigh add 10.0.0.9 lladdr 02:00:00:00:00:19 dev e0");
    assert_eq!(mirrored.wait_for_neighbour([10, 0, 0, 9]), Some([2, 0, 0, 0, 0, 0x19]));
}

#[test]
fn a_fresh_neighbour_that_stops_answering_is_found_out_when_asked_for() {
    let (here, there) = Namespace::pair();
    here.run(|| std::fs::write("/proc/sys/net/ipv4/neigh/e0/retrans_time_ms", "50").unwrap());
    let mut mirrored = here.mirror(RECEIVE_BUFFER);
    let peer = [10, 0, 0, 2];
    mirrored.handle.resolve(0, Ipv4Addr::from(peer).into());
    assert_eq!(mirrored.wait_for_neighbour(peer), Some([2, 0, 0, 0, 0, 2]));
    // Its link stays up, and to the kernel it is reachable for half a minute.
    there.ip("address flush dev p0");
    mirrored.handle.resolve(0, Ipv4Addr::from(peer).into());
    assert_eq!(mirrored.wait_for_neighbour(peer), Some([2, 0, 0, 0, 0, 2]), "what was known until now");
    assert_eq!(mirrored.wait_for_neighbour(peer), None);
}

#[test]
fn a_stale_neighbour_is_verified_when_asked_for() {
    let (here, there) = Namespace::pair();
    here.run(|| {
        for (name, value) in [("delay_first_probe_time", "1"), ("retrans_time_ms", "50")] {
            std::fs::write(format!("/proc/sys/net/ipv4/neigh/e0/{name}"), value).unwrap();
        }
    });
    here.ip("neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 nud stale dev e0");
    let mut mirrored = here.mirror(RECEIVE_BUFFER);
    assert_eq!(mirrored.wait_for_neighbour([10, 0, 0, 2]), Some([2, 0, 0, 0, 0, 2]));
    // The peer moves; nobody tells. What refreshing does every 30 s finds out.
    there.ip("link set p0 address 02:00:00:00:00:03");
    mirrored.handle.resolve(0, Ipv4Addr::new(10, 0, 0, 2).into());
    assert_eq!(mirrored.wait_for_neighbour([10, 0, 0, 2]), Some([2, 0, 0, 0, 0, 2]), "the last MAC address holds");
    let verified = mirrored.wait_for_neighbour([10, 0, 0, 2]);
    assert!(matches!(verified, None | Some([2, 0, 0, 0, 0, 3])), "{verified:?}");
}

#[test]
fn changes_that_overrun_the_receive_buffer_are_found_by_a_new_dump() {
    let (here, _there) = Namespace::pair();
    let (events, inbox) = mpsc::channel();
    let (open, gate) = mpsc::channel::<()>();
    let (hang, hangs) = mpsc::channel();
    // The mirror hangs when it hears of this one, while more happens than its buffer holds.
    let stopper = IpAddr::from([10, 0, 0, 250]);
    let sink = move |event| {
        if matches!(event, KernelEvent::NeighbourUp { address, .. } if address == stopper) {
            hang.send(()).unwrap();
            gate.recv().unwrap();
        }
        let _ = events.send(event);
    };
    let (handle, interfaces) = here
        .run(move || KernelMirror::start_with(&["e0".into()], 4096, (nics::ask(), Box::new(ntuple::OfKernel)), sink))
        .unwrap();
    here.ip("neigh add 10.0.0.250 lladdr 02:00:00:00:02:00 dev e0");
    hangs.recv_timeout(PATIENCE).expect("never heard of the neighbour");
    let line = |verb: &str, i: u32| format!("neigh {verb} 10.0.0.{} lladdr 02:00:00:00:01:{i:02x} dev e0\n", 100 + i);
    here.ip((0..100).map(|i| line("add", i)).collect::<String>());
    here.ip((0..99).map(|i| line("del", i)).collect::<String>());
    here.ip("route add 192.0.2.0/24 via 10.0.0.254\nlink set e0 mtu 1300");
    open.send(()).unwrap();

    let mut mirrored = Mirrored { handle, interfaces, inbox, routes: Vec::new() };
    mirrored.wait_for_interface("the MTU", |now| now.mtu == 1300);
    assert_eq!(mirrored.wait_for_neighbour([10, 0, 0, 199]), Some([2, 0, 0, 0, 1, 99]));
    mirrored.wait_for_routes(&[route(LINK, None, 0), route("192.0.2.0/24", Some([10, 0, 0, 254]), 0)]);
    assert!(mirrored.handle.resyncs() > 0);
    // It hears of changes as before.
    here.ip("route del 192.0.2.0/24\nneigh del 10.0.0.199 dev e0");
    assert_eq!(mirrored.wait_for_neighbour([10, 0, 0, 199]), None);
    mirrored.wait_for_routes(&[route(LINK, None, 0)]);
}

#[test]
fn the_thread_ends_with_its_handle() {
    let (here, _there) = Namespace::pair();
    let Mirrored { handle, inbox, .. } = here.mirror(RECEIVE_BUFFER);
    drop(handle);
    assert_eq!(inbox.iter().filter(|event| matches!(event, KernelEvent::Routes(_))).count(), 1);
}

#[test]
fn a_missing_interface_is_named_together_with_those_there_are() {
    let (here, _there) = Namespace::pair();
    let error = here.run(|| interface_by_name("e9").unwrap_err().to_string());
    assert!(error.starts_with("interface 'e9' does not exist; there are: lo, "), "{error}");
    assert!(error.contains("e0"), "{error}");
    let error = here.run(|| KernelMirror::start(&["e9".into()], |_| {}).err().unwrap().to_string());
    assert!(error.starts_with("interface 'e9' does not exist"), "{error}");
}

#[test]
fn addresses_and_interfaces_of_the_namespace_are_found() {
    let (here, _there) = Namespace::pair();
    here.ip("addr add 192.0.2.7/32 dev lo
         addr add 10.1.0.1 peer 10.1.0.2 dev e0");
    let mut addresses = here.run(local_addresses).unwrap();
    addresses.sort();
    let expected = [[10, 0, 0, 1], [10, 1, 0, 1], [127, 0, 0, 1], [192, 0, 2, 7]].map(Ipv4Addr::from);
    assert_eq!(addresses, expected);
    assert_eq!(here.run(|| interface_by_name("e0")).unwrap().mac, [2, 0, 0, 0, 0, 1]);
}

/// Runs `ethtool` in the namespace.
fn ethtool(here: &Namespace, arguments: &'static [&str]) {
    here.run(move || assert!(Command::new("ethtool").args(arguments).status().unwrap().success()));
}

#[test]
fn a_change_of_queues_is_followed_and_told_again_only_if_it_is_one() {
    let here = Namespace::new();
    here.ip("link add e0 numrxqueues 4 numtxqueues 4 type veth peer name p0 numrxqueues 4 numtxqueues 4
         addr add 10.0.0.1/24 dev e0
         link set e0 up
         link set p0 up");
    let mut mirrored = here.mirror(RECEIVE_BUFFER);
    let queues = |mirrored: &mut Mirrored| {
        mirrored.wait("the number of queues", |event| match event {
            KernelEvent::Queues { interface: 0, now } => Some(now.count()),
            _ => None,
        })
    };
    assert_eq!(queues(&mut mirrored), 4);
    ethtool(&here, &["-L", "e0", "rx", "2"]);
    assert_eq!(queues(&mut mirrored), 2);
    ethtool(&here, &["-L", "e0", "tx", "3"]);
    ethtool(&here, &["-L", "e0", "rx", "3"]);
    assert_eq!(queues(&mut mirrored), 3);
}

#[test]
fn the_kernel_tells_of_what_ethtool_changes() {
    let here = Namespace::new();
    here.ip("link add e0 numrxqueues 2 numtxqueues 2 type veth peer name p0");
    let mut changes = here.run(ethtool::EthtoolChanges::subscribe).expect("this kernel has notifications");
    assert!(!changes.take(), "nothing was changed yet");
    ethtool(&here, &["-L", "e0", "rx", "1"]);
    assert!(changes.take());
    assert!(!changes.take(), "it is told once");
}

/// The mirror over NICs that spread as `read` says.
#[test]
fn a_change_of_rss_is_followed() {
    use crate::dataplane::{
        rss::{Inputs, KEY_BYTES, Queues, Rss},
        spread::Spread,
    };
    let (here, _there) = Namespace::pair();
    let key = Arc::new(std::sync::atomic::AtomicU8::new(1));
    let rss = |key: u8| Rss::new(&[key; KEY_BYTES], vec![0, 1], Inputs::ALL);
    let read = Arc::clone(&key);
    let reader: Reader = Box::new(move |_| nics::Reading { rss: rss(read.load(Relaxed)), queues: Some(Queues::ONE) });
    let (events, inbox) = mpsc::channel();
    let sink = move |event| events.send(event).unwrap();
    let start =
        move || KernelMirror::start_with(&["e0".into()], RECEIVE_BUFFER, (reader, Box::new(ntuple::OfKernel)), sink);
    let (handle, interfaces) = here.run(start).unwrap();
    let mut mirrored = Mirrored { handle, interfaces, inbox, routes: Vec::new() };
    for told in [1, 2] {
        key.store(told, Relaxed);
        let heard = mirrored.wait("the key", |event| match event {
            KernelEvent::Spread { interface: 0, now } => Some(now.clone()),
            _ => None,
        });
        assert_eq!(heard, Spread { rss: rss(told), rules: None });
    }
}

#[test]
fn rules_are_in_the_nic_when_whoever_asked_is_told_and_go_with_the_mirror() {
    use super::rules::tests::{OWN, OneNic, wanted};
    use crate::dataplane::rss::Queues;
    let (here, _there) = Namespace::pair();
    let nic = OneNic::new(64);
    let tables = Box::new(nic.clone());
    let four = Queues { rx: 4, combined: 0, rx_max: 4, combined_max: 0 };
    let reader: Reader = Box::new(move |_| nics::Reading { rss: None, queues: Some(four) });
    let (events, inbox) = mpsc::channel();
    let sink = move |event| events.send(event).unwrap();
    let start = move || KernelMirror::start_with(&["e0".into()], RECEIVE_BUFFER, (reader, tables), sink);
    let (handle, _) = here.run(start).unwrap();
    assert_eq!(nic.ours(), (0, 0), "the NIC may be another node's");
    handle.steer(wanted(2, &[OWN])).recv().unwrap();
    assert_eq!(nic.ours(), (2, 4));
    let told = inbox.try_iter().filter_map(|event| match event {
        KernelEvent::Spread { interface: 0, now } => Some(now.rules.map(|rules| rules.count)),
        _ => None,
    });
    assert_eq!(told.last(), Some(Some(6)), "before whoever asked");
    drop(handle);
    assert_eq!(nic.ours(), (0, 0));
}

#[test]
fn ports_are_reserved_in_the_namespace_and_given_back() {
    const SYSCTL: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let read = || std::fs::read_to_string(SYSCTL).unwrap();
    let here = Namespace::new();
    here.run(move || {
        std::fs::write(SYSCTL, "8080").unwrap();
        let reserved = reserve_ports(40000, 49999);
        assert_eq!(read(), "8080,40000-49999\n");
        drop(reserved);
        assert_eq!(read(), "8080\n");
    });
}
