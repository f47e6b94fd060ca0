//! What a node is told and what it answers: the whole conversation between raft and the loop that owns it, as data.

use std::fmt;

use bytes::Bytes;

use super::log::SnapshotPoint;
use super::read_index::ReadContext;
use super::{ConfChangeV2, ConfState, Entry, HardState, Message, Snapshot};
use crate::types::{Index, MemberId, Term};

/// What a node starts from.
pub struct NodeConfig {
    /// This member; not 0.
    pub id: MemberId,
    /// Ticks without a word of the leader after which a member may campaign (it waits up to twice as long).
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// The last entry whose effects are in the state.
    pub applied: Index,
    /// Election timeouts follow from it.
    pub seed: u64,
    /// Different in every life of this member, so that its reads are never taken for those of an earlier life.
    pub boot: u64,
    /// Ask whether an election could be won before starting it, so that a returning member does not disturb the others.
    pub pre_vote: bool,
    /// What the disk has.
    pub log: LogStart,
    /// Where raft tells its story.
    pub logger: slog::Logger,
}

/// The log as it was replayed from the disk, and the configuration as it is in the state.
pub struct LogStart {
    /// The entry right before the first; (0, 0) when the log starts at the beginning.
    pub base: (Index, Term),
    /// The configuration at `NodeConfig::applied`. Empty: a member that is still to hear of its cluster.
    pub conf_state: ConfState,
    /// `None` in a log to which raft has not written.
    pub hard_state: Option<HardState>,
    /// They follow `base` without a gap.
    pub entries: Vec<Entry>,
}

/// Why a node cannot start. All of them mean that the disk lost something, or that files of different members were
/// mixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The entries do not follow one another: this one is not where it should be, or of an earlier term than the one
    /// before.
    Disordered(Index),
    /// The state has more than the log: entries that were acknowledged are gone.
    LogEndsEarly {
        /// Last entry of the log.
        last: Index,
        /// Entry that must be there.
        needed: Index,
    },
    /// Entries between the state and the start of the log are gone.
    LogStartsLate {
        /// The log starts right after this entry.
        base: Index,
        /// The state has everything up to this one.
        applied: Index,
    },
    /// The log has entries of a term that the member does not remember having entered.
    TermForgotten {
        /// Term of the last entry.
        last: Term,
        /// Term of the hard state.
        known: Term,
    },
    /// The configuration names nobody, somebody twice, or contradicts itself.
    BrokenConfState,
    /// The change cannot be made to the present configuration.
    ConfChange(String),
    /// Ticks or the id make no sense.
    Config(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Disordered(index) => write!(f, "raft log is out of order at index {index}"),
            Error::LogEndsEarly { last, needed } => {
                write!(f, "raft log ends at index {last} but must reach {needed}: acknowledged entries are lost")
            }
            Error::LogStartsLate { base, applied } => {
                write!(
                    f,
                    "raft log starts after index {base} but the state ends at {applied}: entries between are lost"
                )
            }
            Error::TermForgotten { last, known } => {
                write!(
                    f,
                    "raft log has entries of term {last} but the hard state knows of term {known}: votes are lost"
                )
            }
            Error::BrokenConfState => write!(f, "the raft configuration contradicts itself"),
            Error::ConfChange(what) => write!(f, "the configuration cannot be changed so: {what}"),
            Error::Config(what) => write!(f, "{what}"),
        }
    }
}

impl std::error::Error for Error {}

/// Something a node is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// Time passed. After a pause tell it once, not as often as was missed.
    Tick,
    /// A peer says this. The transport has checked that `from` is who sent it.
    Message(Message),
    /// Put this into the log; not empty.
    Propose(Bytes),
    /// Put a change of the configuration into the log; `context` travels in the entry.
    ProposeConfChange {
        /// What is to change.
        change: ConfChangeV2,
        /// The proposer's own words, given back with the committed entry.
        context: Bytes,
    },
    /// Up to which index must this member have applied to answer a read that arrived before now? The context comes from
    /// [`Node::fresh_read`](super::Node::fresh_read).
    Read(ReadContext),
    /// The output of this number and all before it are durable.
    Persisted {
        /// Number of the output.
        number: u64,
    },
    /// Everything up to here is carried out.
    Applied(Index),
    /// A message to this peer was lost.
    Unreachable(MemberId),
    /// A snapshot was sent to the end, or was not. Due for every `MsgSnapshot`: until then the peer gets nothing else.
    SnapshotStatus {
        /// Who was to receive it.
        to: MemberId,
        /// Whether he has it, durably.
        ok: bool,
    },
    /// Hand over leadership. Only to the leader.
    TransferLeader(MemberId),
    /// Campaign now, without waiting for the timeout.
    Campaign,
    /// What may be offered to peers that are too far behind, from now on.
    SnapshotReady(SnapshotPoint),
    /// Forget the entries up to here. The log may keep more: see [`Node::base`](super::Node::base).
    TruncateLog(Index),
}

/// Why an input was refused. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Definite: the proposal is in nobody's log. No leader is known, leadership is being handed over, or too much is
    /// waiting to be committed.
    ProposalDropped,
    /// The read was not started, because no leader is known: ask again, with a fresh context.
    ReadDropped,
    /// Another change of the configuration is not applied yet.
    ConfChangePending,
    /// A learner that lacks too much of the log shall vote.
    LearnerBehind,
    /// It makes no sense here, and why.
    Invalid(&'static str),
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejected::ProposalDropped => write!(f, "proposal dropped"),
            Rejected::ReadDropped => write!(f, "read dropped"),
            Rejected::ConfChangePending => write!(f, "another configuration change is pending"),
            Rejected::LearnerBehind => write!(f, "the learner is too far behind to vote"),
            Rejected::Invalid(reason) => write!(f, "{reason}"),
        }
    }
}

impl std::error::Error for Rejected {}

/// What is to be done, in the order of the head of `raft`.
#[derive(Debug, Default)]
pub struct Output {
    /// Outputs are numbered from 1, without gaps. Every number is to be told back with `Persisted`, or a later one is.
    pub number: u64,
    /// To send now.
    pub messages: Vec<Message>,
    /// To append; they replace what the log has from the first of them on.
    pub entries: Vec<Entry>,
    /// To write after the entries. Only `commit` may have changed: then it need not be synced.
    pub hard_state: Option<HardState>,
    /// Whether `messages_after_sync` and `Persisted` have to wait for a sync.
    pub must_sync: bool,
    /// To install before `Persisted`: the state becomes that of the snapshot, the log starts after it (before
    /// `entries`). A `MsgSnapshot` that leads to none was not needed: its rows can go.
    pub snapshot: Option<Snapshot>,
    /// To send when this output and all before it are durable.
    pub messages_after_sync: Vec<Message>,
    /// To apply.
    pub committed: Vec<Entry>,
    /// Reads, and the index that must be applied before each is answered.
    pub reads: Vec<(ReadContext, Index)>,
    /// Given when it changed. Reads asked before will not be answered then.
    pub role: Option<Role>,
}

/// Who leads, as far as this member knows. A new node knows nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// The leader, if known.
    pub leader: Option<MemberId>,
    /// The term.
    pub term: Term,
    /// Whether this member is the leader.
    pub leads: bool,
}

/// How far a member of the configuration is, as the leader sees it. On other members only `id` and `learner` mean
/// something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub id: MemberId,
    /// Does not vote.
    pub learner: bool,
    /// The last entry it is known to have.
    pub matched: Index,
    /// It was heard of within the last election timeout.
    pub active: bool,
    /// A snapshot of this index is on its way to it.
    pub snapshot: Option<Index>,
}
