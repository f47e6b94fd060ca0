//! Sets of keys that somebody may read or write, and the question whether a range of keys lies within one.

use bytes::{BufMut, Bytes, BytesMut};

use crate::types::{KeyRange, RangeEnd};

/// What is done with keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look at them.
    Read,
    /// Change them.
    Write,
}

/// A set of keys, as the fewest intervals: in order, neither overlapping nor touching.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// The first key, and the first one that is not in it any more; none: it goes on for ever.
    intervals: Vec<(Bytes, Option<Bytes>)>,
}

impl Ranges {
    /// The union of these ranges.
    pub fn union<'a>(ranges: impl IntoIterator<Item = &'a KeyRange>) -> Ranges {
        let mut all: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).map(interval).collect();
        all.sort();
        let mut intervals: Vec<(Bytes, Option<Bytes>)> = Vec::new();
        for (start, end) in all {
            match intervals.last_mut() {
                Some((_, None)) => break,
                Some((_, Some(last))) if start <= *last => {
                    if end.as_ref().is_none_or(|end| end > last) {
                        intervals.last_mut().expect("it was just looked at").1 = end;
                    }
                }
                _ => intervals.push((start, end)),
            }
        }
        Ranges { intervals }
    }

    /// Whether every key of `range` is in it (and where it would start, for a range without keys).
    pub fn covers(&self, range: &KeyRange) -> bool {
        let (start, end) = interval(range);
        let at = self.intervals.partition_point(|(from, _)| *from <= start);
        let Some((_, until)) = at.checked_sub(1).map(|at| &self.intervals[at]) else { return false };
        match (until, end) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(until), Some(end)) => start < *until && end <= *until,
        }
    }
}

/// A range by its bounds, in the one form in which ranges are compared.
fn interval(range: &KeyRange) -> (Bytes, Option<Bytes>) {
    let end = match &range.end {
        RangeEnd::Single => {
            let mut next = BytesMut::with_capacity(range.start.len() + 1);
            next.put_slice(&range.start);
            next.put_u8(0);
            Some(next.freeze())
        }
        RangeEnd::Open => None,
        RangeEnd::Before(end) => Some(end.clone()),
    };
    (range.start.clone(), end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &str, end: &str) -> KeyRange {
        KeyRange::from_wire(Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(end.as_bytes()))
    }

    #[test]
    fn a_grant_on_one_key_is_on_that_key_alone() {
        let ranges = Ranges::union(&[range("foo", "")]);
        assert!(ranges.covers(&range("foo", "")) && ranges.covers(&range("foo", "foo\0")));
        for more in [range("fo", ""), range("foo0", ""), range("foo", "\0"), range("foo", "fop"), range("a", "z")] {
            assert!(!ranges.covers(&more), "{more:?}");
        }
    }

    #[test]
    fn what_several_cover_together_is_covered() {
        let ranges =
            Ranges::union(&[range("m", "p"), range("a", "c"), range("b", "m"), range("q", ""), range("q\0", "\0")]);
        assert!(ranges.covers(&range("a", "p")) && ranges.covers(&range("q", "\0")));
        assert!(!ranges.covers(&range("a", "q")) && !ranges.covers(&range("p", "")));
    }

    /// Ends are short words over a small alphabet, so that every way of touching and overlapping occurs.
    #[test]
    fn covering_is_what_looking_at_every_key_says() {
        let alphabet: &[u8] = b"\0ab\xff";
        let mut keys = vec![Vec::new()];
        for length in 0..3 {
            let longest: Vec<Vec<u8>> = keys.iter().filter(|key| key.len() == length).cloned().collect();
            keys.extend(longest.iter().flat_map(|key| alphabet.iter().map(|byte| [&key[..], &[*byte]].concat())));
        }
        let mut seed = 1_u64;
        let mut pick = |most: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % most
        };
        let mut draw = || {
            let (key, end) = (&keys[1 + pick(20)], &keys[pick(21)]);
            KeyRange::from_wire(Bytes::from(key.clone()), Bytes::from(end.clone()))
        };
        let mut covered = 0;
        for _ in 0..20_000 {
            let granted: Vec<KeyRange> = (0..3).map(|_| draw()).collect();
            let asked = draw();
            if asked.is_empty() {
                continue;
            }
            // Keys of three bytes lie between any two ends of at most two.
            let every = keys.iter().filter(|key| asked.contains(key));
            let all = every.clone().all(|key| granted.iter().any(|range| range.contains(key)));
            let open = asked.end == RangeEnd::Open && !granted.iter().any(|range| range.end == RangeEnd::Open);
            assert_eq!(Ranges::union(&granted).covers(&asked), all && !open, "{asked:?} of {granted:?}");
            covered += usize::from(all);
        }
        assert!(covered > 500, "{covered}");
    }
}
