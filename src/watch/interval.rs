//! Which watchers does a key concern? Keys are found by hashing, ranges by a search tree, so that the answer costs what it
//! finds and not what is registered.
//!
//! ```text
//! exact    key → watchers                                        one look-up
//! ranges   a treap ordered by (start, end); every node knows     O(log n) steps per range found
//!          the furthest end below it, which prunes the search
//! ```
//!
//! Watchers of the same range share one node. Promise: `matching(key)` visits each registered watcher whose range contains
//! `key` exactly once, in an order that depends only on what was registered before, never on hashing or chance.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::watcher::WatcherKey;
use crate::types::{KeyRange, RangeEnd};

/// Registered watchers by what they watch.
#[derive(Debug, Default)]
pub(crate) struct Intervals {
    exact: HashMap<Bytes, BTreeSet<WatcherKey>>,
    ranges: Treap,
}

impl Intervals {
    /// Registers `watcher` for `range`, which must not be empty.
    pub(crate) fn insert(&mut self, range: &KeyRange, watcher: WatcherKey) {
        let fresh = match &range.end {
            RangeEnd::Single => self.exact.entry(range.start.clone()).or_default().insert(watcher),
            end => self.ranges.insert(Span::new(&range.start, end), watcher),
        };
        debug_assert!(fresh, "a watcher is registered once");
    }

    /// Forgets `watcher`, registered for `range`.
    pub(crate) fn remove(&mut self, range: &KeyRange, watcher: WatcherKey) {
        match &range.end {
            RangeEnd::Single => {
                if let Some(watchers) = self.exact.get_mut(&range.start) {
                    watchers.remove(&watcher);
                    if watchers.is_empty() {
                        self.exact.remove(&range.start);
                    }
                }
            }
            end => self.ranges.remove(&Span::new(&range.start, end), watcher),
        }
    }

    /// Visits the watchers that `key` concerns.
    pub(crate) fn matching(&self, key: &[u8], visit: &mut impl FnMut(WatcherKey)) {
        if let Some(watchers) = self.exact.get(key) {
            watchers.iter().copied().for_each(&mut *visit);
        }
        self.ranges.stab(self.ranges.root, key, visit);
    }
}

/// A range of more than one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    start: Bytes,
    end: End,
}

/// The first key after a span.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    /// After every key; the order of the variants says so.
    Never,
}

impl End {
    fn after(&self, key: &[u8]) -> bool {
        match self {
            End::Before(end) => end.as_ref() > key,
            End::Never => true,
        }
    }
}

impl Span {
    fn new(start: &Bytes, end: &RangeEnd) -> Span {
        let end = match end {
            RangeEnd::Before(end) => End::Before(end.clone()),
            RangeEnd::Open => End::Never,
            RangeEnd::Single => unreachable!("single keys are hashed"),
        };
        Span { start: start.clone(), end }
    }
}

/// Index of a node; `NONE` is no node.
type Link = u32;
const NONE: Link = Link::MAX;

#[derive(Debug)]
struct Node {
    span: Span,
    watchers: BTreeSet<WatcherKey>,
    /// The furthest end in the tree that hangs from this node.
    furthest: End,
    /// No child has a higher one. Drawn from `Treap::dice`, which keeps the tree about as deep as a balanced one.
    priority: u64,
    left: Link,
    right: Link,
}

/// A search tree by span that is a heap by priority.
#[derive(Debug)]
struct Treap {
    nodes: Vec<Node>,
    free: Vec<Link>,
    root: Link,
    /// The state of a generator with a fixed start: members need not agree on the tree's shape, but tests repeat.
    dice: u64,
}

impl Default for Treap {
    fn default() -> Treap {
        Treap { nodes: Vec::new(), free: Vec::new(), root: NONE, dice: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl Treap {
    fn node(&self, link: Link) -> &Node {
        &self.nodes[link as usize]
    }

    fn node_mut(&mut self, link: Link) -> &mut Node {
        &mut self.nodes[link as usize]
    }

    fn roll(&mut self) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice
    }

    fn find(&self, span: &Span) -> Link {
        let mut link = self.root;
        while link != NONE {
            let node = self.node(link);
            link = match span.cmp(&node.span) {
                Ordering::Equal => return link,
                Ordering::Less => node.left,
                Ordering::Greater => node.right,
            };
        }
        NONE
    }

    fn insert(&mut self, span: Span, watcher: WatcherKey) -> bool {
        let known = self.find(&span);
        if known != NONE {
            return self.node_mut(known).watchers.insert(watcher);
        }
        let (low, high) = self.split(self.root, &span);
        let furthest = span.end.clone();
        let priority = self.roll();
        let node = Node { span, watchers: BTreeSet::from([watcher]), furthest, priority, left: NONE, right: NONE };
        let link = match self.free.pop() {
            Some(link) => {
                *self.node_mut(link) = node;
                link
            }
            None => {
                self.nodes.push(node);
                Link::try_from(self.nodes.len() - 1).expect("fewer than four thousand million ranges fit into memory")
            }
        };
        let low = self.join(low, link);
        self.root = self.join(low, high);
        true
    }

    fn remove(&mut self, span: &Span, watcher: WatcherKey) {
        let link = self.find(span);
        if link == NONE {
            return;
        }
        self.node_mut(link).watchers.remove(&watcher);
        if self.node(link).watchers.is_empty() {
            self.root = self.without(self.root, span);
            // Let go of the keys now; the slot itself waits for its next use.
            let empty = Span { start: Bytes::new(), end: End::Never };
            *self.node_mut(link) = Node {
                span: empty,
                watchers: BTreeSet::new(),
                furthest: End::Never,
                priority: 0,
                left: NONE,
                right: NONE,
            };
            self.free.push(link);
        }
    }

    /// The tree at `link` without the node of `span`, which is in it.
    fn without(&mut self, link: Link, span: &Span) -> Link {
        let (left, right) = (self.node(link).left, self.node(link).right);
        match span.cmp(&self.node(link).span) {
            Ordering::Equal => return self.join(left, right),
            Ordering::Less => self.node_mut(link).left = self.without(left, span),
            Ordering::Greater => self.node_mut(link).right = self.without(right, span),
        }
        self.measure(link);
        link
    }

    /// Cuts the tree at `link` into the spans below `span` and those above; it holds no equal one.
    fn split(&mut self, link: Link, span: &Span) -> (Link, Link) {
        if link == NONE {
            return (NONE, NONE);
        }
        if self.node(link).span < *span {
            let (low, high) = self.split(self.node(link).right, span);
            self.node_mut(link).right = low;
            self.measure(link);
            (link, high)
        } else {
            let (low, high) = self.split(self.node(link).left, span);
            self.node_mut(link).left = high;
            self.measure(link);
            (low, link)
        }
    }

    /// One tree of two, where every span of `low` lies before every span of `high`.
    fn join(&mut self, low: Link, high: Link) -> Link {
        if low == NONE || high == NONE {
            return if low == NONE { high } else { low };
        }
        if self.node(low).priority >= self.node(high).priority {
            let right = self.join(self.node(low).right, high);
            self.node_mut(low).right = right;
            self.measure(low);
            low
        } else {
            let left = self.join(low, self.node(high).left);
            self.node_mut(high).left = left;
            self.measure(high);
            high
        }
    }

    /// Sets `furthest` from the node and its children.
    fn measure(&mut self, link: Link) {
        let node = self.node(link);
        let mut furthest = &node.span.end;
        for child in [node.left, node.right] {
            if child != NONE {
                furthest = furthest.max(&self.node(child).furthest);
            }
        }
        let furthest = furthest.clone();
        self.node_mut(link).furthest = furthest;
    }

    fn stab(&self, link: Link, key: &[u8], visit: &mut impl FnMut(WatcherKey)) {
        if link == NONE || !self.node(link).furthest.after(key) {
            return;
        }
        let node = self.node(link);
        self.stab(node.left, key, visit);
        if node.span.start.as_ref() <= key {
            if node.span.end.after(key) {
                node.watchers.iter().copied().for_each(&mut *visit);
            }
            self.stab(node.right, key, visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::dice::Dice;

    fn random_key(dice: &mut Dice) -> Bytes {
        (0..dice.below(4)).map(|_| b'a' + dice.below(3) as u8).collect()
    }

    fn random_range(dice: &mut Dice) -> KeyRange {
        let start = random_key(dice);
        match dice.below(4) {
            0 => KeyRange::single(start),
            1 => KeyRange::from_wire(start, Bytes::from_static(b"\0")),
            _ => KeyRange::from_wire(start, [&random_key(dice)[..], b"~"].concat().into()),
        }
    }

    #[test]
    fn finds_what_asking_every_range_finds() {
        for seed in 0..200 {
            let mut dice = Dice::new(seed);
            let mut intervals = Intervals::default();
            let mut registered: Vec<(KeyRange, WatcherKey)> = Vec::new();
            for step in 0..300 {
                if dice.below(3) > 0 {
                    let range = random_range(&mut dice);
                    if !range.is_empty() {
                        intervals.insert(&range, WatcherKey(step));
                        registered.push((range, WatcherKey(step)));
                    }
                } else if !registered.is_empty() {
                    let (range, watcher) = registered.swap_remove(dice.below(registered.len() as u64) as usize);
                    intervals.remove(&range, watcher);
                }
                let key = random_key(&mut dice);
                let mut found = Vec::new();
                intervals.matching(&key, &mut |watcher| found.push(watcher));
                found.sort();
                let mut expected: Vec<_> =
                    registered.iter().filter(|(range, _)| range.contains(&key)).map(|(_, w)| *w).collect();
                expected.sort();
                assert_eq!(found, expected, "seed {seed}, step {step}, key {key:?}");
            }
            registered.drain(..).for_each(|(range, watcher)| intervals.remove(&range, watcher));
            assert!(
                intervals.exact.is_empty() && intervals.ranges.root == NONE,
                "seed {seed}: something stayed behind"
            );
        }
    }

    #[test]
    fn stays_shallow_when_ranges_come_in_order() {
        fn depth(treap: &Treap, link: Link) -> usize {
            if link == NONE {
                return 0;
            }
            1 + depth(treap, treap.node(link).left).max(depth(treap, treap.node(link).right))
        }
        let mut intervals = Intervals::default();
        for number in 0..20_000u32 {
            let start = Bytes::copy_from_slice(&number.to_be_bytes());
            let end = Bytes::copy_from_slice(&(number + 1).to_be_bytes());
            intervals.insert(&KeyRange::from_wire(start, end), WatcherKey(number));
        }
        assert!(depth(&intervals.ranges, intervals.ranges.root) < 60);
    }
}
