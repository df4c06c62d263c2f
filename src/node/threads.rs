//! The threads of a running node: workers, control core, network, signals.
//!
//! Each has what it needs before it starts, and knows the others by the ends of rings and channels alone.

use std::{
    net::SocketAddrV4,
    panic::{self, AssertUnwindSafe},
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

use nix::sys::signal::SigSet;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::oneshot;

use super::{
    NodeError,
    clock::NodeClock,
    config::NodeConfig,
    control_thread::{ControlSender, ControlThread, Input, Waiting, WorkerLink},
    cores,
    kernel::KernelHandle,
    network_thread::Network,
    nics::Nics,
    operation::Order,
    port_claim::PoolClaims,
    views::Facts,
    worker_thread::{Doorbell, WorkerThread},
};
use crate::{
    control::{Control, ControlConfig},
    dataplane::{
        driver::xdp::{AttachedInterface, Pages, Waker, XdpDriver},
        forwarding::{Identity, Interface},
        gateway::Transit,
        handoff,
        huge::{HUGE_PAGE, Memory},
        published::Published,
        worker::{Rings, Worker, WorkerConfig},
    },
    limits,
    rpc::messages::Roles,
    telemetry::show::InterfaceView,
};

/// What ends a node.
pub(super) enum End {
    Signal,
    Thread(String),
    Interface(String),
}

/// What a start has gathered when there are no threads yet.
pub(super) struct Gathered<'a> {
    pub(super) config: NodeConfig,
    pub(super) interfaces: Vec<Interface>,
    pub(super) attached: &'a [AttachedInterface],
    pub(super) nics: Arc<Nics>,
    /// One for each worker.
    pub(super) drivers: Vec<(XdpDriver, Waker)>,
    pub(super) kernel: Arc<KernelHandle>,
    /// Has XDP programs and NICs treat packets by this.
    pub(super) take: Box<dyn FnMut(&Transit) + Send>,
    pub(super) claims: PoolClaims,
    pub(super) network: Network,
    /// To the control core, with what was sent to it already.
    pub(super) control: (ControlSender, mpsc::Receiver<Input>),
    /// The signal to read the file anew.
    pub(super) hangup: SigSet,
}

/// The threads of a running node.
pub(super) struct Threads {
    is_stopping: Arc<AtomicBool>,
    doorbells: Vec<Doorbell>,
    workers: Vec<JoinHandle<()>>,
    control: ControlSender,
    control_thread: JoinHandle<()>,
    stop_network: oneshot::Sender<()>,
    network_thread: JoinHandle<()>,
}

impl Threads {
    /// Starts them; what ends one of them untold is sent to `end`.
    pub(super) fn start(gathered: Gathered<'_>, end: &mpsc::Sender<End>) -> Result<Self, NodeError> {
        let Gathered { config, interfaces, attached, nics, drivers, kernel, take, claims, network, control, hangup } =
            gathered;
        let (control, inputs) = control;
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
    pub(super) fn stop(self) {
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
}
