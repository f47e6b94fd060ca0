//! Multi-version storage of keys: what is written is never changed, only superseded, and forgotten by compaction.
//!
//! Every write that changes something gets the next *revision*, one number for the whole store. The changes inside one
//! write are numbered 0, 1, 2, … . The pair is the *place* of a change, and the backend is simply: place → encoded
//! key-value. Reading a key at a revision needs the places of that key; they are in the *key index*, in memory.
//!
//! ```text
//!  write                            place  row in the backend                          index afterwards
//!  put a 1                          2.0    a=1  create 2  mod 2  version 1             a: 2.0
//!  put a 2                          3.0    a=2  create 2  mod 3  version 2             a: 2.0 3.0
//!  txn: put b x, delete a           4.0    b=x  create 4  mod 4  version 1             b: 4.0
//!                                   4.1t   a    (tombstone)                            a: 2.0 3.0 4.1t
//!  delete nothing                   –      no revision, no row
//!  put a 3                          5.0    a=3  create 5  mod 5  version 1             a: 2.0 3.0 4.1t 5.0
//!
//!  a at revision 3 is its last place up to 3: 3.0, so 2.  At 4 it is 4.1t: there is no a.  At 5: 5.0, version 1 again.
//!
//!  compact at 3: 2.0 goes; a at 3 can still be read          a: 3.0 4.1t 5.0           b: 4.0
//!  compact at 4: 3.0 goes; the tombstone of 4 itself stays,
//!                for a watch from 4 on must hear of it       a: 4.1t 5.0               b: 4.0
//!  compact at 5: 4.1t goes                                   a: 5.0                    b: 4.0
//! ```
//!
//! A key-value is encoded once, when it is written ([`change`]); those bytes are the row, the answer to ranges, the
//! body of events, and the previous value in later events. The newest change sets stay in memory: the backend runs
//! behind, and what it does not have yet is read from them. A place is in the one or the other, so the two never need
//! merging.
//!
//! Everything here is a function of the calls made: no clock, no chance, no I/O but through the [`Reader`]. Reads that
//! may take long come in two halves, one that needs the store and is bounded, and one that works on what the first took
//! along: [`range::Scan`], [`history::HistoryScan`], [`hash::HashScan`].
//!
//! Deliberately missing: whether leases exist and to which keys they belong (the caller is told of attachments),
//! permissions, and the form of requests, which the edge checks. etcd: server/storage/mvcc.
//!
//! [`Reader`]: crate::storage::backend::Reader

use std::fmt;

use crate::storage;
use crate::types::Revision;

pub mod auto_compaction;
pub mod change;
mod compaction;
mod extent;
pub mod hash;
pub mod history;
mod index;
pub mod range;
mod recent;
mod record;
pub mod revision;
pub mod store;
mod tree;
pub mod txn;

pub use extent::Extent;
pub use hash::{HashKv, HashScan};
pub use history::{History, HistoryScan};
pub use range::{RangeResult, Records, Scan};
pub use store::{Store, Written};
pub use txn::{txn_is_read_only, txn_is_serializable};

/// Why a call came to nothing. All but the last are answers, the same on every member.
#[derive(Debug)]
pub enum Error {
    /// The revision lies below the compacted one (or, of a compaction, is not above it).
    Compacted {
        /// The compacted revision.
        at: Revision,
    },
    /// The revision lies ahead.
    FutureRevision,
    /// ignore_value or ignore_lease need the key to exist; also an operation that says nothing.
    KeyNotFound,
    /// A put in a transaction names a lease that does not exist.
    LeaseNotFound,
    /// The sort order or target is none that we know.
    InvalidSort,
    /// The disk cannot be trusted: the member stops.
    Storage(storage::Error),
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Error {
        Error::Storage(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Compacted { at } => write!(f, "compacted at {at}"),
            Error::FutureRevision => f.write_str("future revision"),
            Error::KeyNotFound => f.write_str("key not found"),
            Error::LeaseNotFound => f.write_str("lease not found"),
            Error::InvalidSort => f.write_str("invalid sort"),
            Error::Storage(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}
