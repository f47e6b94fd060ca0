//! Where cohorts stand: each is in exactly one place, which its position names, and there is no second one of its stream and
//! group there.

use std::collections::btree_map::Entry;

use super::group::{Cohort, CohortKey, GroupKey, Position, Synced};
use super::hub::Hub;

impl Hub {
    /// Moves a cohort on, to join those who are there already: what watchers have been sent only grows.
    pub(super) fn advance(&mut self, key: CohortKey, to: Position) {
        self.leave(key);
        let cohort = &mut self.cohorts[key.0];
        let first = |position| match position {
            Position::Synced => self.published.next(),
            Position::Future(first) | Position::Behind(first) => first,
        };
        // (What waits for the future becomes synced as that is published.)
        let forward = first(to) >= first(cohort.position()) || to == Position::Synced;
        assert!(forward, "watchers went back: {:?} to {to:?}", cohort.position());
        cohort.stand(to);
        let (stream, group) = (cohort.stream, cohort.group);
        let Some(there) = self.standing(stream, group, to) else {
            return self.settle(key);
        };
        let mut members = self.cohorts.remove(key.0).members;
        self.index[group].cohorts -= 1;
        for id in members.ids().as_slice() {
            self.streams[stream].watchers.insert(*id, there);
        }
        self.late += if let Position::Behind(_) = to { members.len() } else { 0 };
        self.cohorts[there.0].members.absorb(members);
    }

    /// Those of a stream and a group that stand at a position.
    pub(super) fn standing(&self, stream: u32, group: GroupKey, position: Position) -> Option<CohortKey> {
        match position {
            Position::Synced => self.synced(group, stream).ok(),
            Position::Future(start) => self.future.get(&(start, stream, group)).copied(),
            Position::Behind(next) => self.streams[stream].behind.get(&(next, group)).copied(),
        }
    }

    /// The synced cohort of a group on a stream; without one, where it would stand in the group's list.
    pub(super) fn synced(&self, group: GroupKey, stream: u32) -> Result<CohortKey, usize> {
        match self.index[group].synced() {
            Synced::One(cohort) if self.cohorts[cohort.0].stream == stream => Ok(cohort),
            Synced::None | Synced::One(_) => Err(0),
            Synced::Many(list) => {
                let at = self.lists[list].binary_search_by_key(&stream, |cohort| self.cohorts[cohort.0].stream)?;
                Ok(self.lists[list][at])
            }
        }
    }

    /// Adds a cohort to the synced ones of its group.
    pub(super) fn list(&mut self, group: GroupKey, key: CohortKey) {
        if let Synced::One(one) = self.index[group].synced() {
            self.index[group].set_synced(Synced::Many(self.lists.insert(vec![one])));
        }
        let place = self.synced(group, self.cohorts[key.0].stream);
        match self.index[group].synced() {
            Synced::Many(list) => self.lists[list].insert(place.expect_err("a stream has one"), key),
            _ => self.index[group].set_synced(Synced::One(key)),
        }
    }

    /// Takes a cohort from the synced ones of its group.
    pub(super) fn unlist(&mut self, group: GroupKey, key: CohortKey) {
        let Synced::Many(list) = self.index[group].synced() else {
            return self.index[group].set_synced(Synced::None);
        };
        let stream = self.cohorts[key.0].stream;
        let cohorts = &mut self.lists[list];
        if let Ok(at) = cohorts.binary_search_by_key(&stream, |cohort| self.cohorts[cohort.0].stream) {
            cohorts.remove(at);
        }
        if cohorts.is_empty() {
            self.lists.remove(list);
            self.index[group].set_synced(Synced::None);
        }
    }

    /// Puts a cohort where its position says. Nobody stands there.
    pub(super) fn settle(&mut self, key: CohortKey) {
        let Cohort { stream, group, ref members, .. } = self.cohorts[key.0];
        let home = &mut self.streams[stream];
        match self.cohorts[key.0].position() {
            Position::Synced => self.list(group, key),
            Position::Future(start) => {
                self.future.insert((start, stream, group), key);
                home.future += 1;
            }
            Position::Behind(next) => {
                home.behind.insert((next, group), key);
                home.late.insert(key);
                *self.standing_at.entry(next).or_default() += 1;
                self.late += members.len();
                self.late_prev_kv += usize::from(self.index[group].wish().prev_kv);
                if !home.stalled {
                    self.ready.insert(stream);
                    self.bell.ring();
                }
            }
        }
    }

    /// Takes a cohort from where its position says; it gets another one, or goes.
    pub(super) fn leave(&mut self, key: CohortKey) {
        let Cohort { stream, group, ref members, .. } = self.cohorts[key.0];
        let home = &mut self.streams[stream];
        match self.cohorts[key.0].position() {
            Position::Synced => self.unlist(group, key),
            Position::Future(start) => {
                self.future.remove(&(start, stream, group));
                home.future -= 1;
            }
            Position::Behind(next) => {
                home.behind.remove(&(next, group));
                home.late.remove(&key);
                if let Entry::Occupied(mut count) = self.standing_at.entry(next) {
                    *count.get_mut() -= 1;
                    if *count.get() == 0 {
                        count.remove();
                    }
                }
                self.late -= members.len();
                self.late_prev_kv -= usize::from(self.index[group].wish().prev_kv);
                if home.late.is_empty() {
                    self.ready.remove(&stream);
                }
            }
        }
    }

    /// Forgets a cohort that has left, and its group with it if it was the last one there.
    pub(super) fn release(&mut self, key: CohortKey) {
        let group = self.cohorts.remove(key.0).group;
        self.index[group].cohorts -= 1;
        if self.index[group].cohorts == 0 {
            self.index.remove(group);
        }
    }
}
