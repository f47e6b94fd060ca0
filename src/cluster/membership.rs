//! The table of members: how to reach each and what it calls itself. Replicated; changed by apply alone.
//!
//! Promises: members iterate by id; an id that was removed never comes back; memory is what the rows say.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;

use crate::pb::everwatchpb::MemberRecord;
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

    /// One member.
    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// All members, by id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (MemberId, &Member)> {
        self.members.iter().map(|(id, member)| (*id, member))
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
}

impl Member {
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
}
