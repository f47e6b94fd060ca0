//! The hash over keys and their history that members, and tools, compare: the one etcd computes for the same content.
//!
//! It is CRC-32C over the bytes that etcd's backend would hold: the bucket's name, then each row's key (revision, `_`,
//! place in the revision, each number eight bytes, and `t` for a tombstone) and value, from the oldest to the hashed
//! revision. Of the rows up to the compacted revision only those count that are still the value of their key at the
//! *hashed* revision; if no key has a value there, those count that were one at the compacted revision. A tombstone at
//! the compacted revision never counts, for older versions of etcd have removed it. (etcd: newKVHasher; compared with
//! 3.5.1, over random histories too. Unlike that version, and like later ones, the compacted revision itself can be
//! hashed.)

use std::sync::Arc;

use super::Error;
use super::change::{ChangeKind, SharedChanges};
use super::record;
use super::revision::RevisionKey;
use super::store::Store;
use crate::storage;
use crate::storage::backend::{Bucket, Reader};
use crate::types::{KeyRange, RangeEnd, Revision};

/// A hash and what it covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashKv {
    /// CRC-32C.
    pub hash: u32,
    /// The compacted revision at the time; -1 before the first compaction.
    pub compact_revision: i64,
    /// The revision up to which it covers.
    pub hash_revision: i64,
}

/// A hash to be computed; it needs no lock any more.
pub struct HashScan {
    reader: Arc<dyn Reader>,
    /// What the reader does not have.
    recent: Vec<SharedChanges>,
    revision: Revision,
    compacted: Revision,
    /// The rows up to the compacted revision that count, in order. No tombstones.
    kept: Vec<RevisionKey>,
}

impl Store {
    /// The hash at a revision; 0 is the newest.
    pub fn hash_kv(&self, revision: Revision) -> Result<HashKv, Error> {
        Ok(self.hash_scan(revision)?.compute()?)
    }

    /// Prepares the hash at a revision (0 is the newest), for [`HashScan::compute`] without the store.
    pub fn hash_scan(&self, revision: Revision) -> Result<HashScan, Error> {
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        if revision > Revision(0) && revision < self.compacted {
            return Err(Error::Compacted { at: self.compacted });
        }
        let revision = if revision == Revision(0) { self.revision } else { revision };
        let recent = self.recent.since(self.flushed.next());
        Ok(HashScan {
            reader: self.reader(),
            recent: recent.map(|sets| sets.cloned().collect()).unwrap_or_default(),
            revision,
            compacted: self.compacted,
            kept: self.kept_at(revision),
        })
    }

    fn kept_at(&self, revision: Revision) -> Vec<RevisionKey> {
        if self.compacted < Revision::FIRST {
            return Vec::new();
        }
        let everything = KeyRange { start: Default::default(), end: RangeEnd::Open };
        let places = |at: Revision| {
            let mut any = false;
            let mut kept = Vec::new();
            self.index.walk(&everything, None, usize::MAX, |_, entry| {
                let place = entry.at(at);
                any |= place.is_some();
                kept.extend(place.filter(|place| place.revision() <= self.compacted));
                true
            });
            kept.sort_unstable();
            (any, kept)
        };
        match places(revision) {
            (true, kept) => kept,
            (false, _) => places(self.compacted).1,
        }
    }
}

impl HashScan {
    /// Reads the history and hashes it.
    pub fn compute(&self) -> storage::Result<HashKv> {
        let mut hash = crc32c::crc32c(b"key");
        let mut damage = None;
        let end = RevisionKey { main: self.revision.0.saturating_add(1).max(0), sub: 0 }.row(false);
        self.reader.scan(Bucket::Key, &[], Some(&end), &mut |row, value| {
            let Some((place, tombstone)) = RevisionKey::from_row(row) else {
                damage = Some(record::damaged(RevisionKey::default(), "has no valid key"));
                return false;
            };
            self.add(&mut hash, place, tombstone, value);
            true
        })?;
        if let Some(error) = damage {
            return Err(error);
        }
        for set in self.recent.iter().filter(|set| set.revision <= self.revision) {
            for (sub, change) in (0..).zip(&set.changes) {
                let place = RevisionKey { main: set.revision.0, sub };
                self.add(&mut hash, place, change.kind == ChangeKind::Delete, &change.record);
            }
        }
        Ok(HashKv { hash, compact_revision: self.compacted.0, hash_revision: self.revision.0 })
    }

    fn add(&self, hash: &mut u32, place: RevisionKey, tombstone: bool, value: &[u8]) {
        if place.revision() <= self.compacted && self.kept.binary_search(&place).is_err() {
            return;
        }
        let mut row = [0; 18];
        row[..8].copy_from_slice(&place.main.to_be_bytes());
        row[8] = b'_';
        row[9..17].copy_from_slice(&u64::from(place.sub).to_be_bytes());
        row[17] = b't';
        *hash = crc32c::crc32c_append(*hash, &row[..17 + tombstone as usize]);
        *hash = crc32c::crc32c_append(*hash, value);
    }
}
