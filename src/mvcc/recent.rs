//! The newest change sets, in memory: what the backend does not have yet is read from here, and so is what late
//! watchers most often ask for.

use std::collections::VecDeque;

use bytes::Bytes;

use super::change::SharedChanges;
use super::revision::RevisionKey;
use crate::types::Revision;

/// How much of what the backend already has is kept for watchers that are a little late. Beyond this the oldest sets
/// go, and those watchers read from the backend.
const RECENT_MAX_BYTES: usize = 16 << 20;

/// Change sets of consecutive revisions, up to the newest.
#[derive(Debug)]
pub(super) struct Recent {
    sets: VecDeque<SharedChanges>,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    pub(super) fn new() -> Recent {
        Recent { sets: VecDeque::new(), bytes: 0, bytes_max: RECENT_MAX_BYTES }
    }

    /// Changes how much is kept of what the backend has.
    pub(super) fn limit(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// Adds the newest set.
    pub(super) fn push(&mut self, set: SharedChanges) {
        if let Some(last) = self.sets.back() {
            assert_eq!(set.revision, last.revision.next(), "every revision is made once, and in order");
        }
        self.bytes += set.bytes();
        self.sets.push_back(set);
    }

    /// Lets go of the oldest sets that the backend has (it has all up to `flushed`) until the rest is small enough.
    pub(super) fn trim(&mut self, flushed: Revision) {
        while self.bytes > self.bytes_max {
            match self.sets.front() {
                Some(set) if set.revision <= flushed => self.bytes -= set.bytes(),
                _ => return,
            }
            self.sets.pop_front();
        }
    }

    /// The oldest revision held.
    pub(super) fn first(&self) -> Option<Revision> {
        Some(self.sets.front()?.revision)
    }

    /// The record at a place, if its revision is held.
    pub(super) fn record(&self, place: RevisionKey) -> Option<&Bytes> {
        let n = usize::try_from(place.main - self.first()?.0).ok()?;
        Some(&self.sets.get(n)?.changes.get(place.sub as usize)?.record)
    }

    /// The sets from a revision on. `None` when older ones are asked for than are held.
    pub(super) fn since(&self, from: Revision) -> Option<impl Iterator<Item = &SharedChanges>> {
        let n = usize::try_from(from.0 - self.first()?.0).ok()?;
        Some(self.sets.iter().skip(n))
    }
}
