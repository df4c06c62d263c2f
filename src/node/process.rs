//! A node from its start to its end.
//!
//! What can be refused is refused first: the file, the ports, the addresses, the sockets. Then the XDP program goes
//! on the interfaces, and last the threads start. The end is the same backwards; a process that is killed leaves
//! at most its operator's socket and claim, which the next one sweeps.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
    path::Path,
    sync::{Arc, mpsc},
};

use nix::sys::signal::{SigSet, Signal};

use super::{
    RUN_DIRECTORY,
    config::NodeConfig,
    control_thread::{self, Input},
    kernel::{self, KernelError, KernelHandle, KernelMirror, Steering},
    network_thread::{Network, NetworkError},
    nics::Nics,
    port_claim::{ClaimError, PoolClaims, PortClaim},
    threads::{End, Gathered, Threads},
};
use crate::{
    config_file::ConfigError,
    control::KernelEvent,
    dataplane::{
        driver::xdp::{self, AttachedInterface, Reserved, XdpDriver},
        gateway::{Gateway, OutsideAddress, Realm, Transit},
    },
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
    let gathered = Gathered {
        config,
        interfaces,
        attached: &attached,
        nics,
        drivers,
        kernel,
        take,
        claims: gateway_claims,
        network,
        control: (control, inputs),
        hangup,
    };
    let node = Threads::start(gathered, &end)?;
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
        // A NIC that is slow to take it costs hand-overs, nothing else.
        drop(kernel.steer(Steering { outside: nat_ports(own, transit), ..steering.clone() }));
        for (interface, rules) in &mut all {
            if let Err(error) = rules.set(transit) {
                tracing::error!(%interface, "cannot tell the XDP program what to take: {error}");
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_file_can_correct_is_an_error_of_the_configuration() {
        assert!(
            NodeError::NotLocal { field: "node.address", address: IpAddr::from([127, 0, 0, 1]) }.is_configuration()
        );
        assert!(!NodeError::Ended("worker-0".into()).is_configuration());
    }
}
