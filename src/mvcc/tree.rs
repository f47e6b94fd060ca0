//! An ordered map from byte strings that knows how many of its values count: a B+ tree whose inner nodes keep, for each child, the
//! sum of what is below it. So how many there are in a range is known without a walk through it.
//!
//! Keys of one leaf lie behind each other in one piece of memory, without the prefix that all of them share: a key costs its own
//! bytes and four more, and is found without following a pointer for every comparison. Leaves that were filled in order are full.
//!
//! Nothing here knows what the values are, but for their weight ([`Weigh`]).

use std::ops::{Bound, Range};

/// Keys in a leaf at most, and how many bytes they may have before it is split for that: whoever inserts moves the others. (A part
/// with a long key may still have more.) Few in tests, so that trees are deep and change their shape often.
const LEAF_KEYS_MAX: usize = if cfg!(test) { 8 } else { 64 };
const LEAF_BYTES_MAX: usize = 16 << 10;
/// So many keys a leaf makes room for at once. (Twice as many as there are would leave a third of all room empty.)
const LEAF_ROOM: usize = 8;
/// Children of an inner node at most.
const CHILDREN_MAX: usize = if cfg!(test) { 6 } else { 32 };

/// What a value counts.
pub(super) trait Weigh {
    /// It may change while a value is changed through the tree, and at no other time.
    fn weight(&self) -> usize;
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tree<V> {
    root: Node<V>,
    /// Of all values.
    weight: usize,
}

impl<V: Weigh> Default for Tree<V> {
    fn default() -> Tree<V> {
        Tree { root: Node::Leaf(Leaf::empty()), weight: 0 }
    }
}

#[derive(Debug)]
enum Node<V> {
    Leaf(Leaf<V>),
    Inner(Inner<V>),
}

/// At least one child. What is compared on the way down lies together, and not with each child: a key is found without following
/// a pointer for every comparison here, too.
#[derive(Debug)]
struct Inner<V> {
    children: Vec<Child<V>>,
    /// What the lows of all but the first begin with is so long.
    shared: usize,
    /// Of each but the first: what follows that in its low, as far as it goes into a number.
    heads: Vec<u64>,
}

#[derive(Debug)]
struct Child<V> {
    /// No key below is less; those below the child before are. Of a first child it is not looked at.
    low: Box<[u8]>,
    weight: usize,
    node: Box<Node<V>>,
}

#[derive(Debug)]
struct Leaf<V> {
    /// All keys begin with it.
    prefix: Box<[u8]>,
    /// What follows it in each, in order, and where each of these ends.
    rests: Vec<u8>,
    ends: Vec<u32>,
    values: Vec<V>,
}

/// A key as leaves keep it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key<'a> {
    prefix: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Key<'a> {
    pub(super) fn of(key: &'a [u8]) -> Key<'a> {
        Key { prefix: key, rest: &[] }
    }

    /// All of it.
    pub(super) fn whole(&self) -> Vec<u8> {
        [self.prefix, self.rest].concat()
    }

    /// All of it, in place of what a buffer has.
    pub(super) fn write(&self, into: &mut Vec<u8>) {
        into.clear();
        into.extend_from_slice(self.prefix);
        into.extend_from_slice(self.rest);
    }
}

impl<V: Weigh> Tree<V> {
    /// What all values count together.
    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<&V> {
        let mut node = &self.root;
        loop {
            match node {
                Node::Inner(inner) => node = &inner.children[inner.child_of(key)].node,
                Node::Leaf(leaf) => return leaf.find(key).ok().map(|at| &leaf.values[at]),
            }
        }
    }

    /// Gives a key without a value this one; with a value, has `merge` make one of both.
    pub(super) fn upsert(&mut self, key: &[u8], value: V, merge: impl FnOnce(&mut V, V)) {
        let (change, split) = self.root.upsert(key, value, merge);
        self.weight = self.weight.wrapping_add_signed(change);
        let Some(right) = split else { return };
        let left = std::mem::replace(&mut self.root, Node::Leaf(Leaf::empty()));
        let left = Child { low: Box::default(), weight: self.weight - right.weight, node: Box::new(left) };
        self.root = Node::Inner(Inner::new(vec![left, right]));
    }

    /// Forgets a key.
    pub(super) fn remove(&mut self, key: &[u8]) {
        self.weight -= self.root.remove(key);
        while let Node::Inner(inner) = &mut self.root
            && inner.children.len() == 1
        {
            self.root = *inner.children.remove(0).node;
        }
    }

    /// What the values of a range count together.
    pub(super) fn weigh(&self, (start, end): (Bound<&[u8]>, Bound<&[u8]>)) -> usize {
        let below = match end {
            Bound::Unbounded => self.weight,
            Bound::Excluded(key) => self.weight_before(key, false),
            Bound::Included(key) => self.weight_before(key, true),
        };
        let before = match start {
            Bound::Unbounded => 0,
            Bound::Included(key) => self.weight_before(key, false),
            Bound::Excluded(key) => self.weight_before(key, true),
        };
        below.saturating_sub(before)
    }

    /// What the values of the keys below one count together, or of those up to it.
    fn weight_before(&self, key: &[u8], included: bool) -> usize {
        let (mut node, mut weight) = (&self.root, 0);
        loop {
            match node {
                Node::Inner(inner) => {
                    let (children, at) = (&inner.children, inner.child_of(key));
                    weight += children[..at].iter().map(|child| child.weight).sum::<usize>();
                    node = &children[at].node;
                }
                Node::Leaf(leaf) => {
                    let before = leaf.find(key).map_or_else(|at| at, |at| at + usize::from(included));
                    return weight + leaf.values[..before].iter().map(V::weight).sum::<usize>();
                }
            }
        }
    }

    /// Shows the keys of a range in order, until `see` returns false.
    pub(super) fn walk<'a>(
        &'a self,
        (start, end): (Bound<&[u8]>, Bound<&[u8]>),
        see: &mut dyn FnMut(Key<'a>, &'a V) -> bool,
    ) {
        self.root.walk(start, end, see);
    }

    /// The same with values that may be changed, but not in weight.
    pub(super) fn walk_mut(
        &mut self,
        (start, end): (Bound<&[u8]>, Bound<&[u8]>),
        see: &mut dyn FnMut(Key<'_>, &mut V) -> bool,
    ) {
        self.root.walk_mut(start, end, see);
    }
}

impl<V> Inner<V> {
    fn new(children: Vec<Child<V>>) -> Inner<V> {
        let mut inner = Inner { children, shared: 0, heads: Vec::new() };
        inner.compare_anew();
        inner
    }

    /// After children have come or gone.
    fn compare_anew(&mut self) {
        let lows = self.children.get(1..).unwrap_or_default();
        self.heads.clear();
        let Some((first, last)) = lows.first().zip(lows.last()) else { return };
        // They are in order: what these two share all of them do.
        self.shared = first.low.iter().zip(&last.low).take_while(|(a, b)| a == b).count();
        self.heads.extend(lows.iter().map(|child| head(&child.low[self.shared..])));
    }

    /// The child below which a key is, if anywhere.
    fn child_of(&self, key: &[u8]) -> usize {
        let Some(lows) = self.children.get(1..).filter(|lows| !lows.is_empty()) else { return 0 };
        let prefix = &lows[0].low[..self.shared];
        let Some(rest) = key.strip_prefix(prefix) else { return if key < prefix { 0 } else { lows.len() } };
        let head = head(rest);
        let below = self.heads.partition_point(|low| *low < head);
        let same = self.heads[below..].iter().take_while(|low| **low == head).count();
        below + lows[below..below + same].partition_point(|child| *child.low <= *key)
    }

    /// The first child that has a key of a range, or may have.
    fn first_child(&self, start: Bound<&[u8]>) -> usize {
        match start {
            Bound::Unbounded => 0,
            Bound::Included(key) | Bound::Excluded(key) => self.child_of(key),
        }
    }
}

/// The first bytes, as a number: of two byte strings the lesser one's is not the greater.
fn head(bytes: &[u8]) -> u64 {
    match bytes.first_chunk() {
        Some(chunk) => u64::from_be_bytes(*chunk),
        None => bytes.iter().zip([56, 48, 40, 32, 24, 16, 8]).map(|(byte, shift)| u64::from(*byte) << shift).sum(),
    }
}

impl<V: Weigh> Node<V> {
    /// By how much the weight has changed, and what was split off at the right, whose weight is not taken from this one's.
    fn upsert(&mut self, key: &[u8], value: V, merge: impl FnOnce(&mut V, V)) -> (isize, Option<Child<V>>) {
        match self {
            Node::Leaf(leaf) => match leaf.find(key) {
                Ok(at) => {
                    let old = &mut leaf.values[at];
                    let before = old.weight();
                    merge(old, value);
                    (old.weight() as isize - before as isize, None)
                }
                Err(at) => {
                    let weight = value.weight();
                    leaf.insert(at, key, value);
                    (weight as isize, leaf.split(at))
                }
            },
            Node::Inner(inner) => {
                let at = inner.child_of(key);
                let child = &mut inner.children[at];
                let (change, split) = child.node.upsert(key, value, merge);
                child.weight = child.weight.wrapping_add_signed(change);
                let Some(right) = split else { return (change, None) };
                child.weight -= right.weight;
                inner.children.insert(at + 1, right);
                let split = split_children(&mut inner.children, at + 1);
                inner.compare_anew();
                (change, split)
            }
        }
    }

    /// The weight of what has gone.
    fn remove(&mut self, key: &[u8]) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.find(key).map_or(0, |at| leaf.remove(at)),
            Node::Inner(inner) => {
                let at = inner.child_of(key);
                let child = &mut inner.children[at];
                let weight = child.node.remove(key);
                child.weight -= weight;
                if unite(&mut inner.children, at) {
                    inner.compare_anew();
                }
                weight
            }
        }
    }

    /// Whether there is nothing below.
    fn is_empty(&self) -> bool {
        match self {
            Node::Leaf(leaf) => leaf.values.is_empty(),
            Node::Inner(inner) => inner.children.is_empty(),
        }
    }

    fn walk<'a>(&'a self, start: Bound<&[u8]>, end: Bound<&[u8]>, see: &mut dyn FnMut(Key<'a>, &'a V) -> bool) -> bool {
        match self {
            Node::Leaf(leaf) => {
                let within = leaf.within(start, end);
                let ends_here = within.end < leaf.values.len();
                within.into_iter().all(|at| see(leaf.key(at), &leaf.values[at])) && !ends_here
            }
            Node::Inner(inner) => {
                let (children, first) = (&inner.children, inner.first_child(start));
                // Only the first one may have keys before the start.
                (first..children.len()).all(|at| {
                    let start = if at == first { start } else { Bound::Unbounded };
                    children[at].node.walk(start, end, see)
                })
            }
        }
    }

    fn walk_mut(
        &mut self,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
        see: &mut dyn FnMut(Key<'_>, &mut V) -> bool,
    ) -> bool {
        match self {
            Node::Leaf(leaf) => {
                let within = leaf.within(start, end);
                let ends_here = within.end < leaf.values.len();
                let Leaf { prefix, rests, ends, values } = leaf;
                within.into_iter().all(|at| {
                    let key = Key { prefix, rest: rest(rests, ends, at) };
                    see(key, &mut values[at])
                }) && !ends_here
            }
            Node::Inner(inner) => {
                let first = inner.first_child(start);
                let children = &mut inner.children;
                (first..children.len()).all(|at| {
                    let start = if at == first { start } else { Bound::Unbounded };
                    children[at].node.walk_mut(start, end, see)
                })
            }
        }
    }
}

/// Splits an inner node that has become too large: in the middle, or where it has grown if that is its end.
fn split_children<V: Weigh>(children: &mut Vec<Child<V>>, grown: usize) -> Option<Child<V>> {
    if children.len() <= CHILDREN_MAX {
        return None;
    }
    let at = if grown + 1 == children.len() { grown } else { children.len() / 2 };
    let right = children.split_off(at);
    let weight = right.iter().map(|child| child.weight).sum();
    // The first one's is not looked at any more, and tells the parent where this node begins.
    let low = right[0].low.clone();
    Some(Child { low, weight, node: Box::new(Node::Inner(Inner::new(right))) })
}

/// After something below a child has gone: the child goes if it is empty, and becomes one with its neighbour if both are small.
/// Whether either has happened.
fn unite<V: Weigh>(children: &mut Vec<Child<V>>, at: usize) -> bool {
    if children[at].node.is_empty() {
        children.remove(at);
        return true;
    }
    let Some(left) = [at, at.wrapping_sub(1)].into_iter().find(|left| fit_together(children, *left)) else {
        return false;
    };
    let right = children.remove(left + 1);
    let into = &mut children[left];
    into.weight += right.weight;
    match (&mut *into.node, *right.node) {
        (Node::Leaf(leaf), Node::Leaf(more)) => leaf.append(more),
        (Node::Inner(inner), Node::Inner(mut more)) => {
            // It is no first child any more.
            more.children[0].low = right.low;
            inner.children.append(&mut more.children);
            inner.compare_anew();
        }
        _ => unreachable!("all leaves are equally deep"),
    }
    true
}

/// Whether a child and the next one leave room when they are one.
fn fit_together<V: Weigh>(children: &[Child<V>], left: usize) -> bool {
    let (Some(left), Some(right)) = (children.get(left), children.get(left.wrapping_add(1))) else { return false };
    match (&*left.node, &*right.node) {
        (Node::Leaf(a), Node::Leaf(b)) => {
            let bytes = a.bytes() + b.bytes();
            a.values.len() + b.values.len() <= LEAF_KEYS_MAX / 2 && bytes <= LEAF_BYTES_MAX / 2
        }
        (Node::Inner(a), Node::Inner(b)) => a.children.len() + b.children.len() <= CHILDREN_MAX / 2,
        _ => unreachable!("all leaves are equally deep"),
    }
}

fn rest<'a>(rests: &'a [u8], ends: &[u32], at: usize) -> &'a [u8] {
    let start = at.checked_sub(1).map_or(0, |before| ends[before] as usize);
    &rests[start..ends[at] as usize]
}

impl<V: Weigh> Leaf<V> {
    fn empty() -> Leaf<V> {
        Leaf { prefix: Box::default(), rests: Vec::new(), ends: Vec::new(), values: Vec::new() }
    }

    fn key(&self, at: usize) -> Key<'_> {
        Key { prefix: &self.prefix, rest: rest(&self.rests, &self.ends, at) }
    }

    /// Of all keys, whole.
    fn bytes(&self) -> usize {
        self.rests.len() + self.prefix.len() * self.values.len()
    }

    /// Where a key is, or would be.
    fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let Some(rest) = key.strip_prefix(&*self.prefix) else {
            return Err(if *key < *self.prefix { 0 } else { self.values.len() });
        };
        let (mut low, mut high) = (0, self.ends.len());
        while low < high {
            let middle = (low + high) / 2;
            match self.key(middle).rest.cmp(rest) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    /// Which of its keys lie in a range.
    fn within(&self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Range<usize> {
        let place = |key: &[u8], included: bool| self.find(key).map_or_else(|at| at, |at| at + usize::from(included));
        let first = match start {
            Bound::Unbounded => 0,
            Bound::Included(key) => place(key, false),
            Bound::Excluded(key) => place(key, true),
        };
        let last = match end {
            Bound::Unbounded => self.values.len(),
            Bound::Excluded(key) => place(key, false),
            Bound::Included(key) => place(key, true),
        };
        first..last.max(first)
    }

    fn insert(&mut self, at: usize, key: &[u8], value: V) {
        if self.values.is_empty() {
            self.prefix = key.into();
        }
        let shared = self.prefix.iter().zip(key).take_while(|(a, b)| a == b).count();
        self.share(shared);
        let rest = &key[shared..];
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        let len = u32::try_from(rest.len()).expect("requests are shorter");
        if self.values.len() == self.values.capacity() {
            self.values.reserve_exact(LEAF_ROOM);
            self.ends.reserve_exact(LEAF_ROOM);
        }
        if self.rests.capacity() - self.rests.len() < rest.len() {
            let more = (rest.len() * LEAF_ROOM).min(LEAF_BYTES_MAX.saturating_sub(self.rests.len()));
            self.rests.reserve_exact(more.max(rest.len()));
        }
        self.rests.splice(start..start, rest.iter().copied());
        self.ends[at..].iter_mut().for_each(|end| *end += len);
        self.ends.insert(at, start as u32 + len);
        self.values.insert(at, value);
    }

    /// Has the keys share so much of their prefix only.
    fn share(&mut self, shared: usize) {
        if shared == self.prefix.len() {
            return;
        }
        let own = &self.prefix[shared..];
        let mut rests = Vec::with_capacity(self.rests.len() + own.len() * self.ends.len());
        for at in 0..self.ends.len() {
            rests.extend_from_slice(own);
            rests.extend_from_slice(rest(&self.rests, &self.ends, at));
        }
        (1..).zip(&mut self.ends).for_each(|(n, end)| *end += n * own.len() as u32);
        self.rests = rests;
        self.prefix = self.prefix[..shared].into();
    }

    /// The weight of what has gone.
    fn remove(&mut self, at: usize) -> usize {
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        let end = self.ends.remove(at);
        self.rests.drain(start..end as usize);
        self.ends[at..].iter_mut().for_each(|later| *later -= end - start as u32);
        self.values.remove(at).weight()
    }

    /// Splits the leaf if it has become too large by what was inserted at a place: in the middle of its keys or of its bytes, or there
    /// if that is its end.
    fn split(&mut self, inserted: usize) -> Option<Child<V>> {
        let keys = self.values.len();
        if keys < 2 || keys <= LEAF_KEYS_MAX && self.bytes() <= LEAF_BYTES_MAX {
            return None;
        }
        let half = self.rests.len() / 2;
        let at = match inserted + 1 == keys {
            true => inserted,
            false if keys > LEAF_KEYS_MAX => keys / 2,
            false => self.ends.partition_point(|end| (*end as usize) < half).clamp(1, keys - 1),
        };
        // What tells the two parts apart is enough.
        let (left, next) = (self.key(at - 1).whole(), self.key(at).whole());
        let shared = left.iter().zip(&next).take_while(|(a, b)| a == b).count();
        let low = next[..shared + 1].into();
        let mut right = Leaf::empty();
        let values = self.values.split_off(at);
        // Both parts share more than the whole did, perhaps.
        for (n, value) in (at..).zip(values) {
            right.insert(n - at, &self.key(n).whole(), value);
        }
        right.tighten();
        self.ends.truncate(at);
        self.rests.truncate(self.ends.last().map_or(0, |end| *end as usize));
        self.tighten();
        let weight = right.values.iter().map(V::weight).sum();
        Some(Child { low, weight, node: Box::new(Node::Leaf(right)) })
    }

    /// Makes the prefix as long as it can be, and gives back memory that is not needed.
    fn tighten(&mut self) {
        let (Some(first), Some(last)) = (self.ends.first(), self.ends.len().checked_sub(1)) else { return };
        let (first, last) = (&self.rests[..*first as usize], self.key(last).rest);
        let more = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        if more > 0 {
            self.prefix = [&self.prefix, &first[..more]].concat().into();
            let rests = (0..self.ends.len()).flat_map(|at| rest(&self.rests, &self.ends, at)[more..].iter().copied());
            self.rests = rests.collect();
            (1..).zip(&mut self.ends).for_each(|(n, end)| *end -= n * more as u32);
        }
        self.rests.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.values.shrink_to_fit();
    }

    /// Takes in the keys of the next leaf.
    fn append(&mut self, Leaf { prefix, rests, ends, values }: Leaf<V>) {
        for (at, value) in values.into_iter().enumerate() {
            let key = Key { prefix: &prefix, rest: rest(&rests, &ends, at) };
            self.insert(self.values.len(), &key.whole(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::watch::dice::Dice;

    impl Weigh for u32 {
        fn weight(&self) -> usize {
            (*self % 2) as usize
        }
    }

    type Model = BTreeMap<Vec<u8>, u32>;

    /// Everything that must hold of a node: returns its depth and weight.
    fn check(node: &Node<u32>, low: Option<&[u8]>, high: Option<&[u8]>, root: bool) -> (usize, usize) {
        match node {
            Node::Leaf(leaf) => {
                assert!(root || !leaf.values.is_empty());
                assert!(leaf.values.len() <= LEAF_KEYS_MAX && leaf.ends.len() == leaf.values.len());
                let keys: Vec<Vec<u8>> = (0..leaf.values.len()).map(|at| leaf.key(at).whole()).collect();
                let longest = keys.iter().map(Vec::len).max().unwrap_or(0);
                assert!(leaf.bytes() <= LEAF_BYTES_MAX + longest, "{} bytes", leaf.bytes());
                assert!(keys.windows(2).all(|pair| pair[0] < pair[1]));
                assert!(keys.iter().all(|key| low.is_none_or(|low| low <= &key[..])));
                assert!(keys.iter().all(|key| high.is_none_or(|high| &key[..] < high)));
                (0, leaf.values.iter().map(u32::weight).sum())
            }
            Node::Inner(Inner { children, heads, .. }) => {
                assert_eq!(heads.len(), children.len() - 1);
                assert!(!children.is_empty() && children.len() <= CHILDREN_MAX && (!root || children.len() > 1));
                let mut depths = Vec::new();
                let mut sum = 0;
                for (at, child) in children.iter().enumerate() {
                    let low = if at == 0 { low } else { Some(&*child.low) };
                    let high = children.get(at + 1).map_or(high, |next| Some(&*next.low));
                    let (depth, weight) = check(&child.node, low, high, false);
                    assert_eq!(weight, child.weight);
                    depths.push(depth);
                    sum += weight;
                }
                assert!(depths.iter().all(|depth| *depth == depths[0]));
                (depths[0] + 1, sum)
            }
        }
    }

    /// Returns how deep the tree is.
    fn compare(tree: &Tree<u32>, model: &Model, dice: &mut Dice, key: fn(&mut Dice) -> Vec<u8>) -> usize {
        let (depth, weight) = check(&tree.root, None, None, true);
        assert_eq!(weight, tree.weight());
        for _ in 0..20 {
            let (a, b) = (key(dice), key(dice));
            let (low, high) = if a <= b { (a, b) } else { (b, a) };
            let start = match dice.below(3) {
                0 => Bound::Unbounded,
                1 => Bound::Included(&low[..]),
                _ => Bound::Excluded(&low[..]),
            };
            let end = match dice.below(3) {
                0 => Bound::Unbounded,
                1 => Bound::Included(&high[..]),
                _ if low == high => Bound::Unbounded,
                _ => Bound::Excluded(&high[..]),
            };
            let expected: Vec<(&Vec<u8>, &u32)> = model.range::<[u8], _>((start, end)).collect();
            assert_eq!(tree.weigh((start, end)), expected.iter().map(|(_, value)| value.weight()).sum::<usize>());
            let most = dice.below(200) as usize;
            let mut seen = Vec::new();
            tree.walk((start, end), &mut |key, value| {
                if seen.len() < most {
                    seen.push((key.whole(), *value));
                }
                seen.len() < most
            });
            let expected: Vec<_> = expected.iter().take(most).map(|(key, value)| ((*key).clone(), **value)).collect();
            assert_eq!(seen, expected);
            assert_eq!(tree.get(&low), model.get(&low));
        }
        depth
    }

    #[test]
    fn is_a_map_that_counts() {
        // Keys that share much, keys that share nothing, keys of all lengths, keys in order, keys that begin with others.
        let shapes: [fn(&mut Dice) -> Vec<u8>; 5] = [
            |dice| format!("/registry/pods/default/{:05}", dice.below(6000)).into_bytes(),
            |dice| (dice.below(1 << 24) as u32).to_le_bytes()[..3].to_vec(),
            |dice| vec![b'a' + dice.below(2) as u8; dice.below(400) as usize],
            |dice| (0..dice.below(13)).map(|_| [0, b'a', b'b', 0xff][dice.below(4) as usize]).collect(),
            |dice| [&vec![7; dice.below(3) as usize * 7000][..], &(dice.below(300) as u16).to_be_bytes()].concat(),
        ];
        let mut deepest = 0;
        for (seed, shape) in (0..).zip(shapes) {
            let (mut tree, mut model, mut dice) = (Tree::default(), Model::new(), Dice::new(seed));
            // It grows, stays, shrinks to nothing.
            for phase in [9, 8, 5, 8, 0] {
                for step in 0..8000 {
                    let key = shape(&mut dice);
                    if dice.below(10) < phase {
                        let value = dice.below(4) as u32;
                        tree.upsert(&key, value, |old, new| *old = *old + 2 + new);
                        model.entry(key).and_modify(|old| *old = *old + 2 + value).or_insert(value);
                    } else {
                        let near = model.range(key..).next().or(model.iter().next()).map(|(key, _)| key.clone());
                        let Some(near) = near else { break };
                        // Now and then many in a row, so that nodes become empty beside full ones.
                        let count = if dice.below(20) == 0 { 1 + dice.below(100) as usize } else { 1 };
                        let gone: Vec<Vec<u8>> = model.range(near..).take(count).map(|(key, _)| key.clone()).collect();
                        for key in gone {
                            tree.remove(&key);
                            model.remove(&key);
                        }
                    }
                    if step % 500 == 0 {
                        deepest = deepest.max(compare(&tree, &model, &mut dice, shape));
                    }
                }
                compare(&tree, &model, &mut dice, shape);
            }
            tree.remove(b"never there");
            assert_eq!(tree.weight(), model.values().map(u32::weight).sum::<usize>());
        }
        assert!(deepest > 3, "{deepest}");
    }

    #[test]
    fn leaves_filled_in_order_are_full_and_keys_cost_little_more_than_their_bytes() {
        let mut tree = Tree::default();
        for n in 0..6400u32 {
            tree.upsert(format!("/registry/pods/{n:010}").as_bytes(), 1, |_, _| ());
        }
        let mut leaves = Vec::new();
        let mut nodes = vec![&tree.root];
        while let Some(node) = nodes.pop() {
            match node {
                Node::Leaf(leaf) => leaves.push(leaf),
                Node::Inner(inner) => nodes.extend(inner.children.iter().map(|child| &*child.node)),
            }
        }
        assert_eq!(leaves.len(), 6400 / LEAF_KEYS_MAX);
        let bytes: usize = leaves.iter().map(|leaf| leaf.rests.capacity() + leaf.ends.capacity() * 4).sum();
        assert!(bytes < 6400 * (4 + 4), "{bytes}");
    }
}
