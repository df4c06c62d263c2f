//! The kernel's routes, neighbours and interfaces, mirrored over netlink, and how the NICs spread what they receive.
//!
//! We have no ARP and no routing of our own: the kernel resolves and decides, a thread mirrors what it decided, and
//! the control core hears of it as [`KernelEvent`]s. The mirror subscribes first and dumps afterwards, so no change
//! falls between; a change that the dump already shows is told once, since events are made from differences. Where
//! the kernel's queue to us overflows (ENOBUFS), everything is dumped anew.
//!
//! Routes are dumped whole after each change rather than followed one by one: the kernel drops the routes of a link
//! that goes down without a message for each.

mod ethtool;
mod ethtool_ioctl;
mod family;
mod host;
mod messages;
mod mirror;
mod netlink;
mod nics;
mod ntuple;
mod ports;
mod routes;
mod rss;
mod rules;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::IpAddr,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use netlink_packet_route::AddressFamily;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

pub use host::{interface_by_name, local_addresses, local_addresses6};
pub use ntuple::{RuleSupport, rule_support};
pub use ports::{ReservedPorts, release_ports, reserve_ports};
pub use rss::{read_rss, rss};
pub use rules::Steering;

use self::{
    mirror::Mirror,
    netlink::{Changes, Heard, Requests},
    nics::{Nics, Reader},
    ntuple::Tables,
    routes::parse_route,
};
use crate::{MILLISECOND, Nanos, SECOND, control::KernelEvent, dataplane::forwarding::Interface};

/// Bytes of changes the kernel may queue for us, as far as net.core.rmem_max allows.
const RECEIVE_BUFFER: i32 = 1 << 20;

/// Routes are dumped no more often than this, however fast they change.
const ROUTES_INTERVAL: Nanos = 50 * MILLISECOND;

/// How often it is looked which neighbours are to be refreshed.
const REFRESH_INTERVAL: Nanos = SECOND;

/// When to try again after the kernel could not answer a dump (for want of memory).
const RETRY: Nanos = SECOND;

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// There is no such interface in this network namespace.
    #[error("interface '{name}' does not exist; there are: {known}")]
    NoInterface {
        /// As asked for.
        name: String,
        /// Those there are.
        known: String,
    },
    /// It has no MAC address.
    #[error("interface '{name}' has no MAC address; only Ethernet interfaces can be served")]
    NotEthernet {
        /// Its name.
        name: String,
    },
    /// More interfaces than an interface number can tell apart.
    #[error("{0} interfaces are too many; 256 can be served")]
    TooManyInterfaces(usize),
    /// The kernel refused a request.
    #[error("netlink: cannot {action}: {source}")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The thread of the mirror could not be started.
    #[error("cannot start the netlink thread: {0}")]
    Thread(io::Error),
}

impl KernelError {
    fn netlink(action: &'static str, source: io::Error) -> Self {
        Self::Netlink { action, source }
    }
}

/// The mirror and the thread it runs in.
pub struct KernelMirror<S> {
    mirror: Mirror,
    requests: Requests,
    changes: Changes,
    nics: Nics,
    commands: mpsc::Receiver<Command>,
    wake: Arc<EventFd>,
    resyncs: Arc<AtomicU64>,
    /// Those to be told that what is to be steered is.
    steered: Vec<mpsc::Sender<()>>,
    sink: S,
    started: Instant,
    /// Everything is to be dumped, not before this time.
    resync_at: Option<Nanos>,
    /// Routes are to be dumped.
    is_routes_stale: bool,
    routes_dumped: Nanos,
    refreshed: Nanos,
    is_refusal_logged: bool,
}

enum Command {
    Resolve(u8, IpAddr),
    /// What, and whom to tell when it is done.
    Steer(Steering, mpsc::Sender<()>),
    Stop,
}

/// Speaks to the mirror's thread, from any thread. Dropping it ends the thread and waits for its end.
pub struct KernelHandle {
    commands: mpsc::Sender<Command>,
    wake: Arc<EventFd>,
    resyncs: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl KernelHandle {
    /// Has the kernel resolve `address`, a next hop on interface number `interface`. The answer is a
    /// [`KernelEvent::NeighbourUp`] or [`KernelEvent::NeighbourGone`], at once where the address is resolved already.
    pub fn resolve(&self, interface: u8, address: IpAddr) {
        self.tell(Command::Resolve(interface, address));
    }

    /// Steers this from now on, where a NIC needs rules for that and takes them. Only for whom the NICs serve: there is one
    /// table for all. What is returned hears when all is told of it that there is.
    pub fn steer(&self, wanted: Steering) -> mpsc::Receiver<()> {
        let (done, is_done) = mpsc::channel();
        self.tell(Command::Steer(wanted, done));
        is_done
    }

    /// How often changes were lost and everything had to be dumped anew.
    pub fn resyncs(&self) -> u64 {
        self.resyncs.load(Relaxed)
    }

    fn tell(&self, command: Command) {
        // Fails only where the thread has ended; then there is nobody to tell.
        if self.commands.send(command).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}

impl Drop for KernelHandle {
    fn drop(&mut self) {
        self.tell(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

impl<S: FnMut(KernelEvent) + Send + 'static> KernelMirror<S> {
    /// Mirrors what concerns `interfaces` (names, in the driver's order) and returns these as they are now. `sink`
    /// is called with all there is before this returns, then in the mirror's thread with what
    /// changes.
    pub fn start(interfaces: &[String], sink: S) -> Result<(KernelHandle, Vec<Interface>), KernelError> {
        Self::start_with(interfaces, RECEIVE_BUFFER, (nics::ask(), Box::new(ntuple::OfKernel)), sink)
    }

    fn start_with(
        names: &[String],
        receive_buffer: i32,
        (read_nic, tables): (Reader, Box<dyn Tables>),
        sink: S,
    ) -> Result<(KernelHandle, Vec<Interface>), KernelError> {
        if names.len() > usize::from(u8::MAX) + 1 {
            return Err(KernelError::TooManyInterfaces(names.len()));
        }
        let changes = Changes::subscribe(receive_buffer)?;
        let mut requests = Requests::open()?;
        let links = host::links(&mut requests)?;
        let interfaces = names.iter().map(|name| host::find(&links, name)).collect::<Result<Vec<_>, _>>()?;

        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| KernelError::Thread(e.into()))?;
        let wake = Arc::new(wake);
        let resyncs = Arc::new(AtomicU64::new(0));
        let (sender, commands) = mpsc::channel();
        let mut thread = Self {
            mirror: Mirror::new(interfaces.clone()),
            requests,
            changes,
            nics: Nics::new(names, read_nic, tables),
            commands,
            wake: wake.clone(),
            resyncs: resyncs.clone(),
            steered: Vec::new(),
            sink,
            started: Instant::now(),
            resync_at: None,
            is_routes_stale: false,
            routes_dumped: 0,
            refreshed: 0,
            is_refusal_logged: false,
        };
        // Here rather than in the thread, so that a kernel that will not answer is an error of the start.
        let mut events = Vec::new();
        thread.dump(&mut events)?;
        thread.nics.follow(0, &mut events);
        events.into_iter().for_each(&mut thread.sink);
        let thread = std::thread::Builder::new()
            .name("netlink".into())
            .spawn(move || thread.run())
            .map_err(KernelError::Thread)?;
        Ok((KernelHandle { commands: sender, wake, resyncs, thread: Some(thread) }, interfaces))
    }

    fn now(&self) -> Nanos {
        self.started.elapsed().as_nanos() as Nanos
    }

    fn run(&mut self) {
        let mut events = Vec::new();
        loop {
            self.sleep();
            if self.obey(&mut events).is_break() {
                return;
            }
            self.listen(&mut events);
            self.keep(&mut events);
            self.nics.follow(self.now(), &mut events);
            events.drain(..).for_each(&mut self.sink);
            // Who does not wait for it has dropped the other end.
            for done in self.steered.drain(..) {
                let _ = done.send(());
            }
        }
    }

    /// Waits for a change, a command, or the next thing due.
    fn sleep(&self) {
        let mut until = self.nics.due().min(self.refreshed + REFRESH_INTERVAL);
        if self.is_routes_stale {
            until = until.min(self.routes_dumped + ROUTES_INTERVAL);
        }
        if let Some(at) = self.resync_at {
            until = until.min(at);
        }
        let milliseconds = until.saturating_sub(self.now()).div_ceil(MILLISECOND);
        let timeout = PollTimeout::try_from(Duration::from_millis(milliseconds)).unwrap_or(PollTimeout::MAX);
        let fds = [Some(self.changes.as_fd()), Some(self.wake.as_fd()), self.nics.fd()];
        let mut waiting: Vec<_> = fds.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        // An error here is EINTR or ENOMEM: the loop looks at everything and comes back.
        let _ = poll(&mut waiting, timeout);
        let _ = self.wake.read();
    }

    fn obey(&mut self, events: &mut Vec<KernelEvent>) -> std::ops::ControlFlow<()> {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Resolve(interface, address)) => {
                    let key = (interface, address);
                    // Of an entry that is fresh to it the kernel would ask nobody for half a minute or more.
                    if !(self.mirror.on_resolve(key, self.now(), events) && self.verify(key)) {
                        self.ask(key, events);
                    }
                }
                Ok(Command::Steer(wanted, done)) => {
                    self.nics.steer(wanted);
                    self.steered.push(done);
                }
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => {
                    self.nics.withdraw();
                    return std::ops::ControlFlow::Break(());
                }
                Err(mpsc::TryRecvError::Empty) => return std::ops::ControlFlow::Continue(()),
            }
        }
    }

    /// Takes what the kernel has to say.
    fn listen(&mut self, events: &mut Vec<KernelEvent>) {
        loop {
            match self.changes.receive() {
                Ok(Heard::Some(changes)) => {
                    let now = self.now();
                    for change in &changes {
                        self.is_routes_stale |= self.mirror.on_change(change, now, events);
                    }
                }
                Ok(Heard::Nothing) => return,
                Ok(Heard::Overrun) => {
                    self.resyncs.fetch_add(1, Relaxed);
                    tracing::warn!("the kernel changed faster than it was followed; everything is read anew");
                    self.resync_at = Some(self.now());
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "netlink: cannot receive; everything is read anew");
                    self.resync_at = Some(self.now() + RETRY);
                    return;
                }
            }
        }
    }

    /// Does what is due: a new dump, new routes, neighbours to be refreshed.
    fn keep(&mut self, events: &mut Vec<KernelEvent>) {
        let now = self.now();
        if self.resync_at.is_some_and(|at| now >= at) {
            self.resync_at = None;
            let read = self.resync(events);
            self.retry_on_error(read);
        } else if self.is_routes_stale && now >= self.routes_dumped + ROUTES_INTERVAL {
            let dumped = self.dump_routes(events);
            self.retry_on_error(dumped);
        }
        if now >= self.refreshed + REFRESH_INTERVAL {
            self.refreshed = now;
            for key in self.mirror.refresh(now) {
                self.ask(key, events);
            }
        }
    }

    fn retry_on_error(&mut self, result: Result<(), KernelError>) {
        if let Err(error) = result {
            tracing::error!(%error, "the kernel's state could not be read; trying again");
            self.resync_at = Some(self.now() + RETRY);
        }
    }

    fn resync(&mut self, events: &mut Vec<KernelEvent>) -> Result<(), KernelError> {
        self.changes.discard().map_err(|e| KernelError::netlink("receive changes", e))?;
        self.dump(events)
    }

    fn dump(&mut self, events: &mut Vec<KernelEvent>) -> Result<(), KernelError> {
        let links = host::links(&mut self.requests)?;
        self.mirror.on_links(&links, events);
        let mut neighbours = self.requests.neighbours(AddressFamily::Inet)?;
        neighbours.extend(self.requests.neighbours(AddressFamily::Inet6)?);
        self.mirror.on_neighbours(&neighbours, self.now(), events);
        self.dump_routes(events)
    }

    fn dump_routes(&mut self, events: &mut Vec<KernelEvent>) -> Result<(), KernelError> {
        self.routes_dumped = self.now();
        self.is_routes_stale = false;
        let addresses = self.requests.addresses(AddressFamily::Inet)?;
        let addresses6 = self.requests.addresses(AddressFamily::Inet6)?;
        self.mirror.on_addresses(&addresses, &addresses6, events);
        let interfaces = self.mirror.interfaces();
        let routes = self.requests.routes(AddressFamily::Inet, |message| parse_route(message, interfaces))?;
        let routes6 = self.requests.routes(AddressFamily::Inet6, |message| parse_route(message, interfaces))?;
        self.mirror.on_routes(routes.into_iter().flatten().collect(), events);
        self.mirror.on_routes6(routes6.into_iter().flatten().collect(), events);
        Ok(())
    }

    /// False where the kernel has no entry to be verified.
    fn verify(&mut self, (interface, address): (u8, IpAddr)) -> bool {
        let interface = self.mirror.interfaces().get(usize::from(interface));
        interface.is_some_and(|interface| self.requests.verify_neighbour(interface.index, address).is_ok())
    }

    fn ask(&mut self, key: (u8, IpAddr), events: &mut Vec<KernelEvent>) {
        let Some(interface) = self.mirror.interfaces().get(usize::from(key.0)) else { return };
        let Err(error) = self.requests.use_neighbour(interface.index, key.1) else { return };
        if !std::mem::replace(&mut self.is_refusal_logged, true) {
            tracing::warn!(%error, neighbour = %key.1, "the kernel refuses to resolve a neighbour (it needs CAP_NET_ADMIN)");
        }
        self.mirror.on_resolve_refused(key, events);
    }
}
