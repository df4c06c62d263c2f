//! A node from its start to its end.
//!
//! What can be refused is refused first: the file, the ports, the addresses, the sockets. Then the XDP program goes
//! on the interfaces, and last the threads start. The end is the same backwards; a process that is killed leaves
//! at most its operator's socket and claim, which the next one sweeps.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
        mpsc,
    },
    thread::{self, JoinHandle},
};

use nix::sys::signal::{SigSet, Signal};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::oneshot;

use super::{
    RUN_DIRECTORY,
    clock::NodeClock,
    config::NodeConfig,
    control_thread::{self, ControlSender, ControlThread, Input, Waiting, WorkerLink},
    cores,
    kernel::{self, KernelError, KernelHandle, KernelMirror, Steering},
    network_thread::{Network, NetworkError},
    nics::Nics,
    operation::Order,
    port_claim::{ClaimError, PoolClaims, PortClaim},
    views::Facts,
    worker_thread::{Doorbell, WorkerThread},
};
use crate::{
    config_file::ConfigError,
    control::{Control, ControlConfig, KernelEvent},
    dataplane::{
        driver::xdp::{self, AttachedInterface, Pages, Reserved, Waker, XdpDriver},
        forwarding::{Identity, Interface},
        gateway::{Gateway, OutsideAddress, Realm, Transit},
        handoff,
        huge::{HUGE_PAGE, Memory},
        published::Published,
        worker::{Rings, Worker, WorkerConfig},
    },
    limits,
    rpc::messages::Roles,
    telemetry::show::InterfaceView,
};

/// Why a node did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its ports are another node's.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// An address of its is not this machine's.
    #[error("{field}: {address} is not an address of this machine; add it: ip address add {address}/32 dev lo")]
    NotLocal {
        /// Where it was read.
        field: &'static str,
        /// As configured.
        address: IpAddr,
    },
    /// The kernel could not be asked about interfaces and routes.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The sockets of its control messages.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The AF_XDP driver.
    #[error(transparent)]
    Driver(#[from] xdp::Error),
    /// Signals cannot be handled.
    #[error("cannot handle signals: {0}")]
    Signals(#[from] ctrlc::Error),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// An interface was taken away while the node ran.
    #[error(
        "interface '{0}' was removed while the node ran (unplugged, its driver unloaded, or moved to another namespace); start the node again when it is back"
    )]
    InterfaceRemoved(String),
    /// A thread ended although it was not told to.
    #[error("the {0} thread ended unexpectedly; this is a defect, please report it with the log")]
    Ended(String),
}

impl NodeError {
    /// True where the configuration is to be corrected, false where it failed while running.
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Config(_)
                | Self::Claim(ClaimError::Taken { .. })
                | Self::Network(NetworkError::Files(_))
                | Self::NotLocal { .. }
        )
    }
}

/// What ends a node.
enum End {
    Signal,
    Thread(String),
    Interface(String),
}

/// Runs the node that the file at `path` describes until a signal (SIGINT, SIGTERM) ends it. On SIGHUP it reads
/// `[gateway]` anew.
pub fn run(path: &Path) -> Result<(), NodeError> {
    // Before there are other threads: none of them may take it.
    let mut hangup = SigSet::empty();
    hangup.add(Signal::SIGHUP);
    hangup.thread_block().map_err(|error| NodeError::Thread(error.into()))?;
    let config = NodeConfig::load(path)?;
    let (end, ended) = mpsc::channel();
    let signal = end.clone();
    ctrlc::set_handler(move || drop(signal.send(End::Signal)))?;

    let ports = config.ports;
    let claims = Path::new(RUN_DIRECTORY).join("ports");
    let mut claim = PortClaim::new(&claims, &config.name, config.address, ports)?;
    let mut gateway_claims = PoolClaims::new(&claims, &config.name, config.address);
    if let Some(gateway) = &config.gateway {
        let claimed = gateway_claims.claim(&gateway.addresses)?;
        gateway_claims.hold(claimed);
    }
    check_addresses(&config, &kernel::local_addresses()?, &kernel::local_addresses6()?)?;
    let network = Network::bind(&config)?;
    let (control, inputs) = control_thread::inputs();
    let nics = Arc::new(Nics::new(&config.interfaces));
    let (to_control, removed, names, heard) = (control.clone(), end.clone(), config.interfaces.clone(), nics.clone());
    let (kernel, interfaces) = KernelMirror::start(&config.interfaces, move |event| {
        if let KernelEvent::InterfaceRemoved { interface } = event {
            let _ = removed.send(End::Interface(names[usize::from(interface)].clone()));
        }
        heard.hear(&event);
        to_control.send(Input::Kernel(event));
    })?;
    claim.left_reserved().iter().for_each(|ports| kernel::release_ports(ports));
    let reservation = kernel::reserve_ports(ports.first, ports.last);
    if let Err(error) = claim.note_reserved(&reservation.added()) {
        tracing::warn!("the claim of the ports cannot be written: {error}; a crash would leave them reserved");
    }

    let gateway = config.gateway.as_ref().map(|gateway| gateway.resolve(&config.interfaces)).unwrap_or_default();
    let mut addresses = vec![OutsideAddress { address: config.address, first: ports.first, last: ports.last }];
    addresses.extend(gateway.addresses.iter().filter(|outside| outside.address != config.address));
    let is_exit = config.overlay.as_ref().is_some_and(|overlay| overlay.roles.exit);
    let has_nat = is_exit || config.gateway.is_some();
    let transit = Transit { addresses, addresses6: config.nat.addresses6.clone(), ..Transit::default() };
    let steering = steering(&config, &gateway, &transit, has_nat);
    let reserved = Reserved { takes_ip6: config.nat.has_ip6(), takes_fragments: has_nat, transit };
    let mut attached = Vec::new();
    for (number, name) in config.interfaces.iter().enumerate() {
        attached.push(AttachedInterface::attach(name, &reserved, gateway.realm(number as u8))?);
    }
    let mut drivers = Vec::new();
    for worker in 0..config.workers {
        drivers.push(XdpDriver::open(worker, config.workers, &mut attached, config.limits.frames)?);
    }

    let kernel = Arc::new(kernel);
    // The NICs are ours now, and nothing has been set up yet. A mirror that has ended says so elsewhere.
    let _ = kernel.steer(steering.clone()).recv();
    attached.iter().enumerate().for_each(|(number, interface)| nics.bound(number, interface.queues()));

    let name = config.name.clone();
    let take = take_by(&mut attached, Arc::clone(&kernel), (config.address, steering));
    let node = Threads::start(
        config,
        interfaces,
        (&attached, nics),
        drivers,
        kernel,
        take,
        gateway_claims,
        network,
        (control, inputs),
        hangup,
        &end,
    )?;
    tracing::info!(node = name, "running");
    let end = ended.recv().unwrap_or(End::Signal);
    tracing::info!(node = name, "ending");
    node.stop();
    drop((attached, reservation, claim));
    match end {
        End::Signal => Ok(()),
        End::Thread(name) => Err(NodeError::Ended(name)),
        End::Interface(name) => Err(NodeError::InterfaceRemoved(name)),
    }
}

/// Of what the XDP programs take the ports of NAT: all, but for the data port of the node's `own` address.
fn nat_ports(own: Ipv4Addr, transit: &Transit) -> Vec<OutsideAddress> {
    let but_data = |outside: &OutsideAddress| {
        let data = u16::from(outside.address == own);
        OutsideAddress { first: outside.first + data, ..*outside }
    };
    transit.addresses.iter().map(but_data).collect()
}

/// What NICs are to steer by the ports of packets.
fn steering(config: &NodeConfig, gateway: &Gateway, transit: &Transit, has_nat: bool) -> Steering {
    Steering {
        workers: config.workers as u8,
        ours: config.overlay.is_some().then(|| SocketAddrV4::new(config.address, config.ports.first)),
        outside: if has_nat { nat_ports(config.address, transit) } else { Vec::new() },
        interfaces: (0..config.interfaces.len()).map(|number| gateway.realm(number as u8) != Realm::Inside).collect(),
    }
}

/// The addresses that the file gives out must be this machine's.
pub(super) fn check_addresses(config: &NodeConfig, local: &[Ipv4Addr], local6: &[Ipv6Addr]) -> Result<(), NodeError> {
    let outside = config.gateway.iter().flat_map(|gateway| &gateway.addresses);
    let all = outside.map(|outside| ("gateway.addresses", outside.address));
    let mut all = std::iter::once(("node.address", config.address)).chain(all);
    let missing = all.find(|(_, address)| !local.contains(address)).map(|(field, address)| (field, address.into()));
    let missing6 = || {
        let missing = config.nat.addresses6.iter().find(|outside| !local6.contains(&outside.address))?;
        let field = if config.gateway.is_some() { "gateway.addresses6" } else { "exit.addresses6" };
        Some((field, missing.address.into()))
    };
    match missing.or_else(missing6) {
        Some((field, address)) => Err(NodeError::NotLocal { field, address }),
        None => Ok(()),
    }
}

/// Reads `[gateway]` anew each time the signal comes. The thread ends with the process.
fn reload_on(hangup: SigSet, control: ControlSender, facts: Arc<Facts>) -> Result<(), NodeError> {
    let body = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else { return };
        while hangup.wait().is_ok() {
            match runtime.block_on(Order::Reload.carry_out(&control, &facts)) {
                Ok(done) => tracing::info!("reloaded on SIGHUP: {done}"),
                Err(error) => tracing::error!("SIGHUP: {error}"),
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(body).map(drop).map_err(NodeError::Thread)
}

/// Changes which packets the XDP programs take and the NICs steer.
fn take_by(
    attached: &mut [AttachedInterface],
    kernel: Arc<KernelHandle>,
    (own, steering): (Ipv4Addr, Steering),
) -> Box<dyn FnMut(&Transit) + Send> {
    let mut all: Vec<_> = attached
        .iter_mut()
        .filter_map(|interface| Some((interface.name().to_owned(), interface.take_rules()?)))
        .collect();
    Box::new(move |transit| {
        drop(kernel.steer(Steering { outside: nat_ports(own, transit), ..steering.clone() }));
        for (interface, rules) in &mut all {
            if let Err(error) = rules.set(transit) {
                tracing::error!(%interface, "cannot tell the XDP program what to take: {error}");
            }
        }
    })
}

/// The threads of a running node.
struct Threads {
    is_stopping: Arc<AtomicBool>,
    doorbells: Vec<Doorbell>,
    workers: Vec<JoinHandle<()>>,
    control: ControlSender,
    control_thread: JoinHandle<()>,
    stop_network: oneshot::Sender<()>,
    network_thread: JoinHandle<()>,
}

impl Threads {
    #[allow(clippy::too_many_arguments, reason = "called once, with what the start has gathered")]
    fn start(
        config: NodeConfig,
        interfaces: Vec<Interface>,
        (attached, nics): (&[AttachedInterface], Arc<Nics>),
        drivers: Vec<(XdpDriver, Waker)>,
        kernel: Arc<KernelHandle>,
        take: Box<dyn FnMut(&Transit) + Send>,
        claims: PoolClaims,
        network: Network,
        (control, inputs): (ControlSender, mpsc::Receiver<Input>),
        hangup: SigSet,
        end: &mpsc::Sender<End>,
    ) -> Result<Self, NodeError> {
        let clock = NodeClock::start();
        let seeds = Seeds::draw();
        let identity = identity(&config, seeds.probe_key);
        let is_stopping = Arc::new(AtomicBool::new(false));
        let is_hugepages = drivers.iter().all(|(driver, _)| driver.pages() == Pages::Huge);
        let published: Vec<Arc<Published>> = drivers
            .iter()
            .map(|_| Arc::new(Published::new(config.limits.slots as usize, config.limits.bindings as usize)))
            .collect();
        let doorbells: Vec<Doorbell> = drivers
            .iter()
            .zip(&published)
            .map(|((_, waker), published)| {
                let waker = waker.clone();
                Doorbell::new(Arc::clone(published), move || waker.wake())
            })
            .collect();
        let placement = config.pin.then(|| {
            let names: Vec<&str> = config.interfaces.iter().map(String::as_str).collect();
            cores::place(config.workers, &names)
        });
        let cores: Vec<Option<usize>> =
            (0..config.workers).map(|worker| placement.as_ref().map(|placement| placement.workers[worker])).collect();

        let mut links = Vec::new();
        let mut workers = Vec::new();
        for (((index, (driver, _)), handoff), published) in
            drivers.into_iter().enumerate().zip(handoff::mesh(config.workers)).zip(&published)
        {
            let (commands, worker_commands) = rtrb::RingBuffer::new(limits::COMMAND_RING);
            let (worker_events, events) = rtrb::RingBuffer::new(limits::EVENT_RING);
            links.push(WorkerLink { commands, events, doorbell: doorbells[index].clone() });
            let worker = WorkerConfig {
                index,
                identity,
                fans: config.limits.sessions,
                bindings: config.limits.bindings,
                nat: config.nat.clone(),
                hash_key: seeds.hash_key,
                clock: clock.raw_clock().clone(),
            };
            let rings = Rings { commands: worker_commands, events: worker_events, handoff };
            workers.push(Worker::new(worker, driver, rings, Arc::clone(published)));
        }
        let tables: Vec<Memory> = workers.iter().map(|worker| worker.memory().sum()).collect();
        let pages = tables.iter().map(|memory| memory.bytes.div_ceil(HUGE_PAGE)).max().unwrap_or(0);
        if tables.iter().any(|memory| memory.huge == 0) {
            tracing::warn!(
                hint = format!("sysctl vm.nr_hugepages: {pages} more a worker"),
                "too few free huge pages: the tables are in 4 KiB pages, which are slower"
            );
        }

        let now = clock.now();
        let heartbeat = Arc::new(AtomicU64::new(now));
        let core = Control::new(control_config(&config, identity, interfaces, &seeds), published.clone(), now);
        let register = core.register();
        let (calls, calls_made) = tokio::sync::mpsc::unbounded_channel();
        let facts = Arc::new(Facts {
            clock: clock.clone(),
            started: now,
            boot_epoch: seeds.boot_epoch,
            interfaces: attached.iter().map(interface_view).collect(),
            nics,
            is_hugepages,
            cores: cores.clone(),
            tables,
            published: published.clone(),
            heartbeat: Arc::clone(&heartbeat),
            is_registered: AtomicBool::new(false),
            config,
        });

        let mut control_loop = ControlThread {
            control: core,
            clock: clock.clone(),
            workers: links,
            inputs,
            calls,
            resolve: Box::new(move |interface, address| kernel.resolve(interface, address)),
            take,
            claims,
            heartbeat,
            waiting: Waiting::default(),
        };
        control_loop.prepare();
        let spawn = Spawner { end: end.clone(), is_stopping: Arc::clone(&is_stopping) };
        let control_core = placement.map(|placement| placement.control);
        let control_thread = spawn.spawn("control", move || {
            if let Some(core) = control_core {
                cores::pin("control", core);
            }
            control_loop.run();
        })?;
        control.attach(control_thread.thread());

        let mut worker_threads = Vec::new();
        for (((number, worker), published), core) in workers.into_iter().enumerate().zip(published).zip(cores) {
            let thread = WorkerThread {
                worker,
                published,
                idle: facts.config.idle,
                clock: clock.clone(),
                doorbells: doorbells.clone(),
                control: control_thread.thread().clone(),
                is_stopping: Arc::clone(&is_stopping),
            };
            let name = format!("worker-{number}");
            worker_threads.push(spawn.spawn(&name.clone(), move || {
                if let Some(core) = core {
                    cores::pin(&name, core);
                }
                thread.run();
            })?);
        }
        reload_on(hangup, control.clone(), Arc::clone(&facts))?;
        let (stop_network, stopped) = oneshot::channel();
        let to_control = control.clone();
        let network_thread =
            spawn.spawn("network", move || network.run(&to_control, calls_made, register, &facts, stopped))?;
        Ok(Self {
            is_stopping,
            doorbells,
            workers: worker_threads,
            control,
            control_thread,
            stop_network,
            network_thread,
        })
    }

    /// Ends every thread: first no new requests, then no control core, then no packets.
    fn stop(self) {
        self.is_stopping.store(true, SeqCst);
        let _ = self.stop_network.send(());
        let _ = self.network_thread.join();
        self.control.send(Input::Stop);
        let _ = self.control_thread.join();
        self.doorbells.iter().for_each(Doorbell::wake);
        for worker in self.workers {
            let _ = worker.join();
        }
    }
}

/// Starts threads whose unexpected end is the end of the node.
struct Spawner {
    end: mpsc::Sender<End>,
    is_stopping: Arc<AtomicBool>,
}

impl Spawner {
    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, NodeError> {
        let (end, is_stopping, own_name) = (self.end.clone(), Arc::clone(&self.is_stopping), name.to_owned());
        let body = move || {
            // A panic has been printed by now; what counts here is that the thread is gone.
            let _ = panic::catch_unwind(AssertUnwindSafe(run));
            if !is_stopping.load(Relaxed) {
                let _ = end.send(End::Thread(own_name));
            }
        };
        thread::Builder::new().name(name.to_owned()).spawn(body).map_err(NodeError::Thread)
    }
}

/// What is random at each start.
struct Seeds {
    boot_epoch: u64,
    probe_key: [u8; 16],
    hash_key: [u8; 16],
    control: [u8; 32],
}

impl Seeds {
    fn draw() -> Self {
        Self { boot_epoch: u64::from_ne_bytes(random()), probe_key: random(), hash_key: random(), control: random() }
    }
}

/// Bytes of the system's random source. Panics where that has failed: no key would be safe.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the system's random source works");
    bytes
}

fn identity(config: &NodeConfig, probe_key: [u8; 16]) -> Identity {
    Identity {
        address: config.address,
        data_port: config.ports.first,
        nat_port_first: config.ports.first + 1,
        nat_port_last: config.ports.last,
        probe_key,
        workers: config.workers as u8,
    }
}

fn control_config(config: &NodeConfig, identity: Identity, interfaces: Vec<Interface>, seeds: &Seeds) -> ControlConfig {
    ControlConfig {
        name: config.name.clone(),
        identity,
        // Told to nobody where there is no overlay.
        control: config.overlay.as_ref().map_or(SocketAddrV4::new(config.address, 0), |overlay| overlay.control),
        roles: config.overlay.as_ref().map_or(Roles::NONE, |overlay| overlay.roles),
        slots: config.limits.slots,
        fans: config.limits.sessions,
        bindings: config.limits.bindings,
        bindings_a_session: config.limits.bindings_a_session,
        nat: config.nat.clone(),
        interfaces,
        policy: config.exit.policy.clone(),
        gateway: config.gateway.as_ref().map(|gateway| gateway.resolve(&config.interfaces)),
        boot_epoch: seeds.boot_epoch,
        seed: seeds.control,
    }
}

/// What its NIC does is filled in when it is shown.
fn interface_view(attached: &AttachedInterface) -> InterfaceView {
    InterfaceView {
        name: attached.name().to_owned(),
        xdp: attached.mode().to_string(),
        bind: attached.bind_mode().map_or_else(|| "unbound".to_owned(), |mode| mode.to_string()),
        rss: None,
        rules: 0,
        rss_changes: 0,
        rss_changed_s: None,
        queues: None,
        sockets: None,
        trouble: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_of(is_stopping: bool, run: impl FnOnce() + Send + 'static) -> Option<End> {
        let (end, ended) = mpsc::channel();
        let spawner = Spawner { end, is_stopping: Arc::new(AtomicBool::new(is_stopping)) };
        spawner.spawn("worker-7", run).unwrap().join().unwrap();
        ended.try_recv().ok()
    }

    #[test]
    fn a_thread_that_ends_untold_ends_the_node() {
        let ended = |end| matches!(end, Some(End::Thread(name)) if name == "worker-7");
        assert!(ended(end_of(false, || panic!("this panic belongs to the test"))));
        assert!(ended(end_of(false, || {})));
        assert!(end_of(true, || {}).is_none(), "it was told to");
    }

    #[test]
    fn only_what_a_file_can_correct_is_an_error_of_the_configuration() {
        assert!(
            NodeError::NotLocal { field: "node.address", address: IpAddr::from([127, 0, 0, 1]) }.is_configuration()
        );
        assert!(!NodeError::Ended("worker-0".into()).is_configuration());
    }
}
