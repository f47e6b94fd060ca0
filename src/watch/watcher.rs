//! One watcher: what it asked for and how far it is.
//!
//! Promise: what a watcher has been sent only grows. `Watcher::advance` is the one place where its position moves, and it
//! refuses to move back.

use super::hub::StreamId;
use crate::mvcc::change::{Change, ChangeKind};
use crate::types::{KeyRange, Revision};

/// What a client asks for when it creates a watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The keys.
    pub range: KeyRange,
    /// The first revision wanted; 0: whatever comes next. Negative ones are refused.
    pub start: Revision,
    /// Kinds of change that are not wanted.
    pub filters: Filters,
    /// Events carry the value that they replaced.
    pub prev_kv: bool,
    /// A quiet watcher is told from time to time how far it is.
    pub progress_notify: bool,
    /// Responses that are too large for the client may be split.
    pub fragment: bool,
    /// The id the client chose; `None`: the server chooses.
    pub id: Option<i64>,
}

/// Kinds of change that a watcher does not want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Puts.
    pub no_put: bool,
    /// Deletions.
    pub no_delete: bool,
}

impl Filters {
    /// Whether a change of this kind gets through.
    pub fn admit(self, kind: ChangeKind) -> bool {
        match kind {
            ChangeKind::Put => !self.no_put,
            ChangeKind::Delete => !self.no_delete,
        }
    }
}

/// Names a watcher inside the hub. Used again after the watcher is gone; nothing outside the hub keeps one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct WatcherKey(pub(crate) u32);

/// How far a watcher is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// It has everything published that it wants, and hears of what comes when it comes, from `floor` on.
    Synced {
        /// The first revision it may be sent. Not moved with every publish; ahead of what is published when the client
        /// asked for the future.
        floor: Revision,
    },
    /// It is being caught up from history.
    Unsynced {
        /// The first published revision it has not been sent.
        next: Revision,
    },
}

/// One subscription.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) stream: StreamId,
    /// Its name on the stream.
    pub(crate) id: i64,
    pub(crate) spec: Spec,
    pub(crate) position: Position,
    /// No event was sent since the last tick of the stream's progress ticker.
    pub(crate) quiet: bool,
}

impl Watcher {
    /// Whether this change is for it, given that the key was found in its range.
    pub(crate) fn wants(&self, change: &Change) -> bool {
        debug_assert!(self.spec.range.contains(&change.key), "the index found a watcher of other keys");
        self.spec.filters.admit(change.kind)
    }

    /// Whether it is to be offered the changes of `revision` as they are published.
    pub(crate) fn accepts(&self, revision: Revision) -> bool {
        matches!(self.position, Position::Synced { floor } if floor <= revision)
    }

    /// Whether it was sent everything up to `published`, and may be told so. One that asked for a revision that is not there
    /// yet is promised nothing below that revision.
    pub(crate) fn has_all(&self, published: Revision) -> bool {
        matches!(self.position, Position::Synced { .. }) && self.spec.start <= published
    }

    /// Where it continues if it has to read history, when everything up to `published` has been offered to it.
    pub(crate) fn resume_at(&self, published: Revision) -> Revision {
        match self.position {
            Position::Synced { floor } => floor.max(published.next()),
            Position::Unsynced { next } => next,
        }
    }

    /// Moves on.
    pub(crate) fn advance(&mut self, to: Position) {
        let first = |position| match position {
            Position::Synced { floor } => floor,
            Position::Unsynced { next } => next,
        };
        assert!(first(to) >= first(self.position), "a watcher went back: {:?} to {to:?}", self.position);
        self.position = to;
    }
}
