//! One raft message as raft knows it, and as it travels.
//!
//! Promises: every field that raft reads comes back as it was; only kinds that one member may send to another come back
//! at all. Whether a message makes sense to the member that gets it is for the raft node to judge. Payloads are shared,
//! not copied. No byte from the network reaches raft's own decoder.

use std::fmt;

use ::raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata};

use crate::pb::everwatchpb as wire;

/// Kinds that travel. The others are notes that a raft node makes to itself.
const TRAVELLING: [MessageType; 14] = [
    MessageType::MsgPropose,
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// Kinds of entries.
const ENTRIES: [EntryType; 3] = [EntryType::EntryNormal, EntryType::EntryConfChange, EntryType::EntryConfChangeV2];

/// Why something that arrived is not a raft message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No message of this kind travels between members.
    UnknownMessage(u32),
    /// No entry is of this kind.
    UnknownEntry(u32),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::UnknownMessage(kind) => write!(f, "unknown kind of raft message {kind}"),
            Error::UnknownEntry(kind) => write!(f, "unknown kind of raft entry {kind}"),
        }
    }
}

impl std::error::Error for Error {}

/// Whether messages of this kind are ever sent to another member.
pub fn travels(kind: MessageType) -> bool {
    TRAVELLING.contains(&kind)
}

/// The message as it travels. What a snapshot holds is left out: it goes beside the message, as rows.
pub fn to_wire(message: Message) -> wire::RaftMessage {
    let priority = priority(&message);
    wire::RaftMessage {
        kind: message.msg_type as u32,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.into_vec().into_iter().map(entry_to_wire).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot: message.snapshot.into_option().map(|snapshot| meta_to_wire(snapshot.get_metadata())),
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        priority,
    }
}

/// The message that travelled.
pub fn from_wire(message: wire::RaftMessage) -> Result<Message, Error> {
    let entries = message.entries.into_iter().map(entry_from_wire).collect::<Result<Vec<_>, _>>()?;
    let mut out = Message {
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: entries.into(),
        commit: message.commit,
        commit_term: message.commit_term,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        priority: message.priority,
        ..Message::default()
    };
    out.msg_type =
        TRAVELLING.into_iter().find(|kind| *kind as u32 == message.kind).ok_or(Error::UnknownMessage(message.kind))?;
    if let Some(meta) = message.snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(meta_from_wire(meta));
        out.set_snapshot(snapshot);
    }
    Ok(out)
}

/// About as many bytes as the message takes on the wire: what queues are bounded by.
pub fn size(message: &Message) -> usize {
    const FIXED: usize = 64;
    const PER_ENTRY: usize = 24;
    let entries: usize = message.entries.iter().map(|e| PER_ENTRY + e.data.len() + e.context.len()).sum();
    FIXED + message.context.len() + entries
}

/// Raft reads the newer of two fields when it is set, else the older one, which never was negative.
fn priority(message: &Message) -> i64 {
    match message.priority {
        0 => i64::try_from(message.deprecated_priority).unwrap_or(i64::MAX),
        priority => priority,
    }
}

fn entry_to_wire(entry: Entry) -> wire::RaftEntry {
    wire::RaftEntry {
        kind: entry.entry_type as u32,
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
    }
}

fn entry_from_wire(entry: wire::RaftEntry) -> Result<Entry, Error> {
    let kind = ENTRIES.into_iter().find(|kind| *kind as u32 == entry.kind).ok_or(Error::UnknownEntry(entry.kind))?;
    Ok(Entry {
        entry_type: kind,
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
        ..Entry::default()
    })
}

fn meta_to_wire(meta: &SnapshotMetadata) -> wire::SnapshotMeta {
    wire::SnapshotMeta {
        index: meta.index,
        term: meta.term,
        conf_state: meta.conf_state.as_ref().map(|conf_state| wire::ConfState {
            voters: conf_state.voters.clone(),
            learners: conf_state.learners.clone(),
            voters_outgoing: conf_state.voters_outgoing.clone(),
            learners_next: conf_state.learners_next.clone(),
            auto_leave: conf_state.auto_leave,
        }),
    }
}

fn meta_from_wire(meta: wire::SnapshotMeta) -> SnapshotMetadata {
    let mut out = SnapshotMetadata { index: meta.index, term: meta.term, ..SnapshotMetadata::default() };
    if let Some(conf_state) = meta.conf_state {
        out.set_conf_state(ConfState {
            voters: conf_state.voters,
            learners: conf_state.learners,
            voters_outgoing: conf_state.voters_outgoing,
            learners_next: conf_state.learners_next,
            auto_leave: conf_state.auto_leave,
            ..ConfState::default()
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use prost::Message as _;

    use super::*;

    /// A small generator, so that a failing message can be made again from its seed.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        /// Small, large and zero numbers alike.
        fn number(&mut self) -> u64 {
            let shift = self.next() % 65;
            self.next().checked_shr(shift as u32).unwrap_or(0)
        }

        fn below(&mut self, n: usize) -> usize {
            (self.next() % n as u64) as usize
        }

        fn bytes(&mut self) -> Bytes {
            (0..self.below(40)).map(|_| self.next() as u8).collect()
        }

        fn numbers(&mut self) -> Vec<u64> {
            (0..self.below(4)).map(|_| self.number()).collect()
        }

        fn message(&mut self) -> Message {
            let entries: Vec<Entry> = (0..self.below(4))
                .map(|_| Entry {
                    entry_type: ENTRIES[self.below(ENTRIES.len())],
                    term: self.number(),
                    index: self.number(),
                    data: self.bytes(),
                    context: self.bytes(),
                    ..Entry::default()
                })
                .collect();
            let mut message = Message {
                msg_type: TRAVELLING[self.below(TRAVELLING.len())],
                to: self.number(),
                from: self.number(),
                term: self.number(),
                log_term: self.number(),
                index: self.number(),
                entries: entries.into(),
                commit: self.number(),
                commit_term: self.number(),
                request_snapshot: self.number(),
                reject: self.below(2) == 1,
                reject_hint: self.number(),
                context: self.bytes(),
                priority: self.number() as i64,
                ..Message::default()
            };
            if self.below(2) == 1 {
                let conf_state = ConfState {
                    voters: self.numbers(),
                    learners: self.numbers(),
                    voters_outgoing: self.numbers(),
                    learners_next: self.numbers(),
                    auto_leave: self.below(2) == 1,
                    ..ConfState::default()
                };
                let mut meta = SnapshotMetadata { index: self.number(), term: self.number(), ..Default::default() };
                meta.set_conf_state(conf_state);
                let mut snapshot = Snapshot::default();
                snapshot.set_metadata(meta);
                message.set_snapshot(snapshot);
            }
            message
        }
    }

    #[test]
    fn what_arrives_is_what_was_sent() {
        for seed in 1..=2_000 {
            let message = Random(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed)).message();
            let bytes = to_wire(message.clone()).encode_to_vec();
            let travelled = wire::RaftMessage::decode(bytes.as_slice()).expect("our own bytes");
            assert_eq!(from_wire(travelled), Ok(message), "seed {seed}");
        }
    }

    #[test]
    fn strange_kinds_are_refused() {
        let mut message = wire::RaftMessage { kind: MessageType::MsgHup as u32, ..Default::default() };
        assert_eq!(from_wire(message.clone()), Err(Error::UnknownMessage(0)));
        message.kind = 99;
        assert_eq!(from_wire(message.clone()), Err(Error::UnknownMessage(99)));
        message.kind = MessageType::MsgAppend as u32;
        message.entries.push(wire::RaftEntry { kind: 3, ..Default::default() });
        assert_eq!(from_wire(message), Err(Error::UnknownEntry(3)));
    }

    #[test]
    fn an_older_priority_still_counts() {
        let message = Message { deprecated_priority: 7, ..Message::default() };
        assert_eq!(to_wire(message).priority, 7);
    }
}
