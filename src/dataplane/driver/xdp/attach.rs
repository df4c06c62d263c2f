//! An interface with our XDP program on it.

use std::io;

use aya::programs::{ProgramError, XdpMode, links::FdLink};
use nix::libc;

use super::{
    BindMode,
    error::{Error, io_error, is_privilege},
    link::{self, Link},
    program::{self, AttachMode, Program, Reserved, Verdicts},
    transit::TransitRules,
};
use crate::{
    dataplane::{gateway::Realm, rss::Queues},
    limits,
};

/// An interface that sends what is ours to AF_XDP sockets, as far as there are any. Dropping it takes the program off;
/// the program also goes with the process, however that ends.
#[derive(Debug)]
pub struct AttachedInterface {
    name: String,
    index: u32,
    queues: Queues,
    mode: AttachMode,
    /// How its sockets are bound, as soon as there is one.
    pub(super) bind_mode: Option<BindMode>,
    pub(super) program: Program,
    holder: Holder,
}

/// What keeps the program on the interface.
#[derive(Debug)]
enum Holder {
    /// A bpf_link: the kernel takes the program off when this is closed.
    Link(#[expect(dead_code, reason = "held for its Drop")] FdLink),
    /// Nothing (kernels before 5.9): it stays until it is taken off.
    Interface,
}

impl AttachedInterface {
    /// Puts the program on interface `name` of the calling thread's network namespace, which is on this side of the
    /// gateway: in native mode if the driver can, else in generic mode. A program that an earlier starnet left behind is replaced; any other is left alone and an
    /// error.
    pub fn attach(name: &str, reserved: &Reserved, realm: Realm) -> Result<Self, Error> {
        let link = link::find(name)?;
        if link.mtu as usize > limits::MTU_MAX {
            return Err(Error::Mtu { name: name.into(), mtu: link.mtu });
        }
        let mut program = Program::load(reserved, realm)?;
        sweep(name, &link)?;
        let (mode, holder) = attach(name, link.index, &mut program)?;
        let (name, index, bind_mode) = (name.to_owned(), link.index, None);
        let mut attached = Self { name, index, queues: Queues::ONE, mode, bind_mode, program, holder };
        // Not before: some drivers (virtio-net) add queues where there is a program.
        attached.queues = link::receive_queues(&attached.name)?;
        let (queues, max) = (attached.queues.count(), attached.program.queues_max());
        if queues > max {
            return Err(Error::TooManyQueues { name: attached.name.clone(), queues, max });
        }
        let by = match attached.holder {
            Holder::Link(_) => "bpf_link",
            Holder::Interface => "netlink",
        };
        tracing::info!(interface = attached.name, %mode, by, queues, "XDP program attached");
        Ok(attached)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kernel's index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Receive queues, with the program on it.
    pub fn queues(&self) -> Queues {
        self.queues
    }

    /// Where the XDP program runs.
    pub fn mode(&self) -> AttachMode {
        self.mode
    }

    /// How the AF_XDP sockets are bound; `None` before the first one.
    pub fn bind_mode(&self) -> Option<BindMode> {
        self.bind_mode
    }

    /// What changes which transit packets are taken; once.
    pub fn take_rules(&mut self) -> Option<TransitRules> {
        self.program.rules.take()
    }

    /// What the XDP program did with the packets of this interface so far.
    pub fn verdicts(&self) -> Result<Verdicts, Error> {
        self.program.verdicts().map_err(|error| {
            Error::system(format!("interface {}: reading the counters of the XDP program", self.name), io_error(&error))
        })
    }
}

impl Drop for AttachedInterface {
    fn drop(&mut self) {
        if let Holder::Interface = self.holder
            && let Err(error) = link::detach(self.index, self.mode)
        {
            tracing::warn!(interface = self.name, %error, "the XDP program could not be taken off");
        }
    }
}

/// Makes sure that no program is on the interface: removes one that is ours and has no owner any more.
fn sweep(name: &str, link: &Link) -> Result<(), Error> {
    let Some((id, mode)) = link.program else { return Ok(()) };
    let program = program_name(id);
    if program.as_deref() != Some(program::NAME) {
        let program = program.unwrap_or_else(|| "unknown".into());
        return Err(Error::ForeignProgram { name: name.into(), program, id });
    }
    match link::detach(link.index, mode) {
        Ok(()) => {
            tracing::warn!(interface = name, id, "removed the XDP program that an earlier starnet left behind");
            Ok(())
        }
        // A bpf_link holds it, and that lives only as long as a process does.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(Error::Served { name: name.into(), id }),
        Err(error) => Err(Error::system(format!("interface {name}: removing a left-over XDP program"), error)),
    }
}

fn program_name(id: u32) -> Option<String> {
    let mut programs = aya::programs::loaded_programs().filter_map(Result::ok);
    programs.find(|program| program.id() == id).and_then(|program| program.name_as_str().map(Into::into))
}

fn attach(name: &str, index: u32, program: &mut Program) -> Result<(AttachMode, Holder), Error> {
    let native = match attach_in(AttachMode::Native, index, program) {
        Ok(holder) => return Ok((AttachMode::Native, holder)),
        Err(error) => error,
    };
    if is_privilege(&native) {
        return Err(Error::Privilege { what: format!("interface {name}: attaching the XDP program") });
    }
    if native.raw_os_error() == Some(libc::ENODEV) {
        return Err(Error::NoInterface { name: name.into() });
    }
    let holder = attach_in(AttachMode::Generic, index, program).map_err(|generic| Error::Attach {
        name: name.into(),
        native: io::Error::other(native.to_string()),
        generic,
    })?;
    tracing::warn!(
        interface = name,
        error = %native,
        hint = native_hint(&native),
        "no native XDP here: using generic mode, which is slower"
    );
    Ok((AttachMode::Generic, holder))
}

fn attach_in(mode: AttachMode, index: u32, program: &mut Program) -> io::Result<Holder> {
    let flags = match mode {
        AttachMode::Native => XdpMode::Driver,
        AttachMode::Generic => XdpMode::Skb,
    };
    let xdp = program.xdp();
    let attached = xdp.attach_to_if_index(index, flags).and_then(|id| xdp.take_link(id));
    // aya falls back to netlink where the kernel has no bpf_link for XDP; such a link cannot be a file descriptor.
    let link = attached.map_err(|error: ProgramError| io_error(&error))?;
    Ok(FdLink::try_from(link).map_or(Holder::Interface, Holder::Link))
}

fn native_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "the driver has no native XDP",
        Some(libc::ENOSPC) => "too few queues; on veth the peer must not have more TX queues than this end RX queues",
        Some(libc::ERANGE | libc::EINVAL) => "the driver refused; often the MTU (on veth the peer's) or LRO",
        _ => "see the kernel log",
    }
}
