//! What can go wrong before the first packet, each in one line that says what to do.

use std::io;

use nix::libc;

use super::KERNEL_MIN;
use crate::limits;

/// Why an interface cannot be served by AF_XDP.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A capability is missing.
    #[error(
        "{what}: not permitted; run as root, or grant CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON and \
         CAP_IPC_LOCK (systemd: AmbientCapabilities=)"
    )]
    Privilege {
        /// What was tried.
        what: String,
    },
    /// There is no such interface in this network namespace.
    #[error("interface {name}: there is none of this name here; `ip link` lists those there are")]
    NoInterface {
        /// As configured.
        name: String,
    },
    /// A packet would not fit into a frame.
    #[error(
        "interface {name}: its MTU is {mtu}, but a frame holds {}; run `ip link set dev {name} mtu {}`",
        limits::MTU_MAX,
        limits::MTU_MAX
    )]
    Mtu {
        /// The interface.
        name: String,
        /// Its MTU.
        mtu: u32,
    },
    /// A worker would have no queue.
    #[error(
        "interface {name}: {queues} receive queues are too few for {workers} workers; \
         run `ethtool -L {name} combined {workers}` or start fewer workers"
    )]
    Queues {
        /// The interface.
        name: String,
        /// Its receive queues.
        queues: u32,
        /// Workers of the node.
        workers: usize,
    },
    /// More receive queues than the XDP program's map has room for.
    #[error(
        "interface {name}: {queues} receive queues, but at most {max} can be served; run `ethtool -L {name} combined {max}`"
    )]
    TooManyQueues {
        /// The interface.
        name: String,
        /// Its receive queues.
        queues: u32,
        /// What the map holds.
        max: u32,
    },
    /// Another program's XDP program is attached; it is not ours to remove.
    #[error(
        "interface {name}: the XDP program '{program}' (id {id}) of someone else is attached; end its owner or run \
         `ip link set dev {name} xdp off` (`xdpgeneric off` for a generic one)"
    )]
    ForeignProgram {
        /// The interface.
        name: String,
        /// Name of the attached program.
        program: String,
        /// Its kernel id.
        id: u32,
    },
    /// Another starnet process serves the interface.
    #[error("interface {name}: another starnet process serves it (XDP program id {id}); an interface has one owner")]
    Served {
        /// The interface.
        name: String,
        /// Kernel id of its program.
        id: u32,
    },
    /// The XDP program attaches neither in native nor in generic mode.
    #[error(
        "interface {name}: cannot attach the XDP program: native mode: {native}; generic mode: {generic}; \
         check that the kernel has CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS"
    )]
    Attach {
        /// The interface.
        name: String,
        /// Why native mode failed.
        native: io::Error,
        /// Why generic mode failed.
        generic: io::Error,
    },
    /// The kernel does not take the XDP program.
    #[error(
        "cannot load the XDP program: {why}; starnet needs Linux {}.{} or later with BPF and AF_XDP",
        KERNEL_MIN.0,
        KERNEL_MIN.1
    )]
    Load {
        /// What the loader says.
        why: String,
    },
    /// Too few frames for the rings of all sockets.
    #[error("{frames} frames are too few for a worker with {sockets} queues: set limits.frames to {min} or more")]
    TooFewFrames {
        /// As configured.
        frames: u32,
        /// Sockets of the worker.
        sockets: usize,
        /// What is needed.
        min: u32,
    },
    /// The frames cannot be had or not be pinned.
    #[error("cannot get {bytes} bytes of frame memory: {source}; {}", memory_hint(source))]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// What the kernel says.
        source: io::Error,
    },
    /// Another AF_XDP socket is bound to the queue.
    #[error(
        "interface {name}: queue {queue} is bound to an AF_XDP socket of another process; end that process or leave \
         this interface out"
    )]
    QueueBusy {
        /// The interface.
        name: String,
        /// The queue.
        queue: u32,
    },
    /// The socket cannot be made or bound.
    #[error(
        "interface {name}: no AF_XDP socket for queue {queue}: {source}; check that the kernel has CONFIG_XDP_SOCKETS"
    )]
    Socket {
        /// The interface.
        name: String,
        /// The queue.
        queue: u32,
        /// What the kernel says.
        source: io::Error,
    },
    /// The kernel refused something that needs no privilege and ought to work.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the kernel says.
        source: io::Error,
    },
}

impl Error {
    /// `source` while doing `what`; a missing privilege is told as such.
    pub(super) fn system(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        if is_privilege(&source) { Self::Privilege { what } } else { Self::System { what, source } }
    }
}

/// True for the errors that a missing capability gives.
pub(super) fn is_privilege(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES))
}

fn memory_hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOBUFS | libc::EAGAIN) => {
            "raise the limit of locked memory (`ulimit -l unlimited`, LimitMEMLOCK=infinity)"
        }
        _ => "free memory or lower limits.frames",
    }
}

/// The error number inside an error of a library, or an "other" error with all its text.
pub(super) fn io_error(error: &(dyn std::error::Error + 'static)) -> io::Error {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(at) = next {
        if let Some(io) = at.downcast_ref::<io::Error>()
            && let Some(code) = io.raw_os_error()
        {
            return io::Error::from_raw_os_error(code);
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&at.to_string());
        next = at.source();
    }
    io::Error::other(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_number_is_found_inside_a_chain() {
        let inner = Error::System { what: "outer".into(), source: io::Error::from_raw_os_error(libc::EBUSY) };
        assert_eq!(io_error(&inner).raw_os_error(), Some(libc::EBUSY));
    }

    #[test]
    fn a_missing_privilege_is_told_from_other_refusals() {
        assert!(matches!(Error::system("open", io::Error::from_raw_os_error(libc::EPERM)), Error::Privilege { .. }));
        assert!(matches!(Error::system("open", io::Error::from_raw_os_error(libc::EIO)), Error::System { .. }));
    }
}
