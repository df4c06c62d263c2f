//! How long one frame takes through what is measured, with a client that spins.

use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    str::FromStr,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns},
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike, recv, send, socket,
    },
};

use crate::{Outcome, frames::Frames};

/// A frame that is not back by then is lost.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Namespace and interface to send from, like gen:g0
    from: Place,
    /// Namespace and interface to receive at
    to: Place,
    /// The frames
    file: PathBuf,
    /// How many are sent
    #[arg(long, default_value_t = 50_000)]
    count: usize,
}

/// An interface in a namespace of `ip netns`.
#[derive(Clone)]
struct Place {
    namespace: String,
    interface: String,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, interface) = text.split_once(':').ok_or(format!("'{text}' is not NAMESPACE:INTERFACE"))?;
        Ok(Self { namespace: namespace.into(), interface: interface.into() })
    }
}

impl Place {
    /// A packet socket on the interface, for whole frames of IPv4. Leaves this thread in the namespace.
    fn open(&self) -> Result<OwnedFd, Box<dyn std::error::Error>> {
        let namespace = File::open(format!("/run/netns/{}", self.namespace))?;
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        packet_socket(&self.interface)
    }
}

/// A packet socket on an interface of this thread's namespace, for whole frames of IPv4.
pub(crate) fn packet_socket(interface: &str) -> Result<OwnedFd, Box<dyn std::error::Error>> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let opened = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    let at = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_IP as u16).to_be(),
        sll_ifindex: if_nametoindex(interface)? as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: a complete `sockaddr_ll` that lives through the call, with its own length.
    let at = unsafe { LinkAddr::from_raw((&raw const at).cast(), Some(size_of_val(&at) as u32)) };
    nix::sys::socket::bind(opened.as_raw_fd(), &at.ok_or("no link address")?)?;
    Ok(opened)
}

/// Prints how many came, how many did not, and percentiles in nanoseconds.
pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let frames = Frames::load(&arguments.file)?;
    let (from, to) = (arguments.from.open()?, arguments.to.open()?);
    let mut times = Vec::with_capacity(arguments.count);
    for frame in frames.iter().cycle().take(arguments.count) {
        times.extend(pass(&from, &to, frame)?);
    }
    let lost = arguments.count - times.len();
    times.sort_unstable();
    let percentile = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_nanos();
    if times.is_empty() {
        return Err("no frame came back".into());
    }
    println!(
        r#"{{"count": {}, "lost": {lost}, "p50_ns": {}, "p99_ns": {}, "p999_ns": {}, "max_ns": {}}}"#,
        times.len(),
        percentile(0.5),
        percentile(0.99),
        percentile(0.999),
        percentile(1.0)
    );
    Ok(())
}

/// The time until a frame of the same size arrives; `None` where it does not.
fn pass(from: &OwnedFd, to: &OwnedFd, frame: &[u8]) -> nix::Result<Option<Duration>> {
    let mut bytes = [0; 2048];
    let start = Instant::now();
    send(from.as_raw_fd(), frame, MsgFlags::empty())?;
    loop {
        match recv(to.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            // Others are probes and the like.
            Ok(length) if length == frame.len() => return Ok(Some(start.elapsed())),
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error),
        }
        if start.elapsed() > PATIENCE {
            return Ok(None);
        }
    }
}
