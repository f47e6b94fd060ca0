//! History: what happened since a revision, for watchers that are late.
//!
//! The newest part is in memory and handed out as it is. What lies before that is read from the backend, outside any
//! lock, and then linked: only the index knows which value a change replaced. Revisions come whole, in order and
//! without a gap; a gap in the backend is damage, for every revision has changed something and compaction leaves those
//! from its own on alone.

use std::sync::Arc;

use super::change::{Change, ChangeKind, ChangeSet, SharedChanges};
use super::record;
use super::revision::RevisionKey;
use super::store::Store;
use crate::storage;
use crate::storage::backend::{Bucket, Reader};
use crate::types::Revision;

/// Where history from some revision on is to be had.
pub enum History {
    /// Here, as far as the given number of bytes allowed, but at least one revision; empty when nothing has happened
    /// since.
    Ready(Vec<SharedChanges>),
    /// In the backend, up to where memory goes on.
    Behind(HistoryScan),
    /// Nowhere any more.
    Compacted {
        /// The first revision that is to be had.
        at: Revision,
    },
}

/// History to be read from the backend.
pub struct HistoryScan {
    reader: Arc<dyn Reader>,
    from: Revision,
    to: Revision,
    /// Where removal has come to. That revision's own changes may be missing in a store that was compacted by an etcd before 3.5.16.
    compacted: Revision,
}

impl Store {
    /// What happened from a revision on, which may lie before the compacted one as long as nothing is removed there: a watch that
    /// runs is not cut off by a compaction at once. `bytes_max` bounds what is handed out from memory, whole revisions, at least
    /// one.
    pub fn history(&self, from: Revision, bytes_max: usize) -> History {
        if from < self.retained {
            return History::Compacted { at: self.retained };
        }
        // The first write has revision 2.
        let from = from.max(Revision::FIRST.next());
        if from > self.revision {
            return History::Ready(Vec::new());
        }
        let Some(recent) = self.recent.since(from) else {
            let to = self.recent.first().map_or(self.revision, Revision::previous);
            return History::Behind(HistoryScan { reader: self.reader(), from, to, compacted: self.retained });
        };
        let mut bytes = 0;
        let mut sets = Vec::new();
        for set in recent {
            bytes += set.bytes();
            sets.push(set.clone());
            if bytes >= bytes_max {
                break;
            }
        }
        History::Ready(sets)
    }

    /// Completes what [`HistoryScan::read`] gave: which value each change replaced, as far as that is not compacted.
    pub fn link(&self, sets: &mut [ChangeSet]) {
        for set in sets {
            let before = set.revision.previous();
            if before < self.retained {
                continue;
            }
            for change in &mut set.changes {
                change.replaced = self.index.at(&change.key, before);
            }
        }
    }
}

impl HistoryScan {
    /// The first revision it covers.
    pub fn from(&self) -> Revision {
        self.from
    }

    /// The last revision it covers.
    pub fn to(&self) -> Revision {
        self.to
    }

    /// Reads whole revisions until they come to `bytes_max`; at least one. Needs no lock. To be linked afterwards.
    pub fn read(&self, bytes_max: usize) -> storage::Result<Vec<ChangeSet>> {
        let start = RevisionKey { main: self.from.0, sub: 0 }.row(false);
        let end = RevisionKey { main: self.to.next().0, sub: 0 }.row(false);
        let mut sets: Vec<ChangeSet> = Vec::new();
        let mut bytes = 0;
        let mut damage = None;
        self.reader.scan(Bucket::Key, &start, Some(&end), &mut |row, value| match change_of(row, value) {
            Ok((place, change)) => {
                if sets.last().is_none_or(|set| set.revision < place.revision()) {
                    if !sets.is_empty() && bytes >= bytes_max {
                        return false;
                    }
                    sets.push(ChangeSet { revision: place.revision(), changes: Vec::new() });
                }
                let set = sets.last_mut().expect("just pushed, or there before");
                set.changes.push(change);
                bytes += value.len();
                true
            }
            Err(error) => {
                damage = Some(error);
                false
            }
        })?;
        match damage {
            Some(error) => Err(error),
            None => self.check_whole(sets),
        }
    }

    fn check_whole(&self, sets: Vec<ChangeSet>) -> storage::Result<Vec<ChangeSet>> {
        let mut expected = self.from;
        if self.from == self.compacted && sets.first().is_none_or(|set| set.revision > expected) {
            expected = expected.next();
        }
        if sets.is_empty() && expected <= self.to {
            return Err(storage::Error::Engine(format!("the changes of revision {expected} are missing")));
        }
        for set in &sets {
            if set.revision != expected {
                return Err(storage::Error::Engine(format!("the changes of revision {expected} are missing")));
            }
            expected = expected.next();
        }
        Ok(sets)
    }
}

fn change_of(row: &[u8], value: &[u8]) -> storage::Result<(RevisionKey, Change)> {
    let (place, tombstone) = RevisionKey::from_row(row)
        .ok_or_else(|| storage::Error::Engine(format!("the row {} is not a revision", row.escape_ascii())))?;
    let key = record::read_at(value, place)?.key;
    let kind = if tombstone { ChangeKind::Delete } else { ChangeKind::Put };
    Ok((place, Change::from_row(kind, value, key, place.revision())))
}
