//! What watchers have in common: those that want the same are one *group*, those of a group that share a stream and stand at the
//! same place are one *cohort*. A change is matched with groups, an outbox takes one message per cohort, and only what is written
//! to the socket is as much as there are watchers. A watcher by itself is a group and a cohort of one, and then these two records
//! are all there is of it beside its id: they are kept small.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;

use super::outbox::Ids;
use super::watcher::{Filters, Spec};
use crate::types::{KeyRange, RangeEnd, Revision};

/// Names a group inside the hub. (Not zero, so that having none takes no room.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct GroupKey(NonZeroU32);

impl GroupKey {
    pub(super) const FIRST: GroupKey = GroupKey(NonZeroU32::MIN);
    pub(super) const LAST: GroupKey = GroupKey(NonZeroU32::MAX);

    /// Of the group at this place.
    pub(super) fn new(place: u32) -> GroupKey {
        GroupKey(NonZeroU32::MIN.saturating_add(place))
    }

    pub(super) fn place(self) -> u32 {
        self.0.get() - 1
    }
}

/// Names a cohort inside the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CohortKey(pub(super) u32);

/// Where the keys of a group end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// It is one key.
    Single,
    /// It is all keys that begin so.
    Prefix,
    /// It is all keys from there on.
    Open,
    /// It stops before another key.
    Before,
}

/// Keys, in the form in which groups hold them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span<'a> {
    pub(super) start: &'a [u8],
    pub(super) reach: Reach,
    /// Of [`Reach::Before`]; else empty.
    pub(super) end: &'a [u8],
}

impl<'a> Span<'a> {
    pub(super) fn of(range: &'a KeyRange) -> Span<'a> {
        let start = range.start.as_ref();
        match &range.end {
            RangeEnd::Single => Span { start, reach: Reach::Single, end: &[] },
            // Everything: all keys begin with nothing.
            RangeEnd::Open if start.is_empty() => Span { start, reach: Reach::Prefix, end: &[] },
            RangeEnd::Open => Span { start, reach: Reach::Open, end: &[] },
            RangeEnd::Before(end) if is_successor(end, start) => Span { start, reach: Reach::Prefix, end: &[] },
            RangeEnd::Before(end) => Span { start, reach: Reach::Before, end },
        }
    }

    /// The same for those who know nothing of groups.
    pub(super) fn range(&self) -> KeyRange {
        let start = Bytes::copy_from_slice(self.start);
        let end = match self.reach {
            Reach::Prefix => return KeyRange::prefix(start),
            Reach::Single => RangeEnd::Single,
            Reach::Open => RangeEnd::Open,
            Reach::Before => RangeEnd::Before(Bytes::copy_from_slice(self.end)),
        };
        KeyRange { start, end }
    }

    /// Whether it ends behind `key`, which does not lie before its start.
    pub(super) fn reaches(&self, key: &[u8]) -> bool {
        match self.reach {
            Reach::Single => key == self.start,
            Reach::Prefix => key.starts_with(self.start),
            Reach::Open => true,
            Reach::Before => key < self.end,
        }
    }
}

/// The same, kept for later.
#[derive(Debug)]
pub(super) struct Keys {
    start: Box<[u8]>,
    reach: Reach,
    end: Box<[u8]>,
}

impl From<Span<'_>> for Keys {
    fn from(span: Span<'_>) -> Keys {
        Keys { start: span.start.into(), reach: span.reach, end: span.end.into() }
    }
}

impl Keys {
    pub(super) fn span(&self) -> Span<'_> {
        Span { start: &self.start, reach: self.reach, end: &self.end }
    }
}

/// Whether `end` is the first key behind all that begin with `start`: clients ask for prefixes so.
fn is_successor(end: &[u8], start: &[u8]) -> bool {
    let kept = start.iter().rposition(|byte| *byte != 0xff);
    kept.is_some_and(|last| end.len() == last + 1 && end[..last] == start[..last] && end[last] == start[last] + 1)
}

/// What else a group's watchers have asked for alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) filters: Filters,
    pub(super) prev_kv: bool,
    pub(super) fragment: bool,
}

impl Wish {
    pub(super) fn of(spec: &Spec) -> Wish {
        Wish { filters: spec.filters, prev_kv: spec.prev_kv, fragment: spec.fragment }
    }
}

/// Watchers that want the same.
#[derive(Debug)]
pub(super) struct Group {
    /// The start of its keys. Of [`Reach::Before`] the end, and how long the start is, in four bytes, stand behind it.
    keys: Box<[u8]>,
    /// The next one with the same keys.
    pub(super) next: Option<GroupKey>,
    /// Its cohorts, wherever they stand.
    pub(super) cohorts: u32,
    /// See [`Synced`]: the number, and what it is a number of.
    synced: u32,
    synced_are: Count,
    reach: Reach,
    /// A bit for each part of a [`Wish`].
    wish: u8,
}

/// How many synced cohorts a group has.
#[derive(Clone, Copy, Debug)]
enum Count {
    None,
    One,
    Many,
}

impl Group {
    pub(super) fn new(span: Span<'_>, wish: Wish) -> Group {
        let start_len = u32::try_from(span.start.len()).expect("requests are shorter").to_be_bytes();
        let keys = match span.reach {
            Reach::Before => [span.start, span.end, &start_len].concat().into(),
            _ => span.start.into(),
        };
        let Wish { filters, prev_kv, fragment } = wish;
        let bits = [filters.no_put, filters.no_delete, prev_kv, fragment];
        let wish = bits.iter().fold(0, |bits, bit| bits << 1 | u8::from(*bit));
        Group { keys, next: None, cohorts: 0, synced: 0, synced_are: Count::None, reach: span.reach, wish }
    }

    pub(super) fn wish(&self) -> Wish {
        let bit = |place: u8| self.wish >> place & 1 == 1;
        Wish { filters: Filters { no_put: bit(3), no_delete: bit(2) }, prev_kv: bit(1), fragment: bit(0) }
    }

    /// Its cohorts that hear of what comes when it comes.
    pub(super) fn synced(&self) -> Synced {
        match self.synced_are {
            Count::None => Synced::None,
            Count::One => Synced::One(CohortKey(self.synced)),
            Count::Many => Synced::Many(self.synced),
        }
    }

    pub(super) fn set_synced(&mut self, synced: Synced) {
        (self.synced_are, self.synced) = match synced {
            Synced::None => (Count::None, 0),
            Synced::One(cohort) => (Count::One, cohort.0),
            Synced::Many(list) => (Count::Many, list),
        };
    }

    pub(super) fn span(&self) -> Span<'_> {
        let (start, end) = match (self.reach, self.keys.split_last_chunk()) {
            (Reach::Before, Some((keys, start_len))) => keys.split_at(u32::from_be_bytes(*start_len) as usize),
            _ => (&*self.keys, &[][..]),
        };
        Span { start, reach: self.reach, end }
    }
}

/// The synced cohorts of a group: one per stream at most.
#[derive(Clone, Copy, Debug)]
pub(super) enum Synced {
    None,
    One(CohortKey),
    /// By their streams' places; there are several, or were. Where the list is, the hub knows.
    Many(u32),
}

/// How far a cohort is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Position {
    /// It has everything published that it wants, and hears of what comes when it comes.
    Synced,
    /// It wants nothing before this revision, which is not published yet.
    Future(Revision),
    /// It is being caught up from history; this is the first published revision that it has not been sent.
    Behind(Revision),
}

/// Watchers of one stream that want the same and are equally far.
#[derive(Debug)]
pub(super) struct Cohort {
    pub(super) members: Members,
    /// Of the position: a revision, or none for the synced; negative for the future.
    at: i64,
    /// The stream's place.
    pub(super) stream: u32,
    pub(super) group: GroupKey,
}

impl Cohort {
    pub(super) fn new(position: Position, stream: u32, group: GroupKey, members: Members) -> Cohort {
        let mut cohort = Cohort { members, at: 0, stream, group };
        cohort.stand(position);
        cohort
    }

    pub(super) fn position(&self) -> Position {
        match self.at {
            0 => Position::Synced,
            at if at < 0 => Position::Future(Revision(-at)),
            at => Position::Behind(Revision(at)),
        }
    }

    /// It is so far now.
    pub(super) fn stand(&mut self, position: Position) {
        debug_assert!(!matches!(position, Position::Future(at) | Position::Behind(at) if at <= Revision(0)));
        self.at = match position {
            Position::Synced => 0,
            Position::Future(start) => -start.0,
            Position::Behind(next) => next.0,
        };
    }
}

/// The ids of a cohort's watchers, of which there is at least one.
#[derive(Debug)]
pub(super) enum Members {
    One(i64),
    Many(Box<Many>),
}

#[derive(Debug)]
pub(super) struct Many {
    ids: BTreeSet<i64>,
    /// The same, as messages share them, since they were last asked for.
    shared: Option<Arc<[i64]>>,
}

impl Members {
    pub(super) fn insert(&mut self, id: i64) {
        match self {
            Members::One(one) => {
                *self = Members::Many(Box::new(Many { ids: BTreeSet::from([*one, id]), shared: None }));
            }
            Members::Many(many) => {
                many.ids.insert(id);
                many.shared = None;
            }
        }
    }

    pub(super) fn absorb(&mut self, other: Members) {
        match other {
            Members::One(id) => self.insert(id),
            Members::Many(many) => many.ids.into_iter().for_each(|id| self.insert(id)),
        }
    }

    /// Takes one out. Whether any is left.
    pub(super) fn remove(&mut self, id: i64) -> bool {
        match self {
            Members::One(_) => false,
            Members::Many(many) => {
                many.ids.remove(&id);
                many.shared = None;
                !many.ids.is_empty()
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Members::One(_) => 1,
            Members::Many(many) => many.ids.len(),
        }
    }

    /// Their ids in ascending order. The same list for every message until a watcher comes or goes.
    pub(super) fn ids(&mut self) -> Ids {
        match self {
            Members::One(id) => Ids::One(*id),
            Members::Many(many) => {
                Ids::Many(many.shared.get_or_insert_with(|| many.ids.iter().copied().collect()).clone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn records_of_a_watcher_by_itself_are_small() {
        assert!(size_of::<Option<Group>>() <= 32, "{}", size_of::<Option<Group>>());
        assert!(size_of::<Option<Cohort>>() <= 32, "{}", size_of::<Option<Cohort>>());
    }

    #[test]
    fn wishes_come_back_as_they_were() {
        for bits in 0..16u8 {
            let bit = |place: u8| bits >> place & 1 == 1;
            let filters = Filters { no_put: bit(0), no_delete: bit(1) };
            let wish = Wish { filters, prev_kv: bit(2), fragment: bit(3) };
            let range = KeyRange::single("k".into());
            assert_eq!(Group::new(Span::of(&range), wish).wish(), wish);
        }
    }

    #[test]
    fn spans_contain_what_ranges_contain() {
        let keys: [&'static [u8]; 12] = [
            b"\0",
            b"a",
            b"a\xfe",
            b"a\xff",
            b"a\xff\xff",
            b"a\xffb",
            b"ab",
            b"b",
            b"b\0",
            b"\xff",
            b"\xff\xff",
            b"\xffz",
        ];
        for start in keys {
            for end in [&b""[..], b"\0"].into_iter().chain(keys) {
                let range = KeyRange::from_wire(Bytes::from_static(start), Bytes::from_static(end));
                if range.is_empty() {
                    continue;
                }
                let span = Span::of(&range);
                for key in keys {
                    assert_eq!(
                        key >= span.start && span.reaches(key),
                        range.contains(key),
                        "{key:?} in {range:?}, {span:?}"
                    );
                }
            }
        }
        let reach = |start: &'static [u8], end: &'static [u8]| {
            Span::of(&KeyRange::from_wire(Bytes::from_static(start), Bytes::from_static(end))).reach
        };
        assert_eq!([reach(b"ab", b"ac"), reach(b"a\xff", b"b"), reach(b"", b"\0")], [Reach::Prefix; 3]);
        assert_eq!([reach(b"a", b"c"), reach(b"a\xff", b"a\xff\xff"), reach(b"\xff", b"\xff\xff")], [Reach::Before; 3]);
        assert_eq!(reach(b"\xff", b"\0"), Reach::Open);
    }
}
