//! One turn of raft: what came in goes to the node, what follows comes out in the order in which it has to happen.
//!
//! The order is the promise of this file, and the simulator calls the same function:
//! 1. messages that need no disk leave;
//! 2. entries, hard state and a snapshot's reset go to the log as one write, with the messages that have to wait for it;
//! 3. committed entries go on to apply. They are durable here and on a quorum: raft hands out nothing else.

use crate::raft::{Entry, Input, Message, Node, Output, ReadContext, Rejected, Role};
use crate::storage::wal::{Append, Base, HardState, LogEntry, Wal};
use crate::types::{Index, MemberId, Term};

/// What one turn came to.
#[derive(Default)]
pub struct Turn {
    /// To send now.
    pub messages: Vec<Message>,
    /// To write, in order.
    pub writes: Vec<LogWrite>,
    /// To apply, in order.
    pub committed: Vec<Entry>,
    /// Reads that the leader confirmed.
    pub reads: Vec<(ReadContext, Index)>,
    /// Who leads, when that changed.
    pub role: Option<Role>,
}

/// One write to the log.
pub struct LogWrite {
    /// The number to report when it is durable.
    pub number: u64,
    /// A snapshot of this place is to be adopted; the log goes on after it.
    pub reset: Option<Base>,
    /// Entries.
    pub entries: Vec<LogEntry>,
    /// Term, vote and commit.
    pub hard_state: Option<HardState>,
    /// Whether anybody relies on it being durable.
    pub must_sync: bool,
    /// To send once it is durable.
    pub then_send: Vec<Message>,
}

impl LogWrite {
    /// Writes it. Not durable before the next [`Wal::sync`].
    pub fn append_to(&self, wal: &mut Wal) -> crate::storage::Result<()> {
        wal.append(&Append { reset: self.reset, entries: &self.entries, hard_state: self.hard_state.as_ref() })
    }
}

/// Takes everything the node has to say.
pub fn turn(node: &mut Node) -> Turn {
    let mut turn = Turn::default();
    while let Some(output) = node.take_output() {
        let Output {
            number,
            messages,
            entries,
            hard_state,
            must_sync,
            snapshot,
            messages_after_sync,
            committed,
            reads,
            role,
        } = output;
        turn.messages.extend(messages);
        let reset = snapshot.map(|snapshot| {
            let meta = snapshot.get_metadata();
            Base { index: Index(meta.index), term: Term(meta.term) }
        });
        turn.writes.push(LogWrite {
            number,
            reset,
            entries: entries.into_iter().map(to_log).collect(),
            hard_state: hard_state.map(|state| HardState {
                term: Term(state.term),
                vote: MemberId(state.vote),
                commit: Index(state.commit),
            }),
            must_sync,
            then_send: messages_after_sync,
        });
        turn.committed.extend(committed);
        turn.reads.extend(reads);
        turn.role = role.or(turn.role);
    }
    turn
}

/// Tells the node something whose refusal needs no action: a message that makes no sense, a status nobody waits for. The
/// reason is returned for the log.
pub fn tell(node: &mut Node, input: Input) -> Option<&'static str> {
    match node.handle(input) {
        Err(Rejected::Invalid(reason)) => Some(reason),
        _ => None,
    }
}

/// An entry of raft's as the log has it.
pub(super) fn to_log(entry: Entry) -> LogEntry {
    LogEntry {
        kind: entry.entry_type as u8,
        term: Term(entry.term),
        index: Index(entry.index),
        data: entry.data,
        context: entry.context,
    }
}

/// An entry of the log as raft knows it; `None` when its kind is not one of raft's.
pub fn from_log(entry: LogEntry) -> Option<Entry> {
    use crate::raft::EntryType;
    let kind = [EntryType::EntryNormal, EntryType::EntryConfChange, EntryType::EntryConfChangeV2]
        .into_iter()
        .find(|kind| *kind as i32 == i32::from(entry.kind))?;
    let mut out = Entry::default();
    out.set_entry_type(kind);
    out.term = entry.term.0;
    out.index = entry.index.0;
    out.data = entry.data;
    out.context = entry.context;
    Some(out)
}
