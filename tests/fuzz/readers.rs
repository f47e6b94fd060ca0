//! The readers that were written by hand, and those of our own wire types, on bytes of any kind: what is written is read
//! back, and where the consensus crate can read a change of configuration too, it reads the same.

use bytes::Bytes;
use everwatch::pb::everwatchpb as wire;
use everwatch::peer::codec;
use everwatch::raft::{
    ConfChange, ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType, decode_conf_change,
};
use everwatch::state::command::{Command, Kind, ProposalWriter, decode_proposal, encode_command};
use prost::Message as _;
use protobuf::Message as _;

use crate::engine::{Dice, Feed, mutated, outcome};

fn entry(kind: EntryType, data: Vec<u8>) -> Entry {
    let mut entry = Entry { data: data.into(), ..Entry::default() };
    entry.set_entry_type(kind);
    entry
}

fn change(feed: &mut Feed<'_>) -> ConfChangeV2 {
    use everwatch::raft::ConfChangeTransition::*;
    let mut change = ConfChangeV2::default();
    change.set_transition(feed.pick(&[Auto, Implicit, Explicit]));
    for _ in 0..feed.below(4) {
        let mut single = ConfChangeSingle { node_id: feed.number() as u64, ..Default::default() };
        let kinds = [ConfChangeType::AddNode, ConfChangeType::RemoveNode, ConfChangeType::AddLearnerNode];
        single.set_change_type(feed.pick(&kinds));
        change.mut_changes().push(single);
    }
    change.context = feed.bytes(9).into();
    change
}

fn conf_changes(feed: &mut Feed<'_>) -> u64 {
    let change = change(feed);
    let bytes = change.write_to_bytes().expect("a message in memory is written");
    let read = decode_conf_change(&entry(EntryType::EntryConfChangeV2, bytes.clone()));
    assert_eq!(read.as_ref(), Some(&change), "what is written is read back");

    let mut dice = Dice::new(feed.u64());
    let hurt = mutated(&mut dice, &bytes, feed.rest(), 200);
    let read = decode_conf_change(&entry(EntryType::EntryConfChangeV2, hurt.clone()));
    if let Some(read) = &read {
        let mut theirs = ConfChangeV2::default();
        theirs.merge_from_bytes(&hurt).unwrap_or_else(|error| panic!("only ours reads {hurt:?}: {error}"));
        assert_eq!(read, &theirs, "{hurt:?}");
    }
    let old = decode_conf_change(&entry(EntryType::EntryConfChange, hurt.clone()));
    if let Some(old) = &old {
        let mut theirs = ConfChange::default();
        theirs.merge_from_bytes(&hurt).unwrap_or_else(|error| panic!("only ours reads {hurt:?}: {error}"));
        assert_eq!(old.changes.len(), 1);
        assert_eq!((old.changes[0].node_id, &old.context), (theirs.node_id, &theirs.context), "{hurt:?}");
        assert_eq!(old.changes[0].get_change_type(), theirs.get_change_type(), "{hurt:?}");
    }
    assert!(decode_conf_change(&entry(EntryType::EntryNormal, hurt)).is_none());
    outcome((0, read.map(|read| read.changes.len()), old.is_some()))
}

fn proposals(feed: &mut Feed<'_>) -> u64 {
    use everwatch::pb::etcdserverpb as pb;
    let (proposer, boot) = (feed.number() as u64, feed.number() as u64);
    let mut commands = Vec::new();
    for _ in 0..feed.below(4) {
        let kind = match feed.below(5) {
            0 => Kind::Put(pb::PutRequest {
                key: feed.bytes(4).into(),
                value: feed.bytes(9).into(),
                ..Default::default()
            }),
            1 => Kind::DeleteRange(pb::DeleteRangeRequest { key: feed.bytes(4).into(), ..Default::default() }),
            2 => Kind::Txn(pb::TxnRequest { success: vec![pb::RequestOp { request: None }], ..Default::default() }),
            3 => Kind::Compaction(pb::CompactionRequest { revision: feed.number(), physical: feed.one_in(2) }),
            _ => Kind::LeaseGrant(pb::LeaseGrantRequest { id: feed.number(), ttl: feed.number() }),
        };
        commands.push(Command { id: feed.number() as u64, kind: Some(kind), ..Default::default() });
    }
    let mut writer = ProposalWriter::new(proposer, boot, 0);
    commands.iter().for_each(|command| writer.push(&encode_command(command)));
    let bytes = writer.finish();
    let read = decode_proposal(bytes.clone()).expect("what is written is read back");
    assert_eq!((read.proposer, read.boot, &read.commands), (proposer, boot, &commands));

    let mut dice = Dice::new(feed.u64());
    let hurt = Bytes::from(mutated(&mut dice, &bytes, feed.rest(), 400));
    let read = decode_proposal(hurt);
    if let Ok(read) = &read {
        let again = decode_proposal(read.encode_to_vec().into()).expect("what is written is read back");
        assert_eq!(&again, read);
    }
    outcome((1, read.map(|read| read.commands.len()).ok()))
}

fn messages(feed: &mut Feed<'_>) -> u64 {
    let ids = |feed: &mut Feed<'_>| (0..feed.below(3)).map(|_| feed.number() as u64).collect::<Vec<_>>();
    let message = wire::RaftMessage {
        kind: feed.below(20) as u32,
        to: feed.number() as u64,
        from: feed.number() as u64,
        term: feed.number() as u64,
        index: feed.number() as u64,
        entries: (0..feed.below(3))
            .map(|_| wire::RaftEntry {
                kind: feed.below(4) as u32,
                term: feed.number() as u64,
                index: feed.number() as u64,
                data: feed.bytes(9).into(),
                ..Default::default()
            })
            .collect(),
        snapshot: feed.one_in(3).then(|| wire::SnapshotMeta {
            index: feed.number() as u64,
            term: feed.number() as u64,
            conf_state: Some(wire::ConfState { voters: ids(feed), learners: ids(feed), ..Default::default() }),
        }),
        priority: feed.number(),
        context: feed.bytes(9).into(),
        ..Default::default()
    };
    let bytes = message.encode_to_vec();
    assert_eq!(wire::RaftMessage::decode(bytes.as_slice()).as_ref(), Ok(&message));
    let mut dice = Dice::new(feed.u64());
    let mut read = 0;
    for bytes in [bytes.clone(), mutated(&mut dice, &bytes, feed.rest(), 400)] {
        let Ok(decoded) = wire::RaftMessage::decode(bytes.as_slice()) else { continue };
        let Ok(message) = codec::from_wire(decoded.clone()) else { continue };
        assert!(codec::travels(message.msg_type) && codec::size(&message) >= message.context.len());
        let again = codec::to_wire(message.clone());
        assert_eq!(codec::from_wire(again).as_ref(), Ok(&message));
        read += 1;
    }
    outcome((2, read, message.kind))
}

pub(crate) fn run(input: &[u8]) -> u64 {
    let mut feed = Feed::new(input);
    match feed.below(3) {
        0 => conf_changes(&mut feed),
        1 => proposals(&mut feed),
        _ => messages(&mut feed),
    }
}
