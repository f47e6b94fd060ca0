//! The nouns that every layer shares. Numbers that could be mistaken for one another are types of their own; on the wire
//! they are plain integers.

use std::fmt;
use std::ops::Bound;

use bytes::Bytes;

/// The cluster-wide count of writes. A new store stands at 1; the first write gets 2. It never goes down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub i64);

impl Revision {
    /// The revision of a store nobody has written to.
    pub const FIRST: Revision = Revision(1);

    /// The one after this.
    pub fn next(self) -> Revision {
        Revision(self.0 + 1)
    }

    /// The one before this.
    pub fn previous(self) -> Revision {
        Revision(self.0 - 1)
    }
}

/// A position in the raft log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(pub u64);

/// A raft term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

/// Names a lease; 0 is no lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl LeaseId {
    /// What a key without a lease carries.
    pub const NONE: LeaseId = LeaseId(0);
}

/// Names a member for ever: an id that was removed never returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// Names a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

macro_rules! show_as {
    ($($name:ident $form:literal),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $form, self.0)
            }
        }
    )*};
}
show_as!(Revision "{}", Index "{}", Term "{}", LeaseId "{:x}", MemberId "{:x}", ClusterId "{:x}");

/// A set of neighbouring keys, as requests name it with `key` and `range_end`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key that may belong.
    pub start: Bytes,
    /// Where it stops.
    pub end: RangeEnd,
}

/// Where a [`KeyRange`] stops.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RangeEnd {
    /// It holds `start` alone.
    Single,
    /// It holds every key from `start` on.
    Open,
    /// It holds the keys from `start` up to, not including, this one.
    Before(Bytes),
}

impl KeyRange {
    /// The range of `key` and `range_end` of a request: no `range_end` is one key, a single zero byte is "and everything
    /// after", anything else is a half-open interval (empty when it does not lie after `key`).
    pub fn from_wire(key: Bytes, range_end: Bytes) -> KeyRange {
        let end = match range_end.as_ref() {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Open,
            _ => RangeEnd::Before(range_end),
        };
        KeyRange { start: key, end }
    }

    /// Every key that begins so.
    pub fn prefix(prefix: Bytes) -> KeyRange {
        let kept = prefix.iter().rposition(|byte| *byte < u8::MAX);
        let end = match kept {
            Some(last) => {
                let mut end = prefix[..=last].to_vec();
                end[last] += 1;
                RangeEnd::Before(end.into())
            }
            None => RangeEnd::Open,
        };
        KeyRange { start: prefix, end }
    }

    /// One key.
    pub fn single(key: Bytes) -> KeyRange {
        KeyRange { start: key, end: RangeEnd::Single }
    }

    /// Whether it cannot hold any key.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, RangeEnd::Before(end) if *end <= self.start)
    }

    /// Whether `key` belongs to it.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Open => key >= self.start.as_ref(),
            RangeEnd::Before(end) => key >= self.start.as_ref() && key < end.as_ref(),
        }
    }

    /// The range as bounds of an ordered map. Not for an empty range: ordered maps refuse bounds the wrong way round.
    pub fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let start = self.start.as_ref();
        match &self.end {
            RangeEnd::Single => (Bound::Included(start), Bound::Included(start)),
            RangeEnd::Open => (Bound::Included(start), Bound::Unbounded),
            RangeEnd::Before(end) => (Bound::Included(start), Bound::Excluded(end.as_ref())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static [u8], end: &'static [u8]) -> KeyRange {
        KeyRange::from_wire(Bytes::from_static(key), Bytes::from_static(end))
    }

    #[test]
    fn a_prefix_holds_what_begins_so() {
        for (prefix, within, outside) in [
            (&b"a/"[..], &[&b"a/"[..], b"a/\xff\xff"][..], &[&b"a"[..], b"a0", b""][..]),
            (b"a\xff", &[b"a\xff", b"a\xff\xff"], &[b"a", b"b"]),
            (b"\xff", &[b"\xff", b"\xff\xff"], &[b"\xfe"]),
            (b"", &[b"", b"a"], &[]),
        ] {
            let range = KeyRange::prefix(Bytes::copy_from_slice(prefix));
            assert!(within.iter().all(|key| range.contains(key)), "{prefix:?}");
            assert!(!outside.iter().any(|key| range.contains(key)), "{prefix:?}");
        }
    }

    #[test]
    fn membership_follows_the_wire_form() {
        assert!(range(b"a", b"").contains(b"a") && !range(b"a", b"").contains(b"ab"));
        assert!(range(b"m", b"\0").contains(b"z") && !range(b"m", b"\0").contains(b"l"));
        assert!(range(b"", b"\0").contains(b"\xff\xff"));
        assert!(range(b"a", b"c").contains(b"b") && !range(b"a", b"c").contains(b"c"));
        assert!(range(b"b", b"a").is_empty() && range(b"a", b"a").is_empty() && !range(b"a", b"a\0").is_empty());
    }
}
