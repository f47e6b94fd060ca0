//! Ranges that are neither one key nor a prefix: a treap ordered by (start, end), in which every node knows the furthest end below
//! it. That prunes the search: O(log n) steps per range found.

use std::cmp::Ordering;

use super::group::{GroupKey, Reach, Span};

/// The limits of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Stretch {
    start: Box<[u8]>,
    end: End,
}

/// The first key after a stretch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Box<[u8]>),
    /// After every key; the order of the variants says so.
    Never,
}

impl Default for End {
    fn default() -> End {
        End::Before(Box::default())
    }
}

impl End {
    fn after(&self, key: &[u8]) -> bool {
        match self {
            End::Before(end) => **end > *key,
            End::Never => true,
        }
    }
}

impl From<Span<'_>> for Stretch {
    fn from(span: Span<'_>) -> Stretch {
        let end = match span.reach {
            Reach::Before => End::Before(span.end.into()),
            Reach::Open => End::Never,
            Reach::Single | Reach::Prefix => unreachable!("these have structures of their own"),
        };
        Stretch { start: span.start.into(), end }
    }
}

/// Index of a node; `NONE` is no node.
type Link = u32;
const NONE: Link = Link::MAX;

#[derive(Debug)]
struct Node {
    span: Stretch,
    group: GroupKey,
    /// The furthest end in the tree that hangs from this node.
    furthest: End,
    /// No child has a higher one. Drawn from `Intervals::dice`, which keeps the tree about as deep as a balanced one.
    priority: u64,
    left: Link,
    right: Link,
}

/// A search tree by span that is a heap by priority. One group stands for all of the same range.
#[derive(Debug)]
pub(super) struct Intervals {
    nodes: Vec<Node>,
    free: Vec<Link>,
    root: Link,
    /// The state of a generator with a fixed start: members need not agree on the tree's shape, but tests repeat.
    dice: u64,
}

impl Default for Intervals {
    fn default() -> Intervals {
        Intervals { nodes: Vec::new(), free: Vec::new(), root: NONE, dice: 0x9e37_79b9_7f4a_7c15 }
    }
}

impl Intervals {
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

    fn find(&self, span: &Stretch) -> Link {
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

    /// The group that stands for a range.
    pub(super) fn get(&self, span: Span<'_>) -> Option<GroupKey> {
        let link = self.find(&span.into());
        (link != NONE).then(|| self.node(link).group)
    }

    /// Has `group` stand for a range, which is new, or which another has stood for until now.
    pub(super) fn insert(&mut self, span: Span<'_>, group: GroupKey) {
        let span = Stretch::from(span);
        let known = self.find(&span);
        if known != NONE {
            self.node_mut(known).group = group;
            return;
        }
        let (low, high) = self.split(self.root, &span);
        let furthest = span.end.clone();
        let priority = self.roll();
        let node = Node { span, group, furthest, priority, left: NONE, right: NONE };
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
    }

    /// Forgets a range.
    pub(super) fn remove(&mut self, span: Span<'_>) {
        let span = Stretch::from(span);
        let link = self.find(&span);
        if link == NONE {
            return;
        }
        self.root = self.without(self.root, &span);
        // Let go of the keys now; the slot itself waits for its next use.
        let node = self.node_mut(link);
        (node.span, node.furthest) = (Stretch::default(), End::default());
        self.free.push(link);
    }

    /// Visits the groups of the ranges that contain `key`.
    pub(super) fn stab(&self, key: &[u8], visit: &mut impl FnMut(GroupKey)) {
        self.stab_below(self.root, key, visit);
    }

    /// Whether nothing is registered.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.root == NONE
    }

    /// The tree at `link` without the node of `span`, which is in it.
    fn without(&mut self, link: Link, span: &Stretch) -> Link {
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
    fn split(&mut self, link: Link, span: &Stretch) -> (Link, Link) {
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

    fn stab_below(&self, link: Link, key: &[u8], visit: &mut impl FnMut(GroupKey)) {
        if link == NONE || !self.node(link).furthest.after(key) {
            return;
        }
        let node = self.node(link);
        self.stab_below(node.left, key, visit);
        if *node.span.start <= *key {
            if node.span.end.after(key) {
                visit(node.group);
            }
            self.stab_below(node.right, key, visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_shallow_when_ranges_come_in_order() {
        fn depth(tree: &Intervals, link: Link) -> usize {
            if link == NONE {
                return 0;
            }
            1 + depth(tree, tree.node(link).left).max(depth(tree, tree.node(link).right))
        }
        let mut tree = Intervals::default();
        for number in 0..20_000u32 {
            let (start, end) = (number.to_be_bytes(), (number + 2).to_be_bytes());
            tree.insert(Span { start: &start, reach: Reach::Before, end: &end }, GroupKey::new(number));
        }
        assert!(depth(&tree, tree.root) < 60);
    }
}
