//! What a message from another member must satisfy before raft sees it.
//!
//! The crate panics when a message contradicts what a healthy cluster can say: a heartbeat that commits what is not in
//! the log, entries with a gap, a vote nobody asked for. Each rule below closes one such way, or one that would let a
//! member forge what only another may say. The transport has already made sure that the message comes from the member
//! it names. A rule refuses with the reason in words; the sender loses nothing that raft does not repeat.

use ::raft::CAMPAIGN_TRANSFER;

use super::conf_change;
use super::read_index::ReadContext;
use super::{EntryType, Message, MessageType};
use crate::types::MemberId;

/// No term or index comes near this; above it their sums could overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// What a message is held against: where the receiving member stands.
pub(super) struct Standing {
    pub(super) id: u64,
    pub(super) term: u64,
    /// 0: none known.
    pub(super) leader: u64,
    pub(super) last_index: u64,
    /// The sender is in the configuration.
    pub(super) knows_sender: bool,
    /// Nothing of the log is on its way to the disk, so that the member may stand for election.
    pub(super) settled: bool,
    /// A snapshot is being installed.
    pub(super) installing: bool,
}

/// Whether raft can take the message. Heartbeats that commit beyond the log are the node's to judge: they are counted.
pub(super) fn check(message: &Message, standing: &Standing) -> Result<(), &'static str> {
    use MessageType::*;
    check_shape(message, standing.id)?;
    let kind = message.get_msg_type();
    match kind {
        MsgAppend => check_append(message)?,
        MsgHeartbeat | MsgHeartbeatResponse => check_read_context(&message.context, true)?,
        MsgSnapshot => check_snapshot(message)?,
        MsgPropose => check_proposal(message)?,
        MsgReadIndex | MsgReadIndexResp => {
            ensure(message.entries.len() == 1, "a read without exactly one context")?;
            check_read_context(&message.entries[0].data, false)?;
        }
        MsgRequestVote | MsgRequestPreVote => {
            let context = &message.context[..];
            ensure(context.is_empty() || context == CAMPAIGN_TRANSFER, "a vote request with a strange context")?;
            ensure(message.commit <= message.index, "a candidate that committed more than it has")?;
        }
        MsgAppendResponse | MsgRequestVoteResponse | MsgRequestPreVoteResponse | MsgTimeoutNow => {}
        MsgHup | MsgBeat | MsgUnreachable | MsgSnapStatus | MsgCheckQuorum | MsgTransferLeader => {
            return Err("a message that a member says to itself only");
        }
    }
    check_against(message, standing)
}

fn check_shape(message: &Message, id: u64) -> Result<(), &'static str> {
    use MessageType::*;
    let kind = message.get_msg_type();
    ensure(message.to == id, "a message for somebody else")?;
    ensure(message.from != 0 && message.from != id, "a message from nobody")?;
    let numbers = [
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
        message.get_snapshot().get_metadata().index,
    ];
    ensure(numbers.into_iter().all(|number| number < NUMBER_MAX), "a number too large")?;
    ensure(message.request_snapshot == 0, "a request for a snapshot")?;
    let without_term = matches!(kind, MsgPropose | MsgReadIndex);
    ensure((message.term == 0) == without_term, "a term where none belongs, or none where one does")?;
    let with_entries = matches!(kind, MsgAppend | MsgPropose | MsgReadIndex | MsgReadIndexResp);
    ensure(with_entries || message.entries.is_empty(), "entries where none belong")
}

/// Entries follow `index` without a gap, in terms that never fall and are not beyond the leader's. A position has a
/// term, except the one before the first entry of all: the crate takes term 0 for "beyond the end of the log".
fn check_append(message: &Message) -> Result<(), &'static str> {
    ensure((message.index == 0) == (message.log_term == 0), "an append at a position without a term")?;
    let (mut index, mut term) = (message.index, message.log_term);
    for entry in message.entries.iter() {
        ensure(entry.index == index + 1, "entries with a gap")?;
        ensure(entry.term > 0 && entry.term >= term && entry.term <= message.term, "entries whose terms go back")?;
        ensure(is_readable(entry), "a configuration change that cannot be read")?;
        (index, term) = (entry.index, entry.term);
    }
    ensure(term <= message.term, "an append at a term beyond its leader's")
}

fn check_snapshot(message: &Message) -> Result<(), &'static str> {
    let snapshot = message.get_snapshot();
    let meta = snapshot.get_metadata();
    ensure(snapshot.data.is_empty(), "a snapshot with data")?;
    ensure(meta.index > 0 && meta.term > 0 && meta.term <= message.term, "a snapshot of nowhere")?;
    ensure(conf_change::is_sound(meta.get_conf_state()), "a snapshot with a broken configuration")
}

fn check_proposal(message: &Message) -> Result<(), &'static str> {
    ensure(!message.entries.is_empty(), "a proposal of nothing")?;
    for entry in message.entries.iter() {
        let normal = entry.get_entry_type() == EntryType::EntryNormal;
        ensure(!normal || !entry.data.is_empty(), "an empty proposal")?;
        ensure(is_readable(entry), "a configuration change that cannot be read")?;
    }
    Ok(())
}

fn is_readable(entry: &super::Entry) -> bool {
    entry.get_entry_type() == EntryType::EntryNormal || conf_change::decode(entry).is_some()
}

fn check_read_context(bytes: &[u8], may_be_empty: bool) -> Result<(), &'static str> {
    ensure(bytes.len() == ReadContext::LEN || (may_be_empty && bytes.is_empty()), "a read context of a wrong length")
}

/// The rules that depend on where the receiver stands.
fn check_against(message: &Message, standing: &Standing) -> Result<(), &'static str> {
    use MessageType::*;
    let same_term = message.term == standing.term;
    let from_leader = message.from == standing.leader;
    match message.get_msg_type() {
        MsgAppend | MsgHeartbeat => {
            ensure(!same_term || standing.leader == 0 || from_leader, "a second leader in one term")
        }
        MsgSnapshot => {
            ensure(!same_term || standing.leader == 0 || from_leader, "a second leader in one term")?;
            // A second one before the first is reported durable would confuse what has been persisted.
            ensure(!standing.installing, "a snapshot while another is being installed")
        }
        MsgAppendResponse => {
            ensure(standing.knows_sender, "an answer from a stranger")?;
            let plausible = !same_term || message.reject || message.index <= standing.last_index;
            ensure(plausible, "an acknowledgement of what was never sent")
        }
        MsgHeartbeatResponse | MsgRequestVoteResponse | MsgRequestPreVoteResponse => {
            ensure(standing.knows_sender, "an answer from a stranger")
        }
        MsgTimeoutNow => {
            ensure(same_term && from_leader, "a call to campaign from somebody who does not lead")?;
            // A vote that nobody could have given yet would make a leader of a member whose log can still lose its end.
            ensure(standing.settled, "a call to campaign while the log is being written")
        }
        MsgReadIndexResp => {
            let context = ReadContext::decode(&message.entries[0].data);
            ensure(context.is_some_and(|context| context.member == MemberId(standing.id)), "somebody else's read")?;
            ensure(!same_term || from_leader, "a read answered by somebody who does not lead")
        }
        MsgPropose | MsgReadIndex => ensure(standing.knows_sender, "a request from a stranger"),
        _ => Ok(()),
    }
}

fn ensure(holds: bool, reason: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(reason) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::raft::{ConfState, Entry};

    /// A follower of member 1 in term 5, with ten entries.
    fn standing() -> Standing {
        Standing { id: 2, term: 5, leader: 1, last_index: 10, knows_sender: true, settled: true, installing: false }
    }

    fn message(kind: MessageType) -> Message {
        let mut message = Message { from: 1, to: 2, term: 5, ..Message::default() };
        message.set_msg_type(kind);
        match kind {
            MessageType::MsgAppend => {
                (message.index, message.log_term) = (10, 4);
                message.set_entries(vec![entry(11, 4), entry(12, 5)].into());
            }
            MessageType::MsgSnapshot => {
                let meta = message.mut_snapshot().mut_metadata();
                (meta.index, meta.term) = (20, 4);
                meta.set_conf_state(ConfState { voters: vec![1, 2], ..ConfState::default() });
            }
            MessageType::MsgRequestVote => message.index = 10,
            MessageType::MsgPropose => {
                message.term = 0;
                message.set_entries(vec![entry(0, 0)].into());
            }
            MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
                let context = ReadContext { member: MemberId(2), boot: 1, counter: 1 };
                let data = Bytes::copy_from_slice(&context.encode());
                message.term *= u64::from(kind == MessageType::MsgReadIndexResp);
                message.set_entries(vec![Entry { data, ..Entry::default() }].into());
            }
            _ => {}
        }
        message
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: Bytes::from_static(b"x"), ..Entry::default() }
    }

    fn unreadable(mut entry: Entry) -> Entry {
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry.data = Bytes::from_static(&[0x0b]);
        entry
    }

    /// A sound message of this kind passes; with this change it is refused, for this reason.
    #[track_caller]
    fn refuses(kind: MessageType, change: impl Fn(&mut Message, &mut Standing), reason: &str) {
        let (mut message, mut standing) = (message(kind), standing());
        assert_eq!(check(&message, &standing), Ok(()), "{kind:?}");
        change(&mut message, &mut standing);
        let refusal = check(&message, &standing).expect_err(reason);
        assert!(refusal.contains(reason), "{kind:?}: {refusal}, not {reason}");
    }

    #[test]
    fn each_rule_refuses_what_it_is_for() {
        use MessageType::*;
        refuses(MsgHeartbeat, |m, _| m.to = 3, "for somebody else");
        refuses(MsgHeartbeat, |m, _| m.from = 0, "from nobody");
        refuses(MsgHeartbeat, |m, _| m.from = 2, "from nobody");
        refuses(MsgHeartbeat, |m, _| m.term = 0, "a term where none belongs");
        refuses(MsgHeartbeat, |m, _| m.commit = u64::MAX, "too large");
        refuses(MsgHeartbeat, |m, _| m.from = 3, "second leader");
        refuses(MsgHeartbeat, |m, _| m.context = Bytes::from_static(b"x"), "wrong length");
        refuses(MsgHeartbeat, |m, _| m.entries.push(entry(1, 1)), "entries where none belong");
        refuses(MsgHeartbeat, |m, _| m.set_msg_type(MsgTransferLeader), "to itself only");
        refuses(MsgAppend, |m, _| m.log_term = 0, "position without a term");
        refuses(MsgAppend, |m, _| m.entries[1].index = 13, "gap");
        refuses(MsgAppend, |m, _| m.entries[1].term = 3, "go back");
        refuses(MsgAppend, |m, _| m.entries[1].term = 6, "go back");
        refuses(MsgAppend, |m, _| m.entries[1] = unreadable(entry(12, 5)), "cannot be read");
        refuses(MsgAppend, |m, _| (m.log_term, m.entries) = (6, Default::default()), "beyond its leader's");
        refuses(MsgAppend, |m, _| m.from = 3, "second leader");
        refuses(MsgAppendResponse, |m, _| m.index = 11, "never sent");
        refuses(MsgAppendResponse, |_, s| s.knows_sender = false, "stranger");
        refuses(MsgAppendResponse, |m, _| m.request_snapshot = 1, "request for a snapshot");
        refuses(MsgHeartbeatResponse, |_, s| s.knows_sender = false, "stranger");
        refuses(MsgRequestVoteResponse, |_, s| s.knows_sender = false, "stranger");
        refuses(MsgSnapshot, |_, s| s.installing = true, "being installed");
        refuses(MsgSnapshot, |m, _| m.from = 3, "second leader");
        refuses(MsgSnapshot, |m, _| m.mut_snapshot().clear_metadata(), "of nowhere");
        refuses(MsgSnapshot, |m, _| m.mut_snapshot().data = Bytes::from_static(b"x"), "with data");
        refuses(MsgSnapshot, |m, _| m.mut_snapshot().mut_metadata().clear_conf_state(), "broken configuration");
        refuses(MsgRequestVote, |m, _| m.context = Bytes::from_static(b"x"), "strange context");
        refuses(MsgRequestVote, |m, _| m.commit = 11, "more than it has");
        refuses(MsgPropose, |m, _| m.entries.clear(), "proposal of nothing");
        refuses(MsgPropose, |m, _| m.entries[0].data = Bytes::new(), "empty proposal");
        refuses(MsgPropose, |m, _| m.entries.push(unreadable(entry(0, 0))), "cannot be read");
        refuses(MsgPropose, |m, _| m.term = 5, "a term where none belongs");
        refuses(MsgPropose, |_, s| s.knows_sender = false, "stranger");
        refuses(MsgReadIndex, |m, _| m.entries.clear(), "exactly one context");
        refuses(MsgReadIndex, |m, _| m.entries.push(entry(0, 0)), "exactly one context");
        refuses(MsgReadIndex, |m, _| m.entries[0].data = Bytes::from_static(b"x"), "wrong length");
        refuses(MsgReadIndexResp, |m, _| m.entries[0].data = Bytes::from_static(&[0; 24]), "somebody else's read");
        refuses(MsgReadIndexResp, |m, _| m.from = 3, "somebody who does not lead");
        refuses(MsgTimeoutNow, |m, _| m.from = 3, "somebody who does not lead");
        refuses(MsgTimeoutNow, |m, _| m.term = 6, "somebody who does not lead");
        refuses(MsgTimeoutNow, |_, s| s.settled = false, "while the log is being written");
    }
}
