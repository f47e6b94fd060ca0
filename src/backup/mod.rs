//! Backups: our state as a file of etcd's, and a file of etcd's as our state.
//!
//! ```text
//!  rows of the backend ──write──▶ bbolt file with etcd's buckets, SHA-256 behind it ──read──▶ rows of a backend
//! ```
//!
//! | etcd's bucket   | key → value                                                    | ours                                   |
//! |-----------------|----------------------------------------------------------------|----------------------------------------|
//! | key             | main 8, `_`, sub 8, `t` for a tombstone → `mvccpb.KeyValue`    | Key: the same values, shorter keys     |
//! | lease           | id 8 → `leasepb.Lease`                                         | Lease                                  |
//! | alarm           | `AlarmMember` → nothing                                        | Alarm                                  |
//! | meta            | consistent_index, term, confState (JSON), scheduledCompactRev, finishedCompactRev | Meta; the newest revision is not there: it follows from the rows |
//! | members         | id in hex → JSON · members_removed: id in hex → `removed`      | Members, MembersRemoved                |
//! | cluster         | clusterVersion → text                                          | Meta                                   |
//! | auth, authUsers, authRoles | authEnabled, authRevision · `authpb.User` · `authpb.Role` | Users, Roles (the same rows), Meta |
//!
//! The layout is that of etcd 3.5, which 3.5 and 3.6 read; 3.4 has all of it but confState and term.
//!
//! **Writing** ([`mod@write`]) goes twice through the rows of one reader, for the head of the file says where things lie behind it: once to
//! count, once to send. So no copy of the data is made, on disk or in memory, and nobody waits.
//!
//! **Reading** ([`read`]) yields what a new cluster can begin with: keys with their history, leases, alarms. Who the members were and
//! how far their log was is left out, as etcd's own restore leaves it out. Of a directory the end of the log belongs to it, which the
//! file does not have yet ([`etcd_log`]).
//!
//! Deliberately missing: what is done with the rows. `server::restore` makes data directories, `ctl` saves files.

use std::{fmt, io};

use crate::storage::{self, bolt};

pub mod etcd_commands;
pub mod etcd_log;
pub mod read;
mod rows;
pub mod status;
pub mod write;

/// Bytes of the hash behind a file.
pub const HASH_BYTES: usize = 32;

/// The version of etcd whose layout the files have.
pub const STORAGE_VERSION: &str = "3.5.0";

/// Why a backup was not made, or cannot be used.
#[derive(Debug)]
pub enum Error {
    /// Our own disk.
    Storage(storage::Error),
    /// Where it was to go, or the file it comes from.
    Io(io::Error),
    /// The file is not sound.
    Damage(bolt::Damage),
    /// The file is sound, and not what it should be; the text is for the operator.
    Refused(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Storage(error) => error.fmt(f),
            Error::Io(error) => error.fmt(f),
            Error::Damage(error) => error.fmt(f),
            Error::Refused(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Error {
        Error::Storage(error)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

impl From<bolt::Damage> for Error {
    fn from(error: bolt::Damage) -> Error {
        Error::Damage(error)
    }
}
