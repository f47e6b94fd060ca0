//! What stands on disk, and the only code that touches files.
//!
//! ```text
//! <data-dir>/member/wal/<sequence>.wal   the raft log: segments of checksummed records         storage::wal
//! <data-dir>/member/state.redb           the backend: MVCC history, leases, members, meta      storage::backend
//! <data-dir>/member/snap-<index>.redb    a snapshot received from the leader, not yet adopted  storage::snapshot
//! <data-dir>/member/LOCK                 held while a process serves this directory           storage::datadir
//! ```
//!
//! Nothing is acknowledged before the log holds it durably. The backend runs behind: it commits in batches on a thread of
//! its own, each commit carrying data together with the applied index, term and raft configuration it belongs to, so that
//! after any crash it is the exact state at some applied index, and the log still has every entry after that.
//!
//! With a key, all of these but the lock are sealed: [`seal`].
//!
//! Files of etcd, which backups are, are read and written by [`bolt`].
//!
//! An error here is about this disk: it stops the member. It never becomes part of a reply.

use std::fmt;
use std::path::{Path, PathBuf};

pub mod backend;
pub mod bolt;
pub mod datadir;
pub mod disk;
pub mod schema;
pub mod seal;
pub mod snapshot;
pub mod wal;

/// Why the disk cannot be trusted any more. Whoever gets one stops the member.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused.
    Io {
        /// What was being done, for the operator.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
    /// Bytes on disk are not what was written.
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it, in bytes from its start, when that is known.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// It may be in order, but it is not for this process: another one holds it, or it belongs to another member.
    Refused {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// An earlier write or sync failed; what the disk holds is unknown, so nothing more is written.
    Poisoned,
    /// The backend's engine refused.
    Engine(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { doing, path, source } => write!(f, "{doing} {}: {source}", path.display()),
            Error::Corrupt { path, offset, what } => {
                write!(f, "{} is damaged at byte {offset}: {what}", path.display())
            }
            Error::Refused { path, what } => write!(f, "{} {what}", path.display()),
            Error::Poisoned => f.write_str("an earlier disk write failed"),
            Error::Engine(what) => write!(f, "backend: {what}"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// The error of a refused call, be it the operating system or a sealed file that refused.
    pub(crate) fn of_call(doing: &'static str, path: &Path, source: std::io::Error) -> Error {
        let path = path.to_owned();
        match source.get_ref().and_then(|why| why.downcast_ref::<seal::Broken>()) {
            Some(seal::Broken::Damaged { offset, what }) => {
                Error::Corrupt { path, offset: *offset, what: (*what).to_owned() }
            }
            Some(refusal) => Error::Refused { path, what: refusal.to_string() },
            None => Error::Io { doing, path, source },
        }
    }
}

/// What storage calls return.
pub type Result<T> = std::result::Result<T, Error>;
