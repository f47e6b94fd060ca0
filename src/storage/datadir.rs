//! The member's directory: made for this user alone, and held by one process at a time.
//!
//! Of a directory that was there before us nothing is changed. Whether others than this user may look into it can be asked.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::disk::{Disk, RealDisk};
use super::{Error, Result};

/// The backend's file name.
pub const STATE: &str = "state.redb";

/// The directory of a member, ours until this is dropped or the process dies.
#[derive(Debug)]
pub struct DataDir {
    member: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Whether a member was ever founded in this directory, as far as can be told from outside.
    pub fn is_founded(data_dir: &Path) -> bool {
        data_dir.join("member").join(STATE).exists()
    }

    /// Makes `<data-dir>/member` if needed and takes hold of it. Refused while another process holds it.
    pub fn open(data_dir: &Path) -> Result<DataDir> {
        let member = data_dir.join("member");
        let io = |doing: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { doing, path, source }
        };
        let fresh = !member.is_dir();
        RealDisk.create_dir(&member).map_err(io("creating", &member))?;
        let lock_path = member.join("LOCK");
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = lock.map_err(io("opening", &lock_path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::Refused { path: member, what: "is in use by another process".to_owned() });
            }
            Err(errno) => return Err(io("locking", &lock_path)(errno.into())),
        }
        if fresh {
            RealDisk.sync_dir(data_dir).map_err(io("syncing", data_dir))?;
            if let Some(parent) = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                // The parent may not be ours to open; then its owner made the entry durable, or nothing is lost but a name.
                let _ = RealDisk.sync_dir(parent);
            }
        }
        Ok(DataDir { member, _lock: lock })
    }

    /// What others than this user may enter, list or write of `data_dir` and of this directory, with what is allowed there. Nothing here
    /// keeps them out then but the modes of the files.
    pub fn exposed(&self, data_dir: &Path) -> Result<Vec<(PathBuf, u32)>> {
        let mut exposed = Vec::new();
        for path in [data_dir, &self.member] {
            let looked = std::fs::metadata(path);
            let looked = looked.map_err(|source| Error::Io { doing: "looking at", path: path.to_owned(), source })?;
            let mode = looked.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                exposed.push((path.to_owned(), mode));
            }
        }
        Ok(exposed)
    }

    /// Keeps members from starting in a directory that somebody only looks at, which stays as it is, until what is returned is
    /// dropped. A directory that was never held, a copy perhaps, has nothing to be held by. Refused while a member holds it.
    pub fn look(data_dir: &Path) -> Result<Option<File>> {
        let member = data_dir.join("member");
        let path = member.join("LOCK");
        let io = |doing: &'static str| {
            let path = path.clone();
            move |source| Error::Io { doing, path, source }
        };
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("opening")(error)),
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Some(lock)),
            Err(Errno::WOULDBLOCK) => {
                Err(Error::Refused { path: member, what: "is in use by another process".to_owned() })
            }
            Err(errno) => Err(io("locking")(errno.into())),
        }
    }

    /// The directory itself, where snapshots go.
    pub fn member(&self) -> &Path {
        &self.member
    }

    /// The log's directory.
    pub fn wal(&self) -> PathBuf {
        self.member.join("wal")
    }

    /// The backend's file.
    pub fn state(&self) -> PathBuf {
        self.member.join(STATE)
    }

    /// Whether a member has lived here: its log or its backend is there.
    pub fn is_inhabited(&self) -> bool {
        self.wal().exists() || self.state().exists()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn one_process_at_a_time_and_nobody_else_reads_it() {
        let parent = tempfile::tempdir().unwrap();
        let data_dir = parent.path().join("a/b");
        let held = DataDir::open(&data_dir).unwrap();
        assert_eq!(std::fs::metadata(held.member()).unwrap().mode() & 0o777, 0o700);
        assert!(!held.is_inhabited());
        let refused = DataDir::open(&data_dir).unwrap_err();
        assert!(matches!(&refused, Error::Refused { .. }), "{refused}");
        assert!(refused.to_string().ends_with("member is in use by another process"), "{refused}");
        assert!(matches!(DataDir::look(&data_dir), Err(Error::Refused { .. })));
        std::fs::create_dir(held.wal()).unwrap();
        drop(held);
        let looking = (DataDir::look(&data_dir).unwrap(), DataDir::look(&data_dir).unwrap());
        assert!(DataDir::open(&data_dir).is_err(), "somebody looks at it");
        drop(looking);
        assert!(DataDir::look(parent.path()).unwrap().is_none());
        assert!(DataDir::open(&data_dir).unwrap().is_inhabited());
    }
}
