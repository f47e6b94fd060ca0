//! Prefixes by their bytes: a key finds all of them that it begins with by being walked along once, so that what it costs depends
//! on the key's length and on nothing else that is registered.
//!
//! ```text
//! registered: /a/   /a/b/   /a/b/c   /x        (root) ─ '/' ─▶ [/] ─ 'a' ─▶ [a/]* ─ 'b' ─▶ [b/]* ─ 'c' ─▶ /a/b/c
//!                                                              └── 'x' ─▶ /x
//! ```
//!
//! A node holds the bytes that all below it share, and perhaps the prefix that ends with them (the stars). What has nothing below
//! it is no node but a *leaf*: its bytes are those of the group, which the trie is shown and does not keep.

use super::group::{Group, GroupKey};
use super::slab::Slab;

/// See the module. One group stands for all that have its prefix.
#[derive(Debug)]
pub(super) struct Trie {
    /// The first is the root.
    nodes: Slab<Node>,
}

#[derive(Debug, Default)]
struct Node {
    /// What follows the node above, the byte that leads here included.
    label: Box<[u8]>,
    /// The prefix that ends here.
    here: Option<GroupKey>,
    /// What is below, by its first byte, ascending.
    branches: Vec<(u8, Branch)>,
}

#[derive(Clone, Copy, Debug)]
enum Branch {
    Node(u32),
    Leaf(GroupKey),
}

const ROOT: u32 = 0;

impl Default for Trie {
    fn default() -> Trie {
        let mut nodes = Slab::default();
        nodes.insert(Node::default());
        Trie { nodes }
    }
}

impl Node {
    fn branch(&self, byte: u8) -> Result<usize, usize> {
        self.branches.binary_search_by_key(&byte, |branch| branch.0)
    }

    /// Hangs a prefix of which `rest` follows this node's label below it; no other there begins with the same byte.
    fn hang(&mut self, rest: &[u8], group: GroupKey) {
        match rest.first() {
            None => self.here = Some(group),
            Some(byte) => {
                let at = self.branch(*byte).expect_err("nothing begins so");
                self.branches.insert(at, (*byte, Branch::Leaf(group)));
            }
        }
    }
}

/// How many bytes two strings have in common at their beginning.
fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Trie {
    /// The group that stands for a prefix.
    pub(super) fn get(&self, groups: &Slab<Group>, prefix: &[u8]) -> Option<GroupKey> {
        let mut found = None;
        self.walk(groups, prefix, |group| {
            if groups[group.place()].span().start.len() == prefix.len() {
                found = Some(group);
            }
        });
        found
    }

    /// Visits the groups of all prefixes that `key` begins with, the shortest first.
    pub(super) fn walk(&self, groups: &Slab<Group>, key: &[u8], mut visit: impl FnMut(GroupKey)) {
        let (mut node, mut depth) = (&self.nodes[ROOT], 0);
        loop {
            node.here.into_iter().for_each(&mut visit);
            let Some(at) = key.get(depth).and_then(|byte| node.branch(*byte).ok()) else { return };
            match node.branches[at].1 {
                Branch::Leaf(group) => {
                    if key.starts_with(groups[group.place()].span().start) {
                        visit(group);
                    }
                    return;
                }
                Branch::Node(below) => {
                    node = &self.nodes[below];
                    if !key[depth..].starts_with(&node.label) {
                        return;
                    }
                    depth += node.label.len();
                }
            }
        }
    }

    /// Has `group` stand for its prefix, which is new, or which another has stood for until now.
    pub(super) fn insert(&mut self, groups: &Slab<Group>, group: GroupKey) {
        let prefix = groups[group.place()].span().start;
        let (mut at, mut depth) = (ROOT, 0);
        loop {
            let node = &mut self.nodes[at];
            let place = prefix.get(depth).and_then(|byte| node.branch(*byte).ok());
            let Some(place) = place else {
                return node.hang(&prefix[depth..], group);
            };
            match node.branches[place].1 {
                Branch::Leaf(other) => {
                    let known = groups[other.place()].span().start;
                    if known == prefix {
                        node.branches[place].1 = Branch::Leaf(group);
                        return;
                    }
                    let shared = depth + common(&prefix[depth..], &known[depth..]);
                    let mut fork = Node { label: prefix[depth..shared].into(), ..Node::default() };
                    fork.hang(&known[shared..], other);
                    fork.hang(&prefix[shared..], group);
                    let fork = self.nodes.insert(fork);
                    self.nodes[at].branches[place].1 = Branch::Node(fork);
                    return;
                }
                Branch::Node(below) => {
                    let label = &self.nodes[below].label;
                    let shared = common(&prefix[depth..], label);
                    depth += shared;
                    if shared == label.len() {
                        at = below;
                        continue;
                    }
                    let (upper, lower) = (label[..shared].into(), Box::<[u8]>::from(&label[shared..]));
                    let branches = vec![(lower[0], Branch::Node(below))];
                    self.nodes[below].label = lower;
                    let fork = self.nodes.insert(Node { label: upper, here: None, branches });
                    self.nodes[at].branches[place].1 = Branch::Node(fork);
                    at = fork;
                }
            }
        }
    }

    /// Forgets a prefix, which is registered.
    pub(super) fn remove(&mut self, groups: &Slab<Group>, prefix: &[u8]) {
        let (mut at, mut depth) = (ROOT, 0);
        // The node above, and which of its branches leads here.
        let mut above = None;
        while let Some(byte) = prefix.get(depth) {
            let place = self.nodes[at].branch(*byte).expect("it is registered");
            match self.nodes[at].branches[place].1 {
                Branch::Leaf(group) => {
                    debug_assert_eq!(groups[group.place()].span().start, prefix);
                    self.nodes[at].branches.remove(place);
                    return self.tidy(at, above);
                }
                Branch::Node(below) => {
                    above = Some((at, place));
                    depth += self.nodes[below].label.len();
                    at = below;
                }
            }
        }
        self.nodes[at].here = None;
        self.tidy(at, above);
    }

    /// Makes a node go that has nothing, or only one thing, to hold.
    fn tidy(&mut self, at: u32, above: Option<(u32, usize)>) {
        let Some((upper, place)) = above else { return };
        let node = &self.nodes[at];
        let only = match (node.here, &node.branches[..]) {
            (Some(group), []) => Branch::Leaf(group),
            (None, [(_, only)]) => *only,
            _ => return,
        };
        let label = self.nodes.remove(at).label;
        if let Branch::Node(below) = only {
            let below = &mut self.nodes[below];
            below.label = [&label[..], &below.label].concat().into();
        }
        self.nodes[upper].branches[place].1 = only;
    }

    /// Whether nothing is registered, and nothing was left behind.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.len() == 1 && self.nodes[ROOT].here.is_none() && self.nodes[ROOT].branches.is_empty()
    }
}
