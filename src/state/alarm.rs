//! Alarms: NOSPACE and CORRUPT, each raised for a member and felt by the whole cluster until it is taken back.
//!
//! They are a set. Which commands are refused follows from the set alone, not from the order in which alarms were raised
//! (in etcd it does, and taking one kind back can silence the other until the next restart).

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};

use crate::pb::etcdserverpb::{AlarmMember, AlarmType};
use crate::storage::backend::{Batch, Bucket};
use crate::types::MemberId;

/// What is wrong. The numbers are the API's, and stand in the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum AlarmKind {
    /// A member's backend has outgrown its quota.
    NoSpace = AlarmType::Nospace as u8,
    /// Members' contents differ.
    Corrupt = AlarmType::Corrupt as u8,
}

impl AlarmKind {
    /// The kind of a number of the API: NONE is none, and so is one we do not know.
    pub fn from_wire(number: i32) -> Option<AlarmKind> {
        [AlarmKind::NoSpace, AlarmKind::Corrupt].into_iter().find(|kind| *kind as i32 == number)
    }
}

/// The alarms raised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alarms {
    raised: BTreeSet<(AlarmKind, MemberId)>,
}

impl Alarms {
    /// Takes an alarm from its row's key, at start. `None`: it is not one.
    pub(super) fn restore(&mut self, key: &[u8]) -> Option<()> {
        let (kind, member) = key.split_first()?;
        let kind = AlarmKind::from_wire(i32::from(*kind))?;
        self.raised.insert((kind, MemberId(u64::from_be_bytes(member.try_into().ok()?))));
        Some(())
    }

    pub(super) fn raise(&mut self, kind: AlarmKind, member: MemberId, batch: &mut Batch) {
        if self.raised.insert((kind, member)) {
            batch.put(Bucket::Alarm, row_key(kind, member), Bytes::new());
        }
    }

    /// Takes an alarm back; says whether it was raised.
    pub(super) fn clear(&mut self, kind: AlarmKind, member: MemberId, batch: &mut Batch) -> bool {
        let was_raised = self.raised.remove(&(kind, member));
        if was_raised {
            batch.delete(Bucket::Alarm, row_key(kind, member));
        }
        was_raised
    }

    /// Whether this alarm is raised for any member.
    pub fn is_raised(&self, kind: AlarmKind) -> bool {
        self.raised.iter().any(|(raised, _)| *raised == kind)
    }

    /// All alarms, by kind and then by member.
    pub fn iter(&self) -> impl Iterator<Item = (AlarmKind, MemberId)> {
        self.raised.iter().copied()
    }

    /// What a request for alarms of the API's type `number` is answered: all of them for NONE.
    pub fn list(&self, number: i32) -> Vec<AlarmMember> {
        let asked = |kind: AlarmKind| number == AlarmType::None as i32 || number == kind as i32;
        self.iter().filter(|(kind, _)| asked(*kind)).map(|(kind, member)| to_wire(kind, member)).collect()
    }
}

/// An alarm as the API has it.
pub(super) fn to_wire(kind: AlarmKind, member: MemberId) -> AlarmMember {
    AlarmMember { member_id: member.0, alarm: kind as i32 }
}

fn row_key(kind: AlarmKind, member: MemberId) -> Bytes {
    let mut key = BytesMut::with_capacity(9);
    key.put_u8(kind as u8);
    key.put_u64(member.0);
    key.freeze()
}
