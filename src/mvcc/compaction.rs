//! Compaction: forgetting what came before a revision.
//!
//! It is done at once in the sense that matters: after [`Store::compact`] nothing below the revision can be read.
//! Removing the rows is work for later, in steps that each hold the state for a bounded time; members may be at
//! different steps and still answer alike. A member that stops half-way begins the removal anew when it is opened: what
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
#[derive(Debug, Default)]
pub(super) struct Compaction {
    /// The last key that is done.
    finished: Option<Box<[u8]>>,
}

impl Store {
    /// From now on nothing below `revision` can be read. The rows are removed by [`Store::compact_step`].
    pub fn compact(&mut self, revision: Revision, batch: &mut Batch) -> Result<(), Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted { at: self.compacted });
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        self.compacted = revision;
        self.compaction = Some(Compaction::default());
        batch.put(Bucket::Meta, Bytes::from_static(COMPACTED), u64_row(revision.0 as u64));
        Ok(())
    }

    /// Whether rows are left to remove.
    pub fn compacting(&self) -> bool {
        self.compaction.is_some()
    }

    /// Removes rows until as many keys were looked at and rows removed as `work_max` says. Says whether there is more
    /// to do.
    pub fn compact_step(&mut self, work_max: usize, batch: &mut Batch) -> storage::Result<bool> {
        let Some(compaction) = &mut self.compaction else { return Ok(false) };
        let more = self.index.compact(self.compacted, &mut compaction.finished, work_max, &mut |place, tombstone| {
            batch.delete(Bucket::Key, place.row(tombstone));
        });
        if !more {
            self.compaction = None;
            batch.put(Bucket::Meta, Bytes::from_static(COMPACTION_DONE), u64_row(self.compacted.0 as u64));
        }
        Ok(more)
    }
}
