//! What carrying out one command came to. A value: the apply loop hands its parts on in order.

use crate::auth::{self, token::TokenChange};
use crate::cluster::membership;
use crate::mvcc::{self, change::SharedChanges};
use crate::pb::etcdserverpb as pb;
use crate::storage;
use crate::types::{LeaseId, Revision};

/// The outcome of one command.
#[derive(Debug)]
pub struct Applied {
    /// What the proposer is told.
    pub reply: Result<Reply, Refusal>,
    /// What watchers are told: one set per revision, in order. More than one only when many leases expired together.
    pub changes: Vec<SharedChanges>,
    /// What the leader's lessor is told, in order.
    pub leases: Vec<LeaseChange>,
}

/// An answer. Headers carry the revision alone; the edge stamps who, where and when.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Reply {
    Put(pb::PutResponse),
    DeleteRange(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    /// The compaction is logically done; rows up to this revision are being removed.
    Compaction(pb::CompactionResponse),
    LeaseGrant(pb::LeaseGrantResponse),
    LeaseRevoke(pb::LeaseRevokeResponse),
    Alarm(pb::AlarmResponse),
    /// Members were changed; these are all of them now.
    Members(Vec<pb::Member>),
    /// Users, roles or whether they count were changed, while the store was at this revision.
    AuthChanged {
        revision: Revision,
        tokens: Option<TokenChange>,
    },
    /// A user has this token.
    Authenticated {
        revision: Revision,
        token: String,
        tokens: TokenChange,
    },
    /// A command that has nothing to say.
    Done,
}

/// An error that is part of the state's history: every member comes to the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The revision asked for is below the compacted one, given here.
    Compacted(Revision),
    /// The revision asked for lies ahead.
    FutureRevision,
    /// A key's lease must exist.
    LeaseNotFound,
    /// The id given to a grant is taken.
    LeaseExists,
    /// ignore_value or ignore_lease on a key that does not exist (also: an operation of a txn that says nothing).
    KeyNotFound,
    /// NOSPACE is raised.
    NoSpace,
    /// CORRUPT is raised.
    Corrupt,
    /// Sort order or target is not one we know.
    InvalidSort,
    /// The member does not exist, or was removed.
    MemberNotFound,
    /// The id of a new member is taken.
    MemberExists,
    /// A peer URL belongs to another member.
    PeerUrlExists,
    /// Only learners are promoted.
    NotLearner,
    /// There are as many learners as there may be.
    TooManyLearners,
    /// The last voter is not removed.
    LastVoter,
    /// Who asks may not, or users and roles are not as it takes.
    Auth(auth::Error),
}

impl From<auth::Error> for Refusal {
    fn from(error: auth::Error) -> Refusal {
        Refusal::Auth(error)
    }
}

impl From<membership::Refused> for Refusal {
    fn from(refused: membership::Refused) -> Refusal {
        use membership::Refused::*;
        match refused {
            // Whoever asks for a member that is gone need not know that there once was one.
            Removed | NotFound => Refusal::MemberNotFound,
            IdExists => Refusal::MemberExists,
            PeerUrlExists => Refusal::PeerUrlExists,
            TooManyLearners => Refusal::TooManyLearners,
            NotLearner => Refusal::NotLearner,
            LastVoter => Refusal::LastVoter,
        }
    }
}

/// What a request to the store came to when it failed: its fault, which is history, or the disk's, which stops the member.
impl TryFrom<mvcc::Error> for Refusal {
    type Error = storage::Error;

    fn try_from(error: mvcc::Error) -> Result<Refusal, storage::Error> {
        match error {
            mvcc::Error::Compacted { at } => Ok(Refusal::Compacted(at)),
            mvcc::Error::FutureRevision => Ok(Refusal::FutureRevision),
            mvcc::Error::KeyNotFound => Ok(Refusal::KeyNotFound),
            mvcc::Error::LeaseNotFound => Ok(Refusal::LeaseNotFound),
            mvcc::Error::InvalidSort => Ok(Refusal::InvalidSort),
            mvcc::Error::Storage(error) => Err(error),
        }
    }
}

/// A lease came, went or changed its rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    /// Granted for so many seconds.
    Granted {
        /// Which.
        id: LeaseId,
        /// Its length in seconds.
        ttl: i64,
    },
    /// Revoked or expired.
    Revoked {
        /// Which.
        id: LeaseId,
    },
    /// Its recorded rest is now this; `None`: its full length.
    Remaining {
        /// Which.
        id: LeaseId,
        /// Milliseconds.
        rest_ms: Option<u64>,
    },
}
