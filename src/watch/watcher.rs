//! What a client asks for when it creates a watcher.

use crate::mvcc::change::ChangeKind;
use crate::types::{KeyRange, Revision};

/// The request.
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
