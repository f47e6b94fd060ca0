//! The raft log as raft sees it: everything the disk has, and what it has been asked to write, in memory.
//!
//! Entries start right after a base, the last entry that was truncated away or that a snapshot stands for. What leaves
//! the front is on the backend already; a peer that needs it gets a snapshot, once somebody offers one.

use std::cell::Cell;
use std::collections::VecDeque;

use ::raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

use super::conf_change;
use super::{ConfState, Entry, HardState, Snapshot};
use crate::types::{Index, Term};

/// A point of the log that a snapshot can stand for.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotPoint {
    /// The last entry whose effects are in it.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// The configuration at that entry.
    pub conf_state: ConfState,
}

/// The log in memory.
pub(super) struct Log {
    base_index: u64,
    base_term: u64,
    /// Entry i stands at `base_index + 1 + i`.
    entries: VecDeque<Entry>,
    /// Of their payloads.
    bytes: u64,
    /// What raft starts from; not looked at again.
    start: (HardState, ConfState),
    offer: Option<SnapshotPoint>,
    /// Raft asked for a snapshot and there was none to give.
    wanted: Cell<bool>,
}

impl Log {
    /// A log that starts right after `base`. `entries` follow it without a gap; the caller has checked that.
    pub(super) fn new(base: (Index, Term), entries: Vec<Entry>, start: (HardState, ConfState)) -> Log {
        let (Index(base_index), Term(base_term)) = base;
        let bytes = payload(&entries);
        Log { base_index, base_term, entries: entries.into(), bytes, start, offer: None, wanted: Cell::new(false) }
    }

    /// The entry right before the first.
    pub(super) fn base(&self) -> (Index, Term) {
        (Index(self.base_index), Term(self.base_term))
    }

    /// Adds entries; those already there from the first index on are void. Returns whether there were any such.
    pub(super) fn append(&mut self, entries: &[Entry]) -> bool {
        let Some(first) = entries.first() else { return false };
        let kept = first.index.checked_sub(self.base_index + 1).expect("raft appends after the base") as usize;
        assert!(kept <= self.entries.len(), "raft appends without a gap");
        let overwrites = kept < self.entries.len();
        self.bytes -= payload(self.entries.range(kept..));
        self.bytes += payload(entries);
        self.entries.truncate(kept);
        self.entries.extend(entries.iter().cloned());
        overwrites
    }

    /// A snapshot stands for everything now.
    pub(super) fn reset(&mut self, index: u64, term: u64) {
        (self.base_index, self.base_term) = (index, term);
        self.entries.clear();
        self.bytes = 0;
    }

    /// Bytes of the entries' payload.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Forgets the entries up to `index`. They must be applied.
    pub(super) fn truncate(&mut self, index: u64) {
        if index <= self.base_index {
            return;
        }
        self.base_term = self.term_at(index).expect("an applied entry is in the log");
        self.bytes -= payload(&self.entries.drain(..(index - self.base_index) as usize).collect::<Vec<_>>());
        self.base_index = index;
    }

    /// What [`Storage::snapshot`] gives from now on.
    pub(super) fn offer(&mut self, point: SnapshotPoint) {
        self.offer = Some(point);
        self.wanted.set(false);
    }

    /// Whether a peer waits for a snapshot that nobody has offered yet.
    pub(super) fn snapshot_wanted(&self) -> bool {
        self.wanted.get()
    }

    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        match index.checked_sub(self.base_index)? {
            0 => Some(self.base_term),
            place => self.entries.get(place as usize - 1).map(|entry| entry.term),
        }
    }

    fn last(&self) -> u64 {
        self.base_index + self.entries.len() as u64
    }
}

fn payload<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> u64 {
    entries.into_iter().map(|entry| entry.data.len() as u64).sum()
}

impl Storage for Log {
    fn initial_state(&self) -> Result<RaftState> {
        let (hard_state, conf_state) = self.start.clone();
        Ok(RaftState { hard_state, conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        size_max: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        if low <= self.base_index {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let size_max = size_max.into().unwrap_or(u64::MAX);
        let first = (low - self.base_index - 1) as usize;
        let mut size = 0u64;
        let wanted = self.entries.range(first..).take(high.saturating_sub(low) as usize);
        Ok(wanted
            .take_while(|entry| {
                let fits = size == 0 || size + entry_size(entry) <= size_max;
                size += entry_size(entry);
                fits
            })
            .cloned()
            .collect())
    }

    fn term(&self, index: u64) -> Result<u64> {
        self.term_at(index).ok_or(Error::Store(if index < self.base_index {
            StorageError::Compacted
        } else {
            StorageError::Unavailable
        }))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.base_index + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    /// The offered point, if the log goes on from it and it knows the receiver: a receiver that does not find itself in
    /// the configuration ignores the snapshot, and would be sent it for ever.
    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        let fits = |point: &&SnapshotPoint| {
            point.index.0 >= self.base_index.max(request_index)
                && point.index.0 > 0
                && conf_change::names(&point.conf_state, to)
        };
        let Some(point) = self.offer.as_ref().filter(fits) else {
            self.wanted.set(true);
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot::default();
        let meta = snapshot.mut_metadata();
        (meta.index, meta.term) = (point.index.0, point.term.0);
        meta.set_conf_state(point.conf_state.clone());
        Ok(snapshot)
    }
}

/// What an entry weighs in a message, generously.
pub(super) fn entry_size(entry: &Entry) -> u64 {
    (entry.data.len() + entry.context.len() + 32) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 68].into(), ..Entry::default() }
    }

    fn log() -> Log {
        let entries = (6..=9).map(|index| entry(index, 2)).collect();
        Log::new((Index(5), Term(1)), entries, Default::default())
    }

    fn indices(log: &Log, low: u64, high: u64, size_max: u64) -> Vec<u64> {
        let entries = log.entries(low, high, size_max, GetEntriesContext::empty(false)).expect("they are there");
        entries.iter().map(|entry| entry.index).collect()
    }

    #[test]
    fn entries_come_in_bounds_and_at_least_one() {
        let log = log();
        assert_eq!(indices(&log, 6, 10, u64::MAX), [6, 7, 8, 9]);
        assert_eq!(indices(&log, 7, 9, 200), [7, 8]);
        assert_eq!(indices(&log, 7, 10, 0), [7]);
        assert!(log.entries(5, 7, None, GetEntriesContext::empty(false)).is_err());
        assert_eq!((log.term_at(4), log.term_at(5), log.term_at(9), log.term_at(10)), (None, Some(1), Some(2), None));
    }

    #[test]
    fn an_append_replaces_what_conflicts() {
        let mut log = log();
        assert!(log.append(&[entry(8, 3)]));
        assert_eq!((log.last(), log.term_at(7), log.term_at(8)), (8, Some(2), Some(3)));
        assert!(!log.append(&[entry(9, 3)]));
    }

    #[test]
    fn a_snapshot_is_given_only_where_the_log_goes_on_from_it() {
        let mut log = log();
        assert!(log.snapshot(0, 1).is_err() && log.snapshot_wanted());
        let conf_state = ConfState { voters: vec![1, 2], ..ConfState::default() };
        log.offer(SnapshotPoint { index: Index(7), term: Term(2), conf_state });
        assert!(!log.snapshot_wanted());
        log.truncate(7);
        assert_eq!((log.base(), log.last()), ((Index(7), Term(2)), 9));
        assert_eq!(log.snapshot(0, 1).expect("it was offered").get_metadata().index, 7);
        assert!(log.snapshot(0, 3).is_err(), "member 3 is not in its configuration");
        log.truncate(8);
        assert!(log.snapshot(0, 1).is_err() && log.snapshot_wanted());
    }
}
