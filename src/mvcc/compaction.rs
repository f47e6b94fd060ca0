//! Compaction: forgetting what came before a revision.
//!
//! It is done at once in the sense that matters: after [`Store::compact`] nothing below the revision can be read.
//! Removing the rows is work for later, in steps that each hold the state for a bounded time; members may be at
//! different steps and still answer alike. Until it begins ([`Store::remove`]) watches that run may still go through the
//! history below: the one thing that is answered from it. A member that stops half-way begins the removal anew when it is opened: what
//! was removed stays removed.
//!
//! Of the revisions of a key up to the compacted one the newest stays if it is a put. A tombstone goes, unless its
//! revision is exactly the compacted one: a watch may still begin there, and must hear of the deletion (etcd since
//! 3.5.16).

use bytes::Bytes;

use super::Error;
use super::store::Store;
use crate::storage;
use crate::storage::backend::{Batch, Bucket};
use crate::storage::schema::{COMPACTED, COMPACTION_DONE, u64_row};
use crate::types::Revision;

/// A removal under way.
#[derive(Debug)]
pub(super) struct Compaction {
    /// What lies before this revision goes.
    to: Revision,
    /// The last key that is done.
    finished: Option<Box<[u8]>>,
}

impl Compaction {
    pub(super) fn to(revision: Revision) -> Compaction {
        Compaction { to: revision, finished: None }
    }
}

impl Store {
    /// From now on nothing below `revision` can be read. The rows are there until [`Store::remove`] says that they may go.
    pub fn compact(&mut self, revision: Revision, batch: &mut Batch) -> Result<(), Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted { at: self.compacted });
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        self.compacted = revision;
        batch.put(Bucket::Meta, Bytes::from_static(COMPACTED), u64_row(revision.0 as u64));
        Ok(())
    }

    /// Whether rows are left to remove.
    pub fn compacting(&self) -> bool {
        self.compaction.is_some() || self.retained < self.compacted
    }

    /// Whether they are being removed.
    pub fn removing(&self) -> bool {
        self.compaction.is_some()
    }

    /// What lies before `to`, which is not above the compacted revision, is removed by the next [`Store::compact_step`]s. If something
    /// is being removed already, that begins anew.
    pub fn remove(&mut self, to: Revision) {
        assert!(to <= self.compacted, "{to} is not compacted, only {} is", self.compacted);
        if to > self.retained {
            self.retained = to;
            self.compaction = Some(Compaction::to(to));
        }
    }

    /// Removes rows until as many keys were looked at and rows removed as `work_max` says. Says whether there is more
    /// to do. Begins with it if nobody has said until where.
    pub fn compact_step(&mut self, work_max: usize, batch: &mut Batch) -> storage::Result<bool> {
        if self.compaction.is_none() {
            self.remove(self.compacted);
        }
        let Some(Compaction { to, finished }) = &mut self.compaction else { return Ok(false) };
        let to = *to;
        let more = self.index.compact(to, finished, work_max, &mut |place, tombstone| {
            batch.delete(Bucket::Key, place.row(tombstone));
        });
        if !more {
            self.compaction = None;
            batch.put(Bucket::Meta, Bytes::from_static(COMPACTION_DONE), u64_row(to.0 as u64));
        }
        Ok(self.compacting())
    }
}
