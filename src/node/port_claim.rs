//! Which node of this machine uses which ports of an address, so that two never take packets from each other.
//!
//! Each running node keeps one file locked (flock) in the claims directory, by default
//! `/run/starnet/ports/NETNS-ADDRESS-FIRST-LAST`, with its name inside and, in a second line, the ports it added to the
//! kernel's reserved ones. A lock ends with its process, so a file whose lock can be taken was left by a crash and is
//! removed. Claims of different network namespaces do not meet.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    net::Ipv4Addr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::config::PortRange;
use crate::dataplane::gateway::OutsideAddress;

/// The ports of a gateway's outside addresses, but for the node's own, which are claimed apart.
#[derive(Debug)]
pub struct PoolClaims {
    directory: PathBuf,
    name: String,
    own: Ipv4Addr,
    held: BTreeMap<Ipv4Addr, PortClaim>,
}

impl PoolClaims {
    /// None yet, in `directory`, of the node `name` at address `own`.
    pub fn new(directory: &Path, name: &str, own: Ipv4Addr) -> Self {
        Self { directory: directory.to_owned(), name: name.to_owned(), own, held: BTreeMap::new() }
    }

    /// Claims those that are not held: all of them, or on an error none.
    pub fn claim(&self, addresses: &[OutsideAddress]) -> Result<Vec<(Ipv4Addr, PortClaim)>, ClaimError> {
        let new = |address: &Ipv4Addr| *address != self.own && !self.held.contains_key(address);
        let claim = |outside: &OutsideAddress| {
            let ports = PortRange { first: outside.first, last: outside.last };
            Ok((outside.address, PortClaim::new(&self.directory, &self.name, outside.address, ports)?))
        };
        addresses.iter().filter(|outside| new(&outside.address)).map(claim).collect()
    }

    /// Holds what was claimed.
    pub fn hold(&mut self, claimed: Vec<(Ipv4Addr, PortClaim)>) {
        self.held.extend(claimed);
    }

    /// Gives up all but these.
    pub fn keep(&mut self, addresses: &[OutsideAddress]) {
        self.held.retain(|address, _| addresses.iter().any(|outside| outside.address == *address));
    }
}

/// A range of ports of an address, ours until this is dropped.
#[derive(Debug)]
pub struct PortClaim {
    path: PathBuf,
    file: File,
    left_reserved: Vec<String>,
}

/// Why a range could not be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another running node has some of the ports.
    #[error("node.ports: {wanted} of {address} overlap {taken}, in use by node '{owner}' ({})", .file.display())]
    Taken {
        /// The address.
        address: Ipv4Addr,
        /// What was asked for.
        wanted: PortRange,
        /// What the other node has.
        taken: PortRange,
        /// The other node's name.
        owner: String,
        /// Its claim.
        file: PathBuf,
    },
    /// The claims directory cannot be used.
    #[error("cannot write in {}: {error}{}", .directory.display(), hint(error))]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the kernel says.
        error: io::Error,
    },
}

impl PortClaim {
    /// Claims `wanted` of `address` for node `name` in `directory`, which is made where missing.
    pub fn new(directory: &Path, name: &str, address: Ipv4Addr, wanted: PortRange) -> Result<Self, ClaimError> {
        let failed = |error| ClaimError::Directory { directory: directory.to_owned(), error };
        fs::create_dir_all(directory).map_err(failed)?;
        // One at a time: between looking for others and writing our own, nobody may do the same.
        let gate = File::open(directory).map_err(failed)?;
        gate.lock().map_err(failed)?;

        let mut left_reserved = Vec::new();
        let prefix = format!("{}-{address}-", network_namespace().map_err(failed)?);
        for entry in fs::read_dir(directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let range = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(&prefix));
            let Some(taken) = range.and_then(|range| range.parse::<PortRange>().ok()) else { continue };
            match owner_of(&path).map_err(failed)? {
                Owner::Running(owner) if taken.overlaps(wanted) => {
                    return Err(ClaimError::Taken { address, wanted, taken, owner, file: path });
                }
                Owner::Running(_) => {}
                Owner::Dead(reserved) => left_reserved.push(reserved),
            }
        }

        let path = directory.join(format!("{prefix}{wanted}"));
        let mut file = File::create(&path).map_err(failed)?;
        file.lock().map_err(failed)?;
        writeln!(file, "{name}").map_err(failed)?;
        Ok(Self { path, file, left_reserved })
    }

    /// What nodes that died had added to the kernel's reserved ports and not given back.
    pub fn left_reserved(&self) -> &[String] {
        &self.left_reserved
    }

    /// Notes what this node added to the kernel's reserved ports, for whoever finds this claim after a crash.
    pub fn note_reserved(&mut self, ports: &str) -> io::Result<()> {
        writeln!(self.file, "{ports}")
    }
}

impl Drop for PortClaim {
    fn drop(&mut self) {
        // Left behind at worst: the next claim finds it unlocked and removes it.
        let _ = fs::remove_file(&self.path);
    }
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied { "; run as root" } else { "" }
}

/// Whose a claim is.
enum Owner {
    /// A running node of this name.
    Running(String),
    /// One that ended without removing it; what it had added to the reserved ports.
    Dead(String),
}

/// Whose the claim at `path` is; a dead node's is removed.
fn owner_of(path: &Path) -> io::Result<Owner> {
    let mut file = match OpenOptions::new().read(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Owner::Dead(String::new())),
        Err(error) => return Err(error),
    };
    let lock = file.try_lock();
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let mut lines = text.lines().map(str::to_owned);
    let name = lines.next().unwrap_or_default();
    match lock {
        Err(TryLockError::WouldBlock) => Ok(Owner::Running(name)),
        Err(TryLockError::Error(error)) => Err(error),
        Ok(()) => {
            fs::remove_file(path)?;
            Ok(Owner::Dead(lines.next().unwrap_or_default()))
        }
    }
}

/// The number of our network namespace.
fn network_namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/net")?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn range(text: &str) -> PortRange {
        text.parse().unwrap()
    }

    #[test]
    fn an_overlapping_range_is_refused_with_the_owners_name() {
        let folder = tempfile::tempdir().unwrap();
        let _first = PortClaim::new(folder.path(), "fra1", ADDRESS, range("40000-49999")).unwrap();
        let error = PortClaim::new(folder.path(), "fra2", ADDRESS, range("49999-59999")).unwrap_err().to_string();
        assert!(
            error.starts_with("node.ports: 49999-59999 of 192.0.2.1 overlap 40000-49999, in use by node 'fra1' ("),
            "{error}"
        );
    }

    #[test]
    fn other_ranges_and_other_addresses_are_free() {
        let folder = tempfile::tempdir().unwrap();
        let _first = PortClaim::new(folder.path(), "fra1", ADDRESS, range("40000-49999")).unwrap();
        let _next = PortClaim::new(folder.path(), "fra2", ADDRESS, range("50000-59999")).unwrap();
        let _other = PortClaim::new(folder.path(), "fra3", Ipv4Addr::LOCALHOST, range("40000-49999")).unwrap();
    }

    #[test]
    fn a_range_is_free_again_after_its_node_and_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        drop(PortClaim::new(folder.path(), "fra1", ADDRESS, range("40000-49999")).unwrap());
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 0, "{names:?}");
        PortClaim::new(folder.path(), "fra2", ADDRESS, range("40000-49999")).unwrap();
    }

    #[test]
    fn a_gateway_claims_all_of_its_addresses_or_none_and_gives_up_those_it_no_longer_has() {
        let folder = tempfile::tempdir().unwrap();
        let outside = |n| OutsideAddress { address: Ipv4Addr::new(192, 0, 2, n), first: 1024, last: 65_535 };
        let count = || fs::read_dir(folder.path()).unwrap().count();
        let mut claims = PoolClaims::new(folder.path(), "gw1", ADDRESS);
        let claimed = claims.claim(&[outside(1), outside(2)]).unwrap();
        claims.hold(claimed);
        assert_eq!(count(), 1, "the node's own is claimed apart");
        let others = PoolClaims::new(folder.path(), "gw2", Ipv4Addr::LOCALHOST);
        let other = others.claim(&[outside(4)]).unwrap();
        let error = claims.claim(&[outside(2), outside(3), outside(4)]).unwrap_err().to_string();
        assert!(error.contains("in use by node 'gw2'"), "{error}");
        assert_eq!(count(), 2, "what was claimed before the error is given up");
        drop(other);
        let claimed = claims.claim(&[outside(2), outside(4)]).unwrap();
        claims.hold(claimed);
        claims.keep(&[outside(4)]);
        assert_eq!(count(), 1);
        assert!(others.claim(&[outside(2)]).is_ok());
    }

    #[test]
    fn the_claim_of_a_crashed_node_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join(format!("{}-{ADDRESS}-40000-41999", network_namespace().unwrap()));
        fs::write(&left, "dead\n40000-41999\n").unwrap();
        let claim = PortClaim::new(folder.path(), "fra1", ADDRESS, range("40000-49999")).unwrap();
        assert!(!left.exists());
        assert_eq!(claim.left_reserved(), ["40000-41999"]);
    }

    #[test]
    fn what_a_node_reserved_is_found_after_its_death() {
        let folder = tempfile::tempdir().unwrap();
        let mut claim = PortClaim::new(folder.path(), "fra1", ADDRESS, range("40000-49999")).unwrap();
        claim.note_reserved("40000-40009,40020").unwrap();
        // As a kill leaves it: the file stays, the lock goes.
        let copy = fs::read(&claim.path).unwrap();
        let path = claim.path.clone();
        drop(claim);
        fs::write(&path, copy).unwrap();
        let next = PortClaim::new(folder.path(), "fra1", ADDRESS, range("40000-49999")).unwrap();
        assert_eq!(next.left_reserved(), ["40000-40009,40020"]);
    }
}
