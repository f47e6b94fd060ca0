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

/// A hash in the making: [`Store::hash_more`] until nothing is left, then [`HashScan::compute`], which needs no lock any more.
pub struct HashScan {
    /// As it was asked for: 0 is the newest.
    asked: Revision,
    reader: Arc<dyn Reader>,
    /// What the reader does not have.
    recent: Vec<SharedChanges>,
    revision: Revision,
    compacted: Revision,
    /// The rows up to the compacted revision that count; in order, when the walk is over. No tombstones.
    kept: Vec<RevisionKey>,
    /// How far they are gathered; none: they all are.
    walk: Option<Walk>,
}

struct Walk {
    /// The values of this revision are gathered.
    at: Revision,
    /// Some key has one.
    any: bool,
    /// The last key that is done.
    after: Option<Box<[u8]>>,
}

impl Walk {
    fn at(revision: Revision) -> Walk {
        Walk { at: revision, any: false, after: None }
    }
}

impl Store {
    /// The hash at a revision; 0 is the newest.
    pub fn hash_kv(&self, revision: Revision) -> Result<HashKv, Error> {
        let mut scan = self.hash_begin(revision)?;
        while self.hash_more(&mut scan, usize::MAX)? {}
        Ok(scan.compute()?)
    }

    /// Begins the hash at a revision (0 is the newest).
    pub fn hash_begin(&self, asked: Revision) -> Result<HashScan, Error> {
        if asked > self.revision {
            return Err(Error::FutureRevision);
        }
        if asked > Revision(0) && asked < self.compacted {
            return Err(Error::Compacted { at: self.compacted });
        }
        let revision = if asked == Revision(0) { self.revision } else { asked };
        let recent = self.recent.since(self.flushed.next());
        Ok(HashScan {
            asked,
            reader: self.reader(),
            recent: recent.map(|sets| sets.cloned().collect()).unwrap_or_default(),
            revision,
            compacted: self.compacted,
            kept: Vec::new(),
            walk: (self.compacted >= Revision::FIRST).then(|| Walk::at(revision)),
        })
    }

    /// Looks at `keys_max` keys more. Says whether there are others. If something was compacted meanwhile, it begins anew; it is an
    /// error if the revision went with that.
    pub fn hash_more(&self, scan: &mut HashScan, keys_max: usize) -> Result<bool, Error> {
        if scan.walk.is_some() && scan.compacted != self.compacted {
            *scan = self.hash_begin(scan.asked)?;
        }
        let HashScan { compacted, kept, walk, .. } = scan;
        let Some(Walk { at, any, after }) = walk else { return Ok(false) };
        let everything = KeyRange { start: Default::default(), end: RangeEnd::Open };
        let last = self.index.walk(&everything, after.as_deref(), keys_max, |_, entry| {
            let place = entry.at(*at);
            *any |= place.is_some();
            kept.extend(place.filter(|place| place.revision() <= *compacted));
            true
        });
        *walk = match last {
            Some(_) => Some(Walk { at: *at, any: *any, after: last }),
            None if *any || *at == *compacted => None,
            None => Some(Walk::at(*compacted)),
        };
        if walk.is_none() {
            kept.sort_unstable();
        }
        Ok(walk.is_some())
    }
}

impl HashScan {
    /// Reads the history and hashes it.
    pub fn compute(&self) -> storage::Result<HashKv> {
        assert!(self.walk.is_none(), "which rows count is known only when the walk is over");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::PutRequest;
    use crate::storage::backend::memory::MemoryBackend;
    use crate::storage::backend::{Backend, Batch};

    fn store() -> Store {
        let (mut store, _) = Store::open(MemoryBackend::default().reader().expect("memory")).expect("an empty store");
        for n in 0..20 {
            let put = PutRequest { key: format!("k{}", n % 7).into(), ..Default::default() };
            store.put(&put).expect("there is room");
        }
        store.compact(Revision(9), &mut Batch::default()).expect("it exists");
        store
    }

    fn in_slices(store: &Store, mut scan: HashScan) -> Result<HashKv, Error> {
        while store.hash_more(&mut scan, 1)? {}
        Ok(scan.compute()?)
    }

    #[test]
    fn slices_make_no_difference() {
        let store = store();
        for at in [0, 9, 12, 21] {
            let scan = store.hash_begin(Revision(at)).expect("it is there");
            let hash = in_slices(&store, scan).expect("it stays");
            assert_eq!(hash, store.hash_kv(Revision(at)).expect("it is there"), "{at}");
        }
    }

    #[test]
    fn a_compaction_between_two_slices_begins_it_anew() {
        let mut store = store();
        let begun = |at| {
            let mut scan = store.hash_begin(Revision(at)).expect("it is there");
            assert!(store.hash_more(&mut scan, 1).expect("it stays"));
            scan
        };
        let (newest, later, gone) = (begun(0), begun(16), begun(12));
        store.compact(Revision(15), &mut Batch::default()).expect("it exists");
        while store.compact_step(3, &mut Batch::default()).expect("memory") {}
        for (scan, at) in [(newest, 0), (later, 16)] {
            let hash = in_slices(&store, scan).expect("it stays");
            assert_eq!(hash, store.hash_kv(Revision(at)).expect("it is there"), "{at}");
        }
        assert!(matches!(in_slices(&store, gone), Err(Error::Compacted { at: Revision(15) })));
    }
}
