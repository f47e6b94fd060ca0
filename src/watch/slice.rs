//! A piece of history, prepared outside the hub's lock so that inside it a watcher costs what it is sent.

use std::cell::{Cell, OnceCell};

use super::catch_up::CatchUp;
use super::group::Span;
use crate::mvcc::change::{Change, SharedChanges};
use crate::types::Revision;

/// Every change from one revision to another, and a way to find those of a range of keys.
#[derive(Debug)]
pub struct Slice {
    sets: Vec<SharedChanges>,
    /// Places of the changes, ordered by key, then as they happened; made when it has been asked for several ranges.
    by_key: OnceCell<Vec<Place>>,
    asked: Cell<usize>,
    from: Revision,
    covered: Revision,
    prev_kv: bool,
}

/// A change: which set, and which one in it.
pub(crate) type Place = (u32, u32);

/// Ranges for which all changes are looked at. To put them in order costs about as much.
const LOOKED_THROUGH: usize = 4;

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
        let (by_key, asked) = (OnceCell::new(), Cell::new(0));
        Slice { sets, by_key, asked, from: job.from, covered, prev_kv: job.prev_kv }
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
        let first = self.sets.partition_point(|set| set.revision < next) as u32;
        self.asked.set(self.asked.get() + 1);
        let inside = |place: &Place| {
            let key = &self.change(*place).key;
            *span.start <= **key && span.reaches(key)
        };
        if self.by_key.get().is_none() && self.asked.get() <= LOOKED_THROUGH {
            return self.places(first).filter(inside).collect();
        }
        let by_key = self.by_key.get_or_init(|| {
            let mut places: Vec<Place> = self.places(0).collect();
            places.sort_by(|a, b| self.change(*a).key.cmp(&self.change(*b).key).then(a.cmp(b)));
            places
        });
        let low = by_key.partition_point(|place| *self.change(*place).key < *span.start);
        let count = by_key[low..].partition_point(inside);
        let mut places: Vec<Place> =
            by_key[low..low + count].iter().copied().filter(|(set, _)| *set >= first).collect();
        places.sort_unstable();
        places
    }

    /// Those of the sets from this one on, in order.
    fn places(&self, first: u32) -> impl Iterator<Item = Place> {
        (first..).zip(&self.sets[first as usize..]).flat_map(|(number, set)| {
            let count = u32::try_from(set.changes.len()).expect("a slice is bounded");
            (0..count).map(move |change| (number, change))
        })
    }

    /// The change at a place.
    pub(crate) fn change(&self, (set, change): Place) -> &Change {
        &self.sets[set as usize].changes[change as usize]
    }

    /// The revision of a place.
    pub(crate) fn revision(&self, place: Place) -> Revision {
        self.sets[place.0 as usize].revision
    }
}
