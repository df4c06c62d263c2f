//! Key and certificate files: written once, private ones for the owner alone, read with errors that say what to do.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// What is wrong with a key or certificate file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{}: cannot be read: {cause}; {advice}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
        /// What to do about it.
        advice: &'static str,
    },
    /// It cannot be written.
    #[error("{}: cannot be written: {cause}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// It is there already and was not to be replaced.
    #[error("{}: exists already; give --force to replace it, which makes what was issued from it invalid", path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// It was read, but is not what it should be.
    #[error("{}: {problem}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what to do about it.
        problem: String,
    },
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// Its owner only (mode 0600).
    Private,
    /// Everyone (mode 0644).
    Public,
}

impl Secrecy {
    fn mode(self) -> u32 {
        match self {
            Self::Private => 0o600,
            Self::Public => 0o644,
        }
    }
}

/// Writes `bytes` to `path`, through to the disk. An existing file is an error unless `force`, and then it is
/// replaced in one step: a reader sees the old one or the new one, whole.
pub fn write(path: &Path, bytes: &[u8], secrecy: Secrecy, force: bool) -> Result<(), FileError> {
    let wrong = |cause| FileError::Write { path: path.to_owned(), cause };
    if !force {
        return write_new(path, bytes, secrecy).map_err(|cause| match cause.kind() {
            io::ErrorKind::AlreadyExists => FileError::Exists { path: path.to_owned() },
            _ => wrong(cause),
        });
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(wrong(cause)),
        _ => {}
    }
    write_new(&beside, bytes, secrecy).and_then(|()| fs::rename(&beside, path)).map_err(wrong)
}

fn write_new(path: &Path, bytes: &[u8], secrecy: Secrecy) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(secrecy.mode()).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Reads `path` whole; `advice` says what to do where it cannot be read.
pub fn read(path: &Path, advice: &'static str) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(|cause| FileError::Read { path: path.to_owned(), cause, advice })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn private_files_are_for_their_owner_only_and_never_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write(&path, b"one", Secrecy::Private, false).unwrap();
        assert!(matches!(write(&path, b"two", Secrecy::Private, false), Err(FileError::Exists { .. })));
        assert_eq!(read(&path, "").unwrap(), b"one");
        write(&path, b"three", Secrecy::Private, true).unwrap();
        assert_eq!(read(&path, "").unwrap(), b"three");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }
}
