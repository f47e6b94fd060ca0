//! A piece of history, prepared outside the hub's lock so that inside it a watcher costs what it is sent.

use super::catch_up::CatchUp;
use super::group::Span;
use crate::mvcc::change::{Change, SharedChanges};
use crate::types::Revision;

/// Every change from one revision to another, and a way to find those of a range of keys.
#[derive(Debug)]
pub struct Slice {
    sets: Vec<SharedChanges>,
    /// Places of the changes, ordered by key, then as they happened.
    by_key: Vec<Place>,
    from: Revision,
    covered: Revision,
    prev_kv: bool,
}

/// A change: which set, and which one in it.
pub(crate) type Place = (u32, u32);

impl Slice {
    /// The answer to `job`: `sets` are all change sets from `job.from` on, in order and without a gap, up to where the
    /// reader stopped. None at all says that there are none up to `job.to`. For a job that wants previous values, the
    /// reader has had them encoded ([`Change::event_with_prev`]).
    pub fn new(job: &CatchUp, mut sets: Vec<SharedChanges>) -> Slice {
        // What is applied but not published yet will be published to whoever is synced by then.
        let published = sets.partition_point(|set| set.revision <= job.to);
        sets.truncate(published);
        debug_assert!(sets.first().is_none_or(|set| set.revision >= job.from));
        debug_assert!(sets.windows(2).all(|pair| pair[0].revision < pair[1].revision));
        let covered = sets.last().map_or(job.to, |set| set.revision);
        let number = |at: usize| u32::try_from(at).expect("a slice is bounded");
        let mut by_key: Vec<Place> = (sets.iter().enumerate())
            .flat_map(|(set, changes)| (0..changes.changes.len()).map(move |change| (number(set), number(change))))
            .collect();
        by_key.sort_by(|a, b| change_at(&sets, *a).key.cmp(&change_at(&sets, *b).key).then(a.cmp(b)));
        Slice { sets, by_key, from: job.from, covered, prev_kv: job.prev_kv }
    }

    /// The first revision it answers for.
    pub(crate) fn from(&self) -> Revision {
        self.from
    }

    /// The last revision it answers for.
    pub(crate) fn covered(&self) -> Revision {
        self.covered
    }

    /// Whether watchers that want previous values can be served from it.
    pub(crate) fn has_previous(&self) -> bool {
        self.prev_kv
    }

    /// The changes of keys in `span` from revision `next` on, in order.
    pub(super) fn changes(&self, span: Span<'_>, next: Revision) -> Vec<Place> {
        let key = |place: &Place| &change_at(&self.sets, *place).key;
        let low = self.by_key.partition_point(|place| **key(place) < *span.start);
        let count = self.by_key[low..].partition_point(|place| span.reaches(key(place)));
        let first = self.sets.partition_point(|set| set.revision < next) as u32;
        let mut places: Vec<Place> =
            self.by_key[low..low + count].iter().copied().filter(|(set, _)| *set >= first).collect();
        places.sort_unstable();
        places
    }

    /// The change at a place.
    pub(crate) fn change(&self, place: Place) -> &Change {
        change_at(&self.sets, place)
    }

    /// The revision of a place.
    pub(crate) fn revision(&self, place: Place) -> Revision {
        self.sets[place.0 as usize].revision
    }
}

fn change_at(sets: &[SharedChanges], (set, change): Place) -> &Change {
    &sets[set as usize].changes[change as usize]
}
