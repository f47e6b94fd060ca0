//! One turn of apply: committed entries are carried out and everybody who should know is told, in an order that matters.
//!
//! 1. every command changes the state, under the one write lock;
//! 2. rows and applied index go to the backend's queue together (they are one commit, or part of one);
//! 3. the lock is released;
//! 4. watchers are told;
//! 5. replies are given to the caller of this function, who raises the applied index and completes waiters.
//!
//! 4 before 5: a client that sees its reply and then watches "from now" must not be told about its own write.
//! The simulator calls the same function.

use std::fmt;
use std::sync::{Mutex, PoisonError, RwLock};

use crate::mvcc::change::ChangeKind;
use crate::raft::{Entry, EntryType};
use crate::state::StateMachine;
use crate::state::applied::{LeaseChange, Refusal, Reply};
use crate::state::command::decode_proposal;
use crate::storage;
use crate::storage::backend::Batch;
use crate::types::{Index, Term};
use crate::watch::Hub;

/// What one turn came to.
#[derive(Default)]
pub struct Turn {
    /// Replies to commands that this life of this member proposed: the number of the command, and what it came to.
    pub replies: Vec<(u64, Result<Reply, Refusal>)>,
    /// For the lessor, in order.
    pub leases: Vec<LeaseChange>,
    /// The last entry that was carried out; the default when there was none.
    pub applied: Index,
    /// The term of the last entry.
    pub term: Term,
    /// Keys put.
    pub puts: usize,
    /// Keys deleted.
    pub deletes: usize,
}

/// Why the member cannot go on.
#[derive(Debug)]
pub enum Error {
    /// Its disk.
    Storage(storage::Error),
    /// An entry that this release cannot read. Guessing would fork the state.
    UnknownEntry {
        /// Where it stands in the log.
        index: Index,
        /// What is wrong.
        what: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Storage(error) => error.fmt(f),
            Error::UnknownEntry { index, what } => write!(f, "raft entry {index} cannot be carried out: {what}"),
        }
    }
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Error {
        Error::Storage(error)
    }
}

/// Who proposed: only commands of this member in this life have somebody waiting here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposer {
    /// The member.
    pub member: u64,
    /// Its life.
    pub boot: u64,
}

/// Carries out `entries`. `submit` queues rows for the backend; it does not wait.
pub fn turn(
    state: &RwLock<StateMachine>,
    hub: &Mutex<Hub>,
    own: Proposer,
    entries: Vec<Entry>,
    submit: &mut dyn FnMut(Batch),
) -> Result<Turn, Error> {
    let mut turn = Turn::default();
    let mut batch = Batch::default();
    let mut changes = Vec::new();
    let mut compacted = None;
    {
        let mut state = state.write().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            let (index, term) = (Index(entry.index), Term(entry.term));
            if entry.get_entry_type() != EntryType::EntryNormal {
                return Err(Error::UnknownEntry { index, what: "a configuration change".into() });
            }
            // A new leader's first entry is empty.
            if !entry.data.is_empty() {
                let proposal = decode_proposal(entry.data)
                    .map_err(|error| Error::UnknownEntry { index, what: error.to_string() })?;
                let waited_for = own == Proposer { member: proposal.proposer, boot: proposal.boot };
                for command in &proposal.commands {
                    let applied = state.apply(index, term, command, &mut batch)?;
                    changes.extend(applied.changes);
                    turn.leases.extend(applied.leases);
                    if let Ok(Reply::Compaction(_)) = &applied.reply {
                        compacted = Some(state.kv.compacted());
                    }
                    if waited_for && command.id != 0 {
                        turn.replies.push((command.id, applied.reply));
                    }
                }
            }
            state.finish_entry(index, term, &mut batch);
            (turn.applied, turn.term) = (index, term);
        }
        // Under the lock: the backend gets batches in the order of the state's history.
        submit(batch);
    }
    if !changes.is_empty() || compacted.is_some() {
        let mut failure = None;
        let mut hub = hub.lock().unwrap_or_else(PoisonError::into_inner);
        for set in &changes {
            let puts = set.changes.iter().filter(|change| change.kind == ChangeKind::Put).count();
            turn.puts += puts;
            turn.deletes += set.changes.len() - puts;
            hub.publish(set, &mut |change| {
                // The hub's lock is held over the state's: nobody takes them the other way round.
                let state = state.read().unwrap_or_else(PoisonError::into_inner);
                change.replaced.and_then(|place| {
                    state.kv.record(place).unwrap_or_else(|error| {
                        failure = Some(error);
                        None
                    })
                })
            });
        }
        // After the events: a watcher that is told of them has seen what the compaction takes away.
        if let Some(at) = compacted {
            hub.compacted(at);
        }
        if let Some(error) = failure {
            return Err(error.into());
        }
    }
    Ok(turn)
}
