//! The key index: for every key the places of its revisions, oldest to newest, since the last compaction.
//!
//! Most keys have one revision, so that one lies inline: 40 bytes and the key. Older ones hang off a pointer, 16 bytes
//! each. Generations are not stored as such: a tombstone among the places ends one, the next place begins another.
//!
//! The keys are in a [tree](super::tree) that counts those that exist, so that how many of a range do is known without a walk. (etcd
//! walks the whole range even for a page of it.) What others see is: one key, how many there are, a walk over a range in slices,
//! and compaction in slices.

use std::ops::Bound;

use super::revision::RevisionKey;
use super::tree::{Key, Tree, Weigh};
use crate::types::{KeyRange, RangeEnd, Revision};

/// Keys and where their revisions lie.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// A key that exists counts one.
    keys: Tree<Entry>,
    /// The newest revision of any key.
    newest: Revision,
}

/// The revisions of one key. The newest is inline.
#[derive(Debug)]
pub(super) struct Entry {
    main: i64,
    /// Of the newest revision, as in its key-value; 0 of a tombstone.
    create: i64,
    version: i64,
    older: Option<Box<Older>>,
    sub: u32,
    newest: Newest,
    record: Length,
}

/// How long a record is, if it is not too long for this.
#[derive(Clone, Copy, Debug, Default)]
struct Length([u8; 3]);

impl Length {
    fn of(bytes: usize) -> Length {
        match u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes() {
            [a, b, c, 0] => Length([a, b, c]),
            _ => Length::default(),
        }
    }

    fn bytes(self) -> Option<u32> {
        let [a, b, c] = self.0;
        Some(u32::from_le_bytes([a, b, c, 0])).filter(|bytes| *bytes > 0)
    }
}

/// Where a value lies, and how many bytes its record has, if that is known.
pub(super) type Found = (RevisionKey, Option<u32>);

const _: () = assert!(size_of::<Entry>() <= 40);

/// What the newest revision of a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Newest {
    Live,
    /// With a lease: which one stands in the record.
    Leased,
    Tombstone,
}

/// At least one, oldest first.
#[derive(Debug)]
struct Older(Vec<OlderRevision>);

#[derive(Clone, Copy, Debug)]
struct OlderRevision {
    main: i64,
    sub: u32,
    tombstone: bool,
    record: Length,
}

const _: () = assert!(size_of::<OlderRevision>() <= 16);

/// The newest revision of a key that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Latest {
    pub(super) place: RevisionKey,
    pub(super) create: i64,
    pub(super) version: i64,
    pub(super) leased: bool,
}

/// What compaction did to one key.
struct Compacted {
    /// Revisions dropped.
    dropped: usize,
    /// Nothing is left to drop.
    done: bool,
    /// No revision is left at all.
    empty: bool,
}

impl Compacted {
    const NOTHING_YET: Compacted = Compacted { dropped: 0, done: false, empty: false };
}

impl Index {
    /// How many keys exist now.
    pub(super) fn live(&self) -> usize {
        self.keys.weight()
    }

    /// How many keys of a range exist at a revision, unless that takes a walk: it is known of the newest.
    pub(super) fn count(&self, range: &KeyRange, revision: Revision) -> Option<usize> {
        if revision < self.newest {
            return None;
        }
        Some(if range.is_empty() { 0 } else { self.keys.weigh(range.bounds()) })
    }

    /// The newest revision of a key that exists.
    pub(super) fn latest(&self, key: &[u8]) -> Option<Latest> {
        self.keys.get(key)?.latest()
    }

    /// Where the value lies that the key had at a revision. Not for revisions below the compacted one.
    pub(super) fn at(&self, key: &[u8], revision: Revision) -> Option<RevisionKey> {
        self.keys.get(key)?.at(revision)
    }

    /// Adds a put of a key, and gives its newest revision before that, if it existed. `place` is above every place of the key.
    /// `record_bytes` says how long the record gets with a create revision and a version.
    pub(super) fn write(
        &mut self,
        key: &[u8],
        place: RevisionKey,
        leased: bool,
        record_bytes: impl Fn(i64, i64) -> usize,
    ) -> Option<Latest> {
        let newest = if leased { Newest::Leased } else { Newest::Live };
        let RevisionKey { main, sub } = place;
        self.newest = self.newest.max(place.revision());
        let mut before = None;
        let entry = |create, version| {
            let record = Length::of(record_bytes(create, version));
            Entry { main, sub, create, version, newest, record, older: None }
        };
        self.keys.upsert(key, entry(main, 1), |old, new| {
            before = old.latest();
            old.push(before.map_or(new, |latest| entry(latest.create, latest.version + 1)));
        });
        before
    }

    /// Adds a put that was made before, with what it says of the key. `put.place` is above every place of the key.
    pub(super) fn put(&mut self, key: &[u8], put: Latest, record_bytes: usize) {
        let newest = if put.leased { Newest::Leased } else { Newest::Live };
        let RevisionKey { main, sub } = put.place;
        let record = Length::of(record_bytes);
        self.add(key, Entry { main, sub, create: put.create, version: put.version, newest, record, older: None });
    }

    /// Adds a tombstone, above every place of the key. (A key without revisions has one when only its deletion survived
    /// a compaction.)
    pub(super) fn delete(&mut self, key: &[u8], place: RevisionKey) {
        let RevisionKey { main, sub } = place;
        let (newest, record) = (Newest::Tombstone, Length::default());
        self.add(key, Entry { main, sub, create: 0, version: 0, newest, record, older: None });
    }

    fn add(&mut self, key: &[u8], entry: Entry) {
        self.newest = self.newest.max(entry.place().revision());
        self.keys.upsert(key, entry, Entry::push);
    }

    /// Visits at most `keys_max` keys of the range in order, beginning after `after`, until `visit` returns false. Keys
    /// without a live revision are visited too. Gives the last key visited when there may be more behind it.
    pub(super) fn walk(
        &self,
        range: &KeyRange,
        after: Option<&[u8]>,
        keys_max: usize,
        mut visit: impl FnMut(Key<'_>, &Entry) -> bool,
    ) -> Option<Box<[u8]>> {
        if range.is_empty() {
            return None;
        }
        if let RangeEnd::Single = range.end {
            let entry = self.keys.get(&range.start).filter(|_| after.is_none());
            entry.map(|entry| visit(Key::of(&range.start), entry));
            return None;
        }
        let (start, end) = range.bounds();
        let start = after.map_or(start, Bound::Excluded);
        let (mut visited, mut last) = (0, None);
        self.keys.walk((start, end), &mut |key, entry| {
            if !visit(key, entry) {
                return false;
            }
            visited += 1;
            if visited >= keys_max {
                last = Some(key.whole().into());
            }
            last.is_none()
        });
        last
    }

    /// Drops revisions that a compaction at `at` makes unreachable, and tells `drop` each with whether it is a
    /// tombstone, those of one key oldest first. Goes on after the key `finished` and moves it; stops when keys visited
    /// and revisions dropped come to `work_max`. Says whether there is more to do.
    pub(super) fn compact(
        &mut self,
        at: Revision,
        finished: &mut Option<Box<[u8]>>,
        work_max: usize,
        drop: &mut dyn FnMut(RevisionKey, bool),
    ) -> bool {
        let start = finished.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut work = work_max.max(1);
        let (mut any, mut last) = (false, Vec::new());
        let mut emptied = Vec::new();
        let mut more = false;
        self.keys.walk_mut((start, Bound::Unbounded), &mut |key, entry| {
            let compacted = if work == 0 { Compacted::NOTHING_YET } else { entry.compact(at, work, drop) };
            if !compacted.done {
                more = true;
                return false;
            }
            work = work.saturating_sub(1 + compacted.dropped);
            any = true;
            key.write(&mut last);
            if compacted.empty {
                emptied.push(key.whole());
            }
            true
        });
        if any {
            *finished = Some(last.into());
        }
        for key in emptied {
            self.keys.remove(&key);
        }
        more
    }
}

impl Weigh for Entry {
    fn weight(&self) -> usize {
        usize::from(self.is_live())
    }
}

impl Entry {
    fn is_live(&self) -> bool {
        self.newest != Newest::Tombstone
    }

    fn place(&self) -> RevisionKey {
        RevisionKey { main: self.main, sub: self.sub }
    }

    /// The newest revision, unless the key is deleted.
    pub(super) fn latest(&self) -> Option<Latest> {
        self.is_live().then(|| Latest {
            place: self.place(),
            create: self.create,
            version: self.version,
            leased: self.newest == Newest::Leased,
        })
    }

    /// Where the value at a revision lies.
    pub(super) fn at(&self, revision: Revision) -> Option<RevisionKey> {
        self.find(revision).map(|(place, _)| place)
    }

    /// The same, with the length of its record.
    pub(super) fn find(&self, revision: Revision) -> Option<Found> {
        if self.main <= revision.0 {
            return self.is_live().then(|| (self.place(), self.record.bytes()));
        }
        let older = &self.older.as_ref()?.0;
        let above = older.partition_point(|old| old.main <= revision.0);
        let found = older.get(above.checked_sub(1)?)?;
        let place = RevisionKey { main: found.main, sub: found.sub };
        (!found.tombstone).then_some((place, found.record.bytes()))
    }

    /// The key has one more revision, with which `newer` was made.
    fn push(&mut self, newer: Entry) {
        debug_assert!(newer.place() > self.place(), "revisions of a key only grow");
        let old = OlderRevision { main: self.main, sub: self.sub, tombstone: !self.is_live(), record: self.record };
        let mut older = self.older.take();
        match &mut older {
            Some(older) => older.0.push(old),
            None => older = Some(Box::new(Older(vec![old]))),
        }
        *self = Entry { older, ..newer };
    }

    /// See [`Index::compact`]. Of the revisions up to `at` the newest stays if it is a put, or a tombstone of exactly
    /// `at`.
    fn compact(&mut self, at: Revision, work_max: usize, drop: &mut dyn FnMut(RevisionKey, bool)) -> Compacted {
        let stays = |main: i64, tombstone: bool| !tombstone || main == at.0;
        let older = self.older.as_ref().map_or(&[][..], |older| &older.0[..]);
        let below = older.partition_point(|old| old.main <= at.0);
        let newest_below = self.main <= at.0;
        let droppable = match below.checked_sub(1) {
            Some(last) if !newest_below && stays(older[last].main, older[last].tombstone) => last,
            _ => below,
        };
        let dropped = droppable.min(work_max);
        for old in &older[..dropped] {
            drop(RevisionKey { main: old.main, sub: old.sub }, old.tombstone);
        }
        if let Some(older) = &mut self.older {
            older.0.drain(..dropped);
            if older.0.is_empty() {
                self.older = None;
            } else if older.0.capacity() > 2 * older.0.len() {
                older.0.shrink_to_fit();
            }
        }
        if dropped < droppable {
            return Compacted { dropped, done: false, empty: false };
        }
        // The tombstone goes last: whatever part of this survives a crash, a deleted key never comes back to life.
        let empty = newest_below && !stays(self.main, !self.is_live());
        if empty {
            drop(self.place(), true);
        }
        Compacted { dropped: dropped + empty as usize, done: true, empty }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(main: i64) -> RevisionKey {
        RevisionKey { main, sub: 0 }
    }

    fn put(index: &mut Index, key: &str, main: i64) {
        let put = Latest { place: place(main), create: main, version: 1, leased: false };
        index.put(key.as_bytes(), put, 7);
    }

    /// Compacts in slices of `work_max`, giving what was dropped.
    fn compact(index: &mut Index, at: i64, work_max: usize) -> Vec<(i64, bool)> {
        let (mut dropped, mut finished) = (Vec::new(), None);
        for _ in 0..1000 {
            let drop = &mut |place: RevisionKey, tombstone| dropped.push((place.main, tombstone));
            if !index.compact(Revision(at), &mut finished, work_max, drop) {
                return dropped;
            }
        }
        panic!("compaction does not come to an end");
    }

    #[test]
    fn compaction_keeps_the_newest_put_and_a_tombstone_of_its_own_revision() {
        for work_max in [0, 1, 2, 3, 100] {
            let index = &mut Index::default();
            for main in 2..7 {
                put(index, "overwritten", main);
            }
            put(index, "deleted", 7);
            index.delete(b"deleted", place(8));
            put(index, "deleted at ten, then put", 9);
            index.delete(b"deleted at ten, then put", place(10));
            put(index, "deleted at ten, then put", 11);
            put(index, "later", 12);
            assert_eq!(index.live(), 3);
            let mut dropped = compact(index, 10, work_max);
            dropped.sort();
            let puts = [2, 3, 4, 5, 7].map(|main| (main, false));
            assert_eq!(dropped, [&puts[..], &[(8, true), (9, false)]].concat(), "{work_max}");
            assert_eq!(index.at(b"overwritten", Revision(10)), Some(place(6)));
            assert_eq!(index.at(b"deleted at ten, then put", Revision(10)), None);
            assert_eq!(compact(index, 11, work_max), [(10, true)]);
            assert_eq!(index.live(), 3);
        }
    }
}
