//! Which groups does a key concern? Keys are found by hashing, prefixes by a walk along the key, other ranges by a search tree: the
//! answer costs what it finds and the key's length, not what is registered.
//!
//! ```text
//! one key     parts of a hash table of group numbers     one look-up
//! a prefix    a trie                                     one walk along the key
//! a range     intervals in a treap                       O(log n) steps per range found
//! ```
//!
//! Each of the three knows one group per set of keys; others of the same keys hang from it in a chain, in the order in which they
//! came. Promise: `matching(key)` visits each group whose keys contain `key` exactly once, in an order that depends only on what was
//! registered before, never on hashing or chance.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::group::{Group, GroupKey, Reach, Span, Wish};
use super::interval::Intervals;
use super::slab::Slab;
use super::trie::Trie;

/// Parts of the table of keys. Each grows by itself, so that none takes long.
const PARTS: usize = 64;

/// All groups, by what they watch.
#[derive(Debug)]
pub(super) struct Index {
    groups: Slab<Group>,
    exact: Vec<HashTable<GroupKey>>,
    hashing: RandomState,
    prefixes: Trie,
    ranges: Intervals,
}

impl Default for Index {
    fn default() -> Index {
        Index {
            groups: Slab::default(),
            exact: (0..PARTS).map(|_| HashTable::new()).collect(),
            hashing: RandomState::new(),
            prefixes: Trie::default(),
            ranges: Intervals::default(),
        }
    }
}

impl std::ops::Index<GroupKey> for Index {
    type Output = Group;

    fn index(&self, key: GroupKey) -> &Group {
        &self.groups[key.place()]
    }
}

impl std::ops::IndexMut<GroupKey> for Index {
    fn index_mut(&mut self, key: GroupKey) -> &mut Group {
        &mut self.groups[key.place()]
    }
}

impl Index {
    /// The group of those who want this; a new one if there is none.
    pub(super) fn group(&mut self, span: Span<'_>, wish: Wish) -> GroupKey {
        let first = self.first(span);
        let mut last = None;
        let mut at = first;
        while let Some(key) = at {
            if self[key].wish() == wish {
                return key;
            }
            (last, at) = (Some(key), self[key].next);
        }
        let key = GroupKey::new(self.groups.insert(Group::new(span, wish)));
        match last {
            Some(last) => self[last].next = Some(key),
            None => self.register(key),
        }
        key
    }

    /// Forgets a group.
    pub(super) fn remove(&mut self, key: GroupKey) {
        let after = self[key].next;
        let first = self.first(self[key].span()).expect("it is registered");
        if first == key {
            match after {
                Some(heir) => self.replace(key, heir),
                None => self.unregister(key),
            }
        } else {
            let mut at = first;
            while self[at].next != Some(key) {
                at = self[at].next.expect("it is in the chain of its keys");
            }
            self[at].next = after;
        }
        self.groups.remove(key.place());
    }

    /// Visits the groups that `key` concerns.
    pub(super) fn matching(&self, key: &[u8], visit: &mut impl FnMut(GroupKey)) {
        let mut chain = |first: GroupKey| {
            let mut at = Some(first);
            while let Some(group) = at {
                visit(group);
                at = self[group].next;
            }
        };
        self.exact(key).into_iter().for_each(&mut chain);
        self.prefixes.walk(&self.groups, key, &mut chain);
        self.ranges.stab(key, &mut chain);
    }

    /// How many there are.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.groups.len()
    }

    /// The first of the groups with these keys.
    fn first(&self, span: Span<'_>) -> Option<GroupKey> {
        match span.reach {
            Reach::Single => self.exact(span.start),
            Reach::Prefix => self.prefixes.get(&self.groups, span.start),
            Reach::Open | Reach::Before => self.ranges.get(span),
        }
    }

    fn exact(&self, key: &[u8]) -> Option<GroupKey> {
        let hash = self.hashing.hash_one(key);
        self.exact[part(hash)].find(hash, |known| self[*known].span().start == key).copied()
    }

    fn register(&mut self, key: GroupKey) {
        let Index { groups, exact, hashing, prefixes, ranges } = self;
        let span = groups[key.place()].span();
        match span.reach {
            Reach::Single => {
                let hash = |known: &GroupKey| hashing.hash_one(groups[known.place()].span().start);
                let own = hash(&key);
                exact[part(own)].insert_unique(own, key, hash);
            }
            Reach::Prefix => prefixes.insert(groups, key),
            Reach::Open | Reach::Before => ranges.insert(span, key),
        }
    }

    fn unregister(&mut self, key: GroupKey) {
        let Index { groups, exact, hashing, prefixes, ranges } = self;
        let span = groups[key.place()].span();
        match span.reach {
            Reach::Single => {
                let hash = hashing.hash_one(span.start);
                if let Ok(entry) = exact[part(hash)].find_entry(hash, |known| *known == key) {
                    entry.remove();
                }
            }
            Reach::Prefix => prefixes.remove(groups, span.start),
            Reach::Open | Reach::Before => ranges.remove(span),
        }
    }

    /// `heir` comes first among the groups with the keys of `key`.
    fn replace(&mut self, key: GroupKey, heir: GroupKey) {
        let Index { groups, exact, hashing, prefixes, ranges } = self;
        let span = groups[key.place()].span();
        match span.reach {
            Reach::Single => {
                let hash = hashing.hash_one(span.start);
                if let Some(known) = exact[part(hash)].find_mut(hash, |known| *known == key) {
                    *known = heir;
                }
            }
            Reach::Prefix => prefixes.insert(groups, heir),
            Reach::Open | Reach::Before => ranges.insert(span, heir),
        }
    }
}

/// Which part of the table holds what has this hash. The table itself uses the other end of it.
fn part(hash: u64) -> usize {
    (hash >> 32) as usize % PARTS
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::types::KeyRange;
    use crate::watch::Filters;
    use crate::watch::dice::Dice;

    fn random_key(dice: &mut Dice) -> Bytes {
        (0..1 + dice.below(4)).map(|_| [b'a', b'b', 0xff][dice.below(3) as usize]).collect()
    }

    /// A key, a prefix, or any range.
    fn random_range(dice: &mut Dice) -> KeyRange {
        let start = random_key(dice);
        match dice.below(8) {
            0..3 => KeyRange::single(start),
            3..6 if start.iter().any(|byte| *byte != 0xff) => {
                let kept = start.iter().rposition(|byte| *byte != 0xff).unwrap();
                let end = [&start[..kept], &[start[kept] + 1]].concat();
                KeyRange::from_wire(start, end.into())
            }
            6 => KeyRange::from_wire(if dice.below(2) == 0 { start } else { Bytes::from_static(b"\0") }, "\0".into()),
            _ => KeyRange::from_wire(start, random_key(dice)),
        }
    }

    fn random_wish(dice: &mut Dice) -> Wish {
        let filters = Filters { no_put: dice.below(4) == 0, no_delete: false };
        Wish { filters, prev_kv: dice.below(2) == 0, fragment: false }
    }

    #[test]
    fn finds_what_asking_every_group_finds() {
        for seed in 0..300 {
            let mut dice = Dice::new(seed);
            let mut index = Index::default();
            let mut registered: Vec<(KeyRange, Wish, GroupKey)> = Vec::new();
            for step in 0..300 {
                if dice.below(5) > 1 {
                    let (range, wish) = (random_range(&mut dice), random_wish(&mut dice));
                    if !range.is_empty() {
                        let key = index.group(Span::of(&range), wish);
                        let same = |known: &&(KeyRange, Wish, GroupKey)| {
                            (Span::of(&known.0), known.1) == (Span::of(&range), wish)
                        };
                        match registered.iter().find(same) {
                            Some(known) => assert_eq!(key, known.2, "seed {seed}, step {step}"),
                            None => registered.push((range, wish, key)),
                        }
                    }
                } else if !registered.is_empty() {
                    let gone = registered.swap_remove(dice.below(registered.len() as u64) as usize);
                    index.remove(gone.2);
                }
                let key = random_key(&mut dice);
                let mut found = Vec::new();
                index.matching(&key, &mut |group| found.push(group));
                found.sort();
                let mut expected: Vec<_> =
                    registered.iter().filter(|(range, ..)| range.contains(&key)).map(|(.., group)| *group).collect();
                expected.sort();
                assert_eq!(found, expected, "seed {seed}, step {step}, key {key:?}");
            }
            registered.drain(..).for_each(|(.., group)| index.remove(group));
            assert!(
                index.prefixes.is_empty() && index.ranges.is_empty() && index.exact.iter().all(HashTable::is_empty),
                "seed {seed}: something stayed behind"
            );
            assert_eq!(index.len(), 0);
        }
    }
}
