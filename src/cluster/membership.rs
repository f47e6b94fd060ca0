//! The table of members: how to reach each and what it calls itself. Replicated; changed by apply alone.
//!
//! Promises: members iterate by id; an id that was removed never comes back; no two members share a peer URL; a change
//! that is refused has changed nothing; memory is what the rows say.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;

use crate::pb::etcdserverpb;
use crate::pb::everwatchpb::{MemberAdd, MemberRecord};
use crate::storage::backend::{Batch, Bucket};
use crate::storage::schema;
use crate::types::MemberId;

/// All members, and the ids of those that were removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    members: BTreeMap<MemberId, Member>,
    removed: BTreeSet<MemberId>,
}

/// One member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// What it calls itself; empty until it has run for the first time (founding members know each other's names).
    pub name: String,
    /// Where the other members reach it.
    pub peer_urls: Vec<String>,
    /// Where it says that clients reach it; none until it has run.
    pub client_urls: Vec<String>,
    /// Whether it receives the log without voting.
    pub is_learner: bool,
}

impl Membership {
    /// Takes a member from its row, at start.
    pub fn restore(&mut self, record: MemberRecord) {
        let MemberRecord { id, name, peer_urls, client_urls, is_learner } = record;
        self.members.insert(MemberId(id), Member { name, peer_urls, client_urls, is_learner });
    }

    /// Takes the id of a removed member from its row, at start.
    pub fn restore_removed(&mut self, id: MemberId) {
        self.removed.insert(id);
    }

    /// A member says what it is called and where clients reach it. Without effect for one that is not in the table: it was
    /// removed after it said so.
    pub fn set_attributes(&mut self, id: MemberId, name: String, client_urls: Vec<String>, batch: &mut Batch) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.name = name;
        member.client_urls = client_urls;
        put_row(batch, &member.record(id));
    }

    /// A member that is still to be started joins the table.
    pub fn add(&mut self, new: &MemberAdd, batch: &mut Batch) -> Result<(), Refused> {
        let id = MemberId(new.id);
        self.check_not_removed(id)?;
        if id == MemberId(0) || self.members.contains_key(&id) {
            return Err(Refused::IdExists);
        }
        self.check_peer_urls(id, &new.peer_urls)?;
        let learners = self.members.values().filter(|member| member.is_learner).count();
        if new.is_learner && learners as u64 >= u64::from(new.learners_max) {
            return Err(Refused::TooManyLearners);
        }
        let member = Member { peer_urls: new.peer_urls.clone(), is_learner: new.is_learner, ..Member::default() };
        put_row(batch, &member.record(id));
        self.members.insert(id, member);
        Ok(())
    }

    /// A learner becomes a voter.
    pub fn promote(&mut self, id: MemberId, batch: &mut Batch) -> Result<(), Refused> {
        let member = self.known(id)?;
        if !member.is_learner {
            return Err(Refused::NotLearner);
        }
        member.is_learner = false;
        put_row(batch, &member.record(id));
        Ok(())
    }

    /// A member leaves the table, and its id is spent. The last voter stays: without it nothing could be decided any more.
    pub fn remove(&mut self, id: MemberId, batch: &mut Batch) -> Result<(), Refused> {
        let is_learner = self.known(id)?.is_learner;
        if !is_learner && self.voters().count() == 1 {
            return Err(Refused::LastVoter);
        }
        self.members.remove(&id);
        self.removed.insert(id);
        batch.delete(Bucket::Members, row_key(id));
        batch.put(Bucket::MembersRemoved, row_key(id), Bytes::new());
        Ok(())
    }

    /// A member is to be reached elsewhere from now on.
    pub fn set_peer_urls(&mut self, id: MemberId, peer_urls: &[String], batch: &mut Batch) -> Result<(), Refused> {
        self.known(id)?;
        self.check_peer_urls(id, peer_urls)?;
        let member = self.known(id)?;
        member.peer_urls = peer_urls.to_vec();
        put_row(batch, &member.record(id));
        Ok(())
    }

    /// One member.
    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// All members, by id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (MemberId, &Member)> {
        self.members.iter().map(|(id, member)| (*id, member))
    }

    /// Those that vote, by id.
    pub fn voters(&self) -> impl Iterator<Item = (MemberId, &Member)> {
        self.iter().filter(|(_, member)| !member.is_learner)
    }

    /// All members as the API has them, by id.
    pub fn list(&self) -> Vec<etcdserverpb::Member> {
        self.iter().map(|(id, member)| member.to_wire(id)).collect()
    }

    /// Whether this id belonged to a member that was removed.
    pub fn was_removed(&self, id: MemberId) -> bool {
        self.removed.contains(&id)
    }

    /// How many there are, learners included.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn check_not_removed(&self, id: MemberId) -> Result<(), Refused> {
        if self.was_removed(id) { Err(Refused::Removed) } else { Ok(()) }
    }

    fn known(&mut self, id: MemberId) -> Result<&mut Member, Refused> {
        self.check_not_removed(id)?;
        self.members.get_mut(&id).ok_or(Refused::NotFound)
    }

    /// No other member than `id` may be reached at any of them.
    fn check_peer_urls(&self, id: MemberId, peer_urls: &[String]) -> Result<(), Refused> {
        let mut others = self.iter().filter(|(other, _)| *other != id);
        let taken = others.any(|(_, member)| member.peer_urls.iter().any(|url| peer_urls.contains(url)));
        if taken { Err(Refused::PeerUrlExists) } else { Ok(()) }
    }
}

/// Why the table was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The id belonged to a member that was removed.
    Removed,
    /// There is no such member.
    NotFound,
    /// There is such a member already.
    IdExists,
    /// Another member is reached there.
    PeerUrlExists,
    /// There are as many learners as there may be.
    TooManyLearners,
    /// The member votes already.
    NotLearner,
    /// Nobody who votes would be left.
    LastVoter,
}

impl Member {
    /// Whether it has run and told its name.
    pub fn is_started(&self) -> bool {
        !self.name.is_empty()
    }

    /// As the API has it.
    pub fn to_wire(&self, id: MemberId) -> etcdserverpb::Member {
        let Member { name, peer_urls, client_urls, is_learner } = self.clone();
        etcdserverpb::Member { id: id.0, name, peer_ur_ls: peer_urls, client_ur_ls: client_urls, is_learner }
    }

    /// As a row.
    pub fn record(&self, id: MemberId) -> MemberRecord {
        let Member { name, peer_urls, client_urls, is_learner } = self.clone();
        MemberRecord { id: id.0, name, peer_urls, client_urls, is_learner }
    }
}

/// Sets a member's row.
pub fn put_row(batch: &mut Batch, record: &MemberRecord) {
    batch.put(Bucket::Members, row_key(MemberId(record.id)), record.encode_to_vec().into());
}

fn row_key(id: MemberId) -> Bytes {
    schema::u64_row(id.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_tells_its_name_and_the_row_says_so() {
        let founding = MemberRecord { id: 7, peer_urls: vec!["http://h:1".into()], ..Default::default() };
        let mut members = Membership::default();
        members.restore(founding);
        let mut batch = Batch::default();
        members.set_attributes(MemberId(7), "m7".into(), vec!["http://c:1".into()], &mut batch);
        members.set_attributes(MemberId(8), "gone".into(), vec![], &mut batch);
        assert_eq!(batch.rows.len(), 1);

        let mut again = Membership::default();
        again.restore(MemberRecord::decode(batch.rows.remove(0).2.unwrap()).unwrap());
        assert_eq!(again, members);
        assert_eq!(again.get(MemberId(7)).unwrap().name, "m7");
    }

    #[test]
    fn each_change_is_refused_for_its_reason_and_then_changes_nothing() {
        let new =
            |id: u64, url: &str, is_learner| MemberAdd { id, peer_urls: vec![url.into()], is_learner, learners_max: 1 };
        let (mut members, mut batch) = (Membership::default(), Batch::default());
        members.add(&new(1, "http://h:1", false), &mut batch).unwrap();
        members.add(&new(2, "http://h:2", false), &mut batch).unwrap();
        members.add(&new(3, "http://h:3", true), &mut batch).unwrap();
        members.remove(MemberId(2), &mut batch).unwrap();
        let (before, rows) = (members.clone(), batch.clone());

        let (one, two, three, four) = (MemberId(1), MemberId(2), MemberId(3), MemberId(4));
        let taken = ["http://h:9".to_owned(), "http://h:3".to_owned()];
        let refused = [
            members.add(&new(0, "http://h:4", false), &mut batch),
            members.add(&new(1, "http://h:4", false), &mut batch),
            members.add(&new(2, "http://h:4", false), &mut batch),
            members.add(&new(4, "http://h:1", true), &mut batch),
            members.add(&new(4, "http://h:4", true), &mut batch),
            members.promote(one, &mut batch),
            members.promote(two, &mut batch),
            members.promote(four, &mut batch),
            members.remove(one, &mut batch),
            members.remove(two, &mut batch),
            members.remove(four, &mut batch),
            members.set_peer_urls(one, &taken, &mut batch),
            members.set_peer_urls(two, &[], &mut batch),
            members.set_peer_urls(four, &[], &mut batch),
        ];
        use Refused::*;
        let reasons = [
            IdExists,
            IdExists,
            Removed,
            PeerUrlExists,
            TooManyLearners,
            NotLearner,
            Removed,
            NotFound,
            LastVoter,
            Removed,
            NotFound,
            PeerUrlExists,
            Removed,
            NotFound,
        ];
        assert_eq!(refused, reasons.map(Err));
        assert_eq!((&members, batch.rows.len()), (&before, rows.rows.len()));

        // Its own URLs are no hindrance, and a voter more makes the removal of the first one possible.
        members.set_peer_urls(three, &taken, &mut batch).unwrap();
        members.promote(three, &mut batch).unwrap();
        members.remove(one, &mut batch).unwrap();
        assert_eq!(members.voters().map(|(id, _)| id).collect::<Vec<_>>(), [three]);
        assert!(members.was_removed(one) && members.was_removed(two));
    }
}
