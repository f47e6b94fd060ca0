//! One stream of watchers: its outbox, the ids it has given, and which of its watchers are late.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::group::{CohortKey, GroupKey};
use super::hub::StreamId;
use super::outbox::{Outbox, Outgoing, Refusal};
use super::watcher::Spec;
use crate::types::Revision;

/// Ids of watchers that compaction ended, remembered per stream to answer a cancel that comes late. Older ones are
/// forgotten; their cancel then gets the answer of an unknown id, which is none.
const COMPACTED_IDS_MAX: usize = 1024;
/// The id that means "the stream" in a response.
const STREAM_ID_ON_WIRE: i64 = -1;

/// See the module.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) outbox: Outbox,
    /// Its watchers, each with the cohort it is in.
    pub(super) watchers: HashMap<i64, CohortKey>,
    /// Where the search for a free id begins.
    next_id: i64,
    /// Its cohorts that are behind, by where they stand; and by themselves, as they take turns.
    pub(super) behind: BTreeMap<(Revision, GroupKey), CohortKey>,
    pub(super) late: BTreeSet<CohortKey>,
    /// The late cohort served last.
    pub(super) served: CohortKey,
    /// How many of its cohorts wait for the future.
    pub(super) future: usize,
    /// The outbox turned events away and has not been emptied since.
    pub(super) stalled: bool,
    /// The client asked for progress, and it could not be told yet. However often it asked, it is told once.
    pub(super) progress_asked: bool,
    /// The watchers that want to be told how far they are, each with whether it was sent nothing since the ticker last ticked.
    pub(super) notified: BTreeMap<i64, bool>,
    compacted_ids: VecDeque<i64>,
    pub(super) needs_leader: bool,
}

impl Stream {
    pub(super) fn new(id: StreamId, outbox: Outbox) -> Stream {
        Stream {
            id,
            outbox,
            watchers: HashMap::new(),
            next_id: 0,
            behind: BTreeMap::new(),
            late: BTreeSet::new(),
            served: CohortKey(0),
            future: 0,
            stalled: false,
            progress_asked: false,
            notified: BTreeMap::new(),
            compacted_ids: VecDeque::new(),
            needs_leader: false,
        }
    }

    /// The id a new watcher gets, or why it gets none. An id that the server chooses was not chosen by it before.
    pub(super) fn admit(&mut self, spec: &Spec) -> Result<i64, Refusal> {
        if spec.start < Revision(0) {
            return Err(Refusal::NegativeStart);
        }
        if spec.range.is_empty() {
            return Err(Refusal::EmptyRange);
        }
        let id = match spec.id {
            Some(STREAM_ID_ON_WIRE) => return Err(Refusal::DuplicateId),
            Some(id) if self.watchers.contains_key(&id) => return Err(Refusal::DuplicateId),
            Some(id) => id,
            None => {
                while self.watchers.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
        };
        self.compacted_ids.retain(|known| *known != id);
        Ok(id)
    }

    /// Tells the client that compaction has ended its watcher `id`.
    pub(super) fn end_compacted(&mut self, id: i64, at: Revision) {
        self.outbox.push_answer(Outgoing::Compacted { id, at });
        if self.compacted_ids.len() == COMPACTED_IDS_MAX {
            self.compacted_ids.pop_front();
        }
        self.compacted_ids.push_back(id);
    }

    /// Whether `id` was ended by compaction and not cancelled since; it is forgotten with that.
    pub(super) fn take_compacted(&mut self, id: i64) -> bool {
        let at = self.compacted_ids.iter().position(|known| *known == id);
        at.is_some_and(|at| self.compacted_ids.remove(at).is_some())
    }

    /// Events were sent to these watchers.
    pub(super) fn heard(&mut self, ids: &[i64]) {
        if self.notified.is_empty() {
            return;
        }
        for id in ids {
            if let Some(quiet) = self.notified.get_mut(id) {
                *quiet = false;
            }
        }
    }
}
