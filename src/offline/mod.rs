//! What the directory of a stopped member holds, for who only looks: the log, printed, and everything, checked.
//!
//! Nothing here writes a byte. A member cannot start in a directory while it is looked at; one that runs in it keeps lookers out,
//! for what it is just writing looks like damage.
//!
//! The rules are those of a start: what a member would refuse is said to be wrong here, in its words, with the place. Unlike a start, which
//! ends at the first thing that is wrong, this goes on as far as it can.
//!
//! * [`dump`]: what stands in the log, entry by entry, for people, for programs, or for etcd's tools.
//! * [`check`]: whether log, snapshots and backend are sound and fit together.
//!
//! Deliberately missing: repair. A member whose directory is damaged is removed and added anew, or made from a backup.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::storage;
use crate::storage::datadir::DataDir;
use crate::storage::seal::Keys;

pub mod check;
pub mod dump;
mod etcd;
mod words;

/// A directory that is looked at, held until this is dropped.
#[derive(Debug)]
pub struct Looked {
    member: PathBuf,
    wal: PathBuf,
    keys: Option<Keys>,
    _held: Option<std::fs::File>,
}

impl Looked {
    /// Takes hold of it. `wal_dir` is where the log is, if not inside; `key_file`, what both are encrypted with, if they are.
    pub fn at(data_dir: &Path, wal_dir: Option<&Path>, key_file: Option<&Path>) -> Result<Looked, Error> {
        let keys = key_file.map(Keys::read).transpose()?;
        let held = DataDir::look(data_dir)?;
        let member = data_dir.join("member");
        let wal = wal_dir.map_or_else(|| member.join("wal"), Path::to_owned);
        if !wal.is_dir() {
            return Err(Error::NoLog(wal));
        }
        Ok(Looked { member, wal, keys, _held: held })
    }
}

/// Why nothing could be looked at.
#[derive(Debug)]
pub enum Error {
    /// The disk, or a member that runs.
    Storage(storage::Error),
    /// No directory of a log is here.
    NoLog(PathBuf),
    /// Nobody took what was to be written.
    Output(std::io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Storage(error) => error.fmt(f),
            Error::NoLog(path) => write!(f, "there is no log at {}", path.display()),
            Error::Output(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Error {
        Error::Storage(error)
    }
}
