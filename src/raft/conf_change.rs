//! Changes of the configuration as they stand in entries, and what makes a configuration sound.
//!
//! The bytes may come from a peer, and the crate's protobuf library can be led into endless recursion by hostile bytes,
//! so they are read here, by a reader that knows these few fields and refuses everything else. What it accepts is what
//! the crate writes. Two numbers are all that matter per change, which keeps the reader a page long.

use std::collections::BTreeSet;

use bytes::Bytes;
use protobuf::Message as _;

use super::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType};

/// The change an entry carries. `None` when it is a normal entry or its bytes are not a change.
pub fn decode(entry: &Entry) -> Option<ConfChangeV2> {
    match entry.get_entry_type() {
        EntryType::EntryNormal => None,
        EntryType::EntryConfChange => decode_v1(&entry.data),
        EntryType::EntryConfChangeV2 => decode_v2(&entry.data),
    }
}

/// An entry that changes the configuration; `context` travels with it. Its place comes from raft.
pub fn encode(change: &ConfChangeV2, context: Bytes) -> Entry {
    let data = change.write_to_bytes().expect("a message without required fields can be written");
    let mut entry = Entry { data: data.into(), context, ..Entry::default() };
    entry.set_entry_type(EntryType::EntryConfChangeV2);
    entry
}

/// ConfChange: id = 1 (nobody's business), change_type = 2, node_id = 3, context = 4.
fn decode_v1(bytes: &Bytes) -> Option<ConfChangeV2> {
    let (mut single, mut change) = (ConfChangeSingle::default(), ConfChangeV2::default());
    for field in fields(bytes)? {
        match field {
            (1, Value::Number(_)) => {}
            (2, Value::Number(kind)) => single.set_change_type(change_type(kind)?),
            (3, Value::Number(id)) => single.node_id = id,
            (4, Value::Bytes(context)) => change.context = bytes.slice_ref(context),
            _ => return None,
        }
    }
    change.mut_changes().push(single);
    Some(change)
}

/// ConfChangeV2: transition = 1, changes = 2, context = 3.
fn decode_v2(bytes: &Bytes) -> Option<ConfChangeV2> {
    let mut change = ConfChangeV2::default();
    for field in fields(bytes)? {
        match field {
            (1, Value::Number(0)) => change.set_transition(ConfChangeTransition::Auto),
            (1, Value::Number(1)) => change.set_transition(ConfChangeTransition::Implicit),
            (1, Value::Number(2)) => change.set_transition(ConfChangeTransition::Explicit),
            (2, Value::Bytes(single)) => change.mut_changes().push(decode_single(single)?),
            (3, Value::Bytes(context)) => change.context = bytes.slice_ref(context),
            _ => return None,
        }
    }
    Some(change)
}

/// ConfChangeSingle: change_type = 1, node_id = 2.
fn decode_single(bytes: &[u8]) -> Option<ConfChangeSingle> {
    let mut single = ConfChangeSingle::default();
    for field in fields(bytes)? {
        match field {
            (1, Value::Number(kind)) => single.set_change_type(change_type(kind)?),
            (2, Value::Number(id)) => single.node_id = id,
            _ => return None,
        }
    }
    Some(single)
}

fn change_type(number: u64) -> Option<ConfChangeType> {
    match number {
        0 => Some(ConfChangeType::AddNode),
        1 => Some(ConfChangeType::RemoveNode),
        2 => Some(ConfChangeType::AddLearnerNode),
        _ => None,
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of one flat message. `None` for other wire types and for bytes that end too early.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(len)?;
                bytes = rest;
                Value::Bytes(value)
            }
            _ => return None,
        };
        fields.push((tag >> 3, value));
    }
    Some(fields)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Whether raft can take `state` as it is: it has voters, nobody is named twice, nobody is 0, learners do not vote, and
/// only a configuration on its way to another names outgoing voters.
pub(super) fn is_sound(state: &ConfState) -> bool {
    let set = |ids: &[u64]| {
        let set: BTreeSet<u64> = ids.iter().copied().collect();
        (set.len() == ids.len() && !set.contains(&0)).then_some(set)
    };
    let (Some(voters), Some(outgoing), Some(learners), Some(learners_next)) =
        (set(&state.voters), set(&state.voters_outgoing), set(&state.learners), set(&state.learners_next))
    else {
        return false;
    };
    !voters.is_empty()
        && learners.is_disjoint(&voters)
        && learners.is_disjoint(&outgoing)
        && learners_next.is_subset(&outgoing)
        && learners_next.is_disjoint(&voters)
        && (!state.auto_leave || !outgoing.is_empty())
}

/// Whether `id` has a part in `state`.
pub(super) fn names(state: &ConfState, id: u64) -> bool {
    [&state.voters, &state.voters_outgoing, &state.learners].iter().any(|ids| ids.contains(&id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::ConfChange;

    fn entry(kind: EntryType, data: Vec<u8>) -> Entry {
        let mut entry = Entry { data: data.into(), ..Entry::default() };
        entry.set_entry_type(kind);
        entry
    }

    #[test]
    fn reads_what_the_crate_writes() {
        let mut change = ConfChangeV2::default();
        change.set_transition(ConfChangeTransition::Explicit);
        for (kind, id) in [(ConfChangeType::AddLearnerNode, u64::MAX), (ConfChangeType::RemoveNode, 3)] {
            let mut single = ConfChangeSingle { node_id: id, ..Default::default() };
            single.set_change_type(kind);
            change.mut_changes().push(single);
        }
        change.context = Bytes::from_static(b"context");
        let written = encode(&change, Bytes::new());
        let read = decode(&written).expect("it is a change");
        assert_eq!(encode(&read, Bytes::new()), written);

        let mut old = ConfChange { id: 9, node_id: 5, context: Bytes::from_static(b"c"), ..Default::default() };
        old.set_change_type(ConfChangeType::AddNode);
        let read =
            decode(&entry(EntryType::EntryConfChange, old.write_to_bytes().expect("written"))).expect("it is a change");
        assert_eq!((read.changes[0].node_id, &read.context[..]), (5, &b"c"[..]));
        assert!(decode(&entry(EntryType::EntryConfChangeV2, vec![])).is_some_and(|change| change.leave_joint()));
    }

    #[test]
    fn refuses_groups_cut_ends_and_unknown_fields() {
        for bytes in [&[0x0b][..], &[0x12, 5, 8], &[0x08], &[0x08, 9], &[0x20, 1], &[0x08, 0x80], &[0xff; 11]] {
            assert!(decode(&entry(EntryType::EntryConfChangeV2, bytes.to_vec())).is_none(), "{bytes:?}");
        }
    }

    #[test]
    fn a_configuration_is_sound_or_not() {
        let state = |voters: &[u64], learners: &[u64], outgoing: &[u64], next: &[u64]| ConfState {
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            voters_outgoing: outgoing.to_vec(),
            learners_next: next.to_vec(),
            ..ConfState::default()
        };
        assert!(is_sound(&state(&[1, 2], &[3], &[], &[])) && is_sound(&state(&[1, 2], &[3], &[1, 4], &[4])));
        for bad in [
            state(&[], &[], &[], &[]),
            state(&[1, 1], &[], &[], &[]),
            state(&[0], &[], &[], &[]),
            state(&[1], &[1], &[], &[]),
            state(&[1], &[], &[], &[2]),
            state(&[1], &[2], &[2], &[]),
            state(&[1, 4], &[], &[1, 4], &[4]),
        ] {
            assert!(!is_sound(&bad), "{bad:?}");
        }
    }
}
