//! The node's port range in `net.ipv4.ip_local_reserved_ports`, so that the kernel gives none of its ports to a
//! socket that asks for any: what arrives there is taken by the XDP program and never reaches the socket.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

const SYSCTL: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// What the kernel chooses from.
const LOCAL_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// A set of ports, as the sysctl writes it: `8080,40000-49999`.
#[derive(Clone, PartialEq, Eq)]
struct Ports(Vec<bool>);

impl Ports {
    /// `None` where the text is not a list of ports and ranges.
    fn parse(text: &str) -> Option<Self> {
        let mut ports = Self(vec![false; 1 << 16]);
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            if first > last {
                return None;
            }
            ports.0[usize::from(first)..=usize::from(last)].fill(true);
        }
        Some(ports)
    }

    fn combine(&self, other: &Self, operation: fn(bool, bool) -> bool) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| operation(*a, *b)).collect())
    }

    fn is_empty(&self) -> bool {
        !self.0.contains(&true)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        let mut port = 0;
        while port < self.0.len() {
            let length = self.0[port..].iter().take_while(|is_set| **is_set).count();
            match length {
                0 => {}
                1 => write!(f, "{separator}{port}")?,
                _ => write!(f, "{separator}{port}-{}", port + length - 1)?,
            }
            if length > 0 {
                separator = ",";
            }
            port += length.max(1);
        }
        Ok(())
    }
}

/// Takes the ports back when dropped.
#[must_use = "the reservation ends when this is dropped"]
pub struct ReservedPorts {
    sysctl: PathBuf,
    /// What the list has because of us.
    added: Ports,
}

impl ReservedPorts {
    /// What the list has because of this reservation, for [`release_ports`] should the process die.
    pub fn added(&self) -> String {
        self.added.to_string()
    }
}

/// Takes ports off the list that a node which died had added: its [`ReservedPorts::added`].
pub fn release_ports(added: &str) {
    if let Some(added) = Ports::parse(added) {
        drop(ReservedPorts { sysctl: PathBuf::from(SYSCTL), added });
    }
}

/// Adds `first` to `last` to the ports that the kernel gives to nobody who did not ask for that very port. Those
/// reserved by others stay, also when this reservation ends. Where the list cannot be written (a read-only /proc,
/// no privilege) a warning says what to do, and the node can run all the same.
pub fn reserve_ports(first: u16, last: u16) -> ReservedPorts {
    if fs::read_to_string(LOCAL_RANGE).is_ok_and(|range| leaves_none(&range, first, last)) {
        tracing::warn!(
            "the ports {first}-{last} leave this machine none for connections of its own; \
             choose fewer (node.ports), or others for the machine: sysctl -w net.ipv4.ip_local_port_range=..."
        );
    }
    reserve_in(PathBuf::from(SYSCTL), first, last)
}

/// True where all ports of the range that the kernel chooses from, as the sysctl writes it, are among these.
fn leaves_none(local_range: &str, first: u16, last: u16) -> bool {
    let mut ends = local_range.split_whitespace().map(str::parse::<u16>);
    matches!((ends.next(), ends.next()), (Some(Ok(low)), Some(Ok(high))) if first <= low && high <= last)
}

fn reserve_in(sysctl: PathBuf, first: u16, last: u16) -> ReservedPorts {
    let mut range = Ports(vec![false; 1 << 16]);
    range.0.iter_mut().take(usize::from(last) + 1).skip(usize::from(first)).for_each(|port| *port = true);
    match add(&sysctl, &range) {
        Ok(added) => ReservedPorts { sysctl, added },
        Err(error) => {
            tracing::warn!(
                %error,
                "the ports {first}-{last} are not reserved, a local program could get one of them; add them: \
                 sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}"
            );
            ReservedPorts { sysctl, added: Ports(vec![false; 1 << 16]) }
        }
    }
}

/// Adds `range` to the list; what of it was not there before.
fn add(sysctl: &Path, range: &Ports) -> io::Result<Ports> {
    let reserved = read(sysctl)?;
    let added = range.combine(&reserved, |ours, old| ours && !old);
    if !added.is_empty() {
        fs::write(sysctl, format!("{}\n", reserved.combine(range, |old, ours| old || ours)))?;
    }
    Ok(added)
}

fn read(sysctl: &Path) -> io::Result<Ports> {
    Ports::parse(&fs::read_to_string(sysctl)?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the list cannot be understood"))
}

impl Drop for ReservedPorts {
    fn drop(&mut self) {
        if self.added.is_empty() {
            return;
        }
        // Read anew: others may have reserved ports since.
        let given_back = read(&self.sysctl).and_then(|reserved| {
            let rest = reserved.combine(&self.added, |reserved, ours| reserved && !ours);
            fs::write(&self.sysctl, format!("{rest}\n"))
        });
        if let Err(error) = given_back {
            tracing::warn!(%error, "the reserved ports could not be given back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> Option<String> {
        Ports::parse(text).map(|ports| ports.to_string())
    }

    #[test]
    fn a_list_is_read_and_written_as_the_kernel_does() {
        assert_eq!(normal("\n").as_deref(), Some(""));
        assert_eq!(normal("8080,9148\n").as_deref(), Some("8080,9148"));
        assert_eq!(normal("3,1-2,65535,0").as_deref(), Some("0-3,65535"));
        for wrong in ["x", "1-", "2-1", "65536", "1,,x"] {
            assert_eq!(normal(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_reservation_adds_its_ports_and_takes_back_no_more_than_it_added() {
        let directory = tempfile::tempdir().unwrap();
        let sysctl = directory.path().join("ports");
        fs::write(&sysctl, "80,40000-40009\n").unwrap();
        let first = reserve_in(sysctl.clone(), 40000, 40099);
        assert_eq!(fs::read_to_string(&sysctl).unwrap(), "80,40000-40099\n");
        let second = reserve_in(sysctl.clone(), 50000, 50009);
        drop(first);
        assert_eq!(fs::read_to_string(&sysctl).unwrap(), "80,40000-40009,50000-50009\n");
        drop(second);
        assert_eq!(fs::read_to_string(&sysctl).unwrap(), "80,40000-40009\n");
    }

    #[test]
    fn a_range_that_leaves_the_machine_no_port_is_known() {
        assert!(leaves_none("32768\t60999\n", 1024, 65535));
        assert!(leaves_none("32768\t60999\n", 32768, 60999));
        assert!(!leaves_none("32768\t60999\n", 32769, 65535));
        assert!(!leaves_none("32768\t60999\n", 1024, 60998));
        assert!(!leaves_none("nonsense", 1024, 65535));
    }

    #[test]
    fn a_list_that_cannot_be_written_or_understood_is_no_error_and_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let reserved = reserve_in(directory.path().join("missing/ports"), 40000, 40099);
        assert!(reserved.added.is_empty());
        let sysctl = directory.path().join("ports");
        fs::write(&sysctl, "something new").unwrap();
        drop(reserve_in(sysctl.clone(), 40000, 40099));
        assert_eq!(fs::read_to_string(&sysctl).unwrap(), "something new");
    }
}
